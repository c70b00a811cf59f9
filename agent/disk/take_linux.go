package disk

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
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
// Where the kernel does not tell (no tracefs, events lost), step 5 clones the whole file once
// more. XFS passes over extents that the clone has already, in 3 µs each: a sixth of what the
// clone of a file would take that was not prepared by step 2.
const (
	// fewExtents are cloned whole in step 5 at once: it takes no longer than a piece.
	fewExtents = 128

	pieceTarget = 5 * time.Millisecond // for one piece of step 2; twice that is not unusual
	pieceFirst  = 64                   // extents, before it is known what one takes
	pieceMost   = 8192                 // extents

	// Ranges with less between them are cloned as one. It is little, because a call takes as
	// long as to pass over one extent.
	mergeGap = 2 * blockSize

	// rounds bounds step 3. It also ends when the rest has no more than enough ranges, which
	// take 30 to 40 µs each, or is not much smaller than the rest before: more rounds would
	// not help against such a writer.
	rounds = 6
	enough = 64
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

// clone makes the file what the disk is at one moment.
func (t *take) clone() error {
	if err := unix.IoctlFileClone(int(t.to.Fd()), int(t.from.Fd())); err != nil {
		return fmt.Errorf("clone: %w", err)
	}
	return nil
}

// live takes a disk that is being written to by l. Without quiet there is no step 3, and
// step 5 is one atomic clone of the whole file.
func (t *take) live(ctx context.Context, l *loopDevice, quiet snapshot.Quiet) error {
	extents, err := readExtents(ctx, t.from, 0, t.size)
	if err != nil {
		return err
	}
	few := len(extents) <= t.p.fewExtents
	var w watch = blind{}
	if quiet != nil && !few {
		if w, err = t.p.watch(l); err != nil {
			t.p.log.Info("cannot watch a disk's writes: its snapshot holds them up for longer", "server", t.id, "error", err)
			w = blind{}
		}
		defer w.close()
	}
	if !few {
		if err := t.to.Truncate(t.size); err != nil {
			return err
		}
		t.piece = pieceFirst
		if err := t.pieces(ctx, extents, 0, t.size); err != nil {
			return err
		}
	}
	if quiet == nil {
		_, err := t.hold(t.clone)
		return err
	}
	rest, err := t.catchUp(ctx, w)
	if err != nil && !errors.Is(err, errLost) {
		return err
	}
	return t.quietly(ctx, quiet, func() error {
		last, err := w.drain()
		if err != nil {
			return t.clone()
		}
		return t.again(mergeRanges(append(rest, last...), mergeGap, t.size))
	})
}

// blind is the watch for who clones all in step 5.
type blind struct{}

func (blind) drain() ([]snapshot.Range, error) { return nil, errLost }
func (blind) close()                           {}

// urgently does something on a thread of its own that other programs' threads do not keep
// from running: who has to wait for a processor while others wait for it makes them wait for
// two. Where the agent may not do that (no CAP_SYS_NICE) it takes its turn.
func urgently(do func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		_ = unix.Setpriority(unix.PRIO_PROCESS, 0, -20)
		done <- do()
	}()
	return <-done
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
		// What the clone has put into the pool's log would else be written by the next flush
		// of the disk, while somebody waits for that.
		if err := t.to.Sync(); err != nil {
			return nil, err
		}
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
