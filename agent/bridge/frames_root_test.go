//go:build linux && root

package bridge

import (
	"bytes"
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// Frames made by hand, as a hostile server would.

func mac(s string) net.HardwareAddr { m, _ := net.ParseMAC(s); return m }

func ether(dst, src net.HardwareAddr, kind uint16, payload []byte) []byte {
	f := append(append([]byte{}, dst...), src...)
	return append(binary.BigEndian.AppendUint16(f, kind), payload...)
}

// udp is an IPv4 packet.
func udp(src, dst string, sport, dport uint16, payload string) []byte {
	b := make([]byte, 28, 28+len(payload))
	b[0], b[8], b[9] = 0x45, 64, protoUDP
	binary.BigEndian.PutUint16(b[2:], uint16(28+len(payload)))
	copy(b[12:], ip4(netip.MustParseAddr(src)))
	copy(b[16:], ip4(netip.MustParseAddr(dst)))
	var sum uint32
	for i := 0; i < 20; i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	sum = sum&0xffff + sum>>16
	binary.BigEndian.PutUint16(b[10:], ^uint16(sum+sum>>16))
	binary.BigEndian.PutUint16(b[20:], sport)
	binary.BigEndian.PutUint16(b[22:], dport)
	binary.BigEndian.PutUint16(b[24:], uint16(8+len(payload)))
	return append(b, payload...)
}

// arp is an ARP request with a marker after it.
func arp(senderMAC net.HardwareAddr, sender string, hlen byte, marker string) []byte {
	b := []byte{0, 1, 8, 0, hlen, 4, 0, 1}
	b = append(append(b, senderMAC...), ip4(netip.MustParseAddr(sender))...)
	b = append(append(b, 0, 0, 0, 0, 0, 0), ip4(netip.MustParseAddr(sender))...)
	return append(b, marker...)
}

func packetSocket(t *testing.T, ns netns.NsHandle, link string, protocol uint16) (fd, index int) {
	t.Helper()
	must(t, in(ns, func() error {
		i, err := net.InterfaceByName(link)
		if err != nil {
			return err
		}
		index = i.Index
		fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, int(htons(protocol)))
		if err != nil {
			return err
		}
		return unix.Bind(fd, &unix.SockaddrLinklayer{Ifindex: index, Protocol: htons(protocol)})
	}))
	t.Cleanup(func() { unix.Close(fd) })
	return fd, index
}

// inject sends frames out of an interface.
func inject(t *testing.T, ns netns.NsHandle, link string, frames ...[]byte) {
	t.Helper()
	fd, index := packetSocket(t, ns, link, 0)
	for _, f := range frames {
		must(t, unix.Sendto(fd, f, 0, &unix.SockaddrLinklayer{Ifindex: index}))
	}
}

// sniffer sees what arrives at an interface.
type sniffer struct{ fd int }

func sniff(t *testing.T, ns netns.NsHandle, link string) sniffer {
	fd, _ := packetSocket(t, ns, link, unix.ETH_P_ALL)
	must(t, unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 5}))
	return sniffer{fd}
}

// until collects frames until one holds the text.
func (s sniffer) until(t *testing.T, text string) [][]byte {
	t.Helper()
	var out [][]byte
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); {
		buf := make([]byte, 65536)
		n, from, err := unix.Recvfrom(s.fd, buf, 0)
		if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR) {
			continue
		}
		must(t, err)
		if ll, ok := from.(*unix.SockaddrLinklayer); ok && ll.Pkttype == unix.PACKET_OUTGOING {
			continue
		}
		out = append(out, buf[:n])
		if bytes.Contains(buf[:n], []byte(text)) {
			return out
		}
	}
	t.Fatalf("no frame with %q came", text)
	return nil
}
