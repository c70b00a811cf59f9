package disk

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/reflejo/terraform-provider-reflejo/agent/snapshot"
	"golang.org/x/sys/unix"
)

// A clone (FICLONE) of a whole file is atomic, but takes XFS 15 to 25 µs per extent, and
// writers wait meanwhile: two seconds for 100,000 extents. So a disk in use is cloned in
// these steps, of which writers notice only pieces of a few milliseconds:
//
//  1. The kernel is asked to tell which blocks the disk's loop device has written.
//  2. The file is cloned piece by piece.
//  3. The file system writes what it holds back, and what was written since is cloned
//     again; and once more, as long as that makes the rest smaller.
//  4. quiet: nobody writes from here on.
//  5. The rest is cloned.
//  6. loud.
//
// Why nothing is missed: a write is told of after its data is in the file, so when step 5
// begins, every write has been told of, and is either drained before a clone of its range
// that began later, or part of the rest. A write that is half done while its range is cloned
// is told of after that, and its range is cloned again.
//
// Where the kernel does not tell (no tracefs, events lost), step 5 finds the rest by itself:
// a block that is written while the clone shares it moves to another place, so the extents
// of file and clone are compared. That takes 2 to 3 µs per extent in which writers wait,
// still a fraction of a clone.
const (
	// fewExtents are cloned whole in step 5 at once: it takes no longer than a piece.
	fewExtents = 128

	pieceTarget = 5 * time.Millisecond // for one piece of step 2; twice that is not unusual
	pieceFirst  = 64                   // extents, before it is known what one takes
	pieceMost   = 8192                 // extents

	// Ranges with less between them are cloned as one: a call takes about as long as some
	// extents do, and the smallest extents are 1 MiB apart by what the file was asked for.
	mergeGap = 64 << 10

	// rounds bounds step 3. It also ends when the rest has no more than enough ranges, or is
	// not much smaller than the rest before: more rounds would not help against such a writer.
	rounds = 6
	enough = 32
)

// take is a snapshot that is being taken.
type take struct {
	p     *Pool
	id    string // of the server
	from  *os.File
	to    *os.File
	size  int64
	pause time.Duration // longest that writers had to wait at once
	piece int           // extents that take pieceTarget
}

// hold does what writers have to wait for.
func (t *take) hold(do func() error) (time.Duration, error) {
	began := time.Now()
	err := do()
	took := time.Since(began)
	t.pause = max(t.pause, took)
	return took, err
}

// whole makes the file the clone of the disk as it is at one moment.
func (t *take) whole() error {
	_, err := t.hold(t.clone)
	return err
}

func (t *take) clone() error {
	if err := unix.IoctlFileClone(int(t.to.Fd()), int(t.from.Fd())); err != nil {
		return fmt.Errorf("clone: %w", err)
	}
	return nil
}

// live takes a disk that is being written to by l.
func (t *take) live(ctx context.Context, l *loopDevice, quiet snapshot.Quiet) error {
	extents, err := readExtents(ctx, t.from, 0, t.size)
	if err != nil {
		return err
	}
	if len(extents) <= t.p.fewExtents {
		return t.quietly(ctx, quiet, t.clone)
	}
	if err := t.to.Truncate(t.size); err != nil {
		return err
	}
	w, err := t.p.watch(l)
	if err != nil {
		t.p.log.Info("cannot watch a disk's writes: the snapshot holds them up for longer", "device", l.path(), "error", err)
		return t.compared(ctx, extents, quiet)
	}
	defer w.close()
	t.piece = pieceFirst
	if err := t.pieces(ctx, extents, 0, t.size); err != nil {
		return err
	}
	rest, err := t.catchUp(ctx, w)
	if errors.Is(err, errLost) {
		t.p.log.Info("a snapshot holds writes up for longer", "device", l.path(), "error", err)
		return t.compare(ctx, quiet)
	}
	if err != nil {
		return err
	}
	return t.quietly(ctx, quiet, func() error {
		last, err := w.drain()
		if err != nil {
			have, err := readExtents(ctx, t.to, 0, t.size)
			if err != nil {
				return err
			}
			return t.rest(ctx, have)
		}
		return t.again(mergeRanges(append(rest, last...), mergeGap, t.size))
	})
}

