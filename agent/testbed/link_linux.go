package testbed

import (
	"errors"
	"fmt"
	"os"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// bridgeName is the bridge in the switch's network namespace.
const bridgeName = "switch"

// switchPlace is the place of the bridge that joins all others.
const switchPlace = "switch"

// inNetns gives f a netlink handle of a pinned network namespace.
func inNetns(path string, f func(*netlink.Handle) error) error {
	ns, err := netns.GetFromPath(path)
	if err != nil {
		return fmt.Errorf("open namespace %s: %w", path, err)
	}
	defer ns.Close()
	h, err := netlink.NewHandleAt(ns, unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("open netlink in %s: %w", path, err)
	}
	defer h.Close()
	return f(h)
}

// upSwitch makes the switch.
func (n names) upSwitch() error {
	path := n.netns(switchPlace)
	if err := makeNetns(path); err != nil {
		return err
	}
	return inNetns(path, func(h *netlink.Handle) error {
		if err := upLink(h, "lo"); err != nil {
			return err
		}
		bridge := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: bridgeName}}
		if err := h.LinkAdd(bridge); err != nil && !errors.Is(err, os.ErrExist) {
			return fmt.Errorf("add bridge: %w", err)
		}
		return upLink(h, bridgeName)
	})
}

// upPlace makes a place's network namespace and joins it to the switch. Both ends of the
// link are born inside the namespaces.
func (n names) upPlace(place string) error {
	path := n.netns(place)
	if err := makeNetns(path); err != nil {
		return err
	}
	if err := n.plug(place); err != nil {
		return err
	}
	return inNetns(path, func(h *netlink.Handle) error {
		if err := upLink(h, "lo"); err != nil {
			return err
		}
		link, err := h.LinkByName(linkName)
		if err != nil {
			return fmt.Errorf("find %s of %s: %w", linkName, place, err)
		}
		addr, err := netlink.ParseAddr(fmt.Sprintf("%s/%d", Address(place), prefixBits))
		if err != nil {
			return err
		}
		if err := h.AddrReplace(link, addr); err != nil {
			return fmt.Errorf("set address of %s: %w", place, err)
		}
		return upLink(h, linkName)
	})
}

// plug makes the link between a place and the switch, unless it is there, and turns it on.
func (n names) plug(place string) error {
	ns, err := netns.GetFromPath(n.netns(place))
	if err != nil {
		return fmt.Errorf("open namespace of %s: %w", place, err)
	}
	defer ns.Close()
	return inNetns(n.netns(switchPlace), func(h *netlink.Handle) error {
		bridge, err := h.LinkByName(bridgeName)
		if err != nil {
			return fmt.Errorf("find bridge: %w", err)
		}
		port, err := h.LinkByName(place)
		if errors.As(err, new(netlink.LinkNotFoundError)) {
			port = &netlink.Veth{
				LinkAttrs:        netlink.LinkAttrs{Name: place},
				PeerName:         linkName,
				PeerHardwareAddr: hardwareAddr(place),
				PeerNamespace:    netlink.NsFd(ns),
			}
			err = h.LinkAdd(port)
		}
		if err != nil {
			return fmt.Errorf("connect %s: %w", place, err)
		}
		if err := h.LinkSetMaster(port, bridge); err != nil {
			return fmt.Errorf("put port %s on the bridge: %w", place, err)
		}
		return upLink(h, place)
	})
}

// unplug turns a place's port off: what it sends and what is sent to it is dropped, and
// nobody is told.
func (n names) unplug(place string) error {
	return inNetns(n.netns(switchPlace), func(h *netlink.Handle) error {
		port, err := h.LinkByName(place)
		if err != nil {
			return fmt.Errorf("find port %s: %w", place, err)
		}
		if err := h.LinkSetDown(port); err != nil {
			return fmt.Errorf("turn port %s off: %w", place, err)
		}
		return nil
	})
}

// dropNetns deletes all links of a network namespace, so that nothing of it stays even if
// somebody still holds it, and its pin.
func dropNetns(path string) error {
	if isPinned(path) {
		err := inNetns(path, func(h *netlink.Handle) error {
			links, err := h.LinkList()
			if err != nil {
				return fmt.Errorf("list links of %s: %w", path, err)
			}
			for _, link := range links {
				if link.Attrs().Name == "lo" {
					continue
				}
				// Gone with its other end, or one that can't be deleted (a kernel's own tunnel).
				if err := h.LinkDel(link); err != nil && !errors.Is(err, unix.ENODEV) && !errors.Is(err, unix.EOPNOTSUPP) {
					return fmt.Errorf("delete link %s of %s: %w", link.Attrs().Name, path, err)
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return unpin(path)
}

func upLink(h *netlink.Handle, name string) error {
	link, err := h.LinkByName(name)
	if err != nil {
		return fmt.Errorf("find link %s: %w", name, err)
	}
	if err := h.LinkSetUp(link); err != nil {
		return fmt.Errorf("set link %s up: %w", name, err)
	}
	return nil
}
