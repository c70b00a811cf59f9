package bridge

import (
	"net"
	"net/netip"

	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
	"github.com/reflejo/terraform-provider-reflejo/agent/vserver"
)

const (
	mtuPlain  = 1500
	mtuVXLAN  = 1450
	vxlanHead = 50 // bytes that VXLAN over IPv4 adds
	minMTU    = 576
	maxMTU    = 65535
	maxVNI    = 1<<24 - 1
	maxPeers  = 1024
	maxNICs   = 64
	maxOpen   = 1024 // allow and publish, each, of an interface
)

// checkNetwork refuses what can never work; others are the networks that exist.
func checkNetwork(n vserver.Network, c Config, others map[string]vserver.Network) error {
	if !idPattern.MatchString(n.ID) {
		return fault.New(fault.Invalid, "network id %q: must be lower-case letters, digits and dashes", n.ID)
	}
	if !n.CIDR.IsValid() || !n.CIDR.Addr().Is4() || n.CIDR.Bits() > 30 || n.CIDR.Bits() < 8 {
		return fault.Field("cidr", "range %s: must be IPv4 with a prefix of 8 to 30 bits", n.CIDR)
	}
	if !n.CIDR.Contains(n.Gateway) {
		return fault.Field("cidr", "gateway %s is not in %s", n.Gateway, n.CIDR)
	}
	if n.MTU != 0 && (n.MTU < minMTU || n.MTU > maxMTU) {
		return fault.Field("mtu", "mtu %d: must be %d to %d", n.MTU, minMTU, maxMTU)
	}
	if len(n.Peers) > maxPeers {
		return fault.New(fault.Invalid, "network %s: %d peers, at most %d", n.ID, len(n.Peers), maxPeers)
	}
	for _, p := range n.Peers {
		if !p.Is4() || p == c.Underlay {
			return fault.New(fault.Invalid, "network %s: peer %s must be another host's IPv4 address", n.ID, p)
		}
	}
	if len(n.Peers) > 0 && (n.VNI == 0 || n.VNI > maxVNI || !c.Underlay.IsValid()) {
		return fault.New(fault.Invalid, "network %s spans hosts: it needs a VNI of 1 to %d (has %d) and the host an underlay address", n.ID, maxVNI, n.VNI)
	}
	for id, o := range others {
		switch {
		case id == n.ID:
		case o.CIDR.Overlaps(n.CIDR):
			return fault.Wrap(fault.Exists, fault.Field("cidr", "range %s overlaps %s of network %s on this host", n.CIDR, o.CIDR, id))
		case len(o.Peers) > 0 && len(n.Peers) > 0 && o.VNI == n.VNI:
			return fault.New(fault.Exists, "VNI %d is used by network %s on this host", n.VNI, id)
		}
	}
	return nil
}

// mtuOf is the MTU inside a network, given that of the underlay (0: unknown).
func mtuOf(n vserver.Network, underlay int) int {
	switch {
	case n.MTU != 0:
		return n.MTU
	case len(n.Peers) == 0:
		return mtuPlain
	case underlay != 0:
		return min(mtuVXLAN, max(underlay-vxlanHead, minMTU))
	}
	return mtuVXLAN
}

// checkServer refuses what can never work.
func checkServer(w vserver.ServerNetwork, c Config, networks map[string]vserver.Network) error {
	if !idPattern.MatchString(w.ID) {
		return fault.New(fault.Invalid, "server id %q: must be lower-case letters, digits and dashes", w.ID)
	}
	if len(w.NICs) > maxNICs {
		return fault.Field("network", "%d interfaces, at most %d", len(w.NICs), maxNICs)
	}
	names, published := map[string]bool{}, map[publishKey]bool{}
	for _, l := range w.NICs {
		if names[l.Name] {
			return fault.Field("network."+l.Name, "interface %s is there twice", l.Name)
		}
		names[l.Name] = true
		n, ok := networks[l.NetworkID]
		if !ok {
			return fault.New(fault.Precondition, "interface %s: network %s is not on this host: set it first", l.Name, l.NetworkID)
		}
		if err := checkLink(l, n); err != nil {
			return err
		}
		for _, p := range l.Publish {
			if err := checkPublish(l, p, c); err != nil {
				return err
			}
			if published[keyOf(p)] {
				return fault.Field("network."+l.Name+".publish", "host port %s is published twice", keyOf(p))
			}
			published[keyOf(p)] = true
		}
		if _, err := openingsOf(l); err != nil {
			return err
		}
	}
	return nil
}

func checkLink(l vserver.Link, n vserver.Network) error {
	at := "network." + l.Name
	if !nicPattern.MatchString(l.Name) || l.Name == "lo" {
		return fault.Field(at, "interface name %q: must be a letter and up to 14 letters, digits, dots, dashes or underscores", l.Name)
	}
	mac, err := net.ParseMAC(l.MAC)
	if err != nil || len(mac) != 6 || mac[0]&1 != 0 {
		return fault.Field(at+".mac", "%q is no unicast Ethernet address", l.MAC)
	}
	a := l.Address.Addr()
	if !l.Address.IsValid() || !n.CIDR.Contains(a) || l.Address.Bits() != n.CIDR.Bits() {
		return fault.Field(at+".address", "%s is not an address of network %s with its prefix", l.Address, n.CIDR)
	}
	if a == n.Gateway || a == n.CIDR.Masked().Addr() || a == broadcast(n.CIDR) {
		return fault.Field(at+".address", "%s is the network's own, its gateway or its broadcast address", a)
	}
	if l.Gateway.IsValid() && (!n.CIDR.Contains(l.Gateway) || l.Gateway == a) {
		return fault.Field(at+".gateway", "%s is not another address of network %s", l.Gateway, n.CIDR)
	}
	if l.Ingress < 0 || l.Egress < 0 {
		return fault.Field(at, "bandwidth %d and %d must not be negative", l.Ingress, l.Egress)
	}
	if len(l.Allow) > maxOpen || len(l.Publish) > maxOpen {
		return fault.Field(at, "%d allow and %d publish, at most %d each", len(l.Allow), len(l.Publish), maxOpen)
	}
	return nil
}

func checkPublish(l vserver.Link, p vserver.Publish, c Config) error {
	at := "network." + l.Name + ".publish"
	if p.Protocol != "tcp" && p.Protocol != "udp" {
		return fault.Field(at+".protocol", "%q: must be tcp or udp", p.Protocol)
	}
	if p.HostPort < 1 || p.HostPort > 65535 || p.Port < 1 || p.Port > 65535 {
		return fault.Field(at, "ports %d and %d: must be 1 to 65535", p.HostPort, p.Port)
	}
	if c.guarded(p.HostPort) {
		return fault.Field(at+".host_port", "host port %d is the agent's own: choose another", p.HostPort)
	}
	if p.Protocol == "udp" && p.HostPort == vxlanPort {
		return fault.Field(at+".host_port", "host port %d carries the networks between hosts: choose another", p.HostPort)
	}
	return nil
}

func broadcast(p netip.Prefix) netip.Addr {
	b := p.Masked().Addr().As4()
	for i, m := range net.CIDRMask(p.Bits(), 32) {
		b[i] |= ^m
	}
	return netip.AddrFrom4(b)
}
