package metrics

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
	"github.com/reflejo/terraform-provider-reflejo/agent/vserver"
)

// someServers is a host with servers in every state.
type someServers []vserver.View

func (s someServers) List() []vserver.View { return s }

func (s someServers) Usage(_ context.Context, id string) (vserver.Usage, error) {
	switch id {
	case "stopping":
		return vserver.Usage{}, fault.New(fault.Precondition, "not running")
	case "broken":
		return vserver.Usage{}, errors.New("input/output error")
	}
	return vserver.Usage{CPU: 90 * time.Second, MemoryUsed: 1 << 20, Tasks: 7, OOMKills: 2, WriteBytes: 4096, PressureMem: .5}, nil
}

func (s someServers) LinkUsage(context.Context, string) (map[string]vserver.LinkUsage, error) {
	return map[string]vserver.LinkUsage{"eth0": {RxBytes: 10, TxBytes: 20, RxDropped: 3}}, nil
}

func (s someServers) Resources() (capacity, promised, free vserver.Resources) {
	return vserver.Resources{MilliCores: 4000, Ingress: 8e9}, vserver.Resources{MilliCores: 1500}, vserver.Resources{MilliCores: 2500}
}

func view(id string, state vserver.State) vserver.View {
	return vserver.View{Spec: vserver.Spec{ID: id, Name: id, CPU: vserver.CPU{MilliCores: 1500}}, State: state}
}

func newMetrics(servers someServers) *Metrics {
	return New(Config{Version: "1.2.3", Servers: servers, Host: func(context.Context) (Host, error) {
		return Host{PoolSize: 100, PoolUsed: 25, CertificateExpiry: time.Unix(1_900_000_000, 0),
			Conditions: []Condition{{"DiskBusy", "warning"}, {"DiskBusy", "warning"}}}, nil
	}})
}

func TestNamesAreGood(t *testing.T) {
	t.Parallel()
	m := newMetrics(someServers{view("web", vserver.StateRunning)})
	m.Request("ServerService/GetServer", "ok", time.Millisecond)
	m.Operation("create", time.Millisecond, nil)
	problems, err := testutil.GatherAndLint(m.registry)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		if strings.HasPrefix(p.Metric, "reflejo_") {
			t.Errorf("%s: %s", p.Metric, p.Text)
		}
	}
}

func TestValues(t *testing.T) {
	t.Parallel()
	m := newMetrics(someServers{
		view("web", vserver.StateRunning), view("off", vserver.StateStopped),
		view("stopping", vserver.StateRunning), view("broken", vserver.StateRunning),
	})
	m.Request("ServerService/GetServer", "not_found", time.Millisecond)
	m.Operation("create", time.Second, fault.New(fault.Exhausted, "no room"))
	want := `
# HELP reflejo_certificate_expiry_timestamp_seconds When the agent's certificate ends.
# TYPE reflejo_certificate_expiry_timestamp_seconds gauge
reflejo_certificate_expiry_timestamp_seconds 1.9e+09
# HELP reflejo_host_condition A condition that an operator should know; 1 while it holds.
# TYPE reflejo_host_condition gauge
reflejo_host_condition{severity="warning",type="DiskBusy"} 1
# HELP reflejo_host_cores Cores: capacity for servers, promised to them, and free.
# TYPE reflejo_host_cores gauge
reflejo_host_cores{kind="capacity"} 4
reflejo_host_cores{kind="free"} 2.5
reflejo_host_cores{kind="promised"} 1.5
# HELP reflejo_operations_total Operations on servers that ended, by kind and outcome.
# TYPE reflejo_operations_total counter
reflejo_operations_total{operation="create",outcome="exhausted"} 1
# HELP reflejo_requests_total API calls that were answered, by procedure and outcome.
# TYPE reflejo_requests_total counter
reflejo_requests_total{code="not_found",procedure="ServerService/GetServer"} 1
# HELP reflejo_scrape_failures Things that could not be read for this scrape.
# TYPE reflejo_scrape_failures gauge
reflejo_scrape_failures 1
# HELP reflejo_server_cpu_seconds_total Processor time that the server used.
# TYPE reflejo_server_cpu_seconds_total counter
reflejo_server_cpu_seconds_total{server="web"} 90
# HELP reflejo_server_network_receive_dropped_total Packets to the server that were dropped.
# TYPE reflejo_server_network_receive_dropped_total counter
reflejo_server_network_receive_dropped_total{interface="eth0",server="web"} 3
# HELP reflejo_server_pressure_ratio Share of the last 10 seconds in which some process waited for the resource.
# TYPE reflejo_server_pressure_ratio gauge
reflejo_server_pressure_ratio{resource="cpu",server="web"} 0
reflejo_server_pressure_ratio{resource="disk",server="web"} 0
reflejo_server_pressure_ratio{resource="memory",server="web"} 0.5
# HELP reflejo_server_state The server's state; 1 for the state that it is in.
# TYPE reflejo_server_state gauge
reflejo_server_state{server="broken",state="running"} 1
reflejo_server_state{server="off",state="stopped"} 1
reflejo_server_state{server="stopping",state="running"} 1
reflejo_server_state{server="web",state="running"} 1
`
	names := []string{
		"reflejo_certificate_expiry_timestamp_seconds", "reflejo_host_condition", "reflejo_host_cores", "reflejo_operations_total",
		"reflejo_requests_total", "reflejo_scrape_failures", "reflejo_server_cpu_seconds_total",
		"reflejo_server_network_receive_dropped_total", "reflejo_server_pressure_ratio", "reflejo_server_state",
	}
	if err := testutil.GatherAndCompare(m.registry, strings.NewReader(want), names...); err != nil {
		t.Error(err)
	}
}

// A scrape of 500 servers costs the agent little beside reading the kernel's counters.
func BenchmarkScrape500(b *testing.B) {
	var servers someServers
	for i := range 500 {
		servers = append(servers, view(fmt.Sprintf("server-%03d", i), vserver.StateRunning))
	}
	m := newMetrics(servers)
	for b.Loop() {
		if _, err := m.registry.Gather(); err != nil {
			b.Fatal(err)
		}
	}
}
