package vserver

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
)

// Records is where records are kept (a bucket of package store). A Put is durable when it returns.
type Records interface {
	Put(key string, v any) error
	Delete(key string) error
	// ForEach calls f with every record's JSON.
	ForEach(f func(key string, value []byte) error) error
}

// Segments decides about the networks that servers are put on (package network).
type Segments interface {
	// Lookup finds a network by id or name; "" is the host's default network.
	Lookup(idOrName string) (Segment, error)
	// Allocate chooses an address for a server that is not in used, or confirms want where it
	// is valid. What a server took along to another host is confirmed for that one only.
	// Taken or outside: fault.Exists, fault.Invalid. None left: fault.Exhausted.
	Allocate(networkID, server string, want netip.Addr, used map[netip.Addr]bool) (netip.Addr, error)
}

// Segment is what a server needs to know of a network.
type Segment struct {
	ID      string
	CIDR    netip.Prefix
	Gateway netip.Addr
}

// Images finds images by id or name; fault.NotFound where there is none (package image).
type Images interface {
	Find(idOrName string) (Image, error)
}

// Edges are the kernel's sides that a manager works with.
type Edges struct {
	Disks    Disks
	Limits   Limits
	Networks Networks
	Runtime  Runtime
	Preparer Preparer
}

// Config is what a manager is made of.
type Config struct {
	Host     string
	Records  Records
	Edges    Edges
	Segments Segments
	Images   Images
	Captures Captures // nil: this host has no snapshots
	Capacity func() Capacity
	IDs      IDRange // the range that servers' own ranges are cut from
	Parallel int     // operations at once; 0 means 8
	Log      hclog.Logger
	// Superseded says which host took a server over as this one was lost, "" if none did. It
	// is asked before an agent's start starts a server; an error means that nobody who would
	// know could be asked: then the server waits. nil: nobody takes servers over.
	Superseded func(ctx context.Context, r Record) (host string, err error)
	// Stopping is called before a running server is asked to shut down, and waited for, at
	// most for limit: whoever runs something of the host's in the server ends that first. Not
	// for a kill. nil: nobody does.
	Stopping func(ctx context.Context, id string, limit time.Duration)
	// Started is called when a server's init runs, after every Stopping too, and must not
	// wait. nil: nobody needs it.
	Started     func(id string)
	Observe     func(operation string, took time.Duration, err error) // for metrics; may be nil
	Changed     func(v View, was State)                               // a server has settled in another state; may be nil, and must not wait
	RetryDelays []time.Duration                                       // between tries of what nobody waits for (recovery); nil means 1s, 5s, 15s
}

// IDsPerServer is the size of every server's own range of user and group ids.
const IDsPerServer = 65536

// Manager runs the servers of one host. Its methods may be called at any time from any
// goroutine; operations on one server happen one after the other.
type Manager struct {
	cfg   Config
	ctx   context.Context
	stop  context.CancelFunc
	wg    sync.WaitGroup
	slots chan struct{} // bounds operations at once

	mu      sync.Mutex // admission: the set of servers and every change of a record
	servers map[string]*server
	unknown []string // ids that edges know and records don't

	use struct { // of the pool by disks; read for all servers at once
		sync.Mutex
		bytes map[string]int64
		at    time.Time
	}
}

