package network

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
	"github.com/reflejo/terraform-provider-reflejo/agent/vserver"
)

// Edge makes networks exist in the kernel (package bridge). See vserver.Networks.
type Edge interface {
	SetNetwork(ctx context.Context, want vserver.Network) error
	RemoveNetwork(ctx context.Context, id string) error
}

// Records is where definitions are kept (a bucket of package store).
type Records interface {
	Put(key string, v any) error
	Delete(key string) error
	ForEach(f func(key string, value []byte) error) error
}

// Servers tells who is on a network (package vserver). It must not call back.
type Servers interface {
	UsersOfNetwork(id string) int
	AddressesOf(networkID string) map[netip.Addr]bool
}

// Config is what a manager is made of.
type Config struct {
	Host        string
	DefaultCIDR netip.Prefix // of the host's default network
	Underlay    netip.Addr   // this host's own, checked against definitions
	Records     Records
	Loans       Records // addresses that servers took along; nil lends none
	Exhausted   func()  // told when addresses ran out of which some are lent; must not wait. May be nil
	Edge        Edge
	Log         hclog.Logger
}

// Manager keeps the networks of one host.
type Manager struct {
	cfg Config

	change  sync.Mutex // one Put or Delete at a time
	mu      sync.Mutex
	records map[string]record
	closing map[string]bool // being deleted: nobody may join any more
	loans   map[string]Loan
	servers Servers
}

type record struct {
	Definition Definition
	Created    time.Time
	Default    bool
	Deleting   bool
}

// DefaultName is the name of the network for servers without networks.
const DefaultName = "default"

