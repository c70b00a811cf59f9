package migrate

import (
	"context"

	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
)

// Reclaim takes a server back that is being handed over to a host that is lost for good, so
// that nobody will ever say whose it is. From here on it is this host's, in a term that is
// higher than any before. It is done, or durable and gone on with, when this returns. Where
// the target has said that it has the server it is fault.Precondition.
func (m *Manager) Reclaim(ctx context.Context, server, lost string, term uint64) error {
	leave, err := m.alone(ctx, server)
	if err != nil {
		return err
	}
	defer leave()
	rec, ok := m.outgoingOf(server)
	switch {
	case !ok: // done before, or there was only ever the server's own record
		_, err := m.cfg.Servers.Reclaim(ctx, server, lost, term)
		return err
	case rec.Target != lost || rec.Phase == SourceMoved || rec.Phase == SourceDone:
		return fault.New(fault.Precondition, "take server %s back from host %s: its move to host %s is %s", rec.Name, lost, rec.Target, rec.Phase)
	}
	if rec, err = m.saveOutgoing(server, func(r *outgoing) { r.Phase, r.Term = SourceReclaims, max(r.Term, term) }); err != nil {
		return err
	}
	return m.reclaimed(ctx, rec)
}

// reclaimed does what is left to do for a server that is this host's again.
func (m *Manager) reclaimed(ctx context.Context, rec outgoing) error {
	if _, err := m.cfg.Servers.Reclaim(ctx, rec.Server, rec.Target, rec.Term); err != nil && !fault.Is(err, fault.NotFound) {
		return err
	}
	if err := m.removeMine(ctx, rec); err != nil {
		return err
	}
	return m.dropOutgoing(rec.Server)
}

// alone ends an attempt that is under way, and keeps others from beginning one.
func (m *Manager) alone(ctx context.Context, server string) (leave func(), err error) {
	over := make(chan struct{})
	close(over)
	mine := &working{stop: func() {}, held: over, let: over, done: make(chan struct{})}
	for {
		m.mu.Lock()
		other := m.working[server]
		if other == nil {
			m.working[server] = mine
			m.mu.Unlock()
			return func() {
				m.mu.Lock()
				delete(m.working, server)
				m.mu.Unlock()
				close(mine.done)
			}, nil
		}
		m.mu.Unlock()
		other.stop()
		select {
		case <-other.done:
		case <-ctx.Done():
			return nil, fault.New(fault.Aborted, "take server %s back: an attempt to move it is under way: %w", server, context.Cause(ctx))
		}
	}
}

// Awaits names the host that a server came from and that has not told yet that it knows: if
// it was told that this host is lost it has taken the server back. "" if there is none.
func (m *Manager) Awaits(server string) string {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, r := range m.in {
		if r.Server == server && r.Phase == TargetOwner {
			return r.Source
		}
	}
	return ""
}
