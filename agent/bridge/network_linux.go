package bridge

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
	"github.com/reflejo/terraform-provider-reflejo/agent/vserver"
)

// SetNetwork implements vserver.Networks. A range that overlaps another network's, or a VNI
// in use, is fault.Exists.
func (m *Manager) SetNetwork(_ context.Context, want vserver.Network) error {
	m.topology.Lock()
	defer m.topology.Unlock()
	want.Peers = slices.Clone(want.Peers)
	if err := checkNetwork(want, m.cfg, m.networks); err != nil {
		return err
	}
	underlay, err := m.underlayMTU(want)
	if err != nil {
		return err
	}
	want.MTU = mtuOf(want, underlay)
	var old *vserver.Network
	m.mu.Lock()
	if n, ok := m.networks[want.ID]; ok {
		old = &n
	}
	m.mu.Unlock()
	if old == nil { // an earlier process may have let others send
		senders, err := m.nft.senders(want.VNI)
		if err != nil {
			return fmt.Errorf("set network %s: %w", want.ID, err)
		}
		old = &vserver.Network{ID: want.ID, CIDR: want.CIDR, Gateway: want.Gateway, VNI: want.VNI, Peers: senders}
	}
	if err := m.inside(func() error { return m.makeNetwork(want, old) }); err != nil {
		return fmt.Errorf("set network %s: %w", want.ID, err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.networks[want.ID], m.bridges[want.ID] = want, true
	return nil
}

func (m *Manager) makeNetwork(n vserver.Network, old *vserver.Network) error {
	br, err := m.makeBridge(n)
	if err != nil {
		return err
	}
	rules := networkRules(n, old)
	after := map[string]vserver.Network{}
	for id, o := range m.networks {
		after[id] = o
	}
	after[n.ID] = n
	rules.elements = append(rules.elements, peerElements(peersOf(after))...)
	rules.goneElements = append(rules.goneElements, peerElements(without(peersOf(m.networks), peersOf(after)))...)
	if err := m.nft.apply(rules); err != nil {
		return err
	}
	if err := m.gatewayAddress(br, n); err != nil {
		return err
	}
	if err := m.up(br); err != nil {
		return err
	}
	if old.CIDR != n.CIDR || old.Gateway != n.Gateway {
		m.cfg.Log.Info("network has a new range or gateway: its servers follow when they are set", "network", n.ID)
	}
	return m.makeVXLAN(br, n)
}

// makeBridge makes the bridge with its settings, not up yet where it is new.
func (m *Manager) makeBridge(n vserver.Network) (netlink.Link, error) {
	name, mac := bridgeName(n.ID), gatewayMAC(n.ID, n.Gateway)
	br, err := m.link(name)
	if err != nil {
		return nil, err
	}
	if br == nil {
		snooping := false // its table of groups could be filled by any server
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.MTU, attrs.HardwareAddr, attrs.Alias = name, n.MTU, mac, networkAlias(n.ID)
		if err := m.h.LinkAdd(&netlink.Bridge{LinkAttrs: attrs, MulticastSnooping: &snooping}); err != nil {
			return nil, fmt.Errorf("make bridge %s: %w", name, err)
		}
		if br, err = m.link(name); br == nil {
			return nil, fmt.Errorf("find new bridge %s: %w", name, errors.Join(err, fault.New(fault.Unavailable, "it is gone")))
		}
	}
	if br.Type() != "bridge" {
		return nil, fault.New(fault.Exists, "link %s is a %s of somebody else", name, br.Type())
	}
	if br.Attrs().Alias != networkAlias(n.ID) {
		if err := m.h.LinkSetAlias(br, networkAlias(n.ID)); err != nil {
			return nil, fmt.Errorf("label bridge %s: %w", name, err)
		}
	}
	if err := m.setLink(br, n.MTU, mac); err != nil {
		return nil, err
	}
	for _, s := range [][2]string{
		{"net/ipv6/conf/" + name + "/disable_ipv6", "1"},
		{"net/ipv4/conf/" + name + "/forwarding", "1"},
		{"net/ipv4/conf/" + name + "/send_redirects", "0"},
		{"net/ipv4/conf/" + name + "/accept_redirects", "0"},
		{"net/ipv4/conf/" + name + "/arp_ignore", "1"}, // the host's other addresses are nobody's business
	} {
		if err := sysctl(s[0], s[1]); err != nil {
			return nil, err
		}
	}
	return br, nil
}

// setLink makes MTU and address so where they differ.
func (m *Manager) setLink(l netlink.Link, mtu int, mac net.HardwareAddr) error {
	return setLink(m.h, l, mtu, mac)
}

func setLink(h *netlink.Handle, l netlink.Link, mtu int, mac net.HardwareAddr) error {
	if l.Attrs().MTU != mtu {
		if err := h.LinkSetMTU(l, mtu); err != nil {
			return fmt.Errorf("set MTU %d of %s: %w", mtu, l.Attrs().Name, err)
		}
	}
	if mac != nil && l.Attrs().HardwareAddr.String() != mac.String() {
		if err := h.LinkSetHardwareAddr(l, mac); err != nil {
			return fmt.Errorf("set address %s of %s: %w", mac, l.Attrs().Name, err)
		}
	}
	return nil
}

func (m *Manager) up(l netlink.Link) error {
	if l.Attrs().Flags&net.FlagUp != 0 {
		return nil
	}
	return wrapf(m.h.LinkSetUp(l), "start link %s", l.Attrs().Name)
}

// gatewayAddress gives the bridge its one address.
func (m *Manager) gatewayAddress(br netlink.Link, n vserver.Network) error {
	want := netip.PrefixFrom(n.Gateway, n.CIDR.Bits())
	if err := m.h.AddrAdd(br, &netlink.Addr{IPNet: ipNet(want)}); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("give bridge %s its address %s: %w", br.Attrs().Name, want, err)
	}
	addrs, err := m.h.AddrList(br, netlink.FAMILY_V4)
	if err != nil {
		return fmt.Errorf("list addresses of bridge %s: %w", br.Attrs().Name, err)
	}
	for _, a := range addrs {
		if a.IPNet.String() == want.String() {
			continue
		}
		if err := m.h.AddrDel(br, &a); err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) {
			return fmt.Errorf("take address %s from bridge %s: %w", a.IPNet, br.Attrs().Name, err)
		}
	}
	return nil
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: net.IP(p.Addr().AsSlice()), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// makeVXLAN makes the port to the other hosts, or removes it where there are none.
func (m *Manager) makeVXLAN(br netlink.Link, n vserver.Network) error {
	name := vxlanName(n.ID)
	if len(n.Peers) == 0 {
		return m.removeLink(name)
	}
	l, err := m.link(name)
	if err != nil {
		return err
	}
	if l != nil && !m.sameVXLAN(l, n) {
		if err := m.removeLink(name); err != nil {
			return err
		}
		l = nil
	}
	if l == nil {
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.MTU, attrs.Alias = name, n.MTU, "reflejo tunnel "+n.ID
		// Learning: a server's frames, first of all the announcement after a move, tell where it is.
		err := m.h.LinkAdd(&netlink.Vxlan{LinkAttrs: attrs, VxlanId: int(n.VNI), SrcAddr: net.IP(m.cfg.Underlay.AsSlice()), Port: vxlanPort, Learning: true, Age: 300})
		if errors.Is(err, unix.EEXIST) {
			return fault.New(fault.Exists, "make tunnel %s: VNI %d is in use by another program", name, n.VNI)
		}
		if err != nil {
			return fmt.Errorf("make tunnel %s: %w", name, err)
		}
		if l, err = m.link(name); l == nil {
			return fmt.Errorf("find new tunnel %s: %w", name, errors.Join(err, fault.New(fault.Unavailable, "it is gone")))
		}
	}
	if err := m.setLink(l, n.MTU, nil); err != nil {
		return err
	}
	if err := sysctl("net/ipv6/conf/"+name+"/disable_ipv6", "1"); err != nil {
		return err
	}
	if err := m.join(l, br); err != nil {
		return err
	}
	if err := m.setPeers(l, n.Peers); err != nil {
		return err
	}
	return m.up(l)
}

func (m *Manager) sameVXLAN(l netlink.Link, n vserver.Network) bool {
	v, ok := l.(*netlink.Vxlan)
	return ok && v.VxlanId == int(n.VNI) && v.Port == vxlanPort && v.Learning && v.SrcAddr.Equal(net.IP(m.cfg.Underlay.AsSlice()))
}

func (m *Manager) join(l, br netlink.Link) error {
	if l.Attrs().MasterIndex == br.Attrs().Index {
		return nil
	}
	return wrapf(m.h.LinkSetMaster(l, br), "connect %s to bridge %s", l.Attrs().Name, br.Attrs().Name)
}

// setPeers makes the all-zeros entries, which frames for everybody and for addresses not yet
// learned go to, be exactly the peers.
func (m *Manager) setPeers(l netlink.Link, peers []netip.Addr) error {
	entry := func(p netip.Addr) *netlink.Neigh {
		return &netlink.Neigh{LinkIndex: l.Attrs().Index, Family: unix.AF_BRIDGE, State: netlink.NUD_NOARP | netlink.NUD_PERMANENT,
			Flags: netlink.NTF_SELF, IP: net.IP(p.AsSlice()), HardwareAddr: make(net.HardwareAddr, 6)}
	}
	have := map[netip.Addr]bool{}
	entries, err := m.neighbours(l)
	if err != nil {
		return err
	}
	for _, e := range entries {
		a, ok := netip.AddrFromSlice(e.IP)
		if ok && strings.Trim(e.HardwareAddr.String(), "0:") == "" {
			have[a.Unmap()] = true
		}
	}
	for _, p := range peers {
		if have[p] {
			delete(have, p)
			continue
		}
		if err := m.h.NeighAppend(entry(p)); err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("add peer %s to %s: %w", p, l.Attrs().Name, err)
		}
	}
	for p := range have {
		if err := m.h.NeighDel(entry(p)); err != nil && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("remove peer %s from %s: %w", p, l.Attrs().Name, err)
		}
	}
	return nil
}

