package disk

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
	"github.com/reflejo/terraform-provider-reflejo/agent/undo"
	"github.com/reflejo/terraform-provider-reflejo/agent/vserver"
	"golang.org/x/sys/unix"
)

var _ vserver.Disks = (*Pool)(nil)

// Pool keeps disks in a directory. Its methods may be called by several goroutines;
// calls about the same disk take turns.
type Pool struct {
	cfg        Config
	log        hclog.Logger
	fileSystem string // "xfs" or "btrfs"
	embedded   bool
	alone      bool // the file system is the pool's own

	lockFile  *os.File // flocked: one agent per pool
	root      *os.File
	bases     *os.File
	variants  *os.File
	disks     *os.File
	snapshots *os.File
	arrivals  *os.File
	canonical *os.File
	rootfs    *os.File
	builds    *os.File

	busy locks

	watch      func(l *loopDevice) (watch, error) // watchWrites; tests have others
	fewExtents int                                // fewExtents; tests have others

	ownJournal sync.Mutex // held while a journal is unshared
	background sync.WaitGroup
	closing    chan struct{}
	closeOnce  sync.Once

	others struct { // what others take of a file system that is not the pool's own
		sync.Mutex
		at    time.Time
		bytes int64
	}

	mu    sync.Mutex
	fresh map[string]bool      // disks made and not attached yet
	stuck map[string]time.Time // detached disks that something still has open
	since time.Time            // of Open
	notes []Condition          // found by Open
}

// Open opens the pool of the configuration, making it if it is not there: embedded, if
// the file system at cfg.Path cannot share extents between files. After a reboot it
// mounts an embedded pool again; after an agent's death it finds all as it was left, and
// clears away what nobody needs. Outcomes: fault.Invalid for a bad configuration,
// fault.Unavailable if another agent has the pool, fault.Exhausted if there is no room.
func Open(ctx context.Context, cfg Config) (*Pool, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	cfg.Path, cfg.RunDir = filepath.Clean(cfg.Path), filepath.Clean(cfg.RunDir)
	p := &Pool{
		cfg: cfg, log: cfg.Log, closing: make(chan struct{}), since: time.Now(),
		fresh: map[string]bool{}, stuck: map[string]time.Time{},
		watch: watchWrites, fewExtents: fewExtents,
	}
	if p.log == nil {
		p.log = hclog.NewNullLogger()
	}
	var failed undo.Stack
	defer failed.Run()
	failed.Add(func() { p.Close() })

	if err := os.MkdirAll(cfg.Path, 0o700); err != nil {
		return nil, fmt.Errorf("make pool directory: %w", err)
	}
	if err := p.takeLock(); err != nil {
		return nil, err
	}
	if err := p.openRoot(ctx); err != nil {
		return nil, err
	}
	if err := p.openRunDir(); err != nil {
		return nil, err
	}
	if err := p.sweep(); err != nil {
		return nil, err
	}
	failed.Keep()
	return p, nil
}

// Close forgets the pool. Everything stays mounted and attached: servers keep running.
func (p *Pool) Close() error {
	p.closeOnce.Do(func() { close(p.closing) })
	p.background.Wait()
	for _, f := range []*os.File{p.root, p.bases, p.variants, p.disks, p.snapshots, p.arrivals, p.canonical, p.rootfs, p.builds, p.lockFile} {
		if f != nil {
			f.Close()
		}
	}
	return nil
}

// Root is the directory of the pool's file system, for others that keep files in it
// beside the disks; they use a directory of their own there.
func (p *Pool) Root() string {
	if p.embedded {
		return filepath.Join(p.cfg.Path, poolMount)
	}
	return p.cfg.Path
}

func (p *Pool) takeLock() error {
	path := filepath.Join(p.cfg.Path, lockName)
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return fmt.Errorf("open pool lock: %w", err)
	}
	// A child that a killed agent had just forked holds the lock until it runs its program.
	err = unix.EWOULDBLOCK
	for deadline := time.Now().Add(busyPatience); errors.Is(err, unix.EWOULDBLOCK) && time.Now().Before(deadline); {
		if err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); errors.Is(err, unix.EWOULDBLOCK) {
			time.Sleep(10 * time.Millisecond)
		}
	}
	if err != nil {
		f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return fault.New(fault.Unavailable, "lock pool %s: another agent uses it", p.cfg.Path)
		}
		return fmt.Errorf("lock pool %s: %w", p.cfg.Path, err)
	}
	p.lockFile = f
	return nil
}

// openRoot finds or makes the pool's file system and opens its directories.
func (p *Pool) openRoot(ctx context.Context) error {
	dir, err := openDir(p.cfg.Path)
	if err != nil {
		return err
	}
	defer dir.Close()
	_, err = os.Lstat(filepath.Join(p.cfg.Path, poolFile))
	p.embedded = err == nil
	if !p.embedded {
		shares, err := sharesExtents(dir)
		if err != nil {
			return err
		}
		p.embedded = !shares
	}
	if p.embedded {
		p.root, err = p.openEmbedded(ctx)
	} else {
		p.root, err = openDir(p.cfg.Path)
	}
	if err != nil {
		return err
	}
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(p.root.Fd()), &st); err != nil {
		return fmt.Errorf("examine file system of %s: %w", p.root.Name(), err)
	}
	p.fileSystem = fsNames[st.Type]
	if p.fileSystem == "" {
		p.fileSystem = fmt.Sprintf("%#x", st.Type)
	}
	if p.alone, err = p.isAlone(); err != nil {
		return err
	}
	for _, d := range []struct {
		dir  **os.File
		name string
	}{{&p.bases, basesDir}, {&p.variants, variantsDir}, {&p.disks, disksDir}, {&p.snapshots, snapshotsDir}, {&p.arrivals, arrivalsDir}} {
		if *d.dir, err = openDirAt(p.root, d.name, 0o700); err != nil {
			return p.explain(err)
		}
		if p.fileSystem == "btrfs" {
			if err := dontCopyOnWrite(*d.dir); err != nil {
				return err
			}
		}
	}
	return nil
}

