package vserver

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
)

// job is an operation that another package does to a server while it is its turn.
type job struct {
	ctx  context.Context // of who asked: its end breaks the job off
	f    func(context.Context, *Held) error
	done chan error
}

// Held is a server during [Manager.Hold]: nobody else operates on it. Its methods are for
// the held function's goroutine.
type Held struct{ s *server }

// Record is a copy of the server's record.
func (h *Held) Record() Record { return h.s.record() }

// Have is what is there of the server.
func (h *Held) Have() Have {
	h.s.mu.Lock()
	defer h.s.mu.Unlock()
	return h.s.have
}

// State is what the server is, as people see it.
func (h *Held) State() State {
	h.s.mu.Lock()
	defer h.s.mu.Unlock()
	return h.s.stateLocked()
}

// Progress shows how far the operation is: the step, its number of how many, and bytes of
// how many (0 of 0 where nothing is counted).
func (h *Held) Progress(step string, index, steps int, done, total int64) {
	h.s.mu.Lock()
	o := &h.s.rec.Operation
	o.Step, o.Index, o.Steps, o.BytesDone, o.BytesTotal = step, index, steps, done, total
	h.s.mu.Unlock()
	h.s.notify()
}

// Down stops the server cleanly, within its shutdown timeout, and detaches its disk. What
// it should be is not changed: when the held function returns, or after a crash, it is
// started again if it should run.
func (h *Held) Down(ctx context.Context) error {
	rec := h.s.record()
	rec.Want, rec.Rebooting, rec.Force = PowerStopped, false, false
	for _, step := range Plan(rec, h.Have()) {
		if err := h.s.doInSlot(ctx, step); err != nil {
			h.s.mu.Lock()
			h.s.known = false
			h.s.mu.Unlock()
			return fmt.Errorf("stop server %s: %s: %w", rec.Spec.Name, step, err)
		}
	}
	return nil
}

// Leave makes durable that the server may not be started here, changed or deleted, as it is
// being handed over to another host; with "" it may again.
func (h *Held) Leave(host string) error {
	return h.s.save(func(r *Record) { r.Leaving = host })
}

// Release is [Manager.Release] as the last thing of the held function: the server is removed
// here before anybody else has a turn.
func (h *Held) Release(to string) error {
	if h.s.record().Leaving == "" {
		return fault.New(fault.Precondition, "release server %s: it is not being handed over", h.s.id)
	}
	return h.s.save(func(r *Record) { r.release(to) })
}

// Hold waits for the server's turn and runs f while nobody else operates on it. Then the
// server is brought to what its record wants, and f's error is returned and shown as the
// operation's. f's context ends when ctx does, when the server is deleted and when the
// agent stops; f must return then. kind is the operation's, as people see it. A server that
// is not complete is fault.Precondition; one that is being handed over is held all the same.
func (m *Manager) Hold(ctx context.Context, idOrName, kind string, f func(context.Context, *Held) error) error {
	s, err := m.find(idOrName)
	if err != nil {
		return err
	}
	j := &job{ctx: ctx, f: f, done: make(chan error, 1)}
	for {
		if err := s.turn(ctx, false); err != nil {
			return fmt.Errorf("%s server %s: wait for the operation under way: %w", kind, idOrName, err)
		}
		m.mu.Lock()
		if s.busyNow() {
			m.mu.Unlock()
			continue
		}
		err := m.holdIdle(s, kind, j)
		m.mu.Unlock()
		if err != nil {
			return err
		}
		return <-j.done
	}
}

// holdIdle begins a job on a server whose turn it is. m.mu is held.
func (m *Manager) holdIdle(s *server, kind string, j *job) error {
	if s.gone() {
		return fault.New(fault.NotFound, "server %s: it has just been deleted", s.id)
	}
	if m.ctx.Err() != nil {
		return fault.New(fault.Unavailable, "the agent is stopping")
	}
	s.mu.Lock()
	phase, name := s.rec.Phase, s.rec.Spec.Name
	closed := s.rec.Closed
	if phase == PhaseLive && closed == "" {
		s.rec.Operation = Operation{Kind: kind, Started: time.Now().UTC()}
		s.job = j
	}
	s.mu.Unlock()
	if phase != PhaseLive || closed != "" {
		return Record{Phase: phase, Closed: closed, Spec: Spec{Name: name}}.operable(kind)
	}
	s.begin()
	return nil
}

// runJob runs what a holder asked for and brings the server to what it should be.
func (s *server) runJob(ctx context.Context, j *job) error {
	jobCtx, cancel := context.WithCancelCause(ctx)
	unlink := context.AfterFunc(j.ctx, func() { cancel(context.Cause(j.ctx)) })
	err := s.knowing(jobCtx)
	if err == nil {
		err = j.f(jobCtx, &Held{s})
	}
	unlink()
	cancel(nil)
	defer func() { j.done <- err }()
	if ctx.Err() != nil {
		return ctx.Err()
	}
	after := s.runPlan(ctx)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if after != nil {
		return s.fallBack(ctx, errors.Join(err, after))
	}
	return s.settle(err)
}

// knowing makes sure that what is there of the server is known.
func (s *server) knowing(ctx context.Context) error {
	s.mu.Lock()
	known := s.known
	s.mu.Unlock()
	if known {
		return nil
	}
	return s.observe(ctx)
}

// operable refuses an operation on a server that is not complete or not this host's to
// change at the moment.
func (r Record) operable(kind string) error {
	switch {
	case r.Phase == PhaseIncoming:
		return fault.New(fault.Precondition, "%s server %s: it is on its way here from another host, which has it until then", kind, r.Spec.Name)
	case r.Phase != PhaseLive:
		return fault.New(fault.Precondition, "%s server %s: it is not complete (%s); delete it", kind, r.Spec.Name, r.Phase)
	case r.Closed != "":
		return fault.New(fault.Precondition, "%s server %s: host %s took it over from a backup while this host was lost; what is here stays closed, delete it when you need nothing of it", kind, r.Spec.Name, r.Closed)
	case r.Leaving != "":
		return fault.New(fault.Precondition, "%s server %s: it is being handed over to host %s", kind, r.Spec.Name, r.Leaving)
	}
	return nil
}