// NewManager loads the records. Nothing is done to any server before Recover.
func NewManager(cfg Config) (*Manager, error) {
	if cfg.Parallel == 0 {
		cfg.Parallel = 8
	}
	if cfg.Log == nil {
		cfg.Log = hclog.NewNullLogger()
	}
	if cfg.Observe == nil {
		cfg.Observe = func(string, time.Duration, error) {}
	}
	if cfg.Changed == nil {
		cfg.Changed = func(View, State) {}
	}
	if cfg.Stopping == nil {
		cfg.Stopping = func(context.Context, string, time.Duration) {}
	}
	if cfg.Started == nil {
		cfg.Started = func(string) {}
	}
	if cfg.RetryDelays == nil {
		cfg.RetryDelays = []time.Duration{time.Second, 5 * time.Second, 15 * time.Second}
	}
	m := &Manager{cfg: cfg, servers: map[string]*server{}, slots: make(chan struct{}, cfg.Parallel)}
	m.ctx, m.stop = context.WithCancel(context.Background())
	err := cfg.Records.ForEach(func(key string, value []byte) error {
		rec, err := decodeRecord(value)
		if err != nil {
			return fmt.Errorf("read record of server %s: %w", key, err)
		}
		s := newServer(m, rec)
		s.stored = sha256.Sum256(value)
		m.servers[key] = s
		return nil
	})
	if err != nil {
		return nil, err
	}
	return m, nil
}

// Close stops managing: running steps are cancelled where they can be and picked up by the
// next Recover. Servers are left as they are.
func (m *Manager) Close() {
	m.stop()
	m.wg.Wait()
}

// Create admits and records a new server and begins to make it. The same spec under the
// same id again is the same request; a creation that failed is begun anew.
func (m *Manager) Create(ctx context.Context, spec Spec) (View, error) {
	spec, err := m.fromSource(spec)
	if err != nil {
		return View{}, err
	}
	spec = spec.WithDefaults()
	if err := spec.Validate(); err != nil {
		return View{}, err
	}
	if s, err := m.find(spec.ID); err == nil {
		if v, again, err := m.createAgain(ctx, s, spec); !again {
			return v, err
		}
	}
	m.mu.Lock()
	if _, ok := m.servers[spec.ID]; ok {
		m.mu.Unlock()
		return View{}, fault.New(fault.Aborted, "create server %s: another request is making it", spec.Name)
	}
	rec, err := m.admitNew(spec)
	if err != nil {
		m.mu.Unlock()
		return View{}, err
	}
	if err := m.cfg.Records.Put(spec.ID, rec); err != nil {
		m.mu.Unlock()
		return View{}, fmt.Errorf("record server %s: %w", spec.Name, err)
	}
	s := newServer(m, rec)
	m.servers[spec.ID] = s
	s.begin()
	m.mu.Unlock()
	m.rebalance(s)
	return s.view(), nil
}

// createAgain answers a creation of an id that exists. again is true when it was a failed
// one, whose record is gone now.
func (m *Manager) createAgain(ctx context.Context, s *server, spec Spec) (v View, again bool, err error) {
	rec := s.record()
	if rec.Phase == PhaseFailed || rec.Phase == PhaseUndo {
		if err := m.Delete(ctx, s.id); err != nil {
			return View{}, false, err
		}
		return View{}, true, s.settled(ctx)
	}
	want := spec
	if id, err := m.cfg.Images.Find(spec.Image); err == nil {
		want.Image = id.ID
	}
	if !sameRequest(rec.Spec, want) {
		return View{}, false, fault.New(fault.Exists, "create server %s: id %s is taken by server %s, which was asked for with other settings", spec.Name, spec.ID, rec.Spec.Name)
	}
	return s.view(), false, nil
}

