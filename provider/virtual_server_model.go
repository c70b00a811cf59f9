package provider

import (
	"context"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/terraform-plugin-framework-timeouts/resource/timeouts"
	"github.com/hashicorp/terraform-plugin-framework/attr"
	"github.com/hashicorp/terraform-plugin-framework/diag"
	"github.com/hashicorp/terraform-plugin-framework/types"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	reflejov1 "github.com/reflejo/terraform-provider-reflejo/agent/api/reflejo/v1"
)

// serverModel is a reflejo_virtual_server in HCL.
type serverModel struct {
	ID                   types.String   `tfsdk:"id"`
	Name                 types.String   `tfsdk:"name"`
	Host                 types.String   `tfsdk:"host"`
	Image                types.String   `tfsdk:"image"`
	ReplaceOnImageChange types.Bool     `tfsdk:"replace_on_image_change"`
	Power                types.String   `tfsdk:"power"`
	Hostname             types.String   `tfsdk:"hostname"`
	Timezone             types.String   `tfsdk:"timezone"`
	Processes            types.Number   `tfsdk:"processes"`
	Labels               types.Map      `tfsdk:"labels"`
	DNS                  types.Object   `tfsdk:"dns"`
	CPU                  types.Object   `tfsdk:"cpu"`
	Memory               types.Object   `tfsdk:"memory"`
	Disk                 types.Object   `tfsdk:"disk"`
	Network              types.Map      `tfsdk:"network"`
	FirstBoot            types.String   `tfsdk:"first_boot_wo"`
	FirstBootVersion     types.String   `tfsdk:"first_boot_wo_version"`
	DeletionProtection   types.Bool     `tfsdk:"deletion_protection"`
	SnapshotPolicy       types.Object   `tfsdk:"snapshot_policy"`
	BackupPolicy         types.Object   `tfsdk:"backup_policy"`
	Migration            types.Object   `tfsdk:"migration"`
	RestoreFrom          types.String   `tfsdk:"restore_from"`
	CloneOf              types.String   `tfsdk:"clone_of"`
	OnDestroy            types.Object   `tfsdk:"on_destroy"`
	Timeouts             timeouts.Value `tfsdk:"timeouts"`

	State     types.String `tfsdk:"state"`
	Addresses types.Map    `tfsdk:"addresses"`
	MAC       types.Map    `tfsdk:"mac"`
	CreatedAt types.String `tfsdk:"created_at"`
	DiskUsed  types.Int64  `tfsdk:"disk_used"`
}

type dnsModel struct {
	Servers types.List `tfsdk:"servers"`
	Search  types.List `tfsdk:"search"`
}

type cpuModel struct {
	Cores  types.Number `tfsdk:"cores"`
	Weight types.Number `tfsdk:"weight"`
	Pin    types.String `tfsdk:"pin"`
}

type memoryModel struct {
	Max  quantity `tfsdk:"max"`
	High quantity `tfsdk:"high"`
	Swap quantity `tfsdk:"swap"`
}

type diskModel struct {
	Size      quantity     `tfsdk:"size"`
	ReadBPS   quantity     `tfsdk:"read_bps"`
	WriteBPS  quantity     `tfsdk:"write_bps"`
	ReadIOPS  types.Number `tfsdk:"read_iops"`
	WriteIOPS types.Number `tfsdk:"write_iops"`
}

type nicModel struct {
	Network types.String `tfsdk:"network"`
	Address types.String `tfsdk:"address"`
	Ingress quantity     `tfsdk:"ingress"`
	Egress  quantity     `tfsdk:"egress"`
	Publish types.Map    `tfsdk:"publish"`
	Allow   types.List   `tfsdk:"allow"`
}

type publishModel struct {
	Protocol types.String `tfsdk:"protocol"`
	HostPort types.Number `tfsdk:"host_port"`
	Port     types.Number `tfsdk:"port"`
}

