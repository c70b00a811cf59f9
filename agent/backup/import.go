package backup

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
	"github.com/reflejo/terraform-provider-reflejo/agent/snapshot"
)

// readAhead is what is read of a file at once, bytes.
const readAhead = 256 << 10

// files are those of a backup, opened for reading.
type files struct {
	chain *chain
	last  Manifest
	total int64 // bytes of all files
	close []func()
}

func (f *files) Close() {
	for _, c := range slices.Backward(f.close) {
		c()
	}
}

// openFiles opens a backup and all that it builds on. While they are open this manager
// deletes none of them.
func (m *Manager) openFiles(ctx context.Context, target, id string) (*files, error) {
	t, err := m.cfg.Stores.Open(ctx, target)
	if err != nil {
		return nil, fmt.Errorf("read backup %s: %w", id, err)
	}
	found, err := whose(ctx, t, id)
	if err != nil {
		return nil, fmt.Errorf("read backup %s at %s: %w", id, target, err)
	}
	f := &files{}
	var readers []*Reader
	for next := id; next != ""; {
		if len(readers) > maxDepth {
			f.Close()
			return nil, fault.New(fault.Precondition, "read backup %s: it builds on more than %d others", id, maxDepth)
		}
		m.reading(next, 1)
		body := &reopening{ctx: ctx, target: t, file: Ref{Server: found.Server, Backup: next}}
		f.close = append(f.close, func() { body.Close(); m.reading(body.file.Backup, -1) })
		r, err := NewReader(bufio.NewReaderSize(body, readAhead))
		if fault.Is(err, fault.NotFound) && next != id {
			err = fault.New(fault.Precondition, "it builds on backup %s, which is not there: %w", next, err)
		}
		if err != nil {
			f.Close()
			return nil, fmt.Errorf("read backup %s: %w", next, err)
		}
		f.close = append(f.close, r.Close)
		readers = append(readers, r)
		next = r.Manifest().Parent
	}
	f.last = readers[0].Manifest()
	slices.Reverse(readers)
	if f.chain, err = newChain(readers); err != nil {
		f.Close()
		return nil, err
	}
	f.total = found.total(readers)
	return f, nil
}

// place is where a backup is at a target.
type place struct {
	Ref
	sizes map[string]int64 // of the server's files, by backup
}

func (p place) total(readers []*Reader) int64 {
	var n int64
	for _, r := range readers {
		n += p.sizes[r.Manifest().ID]
	}
	return n
}

// whose finds a backup of which only the id is known.
func whose(ctx context.Context, t Target, id string) (place, error) {
	all, err := t.List(ctx, "")
	if err != nil {
		return place{}, err
	}
	i := slices.IndexFunc(all, func(f File) bool { return f.Backup == id && f.Complete })
	if i < 0 {
		return place{}, fault.New(fault.NotFound, "there is none of this id")
	}
	p := place{Ref: all[i].Ref, sizes: map[string]int64{}}
	for _, f := range all {
		if f.Server == p.Server && f.Complete {
			p.sizes[f.Backup] = f.Size
		}
	}
	return p, nil
}

// reading counts who reads a backup's file.
func (m *Manager) reading(id string, n int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.busy[id] += n; m.busy[id] == 0 {
		delete(m.busy, id)
	}
}

// Report says what a verification found.
type Report struct {
	OK      bool
	Problem string // the first bad place: backup, bytes of the file, range of the disk
	Bytes   int64  // of all files
}

// Verify reads a backup and all that it builds on back, and checks every sum and the
// checksum of the disk that they make. target is where it is; "" is that of a backup this
// host made. What it finds is in the report; an error says that it could not look.
func (m *Manager) Verify(ctx context.Context, target, id string, progress Progress) (Report, error) {
	if target == "" {
		v, err := m.Get(id)
		if err != nil {
			return Report{}, err
		}
		target = v.Target
	}
	f, err := m.openFiles(ctx, target, id)
	if err != nil {
		return problem(err, 0)
	}
	defer f.Close()
	err = f.chain.readDisk(ctx, f.total, progress, func(int64, []byte) error { return nil })
	if err != nil {
		return problem(err, f.total)
	}
	return Report{OK: true, Bytes: f.total}, nil
}

// problem makes a report of an error that is about the backup.
func problem(err error, bytes int64) (Report, error) {
	var damage *Damage
	if errors.As(err, &damage) || fault.Is(err, fault.Precondition) {
		return Report{Problem: err.Error(), Bytes: bytes}, nil
	}
	return Report{}, err
}

// Import makes snapshot id of a backup: its files are put together into an arrival of that
// id, what the disk then holds is checked, and the arrival kept as the snapshot. It returns
// the manifest, which has the snapshot's record. A backup that is damaged, or lacks what it
// builds on, is fault.Precondition and leaves nothing. Called again after an interruption it
// begins anew.
func (m *Manager) Import(ctx context.Context, target, id, into string, arrivals snapshot.Arrivals, progress Progress) (Manifest, error) {
	f, err := m.openFiles(ctx, target, id)
	if err != nil {
		return Manifest{}, damaged(fmt.Errorf("import backup %s: %w", id, err))
	}
	defer f.Close()
	if err := arrivals.Drop(ctx, into); err != nil { // what an interrupted one left
		return Manifest{}, fmt.Errorf("import backup %s: %w", id, err)
	}
	if err := receive(ctx, f, into, arrivals, progress); err != nil {
		err = damaged(fmt.Errorf("import backup %s: %w", id, err))
		if derr := arrivals.Drop(context.WithoutCancel(ctx), into); derr != nil {
			return Manifest{}, fmt.Errorf("%w (and what came can't be removed: %v)", err, derr)
		}
		return Manifest{}, err
	}
	if err := arrivals.Keep(ctx, into, into); err != nil {
		return Manifest{}, fmt.Errorf("import backup %s: %w", id, err)
	}
	if err := arrivals.Drop(ctx, into); err != nil {
		return Manifest{}, fmt.Errorf("import backup %s: %w", id, err)
	}
	return f.last, nil
}

// damaged gives damage its kind.
func damaged(err error) error {
	var damage *Damage
	if errors.As(err, &damage) {
		return fault.Wrap(fault.Precondition, err)
	}
	return err
}

// receive fills an arrival.
func receive(ctx context.Context, f *files, into string, arrivals snapshot.Arrivals, progress Progress) error {
	a, err := arrivals.Receive(ctx, into, f.chain.size)
	if err != nil {
		return err
	}
	err = f.chain.readDisk(ctx, f.total, progress, func(offset int64, content []byte) error {
		if allZero(content) { // as an arrival is anyway
			return nil
		}
		_, err := a.WriteAt(content, offset)
		return err
	})
	if err == nil {
		err = a.Sync()
	}
	if cerr := a.Close(); err == nil {
		err = cerr
	}
	return err
}
