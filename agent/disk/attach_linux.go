package disk

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
	"github.com/reflejo/terraform-provider-reflejo/agent/vserver"
	"golang.org/x/sys/unix"
)

const (
	// The host never runs what is on a server's disk, and honours no set-id bits there.
	canonicalAttrs = unix.MOUNT_ATTR_NOATIME | unix.MOUNT_ATTR_NODEV | unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NOEXEC

	busyPatience = 2 * time.Second // for an unmount, before it is forced
)

// Freed blocks are given back by Trim, not at once: mount option discard would punch
// small holes and leave the disk in many extents.
var ext4Options = []fsOption{{"errors", "remount-ro"}}

// Attach implements [vserver.Disks]. A file system with errors is mended before it is
// mounted; where that needs an operator, the error is fault.Precondition.
func (p *Pool) Attach(ctx context.Context, id string, ids vserver.IDRange) (vserver.Attachment, error) {
	if err := errors.Join(checkServerID(id), checkIDs(ids)); err != nil {
		return vserver.Attachment{}, err
	}
	unlock, err := p.busy.lock(ctx, id)
	if err != nil {
		return vserver.Attachment{}, err
	}
	defer unlock()
	f, err := p.openDisk(id)
	if err != nil {
		return vserver.Attachment{}, err
	}
	defer f.Close()
	if err := p.attachCanonical(ctx, id, f); err != nil {
		return vserver.Attachment{}, p.explain(fmt.Errorf("attach disk %s: %w", id, err))
	}
	if err := p.attachRootfs(id, ids); err != nil {
		return vserver.Attachment{}, fmt.Errorf("attach disk %s: %w", id, err)
	}
	if p.isFresh(id) {
		p.setFresh(id, false)
		p.ownJournalSoon(id)
	}
	return p.attachment(id)
}

// isFresh reports whether the disk was made by this process and never attached.
func (p *Pool) isFresh(id string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.fresh[id]
}

func (p *Pool) setFresh(id string, fresh bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if fresh && p.fileSystem == "xfs" { // elsewhere nothing can be unshared
		p.fresh[id] = true
	} else {
		delete(p.fresh, id)
	}
}

// attachment is what is attached of a disk: Root and Rootfs are empty if they are not mounted.
func (p *Pool) attachment(id string) (vserver.Attachment, error) {
	var at vserver.Attachment
	st, err := statMount(p.canonical, id)
	if err != nil && !errors.Is(err, unix.ENOENT) {
		return at, err
	}
	if err == nil && st.Mounted {
		at.Root, at.Major, at.Minor = p.canonicalPath(id), st.Major, st.Minor
	}
	st, err = statMount(p.rootfs, id+"/"+rootfsMount)
	if err != nil && !errors.Is(err, unix.ENOENT) {
		return at, err
	}
	if err == nil && st.Mounted {
		at.Rootfs, at.Major, at.Minor = p.rootfsPath(id), st.Major, st.Minor
	}
	return at, nil
}

func (p *Pool) canonicalPath(id string) string { return filepath.Join(p.canonical.Name(), id) }
func (p *Pool) rootfsPath(id string) string {
	return filepath.Join(p.rootfs.Name(), id, rootfsMount)
}

// attachCanonical mounts the disk for the host, if it is not.
func (p *Pool) attachCanonical(ctx context.Context, id string, f *os.File) error {
	if err := unix.Mkdirat(int(p.canonical.Fd()), id, 0o700); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("make mount point: %w", err)
	}
	if err := p.dropFailed(ctx, id, f); err != nil {
		return err
	}
	l, err := p.attachDiskLoop(f)
	if err != nil {
		return err
	}
	defer l.Close()
	st, err := statMount(p.canonical, id)
	if err != nil {
		return err
	}
	var root *os.File
	if st.Mounted {
		if st.Major != loopMajor || st.Minor != l.number {
			return fault.New(fault.Precondition, "something else is mounted on %s; unmount it", p.canonicalPath(id))
		}
		root, err = openAt(p.canonical, id, unix.O_RDONLY|unix.O_DIRECTORY, 0)
		if err != nil {
			return err
		}
		defer root.Close()
		return fillDisk(root, l, f)
	}
	m, err := p.mountDisk(ctx, id, l, f)
	if err != nil {
		return err
	}
	defer m.Close()
	if root, err = openAt(m, ".", unix.O_RDONLY|unix.O_DIRECTORY, 0); err != nil {
		return err
	}
	defer root.Close()
	if err := fillDisk(root, l, f); err != nil {
		return err
	}
	return place(m, p.canonical, id)
}

