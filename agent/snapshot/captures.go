package snapshot

import (
	"context"
	"sync"
	"time"

	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
	"github.com/reflejo/terraform-provider-reflejo/agent/vserver"
)

var _ vserver.Captures = (*Manager)(nil)

// Find implements vserver.Captures.
func (m *Manager) Find(id string) (vserver.Capture, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	it, err := m.findReady(id, "use")
	if err != nil {
		return vserver.Capture{}, err
	}
	return vserver.Capture{ID: it.id, Server: it.rec.Server, Name: it.rec.Name, Size: it.rec.Size, Image: it.rec.Image}, nil
}

// findReady is a complete snapshot by id. m.mu is held.
func (m *Manager) findReady(id, verb string) (*item, error) {
	it, err := m.find(id)
	if err != nil {
		return nil, err
	}
	if it.rec.Phase != PhaseReady {
		return nil, fault.New(fault.Precondition, "%s snapshot %s: it is %s", verb, it.rec.Name, it.rec.Phase)
	}
	return it, nil
}

// Pin keeps a complete snapshot from being deleted until release is called.
func (m *Manager) Pin(id string) (release func(), err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	it, err := m.findReady(id, "use")
	if err != nil {
		return nil, err
	}
	it.pins++
	return sync.OnceFunc(func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		if it.pins--; it.pins == 0 && it.free != nil {
			close(it.free)
			it.free = nil
		}
	}), nil
}

// unpinned waits until nobody uses a snapshot that is being deleted.
func (it *item) unpinned(ctx context.Context) error {
	it.m.mu.Lock()
	if it.pins == 0 {
		it.m.mu.Unlock()
		return nil
	}
	if it.free == nil {
		it.free = make(chan struct{})
	}
	free := it.free
	it.m.mu.Unlock()
	select {
	case <-free:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// Copy implements vserver.Captures.
func (m *Manager) Copy(ctx context.Context, id, server string, size int64) error {
	if err := m.awaitImport(ctx, id); err != nil {
		return err
	}
	release, err := m.Pin(id)
	if err != nil {
		return err
	}
	defer release()
	return m.cfg.Disks.Copy(ctx, id, server, size)
}

// Gone implements vserver.Captures: it returns when it is durable that the snapshots go. One
// that is in use goes when it is not any more.
func (m *Manager) Gone(_ context.Context, server string, remove bool) error {
	if !remove {
		return nil
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, it := range m.items {
		if it.rec.Server != server {
			continue
		}
		if err := it.beginRemove(); err != nil {
			return err
		}
	}
	return nil
}

// Keep implements vserver.Captures: the snapshot that is taken before a restore in place
// replaces the disk. It is complete when Keep returns; its checksum follows.
func (m *Manager) Keep(ctx context.Context, id string, server vserver.Record) error {
	it, err := m.enterSafety(ctx, id, server)
	if it == nil || err != nil {
		return err
	}
	result := make(chan error, 1)
	m.mu.Lock()
	done := it.begin("create", func(own context.Context) error {
		taking, cancel := context.WithCancelCause(own)
		unlink := context.AfterFunc(ctx, func() { cancel(context.Cause(ctx)) })
		err := it.takeSafety(taking, server)
		unlink()
		cancel(nil)
		if err != nil {
			err = it.giveUp(own, err)
			result <- err
			return err
		}
		result <- nil
		return it.sum(own)
	})
	m.mu.Unlock()
	select {
	case err = <-result:
		if err != nil {
			<-done // of what failed nothing is under way any more; else its checksums are still to come
		}
		return err
	case <-done: // perhaps without having begun
	}
	select {
	case err = <-result:
		return err
	default:
		return fault.New(fault.Aborted, "take safety snapshot of server %s: broken off", server.Spec.Name)
	}
}

// takeSafety takes a snapshot of a detached disk, unless what was broken off for it has
// completed it.
func (it *item) takeSafety(ctx context.Context, server vserver.Record) error {
	if it.record().Phase == PhaseReady {
		return nil
	}
	if err := it.describe(server, vserver.StateStopped); err != nil {
		return err
	}
	return it.takeDisk(ctx, nil, new(time.Duration))
}

// enterSafety records a safety snapshot that is to be taken; nil if it is complete.
func (m *Manager) enterSafety(ctx context.Context, id string, server vserver.Record) (*item, error) {
	m.admission.Lock()
	defer m.admission.Unlock()
	m.mu.Lock()
	old := m.items[id]
	if old != nil {
		rec := old.rec
		m.mu.Unlock()
		switch {
		case rec.Server != server.Spec.ID || rec.Origin != OriginSafety:
			return nil, fault.New(fault.Exists, "take safety snapshot of server %s: id %s is taken by snapshot %s of server %s", server.Spec.Name, id, rec.Name, rec.ServerName)
		case rec.Phase == PhaseReady:
			return nil, nil
		case rec.Phase == PhaseDeleting:
			return nil, fault.New(fault.Precondition, "take safety snapshot of server %s: snapshot %s of this id is being deleted", server.Spec.Name, rec.Name)
		case rec.Phase == PhaseCreating: // left by a killed agent, which had found room for it
			return old, nil
		}
	} else {
		m.mu.Unlock()
	}
	held, err := m.wouldHold(ctx, server.Spec.ID)
	if err != nil {
		return nil, err
	}
	rec := Record{ID: id, Server: server.Spec.ID, ServerName: server.Spec.Name, Host: m.cfg.Host, Consistency: ConsistencyFilesystem,
		Origin: OriginSafety, Phase: PhaseCreating, ServerState: vserver.StateStopped, Size: server.Spec.Disk.Size, Created: m.cfg.Now().UTC(), Held: held}
	return m.admit(rec, "safety", func(*item) {})
}

// wouldHold is what a snapshot of a detached disk would add to the others.
func (m *Manager) wouldHold(ctx context.Context, server string) (int64, error) {
	c, err := m.cfg.Disks.OpenDisk(ctx, server)
	if err != nil {
		return 0, err
	}
	defer c.Close()
	all := m.ofServer(server)
	_, held, err := measureContent(ctx, c, baseOf(all, nextOrder(all)))
	return held, err
}
