package bridge

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"time"
)

// The rules as data. Each term prints as nft would and is made into kernel expressions by
// compile_linux.go; nothing else knows both.

// base says where a field is found in a packet.
type base uint8

const (
	baseLink base = iota
	baseNetwork
	baseTransport
	baseMeta // size tells which register width, offset which key
)

// Keys of baseMeta fields.
const (
	metaIIFName = iota
	metaOIFName
	metaL4Proto
)

// field is a part of a packet that rules look at.
type field struct {
	name         string
	base         base
	offset, size uint32
	show         func([]byte) string
}

var (
	iifname   = field{"iifname", baseMeta, metaIIFName, 16, showName}
	oifname   = field{"oifname", baseMeta, metaOIFName, 16, showName}
	l4proto   = field{"meta l4proto", baseMeta, metaL4Proto, 1, showProto}
	etherDst  = field{"ether daddr", baseLink, 0, 6, showMAC}
	etherSrc  = field{"ether saddr", baseLink, 6, 6, showMAC}
	etherType = field{"ether type", baseLink, 12, 2, showEtherType}
	arpHeader = field{"arp htype,ptype,hlen,plen", baseNetwork, 0, 6, showHex}
	arpMAC    = field{"arp saddr ether", baseNetwork, 8, 6, showMAC}
	arpIP     = field{"arp saddr ip", baseNetwork, 14, 4, showIP}
	ipFrag    = field{"ip frag-off", baseNetwork, 6, 2, showHex}
	ipProto   = field{"ip protocol", baseNetwork, 9, 1, showProto}
	ipSrc     = field{"ip saddr", baseNetwork, 12, 4, showIP}
	ipDst     = field{"ip daddr", baseNetwork, 16, 4, showIP}
	thSrc     = field{"th sport", baseTransport, 0, 2, showUint}
	thDst     = field{"th dport", baseTransport, 2, 2, showUint}
	icmpType  = field{"icmp type", baseTransport, 0, 1, showUint}
	tcpFlags  = field{"tcp flags", baseTransport, 13, 1, showHex}
	vxlanVNI  = field{"vxlan vni", baseTransport, 12, 3, showHex}
)

// Ethernet types and protocols that rules name.
const (
	typeIPv4 = 0x0800
	typeARP  = 0x0806

	protoICMP = 1
	protoTCP  = 6
	protoUDP  = 17

	vxlanPort = 4789
)

// term is one match or statement of a rule.
type term interface{ text() string }

type (
	// compare matches a field, under a mask if there is one, with a value.
	compare struct {
		f     field
		not   bool
		mask  []byte // nil means all of it
		value []byte
	}
	// between matches lo ≤ field ≤ hi.
	between struct {
		f      field
		lo, hi []byte
	}
	// member matches if the fields together are in a set.
	member struct {
		fields []field
		set    string
		not    bool
	}
	// dispatch goes where a verdict map sends the fields.
	dispatch struct {
		fields []field
		set    string
	}
	// remember puts the fields into a set, or renews them there, for a time.
	remember struct {
		fields []field
		set    string
		expire time.Duration
	}
	// ctState and ctStatus match if one of the bits is set.
	ctState  struct{ bits ctBits }
	ctStatus struct{ bits ctBits }
	// connections matches a packet whose rule has seen more than this many connections that live.
	connections struct{ over uint32 }
	// toHost matches packets to any address of the host.
	toHost struct{}
	// ipv4 matches the protocol family in an inet table.
	ipv4 struct{}
	// dnat sends the packet to another address and port.
	dnat struct {
		addr netip.Addr
		port uint16
	}
	masquerade struct{}
	verdict    struct {
		kind  string // accept, drop, jump, return
		chain string
	}
)

// ctBits are connection tracking bits with their names.
type ctBits struct {
	value uint32
	name  string
}

var (
	stateInvalid  = ctBits{1, "invalid"}
	stateAnswer   = ctBits{2 | 4, "established,related"}
	stateNew      = ctBits{8, "new"}
	statusDNAT    = ctBits{1 << 5, "dnat"}
	accept        = verdict{kind: "accept"}
	drop          = verdict{kind: "drop"}
	fragmentsMask = []byte{0x1f, 0xff}
)

