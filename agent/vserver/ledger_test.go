package vserver

import (
	"strings"
	"testing"

	"github.com/reflejo/terraform-provider-reflejo/agent/cpuset"
	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
)

const gib = 1 << 30

func sized(name string, milliCores, memory, disk int64) Spec {
	return Spec{Name: name, ID: name, CPU: CPU{MilliCores: milliCores}, Memory: Memory{Max: memory}, Disk: Disk{Size: disk}}
}

func TestAdmit(t *testing.T) {
	host := Capacity{MilliCores: 4000, Cores: cpuset.Set{0, 1, 2, 3}, Memory: 8 * gib, Disk: 100 * gib, Ingress: 1e9}
	pinned := func(s Spec, pin string) Spec { s.CPU.Pin = pin; return s }
	fast := func(s Spec, ingress, egress int64) Spec {
		s.Network = map[string]NIC{"eth0": {Ingress: ingress, Egress: egress}}
		return s
	}
	one := sized("one", 2000, 4*gib, 50*gib)
	for _, c := range []struct {
		name   string
		others []Spec
		want   Spec
		was    *Spec
		field  string // blamed; "" = admitted
		says   string
	}{
		{"fits exactly", []Spec{one}, sized("two", 2000, 4*gib, 50*gib), nil, "", ""},
		{"too many cores", []Spec{one}, sized("two", 2001, 1*gib, gib), nil, "cpu.cores", "asked for 2.001 cores, the host has 2 cores free"},
		{"too much memory", []Spec{one}, sized("two", 1000, 5*gib, gib), nil, "memory.max", "asked for 5GiB, the host has 4GiB free"},
		{"too large a disk", []Spec{one}, sized("two", 1000, gib, 51*gib), nil, "disk.size", "asked for 51GiB, the host has 50GiB free"},
		{"too much ingress", []Spec{fast(one, 8e8, 0)}, fast(sized("two", 1000, gib, gib), 3e8, 0), nil, "network", "asked for 300mbit, the host has 200mbit free"},
		{"egress is not accounted here", []Spec{fast(one, 0, 8e8)}, fast(sized("two", 1000, gib, gib), 0, 8e9), nil, "", ""},
		{"an overfull host may shrink", []Spec{sized("big", 9000, gib, gib)}, one, &Spec{CPU: CPU{MilliCores: 2000}, Memory: Memory{Max: 8 * gib}, Disk: Disk{Size: 50 * gib}}, "", ""},
		{"a pin takes whole cores", []Spec{pinned(sized("pin", 100, gib, gib), "0-2")}, sized("two", 1100, gib, gib), nil, "cpu.cores", "1 cores free"},
		{"two pins to one core", []Spec{pinned(one, "0-1")}, pinned(sized("two", 1000, gib, gib), "1"), nil, "cpu.pin", "core 1 belongs to server one"},
		{"a pin to a core that is not there", nil, pinned(one, "7-8"), nil, "cpu.pin", "no core 7-8"},
		{"a pin that leaves too little", []Spec{sized("wide", 2000, gib, gib)}, pinned(sized("pin", 1000, gib, gib), "0-2"), nil, "cpu.cores", "free"},
	} {
		t.Run(c.name, func(t *testing.T) {
			err := Admit(host, c.others, c.want, c.was)
			if (err == nil) != (c.field == "") {
				t.Fatalf("Admit: %v", err)
			}
			if err != nil && (fault.FieldOf(err) != c.field || !strings.Contains(err.Error(), c.says)) {
				t.Errorf("Admit: blames %q: %v", fault.FieldOf(err), err)
			}
		})
	}
}

func TestUnique(t *testing.T) {
	pub := func(name string, port int, protocol string) Spec {
		return Spec{ID: name, Name: name, Network: map[string]NIC{"eth0": {Publish: map[string]Publish{"web": {Protocol: protocol, HostPort: port, Port: 80}}}}}
	}
	others := []Spec{pub("one", 8080, "tcp")}
	if err := checkUnique(others, pub("one", 1, "tcp")); !fault.Is(err, fault.Exists) || fault.FieldOf(err) != "name" {
		t.Errorf("same name: %v", err)
	}
	if err := checkUnique(others, pub("two", 8080, "tcp")); !fault.Is(err, fault.Exists) || fault.FieldOf(err) != "network.eth0.publish.web.host_port" {
		t.Errorf("same port: %v", err)
	}
	if err := checkUnique(others, pub("two", 8080, "udp")); err != nil {
		t.Errorf("other protocol: %v", err)
	}
}
