//go:build linux && root

package bridge

import (
	"bytes"
	"net/netip"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/reflejo/terraform-provider-reflejo/agent/vserver"
)

// underlay is a switch between hosts.
type underlay struct {
	t  *testing.T
	ns netns.NsHandle
	n  int
}

func newUnderlay(t *testing.T) *underlay {
	u := &underlay{t: t, ns: newNS(t)}
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "switch"
	must(t, handle(t, u.ns).LinkAdd(&netlink.Bridge{LinkAttrs: attrs}))
	br, err := handle(t, u.ns).LinkByName("switch")
	must(t, err)
	must(t, handle(t, u.ns).LinkSetUp(br))
	return u
}

// plug connects a namespace under an address.
func (u *underlay) plug(ns netns.NsHandle, addr string) {
	u.t.Helper()
	u.n++
	h, hu := handle(u.t, ns), handle(u.t, u.ns)
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "uplink"
	port := "port" + string(rune('0'+u.n))
	must(u.t, h.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: port, PeerNamespace: netlink.NsFd(u.ns)}))
	l, err := h.LinkByName("uplink")
	must(u.t, err)
	must(u.t, h.AddrAdd(l, &netlink.Addr{IPNet: ipNet(netip.MustParsePrefix(addr))}))
	must(u.t, h.LinkSetUp(l))
	p, err := hu.LinkByName(port)
	must(u.t, err)
	br, err := hu.LinkByName("switch")
	must(u.t, err)
	must(u.t, hu.LinkSetMaster(p, br))
	must(u.t, hu.LinkSetUp(p))
}

func spanning(gateway string, peers ...string) vserver.Network {
	n := network(netA, "10.77.0.0/16", gateway)
	n.VNI = 0x70001
	for _, p := range peers {
		n.Peers = append(n.Peers, netip.MustParseAddr(p))
	}
	return n
}

func TestSpanningNetwork(t *testing.T) {
	t.Parallel()
	u := newUnderlay(t)
	var hosts []*host
	for _, addr := range []string{"198.51.100.1", "198.51.100.2"} {
		h := newHost(t, Config{Underlay: netip.MustParseAddr(addr), GuardedPorts: []uint16{7443}})
		u.plug(h.ns, addr+"/24")
		hosts = append(hosts, h)
	}
	alpha, beta := hosts[0], hosts[1]
	must(t, alpha.SetNetwork(t.Context(), spanning("10.77.0.1", "198.51.100.2")))
	must(t, beta.SetNetwork(t.Context(), spanning("10.77.0.2", "198.51.100.1")))
	a, b, c := newGuest(t), newGuest(t), newGuest(t)
	alpha.place(a, 1, nic(netA, "10.77.1.1/16", "10.77.0.1", 1))
	alpha.place(c, 3, nic(netA, "10.77.1.3/16", "10.77.0.1", 3))
	closed := nic(netA, "10.77.1.2/16", "10.77.0.2", 2)
	closed.Filtered, closed.Allow = true, allow("10.77.1.1/32 tcp 80")
	beta.place(b, 2, closed)
	for _, g := range []*testGuest{a, b, c} {
		serve(t, g.ns, ":80")
	}
	serve(t, beta.ns, ":7443")
	serve(t, beta.ns, ":8080")

	t.Run("MTU inside", func(t *testing.T) {
		l, err := handle(t, a.ns).LinkByName("eth0")
		must(t, err)
		if l.Attrs().MTU != 1450 {
			t.Fatalf("MTU %d, want 1450", l.Attrs().MTU)
		}
	})
	t.Run("across hosts", func(t *testing.T) { reaches(t, a.ns, "10.77.1.2:80", "10.77.1.1") })
	t.Run("back", func(t *testing.T) { reaches(t, b.ns, "10.77.1.1:80", "10.77.1.2") })
	t.Run("large datagrams", func(t *testing.T) { echoes(t, b.ns, a.ns, "10.77.1.1", 8000) })
	t.Run("filtered across hosts", func(t *testing.T) { unreachable(t, c.ns, "10.77.1.2:80") })
	t.Run("a port of the other host", func(t *testing.T) { reaches(t, a.ns, "198.51.100.2:8080", "198.51.100.1") })
	t.Run("the other agent's port", func(t *testing.T) { unreachable(t, a.ns, "198.51.100.2:7443") })
	t.Run("no VXLAN from servers", func(t *testing.T) { forged(t, alpha, a, b) })
	t.Run("no VXLAN from strangers", func(t *testing.T) {
		gamma := newNS(t)
		u.plug(gamma, "198.51.100.3/24")
		strangersTunnel(t, gamma, b)
	})
	t.Run("a server moves", func(t *testing.T) { moves(t, alpha, beta, c, b) })
}

