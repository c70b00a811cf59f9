package bridge

import (
	"encoding/binary"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

const (
	sockDiagByFamily = 20
	tcpListen        = 10
	tcpClose         = 7 // what a UDP socket without a partner is in
	inetDiagLen      = 72
)

// listeners are the ports of the current namespace that programs of the host listen on at an
// address that others could reach: published, they would be theirs no more.
func listeners() (map[publishKey]bool, error) {
	out := map[publishKey]bool{}
	for proto, state := range map[byte]int{protoTCP: tcpListen, protoUDP: tcpClose} {
		for _, fam := range []byte{unix.AF_INET, unix.AF_INET6} {
			if err := listenersOf(out, fam, proto, state); err != nil {
				return nil, fmt.Errorf("list listening sockets: %w", err)
			}
		}
	}
	return out, nil
}

// diagRequest is struct inet_diag_req_v2.
type diagRequest struct {
	family, proto byte
	states        uint32
}

func (r diagRequest) Len() int { return 56 }
func (r diagRequest) Serialize() []byte {
	b := make([]byte, r.Len())
	b[0], b[1] = r.family, r.proto
	binary.NativeEndian.PutUint32(b[4:], r.states)
	return b
}

func listenersOf(out map[publishKey]bool, fam, proto byte, state int) error {
	req := nl.NewNetlinkRequest(sockDiagByFamily, unix.NLM_F_DUMP)
	req.AddData(diagRequest{fam, proto, 1 << state})
	msgs, err := req.Execute(unix.NETLINK_INET_DIAG, sockDiagByFamily)
	if err != nil {
		return err
	}
	for _, m := range msgs {
		if len(m) < inetDiagLen {
			continue
		}
		// struct inet_diag_msg: 4 bytes, source port, destination port, source address …
		addr, _ := netip.AddrFromSlice(m[8:12])
		if fam == unix.AF_INET6 {
			addr, _ = netip.AddrFromSlice(m[8:24])
		}
		if !addr.Unmap().IsLoopback() {
			out[publishKey{proto, binary.BigEndian.Uint16(m[4:])}] = true
		}
	}
	return nil
}