type allowModel struct {
	From     types.String `tfsdk:"from"`
	Protocol types.String `tfsdk:"protocol"`
	Ports    types.String `tfsdk:"ports"`
}

type onDestroyModel struct {
	ShutdownTimeout quantity   `tfsdk:"shutdown_timeout"`
	KeepSnapshots   types.Bool `tfsdk:"keep_snapshots"`
}

// The attribute types of the nested objects.
var (
	sizeType     = quantityType{measure: bytesMeasure}
	byterateType = quantityType{measure: byterateMeasure}
	bitrateType  = quantityType{measure: bitrateMeasure}

	dnsTypes    = map[string]attr.Type{"servers": types.ListType{ElemType: types.StringType}, "search": types.ListType{ElemType: types.StringType}}
	cpuTypes    = map[string]attr.Type{"cores": types.NumberType, "weight": types.NumberType, "pin": types.StringType}
	memoryTypes = map[string]attr.Type{"max": sizeType, "high": sizeType, "swap": sizeType}
	diskTypes   = map[string]attr.Type{
		"size": sizeType, "read_bps": byterateType, "write_bps": byterateType, "read_iops": types.NumberType, "write_iops": types.NumberType,
	}
	publishTypes = map[string]attr.Type{"protocol": types.StringType, "host_port": types.NumberType, "port": types.NumberType}
	allowTypes   = map[string]attr.Type{"from": types.StringType, "protocol": types.StringType, "ports": types.StringType}
	nicTypes     = map[string]attr.Type{
		"network": types.StringType, "address": types.StringType, "ingress": bitrateType, "egress": bitrateType,
		"publish": types.MapType{ElemType: types.ObjectType{AttrTypes: publishTypes}},
		"allow":   types.ListType{ElemType: types.ObjectType{AttrTypes: allowTypes}},
	}
	onDestroyTypes = map[string]attr.Type{"shutdown_timeout": quantityType{measure: durationMeasure}, "keep_snapshots": types.BoolType}
)

// defaultNICs is the interface of a server whose configuration names none.
func defaultNICs() types.Map {
	nic := types.ObjectValueMust(nicTypes, map[string]attr.Value{
		"network": types.StringNull(), "address": types.StringNull(), "ingress": nullQuantity(bitrateMeasure), "egress": nullQuantity(bitrateMeasure),
		"publish": types.MapValueMust(types.ObjectType{AttrTypes: publishTypes}, map[string]attr.Value{}),
		"allow":   types.ListNull(types.ObjectType{AttrTypes: allowTypes}),
	})
	return types.MapValueMust(types.ObjectType{AttrTypes: nicTypes}, map[string]attr.Value{"eth0": nic})
}