// compared takes a disk whose writes nobody tells of.
func (t *take) compared(ctx context.Context, extents []mapping, quiet snapshot.Quiet) error {
	t.piece = pieceFirst
	if err := t.pieces(ctx, extents, 0, t.size); err != nil {
		return err
	}
	return t.compare(ctx, quiet)
}

// compare is steps 4 to 6 without knowledge of what was written.
func (t *take) compare(ctx context.Context, quiet snapshot.Quiet) error {
	have, err := readExtents(ctx, t.to, 0, t.size)
	if err != nil {
		return err
	}
	return t.quietly(ctx, quiet, func() error { return t.rest(ctx, have) })
}

// rest clones where the disk is no longer what the clone, with the extents of have, is.
func (t *take) rest(ctx context.Context, have []mapping) error {
	now, err := readExtents(ctx, t.from, 0, t.size)
	if err != nil {
		return err
	}
	return t.again(mergeRanges(changedRanges(have, now, t.size), mergeGap, t.size))
}

// quietly calls quiet, does the last step, and calls what quiet returned. What quiet itself
// makes writers wait is not in t.pause: only quiet knows that.
func (t *take) quietly(ctx context.Context, quiet snapshot.Quiet, last func() error) error {
	loud, err := quiet(ctx)
	if err != nil {
		return err
	}
	_, err = t.hold(func() error { return errors.Join(last(), loud()) })
	return err
}

// pieces clones [from, to), whose extents are given, while it is written to.
func (t *take) pieces(ctx context.Context, extents []mapping, from, to int64) error {
	for from < to {
		end, n, rest := pieceEnd(extents, to, t.piece)
		took, err := t.hold(func() error { return t.cloneRange(from, end) })
		if err != nil {
			return err
		}
		from, extents = end, rest
		if n >= t.piece/2 { // smaller ones say little about what an extent takes
			t.piece = min(max(int(int64(n)*int64(pieceTarget)/int64(max(took, 1))), t.piece/4, 8), t.piece*2, pieceMost)
		}
		if from < to {
			if err := yield(ctx, took); err != nil {
				return err
			}
		}
	}
	return nil
}

// yield lets writers go on for as long as they were held up.
func yield(ctx context.Context, took time.Duration) error {
	select {
	case <-time.After(min(took, 2*pieceTarget)):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// catchUp is step 3. It returns what is still to be cloned.
func (t *take) catchUp(ctx context.Context, w watch) ([]snapshot.Range, error) {
	for round, before := 0, 0; ; round++ {
		if err := t.p.syncDisk(ctx, t.id); err != nil {
			return nil, err
		}
		dirty, err := w.drain()
		if err != nil {
			return nil, err
		}
		dirty = mergeRanges(dirty, mergeGap, t.size)
		if len(dirty) <= enough || round == rounds || round > 0 && len(dirty) > before/4*3 {
			return dirty, nil
		}
		before = len(dirty)
		for _, r := range dirty {
			extents, err := readExtents(ctx, t.from, r.Offset, r.End())
			if err != nil {
				return nil, err
			}
			if err := t.pieces(ctx, extents, r.Offset, r.End()); err != nil {
				return nil, err
			}
		}
	}
}

// again clones ranges while nobody writes.
func (t *take) again(ranges []snapshot.Range) error {
	for _, r := range ranges {
		if err := t.cloneRange(r.Offset, r.End()); err != nil {
			return err
		}
	}
	return nil
}

func (t *take) cloneRange(from, to int64) error {
	err := unix.IoctlFileCloneRange(int(t.to.Fd()), &unix.FileCloneRange{
		Src_fd: int64(t.from.Fd()), Src_offset: uint64(from), Src_length: uint64(to - from), Dest_offset: uint64(from),
	})
	if err != nil {
		return fmt.Errorf("clone %d bytes from %d: %w", to-from, from, err)
	}
	return nil
}

// syncDisk writes what the attached disk's file system holds back in memory.
func (p *Pool) syncDisk(ctx context.Context, id string) error {
	root, err := openDir(p.canonicalPath(id))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer root.Close()
	if err := unix.Syncfs(int(root.Fd())); err != nil {
		return fmt.Errorf("sync %s: %w", root.Name(), err)
	}
	return ctx.Err()
}