// openRunDir makes the directories for mount points. Only root reaches the canonical
// mounts; a server's init must be able to walk through the others.
func (p *Pool) openRunDir() error {
	if err := os.MkdirAll(p.cfg.RunDir, 0o711); err != nil {
		return fmt.Errorf("make run directory: %w", err)
	}
	if err := makePrivate(p.cfg.RunDir); err != nil {
		return err
	}
	run, err := openDir(p.cfg.RunDir)
	if err != nil {
		return err
	}
	defer run.Close()
	if err := run.Chmod(0o711); err != nil {
		return fmt.Errorf("set mode of run directory: %w", err)
	}
	if p.canonical, err = openDirAt(run, canonicalDir, 0o700); err != nil {
		return err
	}
	if p.rootfs, err = openDirAt(run, rootfsDir, 0o711); err != nil {
		return err
	}
	p.builds, err = openDirAt(run, buildsDir, 0o700)
	return err
}

// sweep clears away what a killed agent left that no call would come back for: mounts
// of builds (their files stay, for Bases.List), empty mount points, copies that did not
// become disks, and variants of removed base disks.
func (p *Pool) sweep() error {
	names, err := p.builds.Readdirnames(-1)
	if err != nil {
		return fmt.Errorf("list builds: %w", err)
	}
	for _, name := range names {
		if err := p.dropBuildMount(name); err != nil {
			return err
		}
	}
	for _, dir := range []*os.File{p.canonical, p.rootfs} {
		if names, err = dir.Readdirnames(-1); err != nil {
			return fmt.Errorf("list mount points: %w", err)
		}
		for _, name := range names {
			if dir == p.rootfs {
				_ = unix.Rmdir(filepath.Join(dir.Name(), name, rootfsMount))
			}
			_ = unix.Unlinkat(int(dir.Fd()), name, unix.AT_REMOVEDIR) // fails for those in use, which is right
		}
	}
	if err := p.sweepCopies(); err != nil {
		return err
	}
	return p.sweepVariants()
}

// sharesExtents reports whether the directory's file system can clone files.
func sharesExtents(dir *os.File) (bool, error) {
	from, err := tempFile(dir)
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EISDIR) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer from.Close()
	if _, err := from.Write(make([]byte, blockSize)); err != nil {
		return false, fmt.Errorf("test file system of %s: %w", dir.Name(), err)
	}
	to, err := tempFile(dir)
	if err != nil {
		return false, err
	}
	defer to.Close()
	switch err := unix.IoctlFileClone(int(to.Fd()), int(from.Fd())); {
	case err == nil:
		return true, nil
	case errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENOTTY), errors.Is(err, unix.EXDEV):
		return false, nil
	default:
		return false, fmt.Errorf("test file system of %s: %w", dir.Name(), err)
	}
}

// tempFile makes a file without a name in dir: it is gone with its descriptor unless linked.
func tempFile(dir *os.File) (*os.File, error) {
	fd, err := unix.Openat(int(dir.Fd()), ".", unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, &os.PathError{Op: "make file in", Path: dir.Name(), Err: err}
	}
	return os.NewFile(uintptr(fd), dir.Name()+"/(new)"), nil
}

// syncDir makes names in the directory durable.
func syncDir(dir *os.File) error {
	if err := unix.Fsync(int(dir.Fd())); err != nil {
		return fmt.Errorf("sync %s: %w", dir.Name(), err)
	}
	return nil
}

const fsNoCOW = 0x00800000 // FS_NOCOW_FL

// dontCopyOnWrite tells btrfs to overwrite in place in files made in dir, unless shared:
// otherwise every write of a server would fragment its disk. Such files can only be
// cloned among themselves.
func dontCopyOnWrite(dir *os.File) error {
	flags, err := unix.IoctlGetInt(int(dir.Fd()), unix.FS_IOC_GETFLAGS)
	if err != nil {
		return fmt.Errorf("read flags of %s: %w", dir.Name(), err)
	}
	if flags&fsNoCOW != 0 {
		return nil
	}
	if err := unix.IoctlSetPointerInt(int(dir.Fd()), unix.FS_IOC_SETFLAGS, flags|fsNoCOW); err != nil {
		return fmt.Errorf("set flags of %s: %w", dir.Name(), err)
	}
	return nil
}

// explain turns a full pool into fault.Exhausted with the free space in the text.
func (p *Pool) explain(err error) error {
	if err == nil || !errors.Is(err, unix.ENOSPC) && !errors.Is(err, unix.EDQUOT) {
		return err
	}
	var st unix.Statfs_t
	if unix.Fstatfs(int(p.root.Fd()), &st) != nil {
		return fault.Wrap(fault.Exhausted, err)
	}
	return fault.New(fault.Exhausted, "pool %s is full (%d bytes free): %w", p.cfg.Path, int64(st.Bavail)*st.Bsize, err)
}
