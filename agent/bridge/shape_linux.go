package bridge

import (
	"encoding/binary"
	"errors"
	"fmt"
	"runtime"
	"unsafe"

	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// direction is one of the two ways that traffic goes.
type direction struct {
	ifb    string
	parent uint32 // of filters at the host end
	host   int64  // bits per second of all
}

func (m *Manager) down() direction {
	return direction{ifbDown, netlink.HANDLE_MIN_EGRESS, m.cfg.HostIngress}
}

func (m *Manager) upwards() direction {
	return direction{ifbUp, netlink.HANDLE_MIN_INGRESS, m.cfg.HostEgress}
}

// openShaping makes both ifbs, with the host's bounds of now.
func (m *Manager) openShaping() error {
	return m.inside(func() error { return errors.Join(m.openIFB(m.down()), m.openIFB(m.upwards())) })
}

// openIFB makes the device that shapes a direction.
func (m *Manager) openIFB(d direction) error {
	l, err := m.link(d.ifb)
	if err != nil {
		return err
	}
	if l == nil {
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.TxQLen, attrs.Alias = d.ifb, shapedRing, "reflejo shaping"
		if err := m.h.LinkAdd(&netlink.Ifb{LinkAttrs: attrs}); err != nil {
			return fmt.Errorf("make %s: %w", d.ifb, err)
		}
		if l, err = m.h.LinkByName(d.ifb); err != nil {
			return fmt.Errorf("find %s: %w", d.ifb, err)
		}
		if err := sysctl("net/ipv6/conf/"+d.ifb+"/disable_ipv6", "1"); err != nil {
			return err
		}
	}
	if l.Type() != "ifb" {
		return fault.New(fault.Exists, "link %s is a %s of somebody else", d.ifb, l.Type())
	}
	htb := netlink.NewHtb(netlink.QdiscAttrs{LinkIndex: l.Attrs().Index, Handle: htbMajor << 16, Parent: netlink.HANDLE_ROOT})
	if err := m.h.QdiscAdd(htb); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("make queue of %s: %w", d.ifb, err)
	}
	if err := setClass(l, htbRoot, htbMajor<<16, hostRate(d.host)); err != nil {
		return err
	}
	if err := m.sweep(l); err != nil {
		return err
	}
	return m.up(l)
}

// sweep removes classes of interfaces that are no more.
func (m *Manager) sweep(ifb netlink.Link) error {
	list, err := m.h.ClassList(ifb, 0)
	if err != nil {
		return fmt.Errorf("list classes of %s: %w", ifb.Attrs().Name, err)
	}
	for _, c := range list {
		handle := c.Attrs().Handle
		number := uint16(handle&0xffff) >> 4
		if _, used := m.numbers[number]; used || handle == htbRoot || classID(number) != handle {
			continue
		}
		if err := removeClass(ifb, handle); err != nil {
			return err
		}
	}
	return nil
}

// shapePort makes an interface's classes and leads its traffic through them, and returns the
// number of its classes: 0 if it never had any.
func (m *Manager) shapePort(host netlink.Link, p portPlan) (uint16, error) {
	m.mu.Lock()
	number := m.stateOf(p.id.Server).ports[p.id.NIC].note.Class
	if number == 0 && (p.shapeDown || p.shapeUp) {
		number = m.freeNumber()
		if number == 0 {
			m.mu.Unlock()
			return 0, errNoClass()
		}
		m.numbers[number] = p.id
		s := m.stateOf(p.id.Server)
		place := s.ports[p.id.NIC]
		place.note.Class = number
		s.ports[p.id.NIC] = place
	}
	m.mu.Unlock()
	if number == 0 {
		return 0, nil
	}
	for _, way := range []struct {
		d     direction
		r     rate
		shape bool
	}{{m.down(), p.down, p.shapeDown}, {m.upwards(), p.up, p.shapeUp}} {
		if !way.shape {
			if err := m.release(host, way.d); err != nil {
				return 0, err
			}
			continue
		}
		if err := m.lead(host, way.d, number, way.r); err != nil {
			return 0, err
		}
	}
	return number, nil
}

// freeNumber is a number no interface has, 0 if there is none. The caller holds mu.
func (m *Manager) freeNumber() uint16 {
	for n := uint16(1); n <= classes; n++ {
		if _, used := m.numbers[n]; !used {
			return n
		}
	}
	return 0
}

