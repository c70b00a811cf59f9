package main

import (
	"context"
	"fmt"
	"io"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/containerd/cgroups/v3"
	"golang.org/x/sys/unix"

	"github.com/reflejo/terraform-provider-reflejo/agent/cgroup"
	"github.com/reflejo/terraform-provider-reflejo/agent/console"
	"github.com/reflejo/terraform-provider-reflejo/agent/image"
	"github.com/reflejo/terraform-provider-reflejo/agent/metrics"
	"github.com/reflejo/terraform-provider-reflejo/agent/oci"
	"github.com/reflejo/terraform-provider-reflejo/agent/service"
	"github.com/reflejo/terraform-provider-reflejo/agent/vserver"
)

// openLimits opens the control groups and counts what the host can promise.
func (ag *agent) openLimits() error {
	factor, _ := ag.config.Overcommit.CPUFactor()
	config := cgroup.Config{Parent: ag.config.CgroupParent}
	probe, err := cgroup.Open(config)
	if err != nil {
		return err
	}
	ag.limits = probe
	cores, err := probe.HostCPUs()
	if err != nil {
		return err
	}
	all := int64(len(cores)) * 1000
	reserve, _ := ag.config.Reserve.MilliCores(all)
	usable := max(0, all-reserve)
	if factor > 1000 && usable > 0 { // what is promised may be more than there is: keep the reserve by a cap
		config.MaxMilliCores = usable
		if ag.limits, err = cgroup.Open(config); err != nil {
			return err
		}
	}
	memory, err := totalMemory()
	if err != nil {
		return err
	}
	memoryReserve, _ := ag.config.Reserve.MemoryBytes(memory)
	ingress, egress := ag.config.Network.rates()
	ag.capacity = vserver.Capacity{
		MilliCores: usable * factor / 1000,
		Cores:      cores,
		Memory:     max(0, memory-memoryReserve),
		Ingress:    ingress,
		Egress:     egress,
	}
	return nil
}

func totalMemory() (int64, error) {
	var info unix.Sysinfo_t
	if err := unix.Sysinfo(&info); err != nil {
		return 0, fmt.Errorf("read the host's memory: %w", err)
	}
	return int64(info.Totalram) * int64(info.Unit), nil
}

// capacityNow is what the host can promise; of a pool that can't be read, nothing.
func (ag *agent) capacityNow() vserver.Capacity {
	c := ag.capacity
	usage, err := ag.pool.Usage()
	if err != nil {
		ag.log.Error("pool can't be read", "error", err)
		return c
	}
	reserve, _ := ag.config.Reserve.DiskBytes(usage.Size)
	c.Disk = max(0, usage.Capacity-reserve)
	return c
}

// Facts implements service.Host.
func (ag *agent) Facts() service.Facts {
	f := service.Facts{
		Name:            ag.config.Name,
		Version:         versionText(),
		Endpoint:        ag.config.endpointAddress(),
		CgroupMode:      "legacy",
		Architecture:    runtime.GOARCH,
		Started:         ag.started,
		UnderlayAddress: ag.config.UnderlayAddress,
	}
	switch {
	case ag.limits.Unified():
		f.CgroupMode = "unified"
	case cgroups.Mode() == cgroups.Hybrid:
		f.CgroupMode = "hybrid"
	}
	var name unix.Utsname
	if unix.Uname(&name) == nil {
		f.Kernel = unix.ByteSliceToString(name.Release[:])
	}
	return f
}

// Pool implements service.Host.
func (ag *agent) Pool(context.Context) (service.Pool, error) {
	u, err := ag.pool.Usage()
	if err != nil {
		return service.Pool{}, err
	}
	return service.Pool{Path: u.Path, FileSystem: u.FileSystem, Embedded: u.Embedded, Size: u.Size, Used: u.Used}, nil
}