// spec is the model as the API has it. Every value must be known; what is null is left out.
func (m serverModel) spec(ctx context.Context) (*reflejov1.ServerSpec, diag.Diagnostics) {
	var diags diag.Diagnostics
	var dns dnsModel
	var cpu cpuModel
	var memory memoryModel
	var disk diskModel
	var onDestroy onDestroyModel
	diags.Append(objectAs(ctx, m.DNS, &dns)...)
	diags.Append(objectAs(ctx, m.CPU, &cpu)...)
	diags.Append(objectAs(ctx, m.Memory, &memory)...)
	diags.Append(objectAs(ctx, m.Disk, &disk)...)
	diags.Append(objectAs(ctx, m.OnDestroy, &onDestroy)...)
	milli, err := milliCores(cpu.Cores.ValueBigFloat())
	if err != nil && !cpu.Cores.IsNull() && !cpu.Cores.IsUnknown() {
		diags.AddError("Invalid number of cores", err.Error())
	}
	s := &reflejov1.ServerSpec{
		Id: m.ID.ValueString(), Name: m.Name.ValueString(), Image: m.Image.ValueString(), Power: m.Power.ValueString(),
		Hostname: m.Hostname.ValueString(), Timezone: m.Timezone.ValueString(), Processes: whole(m.Processes),
		DnsServers: stringsOf(dns.Servers), DnsSearch: stringsOf(dns.Search), Labels: stringMap(m.Labels),
		Cpu:    &reflejov1.Cpu{MilliCores: milli, Weight: whole(cpu.Weight), Pin: cpu.Pin.ValueString()},
		Memory: &reflejov1.Memory{Max: memory.Max.orZero(), High: memory.High.orZero(), Swap: memory.Swap.orZero()},
		Disk: &reflejov1.Disk{
			Size: disk.Size.orZero(), ReadBps: disk.ReadBPS.orZero(), WriteBps: disk.WriteBPS.orZero(),
			ReadIops: whole(disk.ReadIOPS), WriteIops: whole(disk.WriteIOPS),
		},
		FirstBootVersion: m.FirstBootVersion.ValueString(), DeletionProtection: m.DeletionProtection.ValueBool(),
		ShutdownTimeout: durationpb.New(duration(onDestroy.ShutdownTimeout.orZero())), KeepSnapshots: onDestroy.KeepSnapshots.ValueBool(),
		RestoreFrom: m.RestoreFrom.ValueString(), CloneOf: m.CloneOf.ValueString(),
	}
	diags.Append(m.policies(ctx, s)...)
	nics, nicDiags := m.nics(ctx)
	diags.Append(nicDiags...)
	s.Network = make(map[string]*reflejov1.Nic, len(nics))
	for name, nic := range nics {
		converted, nicDiags := nic.spec(ctx)
		diags.Append(nicDiags...)
		s.Network[name] = converted
	}
	return s, diags
}

// nics are the interfaces of the model; none while they are not known.
func (m serverModel) nics(ctx context.Context) (map[string]nicModel, diag.Diagnostics) {
	nics := map[string]nicModel{}
	if m.Network.IsNull() || m.Network.IsUnknown() {
		return nics, nil
	}
	for name, element := range m.Network.Elements() {
		object, ok := element.(types.Object)
		if !ok || object.IsNull() || object.IsUnknown() {
			continue
		}
		var nic nicModel
		if diags := objectAs(ctx, object, &nic); diags.HasError() {
			return nil, diags
		}
		nics[name] = nic
	}
	return nics, nil
}

func (n nicModel) publish(ctx context.Context) (map[string]publishModel, diag.Diagnostics) {
	published := map[string]publishModel{}
	for name, element := range n.Publish.Elements() {
		object, ok := element.(types.Object)
		if !ok || object.IsNull() || object.IsUnknown() {
			continue
		}
		var one publishModel
		if diags := objectAs(ctx, object, &one); diags.HasError() {
			return nil, diags
		}
		published[name] = one
	}
	return published, nil
}

func (n nicModel) allow(ctx context.Context) ([]allowModel, diag.Diagnostics) {
	allowed := make([]allowModel, 0, len(n.Allow.Elements()))
	for _, element := range n.Allow.Elements() {
		var one allowModel
		if object, ok := element.(types.Object); ok && !object.IsNull() && !object.IsUnknown() {
			if diags := objectAs(ctx, object, &one); diags.HasError() {
				return nil, diags
			}
		}
		allowed = append(allowed, one)
	}
	return allowed, nil
}

func (n nicModel) spec(ctx context.Context) (*reflejov1.Nic, diag.Diagnostics) {
	published, diags := n.publish(ctx)
	allowed, more := n.allow(ctx)
	diags.Append(more...)
	nic := &reflejov1.Nic{
		Network: n.Network.ValueString(), Address: n.Address.ValueString(), Ingress: n.Ingress.orZero(), Egress: n.Egress.orZero(),
		Filtered: !n.Allow.IsNull(), Publish: make(map[string]*reflejov1.Publish, len(published)),
	}
	for name, p := range published {
		nic.Publish[name] = &reflejov1.Publish{Protocol: p.Protocol.ValueString(), HostPort: uint32(whole(p.HostPort)), Port: uint32(whole(p.Port))}
	}
	for _, a := range allowed {
		nic.Allow = append(nic.Allow, &reflejov1.Allow{From: a.From.ValueString(), Protocol: a.Protocol.ValueString(), Ports: a.Ports.ValueString()})
	}
	return nic, diags
}

