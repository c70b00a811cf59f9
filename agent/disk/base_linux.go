package disk

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
	"github.com/reflejo/terraform-provider-reflejo/agent/image"
	"github.com/reflejo/terraform-provider-reflejo/agent/undo"
	"golang.org/x/sys/unix"
)

var _ image.Bases = Bases{}

// Bases are the base disks of a pool.
type Bases struct{ pool *Pool }

// Bases returns the pool's base disks.
func (p *Pool) Bases() Bases { return Bases{p} }

// Build implements [image.Bases]. A full pool, and an image that is larger than size, are
// fault.Exhausted. fill may be handed the same id again after a kill.
func (b Bases) Build(ctx context.Context, id string, size int64, fill func(root string) error) error {
	if size == 0 {
		size = DefaultBaseSize
	}
	size = roundUp(size, mebibyte)
	if err := errors.Join(checkImageID(id), checkSize(size)); err != nil {
		return err
	}
	p := b.pool
	unlock, err := p.busy.lock(ctx, id)
	if err != nil {
		return err
	}
	defer unlock()
	var st unix.Stat_t
	err = unix.Fstatat(int(p.bases.Fd()), baseName(id), &st, unix.AT_SYMLINK_NOFOLLOW)
	if err == nil || !errors.Is(err, unix.ENOENT) {
		return err
	}
	if err := p.removeBases(id); err != nil { // what killed builds left: their space may be needed
		return err
	}
	if err := p.build(ctx, id, size, fill); err != nil {
		return p.explain(fmt.Errorf("build base disk of %s: %w", id, err))
	}
	return nil
}

