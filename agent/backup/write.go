package backup

import (
	"context"
	"fmt"

	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
	"github.com/reflejo/terraform-provider-reflejo/agent/snapshot"
)

// write makes a backup's file, from where it is.
func (m *Manager) write(ctx context.Context, it *item) error {
	rec := m.record(it)
	content, source, err := m.cfg.Snapshots.Open(ctx, rec.Snapshot)
	if err != nil {
		return fmt.Errorf("back up snapshot %s: %w", rec.Snapshot, err)
	}
	defer content.Close()
	target, err := m.cfg.Stores.Open(ctx, rec.Target)
	if err != nil {
		return fmt.Errorf("back up to %s: %w", rec.Target, err)
	}
	changed, err := m.decide(ctx, it, content, source, target)
	if err != nil {
		return err
	}
	rec = m.record(it)
	up, w, err := m.upload(ctx, target, rec)
	if fault.Is(err, fault.Exists) { // the agent was killed before it could record it
		return m.found(ctx, it, target)
	}
	if err != nil {
		return fmt.Errorf("back up to %s: %w", rec.Target, err)
	}
	if !up.State().Ended {
		err = writeContent(ctx, content, changed, rec.Manifest.Parent != "", w, func(done, total int64) { m.step(it, "copy", done, total) })
	}
	if err != nil {
		up.Close()
		return fmt.Errorf("back up to %s: %w", rec.Target, err)
	}
	totals, err := w.Close()
	if err != nil {
		up.Close()
		return fmt.Errorf("back up to %s: %w", rec.Target, err)
	}
	m.step(it, "complete", 0, 0)
	if err := m.parentThere(ctx, it, target); err != nil {
		up.Close()
		return err
	}
	if err := up.Commit(); err != nil {
		return fmt.Errorf("back up to %s: %w", rec.Target, err)
	}
	return m.ready(it, totals.Bytes)
}

// upload opens a backup's file where it was left. What is there and is another file, as one
// that an older version of this program began, is begun anew.
func (m *Manager) upload(ctx context.Context, target Target, rec Record) (Upload, *Writer, error) {
	for again := false; ; again = true {
		up, err := target.Append(ctx, rec.ref(), MostBytes(rec.Source.Size))
		if err != nil {
			return nil, nil, err
		}
		w, err := NewWriter(up, *rec.Manifest, up.State())
		if err == nil {
			return up, w, nil
		}
		up.Close()
		if again || !fault.Is(err, fault.Precondition) {
			return nil, nil, err
		}
		if err := target.Delete(ctx, rec.ref()); err != nil {
			return nil, nil, err
		}
	}
}

func (m *Manager) ready(it *item, size int64) error {
	return m.save(it, func(r *Record) { r.Phase, r.Size, r.Err, r.ErrKind = PhaseReady, size, "", "" })
}

// found makes a backup ready whose file is complete.
func (m *Manager) found(ctx context.Context, it *item, target Target) error {
	rec := m.record(it)
	is, err := manifestAt(ctx, target, rec.ref())
	if err != nil {
		return fmt.Errorf("back up to %s: %w", rec.Target, err)
	}
	if is.Snapshot.ID != rec.Snapshot || is.Snapshot.Checksum != rec.Manifest.Snapshot.Checksum {
		return fault.New(fault.Exists, "back up to %s: backup %s is there and is one of snapshot %s", rec.Target, rec.ID, is.Snapshot.ID)
	}
	files, err := target.List(ctx, rec.Source.Server)
	if err != nil {
		return fmt.Errorf("back up to %s: %w", rec.Target, err)
	}
	for _, f := range files {
		if f.Ref == rec.ref() && f.Complete {
			return m.ready(it, f.Size)
		}
	}
	return fault.New(fault.Unavailable, "back up to %s: backup %s was there, and is not any more", rec.Target, rec.ID)
}

