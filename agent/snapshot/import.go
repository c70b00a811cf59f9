package snapshot

import (
	"context"

	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
)

// From is the backup that a snapshot is imported from; the zero value is none.
type From struct{ Target, Backup string }

// Import records a snapshot that is to be made of a backup, as the backup's manifest
// describes it, and begins to bring what it holds (Config.Bring). The same id again is the
// same import, and begins anew if it has failed; a snapshot of this id from elsewhere is
// fault.Exists. Room is taken for the whole disk until it is known what the snapshot holds.
func (m *Manager) Import(_ context.Context, rec Record, from From) (View, error) {
	rec = rec.clone()
	rec.Host, rec.Origin, rec.Phase, rec.From = m.cfg.Host, OriginBackup, PhaseReady, from
	rec.Held, rec.Base, rec.Order, rec.Err, rec.ErrKind, rec.Spec.FirstBoot.UserData = 0, "", 0, "", "", ""
	if err := rec.Validate(); err != nil {
		return View{}, err
	}
	rec.Phase, rec.Held = PhaseCreating, rec.Size
	m.admission.Lock()
	defer m.admission.Unlock()
	m.mu.Lock()
	old := m.items[rec.ID]
	if old != nil && (old.rec.From != from || old.rec.Server != rec.Server) {
		defer m.mu.Unlock()
		return View{}, fault.New(fault.Exists, "import snapshot %s: the host has another one of this id, %s", rec.ID, old.rec.Name)
	}
	if old != nil && old.rec.Phase != PhaseFailed {
		defer m.mu.Unlock()
		return old.view(), nil
	}
	rec.Name = freeName(rec.Name, m.names(rec))
	m.mu.Unlock()
	var v View
	_, err := m.admit(rec, "", func(it *item) {
		it.begin("import", it.bring)
		v = it.view() // before anybody can delete it
	})
	return v, err
}

// bring makes an imported snapshot. Broken off, it is begun again at the next start.
func (it *item) bring(ctx context.Context) error {
	rec := it.record()
	err := it.m.cfg.Bring(ctx, rec, func(done, total int64) { it.progress("import", 2, done, total) })
	if err == nil {
		err = it.complete(ctx, Taken{Size: rec.Size, Pause: rec.Pause})
	}
	if err != nil {
		return it.giveUp(ctx, err)
	}
	if rec.Checksum != "" { // as was checked on the way
		return nil
	}
	return it.sum(ctx)
}

// awaitImport waits until a snapshot that is being imported is there.
func (m *Manager) awaitImport(ctx context.Context, id string) error {
	m.mu.Lock()
	it := m.items[id]
	if it == nil || it.rec.From.Backup == "" || it.rec.Phase != PhaseCreating {
		m.mu.Unlock()
		return nil // whoever asked finds out what is the matter
	}
	idle := it.idle
	m.mu.Unlock()
	select {
	case <-idle:
		if m.ctx.Err() != nil {
			return fault.New(fault.Unavailable, "the agent is stopping")
		}
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// Importing reports whether a snapshot of this id is being imported, so that an arrival of
// the same id in the pool is its own.
func (m *Manager) Importing(id string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	it := m.items[id]
	return it != nil && it.rec.From.Backup != "" && it.rec.Phase == PhaseCreating
}

// Bring makes snapshot rec.ID in the pool of the backup that the record names; see Config.
type Bring func(ctx context.Context, rec Record, progress func(done, total int64)) error
