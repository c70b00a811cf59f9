package bench

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"
	"unsafe"

	"github.com/google/uuid"
	"golang.org/x/sys/unix"

	"github.com/reflejo/terraform-provider-reflejo/agent/disk"
	"github.com/reflejo/terraform-provider-reflejo/agent/quiesce"
	"github.com/reflejo/terraform-provider-reflejo/agent/vserver"
)

const (
	gapImage   = "sha256:bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb"
	gapExtents = 100_000
	gapSpace   = 16 << 30 // bytes; disks are sparse
	gapTarget  = 60       // ms

	fiFreeze   = 0xc0045877 // FIFREEZE
	fiThaw     = 0xc0045878 // FITHAW
	fsGetXattr = 0x801c581f // FS_IOC_FSGETXATTR
)

// gap is V4: the longest time that a writer on a server's disk waits for 4 KiB to be durable
// while a snapshot is taken; the same for a plain clone of the frozen disk, which is what a
// snapshot costs without anything clever, where the disk is a file that btrfs overwrites in
// place in a subvolume, of which a snapshot is taken, and for a server of LXD.
func (r *run) gap(ctx context.Context) (rows []Row, err error) {
	g, err := r.newGapPool(ctx)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, g.close()) }()
	sizes := []int64{1 << 30, 10 << 30, 50 << 30}
	if r.cfg.Quick {
		sizes = sizes[1:2]
	}
	for _, size := range sizes {
		for _, fragmented := range []bool{false, true} {
			more, err := r.gapOf(ctx, g, size, fragmented)
			rows = append(rows, more...)
			if err != nil {
				return rows, err
			}
		}
	}
	more, err := r.gapSubvolume(ctx)
	rows = append(rows, more...)
	if err == nil && r.lxd != nil {
		more, err = r.gapLXD(ctx)
		rows = append(rows, more...)
	}
	return rows, err
}

// gapPool is a pool of this benchmark's own.
type gapPool struct {
	*disk.Pool
	dir      string
	watchdog []string
}

func (r *run) newGapPool(ctx context.Context) (*gapPool, error) {
	g := &gapPool{dir: r.cfg.Dir + "-gap", watchdog: []string{filepath.Join(r.cfg.Bin, "reflejo"), quiesce.Command}}
	if err := g.close(); err != nil { // what a killed run left
		return nil, err
	}
	var err error
	g.Pool, err = disk.Open(ctx, disk.Config{Path: filepath.Join(g.dir, "pool"), RunDir: filepath.Join(g.dir, "run"), PoolSize: gapSpace})
	if err != nil {
		return nil, err
	}
	err = g.Bases().Build(ctx, gapImage, 0, func(string) error { return nil })
	return g, err
}

func (g *gapPool) close() error {
	if g.Pool != nil {
		if err := g.Pool.Close(); err != nil {
			return err
		}
	}
	for _, path := range []string{filepath.Join(g.dir, "pool", "pool"), filepath.Join(g.dir, "pool"), filepath.Join(g.dir, "run")} {
		_ = unix.Unmount(path, 0) // most are no mounts
	}
	return os.RemoveAll(g.dir)
}

// gapOf measures disks of one size.
func (r *run) gapOf(ctx context.Context, g *gapPool, size int64, fragmented bool) (rows []Row, err error) {
	id := uuid.NewString()
	defer func() { err = errors.Join(err, g.Remove(context.WithoutCancel(ctx), id)) }()
	if err := g.Create(ctx, id, gapImage, size); err != nil {
		return nil, err
	}
	at, err := g.Attach(ctx, id, vserver.IDRange{First: floorIDs, Size: 1 << 16})
	if err != nil {
		return nil, err
	}
	if fragmented {
		if err := g.fragment(ctx, id, at.Root); err != nil {
			return nil, err
		}
	}
	file := filepath.Join(g.Root(), "disks", id+".ext4")
	extents, err := countExtents(file)
	if err != nil {
		return nil, err
	}
	w, err := newSyncWriter(at.Root)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, w.close()) }()
	var none, whole, held, plain []float64
	for range r.pick(7, 2) {
		w.longest()
		began := time.Now()
		snapshot, kept, err := g.take(ctx, id, at.Root)
		if err != nil {
			return nil, err
		}
		took := time.Since(began)
		whole, held = append(whole, ms(w.longest())), append(held, ms(kept))
		if err := g.Snapshots().Remove(ctx, snapshot); err != nil {
			return nil, err
		}
		pause(ctx, time.Second)
		w.longest()
		pause(ctx, took) // for as long as the snapshot took
		none = append(none, ms(w.longest()))
		if err := frozenClone(at.Root, file); err != nil {
			return nil, err
		}
		plain = append(plain, ms(w.longest()))
		pause(ctx, time.Second)
	}
	what := fmt.Sprintf("%d GiB in %d extents", size>>30, extents)
	return []Row{
		{What: "longest write gap, snapshot of " + what, Unit: "ms", Values: whole, Target: AtMost(gapTarget)},
		{What: "of that: tasks and file system frozen", Unit: "ms", Values: held},
		{What: "longest write gap, FIFREEZE + FICLONE of " + what, Unit: "ms", Values: plain},
		{What: "longest write gap, no snapshot, in the same time", Unit: "ms", Values: none},
	}, ctx.Err()
}