func (m *Manager) neighbours(l netlink.Link) ([]netlink.Neigh, error) {
	for range 20 {
		entries, err := m.h.NeighList(l.Attrs().Index, unix.AF_BRIDGE)
		if !errors.Is(err, netlink.ErrDumpInterrupted) {
			return entries, wrapf(err, "list forwarding entries of %s", l.Attrs().Name)
		}
	}
	return nil, fault.New(fault.Unavailable, "list forwarding entries of %s: they change faster than they can be read", l.Attrs().Name)
}

// underlayMTU is the MTU of the interface that has the underlay address, 0 if there is none.
func (m *Manager) underlayMTU(n vserver.Network) (int, error) {
	if len(n.Peers) == 0 || n.MTU != 0 {
		return 0, nil
	}
	addrs, err := m.h.AddrList(nil, netlink.FAMILY_V4)
	if err != nil {
		return 0, fmt.Errorf("list addresses of the host: %w", err)
	}
	for _, a := range addrs {
		if !a.IP.Equal(net.IP(m.cfg.Underlay.AsSlice())) {
			continue
		}
		l, err := m.h.LinkByIndex(a.LinkIndex)
		if err != nil {
			return 0, fmt.Errorf("find the interface of %s: %w", m.cfg.Underlay, err)
		}
		return l.Attrs().MTU, nil
	}
	return 0, nil
}