// lead sends a direction's traffic through a class of rate r.
func (m *Manager) lead(host netlink.Link, d direction, number uint16, r rate) error {
	ifb, err := m.h.LinkByName(d.ifb)
	if err != nil {
		return fmt.Errorf("find %s: %w", d.ifb, err)
	}
	if err := setClass(ifb, classID(number), htbRoot, r); err != nil {
		return err
	}
	if err := setQueue(ifb, queueHandle(number), classID(number), r.queue); err != nil {
		return err
	}
	return m.redirect(host, d, ifb, classID(number))
}

// redirect adds the two filters that put packets into the class and hand them to the ifb.
func (m *Manager) redirect(host netlink.Link, d direction, ifb netlink.Link, class uint32) error {
	name := fmt.Sprintf("reflejo %x", class)
	filters, err := m.h.FilterList(host, d.parent)
	if err != nil {
		return fmt.Errorf("list filters of %s: %w", host.Attrs().Name, err)
	}
	classed, redirected := false, false
	for _, f := range filters {
		switch f := f.(type) {
		case *netlink.BpfFilter:
			classed = classed || f.Name == name
		case *netlink.U32:
			for _, a := range f.Actions {
				mirred, ok := a.(*netlink.MirredAction)
				redirected = redirected || ok && mirred.Ifindex == ifb.Attrs().Index
			}
		}
	}
	if classed && redirected {
		return nil
	}
	if err := m.release(host, d); err != nil {
		return err
	}
	clsact := &netlink.Clsact{QdiscAttrs: netlink.QdiscAttrs{LinkIndex: host.Attrs().Index, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT}}
	if err := m.h.QdiscAdd(clsact); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("make filters' queue of %s: %w", host.Attrs().Name, err)
	}
	fd, err := loadProgram(priorityProgram(class))
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	attrs := netlink.FilterAttrs{LinkIndex: host.Attrs().Index, Parent: d.parent, Handle: 1, Priority: 1, Protocol: unix.ETH_P_ALL}
	if err := m.h.FilterAdd(&netlink.BpfFilter{FilterAttrs: attrs, Fd: fd, Name: name, DirectAction: true}); err != nil {
		return fmt.Errorf("put packets of %s into their class: %w", host.Attrs().Name, err)
	}
	attrs.Handle, attrs.Priority = 0, 2
	if err := m.h.FilterAdd(&netlink.U32{FilterAttrs: attrs, RedirIndex: ifb.Attrs().Index}); err != nil {
		return fmt.Errorf("lead packets of %s to %s: %w", host.Attrs().Name, ifb.Attrs().Name, err)
	}
	return nil
}

// release lets a direction's traffic go its own way. The class stays until the interface
// goes: what waits in it is still sent.
func (m *Manager) release(host netlink.Link, d direction) error {
	for _, priority := range []uint16{2, 1} {
		attrs := netlink.FilterAttrs{LinkIndex: host.Attrs().Index, Parent: d.parent, Priority: priority, Protocol: unix.ETH_P_ALL}
		var f netlink.Filter = &netlink.GenericFilter{FilterAttrs: attrs, FilterType: "u32"}
		if priority == 1 {
			f = &netlink.GenericFilter{FilterAttrs: attrs, FilterType: "bpf"}
		}
		err := m.h.FilterDel(f)
		if err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.EINVAL) { // EINVAL: no queue for filters
			return fmt.Errorf("stop shaping %s: %w", host.Attrs().Name, err)
		}
	}
	return nil
}

// unshape removes an interface's classes.
func (m *Manager) unshape(number uint16) error {
	if number == 0 {
		return nil
	}
	for _, name := range []string{ifbDown, ifbUp} {
		l, err := m.link(name)
		if err != nil {
			return err
		}
		if l == nil {
			continue
		}
		if err := removeClass(l, classID(number)); err != nil {
			return err
		}
	}
	return nil
}

func removeClass(l netlink.Link, class uint32) error {
	_, err := tcRequest(unix.RTM_DELTCLASS, 0, l, class, htbRoot).Execute(unix.NETLINK_ROUTE, 0)
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	return wrapf(err, "remove class %x of %s", class, l.Attrs().Name)
}

func tcRequest(kind, flags int, l netlink.Link, handle, parent uint32) *nl.NetlinkRequest {
	req := nl.NewNetlinkRequest(kind, flags|unix.NLM_F_ACK)
	req.AddData(&nl.TcMsg{Family: nl.FAMILY_ALL, Ifindex: int32(l.Attrs().Index), Handle: handle, Parent: parent})
	return req
}

