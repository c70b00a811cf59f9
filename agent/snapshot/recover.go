package snapshot

import (
	"context"
	"fmt"
	"maps"
	"slices"

	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
)

// Recover compares records with the pool and begins to finish what a stopped or killed agent
// left half done. The servers have to be recovered before. It returns when all of it is
// under way; Settled waits for the end.
func (m *Manager) Recover(ctx context.Context) error {
	all, err := m.cfg.Disks.List(ctx)
	if err != nil {
		return fmt.Errorf("list snapshots in the pool: %w", err)
	}
	inPool := map[string]DiskInfo{}
	for _, d := range all {
		inPool[d.ID] = d
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	// A file is there only between the first and the last write of its record. What has
	// none tells that the records were lost, or are those of an older day; and then it may
	// be all that somebody has left.
	for id := range inPool {
		if m.items[id] == nil && (m.cfg.Foreign == nil || !m.cfg.Foreign(id)) {
			m.unknown = append(m.unknown, id)
			m.cfg.Log.Error("a snapshot is in the pool that no record knows; it is left alone", "snapshot", id)
		}
	}
	slices.Sort(m.unknown)
	records := slices.Collect(maps.Values(m.items))
	slices.SortFunc(records, func(a, b *item) int { return a.rec.Created.Compare(b.rec.Created) }) // older sums are of use to newer ones
	for _, it := range records {
		if it.busy() { // a server's recovery needed it already
			continue
		}
		d, there := inPool[it.id]
		if err := it.recover(d, there); err != nil {
			return err
		}
	}
	return nil
}

// recover begins what is left to do for one snapshot. m.mu is held.
func (it *item) recover(d DiskInfo, there bool) error {
	switch rec := it.rec; {
	case rec.Phase == PhaseDeleting:
		it.begin("delete", it.remove)
	case rec.Phase == PhaseCreating && there:
		it.begin("create", func(ctx context.Context) error { return it.finish(ctx, Taken{Size: d.Size}) })
	case rec.Phase == PhaseCreating && rec.Origin == OriginSafety:
		// Its moment is the restore's; if that is still to come it asks for this again.
		if err := it.lost(fault.New(fault.Aborted, "the restore that it was taken for was broken off before")); err != nil {
			return err
		}
		it.begin("create", func(ctx context.Context) error { return it.m.cfg.Disks.Remove(ctx, it.id) })
	case rec.Phase == PhaseCreating && rec.From.Backup != "":
		it.begin("import", it.bring)
	case rec.Phase == PhaseCreating:
		it.begin("create", it.take)
	case rec.Phase == PhaseReady && !there:
		if err := it.lost(fault.New(fault.NotFound, "its file is not in the pool any more: something else removed it")); err != nil {
			return err
		}
		it.begin("create", it.forsake)
	case rec.Phase == PhaseReady && rec.Checksum == "":
		it.begin("checksum", it.sum)
	}
	return nil
}

// lost records that nothing is left of the snapshot. m.mu is held.
func (it *item) lost(why error) error {
	it.m.cfg.Log.Error("a snapshot is lost", "snapshot", it.id, "error", why)
	return it.saveLocked(func(r *Record) error {
		r.Phase, r.Held, r.Base = PhaseFailed, 0, ""
		r.fail(why)
		return nil
	})
}

// finish completes a snapshot that is in the pool already.
func (it *item) finish(ctx context.Context, taken Taken) error {
	if err := it.complete(ctx, taken); err != nil {
		return it.giveUp(ctx, err)
	}
	return it.sum(ctx)
}

// forsake counts anew those that were compared with a snapshot that is lost.
func (it *item) forsake(ctx context.Context) error {
	server := it.record().Server
	unlock, err := it.m.lockChain(ctx, server)
	if err != nil {
		return err
	}
	defer unlock()
	all := it.m.ofServer(server)
	for _, based := range basedOn(all, it.id) {
		if err := it.m.rebase(ctx, based, baseOf(all, based.Order)); err != nil {
			return err
		}
	}
	return nil
}

// Adopt records a snapshot that came into the pool from elsewhere (Arrivals.Keep). The same
// record again is the same snapshot, another one with its id is fault.Exists; without a
// file in the pool it is fault.NotFound. A name that another snapshot of its server has
// gets a number. An unknown checksum is found afterwards.
func (m *Manager) Adopt(ctx context.Context, rec Record) (View, error) {
	if err := rec.Validate(); err != nil {
		return View{}, fmt.Errorf("adopt snapshot: %w", err)
	}
	unlock, err := m.lockChain(ctx, rec.Server)
	if err != nil {
		return View{}, err
	}
	defer unlock()
	if v, err := m.view(rec.ID); err == nil {
		if v.State != PhaseReady || v.Server != rec.Server || v.Size != rec.Size || rec.Checksum != "" && v.Checksum != "" && v.Checksum != rec.Checksum {
			return View{}, fault.New(fault.Exists, "adopt snapshot %s: the host has another one of this id, %s, which is %s", rec.ID, v.Name, v.State)
		}
		return v, nil
	}
	all := m.ofServer(rec.Server)
	rec = rec.clone()
	rec.Host, rec.Phase, rec.Err, rec.ErrKind, rec.Spec.FirstBoot.UserData = m.cfg.Host, PhaseReady, "", "", ""
	rec.Order = nextOrder(all)
	if rec.Base, rec.Held, err = m.measure(ctx, rec.ID, baseOf(all, rec.Order)); err != nil {
		return View{}, fmt.Errorf("adopt snapshot %s: %w", rec.Name, err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.items[rec.ID] != nil {
		return View{}, fault.New(fault.Aborted, "adopt snapshot %s: another request makes one of this id", rec.ID)
	}
	rec.Name = freeName(rec.Name, m.names(rec))
	if err := m.name(&rec, ""); err != nil {
		return View{}, err
	}
	it, err := m.insert(rec)
	if err != nil {
		return View{}, err
	}
	m.unknown = slices.DeleteFunc(m.unknown, func(id string) bool { return id == rec.ID })
	if rec.Checksum == "" {
		it.begin("checksum", it.sum)
	}
	return it.view(), nil
}
