package backup

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/google/uuid"

	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
	"github.com/reflejo/terraform-provider-reflejo/agent/schedule"
	"github.com/reflejo/terraform-provider-reflejo/agent/snapshot"
	"github.com/reflejo/terraform-provider-reflejo/agent/vserver"
)

// tick is how often policies are looked at.
const tick = 20 * time.Second

// Run is how a server's backup policy stands.
type Run struct {
	Server   string
	Schedule string
	Target   string
	Last     time.Time // the last run began, or the policy was set
	Err      string    // of the last run, "" if it succeeded or is under way
	// Snapshot and Backup are those of the run that is under way, persisted before anything
	// is done for it, so that a killed agent goes on with the same; "" if none is.
	Snapshot string
	Backup   string
	// Base is the snapshot of the last backup that was made, kept as what the next increment
	// is found against.
	Base string
}

// run is a Run in memory; the manager's lock guards it.
type run struct {
	Run
	working bool
}

func (m *Manager) loadRuns() error {
	return m.cfg.Runs.ForEach(func(key string, value []byte) error {
		r := &run{}
		if err := json.Unmarshal(value, &r.Run); err != nil {
			return fmt.Errorf("read backup policy's run of server %s: %w", key, err)
		}
		m.runs[key] = r
		return nil
	})
}

// Runs is how the policies stand, by server.
func (m *Manager) Runs() map[string]Run {
	m.mu.Lock()
	defer m.mu.Unlock()
	all := map[string]Run{}
	for server, r := range m.runs {
		all[server] = r.Run
	}
	return all
}

