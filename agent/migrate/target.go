package migrate

import (
	"context"
	"crypto/sha256"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/google/uuid"

	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
	"github.com/reflejo/terraform-provider-reflejo/agent/vserver"
)

// Offer is a server that another host has and that is to come here.
type Offer struct {
	Server        vserver.View // as the other host shows it
	Source        string       // that host
	SnapshotBytes int64        // what the snapshots that come along take from the promise
}

// Ticket is the right to send one server.
type Ticket struct {
	Secret  string
	Expires time.Time
}

// Prepare checks everything that would keep a server from coming here, reserves its place,
// and makes a ticket for its source. The same offer again answers a new ticket for the same
// reservation, and what has been received stays.
func (m *Manager) Prepare(ctx context.Context, o Offer) (Ticket, error) {
	in, err := o.incoming()
	if err != nil {
		return Ticket{}, err
	}
	if o.Source == m.cfg.Host {
		return Ticket{}, fault.Field("host", "take server %s: it is on host %s already", o.Server.Spec.Name, m.cfg.Host)
	}
	m.prepare.Lock()
	defer m.prepare.Unlock()
	rec, goesOn, err := m.expected(ctx, o)
	if err != nil {
		return Ticket{}, err
	}
	secret := newSecret()
	// The record comes first: what is reserved without one would stay for ever.
	rec, err = m.changeIncoming(rec.Move, func(r *incoming, there bool) error {
		switch {
		case !goesOn:
			*r = rec
		case !there || r.Phase != TargetIncoming:
			return fault.New(fault.Aborted, "take server %s from host %s: an earlier attempt has ended just now; see where the server is, and ask again", rec.Name, o.Source)
		}
		r.Hash, r.Expires, r.SnapshotBytes = sha256.Sum256(secret), time.Now().UTC().Add(ticketLife), o.SnapshotBytes
		return nil
	})
	if err != nil {
		return Ticket{}, err
	}
	if !rec.Opened { // else the place is that of the server as its source described it
		if err := m.cfg.Servers.Reserve(ctx, in); err != nil {
			m.finish(ctx, rec.Move, true)
			return Ticket{}, err
		}
	}
	return Ticket{Secret: encodeTicket(rec.Move, secret), Expires: rec.Expires}, nil
}

// expected is the record of a move that goes on, or of a new one. Another move of the
// server that was not finished is given up: only one host can have it.
func (m *Manager) expected(ctx context.Context, o Offer) (rec incoming, goesOn bool, err error) {
	id := o.Server.Spec.ID
	for _, r := range m.incomingOfServer(id) {
		switch {
		case r.Phase == TargetOwner && r.Accepted: // its source does not know yet that it came; it does not matter here
		case r.Phase == TargetIncoming && r.Source == o.Source:
			return r, true, nil
		default:
			m.finish(ctx, r.Move, true)
			if r, still := m.incomingOf(r.Move); still && !r.Accepted {
				return incoming{}, false, fault.New(fault.Unavailable, "take server %s: what is left of an earlier attempt can't be removed yet", r.Name)
			}
		}
	}
	if err := m.awaitGone(ctx, id); err != nil {
		return incoming{}, false, err
	}
	return incoming{Move: uuid.NewString(), Server: id, Name: o.Server.Spec.Name, Source: o.Source, Phase: TargetIncoming}, false, nil
}

// awaitGone waits until what was abandoned is gone.
func (m *Manager) awaitGone(ctx context.Context, server string) error {
	for {
		v, err := m.cfg.Servers.Get(server)
		if err != nil || v.State != vserver.StateDeleting {
			return nil
		}
		select {
		case <-time.After(20 * time.Millisecond):
		case <-ctx.Done():
			return fault.New(fault.Unavailable, "take server %s: it is still being removed: %w", v.Spec.Name, context.Cause(ctx))
		}
	}
}

func (m *Manager) incomingOfServer(server string) (all []incoming) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, r := range m.in {
		if r.Server == server {
			all = append(all, r)
		}
	}
	return all
}

