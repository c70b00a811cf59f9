package service

import (
	"net/netip"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	reflejov1 "github.com/reflejo/terraform-provider-reflejo/agent/api/reflejo/v1"
	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
	"github.com/reflejo/terraform-provider-reflejo/agent/network"
	"github.com/reflejo/terraform-provider-reflejo/agent/vserver"
)

// timestamp is unset for the zero time.
func timestamp(t time.Time) *timestamppb.Timestamp {
	if t.IsZero() {
		return nil
	}
	return timestamppb.New(t)
}

// convert maps a slice, keeping nil nil.
func convert[A, B any](list []A, f func(A) B) []B {
	if list == nil {
		return nil
	}
	out := make([]B, len(list))
	for i, v := range list {
		out[i] = f(v)
	}
	return out
}

// convertMap maps a map's values, keeping nil nil.
func convertMap[A, B any](m map[string]A, f func(A) B) map[string]B {
	if m == nil {
		return nil
	}
	out := make(map[string]B, len(m))
	for k, v := range m {
		out[k] = f(v)
	}
	return out
}

func specFromProto(p *reflejov1.ServerSpec) vserver.Spec {
	return vserver.Spec{
		ID:       p.GetId(),
		Name:     p.GetName(),
		Image:    p.GetImage(),
		Power:    vserver.Power(p.GetPower()),
		Hostname: p.GetHostname(),
		Timezone: p.GetTimezone(),
		DNS:      vserver.DNS{Servers: p.GetDnsServers(), Search: p.GetDnsSearch()},
		CPU:      vserver.CPU{MilliCores: p.GetCpu().GetMilliCores(), Weight: p.GetCpu().GetWeight(), Pin: p.GetCpu().GetPin()},
		Memory:   vserver.Memory{Max: p.GetMemory().GetMax(), High: p.GetMemory().GetHigh(), Swap: p.GetMemory().GetSwap()},
		Disk: vserver.Disk{
			Size:      p.GetDisk().GetSize(),
			ReadBPS:   p.GetDisk().GetReadBps(),
			WriteBPS:  p.GetDisk().GetWriteBps(),
			ReadIOPS:  p.GetDisk().GetReadIops(),
			WriteIOPS: p.GetDisk().GetWriteIops(),
		},
		Processes:          p.GetProcesses(),
		Network:            convertMap(p.GetNetwork(), nicFromProto),
		FirstBoot:          vserver.FirstBoot{UserData: p.GetFirstBoot(), Version: p.GetFirstBootVersion()},
		DeletionProtection: p.GetDeletionProtection(),
		ShutdownTimeout:    p.GetShutdownTimeout().AsDuration(),
		Labels:             p.GetLabels(),
		RestoreFrom:        p.GetRestoreFrom(),
		CloneOf:            p.GetCloneOf(),
		SnapshotPolicy:     vserver.SnapshotPolicy{Schedule: p.GetSnapshotPolicy().GetSchedule(), On: p.GetSnapshotPolicy().GetOn(), Keep: keepFromProto(p.GetSnapshotPolicy().GetKeep())},
		BackupPolicy: vserver.BackupPolicy{
			Schedule:    p.GetBackupPolicy().GetSchedule(),
			Target:      p.GetBackupPolicy().GetTarget(),
			Keep:        keepFromProto(p.GetBackupPolicy().GetKeep()),
			Incremental: p.GetBackupPolicy().GetIncremental(),
		},
		Migration:     migrationFromProto(p.GetMigration()),
		KeepSnapshots: p.GetKeepSnapshots(),
	}
}

func nicFromProto(p *reflejov1.Nic) vserver.NIC {
	return vserver.NIC{
		Network: p.GetNetwork(),
		Address: p.GetAddress(),
		Ingress: p.GetIngress(),
		Egress:  p.GetEgress(),
		Publish: convertMap(p.GetPublish(), func(p *reflejov1.Publish) vserver.Publish {
			return vserver.Publish{Protocol: p.GetProtocol(), HostPort: int(p.GetHostPort()), Port: int(p.GetPort())}
		}),
		Filtered: p.GetFiltered(),
		Allow: convert(p.GetAllow(), func(p *reflejov1.Allow) vserver.Allow {
			return vserver.Allow{From: p.GetFrom(), Protocol: p.GetProtocol(), Ports: p.GetPorts()}
		}),
	}
}

