package vservertest

import (
	"context"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/uuid"

	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
	"github.com/reflejo/terraform-provider-reflejo/agent/vserver"
)

// Networks is a vserver.Networks in memory. It keeps state and prints itself. A server's
// links are there once it was set with a process, until End says that the process ended.
type Networks struct {
	mu       sync.Mutex
	guarded  []int
	networks map[string]vserver.Network
	servers  map[string]vserver.ServerNetwork
}

var _ vserver.Networks = (*Networks)(nil)

// NewNetworks is a host without networks; guarded are the agent's own ports.
func NewNetworks(guarded ...int) *Networks {
	return &Networks{guarded: guarded, networks: map[string]vserver.Network{}, servers: map[string]vserver.ServerNetwork{}}
}

// End is the end of a process: the links in its namespace are gone.
func (n *Networks) End(pid int) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for id, s := range n.servers {
		if s.Pid == pid {
			s.Pid = 0
			n.servers[id] = s
		}
	}
}

// SetNetwork implements vserver.Networks.
func (n *Networks) SetNetwork(_ context.Context, want vserver.Network) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if want.ID == "" || want.ID != strings.ToLower(want.ID) {
		return fault.New(fault.Invalid, "set network %q: no id in lower case", want.ID)
	}
	if !want.CIDR.IsValid() || !want.CIDR.Addr().Is4() || !want.CIDR.Contains(want.Gateway) {
		return fault.Field("cidr", "set network %s: gateway %s is not in %s", want.ID, want.Gateway, want.CIDR)
	}
	for id, o := range n.networks {
		if id != want.ID && o.CIDR.Overlaps(want.CIDR) {
			return fault.New(fault.Exists, "set network %s: range %s overlaps network %s", want.ID, want.CIDR, id)
		}
	}
	want.Peers = slices.Clone(want.Peers)
	n.networks[want.ID] = want
	return nil
}

// RemoveNetwork implements vserver.Networks.
func (n *Networks) RemoveNetwork(_ context.Context, id string) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	for server, s := range n.servers {
		for _, l := range s.NICs {
			if l.NetworkID == id {
				return fault.New(fault.Precondition, "remove network %s: server %s is on it", id, server)
			}
		}
	}
	delete(n.networks, id)
	return nil
}

// Set implements vserver.Networks.
func (n *Networks) Set(_ context.Context, want vserver.ServerNetwork) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if err := n.check(want); err != nil {
		return fmt.Errorf("set network of server %s: %w", want.ID, err)
	}
	if want.Pid == 0 {
		want.Pid = n.servers[want.ID].Pid
	}
	want.NICs = slices.Clone(want.NICs)
	n.servers[want.ID] = want
	return nil
}

func (n *Networks) check(want vserver.ServerNetwork) error {
	taken := map[string]bool{}
	for id, s := range n.servers {
		for _, p := range published(s) {
			taken[portOf(p)] = taken[portOf(p)] || id != want.ID
		}
	}
	for _, l := range want.NICs {
		w, ok := n.networks[l.NetworkID]
		if !ok {
			return fault.New(fault.Precondition, "network %s is not on this host", l.NetworkID)
		}
		if mac, err := net.ParseMAC(l.MAC); err != nil || len(mac) != 6 {
			return fault.Field("network."+l.Name+".mac", "%q is no Ethernet address", l.MAC)
		}
		if !l.Address.IsValid() || !w.CIDR.Contains(l.Address.Addr()) || l.Address.Addr() == w.Gateway {
			return fault.Field("network."+l.Name+".address", "%s is no address for a server on %s", l.Address, w.CIDR)
		}
		for _, p := range l.Publish {
			if p.Protocol != "tcp" && p.Protocol != "udp" || slices.Contains(n.guarded, p.HostPort) {
				return fault.Field("network."+l.Name+".publish", "host port %s can't be published", portOf(p))
			}
			if taken[portOf(p)] {
				return fault.New(fault.Exists, "host port %s is another server's", portOf(p))
			}
		}
		for _, a := range l.Allow {
			if _, err := netip.ParsePrefix(a.From); a.From != "" && err != nil {
				return fault.Field("network."+l.Name+".allow", "%q is no range", a.From)
			}
		}
	}
	return nil
}

