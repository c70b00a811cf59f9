package vserver

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
)

// Down stops every server, each as cleanly as its shutdown timeout allows, because the host
// goes down. What servers should be is not changed, so the next Recover, after the host is
// back, starts them again. Call it after Close: nobody may begin anything meanwhile. When ctx
// ends, servers that still run are left to the host.
func (m *Manager) Down(ctx context.Context) error {
	all, err := m.inventory(ctx)
	if err != nil {
		return err
	}
	m.mu.Lock()
	servers := slices.Collect(maps.Values(m.servers))
	m.mu.Unlock()
	errs := make([]error, len(servers))
	var wg sync.WaitGroup
	for i, s := range servers {
		wg.Go(func() { errs[i] = s.down(ctx, all[s.id]) })
	}
	wg.Wait()
	return errors.Join(errs...)
}

// down carries out what would be the plan if the server were wanted stopped. Nothing of that
// is recorded: a host that loses power half-way finds the same record.
func (s *server) down(ctx context.Context, have Have) error {
	rec := s.record()
	if rec.Phase != PhaseLive {
		return nil // it does not run; Recover finishes or undoes what was begun
	}
	rec.Want, rec.Rebooting, rec.Force = PowerStopped, false, false
	s.mu.Lock()
	s.have, s.known = have, true
	s.mu.Unlock()
	for _, step := range Plan(rec, have) {
		if err := s.doInSlot(ctx, step); err != nil {
			return fmt.Errorf("stop server %s: %s: %w", rec.Spec.Name, step, err)
		}
	}
	return nil
}
