package bridge

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strings"
	"sync"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
	"github.com/reflejo/terraform-provider-reflejo/agent/vserver"
)

// Manager keeps the networks of the network namespace that it was opened in. It implements
// vserver.Networks; all methods may be called by many goroutines at once.
type Manager struct {
	cfg  Config
	ns   netns.NsHandle
	home nsID // of ns
	h    *netlink.Handle
	nft  *filter
	// packet is a socket for announcements, kept open: to close one takes the kernel some 10 ms.
	packet int

	topology sync.RWMutex // held for writing while a network changes, for reading while a server does
	serial   keyed        // one change of a server at a time

	mu       sync.Mutex
	networks map[string]vserver.Network       // as set in this process
	bridges  map[string]bool                  // ids found or made
	servers  map[string]*serverState          // found or made
	wanted   map[string]vserver.ServerNetwork // as set in this process
	numbers  map[uint16]portID                // shaping classes in use
}

var _ vserver.Networks = (*Manager)(nil)

// serverState is what the kernel has of a server.
type serverState struct {
	ports     map[string]portPlace // by the name inside
	published map[publishKey]bool
}

// portPlace is where an interface is.
type portPlace struct {
	note    portNote
	network string // "" if not known: the link was gone before this process began
	flows   bool   // there is, or may be, a memory of what it began
}

// Open takes charge of the current thread's network namespace: it switches IPv4 forwarding
// on, makes or renews the base rules, and finds what an earlier process left. The namespace
// is kept until Close; calls may come from any thread.
//
// At the agent's start call Open, then SetNetwork for every network, then Set for every
// server. Until then what is there goes on as it is.
func Open(cfg Config) (*Manager, error) {
	if err := cfg.defaults(); err != nil {
		return nil, err
	}
	runtime.LockOSThread()
	ns, err := netns.Get()
	runtime.UnlockOSThread()
	if err != nil {
		return nil, fmt.Errorf("open network namespace: %w", err)
	}
	m := &Manager{cfg: cfg, ns: ns, packet: -1, networks: map[string]vserver.Network{}, bridges: map[string]bool{},
		servers: map[string]*serverState{}, wanted: map[string]vserver.ServerNetwork{}, numbers: map[uint16]portID{}}
	if err := m.open(); err != nil {
		m.Close()
		return nil, err
	}
	return m, nil
}

func (m *Manager) open() error {
	var err error
	if m.home, err = nsIDOf(m.ns); err != nil {
		return err
	}
	if m.h, err = netlink.NewHandleAt(m.ns, unix.NETLINK_ROUTE); err != nil {
		return fmt.Errorf("open netlink: %w", err)
	}
	if err := m.inside(func() error {
		m.packet, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
		return errors.Join(wrapf(err, "open packet socket"), sysctl("net/ipv4/ip_forward", "1"))
	}); err != nil {
		return err
	}
	m.nft = newFilter(m.ns)
	if err := m.nft.openTables(m.cfg); err != nil {
		return err
	}
	// The rules above are what loads connection tracking.
	if err := m.inside(m.roomForConnections); err != nil {
		return err
	}
	if err := m.find(); err != nil {
		return err
	}
	return m.openShaping()
}

// Close lets go of the namespace. Everything in it stays as it is.
func (m *Manager) Close() {
	if m.h != nil {
		m.h.Close()
	}
	if m.packet >= 0 {
		_ = unix.Close(m.packet)
	}
	m.ns.Close()
}

// find fills in what the kernel has: links by their aliases, rules by their chains.
func (m *Manager) find() error {
	links, err := m.links()
	if err != nil {
		return err
	}
	masters := map[int]string{}
	for _, l := range links {
		if id, ok := networkOf(l); ok {
			masters[l.Attrs().Index] = id
			m.bridges[id] = true
		}
	}
	for _, l := range links {
		if !strings.HasPrefix(l.Attrs().Name, portPrefix) {
			continue
		}
		note, ok := parsePortNote(l.Attrs().Alias)
		if !ok || note.link() != l.Attrs().Name {
			continue
		}
		m.stateOf(note.Server).ports[note.NIC] = portPlace{note, masters[l.Attrs().MasterIndex], true}
		if note.Class != 0 {
			m.numbers[note.Class] = note.portID
		}
	}
	found, err := m.nft.find()
	if err != nil {
		return err
	}
	for _, p := range found.ports {
		if s := m.stateOf(p.Server); s.ports[p.NIC].note.NIC == "" {
			s.ports[p.NIC] = portPlace{note: portNote{portID: p}, flows: true}
		}
	}
	for k, server := range found.published {
		m.stateOf(server).published[k] = true
	}
	return nil
}

// stateOf is a server's state, made if there is none. The caller holds mu or is alone.
func (m *Manager) stateOf(server string) *serverState {
	s := m.servers[server]
	if s == nil {
		s = &serverState{ports: map[string]portPlace{}, published: map[publishKey]bool{}}
		m.servers[server] = s
	}
	return s
}

func networkOf(l netlink.Link) (string, bool) {
	id, ok := strings.CutPrefix(l.Attrs().Alias, networkAlias(""))
	return id, ok && l.Attrs().Name == bridgeName(id)
}

// links lists the links of the namespace; a list that changed while it was read is read again.
func (m *Manager) links() ([]netlink.Link, error) {
	for range 20 {
		links, err := m.h.LinkList()
		if !errors.Is(err, netlink.ErrDumpInterrupted) {
			return links, wrapf(err, "list links")
		}
	}
	return nil, fault.New(fault.Unavailable, "list links: they change faster than they can be read")
}