func published(s vserver.ServerNetwork) []vserver.Publish {
	var out []vserver.Publish
	for _, l := range s.NICs {
		out = append(out, l.Publish...)
	}
	return out
}

func portOf(p vserver.Publish) string { return fmt.Sprintf("%s %d", p.Protocol, p.HostPort) }

// Remove implements vserver.Networks.
func (n *Networks) Remove(_ context.Context, id string) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.servers, id)
	return nil
}

// Usage implements vserver.Networks; nothing ever flows.
func (n *Networks) Usage(_ context.Context, id string) (map[string]vserver.LinkUsage, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	s, ok := n.servers[id]
	if !ok {
		return nil, fault.New(fault.NotFound, "read network usage: server %s has no interfaces", id)
	}
	out := map[string]vserver.LinkUsage{}
	for _, l := range s.NICs {
		if s.Pid != 0 {
			out[l.Name] = vserver.LinkUsage{}
		}
	}
	return out, nil
}

// List implements vserver.Networks.
func (n *Networks) List(context.Context) (vserver.NetworkInventory, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	inv := vserver.NetworkInventory{Networks: slices.Sorted(maps.Keys(n.networks)), Servers: map[string][]string{}}
	for id, s := range n.servers {
		names := []string{}
		for _, l := range s.NICs {
			names = append(names, l.Name)
		}
		slices.Sort(names)
		inv.Servers[id] = names
	}
	return inv, nil
}

// String lists networks and servers with their links, by id.
func (n *Networks) String() string {
	n.mu.Lock()
	defer n.mu.Unlock()
	var b strings.Builder
	for _, id := range slices.Sorted(maps.Keys(n.networks)) {
		w := n.networks[id]
		fmt.Fprintf(&b, "network %s %s gateway %s nat %t", id, w.CIDR, w.Gateway, w.NAT)
		if len(w.Peers) > 0 {
			fmt.Fprintf(&b, " vni %d peers %v", w.VNI, w.Peers)
		}
		b.WriteByte('\n')
	}
	for _, id := range slices.Sorted(maps.Keys(n.servers)) {
		s := n.servers[id]
		fmt.Fprintf(&b, "server %s pid %d\n", id, s.Pid)
		for _, l := range s.NICs {
			printLink(&b, l)
		}
	}
	return b.String()
}

func printLink(b *strings.Builder, l vserver.Link) {
	fmt.Fprintf(b, "    %s on %s %s %s via %s ingress %d egress %d\n", l.Name, l.NetworkID, l.MAC, l.Address, l.Gateway, l.Ingress, l.Egress)
	for _, p := range l.Publish {
		fmt.Fprintf(b, "        publish %s to %d\n", portOf(p), p.Port)
	}
	if l.Filtered {
		b.WriteString("        filtered\n")
	}
	for _, a := range l.Allow {
		fmt.Fprintf(b, "        allow from %q protocol %q ports %q\n", a.From, a.Protocol, a.Ports)
	}
}

// NetworksHost is a vserver.Networks and the means to have processes for it.
type NetworksHost struct {
	Networks vserver.Networks
	// Guarded is a port of the agent's.
	Guarded int
	// Start starts a process in a network namespace of its own; it ends with the test.
	Start func(t *testing.T) (pid int)
	// End ends it.
	End func(t *testing.T, pid int)
	// Restart gives the same host to a new agent; nil where there is nothing to restart.
	Restart func(t *testing.T) vserver.Networks
}

