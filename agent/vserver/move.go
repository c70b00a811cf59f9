package vserver

import (
	"context"
	"fmt"
	"time"

	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
)

// Incoming is a server that is on its way from another host.
type Incoming struct {
	Spec       Spec
	Image      Image
	Want       Power
	Booted     bool
	Created    time.Time
	Generation uint64
	Term       uint64
	Messages   []Message
	// Links are what was decided for its interfaces on the other host: it keeps the addresses
	// on networks that are the same here.
	Links    map[string]Assigned
	Source   string // the other host
	Reserved int64  // bytes that snapshots which come along will take from the host's promise
}

// IncomingOf is a server's record as another host needs it.
func IncomingOf(r Record, host string) Incoming {
	r = r.clone()
	return Incoming{Spec: r.Spec, Image: r.Image, Want: r.Want, Booted: r.Booted, Created: r.Created,
		Generation: r.Generation, Term: r.Term, Messages: r.Messages, Links: r.Links, Source: host}
}

// Reserve admits a server that is to come from another host and makes that durable: name,
// addresses, ports, memory, disk and an id range are its own from now on, and nothing is
// done for it. The same server again is admitted anew. A server that is here already is
// fault.Exists.
func (m *Manager) Reserve(ctx context.Context, in Incoming) error {
	spec := in.Spec.WithDefaults()
	if err := spec.Validate(); err != nil {
		return err
	}
	if s, err := m.find(spec.ID); err == nil {
		if s.record().Phase != PhaseIncoming {
			return fault.New(fault.Exists, "take server %s: host %s has it already", spec.Name, m.cfg.Host)
		}
		_, err := m.change(ctx, spec.ID, "migrate", false, func(rec *Record) error {
			ids := rec.IDs
			*rec = in.record(spec)
			rec.IDs = ids
			return m.admit(rec, nil)
		})
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, ok := m.servers[spec.ID]; ok {
		return fault.New(fault.Aborted, "take server %s: another request is at it", spec.Name)
	}
	rec := in.record(spec)
	if err := m.admit(&rec, nil); err != nil {
		return err
	}
	var err error
	if rec.IDs, err = m.freeIDs(); err != nil {
		return err
	}
	if err := m.cfg.Records.Put(spec.ID, rec); err != nil {
		return fmt.Errorf("record server %s: %w", spec.Name, err)
	}
	m.servers[spec.ID] = newServer(m, rec)
	return nil
}

// record is the record of an incoming server.
func (in Incoming) record(spec Spec) Record {
	return Record{Spec: spec, Phase: PhaseIncoming, Want: in.Want, Image: in.Image, Booted: in.Booted, Created: in.Created,
		Generation: in.Generation, Term: in.Term, Messages: in.Messages, Links: in.Links, Arriving: in.Reserved}
}

// Accept makes durable that this host has the server now, and begins to bring it to what
// it should be. Its disk must be in the pool. Accepting what is here already succeeds. late
// says that this was decided a while ago: as this host may have been away since, it is asked
// before the server starts whether another one has taken it over (Config.Superseded).
func (m *Manager) Accept(ctx context.Context, id string, late bool) error {
	s, err := m.find(id)
	if err != nil {
		return err
	}
	if s.record().Phase == PhaseLive {
		return nil
	}
	kind := "migrate"
	if late {
		kind = opRecover
	}
	_, err = m.change(ctx, id, kind, false, func(rec *Record) error {
		if rec.Phase != PhaseIncoming {
			return fault.New(fault.Precondition, "take server %s: it is not on its way here (%s)", rec.Spec.Name, rec.Phase)
		}
		rec.Phase, rec.Applied, rec.Arriving = PhaseLive, rec.Spec.clone(), 0
		s.mu.Lock()
		s.known = false
		s.mu.Unlock()
		return nil
	})
	return err
}

// Release makes durable that another host has the server, which was made ready for that by
// [Held.Leave], and begins to remove everything of it here. Its last view names that host.
// One that is not here succeeds: it has been done.
func (m *Manager) Release(ctx context.Context, id, to string) error {
	_, err := m.change(ctx, id, "migrate", false, func(rec *Record) error {
		if rec.Leaving == "" && rec.Phase != PhaseMoved {
			return fault.New(fault.Precondition, "release server %s: it is not being handed over", rec.Spec.Name)
		}
		rec.release(to)
		return nil
	})
	if fault.Is(err, fault.NotFound) {
		return nil
	}
	return err
}

func (r *Record) release(to string) {
	r.Phase, r.MovedTo, r.Leaving, r.Force = PhaseMoved, to, "", true
}

// Reclaim lets a server run here again that was being handed over to a host that is lost
// for good, in a term that is higher than that which the lost host knows: should it return
// and have taken the server over, it finds that it may not start it. Called again it succeeds.
func (m *Manager) Reclaim(ctx context.Context, id, lost string, term uint64) (View, error) {
	s, err := m.find(id)
	if err != nil {
		return View{}, err
	}
	if rec := s.record(); rec.Phase == PhaseLive && rec.Leaving == "" && rec.Term >= term {
		return s.view(), nil
	}
	return m.change(ctx, id, "migrate", false, func(rec *Record) error {
		if rec.Phase != PhaseLive || rec.Closed != "" || rec.Leaving != "" && rec.Leaving != lost {
			return fault.New(fault.Precondition, "take server %s back from host %s: it is not being handed over to it", rec.Spec.Name, lost)
		}
		rec.Leaving, rec.Term = "", max(rec.Term, term)
		rec.say(time.Now(), "taken back: host "+lost+", to which it was being handed over, is lost")
		return nil
	})
}

// Abandon gives back what was reserved for an incoming server. One that is not there
// succeeds; one that was accepted is fault.Precondition.
func (m *Manager) Abandon(ctx context.Context, id string) error {
	_, err := m.change(ctx, id, "delete", true, func(rec *Record) error {
		if rec.Phase != PhaseIncoming && rec.Phase != PhaseMoved {
			return fault.New(fault.Precondition, "abandon server %s: this host has it (%s)", rec.Spec.Name, rec.Phase)
		}
		rec.Phase, rec.Force = PhaseMoved, true
		return nil
	})
	if fault.Is(err, fault.NotFound) {
		return nil
	}
	return err
}

// Term is the term of a server that this host has; 0 of one that it has not got, or that no
// host ever took over from another.
func (m *Manager) Term(id string) uint64 {
	if !m.Owned(id) {
		return 0
	}
	s, err := m.find(id)
	if err != nil {
		return 0
	}
	return s.record().Term
}

// Owned says whether this host has the server, as opposed to: never had it, it is on its
// way here, or it has gone elsewhere.
func (m *Manager) Owned(id string) bool {
	s, err := m.find(id)
	if err != nil {
		return false
	}
	switch rec := s.record(); rec.Phase {
	case PhaseIncoming, PhaseMoved, PhaseFailed:
		return false
	default:
		return rec.Closed == ""
	}
}
