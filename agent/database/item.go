package database

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
	"github.com/reflejo/terraform-provider-reflejo/agent/vserver"
)

// item is one database in memory: its record, what is there of it, and who is waiting.
//
//	idle ──begin──▶ busy ──(plan empty, or failed)──▶ idle
//	                 └──begin──▶ (looks again before it is idle)
//
// The record is written by whoever has the turn: m.mu while idle, the worker while busy.
type item struct {
	id string
	m  *Manager

	mu       sync.Mutex
	rec      Record
	have     Have
	verified uint64 // generation that all of this was made for by this agent; 0 for none
	busy     bool
	idle     chan struct{} // closed while idle
	again    bool          // something has changed while it was busy
	cancel   context.CancelCauseFunc
	held     bool               // its server is about to stop
	looked   bool               // this agent has asked what is there
	unwatch  context.CancelFunc // ends the goroutine that waits for the guard's end
	watchers map[chan View]struct{}
	deleted  bool
}

var errSuperseded = errors.New("broken off for a newer request")

func newItem(m *Manager, rec Record) *item {
	idle := make(chan struct{})
	close(idle)
	return &item{id: rec.Spec.ID, m: m, rec: rec, idle: idle, watchers: map[chan View]struct{}{}}
}

// begin makes the worker look at what is to be done.
func (d *item) begin(kind string) {
	d.mu.Lock()
	if d.deleted || d.m.ctx.Err() != nil {
		d.mu.Unlock()
		return
	}
	d.again = true
	if d.busy {
		d.mu.Unlock()
		return
	}
	if d.rec.Operation.Settled() && d.rec.Phase == PhaseLive && kind != "update" {
		d.rec.Operation = vserver.Operation{Kind: kind, Started: time.Now().UTC()} // not persisted: a start plans anew anyway
	} else if d.rec.Operation.Kind == "" {
		d.rec.Operation = vserver.Operation{Kind: kind, Started: time.Now().UTC()}
	}
	ctx, cancel := context.WithCancelCause(d.m.ctx)
	d.busy, d.idle, d.cancel = true, make(chan struct{}), cancel
	if d.unwatch != nil {
		d.unwatch()
		d.unwatch = nil
	}
	d.mu.Unlock()
	d.m.wg.Go(func() {
		defer cancel(nil)
		d.work(ctx)
	})
	d.notify()
}

// resume lets an operation go on that was broken off.
func (d *item) resume() {
	d.mu.Lock()
	unfinished := !d.rec.Operation.Settled()
	kind := d.rec.Operation.Kind
	d.mu.Unlock()
	if unfinished {
		d.begin(kind)
	}
}

// turn returns when the database is idle. What goes on by itself, and not by a request, is
// broken off, with interrupt also that. A removal is only awaited.
func (d *item) turn(ctx context.Context, interrupt bool) error {
	d.mu.Lock()
	idle := d.idle
	background := d.rec.Operation.Kind == opRecover || d.rec.Operation.Kind == opServer
	if d.busy && (interrupt || background && d.rec.Phase == PhaseLive) && d.rec.Phase != PhaseDelete && d.rec.Phase != PhaseUndo {
		d.cancel(errSuperseded)
	}
	d.mu.Unlock()
	return d.await(ctx, idle)
}

func (d *item) await(ctx context.Context, idle <-chan struct{}) error {
	select {
	case <-idle:
		return nil
	case <-ctx.Done():
		return fault.Wrap(fault.Aborted, ctx.Err())
	case <-d.m.ctx.Done():
		return fault.New(fault.Unavailable, "the agent is stopping")
	}
}

// settled waits until nothing is under way.
func (d *item) settled(ctx context.Context) error {
	d.mu.Lock()
	idle := d.idle
	d.mu.Unlock()
	return d.await(ctx, idle)
}

// hold keeps the database down until release.
func (d *item) hold() {
	d.mu.Lock()
	d.held = true
	if d.busy && d.rec.Phase == PhaseLive {
		d.cancel(errSuperseded)
	}
	d.mu.Unlock()
}

func (d *item) release() {
	d.mu.Lock()
	d.held = false
	d.mu.Unlock()
}

// down stops the database, as its server is about to stop.
func (d *item) down(ctx context.Context, limit time.Duration) error {
	if err := d.settled(ctx); err != nil {
		return err
	}
	d.mu.Lock()
	if d.unwatch != nil {
		d.unwatch()
		d.unwatch = nil
	}
	d.verified, d.have.Verified = 0, false
	d.mu.Unlock()
	err := d.m.cfg.Clusters.Stop(ctx, d.id, limit)
	d.mu.Lock()
	d.have.Cluster.Running = d.have.Cluster.Running && err != nil
	d.mu.Unlock()
	d.notify()
	return err
}

func (d *item) busyNow() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.busy
}

func (d *item) gone() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.deleted
}

// record is a copy of the record.
func (d *item) record() Record {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.rec.clone()
}

func (d *item) set(rec Record) {
	d.mu.Lock()
	d.rec = rec
	d.mu.Unlock()
}

// view is the database as callers see it.
func (d *item) view() View {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.viewLocked()
}

func (d *item) viewLocked() View {
	rec := d.rec.clone()
	v := View{Spec: rec.Spec, State: d.stateLocked(), Major: rec.Major, Identity: rec.Identity, Created: rec.Created, Generation: rec.Generation,
		Operation: rec.Operation, Messages: rec.Messages, Gone: d.deleted}
	if d.have.Cluster.Running {
		v.Started = d.have.Cluster.Started
	}
	return v
}

func (d *item) stateLocked() State {
	switch d.rec.Phase {
	case PhaseCreate, PhaseUndo:
		return StateCreating
	case PhaseFailed:
		return StateFailed
	case PhaseDelete:
		return StateDeleting
	}
	switch {
	case d.have.Cluster.Running:
		return StateRunning
	case d.have.Server && !d.held && !d.busy:
		return StateFailed
	}
	return StateStopped
}

// Watch sends the database's view now and after each change, the newest only if the reader
// is slow. The channel is closed after a view with Gone set, when ctx ends, or at Close.
func (m *Manager) Watch(ctx context.Context, idOrName string) (<-chan View, error) {
	d, err := m.find(idOrName)
	if err != nil {
		return nil, err
	}
	ch := make(chan View, 1)
	d.mu.Lock()
	defer d.mu.Unlock()
	ch <- d.viewLocked()
	if d.deleted {
		close(ch)
		return ch, nil
	}
	d.watchers[ch] = struct{}{}
	context.AfterFunc(ctx, func() { d.drop(ch) })
	context.AfterFunc(m.ctx, func() { d.drop(ch) })
	return ch, nil
}

func (d *item) drop(ch chan View) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if _, ok := d.watchers[ch]; ok {
		delete(d.watchers, ch)
		close(ch)
	}
}

// notify sends the view to all who watch.
func (d *item) notify() {
	d.mu.Lock()
	defer d.mu.Unlock()
	v := d.viewLocked()
	for ch := range d.watchers {
		select {
		case <-ch: // an older view that nobody has read
		default:
		}
		ch <- v
		if v.Gone {
			delete(d.watchers, ch)
			close(ch)
		}
	}
}