// setClass makes or changes an HTB class; what waits in it stays. The library's own request
// cuts rates off at 32 bits before it makes its tables.
func setClass(l netlink.Link, class, parent uint32, r rate) error {
	req := tcRequest(unix.RTM_NEWTCLASS, unix.NLM_F_CREATE|unix.NLM_F_REPLACE, l, class, parent)
	req.AddData(nl.NewRtAttr(nl.TCA_KIND, nl.ZeroTerminated("htb")))
	options := nl.NewRtAttr(nl.TCA_OPTIONS, nil)
	options.AddRtAttr(attrHTBParms, r.parms())
	options.AddRtAttr(attrHTBRate64, nl.Uint64Attr(r.assured))
	options.AddRtAttr(attrHTBCeil64, nl.Uint64Attr(r.ceil))
	req.AddData(options)
	_, err := req.Execute(unix.NETLINK_ROUTE, 0)
	return wrapf(err, "set class %x of %s to %s", class, l.Attrs().Name, r)
}

// setQueue makes or changes the queue of a class, bounded in bytes.
func setQueue(l netlink.Link, handle, class, limit uint32) error {
	req := tcRequest(unix.RTM_NEWQDISC, unix.NLM_F_CREATE|unix.NLM_F_REPLACE, l, handle, class)
	req.AddData(nl.NewRtAttr(nl.TCA_KIND, nl.ZeroTerminated("bfifo")))
	req.AddData(nl.NewRtAttr(nl.TCA_OPTIONS, binary.NativeEndian.AppendUint32(nil, limit)))
	_, err := req.Execute(unix.NETLINK_ROUTE, 0)
	return wrapf(err, "set queue of class %x of %s to %d bytes", class, l.Attrs().Name, limit)
}

// queueDrops counts the packets that an interface's queues refused, towards the server and
// from it.
func (m *Manager) queueDrops(number uint16) (down, up int64, err error) {
	if number == 0 {
		return 0, 0, nil
	}
	err = m.inside(func() error {
		for name, count := range map[string]*int64{ifbDown: &down, ifbUp: &up} {
			l, err := m.link(name)
			if err != nil {
				return err
			}
			if l == nil {
				continue
			}
			if *count, err = classDrops(l, classID(number)); err != nil {
				return err
			}
		}
		return nil
	})
	return down, up, err
}

// classDrops reads TCA_STATS2 of one class.
func classDrops(l netlink.Link, class uint32) (int64, error) {
	msgs, err := tcRequest(unix.RTM_GETTCLASS, unix.NLM_F_ECHO, l, class, 0).Execute(unix.NETLINK_ROUTE, unix.RTM_NEWTCLASS)
	if errors.Is(err, unix.ENOENT) {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("read class %x of %s: %w", class, l.Attrs().Name, err)
	}
	for _, msg := range msgs {
		attrs, err := nl.ParseRouteAttr(msg[nl.DeserializeTcMsg(msg).Len():])
		if err != nil {
			return 0, fmt.Errorf("read class %x of %s: %w", class, l.Attrs().Name, err)
		}
		for _, a := range attrs {
			if a.Attr.Type&^(unix.NLA_F_NESTED|unix.NLA_F_NET_BYTEORDER) != nl.TCA_STATS2 {
				continue
			}
			stats, err := nl.ParseRouteAttr(a.Value)
			if err != nil {
				return 0, fmt.Errorf("read class %x of %s: %w", class, l.Attrs().Name, err)
			}
			for _, s := range stats {
				if s.Attr.Type == nl.TCA_STATS_QUEUE && len(s.Value) >= 12 {
					return int64(binary.NativeEndian.Uint32(s.Value[8:])), nil
				}
			}
		}
	}
	return 0, nil
}

// loadProgram gives the kernel a program for traffic control.
func loadProgram(code []byte) (int, error) {
	license := []byte("GPL\x00")
	var pin runtime.Pinner // the kernel gets addresses as numbers
	defer pin.Unpin()
	pin.Pin(&code[0])
	pin.Pin(&license[0])
	attr := struct {
		kind, count          uint32
		code, license        uint64
		logLevel, logSize    uint32
		log                  uint64
		kernelVersion, flags uint32
		name                 [16]byte
	}{kind: unix.BPF_PROG_TYPE_SCHED_CLS, count: uint32(len(code) / 8),
		code: uint64(uintptr(unsafe.Pointer(&code[0]))), license: uint64(uintptr(unsafe.Pointer(&license[0])))}
	fd, _, errno := unix.Syscall(unix.SYS_BPF, unix.BPF_PROG_LOAD, uintptr(unsafe.Pointer(&attr)), unsafe.Sizeof(attr))
	if errno != 0 {
		return -1, fmt.Errorf("load traffic class program: %w", errno)
	}
	return int(fd), nil
}
