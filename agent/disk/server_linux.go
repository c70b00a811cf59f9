package disk

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
	"github.com/reflejo/terraform-provider-reflejo/agent/vserver"
	"golang.org/x/sys/unix"
)

// Create implements [vserver.Disks]: a reflink clone of the base disk, or of its
// variant of that size. The space is not reserved here; what may be promised in all is
// Usage.Capacity.
// An image without a base disk is fault.NotFound, a full pool fault.Exhausted.
func (p *Pool) Create(ctx context.Context, id, image string, size int64) error {
	if err := errors.Join(checkServerID(id), checkImageID(image), checkSize(size)); err != nil {
		return err
	}
	unlock, err := p.busy.lock(ctx, id)
	if err != nil {
		return err
	}
	defer unlock()
	have, err := p.openDisk(id)
	if err == nil {
		defer have.Close()
		st, err := have.Stat()
		if err != nil || st.Size() >= size {
			return err
		}
		return p.grow(id, have, size)
	}
	if !fault.Is(err, fault.NotFound) {
		return err
	}
	if err := p.cloneBase(ctx, id, image, size); err != nil {
		return p.explain(fmt.Errorf("create disk %s: %w", id, err))
	}
	p.setFresh(id, true)
	return nil
}

// cloneBase makes the disk's file without a name and links it when it is durable.
func (p *Pool) cloneBase(ctx context.Context, id, image string, size int64) error {
	source, err := p.openSource(ctx, image, size)
	if err != nil {
		return err
	}
	defer source.Close()
	f, err := p.newFile(p.disks)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.IoctlFileClone(int(f.Fd()), int(source.Fd())); err != nil {
		return fmt.Errorf("clone base disk of %s: %w", image, err)
	}
	if err := f.Truncate(size); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	if err := unix.Linkat(int(f.Fd()), "", int(p.disks.Fd()), diskName(id), unix.AT_EMPTY_PATH); err != nil {
		return fmt.Errorf("link: %w", err)
	}
	return syncDir(p.disks)
}

// newFile makes an unnamed, empty file with the hints that keep its extents few.
func (p *Pool) newFile(dir *os.File) (*os.File, error) {
	f, err := tempFile(dir)
	if err != nil {
		return nil, err
	}
	if p.fileSystem == "xfs" {
		if err := hintExtents(f); err != nil {
			f.Close()
			return nil, err
		}
	}
	return f, nil
}

// openDisk opens the file of a server's disk; fault.NotFound if there is none.
func (p *Pool) openDisk(id string) (*os.File, error) {
	f, err := openAt(p.disks, diskName(id), unix.O_RDWR, 0)
	if errors.Is(err, os.ErrNotExist) {
		return nil, fault.New(fault.NotFound, "open disk %s: there is none", id)
	}
	return f, err
}

// Grow implements [vserver.Disks].
func (p *Pool) Grow(ctx context.Context, id string, size int64) error {
	if err := errors.Join(checkServerID(id), checkSize(size)); err != nil {
		return err
	}
	unlock, err := p.busy.lock(ctx, id)
	if err != nil {
		return err
	}
	defer unlock()
	f, err := p.openDisk(id)
	if err != nil {
		return err
	}
	defer f.Close()
	return p.grow(id, f, size)
}