// Conditions implements service.Host:
//
//	CertificateUnusable    the certificate files can't be used, the old ones still are
//	CertificateEnds        the agent's certificate ends within 30 days
//	StrangeServers         there is something of servers that the state does not know
//	StrangeSnapshots       the pool holds snapshots that the agent's state does not know
//	BackupFailing          the last run of a server's backup policy failed
//	SnapshotPolicyFailing  the last run of a server's snapshot policy failed
//	BufferedWritesUnbound  cgroup v1: disk rates bind direct writes only
//	ForwardingDropped      another program's firewall drops servers' traffic
//
// and those of the disk pool.
func (ag *agent) Conditions(context.Context) []service.Condition {
	var all []service.Condition
	add := func(severity service.Severity, kind, format string, args ...any) {
		all = append(all, service.Condition{Type: kind, Severity: severity, Message: fmt.Sprintf(format, args...), Since: ag.started})
	}
	if err := ag.source.Err(); err != nil {
		add(service.SeverityError, "CertificateUnusable", "the certificate files can't be used, the ones read before stay in use: %v", err)
	}
	if end := ag.source.Get().Certificate.Leaf.NotAfter; time.Until(end) < certificateWarning {
		add(service.SeverityWarning, "CertificateEnds", "the agent's certificate ends at %s: renew it with `reflejo pki renew`", end.UTC().Format(time.RFC3339))
	}
	if ids := ag.servers.Unknown(); len(ids) > 0 {
		add(service.SeverityWarning, "StrangeServers", "there are disks or groups of servers that this agent's state does not know, it leaves them alone: %s", strings.Join(ids, ", "))
	}
	if ids := ag.snapshots.Unknown(); len(ids) > 0 {
		add(service.SeverityWarning, "StrangeSnapshots", "there are snapshots in the pool that this agent's state does not know, it leaves them alone: %s", strings.Join(ids, ", "))
	}
	all = append(all, ag.policyConditions()...)
	if !ag.limits.Unified() {
		add(service.SeverityInfo, "BufferedWritesUnbound", "this host is on cgroup v1: disk rates bind direct and synchronous writes only; boot with systemd.unified_cgroup_hierarchy=1 to bind all")
	}
	if drops, err := ag.bridge.ForeignDrops(); err != nil {
		ag.log.Warn("look for other firewalls", "error", err)
	} else if len(drops) > 0 {
		add(service.SeverityWarning, "ForwardingDropped", "another program's firewall drops what its own rules do not accept (%s), and with it traffic between servers and other networks: accept the interfaces \"rfb*\" there (with Docker: `iptables -I DOCKER-USER -i rfb+ -j ACCEPT; iptables -I DOCKER-USER -o rfb+ -j ACCEPT`)", strings.Join(drops, ", "))
	}
	pool, err := ag.pool.Conditions()
	if err != nil {
		add(service.SeverityError, "PoolUnreadable", "the disk pool can't be read: %v", err)
	}
	for _, c := range pool {
		all = append(all, service.Condition{Type: c.Type, Severity: service.Severity(c.Severity), Message: c.Message, Since: c.Since})
	}
	order := []service.Severity{service.SeverityError, service.SeverityWarning, service.SeverityInfo}
	slices.SortStableFunc(all, func(x, y service.Condition) int {
		return slices.Index(order, x.Severity) - slices.Index(order, y.Severity)
	})
	return all
}

func (ag *agent) hostMetrics(ctx context.Context) (metrics.Host, error) {
	u, err := ag.pool.Usage()
	h := metrics.Host{PoolSize: u.Size, PoolUsed: u.Used, CertificateExpiry: ag.source.Get().Certificate.Leaf.NotAfter}
	for _, c := range ag.Conditions(ctx) {
		h.Conditions = append(h.Conditions, metrics.Condition{Type: c.Type, Severity: string(c.Severity)})
	}
	return h, err
}

// imageFinder shows images to servers.
type imageFinder struct{ images *image.Manager }

// Find implements vserver.Images.
func (f imageFinder) Find(idOrName string) (vserver.Image, error) {
	i, err := f.images.Get(idOrName)
	if err != nil {
		return vserver.Image{}, err
	}
	return vserver.Image{ID: i.ID, Size: i.Size, Init: i.Init, Env: i.Env, Dir: i.Dir}, nil
}

// disksAndLogs removes what a server's console printed together with its disk.
type disksAndLogs struct {
	vserver.Disks
	removeLog func(id string) error
}

// Remove implements vserver.Disks.
func (d disksAndLogs) Remove(ctx context.Context, id string) error {
	if err := d.Disks.Remove(ctx, id); err != nil {
		return err
	}
	return d.removeLog(id)
}

// consoles is what the service needs of consoles beside vserver.Commands.
type consoles struct {
	*oci.Runtime
	logs string
}

// TailConsoleLog implements service.Consoles.
func (c consoles) TailConsoleLog(_ context.Context, id string) (io.ReadCloser, error) {
	return console.OpenTail(c.logs, id)
}
