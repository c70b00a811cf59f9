package bridge

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"net"
	"slices"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
	"github.com/reflejo/terraform-provider-reflejo/agent/vserver"
)

// Set implements vserver.Networks. The networks must have been set in this process
// (fault.Precondition). A published port that another server has, or that a program of the
// host listens on, is fault.Exists; an agent's own is fault.Invalid. An interface that is no
// longer wanted is removed also when Pid is 0.
func (m *Manager) Set(ctx context.Context, want vserver.ServerNetwork) error {
	m.topology.RLock()
	defer m.topology.RUnlock()
	defer m.serial.lock(want.ID)()
	err := m.set(ctx, want)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EBUSY) || errors.Is(err, unix.EEXIST) {
		// Rules are not as they were left: somebody flushed them, say. Start from what is there.
		m.cfg.Log.Warn("rules are not as they were left: made anew", "server", want.ID, "error", err)
		if err := m.restore(); err != nil {
			return fmt.Errorf("restore rules: %w", err)
		}
		err = m.set(ctx, want)
	}
	return wrapf(err, "set network of server %s", want.ID)
}

func (m *Manager) set(ctx context.Context, want vserver.ServerNetwork) error {
	m.mu.Lock()
	old := m.servers[want.ID].clone()
	networks := maps.Clone(m.networks)
	m.mu.Unlock()
	gone, fresh := old.publishChanges(want)
	plan, err := planServer(want, m.cfg, networks)
	if err != nil {
		return err
	}
	if err := m.claim(want.ID, fresh); err != nil {
		return err
	}
	if err := m.setRules(want, plan, old, gone); err != nil {
		m.forget(want.ID, fresh)
		return err
	}
	m.forget(want.ID, gone)
	if want.Pid == 0 {
		return nil
	}
	return m.inside(func() error { return m.connect(ctx, want.Pid, plan, old) })
}

// setRules makes a server's rules. They come before its links, so that a port is never
// without them; links that are not wanted any more go before theirs. Rules that are as
// wanted stay untouched: taking rules out costs the kernel a grace period, some 10 ms.
func (m *Manager) setRules(want vserver.ServerNetwork, plan serverPlan, old *serverState, gone []publishKey) error {
	if err := m.dropPorts(want.ID, old.unwanted(want), batch{}); err != nil {
		return err
	}
	m.note(want.ID, plan)
	changes := noPublishRules(want.ID, gone, len(plan.publishes()) == 0)
	for _, p := range plan.ports {
		changes.merge(changedRules(old.ports[p.id.NIC], p))
	}
	if err := m.nft.applyServer(plan, changes); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, p := range plan.ports {
		place := m.stateOf(want.ID).ports[p.id.NIC]
		place.flows = p.link.Filtered
		m.stateOf(want.ID).ports[p.id.NIC] = place
	}
	m.wanted[want.ID] = want
	return nil
}

func (s *serverState) clone() *serverState {
	if s == nil {
		return &serverState{ports: map[string]portPlace{}, published: map[publishKey]bool{}}
	}
	return &serverState{ports: maps.Clone(s.ports), published: maps.Clone(s.published)}
}

// publishChanges are the host ports that are no longer wanted, and those wanted anew.
func (s *serverState) publishChanges(want vserver.ServerNetwork) (gone, fresh []publishKey) {
	wanted := map[publishKey]bool{}
	for _, l := range want.NICs {
		for _, p := range l.Publish {
			if p.Protocol != "tcp" && p.Protocol != "udp" {
				continue // refused by the plan
			}
			wanted[keyOf(p)] = true
			if !s.published[keyOf(p)] {
				fresh = append(fresh, keyOf(p))
			}
		}
	}
	for k := range s.published {
		if !wanted[k] {
			gone = append(gone, k)
		}
	}
	return gone, fresh
}

// unwanted are interfaces that are there and not wanted.
func (s *serverState) unwanted(want vserver.ServerNetwork) []portPlace {
	var out []portPlace
	for nic, p := range s.ports {
		if !slices.ContainsFunc(want.NICs, func(l vserver.Link) bool { return l.Name == nic }) {
			out = append(out, p)
		}
	}
	return out
}

// changedRules removes what an interface had at another address, on another network, or
// while it was filtered.
func changedRules(old portPlace, p portPlan) batch {
	b := batch{}
	moved := old.network != p.network || old.note.Address.Addr() != p.link.Address.Addr()
	if moved && old.network != "" && old.note.Address.IsValid() {
		b.goneElements = append(b.goneElements, trackedElement(p.id, old.network, old.note.Address.Addr()))
	}
	if old.flows && !p.link.Filtered {
		b.goneSets = append(b.goneSets, flowsOf(p.id))
	}
	return b
}

// note remembers what is being made, before it is: Remove must know of it.
func (m *Manager) note(server string, plan serverPlan) {
	m.mu.Lock()
	defer m.mu.Unlock()
	s := m.stateOf(server)
	for _, p := range plan.ports {
		had := s.ports[p.id.NIC]
		s.ports[p.id.NIC] = portPlace{noteOf(server, p.link, had.note.Class), p.network, had.flows || p.link.Filtered}
	}
}