// NetworksContract is what every vserver.Networks keeps. newHost gives an empty host.
func NetworksContract(t *testing.T, newHost func(t *testing.T) NetworksHost) {
	for name, test := range map[string]func(*testing.T, NetworksHost){
		"set is idempotent and listed":  networksSet,
		"what is not there":             networksAbsent,
		"refuses bad input":             networksInvalid,
		"a network in use stays":        networksInUse,
		"published ports are exclusive": networksPublish,
		"the guest goes and comes back": networksGuestGone,
		"interfaces come and go":        networksChangeNICs,
		"a restart finds everything":    networksRestart,
		"a restart finds what remains":  networksRestartAfterGuest,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			test(t, newHost(t))
		})
	}
}

// SomeNetwork is the n-th of ordinary networks: 10.n.0.0/24 with NAT.
func SomeNetwork(n int) vserver.Network {
	return vserver.Network{ID: uuid.NewString(), Name: fmt.Sprintf("net%d", n), NAT: true,
		CIDR: netip.MustParsePrefix(fmt.Sprintf("10.%d.0.0/24", n)), Gateway: netip.MustParseAddr(fmt.Sprintf("10.%d.0.1", n))}
}

// SomeLink is an ordinary interface on a network made by SomeNetwork, with host part n.
func SomeLink(w vserver.Network, name string, n byte) vserver.Link {
	a := w.CIDR.Addr().As4()
	a[3] = n
	return vserver.Link{Name: name, NetworkID: w.ID, MAC: fmt.Sprintf("02:00:00:%02x:00:%02x", a[1], n),
		Address: netip.PrefixFrom(netip.AddrFrom4(a), w.CIDR.Bits()), Gateway: w.Gateway}
}