// incoming is the offer as a reservation.
func (o Offer) incoming() (vserver.Incoming, error) {
	v := o.Server
	in := vserver.Incoming{Spec: v.Spec, Image: vserver.Image{ID: v.Spec.Image}, Want: vserver.PowerRunning, Booted: true, Created: v.Created,
		Generation: v.Generation, Source: o.Source, Reserved: o.SnapshotBytes, Links: map[string]vserver.Assigned{}}
	if err := movable(v); err != nil {
		return in, err
	}
	if o.Source == "" || o.SnapshotBytes < 0 {
		return in, fault.New(fault.Invalid, "take server %s from host %q with %d bytes of snapshots: that can't be", v.Spec.Name, o.Source, o.SnapshotBytes)
	}
	if v.State == vserver.StateStopped {
		in.Want = vserver.PowerStopped
	}
	for name, nic := range v.NICs {
		p, err := netip.ParsePrefix(nic.Address)
		if err != nil {
			return in, fault.Field("network."+name+".address", "address %q of interface %s: want one with a prefix length", nic.Address, name)
		}
		in.Links[name] = vserver.Assigned{NetworkID: nic.NetworkID, Address: p.Addr(), MAC: nic.MAC}
	}
	return in, nil
}

// movable refuses servers in states that can't travel.
func movable(v vserver.View) error {
	switch v.State {
	case vserver.StateRunning, vserver.StateStopped:
		return nil
	case vserver.StateSuspended:
		return fault.New(fault.Precondition, "migrate server %s: it is suspended, and its memory cannot travel: resume or stop it first", v.Spec.Name)
	}
	return fault.New(fault.Precondition, "migrate server %s: it is %s", v.Spec.Name, v.State)
}

// asked answers the source's question, from the durable record alone. Whoever calls is at
// the move (visit).
func (m *Manager) asked(ctx context.Context, peer string, a asking) (state, error) {
	rec, ok := m.incomingOf(a.Move)
	if !ok {
		return state{Phase: TargetUnknown}, nil
	}
	if rec.Source != peer {
		return state{}, fault.New(fault.Denied, "ask about move %s: it is not host %s's", a.Move, peer)
	}
	switch next := targetNext(rec.Phase, rec.complete(a.Round), a.Ask); {
	case next == rec.Phase:
	case next == TargetOwner:
		if err := m.cfg.Arrivals.Place(ctx, rec.Move, rec.Server); err != nil {
			return state{}, err
		}
		var err error
		if rec, err = m.saveIncoming(rec.Move, func(r *incoming) { r.Phase = TargetOwner }); err != nil {
			return state{}, err
		}
		m.cfg.Log.Info("a server was taken over", "server", rec.Name, "from", rec.Source)
		m.takeOver(ctx, rec, false)
	case next == TargetForgetting:
		if err := m.forget(ctx, rec); err != nil {
			return state{}, err
		}
		return state{Phase: TargetUnknown}, nil
	case next == TargetUnknown: // the source knows; so does this side, once the server is in its place
		if !m.takeOver(ctx, rec, false) {
			break
		}
		if err := m.dropIncoming(rec.Move); err != nil {
			return state{}, err
		}
		return state{Phase: TargetUnknown}, nil
	}
	return rec.state(), nil
}

func (r incoming) state() state {
	return state{Phase: answered(r.Phase), Base: r.Base, Round: r.Round, Through: r.Through, Kept: r.Kept}
}

// takeOver lets the server live here, after the decision; false if that is still to be done.
// It does so once: later the server may have moved on, and may even be on its way back. late
// says that the source may have given this host up since.
func (m *Manager) takeOver(ctx context.Context, rec incoming, late bool) bool {
	if rec.Accepted {
		return true
	}
	ctx = context.WithoutCancel(ctx)
	err := m.cfg.Servers.Accept(ctx, rec.Server, late)
	if fault.Is(err, fault.NotFound) { // accepted before, and deleted or moved on since
		err = nil
	}
	if err == nil && m.cfg.Loans != nil {
		err = m.cfg.Loans.Returned(rec.Server)
	}
	if err == nil {
		_, err = m.saveIncoming(rec.Move, func(r *incoming) { r.Accepted = true })
	}
	if err != nil {
		m.cfg.Log.Error("let a server live that came from another host", "server", rec.Name, "error", err)
	}
	return err == nil
}