// take takes a snapshot as the agent does, without tasks to freeze: the writer is one of ours.
func (g *gapPool) take(ctx context.Context, id, root string) (snapshot string, held time.Duration, err error) {
	snapshot = uuid.NewString()
	target := quiesce.Target{Root: root, Watchdog: g.watchdog, Held: func(d time.Duration) { held = d }}
	taken, err := g.Snapshots().Take(ctx, snapshot, id, func(ctx context.Context) (func() error, error) {
		return quiesce.Quiet(ctx, target, 30*time.Second)
	})
	return snapshot, max(held, taken.Pause), err
}

// fragment puts a disk into very many extents: what a snapshot shares moves when it is
// written, so every second block of a file is written while there is one.
func (g *gapPool) fragment(ctx context.Context, id, root string) error {
	f, err := os.Create(filepath.Join(root, "fragmented"))
	if err != nil {
		return err
	}
	defer f.Close()
	block := make([]byte, mebibyte)
	for i := range int64(gapExtents * 4096 / mebibyte) {
		if _, err := f.WriteAt(block, i*mebibyte); err != nil {
			return err
		}
	}
	if err := f.Sync(); err != nil {
		return err
	}
	snapshot := uuid.NewString()
	if _, err := g.Snapshots().Take(ctx, snapshot, id, nil); err != nil {
		return err
	}
	for i := range int64(gapExtents / 2) {
		if _, err := f.WriteAt(block[:4096], i*8192); err != nil {
			return err
		}
	}
	if err := f.Sync(); err != nil {
		return err
	}
	return g.Snapshots().Remove(ctx, snapshot)
}

// countExtents is how many extents a file of XFS has.
func countExtents(path string) (uint32, error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	var x [28]byte // struct fsxattr; its third number is what we want
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), fsGetXattr, uintptr(unsafe.Pointer(&x))); errno != 0 {
		return 0, fmt.Errorf("count extents of %s: %w", path, errno)
	}
	return *(*uint32)(unsafe.Pointer(&x[8])), nil
}

