package bridge

import (
	"flag"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
	"github.com/reflejo/terraform-provider-reflejo/agent/vserver"
)

var rewrite = flag.Bool("rewrite", false, "write the expected texts anew; review the difference")

func testNetworks() map[string]vserver.Network {
	return map[string]vserver.Network{
		"lan": {ID: "lan", CIDR: netip.MustParsePrefix("10.77.0.0/16"), Gateway: netip.MustParseAddr("10.77.0.1"), NAT: true, MTU: 1500},
		"wan": {ID: "wan", CIDR: netip.MustParsePrefix("10.78.0.0/24"), Gateway: netip.MustParseAddr("10.78.0.1"), MTU: 1450,
			VNI: 77, Peers: []netip.Addr{netip.MustParseAddr("198.51.100.2"), netip.MustParseAddr("198.51.100.3")}},
	}
}

func testLink() vserver.Link {
	return vserver.Link{Name: "eth0", NetworkID: "lan", MAC: "02:00:00:00:00:01", Address: netip.MustParsePrefix("10.77.0.5/16"), Gateway: netip.MustParseAddr("10.77.0.1")}
}

// The whole of what a server becomes, as text: see testdata.
func TestServerPlan(t *testing.T) {
	for name, change := range map[string]func(*vserver.Link){
		"plain":  func(*vserver.Link) {},
		"shaped": func(l *vserver.Link) { l.Ingress, l.Egress = 100e6, 40e9 },
		"published": func(l *vserver.Link) {
			l.Publish = []vserver.Publish{{Protocol: "tcp", HostPort: 8080, Port: 80}, {Protocol: "udp", HostPort: 53, Port: 5353}}
		},
		"closed": func(l *vserver.Link) { l.Filtered = true },
		"filtered": func(l *vserver.Link) {
			l.Filtered = true
			l.Allow = []vserver.Allow{{From: "10.77.0.0/16", Protocol: "tcp", Ports: "5432"}, {From: "192.0.2.7/32", Ports: "8000-8010"}, {Protocol: "icmp"}, {From: "10.1.2.3/8"}}
			l.Publish = []vserver.Publish{{Protocol: "tcp", HostPort: 8080, Port: 80}}
		},
	} {
		l := testLink()
		change(&l)
		p, err := planServer(vserver.ServerNetwork{ID: "web", NICs: []vserver.Link{l}}, Config{ConnectionsPerNIC: 1000}, testNetworks())
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		golden(t, "server_"+name, p.String())
	}
}

func TestNetworkRules(t *testing.T) {
	n := testNetworks()
	golden(t, "skeleton", skeleton(Config{Uplink: "eth0", GuardedPorts: []uint16{7443, 7444}}).String())
	golden(t, "network_nat", networkRules(n["lan"], nil).String())
	moved, old := n["wan"], n["wan"]
	moved.Peers = moved.Peers[:1]
	golden(t, "network_spanning", networkRules(moved, &old).String())
	golden(t, "network_gone", noNetworkRules(n["wan"]).String())
}

func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name+".txt")
	if *rewrite {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if w := strings.ReplaceAll(string(want), "\r\n", "\n"); got != w {
		t.Errorf("%s: got\n%s\nwant\n%s", name, got, w)
	}
}

func TestRefusedServers(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*vserver.Link)
		kind   fault.Kind
		field  string
	}{
		"unknown network":   {func(l *vserver.Link) { l.NetworkID = "none" }, fault.Precondition, ""},
		"name with a slash": {func(l *vserver.Link) { l.Name = "a/b" }, fault.Invalid, "network.a/b"},
		"loopback":          {func(l *vserver.Link) { l.Name = "lo" }, fault.Invalid, "network.lo"},
		"long name":         {func(l *vserver.Link) { l.Name = "abcdefghijklmnop" }, fault.Invalid, "network.abcdefghijklmnop"},
		"group MAC":         {func(l *vserver.Link) { l.MAC = "01:00:00:00:00:01" }, fault.Invalid, "network.eth0.mac"},
		"long MAC":          {func(l *vserver.Link) { l.MAC = "02:00:00:00:00:00:00:01" }, fault.Invalid, "network.eth0.mac"},
		"no address":        {func(l *vserver.Link) { l.Address = netip.Prefix{} }, fault.Invalid, "network.eth0.address"},
		"another prefix":    {func(l *vserver.Link) { l.Address = netip.MustParsePrefix("10.77.0.5/24") }, fault.Invalid, "network.eth0.address"},
		"broadcast":         {func(l *vserver.Link) { l.Address = netip.MustParsePrefix("10.77.255.255/16") }, fault.Invalid, "network.eth0.address"},
		"network's own":     {func(l *vserver.Link) { l.Address = netip.MustParsePrefix("10.77.0.0/16") }, fault.Invalid, "network.eth0.address"},
		"foreign gateway":   {func(l *vserver.Link) { l.Gateway = netip.MustParseAddr("192.0.2.1") }, fault.Invalid, "network.eth0.gateway"},
		"negative rate":     {func(l *vserver.Link) { l.Egress = -1 }, fault.Invalid, "network.eth0"},
		"agent's port":      {pub("tcp", 7443, 80), fault.Invalid, "network.eth0.publish.host_port"},
		"VXLAN's port":      {pub("udp", 4789, 80), fault.Invalid, "network.eth0.publish.host_port"},
		"port 0":            {pub("tcp", 0, 80), fault.Invalid, "network.eth0.publish"},
		"port 65536":        {pub("tcp", 80, 65536), fault.Invalid, "network.eth0.publish"},
		"no protocol":       {pub("", 80, 80), fault.Invalid, "network.eth0.publish.protocol"},
		"twice": {func(l *vserver.Link) {
			l.Publish = []vserver.Publish{{Protocol: "tcp", HostPort: 80, Port: 1}, {Protocol: "tcp", HostPort: 80, Port: 2}}
		}, fault.Invalid, "network.eth0.publish"},
		"allow IPv6":          {open("2001:db8::/32", "tcp", "80"), fault.Invalid, "network.eth0.allow[0].from"},
		"allow no range":      {open("here", "", ""), fault.Invalid, "network.eth0.allow[0].from"},
		"allow SCTP":          {open("", "sctp", ""), fault.Invalid, "network.eth0.allow[0].protocol"},
		"allow ICMP ports":    {open("", "icmp", "80"), fault.Invalid, "network.eth0.allow[0].protocol"},
		"allow ports reverse": {open("", "tcp", "90-80"), fault.Invalid, "network.eth0.allow[0].ports"},
		"allow port 70000":    {open("", "tcp", "70000"), fault.Invalid, "network.eth0.allow[0].ports"},
	} {
		l := testLink()
		c.change(&l)
		_, err := planServer(vserver.ServerNetwork{ID: "web", NICs: []vserver.Link{l}}, Config{GuardedPorts: []uint16{7443}}, testNetworks())
		if !fault.Is(err, c.kind) || fault.FieldOf(err) != c.field {
			t.Errorf("%s: got %v (%s, field %q), want %s, field %q", name, err, fault.KindOf(err), fault.FieldOf(err), c.kind, c.field)
		}
	}
}