// forget undoes a move that was not finished. What fails is tried again later; that it is
// forgotten is durable when this succeeds.
func (m *Manager) forget(ctx context.Context, rec incoming) error {
	rec, err := m.saveIncoming(rec.Move, func(r *incoming) { r.Phase = TargetForgetting })
	if err != nil {
		return err
	}
	if err := m.undo(context.WithoutCancel(ctx), rec); err != nil {
		m.cfg.Log.Warn("remove what is left of a move", "server", rec.Name, "error", err)
	}
	return nil
}

func (m *Manager) undo(ctx context.Context, rec incoming) error {
	if err := m.cfg.Servers.Abandon(ctx, rec.Server); err != nil {
		return err
	}
	if err := m.cfg.Arrivals.Drop(ctx, rec.Move); err != nil {
		return err
	}
	for _, id := range rec.Kept {
		if err := m.dropSnapshot(ctx, id); err != nil {
			return err
		}
	}
	return m.dropIncoming(rec.Move)
}

// dropSnapshot deletes a snapshot, recorded or not.
func (m *Manager) dropSnapshot(ctx context.Context, id string) error {
	err := m.cfg.Snapshots.Delete(ctx, id)
	if fault.Is(err, fault.NotFound) {
		err = m.cfg.Disks.Remove(ctx, id)
	}
	if err != nil {
		return fmt.Errorf("remove snapshot: %w", err)
	}
	return nil
}

// finishIncoming does what is left to do for a move that nobody is at.
func (m *Manager) finishIncoming(ctx context.Context, move string) { m.finish(ctx, move, false) }

// finish is finishIncoming; with giveUp a move that could still go on is forgotten too, and
// whoever is at it is sent away.
func (m *Manager) finish(ctx context.Context, move string, giveUp bool) {
	leave, err := m.enter(ctx, move, nil, giveUp)
	if err != nil {
		return
	}
	defer leave()
	rec, ok := m.incomingOf(move)
	switch {
	case !ok:
	case rec.Phase == TargetOwner:
		m.takeOver(ctx, rec, true)
	case rec.Phase == TargetForgetting, giveUp, time.Now().After(rec.Expires):
		if err := m.forget(ctx, rec); err != nil {
			m.cfg.Log.Warn("forget a move", "server", rec.Name, "error", err)
		}
	}
}

// visit is who is at a move.
type visit struct {
	link Link // nil for this agent itself
	done chan struct{}
}

// enter makes a link the one that is at a move. An older one is ended first: its other end
// is gone, or is about to be. Without push somebody who is there is fault.Aborted.
func (m *Manager) enter(ctx context.Context, move string, l Link, push bool) (leave func(), err error) {
	mine := &visit{link: l, done: make(chan struct{})}
	for {
		m.mu.Lock()
		other := m.visits[move]
		if other == nil {
			m.visits[move] = mine
			m.mu.Unlock()
			return func() {
				m.mu.Lock()
				delete(m.visits, move)
				m.mu.Unlock()
				close(mine.done)
			}, nil
		}
		m.mu.Unlock()
		if !push {
			return nil, fault.New(fault.Aborted, "move %s is worked on", move)
		}
		if other.link != nil {
			_ = other.link.Close()
		}
		select {
		case <-other.done:
		case <-ctx.Done():
			return nil, fault.New(fault.Unavailable, "move %s is worked on: %w", move, context.Cause(ctx))
		}
	}
}

// keptAlready reports whether the target has a snapshot.
func (s state) keptAlready(id string) bool { return slices.Contains(s.Kept, id) }