// RunPolicies runs the servers' policies until ctx ends or the manager is closed. Call it
// once, after Recover.
func (m *Manager) RunPolicies(ctx context.Context) {
	m.wg.Add(1) // Close waits for what is begun here
	defer m.wg.Done()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(m.ctx, cancel)()
	ticker := time.NewTicker(tick)
	defer ticker.Stop()
	for {
		m.policies(ctx, time.Now().UTC())
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

// policies begins what is due, and goes on with what a killed agent was at.
func (m *Manager) policies(ctx context.Context, now time.Time) {
	has := map[string]bool{}
	for _, v := range m.cfg.Servers.List() {
		id, policy := v.Spec.ID, v.Spec.BackupPolicy
		if policy.Schedule == "" {
			continue
		}
		has[id] = true
		if !slices.Contains([]vserver.State{vserver.StateRunning, vserver.StateStopped, vserver.StateSuspended}, v.State) {
			continue
		}
		due, err := m.due(id, policy, now)
		if err != nil {
			m.cfg.Log.Error("look at backup policy", "server", id, "error", err)
			continue
		}
		if due {
			m.wg.Go(func() { m.runPolicy(ctx, id, policy) })
		}
	}
	for id, r := range m.Runs() {
		if !has[id] {
			if err := m.forgetRun(ctx, r); err != nil {
				m.cfg.Log.Error("forget backup policy's run", "server", id, "error", err)
			}
		}
	}
}

// forgetRun forgets a policy that is no more, and the snapshots that were kept for it.
func (m *Manager) forgetRun(ctx context.Context, r Run) error {
	m.mu.Lock()
	working := m.runs[r.Server].working
	m.mu.Unlock()
	if working {
		return nil
	}
	for _, id := range []string{r.Base, r.Snapshot} {
		if id != "" && !m.Uses(id) {
			if err := m.cfg.Snapshots.Drop(ctx, id); err != nil {
				return err
			}
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.cfg.Runs.Delete(r.Server); err != nil {
		return err
	}
	delete(m.runs, r.Server)
	return nil
}

// due reports whether a policy's run is to be begun or gone on with, and makes that durable.
// The caller then runs it.
func (m *Manager) due(id string, policy vserver.BackupPolicy, now time.Time) (bool, error) {
	s, err := schedule.Parse(policy.Schedule)
	if err != nil {
		return false, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	r, known := m.runs[id]
	if !known {
		r = &run{}
	}
	next := r.Run
	switch {
	case r.working:
		return false, nil
	case !known || r.Schedule != policy.Schedule: // counts from now
		next.Server, next.Schedule, next.Last = id, policy.Schedule, now
	case r.Backup != "":
		r.working = true
		return true, nil
	case schedule.Due(s, r.Last, now):
		next.Last, next.Snapshot, next.Backup, next.Target = now, uuid.NewString(), uuid.NewString(), policy.Target
	default:
		return false, nil
	}
	if err := m.cfg.Runs.Put(id, next); err != nil {
		return false, fmt.Errorf("record backup policy's run: %w", err)
	}
	m.runs[id] = r
	begun := next.Backup != "" && next.Backup != r.Backup
	r.Run, r.working = next, begun
	return begun, nil
}

// runPolicy makes a backup of a new snapshot, then lets the keep rules remove older ones.
func (m *Manager) runPolicy(ctx context.Context, id string, policy vserver.BackupPolicy) {
	m.mu.Lock()
	r := m.runs[id].Run
	m.mu.Unlock()
	policy.Target = r.Target // which may have been another when the run began
	began := time.Now()
	err := m.policyBackup(ctx, r, policy)
	if ctx.Err() != nil || m.ctx.Err() != nil { // the next agent goes on
		m.ended(id, nil)
		return
	}
	done := r
	done.Snapshot, done.Backup, done.Err = "", "", ""
	if err != nil {
		done.Err = err.Error()
		m.cfg.Log.Error("backup policy failed", "server", id, "error", err)
		err = errors.Join(err, m.discard(ctx, r))
	} else {
		done.Base = r.Snapshot
		if !policy.Incremental {
			done.Base = ""
			err = m.cfg.Snapshots.Drop(ctx, r.Snapshot)
		}
		if r.Base != "" && r.Base != done.Base {
			err = errors.Join(err, m.cfg.Snapshots.Drop(ctx, r.Base))
		}
		if rerr := m.Retain(ctx, id, policy.Target, policy.Keep, time.Now().UTC()); rerr != nil {
			done.Err = rerr.Error()
			err = errors.Join(err, rerr)
		}
	}
	m.cfg.Observe("policy", time.Since(began), err)
	if err != nil {
		m.cfg.Log.Error("backup policy's run", "server", id, "error", err)
	}
	m.ended(id, &done)
}

// ended records a run's end; nil leaves it to be gone on with.
func (m *Manager) ended(id string, done *Run) {
	m.mu.Lock()
	defer m.mu.Unlock()
	r := m.runs[id]
	r.working = false
	if done == nil {
		return
	}
	r.Run = *done
	if err := m.cfg.Runs.Put(id, r.Run); err != nil {
		m.cfg.Log.Error("record backup policy's run", "server", id, "error", err)
	}
}

// policyBackup takes a run's snapshot and backs it up.
func (m *Manager) policyBackup(ctx context.Context, r Run, policy vserver.BackupPolicy) error {
	if err := m.cfg.Stores.Allow(policy.Target); err != nil {
		return err
	}
	_, err := m.cfg.Snapshots.Take(ctx, snapshot.Request{ID: r.Snapshot, Server: r.Server, Origin: snapshot.OriginBackup})
	if err != nil {
		return fmt.Errorf("take snapshot for backup: %w", err)
	}
	if _, err := m.Create(ctx, Request{ID: r.Backup, Snapshot: r.Snapshot, Target: policy.Target, Incremental: policy.Incremental, Origin: OriginPolicy}); err != nil {
		return err
	}
	v, err := m.Settled(ctx, r.Backup)
	switch {
	case err != nil:
		return err
	case v.Gone:
		return fault.New(fault.Aborted, "backup %s was deleted while it was made", r.Backup)
	case v.State != PhaseReady:
		return errors.New(v.Operation.Err)
	}
	return nil
}

// discard removes what a failed run left: the next one begins anew, with newer content.
func (m *Manager) discard(ctx context.Context, r Run) error {
	err := m.Delete(ctx, "", r.Backup)
	if fault.Is(err, fault.NotFound) {
		err = nil
	}
	return errors.Join(err, m.cfg.Snapshots.Drop(ctx, r.Snapshot))
}

// Retain removes what the rules do not keep of a server's backups at a target that policies
// made, whichever host's. What a backup that stays builds on stays too. If a file can't be
// read nothing is removed, since it may build on any.
func (m *Manager) Retain(ctx context.Context, server, target string, keep schedule.Keep, now time.Time) error {
	if keep.All() {
		return nil
	}
	t, err := m.cfg.Stores.Open(ctx, target)
	if err != nil {
		return fmt.Errorf("remove old backups: %w", err)
	}
	there, err := catalog(ctx, t, target, server)
	if err != nil {
		return fmt.Errorf("remove old backups: %w", err)
	}
	for _, f := range there {
		if f.Problem != "" {
			return fault.New(fault.Precondition, "remove old backups: backup %s can't be read, so what it builds on is not known: %s", f.Backup, f.Problem)
		}
	}
	var errs []error
	for _, f := range obsolete(there, keep, m.parentsHere(), now) {
		if err := m.retire(ctx, t, f); err != nil {
			errs = append(errs, fmt.Errorf("remove old backup %s: %w", f.Backup, err))
		}
	}
	return errors.Join(errs...)
}

// parentsHere are the backups that unfinished ones of this host build on.
func (m *Manager) parentsHere() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	var all []string
	for it := range maps.Values(m.backups) {
		if p := it.rec.parent(); p != "" && (it.rec.Phase == PhaseWriting || it.rec.Phase == PhaseFailed) {
			all = append(all, p)
		}
	}
	return all
}

// obsolete are the backups that rules remove and nothing needs, increments before what they
// build on, so that whatever is left at any moment is whole.
func obsolete(there []Found, keep schedule.Keep, needed []string, now time.Time) []Found {
	byID := map[string]Found{}
	var copies []schedule.Copy
	for _, f := range there {
		byID[f.Backup] = f
		if f.Manifest.Origin == OriginPolicy {
			copies = append(copies, schedule.Copy{ID: f.Backup, At: f.Manifest.Snapshot.Created})
		}
	}
	gone := map[string]bool{}
	for _, id := range keep.Remove(copies, now) {
		gone[id] = true
	}
	stay := func(id string) {
		for f, ok := byID[id]; ok; f, ok = byID[f.Manifest.Parent] {
			delete(gone, f.Backup)
			delete(byID, f.Backup) // once is enough, and ends a circle that a forged file makes
		}
	}
	for _, id := range needed {
		stay(id)
	}
	for _, f := range there {
		if !gone[f.Backup] {
			stay(f.Backup)
		}
	}
	left := slices.DeleteFunc(slices.Clone(there), func(f Found) bool { return !gone[f.Backup] })
	slices.SortStableFunc(left, func(a, b Found) int { return cmp.Compare(b.Manifest.Depth, a.Manifest.Depth) })
	return left
}

// retire deletes a backup, by its record where this host has one.
func (m *Manager) retire(ctx context.Context, t Target, f Found) error {
	m.mu.Lock()
	it, here := m.backups[f.Backup]
	m.mu.Unlock()
	if !here {
		return m.retireOther(ctx, t, f)
	}
	if err := m.beginDelete(it); err != nil {
		return err
	}
	v, err := m.Settled(ctx, f.Backup)
	switch {
	case fault.Is(err, fault.NotFound):
		return nil
	case err == nil && !v.Gone && v.Operation.Err != "":
		return errors.New(v.Operation.Err)
	}
	return err
}

// retireOther deletes another host's backup.
func (m *Manager) retireOther(ctx context.Context, t Target, f Found) error {
	m.mu.Lock()
	child, busy := m.childHere(f.Backup), m.busy[f.Backup] > 0
	if child != "" || busy {
		m.mu.Unlock()
		return fault.New(fault.Aborted, "it is being imported or verified, or backup %q builds on it", child)
	}
	m.leaving[f.Backup] = true
	m.mu.Unlock()
	err := t.Delete(ctx, f.Ref)
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.leaving, f.Backup)
	return err
}
