package disk

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
	"golang.org/x/sys/unix"
)

// The embedded pool's XFS. Sectors of 4 KiB match the loop device's blocks. No reverse
// map: it would cost every allocation, and only repair under load needs it.
var mkfsXFS = []string{"mkfs.xfs", "-q", "-f", "-K", "-s", "size=4096", "-m", "reflink=1,rmapbt=0,bigtime=1"}

// openEmbedded makes, grows and mounts the pool file as far as that is still to be done,
// and opens the root of its file system.
func (p *Pool) openEmbedded(ctx context.Context) (*os.File, error) {
	if err := makePrivate(p.cfg.Path); err != nil {
		return nil, err
	}
	dir, err := openDir(p.cfg.Path) // again: makePrivate may have put a mount over it
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	file, err := p.poolFile(ctx, dir)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	l, err := attachLoop(file)
	if err != nil {
		return nil, fmt.Errorf("attach pool: %w", err)
	}
	defer l.Close()
	if err := l.resize(); err != nil { // a killed agent may have grown only the file
		return nil, err
	}
	if err := p.mountEmbedded(dir, l); err != nil {
		return nil, err
	}
	root, err := openDirAt(dir, poolMount, 0o700)
	if err != nil {
		return nil, err
	}
	st, err := file.Stat()
	if err == nil {
		err = growXFS(root, st.Size())
	}
	if err != nil {
		root.Close()
		return nil, err
	}
	return root, nil
}

func (p *Pool) mountEmbedded(dir *os.File, l *loopDevice) error {
	if err := unix.Mkdirat(int(dir.Fd()), poolMount, 0o700); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("make mount point of the pool: %w", err)
	}
	st, err := statMount(dir, poolMount)
	if err != nil {
		return err
	}
	if st.Mounted {
		if st.Major != loopMajor || st.Minor != l.number {
			return fault.New(fault.Precondition, "mount pool: something else is mounted on %s/%s; unmount it", dir.Name(), poolMount)
		}
		return nil
	}
	m, err := mountDetached("xfs", l.path(), unix.MOUNT_ATTR_NOATIME|unix.MOUNT_ATTR_NODEV|unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NOEXEC, nil)
	if err != nil {
		return fmt.Errorf("mount pool: %w", err)
	}
	defer m.Close()
	return place(m, dir, poolMount)
}

// poolFile opens the pool file, after making it or making it larger as configured.
func (p *Pool) poolFile(ctx context.Context, dir *os.File) (*os.File, error) {
	file, err := openAt(dir, poolFile, unix.O_RDWR, 0)
	if errors.Is(err, os.ErrNotExist) {
		return p.makePoolFile(ctx, dir)
	}
	if err != nil {
		return nil, err
	}
	if err := p.growPoolFile(dir, file); err != nil {
		file.Close()
		return nil, err
	}
	return file, nil
}

// makePoolFile formats the pool file under a temporary name and renames it.
func (p *Pool) makePoolFile(ctx context.Context, dir *os.File) (*os.File, error) {
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(dir.Fd()), &st); err != nil {
		return nil, fmt.Errorf("examine file system of %s: %w", dir.Name(), err)
	}
	size, err := embeddedSize(p.cfg.PoolSize, int64(st.Bavail)*st.Bsize)
	if err != nil {
		return nil, err
	}
	p.log.Info("making embedded pool: the file system cannot share extents between files", "path", p.cfg.Path, "size", size)
	file, err := openAt(dir, poolFileNew, unix.O_RDWR|unix.O_CREAT|unix.O_TRUNC, 0o600)
	if err != nil {
		return nil, err
	}
	err = file.Truncate(size)
	if err == nil {
		_, err = runTool(ctx, []*os.File{file}, append(mkfsXFS, "/proc/self/fd/3")...)
	}
	if err == nil {
		err = file.Sync()
	}
	if err == nil {
		err = unix.Renameat(int(dir.Fd()), poolFileNew, int(dir.Fd()), poolFile)
	}
	if err == nil {
		err = syncDir(dir)
	}
	file.Close()
	if err != nil {
		_ = unix.Unlinkat(int(dir.Fd()), poolFileNew, 0)
		return nil, fmt.Errorf("make embedded pool: %w", err)
	}
	return openAt(dir, poolFile, unix.O_RDWR, 0) // by its name now: loop devices show it
}

// growPoolFile makes the pool file as large as configured; a larger one stays.
func (p *Pool) growPoolFile(dir, file *os.File) error {
	st, err := file.Stat()
	if err != nil {
		return fmt.Errorf("examine pool file: %w", err)
	}
	want := roundUp(p.cfg.PoolSize, mebibyte)
	switch {
	case want == 0 || want == st.Size():
		return nil
	case want < st.Size():
		p.note("PoolLargerThanConfigured", SeverityInfo, fmt.Sprintf("The pool has %d bytes, %d are configured. Pools do not shrink: it stays.", st.Size(), want))
		return nil
	}
	var fs unix.Statfs_t
	if err := unix.Fstatfs(int(dir.Fd()), &fs); err != nil {
		return fmt.Errorf("examine file system of %s: %w", dir.Name(), err)
	}
	if free := int64(fs.Bavail) * fs.Bsize; want-st.Size() > free {
		return fault.New(fault.Exhausted, "grow embedded pool: asked %d bytes more, free %d bytes", want-st.Size(), free)
	}
	p.log.Info("growing embedded pool", "path", p.cfg.Path, "from", st.Size(), "to", want)
	if err := file.Truncate(want); err != nil {
		return fmt.Errorf("grow embedded pool: %w", err)
	}
	if err := file.Sync(); err != nil {
		return fmt.Errorf("grow embedded pool: %w", err)
	}
	return nil
}
