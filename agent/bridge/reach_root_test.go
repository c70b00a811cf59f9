//go:build linux && root

package bridge

import (
	"testing"

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
	a, b, c := newGuest(t), newGuest(t), newGuest(t)
	h.place(a, 1, nic(netA, "10.77.0.2/24", "10.77.0.1", 1))
	web := nic(netA, "10.77.0.3/24", "10.77.0.1", 2)
	web.Publish = []vserver.Publish{{Protocol: "tcp", HostPort: 8080, Port: 80}}
	h.place(b, 2, web)
	h.place(c, 3, nic(netB, "10.78.0.2/24", "10.78.0.1", 3))
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
	t.Run("another network", func(t *testing.T) { unreachable(t, a.ns, "10.78.0.2:80") })
	for _, addr := range []string{"10.77.0.1:7443", "198.51.100.1:7443", "10.78.0.1:7443", "10.77.0.1:22", "198.51.100.1:22"} {
		t.Run("the host's "+addr, func(t *testing.T) { unreachable(t, a.ns, addr) })
	}
}