// observe fills in what the agent decided and measures.
func (m *serverModel) observe(s *reflejov1.Server) {
	m.ID = types.StringValue(s.GetSpec().GetId())
	m.Host = types.StringValue(s.GetHost())
	m.State = types.StringValue(s.GetState())
	m.CreatedAt = timeValue(s.GetCreatedAt())
	m.DiskUsed = types.Int64Value(s.GetDiskUsed())
	addresses, macs := map[string]attr.Value{}, map[string]attr.Value{}
	for name, nic := range s.GetNics() {
		address, _, _ := strings.Cut(nic.GetAddress(), "/")
		addresses[name], macs[name] = types.StringValue(address), types.StringValue(nic.GetMac())
	}
	m.Addresses, m.MAC = types.MapValueMust(types.StringType, addresses), types.MapValueMust(types.StringType, macs)
}

// refresh makes the model say what the agent has. What the agent can't know stays:
// timeouts, and a name where the agent has the id (resolve tells whether they are the same).
func (m *serverModel) refresh(ctx context.Context, s *reflejov1.Server, sameNetwork func(ref, id string) bool) diag.Diagnostics {
	prior := *m
	spec := s.GetSpec()
	m.observe(s)
	m.Name = types.StringValue(spec.GetName())
	if prior.Image.ValueString() == "" {
		m.Image = types.StringValue(spec.GetImage())
	}
	m.ReplaceOnImageChange, m.FirstBoot = types.BoolNull(), types.StringNull()
	m.Power = observedPower(s)
	m.Hostname = types.StringValue(orText(spec.GetHostname(), spec.GetName()))
	m.Timezone = types.StringValue(orText(spec.GetTimezone(), "UTC"))
	m.Processes = wholeNumber(spec.GetProcesses())
	m.Labels = stringMapValue(spec.GetLabels())
	m.FirstBootVersion = optionalString(spec.GetFirstBootVersion())
	m.DeletionProtection = types.BoolValue(spec.GetDeletionProtection())
	m.OnDestroy = onDestroyValue(int64(spec.GetShutdownTimeout().AsDuration()), spec.GetKeepSnapshots())
	m.SnapshotPolicy, m.BackupPolicy, m.Migration = snapshotPolicyValue(spec.GetSnapshotPolicy()), backupPolicyValue(spec.GetBackupPolicy()), migrationValue(spec.GetMigration())
	m.RestoreFrom, m.CloneOf = optionalString(spec.GetRestoreFrom()), optionalString(spec.GetCloneOf())
	m.DNS = dnsValue(spec)
	m.CPU = types.ObjectValueMust(cpuTypes, map[string]attr.Value{
		"cores": types.NumberValue(coresNumber(spec.GetCpu().GetMilliCores())), "weight": wholeNumber(spec.GetCpu().GetWeight()), "pin": optionalString(spec.GetCpu().GetPin()),
	})
	m.Memory = types.ObjectValueMust(memoryTypes, map[string]attr.Value{
		"max": newQuantity(bytesMeasure, spec.GetMemory().GetMax()), "high": optionalQuantity(bytesMeasure, spec.GetMemory().GetHigh()), "swap": newQuantity(bytesMeasure, spec.GetMemory().GetSwap()),
	})
	disk := spec.GetDisk()
	m.Disk = types.ObjectValueMust(diskTypes, map[string]attr.Value{
		"size": newQuantity(bytesMeasure, disk.GetSize()), "read_bps": optionalQuantity(byterateMeasure, disk.GetReadBps()), "write_bps": optionalQuantity(byterateMeasure, disk.GetWriteBps()),
		"read_iops": optionalWhole(disk.GetReadIops()), "write_iops": optionalWhole(disk.GetWriteIops()),
	})
	priorNICs, diags := prior.nics(ctx)
	m.Network = nicsValue(spec.GetNetwork(), priorNICs, sameNetwork)
	return diags
}

