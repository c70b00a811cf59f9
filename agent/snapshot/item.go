package snapshot

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
	"github.com/reflejo/terraform-provider-reflejo/agent/vserver"
)

// item is one snapshot in memory. Its manager's mu guards all of it.
type item struct {
	id       string
	m        *Manager
	rec      Record
	op       vserver.Operation // under way
	idle     chan struct{}     // closed while nothing is under way
	cancel   context.CancelCauseFunc
	pins     int           // who uses what it holds
	free     chan struct{} // closed when nobody does any more; nil if nobody waits for that
	watchers map[chan View]struct{}
	gone     bool
}

func newItem(m *Manager, rec Record) *item {
	idle := make(chan struct{})
	close(idle)
	return &item{id: rec.ID, m: m, rec: rec, idle: idle, watchers: map[chan View]struct{}{}}
}

var (
	// errSuperseded is the cause of work that was broken off for a newer request.
	errSuperseded = errors.New("broken off for a newer request")
	// errNothing: a change that is not to be made any more.
	errNothing = errors.New("nothing to change")
)

func (it *item) busy() bool {
	select {
	case <-it.idle:
		return false
	default:
		return true
	}
}

// begin lets f work on the snapshot as soon as what is under way has been broken off, and
// returns a channel that is closed when f is done. m.mu is held.
func (it *item) begin(kind string, f func(context.Context) error) <-chan struct{} {
	before := it.idle
	if it.cancel != nil {
		it.cancel(errSuperseded)
	}
	ctx, cancel := context.WithCancelCause(it.m.ctx)
	mine := make(chan struct{})
	it.idle, it.cancel = mine, cancel
	it.op = vserver.Operation{Kind: kind, Started: it.m.cfg.Now().UTC()}
	it.notify()
	it.m.wg.Go(func() {
		<-before
		defer cancel(nil)
		it.work(ctx, kind, mine, f)
	})
	return mine
}

func (it *item) work(ctx context.Context, kind string, mine chan struct{}, f func(context.Context) error) {
	began := time.Now()
	var err error
	if ctx.Err() == nil {
		err = f(ctx)
	}
	if ctx.Err() == nil {
		it.m.cfg.Observe(kind, time.Since(began), err)
		if err != nil {
			it.m.cfg.Log.Error("operation failed", "operation", kind, "snapshot", it.id, "error", err)
		} else {
			it.m.cfg.Log.Info("operation done", "operation", kind, "snapshot", it.id, "took", time.Since(began).Round(time.Microsecond).String())
		}
	}
	it.m.mu.Lock()
	defer it.m.mu.Unlock()
	close(mine)
	if it.idle == mine {
		it.cancel = nil
		it.op = vserver.Operation{}
		it.notify()
	}
}

// step shows what the operation is at.
func (it *item) step(name string, index int) { it.progress(name, index, 0, 0) }

// steps are how many an operation has.
const createSteps = 4

func (it *item) progress(name string, index int, done, total int64) {
	it.m.mu.Lock()
	defer it.m.mu.Unlock()
	it.op.Step, it.op.Index, it.op.Steps, it.op.BytesDone, it.op.BytesTotal = name, index, createSteps, done, total
	it.notify()
}

func (it *item) record() Record {
	it.m.mu.Lock()
	defer it.m.mu.Unlock()
	return it.rec.clone()
}

// save persists a changed record and makes it the current one.
func (it *item) save(change func(*Record) error) error {
	it.m.mu.Lock()
	defer it.m.mu.Unlock()
	return it.saveLocked(change)
}

func (it *item) saveLocked(change func(*Record) error) error {
	rec := it.rec.clone()
	if err := change(&rec); err != nil {
		return err
	}
	if err := it.m.cfg.Records.Put(it.id, rec); err != nil {
		return fmt.Errorf("record snapshot %s: %w", rec.Name, err)
	}
	it.rec = rec
	it.m.count()
	it.notify()
	return nil
}

// in lets a change happen only while the record is in a phase.
func in(phase Phase, change func(*Record)) func(*Record) error {
	return func(r *Record) error {
		if r.Phase != phase {
			return errNothing
		}
		change(r)
		return nil
	}
}

func (r *Record) fail(err error) { r.Err, r.ErrKind = err.Error(), fault.KindOf(err).String() }

// view is the snapshot as callers see it. m.mu is held.
func (it *item) view() View {
	v := View{Record: it.rec.clone(), State: it.rec.Phase, Exclusive: it.m.use.exclusive[it.id], Reserved: it.rec.Held, Operation: it.op, Gone: it.gone}
	if it.op.Kind == "" && it.rec.Err != "" {
		kind := map[Phase]string{PhaseFailed: "create", PhaseDeleting: "delete"}[it.rec.Phase]
		if kind == "" {
			kind = "checksum"
		}
		v.Operation = vserver.Operation{Kind: kind, Err: it.rec.Err, ErrKind: it.rec.ErrKind, Done: true}
	}
	return v
}

// notify sends the current view to all watchers; a slow one finds only the newest. m.mu is held.
func (it *item) notify() {
	if len(it.watchers) == 0 {
		return
	}
	v := it.view()
	for ch := range it.watchers {
		select {
		case <-ch:
		default:
		}
		ch <- v
		if it.gone {
			delete(it.watchers, ch)
			close(ch)
		}
	}
}

// watch registers a reader of changes. m.mu is held.
func (it *item) watch(ctx context.Context) <-chan View {
	ch := make(chan View, 1)
	ch <- it.view()
	it.watchers[ch] = struct{}{}
	forget := context.AfterFunc(it.m.ctx, func() { it.drop(ch) })
	context.AfterFunc(ctx, func() {
		forget()
		it.drop(ch)
	})
	return ch
}

func (it *item) drop(ch chan View) {
	it.m.mu.Lock()
	defer it.m.mu.Unlock()
	if _, ok := it.watchers[ch]; ok {
		delete(it.watchers, ch)
		close(ch)
	}
}