// specToProto leaves the first-boot data out: it is a secret.
func specToProto(s vserver.Spec) *reflejov1.ServerSpec {
	return &reflejov1.ServerSpec{
		Id:         s.ID,
		Name:       s.Name,
		Image:      s.Image,
		Power:      string(s.Power),
		Hostname:   s.Hostname,
		Timezone:   s.Timezone,
		DnsServers: s.DNS.Servers,
		DnsSearch:  s.DNS.Search,
		Cpu:        &reflejov1.Cpu{MilliCores: s.CPU.MilliCores, Weight: s.CPU.Weight, Pin: s.CPU.Pin},
		Memory:     &reflejov1.Memory{Max: s.Memory.Max, High: s.Memory.High, Swap: s.Memory.Swap},
		Disk: &reflejov1.Disk{
			Size:      s.Disk.Size,
			ReadBps:   s.Disk.ReadBPS,
			WriteBps:  s.Disk.WriteBPS,
			ReadIops:  s.Disk.ReadIOPS,
			WriteIops: s.Disk.WriteIOPS,
		},
		Processes:          s.Processes,
		Network:            convertMap(s.Network, nicToProto),
		FirstBootVersion:   s.FirstBoot.Version,
		DeletionProtection: s.DeletionProtection,
		ShutdownTimeout:    durationpb.New(s.ShutdownTimeout),
		Labels:             s.Labels,
		RestoreFrom:        s.RestoreFrom,
		CloneOf:            s.CloneOf,
		SnapshotPolicy:     snapshotPolicyToProto(s.SnapshotPolicy),
		BackupPolicy:       backupPolicyToProto(s.BackupPolicy),
		Migration:          migrationToProto(s.Migration),
		KeepSnapshots:      s.KeepSnapshots,
	}
}

func nicToProto(n vserver.NIC) *reflejov1.Nic {
	return &reflejov1.Nic{
		Network: n.Network,
		Address: n.Address,
		Ingress: n.Ingress,
		Egress:  n.Egress,
		Publish: convertMap(n.Publish, func(p vserver.Publish) *reflejov1.Publish {
			return &reflejov1.Publish{Protocol: p.Protocol, HostPort: uint32(p.HostPort), Port: uint32(p.Port)}
		}),
		Filtered: n.Filtered,
		Allow: convert(n.Allow, func(a vserver.Allow) *reflejov1.Allow {
			return &reflejov1.Allow{From: a.From, Protocol: a.Protocol, Ports: a.Ports}
		}),
	}
}

// viewToProto makes all of a Server but host, image_name and usage, which a view does not know.
func viewToProto(v vserver.View) *reflejov1.Server {
	return &reflejov1.Server{
		Spec:       specToProto(v.Spec),
		State:      string(v.State),
		CreatedAt:  timestamp(v.Created),
		StartedAt:  timestamp(v.Started),
		DiskUsed:   v.DiskUsed,
		Generation: v.Generation,
		MovedTo:    v.MovedTo,
		Leaving:    v.Leaving,
		Operation:  operationToProto(v.Operation),
		Nics: convertMap(v.NICs, func(n vserver.NICView) *reflejov1.NicStatus {
			return &reflejov1.NicStatus{Address: n.Address, Mac: n.MAC, Network: n.NetworkID}
		}),
		Messages: convert(v.Messages, func(m vserver.Message) *reflejov1.Message {
			return &reflejov1.Message{Time: timestamp(m.Time), Text: m.Text}
		}),
	}
}

