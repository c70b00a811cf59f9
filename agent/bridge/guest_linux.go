package bridge

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
)

// guest is a server's network namespace. What is in it belongs to the server: it is added to
// where something is missing, and read by name or index only, never as a list of any length.
type guest struct {
	ns netns.NsHandle
	h  *netlink.Handle
}

// openGuest opens the network namespace of a process; the host's own is refused.
func (m *Manager) openGuest(pid int) (*guest, error) {
	ns, err := netns.GetFromPid(pid)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ESRCH) {
		return nil, fault.New(fault.NotFound, "open network namespace: process %d has ended", pid)
	}
	if err != nil {
		return nil, fmt.Errorf("open network namespace of process %d: %w", pid, err)
	}
	id, err := nsIDOf(ns)
	if err == nil && id == m.home {
		err = fault.New(fault.Invalid, "process %d is in the host's network namespace", pid)
	}
	if err != nil {
		ns.Close()
		return nil, err
	}
	h, err := netlink.NewHandleAt(ns, unix.NETLINK_ROUTE)
	if err != nil {
		ns.Close()
		return nil, fmt.Errorf("open netlink of process %d: %w", pid, err)
	}
	return &guest{ns, h}, nil
}

func (g *guest) close() {
	g.h.Close()
	g.ns.Close()
}

// has tells whether the other end of a host end is in this namespace.
func (g *guest) has(home *netlink.Handle, host netlink.Link) bool {
	id, err := home.GetNetNsIdByFd(int(g.ns))
	if err != nil || id < 0 || host.Attrs().NetNsID != id || host.Attrs().ParentIndex == 0 {
		return false
	}
	l, err := g.h.LinkByIndex(host.Attrs().ParentIndex)
	return err == nil && l.Type() == "veth" && l.Attrs().ParentIndex == host.Attrs().Index
}

func (g *guest) loopback() error {
	lo, err := g.h.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("find loopback: %w", err)
	}
	if lo.Attrs().Flags&net.FlagUp != 0 {
		return nil
	}
	return wrapf(g.h.LinkSetUp(lo), "start loopback")
}

// configure gives the server's end what it lacks. Of a running server nothing is taken away
// but the address and the route that it was given before and that are no longer wanted.
func (g *guest) configure(index int, p portPlan, old portNote, made bool) error {
	l, err := g.h.LinkByIndex(index)
	if err != nil {
		return fmt.Errorf("find it in the server: %w", err)
	}
	mac, err := net.ParseMAC(p.link.MAC)
	if err != nil {
		return err
	}
	if err := setLink(g.h, l, p.mtu, mac); err != nil {
		return err
	}
	if err := g.h.AddrAdd(l, &netlink.Addr{IPNet: ipNet(p.link.Address)}); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("give it address %s: %w", p.link.Address, err)
	}
	if !made && old.Address.IsValid() && old.Address != p.link.Address {
		if err := g.h.AddrDel(l, &netlink.Addr{IPNet: ipNet(old.Address)}); err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) {
			return fmt.Errorf("take address %s from it: %w", old.Address, err)
		}
	}
	if l.Attrs().Flags&net.FlagUp == 0 {
		if err := g.h.LinkSetUp(l); err != nil {
			return fmt.Errorf("start it: %w", err)
		}
	}
	return g.defaultRoute(l, p.link.Gateway, old.Gateway, made)
}

func (g *guest) defaultRoute(l netlink.Link, want, old netip.Addr, made bool) error {
	route := func(gw netip.Addr) *netlink.Route {
		return &netlink.Route{LinkIndex: l.Attrs().Index, Gw: net.IP(gw.AsSlice()), Dst: &net.IPNet{IP: net.IPv4zero.To4(), Mask: net.CIDRMask(0, 32)}}
	}
	if !made && old.IsValid() && old != want {
		if err := g.h.RouteDel(route(old)); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("remove its route via %s: %w", old, err)
		}
	}
	if !want.IsValid() {
		return nil
	}
	if err := g.h.RouteAdd(route(want)); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("route via %s: %w", want, err)
	}
	return nil
}
