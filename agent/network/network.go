// Package network keeps the networks of a host: what they are called, which range they
// have, which other hosts they span, and which address a server gets.
//
// A network that spans hosts has one range and no central ledger: the addresses are dealt
// out in shares, one per member's slot (see [Shares]), so that two hosts never hand out the
// same address and none needs another to answer. An address that a user names may lie in
// any share.
//
// The kernel's side is package bridge, behind [Edge].
package network

import (
	"crypto/sha256"
	"encoding/binary"
	"net/netip"
	"regexp"
	"time"

	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
	"github.com/reflejo/terraform-provider-reflejo/agent/vserver"
)

// Definition is what a user asked a network to be. It is the same on all its hosts.
type Definition struct {
	ID      string // UUID made by the client
	Name    string // unique on the host; a DNS label
	CIDR    netip.Prefix
	NAT     bool
	Members []Member // every host of the network, this one included
}

// Member is a host of a network.
type Member struct {
	Host    string
	Address netip.Addr // where the host's VXLAN packets go; may be invalid if it is the only member
	Slot    int        // stable place: decides gateway address and share
}

// View is a network as it is on this host.
type View struct {
	Definition
	Gateway       netip.Addr
	VNI           uint32
	MTU           int
	Servers       int
	FreeAddresses int
	Created       time.Time
	Default       bool // the host's own, for servers without networks
}

// Bounds of a definition.
const (
	minBits = 8
	maxBits = 28
)

var hostPattern = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)

// Validate checks a definition by itself. The error names the attribute to blame.
func (d Definition) Validate() error {
	if !vserver.ValidID(d.ID) {
		return fault.Field("id", "id %q: want a UUID in lower case", d.ID)
	}
	if !vserver.ValidName(d.Name) {
		return fault.Field("name", "name %q: want a DNS label: lower-case letters, digits and inner hyphens, at most 63", d.Name)
	}
	if err := ValidCIDR(d.CIDR); err != nil {
		return err
	}
	if len(d.Members) == 0 || len(d.Members) > Shares(d.CIDR) {
		return fault.Field("hosts", "network %s: %d hosts; a network of this size has room for 1 … %d", d.CIDR, len(d.Members), Shares(d.CIDR))
	}
	hosts, slots := map[string]bool{}, map[int]bool{}
	for _, m := range d.Members {
		switch {
		case !hostPattern.MatchString(m.Host):
			return fault.Field("hosts", "host %q: want a host's name", m.Host)
		case hosts[m.Host]:
			return fault.Field("hosts", "host %s: named twice", m.Host)
		case m.Slot < 0 || m.Slot >= Shares(d.CIDR) || slots[m.Slot]:
			return fault.Field("hosts", "host %s: slot %d is taken or outside 0 … %d", m.Host, m.Slot, Shares(d.CIDR)-1)
		case len(d.Members) > 1 && !m.Address.Is4():
			return fault.Field("hosts", "host %s: no IPv4 address to reach it at", m.Host)
		}
		hosts[m.Host], slots[m.Slot] = true, true
	}
	return nil
}

// ValidCIDR checks a network's range.
func ValidCIDR(p netip.Prefix) error {
	if !p.IsValid() || !p.Addr().Is4() || p.Masked() != p {
		return fault.Field("cidr", "cidr %q: want an IPv4 range without host bits, like 10.77.0.0/16", p)
	}
	if p.Bits() < minBits || p.Bits() > maxBits {
		return fault.Field("cidr", "cidr %s: want a range between /%d and /%d", p, minBits, maxBits)
	}
	a := p.Addr()
	if a.IsLoopback() || a.IsMulticast() || a.IsLinkLocalUnicast() || a.IsUnspecified() {
		return fault.Field("cidr", "cidr %s: loopback, link-local and multicast ranges can't be used", p)
	}
	return nil
}