// grow makes the file larger first: what is interrupted after that, Attach finishes.
func (p *Pool) grow(id string, f *os.File, size int64) error {
	st, err := f.Stat()
	if err != nil {
		return fmt.Errorf("grow disk %s: %w", id, err)
	}
	if size < st.Size() {
		return fault.Field("disk.size", "disk %s has %d bytes and cannot shrink to %d", id, st.Size(), size)
	}
	at, err := p.attachment(id)
	if err != nil {
		return err
	}
	if size > st.Size() {
		if at.Root != "" && !mayGrowLive() {
			return fault.New(fault.Precondition, "disk %s is in use and the agent lacks CAP_SYS_RESOURCE, without which the kernel grows no mounted ext4: stop the server first, or give the agent the capability", id)
		}
		err := f.Truncate(size)
		if err == nil {
			err = f.Sync()
		}
		if err != nil {
			return p.explain(fmt.Errorf("grow disk %s: %w", id, err))
		}
	}
	if at.Root == "" {
		return nil
	}
	root, err := openAt(p.canonical, id, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return err
	}
	defer root.Close()
	l, err := findLoop(f)
	if err != nil {
		return err
	}
	if l == nil {
		return fmt.Errorf("grow disk %s: it is mounted but has no loop device", id)
	}
	defer l.Close()
	if err := fillDisk(root, l, f); err != nil {
		return p.explain(fmt.Errorf("grow disk %s: %w", id, err))
	}
	return nil
}

// fillDisk makes device and mounted file system as large as the file.
func fillDisk(root *os.File, l *loopDevice, f *os.File) error {
	st, err := f.Stat()
	if err != nil {
		return err
	}
	device, err := l.Seek(0, 2)
	if err != nil {
		return fmt.Errorf("read size of %s: %w", l.path(), err)
	}
	if device < st.Size()/blockSize*blockSize {
		if err := l.resize(); err != nil {
			return err
		}
	}
	s, err := readSuperblock(f)
	if err != nil {
		return err
	}
	if want := s.wantBlocks(st.Size()); s.Blocks < want {
		return growExt4(root, want)
	}
	return nil
}

// Remove implements [vserver.Disks].
func (p *Pool) Remove(ctx context.Context, id string) error {
	if err := checkServerID(id); err != nil {
		return err
	}
	unlock, err := p.busy.lock(ctx, id)
	if err != nil {
		return err
	}
	defer unlock()
	if err := p.detach(ctx, id); err != nil && !errors.Is(err, errNotSynced) {
		return err
	}
	p.setFresh(id, false)
	err = unix.Unlinkat(int(p.disks.Fd()), diskName(id), 0)
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("remove disk %s: %w", id, err)
	}
	return syncDir(p.disks)
}

// List implements [vserver.Disks].
func (p *Pool) List(ctx context.Context) ([]vserver.DiskInfo, error) {
	entries, err := readDir(p.disks)
	if err != nil {
		return nil, fmt.Errorf("list disks: %w", err)
	}
	var all []vserver.DiskInfo
	for _, e := range entries {
		id, ok := serverOf(e.name)
		if !ok {
			continue
		}
		at, err := p.attachment(id)
		if err != nil {
			return nil, err
		}
		info := vserver.DiskInfo{ID: id, Size: e.size, Used: e.used}
		if at.Root != "" && at.Rootfs != "" {
			info.Attached, info.Attachment = true, at
		}
		all = append(all, info)
	}
	return all, ctx.Err()
}

// entry is a regular file of a directory.
type entry struct {
	name string
	size int64
	used int64 // allocated
	// touched is the time of the last change, in nanoseconds.
	touched int64
}

// readDir lists the regular files of a directory by name.
func readDir(dir *os.File) ([]entry, error) {
	d, err := openAt(dir, ".", unix.O_RDONLY|unix.O_DIRECTORY, 0) // an offset of its own
	if err != nil {
		return nil, err
	}
	defer d.Close()
	names, err := d.Readdirnames(-1)
	if err != nil {
		return nil, err
	}
	var all []entry
	for _, name := range names {
		var st unix.Stat_t
		err := unix.Fstatat(int(dir.Fd()), name, &st, unix.AT_SYMLINK_NOFOLLOW)
		if errors.Is(err, unix.ENOENT) {
			continue // removed meanwhile
		}
		if err != nil {
			return nil, &os.PathError{Op: "examine", Path: dir.Name() + "/" + name, Err: err}
		}
		if st.Mode&unix.S_IFMT == unix.S_IFREG {
			all = append(all, entry{name: name, size: st.Size, used: st.Blocks * 512, touched: st.Mtim.Nano()})
		}
	}
	return all, nil
}