// forget gives host ports back.
func (m *Manager) forget(server string, gone []publishKey) {
	m.mu.Lock()
	defer m.mu.Unlock()
	s := m.stateOf(server)
	for _, k := range gone {
		delete(s.published, k)
	}
	if len(s.ports) == 0 && len(s.published) == 0 && m.wanted[server].ID == "" {
		delete(m.servers, server) // it was refused
	}
}

// claim takes host ports that a server did not publish before, if nobody has them.
func (m *Manager) claim(server string, fresh []publishKey) error {
	if len(fresh) == 0 {
		return nil
	}
	var listening map[publishKey]bool
	if err := m.inside(func() (err error) { listening, err = listeners(); return err }); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, k := range fresh {
		if listening[k] {
			return fault.New(fault.Exists, "publish host port %s: a program of the host listens on it: choose another", k)
		}
		for id, s := range m.servers {
			if id != server && s.published[k] {
				return fault.New(fault.Exists, "publish host port %s: server %s has it: choose another", k, id)
			}
		}
	}
	for _, k := range fresh {
		m.stateOf(server).published[k] = true
	}
	return nil
}

// connect makes the links of a running server.
func (m *Manager) connect(ctx context.Context, pid int, plan serverPlan, old *serverState) error {
	g, err := m.openGuest(pid)
	if err != nil {
		return err
	}
	defer g.close()
	if err := g.loopback(); err != nil {
		return err
	}
	for _, p := range plan.ports {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := m.connectPort(g, p, old.ports[p.id.NIC]); err != nil {
			return fmt.Errorf("interface %s: %w", p.id.NIC, err)
		}
	}
	return nil
}

func (m *Manager) connectPort(g *guest, p portPlan, old portPlace) error {
	host, made, err := m.pair(g, p)
	if err != nil {
		return err
	}
	br, err := m.link(p.bridge)
	if err != nil {
		return err
	}
	if br == nil {
		return fault.New(fault.Precondition, "bridge %s of network %s is gone: set the network again", p.bridge, p.network)
	}
	if err := m.setLink(host, p.mtu, nil); err != nil {
		return err
	}
	if err := m.configurePort(host, br, p, old, made); err != nil {
		return err
	}
	class, err := m.shapePort(host, p)
	if err != nil {
		return err
	}
	note := noteOf(p.id.Server, p.link, class)
	if host.Attrs().Alias != note.String() {
		if err := m.h.LinkSetAlias(host, note.String()); err != nil {
			return fmt.Errorf("label %s: %w", host.Attrs().Name, err)
		}
	}
	m.mu.Lock()
	m.stateOf(p.id.Server).ports[p.id.NIC] = portPlace{note, p.network, p.link.Filtered}
	m.mu.Unlock()
	if err := m.up(host); err != nil {
		return err
	}
	if err := g.configure(host.Attrs().ParentIndex, p, old.note, made); err != nil {
		return err
	}
	if made {
		m.awaitCarrier(host.Attrs().Name)
	}
	if made || old.note.Address != p.link.Address || old.note.MAC != p.link.MAC {
		return m.announce(br, p)
	}
	return nil
}

// carrierPatience is how long a new port may take until it forwards: a millisecond as a rule.
const carrierPatience = time.Second

// awaitCarrier returns when a port forwards. The kernel tells the bridge of a new link's
// carrier a little later; what is sent before that is lost, and TCP's first retry takes 1 s.
// A server that already took its end down is not waited for any longer than that.
func (m *Manager) awaitCarrier(name string) {
	for deadline := time.Now().Add(carrierPatience); time.Now().Before(deadline); time.Sleep(500 * time.Microsecond) {
		l, err := m.link(name)
		if l == nil || err != nil || l.Attrs().OperState == netlink.OperUp {
			return
		}
	}
}

// announce says in a broadcast on the network, in the server's name, where its address is, so
// that other hosts and neighbours that knew it elsewhere learn of it.
func (m *Manager) announce(br netlink.Link, p portPlan) error {
	mac, err := net.ParseMAC(p.link.MAC)
	if err != nil {
		return err
	}
	to := unix.SockaddrLinklayer{Ifindex: br.Attrs().Index, Protocol: htons(typeARP), Halen: 6, Addr: [8]byte{255, 255, 255, 255, 255, 255}}
	err = unix.Sendto(m.packet, announcement(mac, p.link.Address.Addr()), 0, &to)
	return wrapf(err, "announce %s", p.link.Address.Addr())
}

func htons(v uint16) uint16 { return binary.BigEndian.Uint16(binary.NativeEndian.AppendUint16(nil, v)) }