// observedPower is null where power is not managed, else what the server is, so that one
// that was stopped outside Terraform is drift. While an operation is under way it is what
// the operation leads to.
func observedPower(s *reflejov1.Server) types.String {
	if s.GetSpec().GetPower() == "" {
		return types.StringNull()
	}
	switch s.GetState() {
	case "running", "stopped", "suspended":
		if op := s.GetOperation(); op.GetKind() == "" || op.GetDone() {
			return types.StringValue(s.GetState())
		}
	}
	return types.StringValue(s.GetSpec().GetPower())
}

func onDestroyValue(shutdown int64, keepSnapshots bool) types.Object {
	return types.ObjectValueMust(onDestroyTypes, map[string]attr.Value{
		"shutdown_timeout": newQuantity(durationMeasure, shutdown), "keep_snapshots": types.BoolValue(keepSnapshots),
	})
}

func dnsValue(s *reflejov1.ServerSpec) types.Object {
	if len(s.GetDnsServers()) == 0 && len(s.GetDnsSearch()) == 0 {
		return types.ObjectNull(dnsTypes)
	}
	return types.ObjectValueMust(dnsTypes, map[string]attr.Value{"servers": optionalList(s.GetDnsServers()), "search": optionalList(s.GetDnsSearch())})
}

func nicsValue(nics map[string]*reflejov1.Nic, prior map[string]nicModel, sameNetwork func(ref, id string) bool) types.Map {
	values := make(map[string]attr.Value, len(nics))
	for name, nic := range nics {
		network := optionalString(nic.GetNetwork())
		if was := prior[name].Network; !was.IsNull() && was.ValueString() != nic.GetNetwork() && nic.GetNetwork() != "" && sameNetwork(was.ValueString(), nic.GetNetwork()) {
			network = was
		}
		values[name] = types.ObjectValueMust(nicTypes, map[string]attr.Value{
			"network": network, "address": optionalString(nic.GetAddress()),
			"ingress": optionalQuantity(bitrateMeasure, nic.GetIngress()), "egress": optionalQuantity(bitrateMeasure, nic.GetEgress()),
			"publish": publishValue(nic.GetPublish()), "allow": allowValue(nic),
		})
	}
	return types.MapValueMust(types.ObjectType{AttrTypes: nicTypes}, values)
}

func publishValue(published map[string]*reflejov1.Publish) types.Map {
	values := make(map[string]attr.Value, len(published))
	for name, p := range published {
		values[name] = types.ObjectValueMust(publishTypes, map[string]attr.Value{
			"protocol": types.StringValue(p.GetProtocol()), "host_port": wholeNumber(int64(p.GetHostPort())), "port": wholeNumber(int64(p.GetPort())),
		})
	}
	return types.MapValueMust(types.ObjectType{AttrTypes: publishTypes}, values)
}

func allowValue(nic *reflejov1.Nic) types.List {
	element := types.ObjectType{AttrTypes: allowTypes}
	if !nic.GetFiltered() {
		return types.ListNull(element)
	}
	values := make([]attr.Value, 0, len(nic.GetAllow()))
	for _, a := range nic.GetAllow() {
		values = append(values, types.ObjectValueMust(allowTypes, map[string]attr.Value{
			"from": optionalString(a.GetFrom()), "protocol": optionalString(a.GetProtocol()), "ports": optionalString(a.GetPorts()),
		}))
	}
	return types.ListValueMust(element, values)
}

// sortedKeys are a map's keys in order, so that diagnostics come in the same order every time.
func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }

func timeValue(t *timestamppb.Timestamp) types.String {
	if t == nil || !t.IsValid() {
		return types.StringNull()
	}
	return types.StringValue(t.AsTime().UTC().Format(time.RFC3339))
}