// Update makes spec the wanted one, live. What can't change is refused before anything is touched.
func (m *Manager) Update(ctx context.Context, spec Spec) (View, error) {
	spec = spec.WithDefaults()
	if err := spec.Validate(); err != nil {
		return View{}, err
	}
	return m.change(ctx, spec.ID, "update", false, func(rec *Record) error {
		old := rec.Spec
		spec.FirstBoot.UserData = old.FirstBoot.UserData
		if spec.Image == "" && old.CloneOf != "" {
			spec.Image = old.Image
		}
		if image, err := m.cfg.Images.Find(spec.Image); err == nil {
			spec.Image = image.ID
		}
		if spec.Image != old.Image {
			return fault.Field("image", "update server %s: an existing server's image can't be changed; make a new server", spec.Name)
		}
		if spec.Disk.Size < old.Disk.Size {
			return fault.Field("disk.size", "update server %s: disk is %s and can't shrink to %s", spec.Name, formatBytes(old.Disk.Size), formatBytes(spec.Disk.Size))
		}
		if err := rec.operable("update"); err != nil {
			return err
		}
		if spec.CloneOf != old.CloneOf {
			return fault.Field("clone_of", "update server %s: what a server's disk started from can't be changed; use restore_from, or make a new server", spec.Name)
		}
		rec.Spec = spec
		rec.Want = wanted(spec.Power, rec.Want)
		rec.Generation++
		if spec.RestoreFrom != old.RestoreFrom && spec.RestoreFrom != "" {
			if err := m.askRestore(rec, spec.RestoreFrom, safetyID(*rec)); err != nil {
				return err
			}
		}
		return m.admit(rec, &old)
	})
}

// Delete begins to remove a server; an operation under way is broken off for it.
// A protected server is fault.Precondition and left alone.
func (m *Manager) Delete(ctx context.Context, idOrName string) error {
	if s, err := m.find(idOrName); err == nil && s.deleting() {
		return nil
	}
	_, err := m.change(ctx, idOrName, "delete", true, func(rec *Record) error {
		if rec.Spec.DeletionProtection && rec.Phase == PhaseLive {
			return &fault.Error{Kind: fault.Precondition, Field: "deletion_protection",
				Err: fmt.Errorf("delete server %s: it is protected; set deletion_protection = false first", rec.Spec.Name)}
		}
		if rec.Leaving != "" || rec.Phase == PhaseIncoming {
			return rec.operable("delete")
		}
		rec.Force = rec.Force || rec.Phase != PhaseLive
		rec.Phase, rec.Rebooting, rec.Timeout = PhaseDelete, false, 0
		return nil
	})
	return err
}

// Get is one server by id or name.
func (m *Manager) Get(idOrName string) (View, error) {
	s, err := m.find(idOrName)
	if err != nil {
		return View{}, err
	}
	return m.withUse(s.view()), nil
}

// List is all servers, sorted by name.
func (m *Manager) List() []View {
	m.mu.Lock()
	all := slices.Collect(maps.Values(m.servers))
	m.mu.Unlock()
	views := make([]View, 0, len(all))
	for _, s := range all {
		views = append(views, m.withUse(s.view()))
	}
	slices.SortFunc(views, func(a, b View) int { return strings.Compare(a.Spec.Name, b.Spec.Name) })
	return views
}

// Watch sends the server's view now and after each change, the newest only if the reader is
// slow. The channel is closed after a view with Gone set, when ctx ends, or at Close.
func (m *Manager) Watch(ctx context.Context, id string) (<-chan View, error) {
	s, err := m.find(id)
	if err != nil {
		return nil, err
	}
	return s.watch(ctx), nil
}

// Say adds a message to what people see of a server; one that is not here is not told.
func (m *Manager) Say(id, text string) {
	s, err := m.find(id)
	if err != nil {
		return
	}
	s.mu.Lock()
	if n := len(s.rec.Messages); n == 0 || s.rec.Messages[n-1].Text != text { // not the same every minute
		s.rec.say(time.Now(), text) // durable with the next change
	}
	s.mu.Unlock()
	s.notify()
}

// Resources is what the host can promise, has promised, and has left.
func (m *Manager) Resources() (capacity, promised, free Resources) {
	c, reserved := m.cfg.Capacity(), m.reserved()
	m.mu.Lock()
	defer m.mu.Unlock()
	specs := m.otherSpecs("")
	promised = Promised(specs)
	promised.Disk += reserved
	return c.Resources(), promised, c.less(reserved).Free(specs)
}

// reserved is what snapshots may come to take.
func (m *Manager) reserved() int64 {
	if m.cfg.Captures == nil {
		return 0
	}
	return m.cfg.Captures.Reserved()
}

