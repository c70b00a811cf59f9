package migrate

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/reflejo/terraform-provider-reflejo/agent/endpoint"
	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
	"github.com/reflejo/terraform-provider-reflejo/agent/vserver"
)

// Move asks for a server to be moved from here.
type Move struct {
	Server   string // id or name
	Target   string // host
	Endpoint string // its agent's address and port
	Ticket   string
	Settings *vserver.Migration // nil: the server's own
}

// Start begins to move a server away, or goes on with that, and returns when it is under
// way. A move that is being handed over goes on by itself whatever is asked.
func (m *Manager) Start(ctx context.Context, move Move) (vserver.View, error) {
	v, err := m.cfg.Servers.Get(move.Server)
	if err != nil {
		if host, ok := m.WentTo(move.Server); ok {
			err = fault.New(fault.NotFound, "migrate server %s: it went to host %s: %w", move.Server, host, err)
		}
		return v, err
	}
	id, secret, err := decodeTicket(move.Ticket)
	if err != nil {
		return v, err
	}
	switch {
	case move.Target == "" || move.Target == m.cfg.Host:
		return v, fault.Field("host", "migrate server %s: to host %q: want another host than %s", v.Spec.Name, move.Target, m.cfg.Host)
	case move.Endpoint == "":
		return v, fault.Field("endpoint", "migrate server %s: no address of host %s's endpoint", v.Spec.Name, move.Target)
	}
	settings := v.Spec.Migration
	if move.Settings != nil {
		settings = *move.Settings
	}
	if err := m.tidied(ctx, v.Spec.ID); err != nil {
		return v, err
	}
	_, err = m.changeOutgoing(v.Spec.ID, func(rec *outgoing, there bool) error {
		switch {
		case there && rec.Phase == SourceReclaims:
			return fault.New(fault.Aborted, "migrate server %s: it is being taken back from host %s", v.Spec.Name, rec.Target)
		case there && (rec.Phase == SourceHandover || rec.Phase == SourceMoved):
			if rec.Target != move.Target {
				return fault.New(fault.Precondition, "migrate server %s: it is being handed over to host %s", v.Spec.Name, rec.Target)
			}
			return errUnchanged
		}
		if err := movable(v); err != nil {
			return err
		}
		if !there || rec.Move != id { // another copy; snapshots of the last attempt are of no use to it
			*rec = outgoing{Server: v.Spec.ID, Name: v.Spec.Name, Move: id, Phase: SourceCopying, Mine: rec.Mine, Progressed: time.Now().UTC()}
		}
		rec.Target, rec.Endpoint, rec.Secret, rec.Settings, rec.Err = move.Target, move.Endpoint, secret, settings, ""
		return nil
	})
	if err != nil {
		return v, err
	}
	select {
	case <-m.begin(v.Spec.ID).held:
	case <-ctx.Done():
		return v, fault.New(fault.Aborted, "migrate server %s: it waits for the operation under way: %w", v.Spec.Name, context.Cause(ctx))
	}
	return m.cfg.Servers.Get(v.Spec.ID)
}

// working is an attempt that is under way.
type working struct {
	stop   context.CancelFunc
	held   chan struct{} // closed when the server is held, or there is no need
	let    chan struct{} // closed when it is not any more: what follows is tidying up
	done   chan struct{}
	isHeld bool // only for the attempt itself
}

// begin works on the move of a server, unless somebody does.
func (m *Manager) begin(server string) *working {
	m.mu.Lock()
	defer m.mu.Unlock()
	if w, ok := m.working[server]; ok {
		return w
	}
	ctx, stop := context.WithCancel(m.ctx)
	w := &working{stop: stop, held: make(chan struct{}), let: make(chan struct{}), done: make(chan struct{})}
	if m.ctx.Err() != nil {
		stop()
		close(w.held)
		return w
	}
	m.working[server] = w
	m.wg.Go(func() {
		defer close(w.done)
		defer stop()
		m.work(ctx, server, w)
		m.mu.Lock()
		delete(m.working, server)
		m.mu.Unlock()
	})
	return w
}

// tidied waits until an attempt that is over has been tidied up.
func (m *Manager) tidied(ctx context.Context, server string) error {
	m.mu.Lock()
	w := m.working[server]
	m.mu.Unlock()
	if w == nil {
		return nil
	}
	select {
	case <-w.let:
	default:
		return nil // joined, not followed
	}
	select {
	case <-w.done:
		return nil
	case <-ctx.Done():
		return fault.New(fault.Aborted, "migrate server %s: the last attempt is being tidied up: %w", server, context.Cause(ctx))
	}
}