func jump(chain string) verdict { return verdict{"jump", chain} }

func is(f field, value []byte) compare    { return compare{f: f, value: value} }
func isNot(f field, value []byte) compare { return compare{f: f, not: true, value: value} }

func u16(v uint16) []byte { return binary.BigEndian.AppendUint16(nil, v) }

// ip4 is the 4 bytes of an IPv4 address.
func ip4(a netip.Addr) []byte { b := a.As4(); return b[:] }

// within matches an address in a prefix; the whole address space needs no term.
func within(f field, p netip.Prefix) []term {
	if p.Bits() == 0 {
		return nil
	}
	if p.Bits() == 32 {
		return []term{is(f, ip4(p.Addr()))}
	}
	return []term{compare{f: f, mask: net.CIDRMask(p.Bits(), 32), value: ip4(p.Masked().Addr())}}
}

// ifname is a link's name as sets hold it.
func ifname(name string) []byte { b := make([]byte, 16); copy(b, name); return b }

// pad makes a part of a concatenated key as wide as the registers it fills.
func pad(b []byte) []byte { return append(b, make([]byte, (4-len(b)%4)%4)...) }

func (t compare) text() string {
	op := " "
	if t.not {
		op = " != "
	}
	name, value := t.f.name, t.f.show(t.value)
	if t.mask != nil {
		if t.f.size == 4 {
			ones, _ := net.IPMask(t.mask).Size()
			return fmt.Sprintf("%s%s%s/%d", name, op, value, ones)
		}
		name += " & " + showHex(t.mask)
		if !t.not {
			op = " == "
		}
	}
	return name + op + value
}

func (t between) text() string { return t.f.name + " " + t.f.show(t.lo) + "-" + t.f.show(t.hi) }
func (t member) text() string {
	if t.not {
		return names(t.fields) + " != @" + t.set
	}
	return names(t.fields) + " @" + t.set
}
func (t dispatch) text() string { return names(t.fields) + " vmap @" + t.set }
func (t remember) text() string {
	return fmt.Sprintf("update @%s { %s timeout %s }", t.set, names(t.fields), t.expire)
}
func (t ctState) text() string     { return "ct state " + t.bits.name }
func (t ctStatus) text() string    { return "ct status " + t.bits.name }
func (t connections) text() string { return fmt.Sprintf("ct count over %d", t.over) }
func (toHost) text() string        { return "fib daddr type local" }
func (ipv4) text() string          { return "meta nfproto ipv4" }
func (t dnat) text() string        { return fmt.Sprintf("dnat ip to %s:%d", t.addr, t.port) }
func (masquerade) text() string    { return "masquerade" }
func (t verdict) text() string     { return strings.TrimSpace(t.kind + " " + t.chain) }

func names(fields []field) string {
	out := make([]string, len(fields))
	for i, f := range fields {
		out[i] = f.name
	}
	return strings.Join(out, " . ")
}

func showMAC(b []byte) string { return net.HardwareAddr(b).String() }
func showHex(b []byte) string { return fmt.Sprintf("0x%x", b) }
func showIP(b []byte) string {
	a, _ := netip.AddrFromSlice(b)
	return a.String()
}
func showUint(b []byte) string {
	var v uint64
	for _, x := range b {
		v = v<<8 | uint64(x)
	}
	return fmt.Sprint(v)
}
func showName(b []byte) string {
	name := strings.TrimRight(string(b), "\x00")
	if len(b) < 16 {
		name += "*"
	}
	return fmt.Sprintf("%q", name)
}
func showProto(b []byte) string {
	switch b[0] {
	case protoICMP:
		return "icmp"
	case protoTCP:
		return "tcp"
	case protoUDP:
		return "udp"
	}
	return fmt.Sprint(b[0])
}
func showEtherType(b []byte) string {
	switch binary.BigEndian.Uint16(b) {
	case typeIPv4:
		return "ip"
	case typeARP:
		return "arp"
	}
	return showHex(b)
}
