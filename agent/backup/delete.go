package backup

import (
	"context"
	"fmt"
	"slices"

	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
)

// Delete begins to delete a backup and its file; what is written of one that is not
// complete goes too. target is where it is; "" is that of a backup this host made. One of
// another host's is gone when Delete returns: nobody here has a record to go on with.
// Outcomes besides success: fault.NotFound; fault.Precondition while another backup at the
// target builds on it, which is named; fault.Aborted while it is imported or verified;
// fault.Unavailable where the target can't be asked.
func (m *Manager) Delete(ctx context.Context, target, id string) error {
	m.mu.Lock()
	it, err := m.find(id)
	if err != nil || target != "" && !sameTarget(it.rec.Target, target) {
		m.mu.Unlock()
		if target == "" {
			return err
		}
		return m.deleteAt(ctx, target, id)
	}
	rec, done, working := it.rec, it.done, it.cancel != nil
	if rec.Phase == PhaseDeleting && working {
		m.mu.Unlock()
		return nil
	}
	if rec.Phase == PhaseWriting && working {
		it.cancel()
	}
	m.mu.Unlock()
	if working { // it ends soon: the target is told, too
		<-done
	}
	if rec.Phase == PhaseReady {
		if err := m.childless(ctx, rec.Target, rec.ref()); err != nil {
			return err
		}
	}
	return m.beginDelete(it)
}

// deleteAt deletes a backup that this host did not make: its own host may be lost.
func (m *Manager) deleteAt(ctx context.Context, target, id string) error {
	t, err := m.cfg.Stores.Open(ctx, target)
	if err != nil {
		return fmt.Errorf("delete backup %s: %w", id, err)
	}
	files, err := t.List(ctx, "")
	if err != nil {
		return fmt.Errorf("delete backup %s: list target %s: %w", id, target, err)
	}
	i := slices.IndexFunc(files, func(f File) bool { return f.Backup == id })
	if i < 0 {
		return fault.New(fault.NotFound, "delete backup %s: target %s has none of this id", clip(id), target)
	}
	if err := m.childless(ctx, target, files[i].Ref); err != nil {
		return err
	}
	if err := m.retireOther(ctx, t, Found{File: files[i], Target: target}); err != nil {
		return fmt.Errorf("delete backup %s at %s: %w", id, target, err)
	}
	return nil
}

// beginDelete makes the deletion durable and begins it.
func (m *Manager) beginDelete(it *item) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if it.gone || it.cancel != nil {
		return nil // another caller was faster
	}
	if child := m.childHere(it.rec.ID); child != "" {
		return builtOn(it.rec.ID, child)
	}
	if m.busy[it.rec.ID] > 0 {
		return fault.New(fault.Aborted, "delete backup %s: it is being imported or verified", it.rec.ID)
	}
	if err := m.put(it, func(r *Record) { r.Phase, r.Err, r.ErrKind = PhaseDeleting, "", "" }); err != nil {
		return err
	}
	m.begin(it, "delete", m.remove)
	return nil
}

// childHere is a backup of this host that builds on another. m.mu is held.
func (m *Manager) childHere(id string) string {
	for _, it := range m.backups {
		if it.rec.parent() == id && it.rec.Phase != PhaseDeleting {
			return it.rec.ID
		}
	}
	return ""
}

// childless asks the target whether anything builds on a backup.
func (m *Manager) childless(ctx context.Context, target string, ref Ref) error {
	there, err := m.Catalog(ctx, target, ref.Server)
	if err != nil {
		return fmt.Errorf("delete backup %s: %w", ref.Backup, err)
	}
	for _, f := range there {
		if f.Problem == "" && f.Manifest.Parent == ref.Backup {
			return builtOn(ref.Backup, f.Backup)
		}
	}
	return nil
}

func builtOn(id, child string) error {
	return fault.New(fault.Precondition, "delete backup %s: backup %s builds on it; delete that first", id, child)
}

// remove deletes a backup's file, then its record.
func (m *Manager) remove(ctx context.Context, it *item) error {
	rec := m.record(it)
	target, err := m.cfg.Stores.Open(ctx, rec.Target)
	if err == nil {
		err = target.Delete(ctx, rec.ref())
	}
	if err != nil {
		return fmt.Errorf("delete backup %s at %s: %w", rec.ID, rec.Target, err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.forget(it)
}

// forget removes a backup's record. m.mu is held.
func (m *Manager) forget(it *item) error {
	if err := m.cfg.Records.Delete(it.rec.ID); err != nil {
		return fmt.Errorf("forget backup %s: %w", it.rec.ID, err)
	}
	delete(m.backups, it.rec.ID)
	it.gone = true
	it.notify()
	return nil
}