// attachDiskLoop attaches a disk so that flushing it costs least.
func (p *Pool) attachDiskLoop(f *os.File) (*loopDevice, error) {
	if p.fileSystem != "xfs" {
		return attachLoop(f)
	}
	untimed, err := openUntimed(p.disks, f)
	if err != nil {
		return nil, err
	}
	defer untimed.Close() // the device keeps it
	return attachLoop(untimed)
}

// mountDisk mounts the disk detached. Errors that the kernel has noted in it, or finds
// now, are mended first.
func (p *Pool) mountDisk(ctx context.Context, id string, l *loopDevice, f *os.File) (*os.File, error) {
	s, err := readSuperblock(f)
	if err != nil && !errors.Is(err, errNotExt4) { // e2fsck knows where the spare superblocks are
		return nil, err
	}
	damaged := err != nil || s.Errors
	if st, statErr := f.Stat(); statErr == nil && !damaged && s.Blocks < s.wantBlocks(st.Size()) && !mayGrowLive() {
		if err := growUnmounted(ctx, l); err != nil {
			return nil, err
		}
	}
	if !damaged {
		m, err := mountDetached("ext4", l.path(), canonicalAttrs, ext4Options)
		if !errors.Is(err, unix.EUCLEAN) && !errors.Is(err, unix.EBADMSG) && !errors.Is(err, unix.EINVAL) {
			return m, err
		}
		p.log.Warn("disk cannot be mounted, checking it", "server", id, "error", err)
	}
	mended, report, err := repair(ctx, l.path())
	if err != nil {
		return nil, err
	}
	p.log.Warn("checked a damaged disk", "server", id, "mended", mended, "report", report)
	return mountDetached("ext4", l.path(), canonicalAttrs, ext4Options)
}

// dropFailed detaches a disk whose file system has stopped after an error, so that it is
// mended. Kernels differ in what they show of that, so a file is made to find out.
func (p *Pool) dropFailed(ctx context.Context, id string, f *os.File) error {
	st, err := statMount(p.canonical, id)
	if err != nil || !st.Mounted {
		return err
	}
	if !hasFailed(p.canonicalPath(id)) {
		return nil
	}
	p.log.Warn("disk has stopped after an error, detaching it to be mended", "server", id)
	for _, path := range p.mountPoints(id) {
		err := unmountPatiently(path, busyPatience)
		if errors.Is(err, unix.EBUSY) {
			return fault.New(fault.Precondition, "its file system has stopped after an error and is in use; stop the server so that it can be mended: %w", err)
		}
		if err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
			return err
		}
	}
	// A server that is just being made has a copy of the host's mounts for a moment. Until
	// the last one is gone a new mount would be of the same failed file system.
	switch cleared, err := awaitCleared(ctx, f, 5*busyPatience); {
	case err != nil:
		return err
	case !cleared:
		return fault.New(fault.Unavailable, "its file system has stopped after an error and something still has it mounted")
	}
	return nil
}

// hasFailed reports whether the file system mounted at path no longer takes writes. A
// full one has not failed.
func hasFailed(path string) bool {
	root, err := openDir(path)
	if err != nil {
		return true
	}
	defer root.Close()
	f, err := tempFile(root)
	if err != nil {
		return !errors.Is(err, unix.ENOSPC)
	}
	f.Close()
	return false
}

// mountPoints are a disk's mount points in the order of unmounting.
func (p *Pool) mountPoints(id string) []string {
	return []string{p.rootfsPath(id), p.canonicalPath(id)}
}