// forged sends a VXLAN datagram from a server to the other host; what is in it must not come
// out there.
func forged(t *testing.T, alpha *host, a, b *testGuest) {
	inner := ether(mac("ff:ff:ff:ff:ff:ff"), mac(macN(1)), typeARP, arp(mac(macN(1)), "10.77.1.1", 6, "FORGED"))
	outer := string([]byte{8, 0, 0, 0, 7, 0, 1, 0}) + string(inner)
	seen := sniff(t, b.ns, "eth0")
	gw := gatewayMAC(netA, netip.MustParseAddr("10.77.0.1"))
	inject(t, a.ns, "eth0", ether(gw, mac(macN(1)), typeIPv4, udp("10.77.1.1", "198.51.100.2", 5555, vxlanPort, outer)))
	reaches(t, b.ns, "10.77.1.1:80", "")
	drain(t, seen, "FORGED")
}

// drain reads what a sniffer has and fails if a frame holds the text.
func drain(t *testing.T, s sniffer, text string) {
	t.Helper()
	must(t, unix.SetsockoptTimeval(s.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 200_000}))
	buf := make([]byte, 65536)
	for {
		n, _, err := unix.Recvfrom(s.fd, buf, 0)
		if err != nil {
			return
		}
		if bytes.Contains(buf[:n], []byte(text)) {
			t.Fatalf("a frame with %q came", text)
		}
	}
}

func strangersTunnel(t *testing.T, gamma netns.NsHandle, b *testGuest) {
	h := handle(t, gamma)
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.HardwareAddr = "vx", mac("02:66:00:00:00:01")
	must(t, h.LinkAdd(&netlink.Vxlan{LinkAttrs: attrs, VxlanId: 0x70001, Port: vxlanPort, SrcAddr: netip.MustParseAddr("198.51.100.3").AsSlice(),
		Group: netip.MustParseAddr("198.51.100.2").AsSlice()}))
	l, err := h.LinkByName("vx")
	must(t, err)
	must(t, h.LinkSetUp(l))
	seen := sniff(t, b.ns, "eth0")
	inject(t, gamma, "vx", ether(mac(macN(2)), mac("02:66:00:00:00:01"), typeARP, arp(mac("02:66:00:00:00:01"), "10.77.1.1", 6, "STRANGER")))
	reaches(t, b.ns, "10.77.1.1:80", "")
	drain(t, seen, "STRANGER")
}

// moves takes server 1 from alpha to beta. Neighbours reach it there, at once: the
// announcement tells them, no timeout does.
func moves(t *testing.T, alpha, beta *host, c, b *testGuest) {
	reaches(t, c.ns, "10.77.1.1:80", "10.77.1.3")
	must(t, alpha.Remove(t.Context(), serverID(1)))
	a := newGuest(t)
	beta.place(a, 1, nic(netA, "10.77.1.1/16", "10.77.0.2", 1))
	serve(t, a.ns, ":80")
	start := time.Now()
	reaches(t, c.ns, "10.77.1.1:80", "10.77.1.3")
	reaches(t, b.ns, "10.77.1.1:80", "10.77.1.2")
	t.Logf("reached after %s", time.Since(start))
	// And back.
	must(t, beta.Remove(t.Context(), serverID(1)))
	again := newGuest(t)
	alpha.place(again, 1, nic(netA, "10.77.1.1/16", "10.77.0.1", 1))
	serve(t, again.ns, ":80")
	reaches(t, b.ns, "10.77.1.1:80", "10.77.1.2")
	reaches(t, c.ns, "10.77.1.1:80", "10.77.1.3")
}

func TestPeersChange(t *testing.T) {
	t.Parallel()
	h := newHost(t, Config{Underlay: netip.MustParseAddr("198.51.100.1")})
	peersAre := func(want ...string) {
		t.Helper()
		senders, err := h.nft.senders(0x70001)
		must(t, err)
		if len(senders) != len(want) {
			t.Fatalf("%v may send, want %v", senders, want)
		}
		l, err := h.link(vxlanName(netA))
		must(t, err)
		if len(want) == 0 {
			if l != nil {
				t.Fatal("the tunnel of a network without peers is there")
			}
			return
		}
		entries, err := h.neighbours(l)
		must(t, err)
		got := map[string]bool{}
		for _, e := range entries {
			if e.IP != nil {
				got[e.IP.String()] = true
			}
		}
		if len(got) != len(want) {
			t.Fatalf("peers %v, want %v", got, want)
		}
		for _, w := range want {
			if !got[w] {
				t.Fatalf("peers %v, want %v", got, want)
			}
		}
	}
	for _, peers := range [][]string{{"198.51.100.2"}, {"198.51.100.2", "198.51.100.3"}, {"198.51.100.3"}, nil, {"198.51.100.4"}} {
		for range 2 {
			must(t, h.SetNetwork(t.Context(), spanning("10.77.0.1", peers...)))
		}
		peersAre(peers...)
	}
	h.reopen(h.cfg)
	must(t, h.SetNetwork(t.Context(), spanning("10.77.0.1", "198.51.100.9")))
	peersAre("198.51.100.9")
	must(t, h.RemoveNetwork(t.Context(), netA))
	peersAre()
}
