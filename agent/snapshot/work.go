package snapshot

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
	"github.com/reflejo/terraform-provider-reflejo/agent/vserver"
)

// The places where an agent may die in the middle of something, between what is durable.
// Tests that kill it walk them.
const (
	placeRecorded  = "snapshot/recorded"  // a record, nothing in the pool
	placeDescribed = "snapshot/described" // the moment's description, nothing in the pool
	placeQuiet     = "snapshot/quiet"     // writers are stopped
	placeTaken     = "snapshot/taken"     // in the pool, not counted
	placeReady     = "snapshot/ready"     // complete, without a checksum
	placeSummed    = "snapshot/summed"    // the checksum is found, not recorded
	placeDeleting  = "snapshot/deleting"  // the deletion is recorded, nothing is done for it
	placeCounted   = "snapshot/counted"   // others are counted anew, the deleted one is in the pool
	placeRemoved   = "snapshot/removed"   // not in the pool any more, the record is left
)

// Places are all of them.
func Places() []string {
	return []string{placeRecorded, placeDescribed, placeQuiet, placeTaken, placeReady, placeSummed, placeDeleting, placeCounted, placeRemoved}
}

// take makes the snapshot that the record asks for, and sums it.
func (it *item) take(ctx context.Context) error {
	if err := it.takeInTurn(ctx); err != nil {
		return it.giveUp(ctx, err)
	}
	return it.sum(ctx)
}

// takeInTurn takes the snapshot while nobody else operates on its server.
func (it *item) takeInTurn(ctx context.Context) error {
	crashPoint(placeRecorded)
	it.step("wait", 1)
	return it.m.servers.Hold(ctx, it.record().Server, "snapshot", it.takeHeld)
}

func (it *item) takeHeld(ctx context.Context, h *vserver.Held) error {
	select { // only now: waiting for a server, which may be on its way to another host, is no work
	case it.m.takes <- struct{}{}:
		defer func() { <-it.m.takes }()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	have, state := h.Have(), h.State()
	if err := it.describe(h.Record(), state); err != nil {
		return err
	}
	var quiet Quiet
	var held time.Duration
	if rec := it.record(); have.Disk != nil && have.Disk.Attached && rec.Consistency == ConsistencyFilesystem {
		// The tasks of a suspended server are frozen already, and stay so.
		quiet = it.m.cfg.Quiet(rec.Server, have.Disk.Attachment.Root, state == vserver.StateRunning,
			func(d time.Duration) { held = d }).dying()
	}
	crashPoint(placeDescribed)
	h.Progress("snapshot", 1, 1, 0, 0)
	return it.takeDisk(ctx, quiet, &held)
}

// dying is quiet with a place to die in.
func (q Quiet) dying() Quiet {
	return func(ctx context.Context) (func() error, error) {
		loud, err := q(ctx)
		if err == nil {
			crashPoint(placeQuiet)
		}
		return loud, err
	}
}

// describe records what the server is, before the moment that the snapshot shows: should
// the agent be killed after it, the record still tells of that moment.
func (it *item) describe(server vserver.Record, state vserver.State) error {
	spec := server.Spec
	spec.FirstBoot.UserData = ""
	return it.save(in(PhaseCreating, func(r *Record) {
		r.ServerName, r.ServerState, r.Spec, r.Image, r.Term = spec.Name, state, spec, server.Image, server.Term
		r.Size, r.Created = spec.Disk.Size, it.m.cfg.Now().UTC()
	}))
}

// takeDisk makes the pool's part and completes the record. Nobody else operates on the
// server. held is for how long quiet held writers up, known when the pool's part is done.
func (it *item) takeDisk(ctx context.Context, quiet Quiet, held *time.Duration) error {
	it.step("take", 2)
	taken, err := it.m.cfg.Disks.Take(ctx, it.id, it.record().Server, quiet)
	if err != nil {
		return err
	}
	crashPoint(placeTaken)
	taken.Pause = max(taken.Pause, *held)
	return it.complete(ctx, taken)
}

// complete counts what the snapshot, which is in the pool, adds to the others and records
// that it is ready.
func (it *item) complete(ctx context.Context, taken Taken) error {
	it.step("measure", 3)
	server := it.record().Server
	unlock, err := it.m.lockChain(ctx, server)
	if err != nil {
		return err
	}
	defer unlock()
	all := it.m.ofServer(server)
	order := nextOrder(all)
	base, held, err := it.m.measure(ctx, it.id, baseOf(all, order))
	if err != nil {
		return err
	}
	return it.save(in(PhaseCreating, func(r *Record) {
		r.Phase, r.Size, r.Pause, r.Order, r.Base, r.Held, r.Err, r.ErrKind = PhaseReady, taken.Size, taken.Pause, order, base, held, "", ""
	}))
}

// giveUp takes back a snapshot that could not be made.
func (it *item) giveUp(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx) // the next start, or who broke it off, goes on from the record
	}
	if it.record().Phase != PhaseCreating {
		return err
	}
	removeErr := it.m.cfg.Disks.Remove(ctx, it.id)
	saveErr := it.save(in(PhaseCreating, func(r *Record) {
		r.Phase = PhaseFailed
		r.fail(err)
		if removeErr == nil {
			r.Held = 0
		}
	}))
	return errors.Join(err, removeErr, saveErr)
}

