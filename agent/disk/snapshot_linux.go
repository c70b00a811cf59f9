package disk

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
	"github.com/reflejo/terraform-provider-reflejo/agent/snapshot"
	"golang.org/x/sys/unix"
)

var (
	_ snapshot.Disks    = Snapshots{}
	_ snapshot.Arrivals = Snapshots{}
)

// Snapshots are the snapshots of a pool's disks, and the disks that come in from elsewhere.
// Nobody writes to a snapshot's file: it has mode 0400 in a directory of root's. It does
// not have the immutable attribute, which would be in the way of who removes a pool.
type Snapshots struct{ pool *Pool }

// Snapshots returns the pool's snapshots.
func (p *Pool) Snapshots() Snapshots { return Snapshots{p} }

// FreezeTarget is where the file system of a server's disk is mounted for the host, so that
// it can be frozen there; fault.Precondition if it is not mounted.
func (p *Pool) FreezeTarget(id string) (string, error) {
	if err := checkServerID(id); err != nil {
		return "", err
	}
	at, err := p.attachment(id)
	if err != nil {
		return "", err
	}
	if at.Root == "" {
		return "", fault.New(fault.Precondition, "disk %s is not attached", id)
	}
	return at.Root, nil
}

// lockSnapshot and lockArrival serialise calls about one of them; who needs a disk as well
// locks that first.
func (p *Pool) lockSnapshot(ctx context.Context, id string) (func(), error) {
	return p.busy.lock(ctx, "snapshot "+id)
}

func (p *Pool) lockArrival(ctx context.Context, id string) (func(), error) {
	return p.busy.lock(ctx, "arrival "+id)
}

// Take implements [snapshot.Disks].
func (s Snapshots) Take(ctx context.Context, id, server string, quiet snapshot.Quiet) (snapshot.Taken, error) {
	if err := errors.Join(checkID("snapshot", id), checkServerID(server)); err != nil {
		return snapshot.Taken{}, err
	}
	p := s.pool
	for _, lock := range []func() (func(), error){
		func() (func(), error) { return p.busy.lock(ctx, server) },
		func() (func(), error) { return p.lockSnapshot(ctx, id) },
	} {
		unlock, err := lock()
		if err != nil {
			return snapshot.Taken{}, err
		}
		defer unlock()
	}
	have, err := p.openSnapshot(id)
	if err == nil {
		defer have.Close()
		st, err := have.Stat()
		if err != nil {
			return snapshot.Taken{}, err
		}
		return snapshot.Taken{Size: st.Size()}, nil
	}
	if !fault.Is(err, fault.NotFound) {
		return snapshot.Taken{}, err
	}
	taken, err := p.take(ctx, id, server, quiet)
	if err != nil {
		return snapshot.Taken{}, p.explain(fmt.Errorf("take snapshot %s of disk %s: %w", id, server, err))
	}
	return taken, nil
}

func (p *Pool) take(ctx context.Context, id, server string, quiet snapshot.Quiet) (snapshot.Taken, error) {
	from, err := p.openDisk(server)
	if err != nil {
		return snapshot.Taken{}, err
	}
	defer from.Close()
	st, err := from.Stat()
	if err != nil {
		return snapshot.Taken{}, err
	}
	to, err := tempFile(p.snapshots)
	if err != nil {
		return snapshot.Taken{}, err
	}
	defer to.Close()
	l, err := findLoop(from)
	if err != nil {
		return snapshot.Taken{}, err
	}
	t := &take{p: p, id: server, from: from, to: to, size: st.Size()}
	if l == nil {
		err = t.clone()
	} else {
		err = urgently(func() error { return t.live(ctx, l, quiet) })
		l.Close()
	}
	if err != nil {
		return snapshot.Taken{}, err
	}
	return snapshot.Taken{Size: t.size, Pause: t.pause}, p.keep(to, id)
}

// keep makes the unnamed file snapshot id, durably.
func (p *Pool) keep(f *os.File, id string) error {
	if err := f.Chmod(0o400); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	return linkDurably(f, p.snapshots, diskName(id))
}

// linkDurably gives an unnamed file, which is durable, a name.
func linkDurably(f, dir *os.File, name string) error {
	if err := unix.Linkat(int(f.Fd()), "", int(dir.Fd()), name, unix.AT_EMPTY_PATH); err != nil {
		return fmt.Errorf("link %s: %w", name, err)
	}
	return syncDir(dir)
}

// openSnapshot opens the file of a snapshot; fault.NotFound if there is none.
func (p *Pool) openSnapshot(id string) (*os.File, error) {
	f, err := openAt(p.snapshots, diskName(id), unix.O_RDONLY, 0)
	if errors.Is(err, os.ErrNotExist) {
		return nil, fault.New(fault.NotFound, "open snapshot %s: there is none", id)
	}
	return f, err
}