// work is one attempt: it holds the server, copies and hands over, and tidies up after.
func (m *Manager) work(ctx context.Context, server string, w *working) {
	rec, _ := m.outgoingOf(server)
	var err error
	if rec.Phase != SourceMoved && rec.Phase != SourceReclaims {
		err = m.cfg.Servers.Hold(ctx, server, "migrate", func(ctx context.Context, h *vserver.Held) error {
			defer close(w.let) // before the operation is seen to be over
			w.isHeld = true
			close(w.held)
			err := m.attempt(ctx, h, server)
			// So is the end of a move that is over: who sees that it failed may prepare the next
			// one at once, which must not be taken for this one.
			return errors.Join(err, m.failed(ctx, server, err))
		})
	}
	if !w.isHeld {
		close(w.let)
		close(w.held)
	}
	rec, ok := m.outgoingOf(server)
	switch {
	case !ok:
	case rec.Phase == SourceReclaims:
		err = m.reclaimed(ctx, rec)
	case rec.Phase == SourceMoved:
		err = m.settle(ctx, rec)
	case !w.isHeld:
		err = errors.Join(err, m.failed(ctx, server, err))
	}
	if err != nil && ctx.Err() == nil {
		m.cfg.Log.Error("migrate a server", "server", rec.Name, "to", rec.Target, "error", err)
	}
}

// failed gives a move up that is over, and records of another why it does not go on now.
func (m *Manager) failed(ctx context.Context, server string, why error) error {
	rec, ok := m.outgoingOf(server)
	if !ok || why == nil || rec.Phase != SourceCopying || ctx.Err() != nil {
		return nil
	}
	if m.gaveUp(rec, why) {
		return m.giveUp(rec)
	}
	_, err := m.saveOutgoing(server, func(r *outgoing) { r.Err = why.Error() })
	return err
}

// gaveUp reports whether a move that failed is over, as opposed to going on when it is
// started again.
func (m *Manager) gaveUp(rec outgoing, err error) bool {
	v, gone := m.cfg.Servers.Get(rec.Server)
	return !lost(err) || fault.Is(gone, fault.NotFound) || v.State == vserver.StateDeleting || time.Since(rec.Progressed) > ticketLife
}

// lost reports whether an error is one of the link, or of an agent that is stopping.
func lost(err error) bool { return fault.Is(err, fault.Unavailable) }

// refused reports whether an error is what the other agent said.
func refused(err error) bool {
	var remote *endpoint.RemoteError
	return errors.As(err, &remote) && !fault.Is(err, fault.Unavailable)
}

// giveUp removes everything of a move that was not handed over. A target that can't be
// reached forgets it by itself when the ticket ends.
func (m *Manager) giveUp(rec outgoing) error {
	ctx, cancel := context.WithTimeout(m.ctx, 5*time.Second) // the server may be waiting to be started again
	defer cancel()
	if _, err := m.ask(ctx, rec, AskAbort); err != nil {
		m.cfg.Log.Warn("tell the target that a move is given up", "server", rec.Name, "to", rec.Target, "error", err)
	}
	if err := m.removeMine(m.ctx, rec); err != nil {
		return err
	}
	return m.dropOutgoing(rec.Server)
}

// removeMine removes a move's migration snapshots but some.
func (m *Manager) removeMine(ctx context.Context, rec outgoing, but ...string) error {
	var removed []string
	for _, id := range rec.Mine {
		if slices.Contains(but, id) {
			continue
		}
		if err := m.cfg.Disks.Remove(ctx, id); err != nil {
			return fmt.Errorf("remove migration snapshot: %w", err)
		}
		removed = append(removed, id)
	}
	if len(removed) == 0 {
		return nil
	}
	_, err := m.saveOutgoing(rec.Server, func(r *outgoing) {
		r.Mine = slices.DeleteFunc(r.Mine, func(id string) bool { return slices.Contains(removed, id) })
	})
	return err
}

// attempt is what is done while the server is held.
func (m *Manager) attempt(ctx context.Context, h *vserver.Held, server string) error {
	rec, ok := m.outgoingOf(server)
	if !ok {
		return nil // given up meanwhile
	}
	var l Link
	if rec.Phase == SourceCopying {
		if h.Record().Leaving != "" { // see invariant 6
			if err := h.Leave(""); err != nil {
				return err
			}
		}
		c := &copying{m: m, h: h, server: server}
		err := c.run(ctx)
		if c.l != nil {
			l = c.l
			defer l.Close()
		}
		if err != nil {
			return err
		}
		if err := h.Leave(rec.Target); err != nil {
			return err
		}
		if rec, err = m.saveOutgoing(server, func(r *outgoing) { r.Phase, r.Kept, r.Links = SourceHandover, c.kept(), h.Record().Links }); err != nil {
			return err
		}
	}
	h.Progress("hand over", lastStep, lastStep, 0, 0)
	if err := m.resolve(ctx, h, rec, l); err != nil {
		return err
	}
	rec, _ = m.outgoingOf(server)
	if err := m.lend(rec); err != nil {
		return err
	}
	return h.Release(rec.Target)
}

