package vserver

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/reflejo/terraform-provider-reflejo/agent/cpuset"
)

// opRecover is the kind of an operation that an agent's start makes necessary.
const opRecover = "recover"

// Recover compares records with what is there and begins to finish or undo what a stopped
// or killed agent, or a host that went down, left half done. Running servers are not
// disturbed: their limits and links are set again to what they are. It returns when every
// server's worker has been started; Settled waits for them.
func (m *Manager) Recover(ctx context.Context) error {
	all, err := m.inventory(ctx)
	if err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for id, have := range all {
		if _, ok := m.servers[id]; !ok {
			m.strange(ctx, id, have)
		}
	}
	for _, id := range slices.Sorted(maps.Keys(m.servers)) {
		s := m.servers[id]
		s.mu.Lock()
		s.have, s.known = all[id], true
		rec := s.rec.clone()
		steps := Plan(rec, s.have)
		started := s.have.running()
		s.away = slices.Contains(steps, StepRunStart)
		s.mu.Unlock()
		if len(steps) == 0 && rec.Operation.Settled() {
			s.watchEnd()
			continue
		}
		if rec.Operation.Settled() && rec.Phase == PhaseLive {
			s.mu.Lock()
			s.rec.Operation = Operation{Kind: opRecover, Started: time.Now().UTC()}
			if rec.Want != PowerStopped && !started {
				s.rec.say(time.Now(), "started again: it had ended while the agent was away")
			}
			s.mu.Unlock()
		}
		s.begin()
	}
	return nil
}

// How long a server that may not be started yet waits before it asks again, at first and at most.
const (
	firstAsk = 5 * time.Second
	lastAsk  = time.Minute
)

// askSuperseded closes a server that another host has taken over. It is asked only before
// an agent's start would start a server, as only then has this host been away; and until
// somebody who would know has answered, the server stays down.
func (s *server) askSuperseded(ctx context.Context) error {
	s.mu.Lock()
	rec := s.rec.clone()
	starts := slices.Contains(Plan(rec, s.have), StepRunStart)
	s.mu.Unlock()
	if s.m.cfg.Superseded == nil || !starts || rec.Phase != PhaseLive {
		return nil
	}
	for pause := firstAsk; ; pause = min(2*pause, lastAsk) {
		host, err := s.m.cfg.Superseded(ctx, rec)
		if host != "" {
			s.answered()
			return s.save(func(r *Record) {
				r.Closed, r.Rebooting = host, false
				r.say(time.Now(), "closed: host "+host+" took it over from a backup while this host was lost")
			})
		}
		if err == nil {
			s.answered()
			return nil
		}
		s.m.cfg.Log.Warn("a server is not started: nobody can say whether another host has taken it over", "server", s.id, "error", err, "again", pause.String())
		s.progress("ask whether another host has it", 0, 0)
		if !wait(ctx, pause) {
			return context.Cause(ctx)
		}
	}
}

// answered: it is known whose the server is.
func (s *server) answered() {
	s.mu.Lock()
	s.away = false
	s.mu.Unlock()
}

// recovering reports whether an agent's start is at work on the server.
func (m *Manager) recovering(idOrName string) bool {
	s, err := m.find(idOrName)
	if err != nil {
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.busy && s.rec.Operation.Kind == opRecover
}

// Settled waits until no server has an operation under way.
func (m *Manager) Settled(ctx context.Context) error {
	m.mu.Lock()
	all := slices.Collect(maps.Values(m.servers))
	m.mu.Unlock()
	for _, s := range all {
		if err := s.settled(ctx); err != nil {
			return err
		}
	}
	return nil
}

// strange deals with what no record knows. What holds no data and runs nothing is removed;
// a disk or a running server is left for a person: only lost state leads to it.
func (m *Manager) strange(ctx context.Context, id string, have Have) {
	if have.Disk != nil || have.running() || (have.Group != nil && have.Group.Tasks > 0) {
		m.unknown = append(m.unknown, id)
		m.cfg.Log.Error("something is here that no record knows; it is left alone", "server", id)
		return
	}
	e := m.cfg.Edges
	for _, remove := range []func(context.Context, string) error{e.Networks.Remove, e.Runtime.Delete, e.Limits.Remove} {
		if err := remove(ctx, id); err != nil {
			m.cfg.Log.Error("remove an orphan", "server", id, "error", err)
		}
	}
}

// inventory asks all edges what they hold.
func (m *Manager) inventory(ctx context.Context) (map[string]Have, error) {
	e := m.cfg.Edges
	disks, err := e.Disks.List(ctx)
	if err != nil {
		return nil, fmt.Errorf("list disks: %w", err)
	}
	groups, err := e.Limits.List(ctx)
	if err != nil {
		return nil, fmt.Errorf("list groups: %w", err)
	}
	runs, err := e.Runtime.List(ctx)
	if err != nil {
		return nil, fmt.Errorf("list running servers: %w", err)
	}
	nets, err := e.Networks.List(ctx)
	if err != nil {
		return nil, fmt.Errorf("list links: %w", err)
	}
	all := map[string]Have{}
	edit := func(id string, f func(*Have)) {
		h := all[id]
		f(&h)
		all[id] = h
	}
	for _, d := range disks {
		edit(d.ID, func(h *Have) { h.Disk = &d })
	}
	for _, g := range groups {
		edit(g.ID, func(h *Have) { h.Group = &g })
	}
	for _, r := range runs {
		edit(r.ID, func(h *Have) { h.Run = &r })
	}
	for id := range nets.Servers {
		edit(id, func(h *Have) { h.Links = true })
	}
	return all, nil
}

// cpusets says on which cores each server may run; "" is all of the host.
func (m *Manager) cpusets() map[string]string {
	m.mu.Lock()
	demands, have := make(map[string]cpuset.Demand, len(m.servers)), make(map[string]string, len(m.servers))
	for _, s := range m.servers {
		s.mu.Lock()
		if s.rec.Phase != PhaseFailed {
			demands[s.id], have[s.id] = cpuset.Demand{Milli: s.rec.Spec.CPU.MilliCores, Pin: s.rec.Spec.CPU.Pin}, s.cpuset
		}
		s.mu.Unlock()
	}
	m.mu.Unlock()
	sets, err := cpuset.Place(m.cfg.Capacity().Cores, have, demands)
	if err != nil {
		m.cfg.Log.Warn("share the cores out", "error", err)
	}
	return sets
}

// rebalance sets the limits of running servers anew whose cores changed because of another one.
func (m *Manager) rebalance(changed *server) {
	sets := m.cpusets()
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, s := range m.servers {
		s.mu.Lock()
		stale := s != changed && !s.busy && !s.deleted && s.have.running() && s.have.Verified && s.cpuset != sets[s.id]
		if stale {
			s.have.Verified = false
			s.rec.Operation = Operation{Kind: opRecover, Started: time.Now().UTC()}
		}
		s.mu.Unlock()
		if stale {
			s.begin()
		}
	}
}