// build makes the base disk under a temporary name and renames it when it is durable.
func (p *Pool) build(ctx context.Context, id string, size int64, fill func(root string) error) error {
	var failed undo.Stack
	defer failed.Run()
	random := make([]byte, 8)
	_, _ = rand.Read(random) // never fails
	name := buildingName(id, hex.EncodeToString(random))
	f, err := openAt(p.bases, name, unix.O_RDWR|unix.O_CREAT|unix.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	failed.Add(func() { _ = unix.Unlinkat(int(p.bases.Fd()), name, 0) })
	if p.fileSystem == "xfs" {
		if err := hintExtents(f); err != nil {
			return err
		}
	}
	if err := f.Truncate(size); err != nil {
		return err
	}
	if _, err := runTool(ctx, []*os.File{f}, mkfsExt4("/proc/self/fd/3", size)...); err != nil {
		return err
	}
	if err := writeJournal(f); err != nil {
		return p.blame(err)
	}
	if err := p.fillBase(f, hex.EncodeToString(random), fill); err != nil {
		return p.blame(err)
	}
	if cleared, err := awaitCleared(ctx, f, 10*busyPatience); err != nil || !cleared {
		return errors.Join(err, fault.New(fault.Unavailable, "another program keeps its loop device open"))
	}
	if err := measureBase(ctx, f, size); err != nil {
		return p.blame(err)
	}
	if err := f.Chmod(0o400); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	err = unix.Renameat2(int(p.bases.Fd()), name, int(p.bases.Fd()), baseName(id), unix.RENAME_NOREPLACE)
	if err != nil {
		return fmt.Errorf("rename %s: %w", name, err)
	}
	failed.Keep()
	return syncDir(p.bases)
}

// fillBase mounts the new file system, has it filled and unmounts it.
func (p *Pool) fillBase(f *os.File, mountPoint string, fill func(root string) error) error {
	l, err := attachLoop(f)
	if err != nil {
		return err
	}
	defer l.Close()
	m, err := mountDetached("ext4", l.path(), canonicalAttrs, ext4Options)
	if err != nil {
		return err
	}
	defer m.Close()
	if err := unix.Mkdirat(int(p.builds.Fd()), mountPoint, 0o700); err != nil {
		return fmt.Errorf("make mount point: %w", err)
	}
	defer func() { // nothing is left to undo if it went well
		if err := p.dropBuildMount(mountPoint); err != nil {
			p.log.Warn("cannot clear away the mount of a build", "error", err)
		}
	}()
	if err := place(m, p.builds, mountPoint); err != nil {
		return err
	}
	m.Close()
	path := filepath.Join(p.builds.Name(), mountPoint)
	// mkfs made it; the root directory should hold the image and nothing else.
	if err := os.Remove(filepath.Join(path, "lost+found")); err != nil {
		return err
	}
	if err := fill(path); err != nil {
		return err
	}
	root, err := openDir(path)
	if err != nil {
		return err
	}
	defer root.Close()
	if err := unix.Syncfs(int(root.Fd())); err != nil {
		return fmt.Errorf("sync: %w", err)
	}
	if _, err := trim(root, blockSize); err != nil && !errors.Is(err, unix.EOPNOTSUPP) {
		return err
	}
	root.Close()
	return unmountPatiently(path, busyPatience)
}

// blame adds the kind to a failed fill: a full pool looks like a broken disk from inside it.
func (p *Pool) blame(err error) error {
	var st unix.Statfs_t
	const scant = 16 * mebibyte
	if unix.Fstatfs(int(p.root.Fd()), &st) == nil && int64(st.Bavail)*st.Bsize < scant {
		return fault.New(fault.Exhausted, "pool %s is full (%d bytes free): %w", p.cfg.Path, int64(st.Bavail)*st.Bsize, err)
	}
	if errors.Is(err, unix.ENOSPC) {
		return fault.New(fault.Exhausted, "the image does not fit: %w", err)
	}
	return err
}

// dropBuildMount clears away the mount of a build; its file stays.
func (p *Pool) dropBuildMount(name string) error {
	st, err := statMount(p.builds, name)
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	if err != nil {
		return err
	}
	if st.Mounted {
		if err := unmount(filepath.Join(p.builds.Name(), name), true); err != nil {
			return err
		}
	}
	if err := unix.Unlinkat(int(p.builds.Fd()), name, unix.AT_REMOVEDIR); err != nil {
		return fmt.Errorf("remove mount point %s/%s: %w", p.builds.Name(), name, err)
	}
	return nil
}

// Remove implements [image.Bases].
func (b Bases) Remove(ctx context.Context, id string) error {
	if err := checkImageID(id); err != nil {
		return err
	}
	unlock, err := b.pool.busy.lock(ctx, id)
	if err != nil {
		return err
	}
	defer unlock()
	return b.pool.removeBases(id)
}

// removeBases removes the base disk of an image, all unfinished ones, and its variants last:
// Open removes those that a killed agent left without a base disk.
func (p *Pool) removeBases(id string) error {
	entries, err := readDir(p.bases)
	if err != nil {
		return fmt.Errorf("list base disks: %w", err)
	}
	removed := false
	for _, e := range entries {
		if image, _, ok := imageOf(e.name); !ok || image != id {
			continue
		}
		if err := unix.Unlinkat(int(p.bases.Fd()), e.name, 0); err != nil && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("remove base disk %s: %w", e.name, err)
		}
		removed = true
	}
	if removed {
		if err := syncDir(p.bases); err != nil {
			return err
		}
	}
	return p.removeVariants(id)
}

// List implements [image.Bases]. An image has one entry: the finished base disk, or else
// an unfinished one.
func (b Bases) List(ctx context.Context) ([]image.Base, error) {
	entries, err := readDir(b.pool.bases)
	if err != nil {
		return nil, fmt.Errorf("list base disks: %w", err)
	}
	var all []image.Base
	index := map[string]int{}
	for _, e := range entries {
		id, complete, ok := imageOf(e.name)
		if !ok {
			continue
		}
		base := image.Base{ID: id, Size: e.size, Used: e.used, Complete: complete}
		if complete {
			f, least, err := b.pool.openBase(id)
			if fault.Is(err, fault.NotFound) {
				continue // removed meanwhile
			}
			if err != nil {
				return nil, fmt.Errorf("list base disks: %w", err)
			}
			f.Close()
			base.Size = least
		}
		if i, seen := index[id]; !seen {
			index[id] = len(all)
			all = append(all, base)
		} else if complete {
			all[i] = base
		}
	}
	return all, ctx.Err()
}
