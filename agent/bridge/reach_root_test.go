//go:build linux && root

package bridge

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
	"github.com/reflejo/terraform-provider-reflejo/agent/vserver"
)

func TestReach(t *testing.T) {
	for _, v := range []string{"0", "1"} {
		t.Run("br_netfilter "+v, func(t *testing.T) {
			t.Parallel()
			h := newHost(t, Config{GuardedPorts: []uint16{7443, 7444}})
			must(t, in(h.ns, func() error { return sysctl("net/bridge/bridge-nf-call-iptables", v) }))
			testReach(t, h)
		})
	}
}

func testReach(t *testing.T, h *host) {
	world := newNS(t)
	wire(t, h.ns, "uplink", "198.51.100.1/24", world, "eth0", "198.51.100.2/24")
	must(t, h.SetNetwork(t.Context(), network(netA, "10.77.0.0/24", "10.77.0.1")))
	must(t, h.SetNetwork(t.Context(), network(netB, "10.78.0.0/24", "10.78.0.1")))
	routed := network(netC, "10.79.0.0/24", "10.79.0.1")
	routed.NAT = false
	must(t, h.SetNetwork(t.Context(), routed))
	a, b, c, d := newGuest(t), newGuest(t), newGuest(t), newGuest(t)
	h.place(a, 1, nic(netA, "10.77.0.2/24", "10.77.0.1", 1))
	web := nic(netA, "10.77.0.3/24", "10.77.0.1", 2)
	web.Publish = []vserver.Publish{{Protocol: "tcp", HostPort: 8080, Port: 80}}
	h.place(b, 2, web)
	h.place(c, 3, nic(netB, "10.78.0.2/24", "10.78.0.1", 3))
	h.place(d, 4, nic(netC, "10.79.0.2/24", "10.79.0.1", 4))
	serve(t, d.ns, ":80")
	serve(t, b.ns, ":80")
	serve(t, c.ns, ":80")
	serve(t, world, ":80")
	serve(t, h.ns, ":7443")
	serve(t, h.ns, ":22")

	t.Run("a neighbour", func(t *testing.T) { reaches(t, a.ns, "10.77.0.3:80", "10.77.0.2") })
	t.Run("the world, masqueraded", func(t *testing.T) { reaches(t, a.ns, "198.51.100.2:80", "198.51.100.1") })
	t.Run("the host reaches a server", func(t *testing.T) { reaches(t, h.ns, "10.77.0.3:80", "10.77.0.1") })
	t.Run("published, from the world", func(t *testing.T) { reaches(t, world, "198.51.100.1:8080", "198.51.100.2") })
	t.Run("published, from the host", func(t *testing.T) { reaches(t, h.ns, "198.51.100.1:8080", "") })
	t.Run("published, from a neighbour", func(t *testing.T) { reaches(t, a.ns, "198.51.100.1:8080", "10.77.0.1") })
	t.Run("published, from itself", func(t *testing.T) { reaches(t, b.ns, "10.77.0.1:8080", "10.77.0.1") })
	t.Run("published, from another network", func(t *testing.T) { reaches(t, c.ns, "198.51.100.1:8080", "10.78.0.2") })
	route(t, world, "10.76.0.0/14", "198.51.100.1")
	t.Run("a routed network, from the world", func(t *testing.T) { reaches(t, world, "10.79.0.2:80", "198.51.100.2") })
	t.Run("from a routed network", func(t *testing.T) { reaches(t, d.ns, "198.51.100.2:80", "10.79.0.2") })
	t.Run("refused", func(t *testing.T) {
		for _, c := range []struct {
			who  string
			ns   netns.NsHandle
			addr string
		}{
			{"another network", a.ns, "10.78.0.2:80"}, {"a routed network", a.ns, "10.79.0.2:80"}, {"a network from a routed one", d.ns, "10.77.0.3:80"},
			{"a network with NAT, from the world", world, "10.77.0.3:80"},
			{"the agent", a.ns, "10.77.0.1:7443"}, {"the agent, at the uplink", a.ns, "198.51.100.1:7443"}, {"the agent, at another gateway", a.ns, "10.78.0.1:7443"},
			{"the host", a.ns, "10.77.0.1:22"}, {"the host, at the uplink", a.ns, "198.51.100.1:22"}, {"the host, from a routed network", d.ns, "198.51.100.1:22"},
		} {
			t.Run(c.who, func(t *testing.T) { t.Parallel(); unreachable(t, c.ns, c.addr) })
		}
	})
	t.Run("strangers' addresses", func(t *testing.T) { askForNobody(t, h, a) })
	t.Run("ports in use", func(t *testing.T) {
		for _, port := range []int{22, 7443} {
			bad := web
			bad.Publish = []vserver.Publish{{Protocol: "tcp", HostPort: port, Port: 80}}
			err := h.Set(t.Context(), vserver.ServerNetwork{ID: serverID(2), Pid: b.pid, NICs: []vserver.Link{bad}})
			if kind := map[int]fault.Kind{22: fault.Exists, 7443: fault.Invalid}[port]; !fault.Is(err, kind) {
				t.Errorf("publish %d: %v, want %s", port, err, kind)
			}
		}
		reaches(t, world, "198.51.100.1:8080", "")
	})
}