// operationToProto is nil where nothing is under way and nothing failed.
func operationToProto(o vserver.Operation) *reflejov1.Operation {
	if o.Kind == "" {
		return nil
	}
	return &reflejov1.Operation{
		Kind:       o.Kind,
		Step:       o.Step,
		StepIndex:  uint32(o.Index),
		Steps:      uint32(o.Steps),
		StartedAt:  timestamp(o.Started),
		Error:      o.Err,
		ErrorKind:  o.ErrKind,
		ErrorField: o.Field,
		Done:       o.Done,
		BytesDone:  o.BytesDone,
		BytesTotal: o.BytesTotal,
	}
}

func usageToProto(u vserver.Usage) *reflejov1.ServerUsage {
	return &reflejov1.ServerUsage{
		Cpu:         durationpb.New(u.CPU),
		MemoryUsed:  u.MemoryUsed,
		MemoryCache: u.MemoryCache,
		SwapUsed:    u.SwapUsed,
		Tasks:       u.Tasks,
		OomKills:    u.OOMKills,
		ReadBytes:   u.ReadBytes,
		WriteBytes:  u.WriteBytes,
		Throttled:   durationpb.New(u.Throttled),
	}
}

func resourcesToProto(r vserver.Resources) *reflejov1.Resources {
	return &reflejov1.Resources{
		MilliCores:  r.MilliCores,
		MemoryBytes: r.Memory,
		DiskBytes:   r.Disk,
		IngressBps:  r.Ingress,
		EgressBps:   r.Egress,
	}
}

var actions = map[reflejov1.SetPowerRequest_Action]vserver.PowerAction{
	reflejov1.SetPowerRequest_ACTION_START:   vserver.ActionStart,
	reflejov1.SetPowerRequest_ACTION_STOP:    vserver.ActionStop,
	reflejov1.SetPowerRequest_ACTION_KILL:    vserver.ActionKill,
	reflejov1.SetPowerRequest_ACTION_SUSPEND: vserver.ActionSuspend,
	reflejov1.SetPowerRequest_ACTION_RESUME:  vserver.ActionResume,
	reflejov1.SetPowerRequest_ACTION_REBOOT:  vserver.ActionReboot,
}

func actionFromProto(a reflejov1.SetPowerRequest_Action) (vserver.PowerAction, error) {
	action, ok := actions[a]
	if !ok {
		return "", fault.Field("action", "power action %q: want start, stop, kill, suspend, resume or reboot", a)
	}
	return action, nil
}

func networkFromProto(p *reflejov1.NetworkSpec) (network.Definition, error) {
	cidr, err := netip.ParsePrefix(p.GetCidr())
	if err != nil {
		return network.Definition{}, fault.Field("cidr", "cidr %q: want an IPv4 range like 10.77.0.0/16", p.GetCidr())
	}
	d := network.Definition{ID: p.GetId(), Name: p.GetName(), CIDR: cidr, NAT: p.GetNat()}
	for _, m := range p.GetMembers() {
		member := network.Member{Host: m.GetHost(), Slot: int(m.GetSlot())}
		if m.GetAddress() != "" {
			if member.Address, err = netip.ParseAddr(m.GetAddress()); err != nil {
				return network.Definition{}, fault.Field("hosts", "address %q of host %s: want an IP address", m.GetAddress(), m.GetHost())
			}
		}
		d.Members = append(d.Members, member)
	}
	return d, nil
}

func networkToProto(v network.View) *reflejov1.Network {
	return &reflejov1.Network{
		Spec: &reflejov1.NetworkSpec{
			Id:   v.ID,
			Name: v.Name,
			Cidr: v.CIDR.String(),
			Nat:  v.NAT,
			Members: convert(v.Members, func(m network.Member) *reflejov1.NetworkMember {
				return &reflejov1.NetworkMember{Host: m.Host, Address: addressText(m.Address), Slot: uint32(m.Slot)}
			}),
		},
		Gateway:        addressText(v.Gateway),
		Vni:            v.VNI,
		Mtu:            uint32(v.MTU),
		Servers:        uint32(v.Servers),
		FreeAddresses:  uint32(v.FreeAddresses),
		CreatedAt:      timestamp(v.Created),
		DefaultNetwork: v.Default,
	}
}

func addressText(a netip.Addr) string {
	if !a.IsValid() {
		return ""
	}
	return a.String()
}