// pair finds the interface's two ends, or makes them.
func (m *Manager) pair(g *guest, p portPlan) (host netlink.Link, made bool, err error) {
	name := p.id.link()
	host, err = m.link(name)
	if err != nil {
		return nil, false, err
	}
	if host != nil && g.has(m.h, host) {
		return host, false, nil
	}
	// Its other end is in a namespace that is going away, or was never moved.
	if err := m.removeLink(name); err != nil {
		return nil, false, err
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU, attrs.Alias = name, p.mtu, noteOf(p.id.Server, p.link, 0).String()
	mac, err := net.ParseMAC(p.link.MAC)
	if err != nil {
		return nil, false, err
	}
	err = m.h.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: p.id.NIC, PeerHardwareAddr: mac, PeerMTU: uint32(p.mtu), PeerNamespace: netlink.NsFd(g.ns)})
	if errors.Is(err, unix.EEXIST) {
		return nil, false, fault.New(fault.Unavailable, "make link: the server has an interface %s of its own", p.id.NIC)
	}
	if err != nil {
		return nil, false, fmt.Errorf("make link %s: %w", name, err)
	}
	if host, err = m.link(name); host == nil {
		return nil, false, errors.Join(err, fault.New(fault.Unavailable, "link %s is gone: the server has ended", name))
	}
	return host, true, nil
}

// configurePort makes the host end a port of the bridge that learns nothing from the server:
// its address is an entry that frames from elsewhere can't move.
func (m *Manager) configurePort(host, br netlink.Link, p portPlan, old portPlace, made bool) error {
	name := host.Attrs().Name
	if err := sysctl("net/ipv6/conf/"+name+"/disable_ipv6", "1"); err != nil {
		return err
	}
	moved := host.Attrs().MasterIndex != br.Attrs().Index
	if err := m.join(host, br); err != nil {
		return err
	}
	if err := m.h.LinkSetLearning(host, false); err != nil {
		return fmt.Errorf("stop %s from learning: %w", name, err)
	}
	if err := m.h.LinkSetFlood(host, false); err != nil {
		return fmt.Errorf("stop %s from flooding: %w", name, err)
	}
	if err := m.h.LinkSetHairpin(host, true); err != nil {
		return fmt.Errorf("let %s send back: %w", name, err)
	}
	if !made && !moved && old.note.MAC != "" && old.note.MAC != p.link.MAC {
		if mac, err := net.ParseMAC(old.note.MAC); err == nil {
			if err := m.h.NeighDel(portEntry(host, mac)); err != nil && !errors.Is(err, unix.ENOENT) {
				return fmt.Errorf("remove forwarding entry %s of %s: %w", mac, name, err)
			}
		}
	}
	mac, err := net.ParseMAC(p.link.MAC)
	if err != nil {
		return err
	}
	return wrapf(m.h.NeighSet(portEntry(host, mac)), "make forwarding entry %s of %s", mac, name)
}

func portEntry(host netlink.Link, mac net.HardwareAddr) *netlink.Neigh {
	return &netlink.Neigh{LinkIndex: host.Attrs().Index, Family: unix.AF_BRIDGE, State: netlink.NUD_NOARP,
		Flags: netlink.NTF_MASTER | netlink.NTF_STICKY, HardwareAddr: mac}
}

// Remove implements vserver.Networks.
func (m *Manager) Remove(_ context.Context, id string) error {
	m.topology.RLock()
	defer m.topology.RUnlock()
	defer m.serial.lock(id)()
	m.mu.Lock()
	old := m.servers[id].clone()
	m.mu.Unlock()
	var places []portPlace
	for _, p := range old.ports {
		places = append(places, p)
	}
	published := noPublishRules(id, slices.Collect(maps.Keys(old.published)), true)
	if err := m.dropPorts(id, places, published); err != nil {
		return fmt.Errorf("remove network of server %s: %w", id, err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.servers, id)
	delete(m.wanted, id)
	return nil
}

// dropPorts removes interfaces and whatever rules are gone with them: links first, so that
// none is ever without its rules.
func (m *Manager) dropPorts(server string, places []portPlace, rules batch) error {
	if len(places) == 0 && rules.empty() {
		return nil
	}
	for _, p := range places {
		if err := m.removeLink(p.note.link()); err != nil {
			return err
		}
		if err := m.inside(func() error { return m.unshape(p.note.Class) }); err != nil {
			return err
		}
		rules.merge(noPortRules(p.note, p.network))
	}
	if err := m.nft.apply(rules); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, p := range places {
		if m.numbers[p.note.Class] == p.note.portID {
			delete(m.numbers, p.note.Class)
		}
		delete(m.stateOf(server).ports, p.note.NIC)
	}
	return nil
}

// restore makes all rules again as they were last set, and learns what the kernel has.
func (m *Manager) restore() error {
	if err := m.nft.openTables(m.cfg); err != nil {
		return err
	}
	if _, err := m.nft.find(); err != nil {
		return err
	}
	m.mu.Lock()
	networks, wanted := maps.Clone(m.networks), maps.Clone(m.wanted)
	m.mu.Unlock()
	b := batch{elements: peerElements(peersOf(networks))}
	for _, n := range networks {
		b.merge(networkRules(n, nil))
	}
	if err := m.nft.apply(b); err != nil {
		return err
	}
	for _, w := range wanted {
		plan, err := planServer(w, m.cfg, networks)
		if err != nil {
			return err
		}
		if err := m.nft.applyServer(plan, batch{}); err != nil {
			return fmt.Errorf("server %s: %w", w.ID, err)
		}
	}
	return nil
}