// UsersOfImage counts the servers made from an image.
func (m *Manager) UsersOfImage(id string) int {
	return m.count(func(r Record) bool { return r.Image.ID == id })
}

// UsersOfNetwork counts the servers that have an interface on a network.
func (m *Manager) UsersOfNetwork(id string) int {
	return m.count(func(r Record) bool {
		return slices.ContainsFunc(r.assigned(), func(a Assigned) bool { return a.NetworkID == id })
	})
}

// AddressesOf are the addresses that servers have on a network.
func (m *Manager) AddressesOf(networkID string) map[netip.Addr]bool {
	used := map[netip.Addr]bool{}
	m.count(func(r Record) bool {
		for _, a := range r.assigned() {
			if a.NetworkID == networkID {
				used[a.Address] = true
			}
		}
		return false
	})
	return used
}

func (m *Manager) count(match func(Record) bool) int {
	m.mu.Lock()
	defer m.mu.Unlock()
	n := 0
	for _, s := range m.servers {
		s.mu.Lock()
		if s.rec.Phase != PhaseFailed && match(s.rec) {
			n++
		}
		s.mu.Unlock()
	}
	return n
}

// Unknown names what the edges hold of servers that no record knows: a sign that the
// agent's state was lost or restored. It is never removed by itself.
func (m *Manager) Unknown() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.unknown)
}

// find is a server by id, else by name.
func (m *Manager) find(idOrName string) (*server, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if s, ok := m.servers[idOrName]; ok {
		return s, nil
	}
	for _, s := range m.servers {
		s.mu.Lock()
		name := s.rec.Spec.Name
		s.mu.Unlock()
		if name == idOrName {
			return s, nil
		}
	}
	return nil, fault.New(fault.NotFound, "server %q: host %s has none of this id or name", idOrName, m.cfg.Host)
}

// change waits for the server's turn, lets f change a copy of its record, persists that and
// begins to carry it out. With interrupt an operation under way is broken off.
func (m *Manager) change(ctx context.Context, idOrName, kind string, interrupt bool, f func(*Record) error) (View, error) {
	s, err := m.find(idOrName)
	if err != nil {
		return View{}, err
	}
	if interrupt { // nothing is broken off for what would be refused anyway
		rec := s.record()
		if err := f(&rec); err != nil {
			return View{}, err
		}
	}
	for {
		if err := s.turn(ctx, interrupt); err != nil {
			return View{}, fmt.Errorf("%s server %s: wait for the operation under way: %w", kind, idOrName, err)
		}
		m.mu.Lock()
		if s.busyNow() { // somebody else was faster
			m.mu.Unlock()
			continue
		}
		v, err := m.changeIdle(s, kind, f)
		if err != nil && s.unfinished() {
			s.begin() // refused after all: what was broken off goes on
		}
		m.mu.Unlock()
		if err == nil {
			m.rebalance(s)
		}
		return v, err
	}
}

// changeIdle is change for a server whose turn it is. m.mu is held.
func (m *Manager) changeIdle(s *server, kind string, f func(*Record) error) (View, error) {
	if s.gone() {
		return View{}, fault.New(fault.NotFound, "server %s: it has just been deleted", s.id)
	}
	rec := s.record()
	if rec.Phase == PhaseDelete && kind != "delete" {
		return View{}, fault.New(fault.Precondition, "%s server %s: it is being deleted", kind, rec.Spec.Name)
	}
	rec.Operation = Operation{Kind: kind, Started: time.Now().UTC()}
	if err := f(&rec); err != nil {
		return View{}, err
	}
	if err := s.put(rec); err != nil {
		return View{}, err
	}
	s.mu.Lock()
	s.rec, s.away = rec, kind == opRecover // else somebody who asks now knows better
	s.mu.Unlock()
	s.begin()
	return s.view(), nil
}

// errInterrupted is the cause of an operation that was broken off for a newer one.
var errInterrupted = errors.New("broken off for a newer request")