// attachRootfs mounts the disk a second time, with shifted owners, if it is not. The
// directory above it admits root and the server's own root, nobody else: a set-id
// program that a server makes is not for the host's users.
func (p *Pool) attachRootfs(id string, ids vserver.IDRange) error {
	if err := unix.Mkdirat(int(p.rootfs.Fd()), id, 0o700); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("make mount point: %w", err)
	}
	dir, err := openAt(p.rootfs, id, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return err
	}
	defer dir.Close()
	if err := dir.Chown(0, int(ids.First)); err != nil {
		return fmt.Errorf("set owner of mount point: %w", err)
	}
	if err := dir.Chmod(0o710); err != nil {
		return fmt.Errorf("set mode of mount point: %w", err)
	}
	if err := unix.Mkdirat(int(dir.Fd()), rootfsMount, 0o700); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("make mount point: %w", err)
	}
	have, err := statMount(dir, rootfsMount)
	if err != nil {
		return err
	}
	root, err := openAt(p.canonical, id, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return err
	}
	defer root.Close()
	owner, err := statMount(root, "")
	if err != nil {
		return err
	}
	if have.Mounted {
		if have.Minor == owner.Minor && have.Major == owner.Major && have.UID == shifted(owner.UID, ids) && have.GID == shifted(owner.GID, ids) {
			return nil
		}
		if err := unmountPatiently(p.rootfsPath(id), busyPatience); err != nil {
			return fault.New(fault.Precondition, "it is attached with other ids and in use: %w", err)
		}
	}
	userns, err := newUserNamespace(ids)
	if err != nil {
		return err
	}
	defer userns.Close()
	m, err := cloneMount(root, 0, unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NOEXEC, userns)
	if err != nil {
		return err
	}
	defer m.Close()
	return place(m, dir, rootfsMount)
}

// Detach implements [vserver.Disks]. A disk that something keeps busy is taken out of the
// tree all the same, after its data is on stable storage; Conditions names it until it is
// free. A file system that has failed is unmounted too, but the error says what it was.
func (p *Pool) Detach(ctx context.Context, id string) error {
	if err := checkServerID(id); err != nil {
		return err
	}
	unlock, err := p.busy.lock(ctx, id)
	if err != nil {
		return err
	}
	defer unlock()
	return p.detach(ctx, id)
}

func (p *Pool) detach(ctx context.Context, id string) error {
	var unsynced error
	for _, path := range p.mountPoints(id) {
		err := p.unmountSynced(ctx, id, path)
		if errors.Is(err, errNotSynced) {
			unsynced = fmt.Errorf("detach disk %s: %w", id, err)
		} else if err != nil {
			return fmt.Errorf("detach disk %s: %w", id, err)
		}
	}
	for _, dir := range []string{p.rootfsPath(id), filepath.Dir(p.rootfsPath(id)), p.canonicalPath(id)} {
		if err := unix.Rmdir(dir); err != nil && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("detach disk %s: remove mount point %s: %w", id, dir, err)
		}
	}
	f, err := p.openDisk(id)
	if fault.Is(err, fault.NotFound) {
		return unsynced
	}
	if err != nil {
		return err
	}
	defer f.Close()
	free, err := awaitCleared(ctx, f, busyPatience)
	if err != nil {
		return fmt.Errorf("detach disk %s: %w", id, err)
	}
	p.setStuck(id, !free)
	return unsynced
}

// errNotSynced: the disk is unmounted, but what was written last may be lost.
var errNotSynced = errors.New("not all data could be written")

// unmountSynced writes everything to stable storage and unmounts path, by force if need be.
func (p *Pool) unmountSynced(ctx context.Context, id, path string) (result error) {
	for { // a killed agent or an operator may have left more than one mount there
		root, err := openDir(path)
		if errors.Is(err, os.ErrNotExist) {
			return result
		}
		if err != nil {
			return err
		}
		st, err := statMount(root, "")
		if err == nil && st.Mounted {
			if syncErr := unix.Syncfs(int(root.Fd())); syncErr != nil {
				result = fmt.Errorf("sync %s: %w: %w", path, errNotSynced, syncErr)
			}
		}
		root.Close()
		if err != nil {
			return err
		}
		if !st.Mounted {
			return result
		}
		err = unmountPatiently(path, busyPatience)
		if errors.Is(err, unix.EBUSY) {
			p.log.Warn("disk is busy, unmounting it lazily", "server", id, "path", path)
			err = unmount(path, true)
		}
		if err != nil {
			return err
		}
		if err := ctx.Err(); err != nil {
			return err
		}
	}
}