// Remove implements [snapshot.Disks].
func (s Snapshots) Remove(ctx context.Context, id string) error {
	if err := checkID("snapshot", id); err != nil {
		return err
	}
	unlock, err := s.pool.lockSnapshot(ctx, id)
	if err != nil {
		return err
	}
	defer unlock()
	if err := unlinkDurably(s.pool.snapshots, diskName(id)); err != nil {
		return fmt.Errorf("remove snapshot %s: %w", id, err)
	}
	return nil
}

// unlinkDurably removes a file that may be gone.
func unlinkDurably(dir *os.File, name string) error {
	err := unix.Unlinkat(int(dir.Fd()), name, 0)
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	if err != nil {
		return err
	}
	return syncDir(dir)
}

// List implements [snapshot.Disks]. It reads the extents of every snapshot, which takes 2
// to 3 µs for each.
func (s Snapshots) List(ctx context.Context) ([]snapshot.DiskInfo, error) {
	entries, err := readDir(s.pool.snapshots)
	if err != nil {
		return nil, fmt.Errorf("list snapshots: %w", err)
	}
	var all []snapshot.DiskInfo
	for _, e := range entries {
		id, ok := serverOf(e.name)
		if !ok {
			continue
		}
		f, err := s.pool.openSnapshot(id)
		if fault.Is(err, fault.NotFound) {
			continue // removed meanwhile
		}
		if err != nil {
			return nil, fmt.Errorf("list snapshots: %w", err)
		}
		extents, err := readExtents(ctx, f, 0, e.size)
		f.Close()
		if err != nil {
			return nil, fmt.Errorf("list snapshots: %w", err)
		}
		info := snapshot.DiskInfo{ID: id, Size: e.size, Allocated: e.used}
		for _, m := range extents {
			if !m.shared {
				info.Exclusive += m.length
			}
		}
		all = append(all, info)
	}
	return all, ctx.Err()
}

// Copy implements [snapshot.Disks].
func (s Snapshots) Copy(ctx context.Context, id, server string, size int64) error {
	if err := errors.Join(checkID("snapshot", id), checkServerID(server), checkSize(size)); err != nil {
		return err
	}
	p := s.pool
	unlock, err := p.busy.lock(ctx, server)
	if err != nil {
		return err
	}
	defer unlock()
	from, err := p.openSnapshot(id)
	if err != nil {
		return err
	}
	defer from.Close()
	have, err := p.openDetached(server)
	if err == nil {
		have.Close()
	} else if !fault.Is(err, fault.NotFound) {
		return err
	}
	if err := p.copy(from, server, size); err != nil {
		return p.explain(fmt.Errorf("copy snapshot %s to disk %s: %w", id, server, err))
	}
	p.setFresh(server, true)
	return nil
}

// copy puts a clone of a snapshot's file into the place of the server's disk. It needs a
// name for a moment, as only what has one can replace another; Open removes what is left of
// an interrupted copy.
func (p *Pool) copy(from *os.File, server string, size int64) error {
	st, err := from.Stat()
	if err != nil {
		return err
	}
	f, err := p.newFile(p.disks)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.IoctlFileClone(int(f.Fd()), int(from.Fd())); err != nil {
		return fmt.Errorf("clone: %w", err)
	}
	if err := f.Truncate(max(size, st.Size())); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	dir, name := int(p.disks.Fd()), copyName(server)
	if err := unix.Unlinkat(dir, name, 0); err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("remove %s: %w", name, err)
	}
	if err := unix.Linkat(int(f.Fd()), "", dir, name, unix.AT_EMPTY_PATH); err != nil {
		return fmt.Errorf("link %s: %w", name, err)
	}
	if err := unix.Renameat(dir, name, dir, diskName(server)); err != nil {
		_ = unix.Unlinkat(dir, name, 0)
		return fmt.Errorf("rename %s: %w", name, err)
	}
	return syncDir(p.disks)
}

// sweepCopies removes copies that a killed agent has not put into place.
func (p *Pool) sweepCopies() error {
	entries, err := readDir(p.disks)
	if err != nil {
		return fmt.Errorf("list disks: %w", err)
	}
	for _, e := range entries {
		if !copyPattern.MatchString(e.name) {
			continue
		}
		if err := unix.Unlinkat(int(p.disks.Fd()), e.name, 0); err != nil && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("remove %s: %w", e.name, err)
		}
	}
	return nil
}

// openDetached opens the file of a server's disk that nothing uses; fault.Precondition if
// something does.
func (p *Pool) openDetached(server string) (*os.File, error) {
	f, err := p.openDisk(server)
	if err != nil {
		return nil, err
	}
	l, err := findLoop(f)
	if l != nil {
		l.Close()
		err = fault.New(fault.Precondition, "disk %s is attached; stop the server first", server)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}