// askForNobody sends to addresses of the network that nobody has, by way of the gateway: the
// host must not start to look for them.
func askForNobody(t *testing.T, h *host, a *testGuest) {
	gw := gatewayMAC(netA, netip.MustParseAddr("10.77.0.1"))
	for i := 100; i < 110; i++ {
		inject(t, a.ns, "eth0", ether(gw, mac(macN(1)), typeIPv4, udp("10.77.0.2", fmt.Sprintf("10.77.0.%d", i), 1, 2, "anybody?")))
	}
	reaches(t, a.ns, "10.77.0.3:80", "")
	br, err := h.h.LinkByName(bridgeName(netA))
	must(t, err)
	list, err := h.h.NeighList(br.Attrs().Index, unix.AF_INET)
	must(t, err)
	for _, n := range list {
		if n.IP[len(n.IP)-1] >= 100 {
			t.Errorf("the host looks for %s", n.IP)
		}
	}
}

// A server's connections are bounded; those of another are not touched by that.
func TestConnectionsAreBounded(t *testing.T) {
	t.Parallel()
	h := newHost(t, Config{ConnectionsPerNIC: 20})
	world := newNS(t)
	wire(t, h.ns, "uplink", "198.51.100.1/24", world, "eth0", "198.51.100.2/24")
	must(t, h.SetNetwork(t.Context(), network(netA, "10.77.0.0/24", "10.77.0.1")))
	a, b := newGuest(t), newGuest(t)
	h.place(a, 1, nic(netA, "10.77.0.2/24", "10.77.0.1", 1))
	h.place(b, 2, nic(netA, "10.77.0.3/24", "10.77.0.1", 2))
	serve(t, world, ":80")
	for i := range 60 {
		c, _, err := connectTo(a.ns, "198.51.100.2:80")
		if err != nil {
			if i < 15 || i > 25 {
				t.Fatalf("connection %d failed: %v", i, err)
			}
			reaches(t, b.ns, "198.51.100.2:80", "198.51.100.1")
			return
		}
		defer c.Close()
	}
	t.Fatal("60 connections at once, bound is 20")
}

// The agent and a server die together: the server's link is gone when the agent is back, and
// only its rules are left to say that it was there.
func TestRemoveWhatOnlyHasRules(t *testing.T) {
	t.Parallel()
	h := newHost(t, Config{})
	must(t, h.SetNetwork(t.Context(), network(netA, "10.77.0.0/24", "10.77.0.1")))
	for n, change := range []func(*vserver.Link){
		func(*vserver.Link) {},
		func(l *vserver.Link) { l.Filtered, l.Publish = true, publish("tcp 8080 80") },
		func(l *vserver.Link) { l.Ingress = 10e6 },
	} {
		g := newGuest(t)
		link := nic(netA, fmt.Sprintf("10.77.0.%d/24", n+2), "10.77.0.1", n+1)
		change(&link)
		h.place(g, n, link)
		g.end()
		must(t, h.removeLink(portName(serverID(n), "eth0")))
	}
	h.reopen(Config{})
	for n := range 3 {
		must(t, h.Remove(t.Context(), serverID(n)))
	}
	must(t, h.RemoveNetwork(t.Context(), netA))
	clean(t, h)
}