// NewManager loads the networks. SetServers must be called before anything else, then Recover.
func NewManager(cfg Config) (*Manager, error) {
	if cfg.Log == nil {
		cfg.Log = hclog.NewNullLogger()
	}
	m := &Manager{cfg: cfg, records: map[string]record{}, closing: map[string]bool{}, loans: map[string]Loan{}}
	err := cfg.Records.ForEach(func(key string, value []byte) error {
		var r record
		if err := json.Unmarshal(value, &r); err != nil {
			return fmt.Errorf("read record of network %s: %w", key, err)
		}
		m.records[key] = r
		if r.Deleting {
			m.closing[key] = true
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return m, m.loadLoans()
}

// SetServers says who knows the users of networks; networks and servers need each other.
func (m *Manager) SetServers(s Servers) { m.servers = s }

// Recover makes the default network if it is missing, sets every network again to what its
// record says, and finishes deletions.
func (m *Manager) Recover(ctx context.Context) error {
	if err := m.makeDefault(); err != nil {
		return err
	}
	m.mu.Lock()
	all := slices.Collect(maps.Values(m.records))
	m.mu.Unlock()
	for _, r := range all {
		if r.Deleting {
			if err := m.remove(ctx, r.Definition.ID); err != nil {
				return err
			}
			continue
		}
		if err := m.cfg.Edge.SetNetwork(ctx, m.wanted(r.Definition)); err != nil {
			return fmt.Errorf("set network %s: %w", r.Definition.Name, err)
		}
	}
	return nil
}

// makeDefault records the default network. Its range can be changed in the agent's
// configuration while no server is on it.
func (m *Manager) makeDefault() error {
	id := defaultID(m.cfg.Host)
	m.mu.Lock()
	r, ok := m.records[id]
	m.mu.Unlock()
	if ok && (r.Definition.CIDR == m.cfg.DefaultCIDR || m.servers.UsersOfNetwork(id) > 0) {
		if r.Definition.CIDR != m.cfg.DefaultCIDR {
			m.cfg.Log.Warn("the default network keeps its range: servers are on it", "range", r.Definition.CIDR.String(), "configured", m.cfg.DefaultCIDR.String())
		}
		return nil
	}
	d := Definition{ID: id, Name: DefaultName, CIDR: m.cfg.DefaultCIDR, NAT: true, Members: []Member{{Host: m.cfg.Host}}}
	if err := d.Validate(); err != nil {
		return fmt.Errorf("make the default network: %w", err)
	}
	return m.save(record{Definition: d, Created: time.Now().UTC(), Default: true})
}

// Put makes a network exist as defined, or changes it in place. A change of the range while
// servers are on it is fault.Precondition.
func (m *Manager) Put(ctx context.Context, d Definition) (View, error) {
	if err := d.Validate(); err != nil {
		return View{}, err
	}
	d.Members = slices.SortedFunc(slices.Values(d.Members), func(a, b Member) int { return a.Slot - b.Slot })
	m.change.Lock()
	defer m.change.Unlock()
	old, existed, err := m.check(d)
	if err != nil {
		return View{}, err
	}
	r := record{Definition: d, Created: time.Now().UTC()}
	if existed {
		r.Created = old.Created
	}
	if err := m.save(r); err != nil {
		return View{}, err
	}
	if err := m.cfg.Edge.SetNetwork(ctx, m.wanted(d)); err != nil {
		err = fmt.Errorf("set network %s: %w", d.Name, err)
		if existed { // back to what worked
			if again := m.save(old); again == nil {
				_ = m.cfg.Edge.SetNetwork(context.WithoutCancel(ctx), m.wanted(old.Definition))
			}
			return View{}, err
		}
		if undo := m.remove(context.WithoutCancel(ctx), d.ID); undo != nil {
			m.cfg.Log.Error("take back a network", "network", d.Name, "error", undo)
		}
		return View{}, err
	}
	return m.view(r), nil
}

// check holds a definition against this host and its other networks.
func (m *Manager) check(d Definition) (old record, existed bool, err error) {
	if slot(d, m.cfg.Host) < 0 {
		return old, false, fault.Field("hosts", "network %s: this host, %s, is not among its hosts", d.Name, m.cfg.Host)
	}
	m.mu.Lock()
	old, existed = m.records[d.ID]
	closing := m.closing[d.ID]
	var others []record
	for id, r := range m.records {
		if id != d.ID {
			others = append(others, r)
		}
	}
	m.mu.Unlock()
	if closing {
		return old, existed, fault.New(fault.Aborted, "network %s: it is being deleted", d.Name)
	}
	if existed && old.Default {
		return old, existed, fault.New(fault.Precondition, "network %s: the default network comes from the agent's configuration", old.Definition.Name)
	}
	for _, o := range others {
		switch {
		case o.Definition.Name == d.Name:
			return old, existed, &fault.Error{Kind: fault.Exists, Field: "name", Err: fmt.Errorf("network name %q: network %s on this host has it", d.Name, o.Definition.ID)}
		case o.Definition.CIDR.Overlaps(d.CIDR):
			return old, existed, &fault.Error{Kind: fault.Exists, Field: "cidr", Err: fmt.Errorf("range %s: overlaps %s of network %s on this host", d.CIDR, o.Definition.CIDR, o.Definition.Name)}
		case len(d.Members) > 1 && len(o.Definition.Members) > 1 && VNI(o.Definition.ID) == VNI(d.ID):
			return old, existed, fault.New(fault.Exists, "network %s: its id collides with that of network %s; choose another id", d.Name, o.Definition.Name)
		}
	}
	if m.cfg.Underlay.IsValid() && d.CIDR.Contains(m.cfg.Underlay) {
		return old, existed, fault.Field("cidr", "range %s: holds this host's own address %s", d.CIDR, m.cfg.Underlay)
	}
	if existed {
		err = m.checkChange(old.Definition, d)
	}
	return old, existed, err
}

// checkChange refuses what servers that are there could not follow.
func (m *Manager) checkChange(old, now Definition) error {
	users := m.servers.UsersOfNetwork(now.ID)
	if users == 0 {
		return nil
	}
	if old.CIDR != now.CIDR {
		return &fault.Error{Kind: fault.Precondition, Field: "cidr", Err: fmt.Errorf("network %s: range %s can't become %s while %d servers are on it here", now.Name, old.CIDR, now.CIDR, users)}
	}
	if a, b := slot(old, m.cfg.Host), slot(now, m.cfg.Host); a != b {
		return fault.Field("hosts", "network %s: slot of host %s can't change from %d to %d while servers are on it", now.Name, m.cfg.Host, a, b)
	}
	used := m.servers.AddressesOf(now.ID)
	for _, mem := range now.Members {
		if slot(old, mem.Host) >= 0 || mem.Host == m.cfg.Host {
			continue
		}
		for a := range used {
			if ShareOf(now.CIDR, a) == mem.Slot && dealt(old, slot(old, m.cfg.Host), mem.Slot) {
				return &fault.Error{Kind: fault.Aborted, Field: "hosts", Err: fmt.Errorf("network %s: host %s can't have slot %d: address %s of its share is in use on %s", now.Name, mem.Host, mem.Slot, a, m.cfg.Host)}
			}
		}
	}
	return nil
}

// dealt reports whether the host in slot may have handed out addresses of a share.
func dealt(d Definition, slot, share int) bool { return slices.Contains(myShares(d, slot), share) }

// Get is a network by id or name.
func (m *Manager) Get(idOrName string) (View, error) {
	r, err := m.find(idOrName)
	if err != nil {
		return View{}, err
	}
	return m.view(r), nil
}

// List is all networks, sorted by name.
func (m *Manager) List() []View {
	m.mu.Lock()
	all := slices.Collect(maps.Values(m.records))
	m.mu.Unlock()
	views := make([]View, 0, len(all))
	for _, r := range all {
		views = append(views, m.view(r))
	}
	slices.SortFunc(views, func(a, b View) int { return strings.Compare(a.Name, b.Name) })
	return views
}

// Delete removes a network nobody uses here; fault.Precondition otherwise.
func (m *Manager) Delete(ctx context.Context, idOrName string) error {
	m.change.Lock()
	defer m.change.Unlock()
	r, err := m.find(idOrName)
	if err != nil {
		return err
	}
	id := r.Definition.ID
	if r.Default {
		return fault.New(fault.Precondition, "delete network %s: it is the host's default network", r.Definition.Name)
	}
	// Close it first, then look who is on it: whoever joins after the look finds it closed.
	m.setClosing(id, true)
	if n := m.servers.UsersOfNetwork(id); n > 0 {
		m.setClosing(id, r.Deleting)
		return fault.New(fault.Precondition, "delete network %s: %d servers are on it here; remove them or their interfaces first", r.Definition.Name, n)
	}
	r.Deleting = true
	if err := m.save(r); err != nil {
		m.setClosing(id, false)
		return err
	}
	return m.remove(ctx, id)
}

func (m *Manager) remove(ctx context.Context, id string) error {
	if err := m.cfg.Edge.RemoveNetwork(ctx, id); err != nil {
		return fmt.Errorf("remove network %s: %w", id, err)
	}
	// Loans stay: hosts on which this network goes on ask this one where its servers went.
	if err := m.cfg.Records.Delete(id); err != nil {
		return fmt.Errorf("forget network %s: %w", id, err)
	}
	m.mu.Lock()
	delete(m.records, id)
	delete(m.closing, id)
	m.mu.Unlock()
	return nil
}

func (m *Manager) setClosing(id string, closing bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if closing {
		m.closing[id] = true
	} else {
		delete(m.closing, id)
	}
}

// Lookup is what package vserver needs to know of a network; "" is the default one.
func (m *Manager) Lookup(idOrName string) (vserver.Segment, error) {
	if idOrName == "" {
		idOrName = defaultID(m.cfg.Host)
	}
	r, err := m.find(idOrName)
	if err != nil {
		return vserver.Segment{}, err
	}
	d := r.Definition
	return vserver.Segment{ID: d.ID, CIDR: d.CIDR, Gateway: Gateway(d.CIDR, slot(d, m.cfg.Host))}, nil
}

// Allocate chooses an address on a network; see vserver.Segments.
func (m *Manager) Allocate(id, server string, want netip.Addr, used map[netip.Addr]bool) (netip.Addr, error) {
	r, err := m.find(id)
	if err != nil {
		return netip.Addr{}, err
	}
	m.mu.Lock()
	closing := m.closing[id]
	m.mu.Unlock()
	if closing {
		return netip.Addr{}, fault.New(fault.Aborted, "network %s: it is being deleted", r.Definition.Name)
	}
	return m.allocate(r.Definition, server, want, used)
}

func (m *Manager) find(idOrName string) (record, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if r, ok := m.records[idOrName]; ok {
		return r, nil
	}
	for _, r := range m.records {
		if r.Definition.Name == idOrName {
			return r, nil
		}
	}
	return record{}, fault.New(fault.NotFound, "network %q: host %s has none of this id or name", idOrName, m.cfg.Host)
}

func (m *Manager) save(r record) error {
	if err := m.cfg.Records.Put(r.Definition.ID, r); err != nil {
		return fmt.Errorf("record network %s: %w", r.Definition.Name, err)
	}
	m.mu.Lock()
	m.records[r.Definition.ID] = r
	m.mu.Unlock()
	return nil
}

// view is a record as callers see it.
func (m *Manager) view(r record) View {
	d := r.Definition
	w := m.wanted(d)
	used := m.usedOrLent(d.ID)
	return View{Definition: d, Gateway: w.Gateway, VNI: w.VNI, MTU: w.MTU, Servers: m.servers.UsersOfNetwork(d.ID),
		FreeAddresses: Free(d, slot(d, m.cfg.Host), used), Created: r.Created, Default: r.Default}
}

// MTUs inside a network: VXLAN needs 50 bytes of the underlay's packets.
const (
	mtuLocal = 1500
	mtuVXLAN = 1450
)

// wanted is the network as the kernel should have it here.
func (m *Manager) wanted(d Definition) vserver.Network {
	w := vserver.Network{ID: d.ID, Name: d.Name, CIDR: d.CIDR, NAT: d.NAT, Gateway: Gateway(d.CIDR, slot(d, m.cfg.Host)), VNI: VNI(d.ID), MTU: mtuLocal}
	for _, mem := range d.Members {
		if mem.Host != m.cfg.Host {
			w.Peers = append(w.Peers, mem.Address)
		}
	}
	if len(w.Peers) > 0 {
		w.MTU = mtuVXLAN
	}
	return w
}

// slot is a host's slot in a network, -1 where it is no member.
func slot(d Definition, host string) int {
	for _, m := range d.Members {
		if m.Host == host {
			return m.Slot
		}
	}
	return -1
}

// defaultID is the id of a host's default network: the same at every start.
func defaultID(host string) string {
	sum := sha256.Sum256([]byte("default network of " + host))
	h := hex.EncodeToString(sum[:16])
	return h[:8] + "-" + h[8:12] + "-" + h[12:16] + "-" + h[16:20] + "-" + h[20:32]
}
