//go:build linux && root

package bridge

import (
	"bytes"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/google/nftables"
)

func TestSpoofing(t *testing.T) {
	t.Parallel()
	h := newHost(t, Config{})
	must(t, h.SetNetwork(t.Context(), network(netA, "10.77.0.0/24", "10.77.0.1")))
	a, b := newGuest(t), newGuest(t)
	h.place(a, 1, nic(netA, "10.77.0.2/24", "10.77.0.1", 1))
	h.place(b, 2, nic(netA, "10.77.0.3/24", "10.77.0.1", 2))
	own, all, other := mac(macN(1)), mac("ff:ff:ff:ff:ff:ff"), mac(macN(9))
	peer := mac(macN(2))
	vlan := func(tag byte, p []byte) []byte { return append([]byte{0, tag, 8, 0}, p...) }
	seen := sniff(t, b.ns, "eth0")
	inject(t, a.ns, "eth0",
		ether(peer, other, typeIPv4, udp("10.77.0.2", "10.77.0.3", 1, 2, "BAD source MAC")),
		ether(all, other, typeARP, arp(other, "10.77.0.2", 6, "BAD source MAC of ARP")),
		ether(peer, own, typeIPv4, udp("10.77.0.9", "10.77.0.3", 1, 2, "BAD source IP")),
		ether(peer, own, typeIPv4, udp("10.77.0.1", "10.77.0.3", 1, 2, "BAD gateway's IP")),
		ether(peer, own, typeIPv4, udp("0.0.0.0", "255.255.255.255", 68, 67, "BAD no IP")),
		ether(all, own, typeARP, arp(own, "10.77.0.1", 6, "BAD ARP for the gateway")),
		ether(all, own, typeARP, arp(other, "10.77.0.2", 6, "BAD ARP with another MAC")),
		ether(all, own, typeARP, arp(own, "10.77.0.2", 8, "BAD ARP with long addresses")),
		ether(mac("33:33:00:00:00:01"), own, 0x86dd, append(bytes.Repeat([]byte{0x60}, 60), "BAD IPv6"...)),
		ether(all, own, 0x88b5, []byte("BAD experimental type, and long enough to be a frame on any wire")),
		ether(peer, own, 0x8100, vlan(7, udp("10.77.0.2", "10.77.0.3", 1, 2, "BAD VLAN 7"))),
		ether(peer, own, 0x8100, vlan(0, udp("10.77.0.2", "10.77.0.3", 1, 2, "BAD VLAN 0"))),
		ether(peer, own, 0x88a8, vlan(1, udp("10.77.0.2", "10.77.0.3", 1, 2, "BAD provider VLAN"))),
		ether(mac("01:80:c2:00:00:00"), own, typeIPv4, udp("10.77.0.9", "10.77.0.3", 1, 2, "BAD link-local group")),
		ether(all, own, typeARP, arp(own, "10.77.0.2", 6, "good ARP")),
		ether(peer, own, typeIPv4, udp("10.77.0.2", "10.77.0.3", 1, 2, "the last")),
	)
	frames := seen.until(t, "the last")
	for _, f := range frames {
		if i := bytes.Index(f, []byte("BAD")); i >= 0 {
			t.Errorf("let through: %s", f[i:])
		}
	}
	if len(frames) < 2 || !strings.Contains(string(frames[len(frames)-2]), "good ARP") {
		t.Error("a good ARP request did not come")
	}
}

