//go:build linux && root && crashpoints

package acceptance

import (
	"encoding/binary"
	"encoding/hex"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"

	"connectrpc.com/connect"

	reflejov1 "github.com/reflejo/terraform-provider-reflejo/agent/api/reflejo/v1"
	"github.com/reflejo/terraform-provider-reflejo/agent/testbed"
)

// Frame types and the sizes of headers.
const (
	typeIPv4, typeARP, typeIPv6 = 0x0800, 0x0806, 0x86dd
	headerIPv4, headerUDP       = 20, 8
	portVXLAN                   = 4789
)

// network attacks neighbours' traffic and the host's ports.
func (s *siege) network() {
	s.try("forged frames", func(t *testing.T) { s.forgedFrames() })
	s.try("the host's ports", func(t *testing.T) { s.hostPorts() })
	s.try("table of connections", func(t *testing.T) { s.manyConnections() })
	s.try("other servers' traffic", func(t *testing.T) { s.eavesdrop() })
}

// forgedFrames sends frames in others' names; only the one in its own arrives.
func (s *siege) forgedFrames() {
	t := s.t
	own, peer := hardware(t, s.macs["mallory"]), hardware(t, s.macs["alice"])
	other, all := hardware(t, "02:00:00:00:00:99"), hardware(t, "ff:ff:ff:ff:ff:ff")
	me, you := s.addresses["mallory"], s.addresses["alice"]
	network, err := s.api.Networks.ListNetworks(t.Context(), connect.NewRequest(&reflejov1.ListNetworksRequest{}))
	if err != nil {
		t.Fatal(err)
	}
	gateway := network.Msg.GetNetworks()[0].GetGateway()
	frame := func(to, from net.HardwareAddr, kind uint16, payload []byte) string {
		return hex.EncodeToString(append(binary.BigEndian.AppendUint16(append(append([]byte{}, to...), from...), kind), payload...))
	}
	// A frame for alice in a tunnel packet for her, for the host and for the host's underlay.
	inner, _ := hex.DecodeString(frame(peer, other, typeIPv4, datagram(gateway, you, 1, 2, []byte("frame:vxlan"))))
	tunnel := func(vni uint32) []byte {
		return append(binary.BigEndian.AppendUint32([]byte{8, 0, 0, 0}, vni<<8), inner...)
	}
	gatewayMAC := s.gatewayMAC(gateway)
	var frames []string
	for _, to := range []net.HardwareAddr{peer, all} {
		frames = append(frames,
			frame(to, other, typeIPv4, datagram(me, you, 1, 2, []byte("frame:source mac"))),
			frame(to, peer, typeIPv4, datagram(me, you, 1, 2, []byte("frame:her own mac"))),
			frame(to, own, typeIPv4, datagram(gateway, you, 1, 2, []byte("frame:source address"))),
			frame(to, own, typeIPv4, datagram(you, you, 1, 2, []byte("frame:her own address"))),
			frame(to, own, typeARP, arpReply(own, gateway, peer, you, "frame:arp of the gateway")),
			frame(to, own, typeARP, arpReply(other, me, peer, you, "frame:arp with another mac")),
			frame(to, own, typeIPv6, append(append([]byte{0x60, 0, 0, 0, 0, 24, 59, 64}, make([]byte, 32)...), "frame:ipv6 of its own xxx"...)),
			frame(to, own, 0x8100, append([]byte{0, 7, 8, 0}, datagram(me, you, 1, 2, []byte("frame:vlan"))...)),
			frame(to, own, 0x88b5, []byte("frame:unknown protocol and long enough for a frame on any wire")),
		)
	}
	for _, network := range network.Msg.GetNetworks() {
		for _, to := range []string{gateway, testbed.Address("alpha").String()} {
			frames = append(frames,
				frame(gatewayMAC, own, typeIPv4, datagram(me, to, portVXLAN, portVXLAN, tunnel(network.GetVni()))),
				frame(gatewayMAC, own, typeIPv4, datagram(testbed.Address("beta").String(), to, portVXLAN, portVXLAN, tunnel(network.GetVni()))))
		}
	}
	frames = append(frames, frame(peer, own, typeIPv4, datagram(me, you, 1, 2, []byte("frame:the last"))))
	ear := s.start(s.alice, attack, "sniff", "eth0", "the last")
	if got := ear.line(); got != "listening" {
		t.Fatal(got)
	}
	c := s.start(s.mallory, attack, "inject", "eth0")
	c.write([]byte(strings.Join(frames, "\n") + "\n"))
	if code, out := c.end(); code != 0 {
		t.Fatalf("the attack is broken: exit %d: %s", code, out)
	}
	for {
		text := ear.line() // fails if the control never comes
		if text == "frame:the last" {
			return
		}
		t.Errorf("let through: %s", text)
	}
}

// hostPorts connects to what the host itself listens on, by all of its addresses.
func (s *siege) hostPorts() {
	t := s.t
	networks, err := s.api.Networks.ListNetworks(t.Context(), connect.NewRequest(&reflejov1.ListNetworksRequest{}))
	if err != nil {
		t.Fatal(err)
	}
	own := testbed.Address("alpha").String()
	api := testbed.Endpoint("alpha")
	if out, err := exec.Command("nsenter", "--net="+s.handle().Netns(), s.program, "connect", "tcp", api).CombinedOutput(); err != nil {
		t.Errorf("the host itself does not reach its API: the test shows nothing: %v, %s", err, out)
	}
	addresses := []string{own, "198.18.0.255", "127.0.0.1"}
	for _, n := range networks.Msg.GetNetworks() {
		addresses = append(addresses, n.GetGateway())
	}
	argv := []string{attack, "connect", "tcp"}
	for _, a := range addresses {
		for _, port := range []string{"7443", "7444", "22", "53"} {
			argv = append(argv, net.JoinHostPort(a, port))
		}
	}
	if code, out := s.exec(s.mallory, argv...); code != 1 {
		t.Errorf("a server reaches ports of the host (exit %d): %s", code, out)
	}
}

