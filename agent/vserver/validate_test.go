package vserver

import (
	"strings"
	"testing"
	"time"

	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
)

const testID = "11111111-2222-3333-4444-555555555555"

func valid() Spec {
	return Spec{ID: testID, Name: "web-1", Image: "debian", Network: map[string]NIC{"eth0": {
		Publish: map[string]Publish{"web": {Protocol: "tcp", HostPort: 8080, Port: 80}},
		Allow:   []Allow{{From: "10.0.0.0/8", Protocol: "tcp", Ports: "5432"}}}}}.WithDefaults()
}

func TestValidate(t *testing.T) {
	if err := valid().Validate(); err != nil {
		t.Fatalf("a good spec: %v", err)
	}
	nic := func(f func(*NIC)) func(*Spec) {
		return func(s *Spec) { n := s.Network["eth0"]; f(&n); s.Network["eth0"] = n }
	}
	publish := func(p Publish) func(*Spec) { return nic(func(n *NIC) { n.Publish["web"] = p }) }
	allow := func(a Allow) func(*Spec) { return nic(func(n *NIC) { n.Allow[0] = a }) }
	for _, c := range []struct {
		field string
		set   func(*Spec)
	}{
		{"id", func(s *Spec) { s.ID = "../../etc" }},
		{"id", func(s *Spec) { s.ID = strings.ToUpper("abcdefab-2222-3333-4444-555555555555") }},
		{"name", func(s *Spec) { s.Name = "Web" }},
		{"name", func(s *Spec) { s.Name = strings.Repeat("a", 64) }},
		{"image", func(s *Spec) { s.Image = "" }},
		{"power", func(s *Spec) { s.Power = "on" }},
		{"hostname", func(s *Spec) { s.Hostname = "a b" }},
		{"timezone", func(s *Spec) { s.Timezone = "../../etc/shadow" }},
		{"dns.servers", func(s *Spec) { s.DNS.Servers = []string{"example.org"} }},
		{"dns.search", func(s *Spec) { s.DNS.Search = []string{"a b"} }},
		{"dns", func(s *Spec) { s.DNS.Servers = make([]string, 7) }},
		{"cpu.cores", func(s *Spec) { s.CPU.MilliCores = 9 }},
		{"cpu.cores", func(s *Spec) { s.CPU.MilliCores = -1 }},
		{"cpu.weight", func(s *Spec) { s.CPU.Weight = 10001 }},
		{"cpu.pin", func(s *Spec) { s.CPU.Pin = "a" }},
		{"cpu.pin", func(s *Spec) { s.CPU.Pin = "1-0" }},
		{"cpu.pin", func(s *Spec) { s.CPU.Pin, s.CPU.MilliCores = "0-1", 2001 }},
		{"memory.max", func(s *Spec) { s.Memory.Max = 1 }},
		{"memory.high", func(s *Spec) { s.Memory.High = s.Memory.Max + 1 }},
		{"memory.swap", func(s *Spec) { s.Memory.Swap = -1 }},
		{"processes", func(s *Spec) { s.Processes = 1 }},
		{"disk.size", func(s *Spec) { s.Disk.Size = 1 }},
		{"disk.size", func(s *Spec) { s.Disk.Size = 1<<30 + 1 }},
		{"disk.read_bps", func(s *Spec) { s.Disk.ReadBPS = 1 }},
		{"disk.write_bps", func(s *Spec) { s.Disk.WriteBPS = -1 }},
		{"disk.read_iops", func(s *Spec) { s.Disk.ReadIOPS = 1 }},
		{"disk.write_iops", func(s *Spec) { s.Disk.WriteIOPS = 1 << 60 }},
		{"network", func(s *Spec) { s.Network["lo"] = NIC{} }},
		{"network", func(s *Spec) { s.Network["eth 1"] = NIC{} }},
		{"network", func(s *Spec) {
			for _, c := range "abcdefghi" {
				s.Network[string(c)] = NIC{}
			}
		}},
		{"network.eth0.network", nic(func(n *NIC) { n.Network = strings.Repeat("x", 65) })},
		{"network.eth0.address", nic(func(n *NIC) { n.Address = "10.0.0.256" })},
		{"network.eth0.address", nic(func(n *NIC) { n.Address = "fd00::1" })},
		{"network.eth0.ingress", nic(func(n *NIC) { n.Ingress = 1 })},
		{"network.eth0.egress", nic(func(n *NIC) { n.Egress = -5 })},
		{"network.eth0.publish.web.protocol", publish(Publish{"icmp", 1, 1})},
		{"network.eth0.publish.web.host_port", publish(Publish{"tcp", 0, 1})},
		{"network.eth0.publish.web.port", publish(Publish{"tcp", 1, 65536})},
		{"network.eth0.allow.0.from", allow(Allow{From: "10.0.0.1/8"})},
		{"network.eth0.allow.0.protocol", allow(Allow{Protocol: "gre"})},
		{"network.eth0.allow.0.ports", allow(Allow{Protocol: "tcp", Ports: "10-1"})},
		{"network.eth0.allow.0.ports", allow(Allow{Protocol: "icmp", Ports: "1"})},
		{"first_boot_wo", func(s *Spec) { s.FirstBoot.UserData = "hello" }},
		{"first_boot_wo", func(s *Spec) { s.FirstBoot.UserData = "#!" + strings.Repeat("x", maxUserData) }},
		{"first_boot_wo_version", func(s *Spec) { s.FirstBoot.Version = strings.Repeat("x", 256) }},
		{"on_destroy.shutdown_timeout", func(s *Spec) { s.ShutdownTimeout = 2 * time.Hour }},
		{"labels", func(s *Spec) { s.Labels = map[string]string{"a b": ""} }},
	} {
		s := valid()
		c.set(&s)
		err := s.Validate()
		if !fault.Is(err, fault.Invalid) || fault.FieldOf(err) != c.field {
			t.Errorf("want %s blamed, got %q: %v", c.field, fault.FieldOf(err), err)
		}
	}
	twice := valid()
	twice.Network["eth1"] = NIC{Publish: map[string]Publish{"x": {"tcp", 8080, 81}}}
	if err := twice.Validate(); !fault.Is(err, fault.Invalid) {
		t.Errorf("a host port published twice: %v", err)
	}
}
