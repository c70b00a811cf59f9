package vserver

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"reflect"
	"slices"
	"sync"
	"time"

	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
)

// server is one server in memory: its record, what is there of it, and who is waiting.
//
//	idle ──begin──▶ busy ──(plan empty, or failed)──▶ idle
//
// Only its worker writes have, and only while busy; the record is written by whoever has
// the turn.
type server struct {
	id string
	m  *Manager

	mu        sync.Mutex
	rec       Record
	have      Have
	known     bool // have is right; else the worker asks the edges first
	busy      bool
	idle      chan struct{} // closed while idle
	interrupt context.CancelCauseFunc
	watchers  map[chan View]struct{}
	deleted   bool
	unwatch   context.CancelFunc // ends the goroutine that waits for init's end
	cpuset    string             // last one set
	stored    [sha256.Size]byte  // of the record as the store is known to have it; zero if it is not
	job       *job               // what the next operation is, if it is no plan
	away      bool               // this host may have been away: what would start the server asks whose it is
}

func newServer(m *Manager, rec Record) *server {
	idle := make(chan struct{})
	close(idle)
	return &server{id: rec.Spec.ID, m: m, rec: rec, idle: idle, watchers: map[chan View]struct{}{}}
}

func decodeRecord(value []byte) (Record, error) {
	var rec Record
	if err := json.Unmarshal(value, &rec); err != nil {
		return Record{}, err
	}
	if !ValidID(rec.Spec.ID) {
		return Record{}, fault.New(fault.Invalid, "id %q is no UUID", rec.Spec.ID)
	}
	return rec, nil
}

// begin makes the server busy and starts its worker.
func (s *server) begin() {
	ctx, cancel := context.WithCancelCause(s.m.ctx)
	s.mu.Lock()
	s.busy, s.interrupt, s.idle = true, cancel, make(chan struct{})
	if s.unwatch != nil { // an end from now on is the operation's, or is seen after it
		s.unwatch()
		s.unwatch = nil
	}
	s.mu.Unlock()
	s.m.wg.Go(func() {
		defer cancel(nil)
		s.work(ctx)
	})
	s.notify()
}

// turn returns when the server is idle, breaking off what is under way if asked to. Who
// breaks off also waits, whatever becomes of ctx: somebody has to take the server on.
func (s *server) turn(ctx context.Context, interrupt bool) error {
	s.mu.Lock()
	idle, cancel := s.idle, s.interrupt
	// A deletion is never broken off, only awaited.
	if interrupt && s.busy && s.rec.Phase != PhaseDelete && s.rec.Phase != PhaseMoved && s.rec.Leaving == "" {
		cancel(errInterrupted)
		ctx = context.WithoutCancel(ctx)
	}
	s.mu.Unlock()
	select {
	case <-idle:
		return nil
	case <-ctx.Done():
		return fault.Wrap(fault.Aborted, ctx.Err())
	case <-s.m.ctx.Done():
		return fault.New(fault.Unavailable, "the agent is stopping")
	}
}

// settled waits until nothing is under way.
func (s *server) settled(ctx context.Context) error { return s.turn(ctx, false) }

func (s *server) busyNow() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.busy
}

// record is a copy of the server's record.
func (s *server) record() Record {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.rec.clone()
}

// deleting reports whether its deletion is under way.
func (s *server) deleting() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.busy && s.rec.Phase == PhaseDelete
}

// unfinished reports whether an operation was broken off and nobody goes on with it.
func (s *server) unfinished() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return !s.busy && !s.deleted && !s.rec.Operation.Settled()
}

func (s *server) gone() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.deleted
}

// view is the server as callers see it.
func (s *server) view() View {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.viewLocked()
}

func (s *server) viewLocked() View {
	rec := s.rec.clone()
	v := View{Spec: rec.Spec, State: s.stateLocked(), Created: rec.Created, Operation: rec.Operation, Generation: rec.Generation,
		Messages: rec.Messages, Gone: s.deleted, MovedTo: rec.MovedTo, Leaving: rec.Leaving, NICs: make(map[string]NICView, len(rec.Links))}
	v.Spec.FirstBoot.UserData = ""
	v.DiskUsed = s.m.lastUse(s.id)
	if s.have.running() {
		v.Started = rec.Started
	}
	for name, a := range rec.Links {
		address := a.Address.String()
		if seg, err := s.m.cfg.Segments.Lookup(a.NetworkID); err == nil {
			address = fmt.Sprintf("%s/%d", a.Address, seg.CIDR.Bits())
		}
		v.NICs[name] = NICView{Address: address, MAC: a.MAC, NetworkID: a.NetworkID}
	}
	return v
}

func (s *server) stateLocked() State {
	switch s.rec.Phase {
	case PhaseCreate, PhaseUndo:
		return StateCreating
	case PhaseFailed:
		return StateFailed
	case PhaseIncoming:
		return StateIncoming
	case PhaseDelete, PhaseMoved:
		return StateDeleting
	}
	switch {
	case s.rec.Closed != "":
		return StateClosed
	case s.have.running() && s.have.frozen():
		return StateSuspended
	case s.have.running():
		return StateRunning
	}
	return StateStopped
}

// watch registers a reader of changes.
func (s *server) watch(ctx context.Context) <-chan View {
	ch := make(chan View, 1)
	s.mu.Lock()
	ch <- s.viewLocked()
	if s.deleted {
		close(ch)
		s.mu.Unlock()
		return ch
	}
	s.watchers[ch] = struct{}{}
	s.mu.Unlock()
	context.AfterFunc(ctx, func() { s.drop(ch) })
	context.AfterFunc(s.m.ctx, func() { s.drop(ch) })
	return ch
}