// resolve asks until it is known whose the server is. nil means that it is the target's and
// that this is recorded; any other error than ctx's that it is this host's again.
func (m *Manager) resolve(ctx context.Context, h *vserver.Held, rec outgoing, l Link) error {
	var why error
	for delay := time.Second; ; delay = min(2*delay, 30*time.Second) {
		ask := sourceAsks(rec.Phase, why != nil)
		s, err := m.askOver(ctx, rec, ask, l)
		l = nil
		step := sourceNext(rec.Phase, s.Phase)
		switch {
		case refused(err):
			why = err
		case err != nil:
			m.cfg.Log.Warn("ask whose a server is", "server", rec.Name, "of", rec.Target, "error", err)
		case step == stepRelease:
			_, err := m.saveOutgoing(rec.Server, func(r *outgoing) { r.Phase, r.Progressed = SourceMoved, time.Now().UTC() })
			return err
		case step == stepTakeBack:
			return m.takeBack(h, rec, why)
		case ask == AskCommit: // it does not have everything, whatever it acknowledged
			why = fault.New(fault.Internal, "migrate server %s: host %s did not take it over", rec.Name, rec.Target)
			continue
		}
		select {
		case <-time.After(delay):
		case <-ctx.Done():
			return fault.New(fault.Unavailable, "migrate server %s: host %s has not said yet whose it is: %w", rec.Name, rec.Target, context.Cause(ctx))
		}
	}
}

// takeBack lets the server run here again: the target will never have it by this move.
func (m *Manager) takeBack(h *vserver.Held, rec outgoing, why error) error {
	if _, err := m.saveOutgoing(rec.Server, func(r *outgoing) { r.Phase = SourceCopying }); err != nil {
		return err
	}
	if err := h.Leave(""); err != nil {
		return err
	}
	if why == nil {
		why = fault.New(fault.Aborted, "host %s had forgotten the move", rec.Target)
	}
	return fault.New(fault.KindOf(why), "migrate server %s: it stays on host %s: %w", rec.Name, m.cfg.Host, why)
}

// askOver asks on a link that is there, or on a new one.
func (m *Manager) askOver(ctx context.Context, rec outgoing, ask Ask, l Link) (state, error) {
	if l == nil {
		return m.ask(ctx, rec, ask)
	}
	return request(l, frameAsk, asking{Move: rec.Move, Ask: ask, Round: rec.Final})
}

// ask asks the target on a link of its own.
func (m *Manager) ask(ctx context.Context, rec outgoing, ask Ask) (state, error) {
	l, err := m.cfg.Dial(ctx, rec.Target, rec.Endpoint, Purpose, rec.Secret)
	if err != nil {
		return state{}, err
	}
	defer l.Close()
	defer l.CloseWith(ctx)()
	return m.askOver(ctx, rec, ask, l)
}

// lend makes durable that the server takes its addresses along.
func (m *Manager) lend(rec outgoing) error {
	if m.cfg.Loans == nil {
		return nil
	}
	return m.cfg.Loans.Lend(rec.Server, rec.Target, rec.Endpoint, rec.Links)
}

// settle removes what is left here of a server that the target has, and lets it know.
func (m *Manager) settle(ctx context.Context, rec outgoing) error {
	if err := m.lend(rec); err != nil {
		return err
	}
	if err := m.cfg.Servers.Release(ctx, rec.Server, rec.Target); err != nil {
		return err
	}
	for _, id := range rec.Kept {
		if err := m.dropSnapshot(ctx, id); err != nil {
			return err
		}
	}
	if err := m.removeMine(ctx, rec); err != nil {
		return err
	}
	for delay := time.Second; ; delay = min(2*delay, time.Minute) {
		s, err := m.ask(ctx, rec, sourceAsks(rec.Phase, false))
		if err == nil && sourceNext(rec.Phase, s.Phase) == stepDone {
			_, err := m.saveOutgoing(rec.Server, func(r *outgoing) {
				*r = outgoing{Server: r.Server, Name: r.Name, Move: r.Move, Target: r.Target, Endpoint: r.Endpoint, Phase: SourceDone, Progressed: time.Now().UTC()}
			})
			return err
		}
		select {
		case <-time.After(delay):
		case <-ctx.Done():
			return nil
		}
	}
}
