package metrics

import (
	"context"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
	"github.com/reflejo/terraform-provider-reflejo/agent/vserver"
)

func describe(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("reflejo_"+name, help, labels, nil)
}

// reading is one metric of a server: how it is called and where it is in what was read.
type reading struct {
	desc  *prometheus.Desc
	kind  prometheus.ValueType
	value func(vserver.View, vserver.Usage) float64
}

func counter(name, help string, value func(vserver.Usage) float64) reading {
	return reading{describe("server_"+name, help, "server"), prometheus.CounterValue, func(_ vserver.View, u vserver.Usage) float64 { return value(u) }}
}

func gauge(name, help string, value func(vserver.Usage) float64) reading {
	return reading{describe("server_"+name, help, "server"), prometheus.GaugeValue, func(_ vserver.View, u vserver.Usage) float64 { return value(u) }}
}

func limit(name, help string, value func(vserver.View) float64) reading {
	return reading{describe("server_"+name, help, "server"), prometheus.GaugeValue, func(v vserver.View, _ vserver.Usage) float64 { return value(v) }}
}

// limits are known of every server, usages of those that run.
var (
	limits = []reading{
		limit("cpu_limit_cores", "Cores that the server may use.", func(v vserver.View) float64 { return float64(v.Spec.CPU.MilliCores) / 1000 }),
		limit("memory_limit_bytes", "Memory that the server may use.", func(v vserver.View) float64 { return float64(v.Spec.Memory.Max) }),
		limit("disk_size_bytes", "Size of the server's disk.", func(v vserver.View) float64 { return float64(v.Spec.Disk.Size) }),
		limit("disk_used_bytes", "Space that the server's disk takes in the pool.", func(v vserver.View) float64 { return float64(v.DiskUsed) }),
		limit("processes_limit", "Processes and threads that the server may have.", func(v vserver.View) float64 { return float64(v.Spec.Processes) }),
	}
	usages = []reading{
		counter("cpu_seconds_total", "Processor time that the server used.", func(u vserver.Usage) float64 { return u.CPU.Seconds() }),
		counter("cpu_throttled_seconds_total", "Time that the server was held back by its CPU limit.", func(u vserver.Usage) float64 { return u.Throttled.Seconds() }),
		gauge("memory_used_bytes", "Memory in use, without page cache that can be dropped.", func(u vserver.Usage) float64 { return float64(u.MemoryUsed) }),
		gauge("memory_cache_bytes", "Page cache that can be dropped.", func(u vserver.Usage) float64 { return float64(u.MemoryCache) }),
		gauge("swap_used_bytes", "Swap in use.", func(u vserver.Usage) float64 { return float64(u.SwapUsed) }),
		gauge("processes", "Processes and threads.", func(u vserver.Usage) float64 { return float64(u.Tasks) }),
		counter("oom_kills_total", "Processes that were killed because the server's memory was full.", func(u vserver.Usage) float64 { return float64(u.OOMKills) }),
		counter("disk_read_bytes_total", "Bytes read from the server's disk.", func(u vserver.Usage) float64 { return float64(u.ReadBytes) }),
		counter("disk_written_bytes_total", "Bytes written to the server's disk.", func(u vserver.Usage) float64 { return float64(u.WriteBytes) }),
		counter("disk_reads_total", "Read operations on the server's disk.", func(u vserver.Usage) float64 { return float64(u.ReadOps) }),
		counter("disk_writes_total", "Write operations on the server's disk.", func(u vserver.Usage) float64 { return float64(u.WriteOps) }),
	}
)

var (
	stateDesc    = describe("server_state", "The server's state; 1 for the state that it is in.", "server", "state")
	pressureDesc = describe("server_pressure_ratio", "Share of the last 10 seconds in which some process waited for the resource.", "server", "resource")
	rxBytes      = describe("server_network_receive_bytes_total", "Bytes that came to the server.", "server", "interface")
	txBytes      = describe("server_network_transmit_bytes_total", "Bytes that the server sent.", "server", "interface")
	rxPackets    = describe("server_network_receive_packets_total", "Packets that came to the server.", "server", "interface")
	txPackets    = describe("server_network_transmit_packets_total", "Packets that the server sent.", "server", "interface")
	rxDropped    = describe("server_network_receive_dropped_total", "Packets to the server that were dropped.", "server", "interface")
	txDropped    = describe("server_network_transmit_dropped_total", "Packets from the server that were dropped.", "server", "interface")

	coresDesc     = describe("host_cores", "Cores: capacity for servers, promised to them, and free.", "kind")
	memoryDesc    = describe("host_memory_bytes", "Memory: capacity for servers, promised to them, and free.", "kind")
	diskDesc      = describe("host_disk_bytes", "Disk space: capacity for servers, promised to them, and free.", "kind")
	ingressDesc   = describe("host_ingress_bytes_per_second", "Bandwidth towards servers: capacity, promised, and free; 0 where it is not accounted.", "kind")
	egressDesc    = describe("host_egress_bytes_per_second", "Bandwidth from servers: capacity, promised, and free; 0 where it is not accounted.", "kind")
	poolSizeDesc  = describe("pool_size_bytes", "Size of the disk pool.")
	poolUsedDesc  = describe("pool_used_bytes", "Space in use in the disk pool.")
	expiryDesc    = describe("certificate_expiry_timestamp_seconds", "When the agent's certificate ends.")
	conditionDesc = describe("host_condition", "A condition that an operator should know; 1 while it holds.", "type", "severity")
	failedDesc    = describe("scrape_failures", "Things that could not be read for this scrape.")
)