// RemoveNetwork implements vserver.Networks.
func (m *Manager) RemoveNetwork(_ context.Context, id string) error {
	if !idPattern.MatchString(id) {
		return fault.New(fault.Invalid, "network id %q: must be lower-case letters, digits and dashes", id)
	}
	m.topology.Lock()
	defer m.topology.Unlock()
	if err := m.unused(id); err != nil {
		return err
	}
	for _, name := range []string{vxlanName(id), bridgeName(id)} {
		if err := m.removeLink(name); err != nil {
			return fmt.Errorf("remove network %s: %w", id, err)
		}
	}
	n, known := m.networks[id]
	if !known {
		n = vserver.Network{ID: id, CIDR: anybody}
	}
	after := map[string]vserver.Network{}
	for k, o := range m.networks {
		if k != id {
			after[k] = o
		}
	}
	rules := noNetworkRules(n)
	rules.goneElements = append(rules.goneElements, peerElements(without(peersOf(m.networks), peersOf(after)))...)
	if err := m.nft.apply(rules); err != nil {
		return fmt.Errorf("remove network %s: %w", id, err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.networks, id)
	delete(m.bridges, id)
	return nil
}

// unused tells whether a server's interface is on the network.
func (m *Manager) unused(id string) error {
	m.mu.Lock()
	for server, s := range m.servers {
		for nic, p := range s.ports {
			if p.network == id {
				m.mu.Unlock()
				return fault.New(fault.Precondition, "remove network %s: interface %s of server %s is on it: remove that first", id, nic, server)
			}
		}
	}
	m.mu.Unlock()
	br, err := m.link(bridgeName(id))
	if br == nil || err != nil {
		return err
	}
	links, err := m.links()
	if err != nil {
		return err
	}
	for _, l := range links {
		if l.Attrs().MasterIndex == br.Attrs().Index && l.Attrs().Name != vxlanName(id) {
			return fault.New(fault.Precondition, "remove network %s: link %s (%s) is on it: remove that first", id, l.Attrs().Name, l.Attrs().Alias)
		}
	}
	return nil
}

// peersOf are the hosts that networks span, each once.
func peersOf(networks map[string]vserver.Network) []netip.Addr {
	var out []netip.Addr
	for _, n := range networks {
		out = append(out, n.Peers...)
	}
	slices.SortFunc(out, netip.Addr.Compare)
	return slices.Compact(out)
}

func without(all, some []netip.Addr) []netip.Addr {
	return slices.DeleteFunc(all, func(a netip.Addr) bool { return slices.Contains(some, a) })
}