func (s *server) drop(ch chan View) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.watchers[ch]; ok {
		delete(s.watchers, ch)
		close(ch)
	}
}

// notify sends the current view to all watchers; a slow one finds only the newest.
func (s *server) notify() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.watchers) == 0 {
		return
	}
	v := s.viewLocked()
	for ch := range s.watchers {
		select {
		case <-ch:
		default:
		}
		ch <- v
		if s.deleted {
			delete(s.watchers, ch)
			close(ch)
		}
	}
}

// save persists a changed record and makes it the current one.
func (s *server) save(change func(*Record)) error {
	s.mu.Lock()
	rec := s.rec.clone()
	s.mu.Unlock()
	change(&rec)
	if err := s.put(rec); err != nil {
		return err
	}
	s.mu.Lock()
	s.rec = rec
	s.mu.Unlock()
	return nil
}

// put makes a record durable. What the store has already is not written again: an agent
// that starts over hundreds of servers finds all of them as it left them, and each write
// waits for the disk.
func (s *server) put(rec Record) error {
	text, err := json.Marshal(rec)
	if err != nil {
		return fmt.Errorf("record server %s: %w", rec.Spec.Name, err)
	}
	sum := sha256.Sum256(text)
	s.mu.Lock()
	same := s.stored == sum
	if !same {
		s.stored = [sha256.Size]byte{} // a write that fails may have happened all the same
	}
	s.mu.Unlock()
	if same {
		return nil
	}
	if err := s.m.cfg.Records.Put(s.id, json.RawMessage(text)); err != nil {
		return fmt.Errorf("record server %s: %w", rec.Spec.Name, err)
	}
	s.mu.Lock()
	s.stored = sum
	s.mu.Unlock()
	return nil
}

// links are the interfaces as the network edge wants them, sorted by name. The default
// route goes to the first.
func (s *server) links(rec Record) ([]Link, error) {
	var links []Link
	for _, name := range slices.Sorted(maps.Keys(rec.Spec.Network)) {
		nic, a := rec.Spec.Network[name], rec.Links[name]
		seg, err := s.m.cfg.Segments.Lookup(a.NetworkID)
		if err != nil {
			return nil, fmt.Errorf("network of interface %s: %w", name, err)
		}
		l := Link{Name: name, NetworkID: a.NetworkID, MAC: a.MAC, Ingress: nic.Ingress, Egress: nic.Egress, Filtered: nic.Filtered, Allow: nic.Allow}
		l.Address = netip.PrefixFrom(a.Address, seg.CIDR.Bits())
		if len(links) == 0 {
			l.Gateway = seg.Gateway
		}
		for _, key := range slices.Sorted(maps.Keys(nic.Publish)) {
			l.Publish = append(l.Publish, nic.Publish[key])
		}
		links = append(links, l)
	}
	return links, nil
}

// macOf derives an interface's address: locally administered, stable for the server's life.
func macOf(id, nic string) string {
	sum := sha256.Sum256([]byte(id + "/" + nic))
	mac := net.HardwareAddr(sum[:6])
	mac[0] = mac[0]&^1 | 2
	return mac.String()
}

// sameRequest reports whether b asks for what a was made from.
func sameRequest(a, b Spec) bool {
	a, b = a.clone(), b.clone()
	a.FirstBoot.UserData, b.FirstBoot.UserData = "", "" // not kept once handed over
	for name, n := range b.Network {
		if had, ok := a.Network[name]; ok && n.Network != had.Network { // asked by name, kept by id
			n.Network = had.Network
			b.Network[name] = n
		}
	}
	return reflect.DeepEqual(a, b)
}

// observe asks the edges what is there of this server.
func (s *server) observe(ctx context.Context) error {
	all, err := s.m.inventory(ctx)
	if err != nil {
		return err
	}
	s.mu.Lock()
	s.have, s.known = all[s.id], true
	s.mu.Unlock()
	return nil
}

// watchEnd waits for the running server's init to end and then lets the worker tidy up.
func (s *server) watchEnd() {
	s.mu.Lock()
	if s.unwatch != nil {
		s.unwatch()
		s.unwatch = nil
	}
	if !s.have.running() || s.deleted {
		s.mu.Unlock()
		return
	}
	ctx, cancel := context.WithCancel(s.m.ctx)
	s.unwatch = cancel
	s.mu.Unlock()
	s.m.wg.Go(func() {
		defer cancel()
		err := s.m.cfg.Edges.Runtime.Wait(ctx, s.id)
		if again := errors.Is(err, ErrRebooted); ctx.Err() == nil && (err == nil || again) {
			s.ended(ctx, again)
		}
	})
}

// ended records that the server shut itself down, or rebooted, and lets the worker do its part.
func (s *server) ended(ctx context.Context, again bool) {
	kind := string(ActionStop)
	if again {
		kind = string(ActionReboot)
	}
	_, err := s.m.change(ctx, s.id, kind, false, func(rec *Record) error {
		if rec.Phase != PhaseLive || rec.Want == PowerStopped || ctx.Err() != nil {
			return errNothing
		}
		if again {
			rec.say(time.Now(), "the server rebooted itself")
		} else {
			rec.Want = PowerStopped
			rec.say(time.Now(), "the server ended by itself")
		}
		s.mu.Lock()
		s.known = false
		s.mu.Unlock()
		return nil
	})
	if err != nil && err != errNothing && ctx.Err() == nil {
		s.m.cfg.Log.Error("record the end of a server", "server", s.id, "error", err)
	}
}

// errNothing: a change that turned out to be none.
var errNothing = fault.New(fault.Aborted, "nothing to do")