// link finds a link by name; nil means that there is none.
func (m *Manager) link(name string) (netlink.Link, error) {
	l, err := m.h.LinkByName(name)
	if isNoLink(err) {
		return nil, nil
	}
	return l, wrapf(err, "find link %s", name)
}

func isNoLink(err error) bool {
	var none netlink.LinkNotFoundError
	return errors.As(err, &none) || errors.Is(err, unix.ENODEV)
}

// remove deletes a link of ours; one that is not there is fine.
func (m *Manager) removeLink(name string) error {
	l, err := m.link(name)
	if l == nil || err != nil {
		return err
	}
	if err := m.h.LinkDel(l); err != nil && !isNoLink(err) {
		return fmt.Errorf("remove link %s: %w", name, err)
	}
	return nil
}

// List implements vserver.Networks.
func (m *Manager) List(context.Context) (vserver.NetworkInventory, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	inv := vserver.NetworkInventory{Networks: sortedKeys(m.bridges), Servers: map[string][]string{}}
	for id, s := range m.servers {
		inv.Servers[id] = sortedKeys(s.ports)
	}
	return inv, nil
}

// Usage implements vserver.Networks. An interface whose link is gone is left out; a server
// that is not known is fault.NotFound.
func (m *Manager) Usage(_ context.Context, id string) (map[string]vserver.LinkUsage, error) {
	m.mu.Lock()
	s := m.servers[id]
	var ports []portPlace
	if s != nil {
		for _, p := range s.ports {
			ports = append(ports, p)
		}
	}
	m.mu.Unlock()
	if s == nil {
		return nil, fault.New(fault.NotFound, "read network usage: server %s has no interfaces on this host", id)
	}
	usage := map[string]vserver.LinkUsage{}
	for _, p := range ports {
		l, err := m.link(p.note.link())
		if err != nil {
			return nil, err
		}
		if l == nil || l.Attrs().Statistics == nil {
			continue
		}
		down, up, err := m.queueDrops(p.note.Class)
		if err != nil {
			return nil, err
		}
		st := l.Attrs().Statistics // the host's side: what it sends, the server gets
		usage[p.note.NIC] = vserver.LinkUsage{
			RxBytes: int64(st.TxBytes), RxPackets: int64(st.TxPackets), RxDropped: int64(st.TxDropped) + down,
			TxBytes: int64(st.RxBytes), TxPackets: int64(st.RxPackets), TxDropped: int64(st.RxDropped) + up,
		}
	}
	return usage, nil
}

// nsID tells namespaces apart.
type nsID struct{ dev, ino uint64 }

func nsIDOf(ns netns.NsHandle) (nsID, error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(ns), &st); err != nil {
		return nsID{}, fmt.Errorf("stat network namespace: %w", err)
	}
	return nsID{uint64(st.Dev), st.Ino}, nil
}

// inside runs f on a thread that is in the manager's namespace.
func (m *Manager) inside(f func() error) error { return in(m.ns, f) }

// in runs f on a thread that is in a network namespace, and nowhere else afterwards.
func in(ns netns.NsHandle, f func() error) error {
	runtime.LockOSThread()
	back, err := netns.Get()
	if err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("open network namespace: %w", err)
	}
	defer back.Close()
	if back.Equal(ns) {
		defer runtime.UnlockOSThread()
		return f()
	}
	if err := netns.Set(ns); err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("enter network namespace: %w", err)
	}
	err = f()
	if backErr := netns.Set(back); backErr != nil {
		// The thread stays locked: it ends with its goroutine and no other work gets it.
		return errors.Join(err, fmt.Errorf("leave network namespace: %w", backErr))
	}
	runtime.UnlockOSThread()
	return err
}

// keyed are locks by name.
type keyed struct {
	mu    sync.Mutex
	locks map[string]*keyedLock
}

type keyedLock struct {
	sync.Mutex
	users int
}

// lock waits for the name and returns its unlock.
func (k *keyed) lock(name string) func() {
	k.mu.Lock()
	if k.locks == nil {
		k.locks = map[string]*keyedLock{}
	}
	l := k.locks[name]
	if l == nil {
		l = &keyedLock{}
		k.locks[name] = l
	}
	l.users++
	k.mu.Unlock()
	l.Lock()
	return func() {
		l.Unlock()
		k.mu.Lock()
		if l.users--; l.users == 0 {
			delete(k.locks, name)
		}
		k.mu.Unlock()
	}
}

// roomForConnections makes the host's table of connections large enough for what servers may
// have. The kernel lets only its first network namespace change it, which is no fault.
func (m *Manager) roomForConnections() error {
	if err := raiseSysctl("net/netfilter/nf_conntrack_max", hostConnections); err != nil {
		m.cfg.Log.Debug("the table of connections keeps its size", "error", err)
	}
	return nil
}

// sysctl writes a setting of the current namespace where it differs. One that the kernel
// does not have is fine.
func sysctl(name, value string) error {
	path := "/proc/sys/" + name
	now, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read setting %s: %w", name, err)
	}
	if strings.TrimSpace(string(now)) == value {
		return nil
	}
	return wrapf(os.WriteFile(path, []byte(value), 0), "write setting %s", name)
}

// raiseSysctl makes a number at least so large.
func raiseSysctl(name string, least int) error {
	now, err := os.ReadFile("/proc/sys/" + name)
	if err != nil {
		return fmt.Errorf("read setting %s: %w", name, err)
	}
	var value int
	if _, err := fmt.Sscan(string(now), &value); err != nil || value >= least {
		return err
	}
	return sysctl(name, fmt.Sprint(least))
}