// manyConnections fills the host's table of connections; there must be room for the
// neighbour. (That each interface has a bound, package bridge tests with a small one: to
// reach the default one takes the kernel longer than this test should.)
func (s *siege) manyConnections() {
	t := s.t
	b := bed(t, s.config)
	l, err := b.Listen(t.Context(), "tcp", net.JoinHostPort(testbed.Address(testbed.Operator).String(), "0"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	table := func() (now, most int) {
		err := testbed.Inside(s.handle().Netns(), "", func() error {
			for file, n := range map[string]*int{"nf_conntrack_count": &now, "nf_conntrack_max": &most} {
				text, err := os.ReadFile("/proc/sys/net/netfilter/" + file)
				if err != nil {
					return err
				}
				if *n, err = strconv.Atoi(strings.TrimSpace(string(text))); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		return now, most
	}
	before, most := table()
	c := s.start(s.mallory, "env", "ATTACKED="+testbed.Address(testbed.Operator).String(), attack, "hold", "connections", "4000")
	got := c.line()
	now, _ := table()
	t.Logf("the attacker sent %s; %d connections before, %d now, room for %d", got, before, now, most)
	if now-before < 1000 {
		t.Error("the table did not grow: the test shows nothing")
	}
	if now > most/2 {
		t.Errorf("one server has %d of the host's %d connections", now, most)
	}
	if code, out := s.exec(s.alice, attack, "connect", "tcp", l.Addr().String()); code != 0 {
		t.Errorf("the neighbour cannot connect (exit %d): %s", code, out)
	}
	c.end()
}

// eavesdrop listens for what the neighbour and the host say to each other.
func (s *siege) eavesdrop() {
	t := s.t
	ear := s.start(s.mallory, attack, "sniff", "eth0", "the last")
	defer ear.kill()
	if got := ear.line(); got != "listening" {
		t.Fatal(got)
	}
	own, peer := hardware(t, s.macs["alice"]), hardware(t, s.macs["mallory"])
	networks, err := s.api.Networks.ListNetworks(t.Context(), connect.NewRequest(&reflejov1.ListNetworksRequest{}))
	if err != nil {
		t.Fatal(err)
	}
	gateway := networks.Msg.GetNetworks()[0].GetGateway()
	send := func(to net.HardwareAddr, address, text string) {
		c := s.start(s.alice, attack, "inject", "eth0")
		payload := datagram(s.addresses["alice"], address, 1, 2, []byte("frame:"+text))
		c.write([]byte(hex.EncodeToString(append(binary.BigEndian.AppendUint16(append(append([]byte{}, to...), own...), typeIPv4), payload...)) + "\n"))
		if code, out := c.end(); code != 0 {
			t.Fatalf("exit %d: %s", code, out)
		}
	}
	send(s.gatewayMAC(gateway), gateway, "a secret")
	send(peer, s.addresses["mallory"], "the last")
	if got := ear.line(); got != "frame:the last" {
		t.Errorf("overheard: %s", got)
	}
}

// gatewayMAC asks a server where its gateway is.
func (s *siege) gatewayMAC(gateway string) net.HardwareAddr {
	s.t.Helper()
	_, out := s.exec(s.mallory, "sh", "-c", "ping -c 1 -W 2 "+gateway+" >/dev/null; cat /proc/net/arp")
	for line := range strings.Lines(out) {
		if f := strings.Fields(line); len(f) > 3 && f[0] == gateway {
			return hardware(s.t, f[3])
		}
	}
	s.t.Fatalf("the gateway %s has no hardware address: %s", gateway, out)
	return nil
}

func hardware(t *testing.T, text string) net.HardwareAddr {
	t.Helper()
	mac, err := net.ParseMAC(text)
	if err != nil {
		t.Fatal(err)
	}
	return mac
}

// datagram is an IPv4 packet with UDP, without the checksum of UDP.
func datagram(from, to string, fromPort, toPort uint16, payload []byte) []byte {
	a, b := netip.MustParseAddr(from).As4(), netip.MustParseAddr(to).As4()
	p := []byte{0x45, 0}
	p = binary.BigEndian.AppendUint16(p, uint16(headerIPv4+headerUDP+len(payload)))
	p = append(p, 0, 1, 0, 0, 64, 17, 0, 0)
	p = append(append(p, a[:]...), b[:]...)
	var sum uint32
	for i := 0; i < len(p); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(p[i:]))
	}
	for sum > 0xffff {
		sum = sum&0xffff + sum>>16
	}
	binary.BigEndian.PutUint16(p[10:], ^uint16(sum))
	for _, v := range []uint16{fromPort, toPort, uint16(headerUDP + len(payload)), 0} {
		p = binary.BigEndian.AppendUint16(p, v)
	}
	return append(p, payload...)
}

// arpReply says that an address is at a hardware address.
func arpReply(mac net.HardwareAddr, address string, toMAC net.HardwareAddr, to, text string) []byte {
	a, b := netip.MustParseAddr(address).As4(), netip.MustParseAddr(to).As4()
	p := append([]byte{0, 1, 8, 0, 6, 4, 0, 2}, mac...)
	p = append(append(append(p, a[:]...), toMAC...), b[:]...)
	return append(p, text...)
}