// remove deletes the snapshot. Who was counted by what it differs from this one is counted
// anew first, so that the ledger never has less than the pool holds.
func (it *item) remove(ctx context.Context) error {
	err := it.removeNow(ctx)
	if err != nil && ctx.Err() == nil {
		err = errors.Join(err, it.save(func(r *Record) error { r.fail(err); return nil }))
	}
	return err
}

func (it *item) removeNow(ctx context.Context) error {
	m, rec := it.m, it.record()
	if err := it.unpinned(ctx); err != nil {
		return err
	}
	crashPoint(placeDeleting)
	unlock, err := m.lockChain(ctx, rec.Server)
	if err != nil {
		return err
	}
	defer unlock()
	all := m.ofServer(rec.Server)
	for _, based := range basedOn(all, it.id) {
		if err := m.rebase(ctx, based, baseOf(all, based.Order)); err != nil {
			return err
		}
	}
	crashPoint(placeCounted)
	if err := m.cfg.Disks.Remove(ctx, it.id); err != nil {
		return err
	}
	crashPoint(placeRemoved)
	if err := m.removeSums(it.id); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.cfg.Records.Delete(it.id); err != nil {
		return fmt.Errorf("forget snapshot %s: %w", rec.Name, err)
	}
	delete(m.items, it.id)
	m.count()
	it.gone, it.op.Done = true, true
	it.notify()
	return nil
}

// rebase counts a snapshot anew against another base.
func (m *Manager) rebase(ctx context.Context, rec Record, base string) error {
	if rec.Phase != PhaseReady {
		return nil
	}
	base, held, err := m.measure(ctx, rec.ID, base)
	if err != nil {
		return fmt.Errorf("count snapshot %s anew: %w", rec.Name, err)
	}
	m.mu.Lock()
	it := m.items[rec.ID]
	m.mu.Unlock()
	if it == nil {
		return nil
	}
	err = it.save(in(PhaseReady, func(r *Record) { r.Base, r.Held = base, held }))
	if errors.Is(err, errNothing) { // it is to be deleted itself, after this one
		return nil
	}
	return err
}

// measure says how many bytes snapshot id holds that base does not, or all that it holds
// where base is "" or not to be compared with.
func (m *Manager) measure(ctx context.Context, id, base string) (usedBase string, held int64, err error) {
	c, err := m.cfg.Disks.Open(ctx, id)
	if err != nil {
		return "", 0, err
	}
	defer c.Close()
	return measureContent(ctx, c, base)
}

func measureContent(ctx context.Context, c Content, base string) (usedBase string, held int64, err error) {
	data, err := c.Data(ctx)
	if err != nil || base == "" {
		return "", total(data), err
	}
	changed, err := c.Changed(ctx, base)
	if fault.Is(err, fault.NotFound) {
		return "", total(data), nil
	}
	return base, common(data, changed), err
}

// lockChain waits for the turn to change what is counted of a server's snapshots.
func (m *Manager) lockChain(ctx context.Context, server string) (unlock func(), err error) {
	m.mu.Lock()
	turn := m.chains[server]
	if turn == nil {
		turn = make(chan struct{}, 1)
		m.chains[server] = turn
	}
	m.mu.Unlock()
	select {
	case turn <- struct{}{}:
		return func() { <-turn }, nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// ofServer are copies of all records of a server, in the order of its chain.
func (m *Manager) ofServer(server string) []Record {
	m.mu.Lock()
	defer m.mu.Unlock()
	var all []Record
	for _, it := range m.items {
		if it.rec.Server == server {
			all = append(all, it.rec.clone())
		}
	}
	byOrder(all)
	return all
}