func pub(protocol string, hostPort, port int) func(*vserver.Link) {
	return func(l *vserver.Link) {
		l.Publish = []vserver.Publish{{Protocol: protocol, HostPort: hostPort, Port: port}}
	}
}

func open(from, protocol, ports string) func(*vserver.Link) {
	return func(l *vserver.Link) {
		l.Allow = []vserver.Allow{{From: from, Protocol: protocol, Ports: ports}}
	}
}

func TestRefusedNetworks(t *testing.T) {
	here := Config{Underlay: netip.MustParseAddr("198.51.100.1")}
	for name, c := range map[string]struct {
		config Config
		change func(*vserver.Network)
		kind   fault.Kind
	}{
		"id with a slash": {here, func(n *vserver.Network) { n.ID = "a/b" }, fault.Invalid},
		"IPv6":            {here, func(n *vserver.Network) { n.CIDR = netip.MustParsePrefix("2001:db8::/64") }, fault.Invalid},
		"no gateway":      {here, func(n *vserver.Network) { n.Gateway = netip.Addr{} }, fault.Invalid},
		"too small":       {here, func(n *vserver.Network) { n.CIDR = netip.MustParsePrefix("10.79.0.0/31") }, fault.Invalid},
		"overlap": {here, func(n *vserver.Network) {
			n.CIDR, n.Gateway = netip.MustParsePrefix("10.77.9.0/24"), netip.MustParseAddr("10.77.9.1")
		}, fault.Exists},
		"VNI in use":    {here, func(n *vserver.Network) { n.VNI = 77 }, fault.Exists},
		"no VNI":        {here, func(n *vserver.Network) { n.VNI = 0 }, fault.Invalid},
		"no underlay":   {Config{}, func(*vserver.Network) {}, fault.Invalid},
		"itself a peer": {here, func(n *vserver.Network) { n.Peers = []netip.Addr{here.Underlay} }, fault.Invalid},
		"MTU":           {here, func(n *vserver.Network) { n.MTU = 100 }, fault.Invalid},
	} {
		n := vserver.Network{ID: "new", CIDR: netip.MustParsePrefix("10.79.0.0/24"), Gateway: netip.MustParseAddr("10.79.0.1"), VNI: 78, Peers: []netip.Addr{netip.MustParseAddr("198.51.100.2")}}
		if err := checkNetwork(n, here, testNetworks()); err != nil {
			t.Fatalf("%s: good before: %v", name, err)
		}
		c.change(&n)
		if err := checkNetwork(n, c.config, testNetworks()); !fault.Is(err, c.kind) {
			t.Errorf("%s: got %v (%s), want %s", name, err, fault.KindOf(err), c.kind)
		}
	}
}

func TestMTU(t *testing.T) {
	peers := []netip.Addr{netip.MustParseAddr("198.51.100.2")}
	for _, c := range []struct {
		n        vserver.Network
		underlay int
		want     int
	}{
		{vserver.Network{}, 0, 1500},
		{vserver.Network{MTU: 1400}, 0, 1400},
		{vserver.Network{Peers: peers}, 0, 1450},
		{vserver.Network{Peers: peers}, 1500, 1450},
		{vserver.Network{Peers: peers}, 1460, 1410},
		{vserver.Network{Peers: peers}, 9000, 1450}, // the same on every host, whatever they have
		{vserver.Network{Peers: peers, MTU: 8950}, 9000, 8950},
	} {
		if got := mtuOf(c.n, c.underlay); got != c.want {
			t.Errorf("%+v over %d: %d, want %d", c.n, c.underlay, got, c.want)
		}
	}
}
