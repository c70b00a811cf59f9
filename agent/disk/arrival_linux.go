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

// arrivalAttribute of a disk that was an arrival holds the arrival's id: Place finds by it
// that it has been called before.
const arrivalAttribute = "trusted.reflejo.arrival"

// Receive implements [snapshot.Arrivals].
func (s Snapshots) Receive(ctx context.Context, id string, size int64) (snapshot.Arrival, error) {
	if err := errors.Join(checkID("arrival", id), checkSize(size)); err != nil {
		return nil, err
	}
	p := s.pool
	unlock, err := p.lockArrival(ctx, id)
	if err != nil {
		return nil, err
	}
	defer unlock()
	f, err := p.openArrival(id)
	if fault.Is(err, fault.NotFound) {
		f, err = p.newArrival(id, size)
	}
	if err != nil {
		return nil, p.explain(fmt.Errorf("receive %s: %w", id, err))
	}
	st, err := f.Stat()
	switch {
	case err != nil:
	case st.Size() > size:
		err = fault.Field("size", "receive %s: it has %d bytes already and cannot shrink to %d", id, st.Size(), size)
	case st.Size() < size:
		err = p.explain(f.Truncate(size))
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return &arrival{File: f, pool: p, size: size}, nil
}

// openArrival opens the file of an arrival; fault.NotFound if there is none.
func (p *Pool) openArrival(id string) (*os.File, error) {
	f, err := openAt(p.arrivals, diskName(id), unix.O_RDWR, 0)
	if errors.Is(err, os.ErrNotExist) {
		return nil, fault.New(fault.NotFound, "open arrival %s: there is none", id)
	}
	return f, err
}

func (p *Pool) newArrival(id string, size int64) (*os.File, error) {
	f, err := p.newFile(p.arrivals)
	if err != nil {
		return nil, err
	}
	err = f.Truncate(size)
	if err == nil {
		err = f.Sync()
	}
	if err == nil {
		err = linkDurably(f, p.arrivals, diskName(id))
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// Keep implements [snapshot.Arrivals].
func (s Snapshots) Keep(ctx context.Context, from, id string) error {
	if err := errors.Join(checkID("arrival", from), checkID("snapshot", id)); err != nil {
		return err
	}
	p := s.pool
	unlockArrival, err := p.lockArrival(ctx, from)
	if err != nil {
		return err
	}
	defer unlockArrival()
	unlock, err := p.lockSnapshot(ctx, id)
	if err != nil {
		return err
	}
	defer unlock()
	have, err := p.openSnapshot(id)
	if err == nil {
		return have.Close()
	}
	if !fault.Is(err, fault.NotFound) {
		return err
	}
	f, err := p.openArrival(from)
	if err != nil {
		return err
	}
	defer f.Close()
	to, err := tempFile(p.snapshots)
	if err != nil {
		return p.explain(fmt.Errorf("keep arrival %s as snapshot %s: %w", from, id, err))
	}
	defer to.Close()
	err = unix.IoctlFileClone(int(to.Fd()), int(f.Fd()))
	if err == nil {
		err = p.keep(to, id)
	}
	if err != nil {
		return p.explain(fmt.Errorf("keep arrival %s as snapshot %s: %w", from, id, err))
	}
	return nil
}

// Place implements [snapshot.Arrivals]. A disk that is there and is not from this arrival
// is fault.Exists.
func (s Snapshots) Place(ctx context.Context, from, server string) error {
	if err := errors.Join(checkID("arrival", from), checkServerID(server)); err != nil {
		return err
	}
	p := s.pool
	unlock, err := p.busy.lock(ctx, server)
	if err != nil {
		return err
	}
	defer unlock()
	unlockArrival, err := p.lockArrival(ctx, from)
	if err != nil {
		return err
	}
	defer unlockArrival()
	if have, err := p.openDisk(server); err == nil {
		defer have.Close()
		b := make([]byte, 64)
		if n, err := unix.Fgetxattr(int(have.Fd()), arrivalAttribute, b); err == nil && string(b[:n]) == from {
			return errors.Join(syncDir(p.disks), syncDir(p.arrivals))
		}
		return fault.New(fault.Exists, "place arrival %s: server %s has a disk already", from, server)
	} else if !fault.Is(err, fault.NotFound) {
		return err
	}
	f, err := p.openArrival(from)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := p.place(f, from, server); err != nil {
		return p.explain(fmt.Errorf("place arrival %s as disk %s: %w", from, server, err))
	}
	return nil
}

func (p *Pool) place(f *os.File, from, server string) error {
	if err := unix.Fsetxattr(int(f.Fd()), arrivalAttribute, []byte(from), 0); err != nil {
		return fmt.Errorf("set attribute: %w", err)
	}
	if err := f.Sync(); err != nil {
		return err
	}
	err := unix.Renameat2(int(p.arrivals.Fd()), diskName(from), int(p.disks.Fd()), diskName(server), unix.RENAME_NOREPLACE)
	if err != nil {
		return fmt.Errorf("rename: %w", err)
	}
	return errors.Join(syncDir(p.disks), syncDir(p.arrivals))
}

// Drop implements [snapshot.Arrivals].
func (s Snapshots) Drop(ctx context.Context, id string) error {
	if err := checkID("arrival", id); err != nil {
		return err
	}
	unlock, err := s.pool.lockArrival(ctx, id)
	if err != nil {
		return err
	}
	defer unlock()
	if err := unlinkDurably(s.pool.arrivals, diskName(id)); err != nil {
		return fmt.Errorf("drop arrival %s: %w", id, err)
	}
	return nil
}

// Arriving implements [snapshot.Arrivals].
func (s Snapshots) Arriving(ctx context.Context) ([]string, error) {
	entries, err := readDir(s.pool.arrivals)
	if err != nil {
		return nil, fmt.Errorf("list arrivals: %w", err)
	}
	var ids []string
	for _, e := range entries {
		if id, ok := serverOf(e.name); ok {
			ids = append(ids, id)
		}
	}
	return ids, ctx.Err()
}

// arrival is an open arrival.
type arrival struct {
	*os.File
	pool *Pool
	size int64
}

// check accepts ranges of whole blocks within the disk.
func (a *arrival) check(offset, length int64) error {
	if offset < 0 || length < 0 || offset > a.size || length > a.size-offset {
		return fault.Field("range", "%d bytes at %d are not within the %d bytes of %s", length, offset, a.size, a.Name())
	}
	if offset%blockSize != 0 || length%blockSize != 0 && offset+length != a.size {
		return fault.Field("range", "%d bytes at %d of %s are not whole blocks of %d", length, offset, a.Name(), blockSize)
	}
	return nil
}

func (a *arrival) WriteAt(b []byte, offset int64) (int, error) {
	if err := a.check(offset, int64(len(b))); err != nil {
		return 0, err
	}
	n, err := a.File.WriteAt(b, offset)
	return n, a.pool.explain(err)
}

// Zero implements [snapshot.Arrival].
func (a *arrival) Zero(r snapshot.Range) error {
	if err := a.check(r.Offset, r.Length); err != nil {
		return err
	}
	if r.Length == 0 {
		return nil
	}
	// To the end of the last block: what a file has there beyond its end reads as zeros.
	err := error(unix.EINTR)
	for errors.Is(err, unix.EINTR) {
		err = unix.Fallocate(int(a.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, r.Offset, roundUp(r.Length, blockSize))
	}
	if err != nil {
		return a.pool.explain(fmt.Errorf("punch %d bytes at %d of %s: %w", r.Length, r.Offset, a.Name(), err))
	}
	return nil
}

// Sync implements [snapshot.Arrival].
func (a *arrival) Sync() error { return a.pool.explain(a.File.Sync()) }