// collector reads servers and host for each scrape.
type collector struct{ cfg Config }

// Describe implements prometheus.Collector.
func (c *collector) Describe(ch chan<- *prometheus.Desc) {
	for _, list := range [][]reading{limits, usages} {
		for _, r := range list {
			ch <- r.desc
		}
	}
	for _, d := range append([]*prometheus.Desc{
		stateDesc, pressureDesc, rxBytes, txBytes, rxPackets, txPackets, rxDropped, txDropped,
		coresDesc, memoryDesc, diskDesc, ingressDesc, egressDesc, poolSizeDesc, poolUsedDesc, expiryDesc, conditionDesc, failedDesc,
	}, snapshotDescs...) {
		ch <- d
	}
}

// Collect implements prometheus.Collector. What can't be read is left out, counted and logged.
func (c *collector) Collect(ch chan<- prometheus.Metric) {
	ctx, cancel := context.WithTimeout(context.Background(), scrapeLimit)
	defer cancel()
	failed := 0
	servers := c.cfg.Servers.List()
	c.snapshots(ctx, ch, servers)
	for _, v := range servers {
		if err := c.server(ctx, ch, v); err != nil {
			failed++
			c.cfg.Log.Warn("metrics of a server can't be read", "server", v.Spec.Name, "error", err)
		}
	}
	if err := c.host(ctx, ch); err != nil {
		failed++
		c.cfg.Log.Warn("metrics of the host can't be read", "error", err)
	}
	ch <- prometheus.MustNewConstMetric(failedDesc, prometheus.GaugeValue, float64(failed))
}

func (c *collector) server(ctx context.Context, ch chan<- prometheus.Metric, v vserver.View) error {
	name := v.Spec.Name
	ch <- prometheus.MustNewConstMetric(stateDesc, prometheus.GaugeValue, 1, name, string(v.State))
	for _, r := range limits {
		ch <- prometheus.MustNewConstMetric(r.desc, r.kind, r.value(v, vserver.Usage{}), name)
	}
	if v.State != vserver.StateRunning && v.State != vserver.StateSuspended {
		return nil
	}
	u, err := c.cfg.Servers.Usage(ctx, v.Spec.ID)
	if err != nil {
		return unlessStopped(err)
	}
	for _, r := range usages {
		ch <- prometheus.MustNewConstMetric(r.desc, r.kind, r.value(v, u), name)
	}
	for resource, share := range map[string]float64{"cpu": u.PressureCPU, "memory": u.PressureMem, "disk": u.PressureDisk} {
		ch <- prometheus.MustNewConstMetric(pressureDesc, prometheus.GaugeValue, share, name, resource)
	}
	links, err := c.cfg.Servers.LinkUsage(ctx, v.Spec.ID)
	if err != nil {
		return unlessStopped(err)
	}
	for link, l := range links {
		for _, n := range []struct {
			desc  *prometheus.Desc
			value int64
		}{{rxBytes, l.RxBytes}, {txBytes, l.TxBytes}, {rxPackets, l.RxPackets}, {txPackets, l.TxPackets}, {rxDropped, l.RxDropped}, {txDropped, l.TxDropped}} {
			ch <- prometheus.MustNewConstMetric(n.desc, prometheus.CounterValue, float64(n.value), name, link)
		}
	}
	return nil
}

// unlessStopped: a server may stop between two readings.
func unlessStopped(err error) error {
	if fault.Is(err, fault.NotFound) || fault.Is(err, fault.Precondition) {
		return nil
	}
	return err
}

func (c *collector) host(ctx context.Context, ch chan<- prometheus.Metric) error {
	capacity, promised, free := c.cfg.Servers.Resources()
	for kind, r := range map[string]vserver.Resources{"capacity": capacity, "promised": promised, "free": free} {
		ch <- prometheus.MustNewConstMetric(coresDesc, prometheus.GaugeValue, float64(r.MilliCores)/1000, kind)
		ch <- prometheus.MustNewConstMetric(memoryDesc, prometheus.GaugeValue, float64(r.Memory), kind)
		ch <- prometheus.MustNewConstMetric(diskDesc, prometheus.GaugeValue, float64(r.Disk), kind)
		ch <- prometheus.MustNewConstMetric(ingressDesc, prometheus.GaugeValue, float64(r.Ingress)/8, kind)
		ch <- prometheus.MustNewConstMetric(egressDesc, prometheus.GaugeValue, float64(r.Egress)/8, kind)
	}
	h, err := c.cfg.Host(ctx)
	if err != nil {
		return err
	}
	ch <- prometheus.MustNewConstMetric(poolSizeDesc, prometheus.GaugeValue, float64(h.PoolSize))
	ch <- prometheus.MustNewConstMetric(poolUsedDesc, prometheus.GaugeValue, float64(h.PoolUsed))
	ch <- prometheus.MustNewConstMetric(expiryDesc, prometheus.GaugeValue, float64(h.CertificateExpiry.Unix()))
	seen := map[Condition]bool{}
	for _, condition := range h.Conditions {
		if !seen[condition] { // several disks may be busy
			ch <- prometheus.MustNewConstMetric(conditionDesc, prometheus.GaugeValue, 1, condition.Type, condition.Severity)
		}
		seen[condition] = true
	}
	return nil
}