// A frame to a link-local group address is never bridged: it is the port's own, and what is
// in it could become the host's, past all rules about bridges.
func TestLinkLocalGroupsDoNotReachTheHost(t *testing.T) {
	t.Parallel()
	h := newHost(t, Config{})
	must(t, h.SetNetwork(t.Context(), network(netA, "10.77.0.0/24", "10.77.0.1")))
	a := newGuest(t)
	h.place(a, 1, nic(netA, "10.77.0.2/24", "10.77.0.1", 1))
	var c net.PacketConn
	must(t, in(h.ns, func() (err error) { c, err = net.ListenPacket("udp4", ":9999"); return err }))
	defer c.Close()
	arrives := func(text string, patience time.Duration) bool {
		inject(t, a.ns, "eth0", ether(mac("01:80:c2:00:00:0e"), mac(macN(1)), typeIPv4, udp("10.77.0.2", "10.77.0.1", 1, 9999, text)))
		must(t, c.SetReadDeadline(time.Now().Add(patience)))
		buf := make([]byte, 100)
		n, _, err := c.ReadFrom(buf)
		return err == nil && string(buf[:n]) == text
	}
	if arrives("past the rules", 300*time.Millisecond) {
		t.Fatal("a server reached a port of the host by way of a link-local group address")
	}
	conn, err := h.nft.conn()
	must(t, err)
	conn.DelTable(&nftables.Table{Name: tableName, Family: nftables.TableFamilyBridge})
	conn.DelTable(&nftables.Table{Name: tableName, Family: nftables.TableFamilyINet})
	must(t, conn.Flush())
	if !arrives("without rules", 3*time.Second) {
		t.Fatal("without rules nothing arrives either: this test shows nothing")
	}
	// Somebody flushed the rules: the next Set brings all back.
	h.place(a, 1, nic(netA, "10.77.0.2/24", "10.77.0.1", 1))
	if arrives("after restore", 300*time.Millisecond) {
		t.Fatal("the rules did not come back")
	}
}

func TestFiltered(t *testing.T) {
	t.Parallel()
	h := newHost(t, Config{})
	world := newNS(t)
	wire(t, h.ns, "uplink", "198.51.100.1/24", world, "eth0", "198.51.100.2/24")
	must(t, h.SetNetwork(t.Context(), network(netA, "10.77.0.0/24", "10.77.0.1")))
	f, friend, stranger := newGuest(t), newGuest(t), newGuest(t)
	h.place(friend, 1, nic(netA, "10.77.0.2/24", "10.77.0.1", 1))
	h.place(stranger, 2, nic(netA, "10.77.0.3/24", "10.77.0.1", 2))
	link := nic(netA, "10.77.0.4/24", "10.77.0.1", 3)
	h.place(f, 3, link)
	for _, addr := range []string{":22", ":80", ":5432", ":8005"} {
		serve(t, f.ns, addr)
	}
	serve(t, stranger.ns, ":80")
	serve(t, world, ":80")
	before, _, err := connectTo(f.ns, "10.77.0.3:80") // begun while nothing was filtered
	must(t, err)
	defer before.Close()

	link.Filtered = true
	link.Allow = allow("10.77.0.2/32 tcp 5432", "10.77.0.0/24 tcp 8000-8010")
	link.Publish = publish("tcp 8080 80")
	h.place(f, 3, link)
	t.Run("allowed", func(t *testing.T) { reaches(t, friend.ns, "10.77.0.4:5432", "10.77.0.2") })
	t.Run("allowed range", func(t *testing.T) { reaches(t, stranger.ns, "10.77.0.4:8005", "10.77.0.3") })
	t.Run("published", func(t *testing.T) { reaches(t, world, "198.51.100.1:8080", "198.51.100.2") })
	t.Run("published, from a neighbour", func(t *testing.T) { reaches(t, stranger.ns, "10.77.0.1:8080", "10.77.0.1") })
	t.Run("it begins, a neighbour answers", func(t *testing.T) { reaches(t, f.ns, "10.77.0.3:80", "10.77.0.4") })
	t.Run("it begins, the world answers", func(t *testing.T) { reaches(t, f.ns, "198.51.100.2:80", "198.51.100.1") })
	t.Run("datagrams it begins", func(t *testing.T) { echoes(t, f.ns, stranger.ns, "10.77.0.3", 5) })
	t.Run("large datagrams it begins", func(t *testing.T) { echoes(t, f.ns, stranger.ns, "10.77.0.3", 8000) })
	t.Run("what began before", func(t *testing.T) { stillFlows(t, before) })
	t.Run("refused", func(t *testing.T) {
		for _, c := range []struct {
			g    *testGuest
			port string
		}{{stranger, "5432"}, {friend, "22"}, {stranger, "22"}} {
			t.Run("", func(t *testing.T) { t.Parallel(); unreachable(t, c.g.ns, "10.77.0.4:"+c.port) })
		}
	})
	link.Filtered, link.Allow = false, nil
	h.place(f, 3, link)
	t.Run("open again", func(t *testing.T) { reaches(t, stranger.ns, "10.77.0.4:22", "10.77.0.3") })
}