// decide makes a backup's manifest, unless it was made, and finds the ranges of an increment.
// An increment whose base has gone since becomes a full backup, begun anew.
func (m *Manager) decide(ctx context.Context, it *item, content snapshot.Content, source snapshot.Record, target Target) ([]snapshot.Range, error) {
	rec := m.record(it)
	if rec.Manifest != nil {
		if rec.Manifest.Parent == "" {
			return nil, nil
		}
		changed, err := content.Changed(ctx, rec.Base)
		if !fault.Is(err, fault.NotFound) {
			return changed, err
		}
		if err := target.Delete(ctx, rec.ref()); err != nil {
			return nil, fmt.Errorf("back up to %s: %w", rec.Target, err)
		}
		rec.Incremental = false
	}
	if source.Checksum == "" {
		m.step(it, "checksum", 0, 0)
		sums, err := snapshot.SumContent(ctx, content, nil, nil)
		if err != nil {
			return nil, fmt.Errorf("back up snapshot %s: %w", rec.Snapshot, err)
		}
		source.Checksum = sums.Checksum()
	}
	full := manifestOf(rec.ID, rec.Name, rec.Origin, source)
	if rec.Incremental {
		found, changed, err := m.parentOf(ctx, content, full, target, rec.Target)
		if err != nil {
			return nil, err
		}
		if found != nil {
			err := m.settle(it, full.onto(*found), found.Snapshot.ID)
			if err == nil {
				return changed, m.parentThere(ctx, it, target)
			}
			if !fault.Is(err, fault.Aborted) {
				return nil, err
			}
		}
	}
	return nil, m.settle(it, full, "")
}

// parentThere looks whether the parent is there still. From when the increment was recorded
// this host does not delete it, but it may have before, and another host may at any time.
// Then what was written is of no use, and the backup is begun anew.
func (m *Manager) parentThere(ctx context.Context, it *item, target Target) error {
	rec := m.record(it)
	if rec.Manifest.Parent == "" {
		return nil
	}
	is, err := manifestAt(ctx, target, Ref{Server: rec.Source.Server, Backup: rec.Manifest.Parent})
	if err == nil && is.Snapshot.Checksum == rec.Manifest.ParentChecksum {
		return nil
	}
	if err != nil && !fault.Is(err, fault.NotFound) {
		return fmt.Errorf("back up to %s: %w", rec.Target, err)
	}
	if err := target.Delete(ctx, rec.ref()); err != nil {
		return fmt.Errorf("back up to %s: %w", rec.Target, err)
	}
	if err := m.save(it, func(r *Record) { r.Manifest, r.Base = nil, "" }); err != nil {
		return err
	}
	return fault.New(fault.Unavailable, "back up to %s: backup %s, which it builds on, was deleted meanwhile", rec.Target, rec.Manifest.Parent)
}

// settle persists a manifest. A parent that is being deleted meanwhile is fault.Aborted:
// under the lock either the deletion sees the increment, or the increment the deletion.
func (m *Manager) settle(it *item, manifest Manifest, base string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if parent, ok := m.backups[manifest.Parent]; m.leaving[manifest.Parent] || ok && parent.rec.Phase == PhaseDeleting {
		return fault.New(fault.Aborted, "build on backup %s: it is being deleted", manifest.Parent)
	}
	return m.put(it, func(r *Record) { r.Manifest, r.Base = &manifest, base })
}

// parentOf finds the newest backup at the target that an increment can be made to: this
// host still has its snapshot. nil where there is none.
func (m *Manager) parentOf(ctx context.Context, content snapshot.Content, full Manifest, target Target, name string) (*Manifest, []snapshot.Range, error) {
	there, err := catalog(ctx, target, name, full.Snapshot.Server)
	if err != nil {
		return nil, nil, err
	}
	for i := len(there) - 1; i >= 0; i-- {
		c := there[i]
		if c.Problem != "" || c.Manifest.ID == full.ID || !c.Manifest.Snapshot.Created.Before(full.Snapshot.Created) {
			continue
		}
		if c.Manifest.Depth >= maxDepth { // its chain is full
			return nil, nil, nil
		}
		changed, err := content.Changed(ctx, c.Manifest.Snapshot.ID)
		if fault.Is(err, fault.NotFound) {
			continue
		}
		if err != nil {
			return nil, nil, fmt.Errorf("compare with snapshot %s: %w", c.Manifest.Snapshot.ID, err)
		}
		return &c.Manifest, changed, nil
	}
	return nil, nil, nil
}