func networksMust(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func networksWant(t *testing.T, err error, k fault.Kind) {
	t.Helper()
	if !fault.Is(err, k) {
		t.Fatalf("got %v (%s), want the kind %s", err, fault.KindOf(err), k)
	}
}

// networksPlace sets one network and a server on it.
func networksPlace(t *testing.T, h NetworksHost) (vserver.Network, vserver.ServerNetwork) {
	t.Helper()
	w := SomeNetwork(77)
	networksMust(t, h.Networks.SetNetwork(t.Context(), w))
	s := vserver.ServerNetwork{ID: uuid.NewString(), Pid: h.Start(t), NICs: []vserver.Link{SomeLink(w, "eth0", 2)}}
	networksMust(t, h.Networks.Set(t.Context(), s))
	return w, s
}

func networksListed(t *testing.T, n vserver.Networks, networks []string, servers map[string][]string) {
	t.Helper()
	inv, err := n.List(t.Context())
	networksMust(t, err)
	if !slices.Equal(inv.Networks, networks) {
		t.Fatalf("networks %v, want %v", inv.Networks, networks)
	}
	if !maps.EqualFunc(inv.Servers, servers, slices.Equal) {
		t.Fatalf("servers %v, want %v", inv.Servers, servers)
	}
}

func networksSet(t *testing.T, h NetworksHost) {
	w, s := networksPlace(t, h)
	for range 2 {
		networksMust(t, h.Networks.SetNetwork(t.Context(), w))
		networksMust(t, h.Networks.Set(t.Context(), s))
	}
	networksListed(t, h.Networks, []string{w.ID}, map[string][]string{s.ID: {"eth0"}})
	usage, err := h.Networks.Usage(t.Context(), s.ID)
	networksMust(t, err)
	if _, ok := usage["eth0"]; !ok || len(usage) != 1 {
		t.Fatalf("usage %v, want one of eth0", usage)
	}
	full := s
	full.NICs = []vserver.Link{SomeLink(w, "eth0", 2)}
	full.NICs[0].Ingress, full.NICs[0].Egress, full.NICs[0].Filtered = 10_000_000, 40_000_000_000, true
	full.NICs[0].Allow = []vserver.Allow{{From: "10.0.0.0/8", Protocol: "tcp", Ports: "80-90"}, {}, {Protocol: "icmp"}}
	full.NICs[0].Publish = []vserver.Publish{{Protocol: "udp", HostPort: 5300, Port: 53}}
	for range 2 {
		networksMust(t, h.Networks.Set(t.Context(), full))
	}
	networksMust(t, h.Networks.Set(t.Context(), s))
	for range 2 {
		networksMust(t, h.Networks.Remove(t.Context(), s.ID))
		networksMust(t, h.Networks.RemoveNetwork(t.Context(), w.ID))
	}
	networksListed(t, h.Networks, nil, nil)
}

func networksAbsent(t *testing.T, h NetworksHost) {
	networksMust(t, h.Networks.Remove(t.Context(), uuid.NewString()))
	networksMust(t, h.Networks.RemoveNetwork(t.Context(), uuid.NewString()))
	_, err := h.Networks.Usage(t.Context(), uuid.NewString())
	networksWant(t, err, fault.NotFound)
	l := SomeLink(SomeNetwork(5), "eth0", 2)
	networksWant(t, h.Networks.Set(t.Context(), vserver.ServerNetwork{ID: uuid.NewString(), NICs: []vserver.Link{l}}), fault.Precondition)
	networksListed(t, h.Networks, nil, nil)
}

func networksInvalid(t *testing.T, h NetworksHost) {
	w, s := networksPlace(t, h)
	overlap := SomeNetwork(77)
	networksWant(t, h.Networks.SetNetwork(t.Context(), overlap), fault.Exists)
	outside := SomeNetwork(78)
	outside.Gateway = netip.MustParseAddr("10.99.0.1")
	networksWant(t, h.Networks.SetNetwork(t.Context(), outside), fault.Invalid)
	for name, spoil := range map[string]func(*vserver.Link){
		"no MAC":            func(l *vserver.Link) { l.MAC = "nonsense" },
		"a strange address": func(l *vserver.Link) { l.Address = netip.MustParsePrefix("10.5.0.2/24") },
		"the gateway's":     func(l *vserver.Link) { l.Address = netip.PrefixFrom(w.Gateway, 24) },
		"a bad range":       func(l *vserver.Link) { l.Filtered, l.Allow = true, []vserver.Allow{{From: "10.0.0.0/99"}} },
		"the agent's port":  func(l *vserver.Link) { l.Publish = []vserver.Publish{{Protocol: "tcp", HostPort: h.Guarded, Port: 80}} },
		"a bad protocol":    func(l *vserver.Link) { l.Publish = []vserver.Publish{{Protocol: "sctp", HostPort: 81, Port: 80}} },
	} {
		l := SomeLink(w, "eth0", 2)
		spoil(&l)
		err := h.Networks.Set(t.Context(), vserver.ServerNetwork{ID: s.ID, Pid: s.Pid, NICs: []vserver.Link{l}})
		if !fault.Is(err, fault.Invalid) {
			t.Fatalf("%s: got %v, want it refused as invalid", name, err)
		}
	}
	networksListed(t, h.Networks, []string{w.ID}, map[string][]string{s.ID: {"eth0"}})
}

func networksInUse(t *testing.T, h NetworksHost) {
	w, s := networksPlace(t, h)
	networksWant(t, h.Networks.RemoveNetwork(t.Context(), w.ID), fault.Precondition)
	networksMust(t, h.Networks.Remove(t.Context(), s.ID))
	networksMust(t, h.Networks.RemoveNetwork(t.Context(), w.ID))
}

func networksPublish(t *testing.T, h NetworksHost) {
	w, s := networksPlace(t, h)
	s.NICs[0].Publish = []vserver.Publish{{Protocol: "tcp", HostPort: 8080, Port: 80}}
	networksMust(t, h.Networks.Set(t.Context(), s))
	other := vserver.ServerNetwork{ID: uuid.NewString(), Pid: h.Start(t), NICs: []vserver.Link{SomeLink(w, "eth0", 3)}}
	other.NICs[0].Publish = []vserver.Publish{{Protocol: "tcp", HostPort: 8080, Port: 81}}
	networksWant(t, h.Networks.Set(t.Context(), other), fault.Exists)
	other.NICs[0].Publish[0].Protocol = "udp"
	networksMust(t, h.Networks.Set(t.Context(), other))
	s.NICs[0].Publish = nil
	networksMust(t, h.Networks.Set(t.Context(), s))
	other.NICs[0].Publish[0].Protocol = "tcp"
	networksMust(t, h.Networks.Set(t.Context(), other))
	networksMust(t, h.Networks.Remove(t.Context(), other.ID))
	s.NICs[0].Publish = []vserver.Publish{{Protocol: "tcp", HostPort: 8080, Port: 80}}
	networksMust(t, h.Networks.Set(t.Context(), s))
}

func networksGuestGone(t *testing.T, h NetworksHost) {
	w, s := networksPlace(t, h)
	h.End(t, s.Pid)
	s.Pid = 0
	networksMust(t, h.Networks.Set(t.Context(), s))
	networksListed(t, h.Networks, []string{w.ID}, map[string][]string{s.ID: {"eth0"}})
	s.Pid = h.Start(t)
	networksMust(t, h.Networks.Set(t.Context(), s))
	usage, err := h.Networks.Usage(t.Context(), s.ID)
	networksMust(t, err)
	if len(usage) != 1 {
		t.Fatalf("usage %v, want one interface", usage)
	}
	h.End(t, s.Pid)
	networksMust(t, h.Networks.Remove(t.Context(), s.ID))
	networksListed(t, h.Networks, []string{w.ID}, nil)
}

func networksChangeNICs(t *testing.T, h NetworksHost) {
	w, s := networksPlace(t, h)
	second := SomeNetwork(78)
	networksMust(t, h.Networks.SetNetwork(t.Context(), second))
	s.NICs = append(s.NICs, SomeLink(second, "eth1", 2))
	networksMust(t, h.Networks.Set(t.Context(), s))
	networksListed(t, h.Networks, slices.Sorted(slices.Values([]string{w.ID, second.ID})), map[string][]string{s.ID: {"eth0", "eth1"}})
	s.NICs = s.NICs[1:]
	networksMust(t, h.Networks.Set(t.Context(), s))
	networksListed(t, h.Networks, slices.Sorted(slices.Values([]string{w.ID, second.ID})), map[string][]string{s.ID: {"eth1"}})
	networksMust(t, h.Networks.RemoveNetwork(t.Context(), w.ID))
}

func networksRestart(t *testing.T, h NetworksHost) {
	w, s := networksPlace(t, h)
	s.NICs[0].Publish = []vserver.Publish{{Protocol: "tcp", HostPort: 8080, Port: 80}}
	s.NICs[0].Ingress = 100_000_000
	networksMust(t, h.Networks.Set(t.Context(), s))
	if h.Restart == nil {
		return
	}
	again := h.Restart(t)
	networksListed(t, again, []string{w.ID}, map[string][]string{s.ID: {"eth0"}})
	networksWant(t, again.RemoveNetwork(t.Context(), w.ID), fault.Precondition)
	networksMust(t, again.SetNetwork(t.Context(), w))
	networksMust(t, again.Set(t.Context(), s))
	again = h.Restart(t)
	networksMust(t, again.Remove(t.Context(), s.ID))
	networksMust(t, again.RemoveNetwork(t.Context(), w.ID))
	networksListed(t, again, nil, nil)
}

// The guest ends, and with it its links; then the agent restarts: it knows only rules.
func networksRestartAfterGuest(t *testing.T, h NetworksHost) {
	w, s := networksPlace(t, h)
	s.NICs[0].Publish = []vserver.Publish{{Protocol: "tcp", HostPort: 8080, Port: 80}}
	networksMust(t, h.Networks.Set(t.Context(), s))
	h.End(t, s.Pid)
	if h.Restart == nil {
		return
	}
	again := h.Restart(t)
	networksListed(t, again, []string{w.ID}, map[string][]string{s.ID: {"eth0"}})
	networksMust(t, again.Remove(t.Context(), s.ID))
	networksMust(t, again.RemoveNetwork(t.Context(), w.ID))
	networksListed(t, again, nil, nil)
}