// frozenClone clones a disk's file while its file system is frozen, and forgets the clone.
func frozenClone(root, file string) error {
	from, err := os.Open(file)
	if err != nil {
		return err
	}
	defer from.Close()
	to, err := os.OpenFile(filepath.Dir(file), unix.O_TMPFILE|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	defer to.Close()
	return frozen(root, func() error {
		if err := unix.IoctlFileClone(int(to.Fd()), int(from.Fd())); err != nil {
			return fmt.Errorf("clone %s: %w", file, err)
		}
		return nil
	})
}

// frozen does something while the file system mounted at root is frozen.
func frozen(root string, do func() error) error {
	f, err := os.Open(root)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.IoctlSetInt(int(f.Fd()), fiFreeze, 0); err != nil {
		return fmt.Errorf("freeze %s: %w", root, err)
	}
	return errors.Join(do(), unix.IoctlSetInt(int(f.Fd()), fiThaw, 0))
}

// syncWriter writes 4 KiB somewhere in a file, makes it durable, and so on.
type syncWriter struct {
	f     *os.File
	most  atomic.Int64 // ns, of one write
	count atomic.Int64 // writes that have ended
	stop  atomic.Bool
	ended chan error
}

func newSyncWriter(root string) (*syncWriter, error) {
	const blocks = 4096
	f, err := os.Create(filepath.Join(root, "written"))
	if err != nil {
		return nil, err
	}
	if _, err := f.Write(make([]byte, blocks*4096)); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	if err := f.Sync(); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	w := &syncWriter{f: f, ended: make(chan error, 1)}
	go func() {
		b := make([]byte, 4096)
		for n := int64(0); !w.stop.Load(); n++ {
			began := time.Now()
			_, err := f.WriteAt(b, rand.Int64N(blocks)*4096)
			if err == nil {
				err = unix.Fdatasync(int(f.Fd()))
			}
			if err != nil {
				w.ended <- err
				return
			}
			took := int64(time.Since(began))
			for have := w.most.Load(); have < took && !w.most.CompareAndSwap(have, took); have = w.most.Load() {
			}
			w.count.Add(1)
		}
		w.ended <- nil
	}()
	return w, nil
}

// longest is the longest write that has ended since the last call, also of those under way
// now, which are waited for.
func (w *syncWriter) longest() time.Duration {
	for n := w.count.Load(); w.count.Load() < n+2 && len(w.ended) == 0; {
		time.Sleep(time.Millisecond)
	}
	return time.Duration(w.most.Swap(0))
}

func (w *syncWriter) close() error {
	w.stop.Store(true)
	return errors.Join(<-w.ended, w.f.Close())
}

// gapSubvolume measures the other layout: every disk in a subvolume of its own.
func (r *run) gapSubvolume(ctx context.Context) (rows []Row, err error) {
	dir := r.cfg.Dir + "-subvolume"
	mnt, vol := filepath.Join(dir, "btrfs"), filepath.Join(dir, "btrfs", "disk")
	root, img := filepath.Join(dir, "ext4"), filepath.Join(vol, "image")
	sh := func(argv ...string) error {
		out, err := exec.CommandContext(ctx, argv[0], argv[1:]...).CombinedOutput()
		if err != nil {
			return fmt.Errorf("%s: %w: %s", strings.Join(argv, " "), err, out)
		}
		return nil
	}
	down := func() error {
		_, _ = unix.Unmount(root, 0), unix.Unmount(mnt, 0)
		return os.RemoveAll(dir)
	}
	if err := errors.Join(down(), os.MkdirAll(mnt, 0o700), os.MkdirAll(root, 0o700)); err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, down()) }()
	file := filepath.Join(dir, "file")
	for _, argv := range [][]string{
		{"truncate", "-s", "8G", file}, {"mkfs.btrfs", "-q", file}, {"mount", "-o", "loop", file, mnt},
		{"btrfs", "-q", "subvolume", "create", vol}, {"chattr", "+C", vol}, {"truncate", "-s", "10G", img},
		{"mkfs.ext4", "-q", "-F", img}, {"mount", "-o", "loop", img, root},
	} {
		if err := sh(argv...); err != nil {
			return nil, err
		}
	}
	all, err := r.gapsOf(ctx, root, func(n int) error {
		return frozen(root, func() error {
			return sh("btrfs", "-q", "subvolume", "snapshot", "-r", vol, filepath.Join(mnt, fmt.Sprint("snapshot-", n)))
		})
	})
	if err != nil {
		return nil, err
	}
	return []Row{{What: "longest write gap, FIFREEZE + snapshot of a btrfs subvolume with a NOCOW image", Unit: "ms", Values: all}}, nil
}

// gapsOf are the longest gaps, ms, of a writer below root while a peer's snapshots are taken.
func (r *run) gapsOf(ctx context.Context, root string, take func(n int) error) (all []float64, err error) {
	w, err := newSyncWriter(root)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, w.close()) }()
	for n := range r.pick(7, 2) {
		pause(ctx, time.Second)
		w.longest()
		if err := take(n); err != nil {
			return nil, err
		}
		all = append(all, ms(w.longest()))
	}
	return all, ctx.Err()
}

// gapLXD measures a server of LXD, whose disk is a subvolume of btrfs.
func (r *run) gapLXD(ctx context.Context) (rows []Row, err error) {
	const name = "v4"
	if err := r.lxd.create(ctx, name, "tiny", nil); err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, r.lxd.removeAll(ctx, name)) }()
	all, err := r.gapsOf(ctx, r.lxd.root(name), func(n int) error { return r.lxd.snapshot(ctx, name, fmt.Sprint("s", n)) })
	if err != nil {
		return nil, err
	}
	return []Row{{What: "longest write gap, snapshot by LXD, btrfs", Unit: "ms", Values: all}}, nil
}