// Shares is the number of shares a range is dealt out in, and so the most hosts a network
// of this range can span: one per 32 addresses, at least 2, at most 64.
func Shares(p netip.Prefix) int {
	return min(64, max(2, 1<<(32-p.Bits())/32))
}

// Gateway is the address of the host in a slot: the range's first addresses, in order.
func Gateway(p netip.Prefix, slot int) netip.Addr { return at(p, 1+slot) }

// VNI is the VXLAN network identifier of a network: 24 bits of its id's hash, never 0.
func VNI(id string) uint32 {
	sum := sha256.Sum256([]byte(id))
	return max(1, binary.BigEndian.Uint32(sum[:4])>>8)
}

// Usable reports whether a server can have the address: inside, not the network's or
// broadcast address, no gateway of any slot.
func Usable(p netip.Prefix, a netip.Addr) bool {
	n := offset(p, a)
	return p.Contains(a) && n > Shares(p) && n < 1<<(32-p.Bits())-1
}

// Allocate chooses an address for a server on the host in slot, or confirms want. The host's
// own share is dealt out first; when it is used up, the shares that no member has are.
func Allocate(d Definition, slot int, want netip.Addr, used map[netip.Addr]bool) (netip.Addr, error) {
	p := d.CIDR
	if want.IsValid() {
		if !Usable(p, want) {
			return netip.Addr{}, fault.New(fault.Invalid, "address %s: network %s gives servers %s … %s", want, d.Name, at(p, Shares(p)+1), at(p, 1<<(32-p.Bits())-2))
		}
		if used[want] {
			return netip.Addr{}, fault.New(fault.Exists, "address %s: another server has it on network %s", want, d.Name)
		}
		return want, nil
	}
	for _, share := range myShares(d, slot) {
		for n := share; n < 1<<(32-p.Bits()); n += Shares(p) {
			if a := at(p, n); Usable(p, a) && !used[a] {
				return a, nil
			}
		}
	}
	return netip.Addr{}, fault.New(fault.Exhausted, "network %s (%s): no address left for this host", d.Name, p)
}

// Free counts the addresses that the host in slot may still hand out.
func Free(d Definition, slot int, used map[netip.Addr]bool) int {
	n := 0
	for _, share := range myShares(d, slot) {
		first := share
		for first <= Shares(d.CIDR) {
			first += Shares(d.CIDR)
		}
		last := 1<<(32-d.CIDR.Bits()) - 2
		if first <= last {
			n += (last-first)/Shares(d.CIDR) + 1
		}
		for a := range used {
			if Usable(d.CIDR, a) && offset(d.CIDR, a)%Shares(d.CIDR) == share {
				n--
			}
		}
	}
	return max(0, n)
}

// ShareOf is the share that an address lies in.
func ShareOf(p netip.Prefix, a netip.Addr) int { return offset(p, a) % Shares(p) }

// myShares are the shares that the host in slot may deal from, its own first.
func myShares(d Definition, slot int) []int {
	taken := map[int]bool{}
	for _, m := range d.Members {
		taken[m.Slot] = true
	}
	shares := []int{slot}
	// Only the lowest slot deals from unclaimed shares, so that two hosts never do.
	lowest := true
	for s := range taken {
		lowest = lowest && slot <= s
	}
	for s := 0; lowest && s < Shares(d.CIDR); s++ {
		if !taken[s] {
			shares = append(shares, s)
		}
	}
	return shares
}

func at(p netip.Prefix, n int) netip.Addr {
	b := p.Addr().As4()
	binary.BigEndian.PutUint32(b[:], binary.BigEndian.Uint32(b[:])+uint32(n))
	return netip.AddrFrom4(b)
}

func offset(p netip.Prefix, a netip.Addr) int {
	if !a.Is4() {
		return -1
	}
	x, y := p.Addr().As4(), a.As4()
	return int(binary.BigEndian.Uint32(y[:])) - int(binary.BigEndian.Uint32(x[:]))
}
