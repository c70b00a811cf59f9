package disk

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
	"golang.org/x/sys/unix"
)

// maxVariants is how many sizes are kept ready for each base disk.
const maxVariants = 8

// openSource opens the file that a new disk of size bytes is a clone of: the base disk
// if it has that size, else its variant, which is made now if nobody has asked for this
// size lately.
func (p *Pool) openSource(ctx context.Context, image string, size int64) (*os.File, error) {
	size = size / blockSize * blockSize
	base, least, err := p.openBase(image)
	if err != nil {
		return nil, err
	}
	st, err := base.Stat()
	switch {
	case err != nil:
		base.Close()
		return nil, err
	case st.Size() == size:
		return base, nil
	}
	base.Close()
	if size < least {
		return nil, fault.Field("disk.size", "asked %d bytes, the image needs at least %d", size, least)
	}
	name := variantName(image, size)
	f, err := p.useVariant(name)
	if !errors.Is(err, os.ErrNotExist) {
		return f, err
	}
	unlock, err := p.busy.lock(ctx, image) // many may ask at once, one makes it; and the base stays
	if err != nil {
		return nil, err
	}
	defer unlock()
	if f, err = p.useVariant(name); !errors.Is(err, os.ErrNotExist) {
		return f, err
	}
	if base, _, err = p.openBase(image); err != nil {
		return nil, err
	}
	defer base.Close()
	began := time.Now()
	if f, err = p.makeVariant(ctx, base, name, size); err != nil {
		return nil, p.blame(fmt.Errorf("resize base disk to %d bytes: %w", size, err))
	}
	p.log.Debug("made a base disk ready in another size", "image", image, "size", size, "took", time.Since(began))
	if err := p.evictVariants(image); err != nil {
		p.log.Warn("cannot remove base disks in sizes not asked for lately", "image", image, "error", err)
	}
	return f, nil
}

// openBase opens a finished base disk. least is the smallest size of its clones.
func (p *Pool) openBase(image string) (f *os.File, least int64, err error) {
	f, err = openAt(p.bases, baseName(image), unix.O_RDONLY, 0)
	if errors.Is(err, os.ErrNotExist) {
		return nil, 0, fault.New(fault.NotFound, "image %s has no base disk", image)
	}
	if err != nil {
		return nil, 0, err
	}
	if least, err = leastSize(f); err != nil {
		f.Close()
		return nil, 0, err
	}
	return f, least, nil
}

// useVariant opens a variant and notes that it was wanted now.
func (p *Pool) useVariant(name string) (*os.File, error) {
	f, err := openAt(p.variants, name, unix.O_RDONLY, 0)
	if err != nil {
		return nil, err
	}
	now := []unix.Timespec{{Nsec: unix.UTIME_NOW}, {Nsec: unix.UTIME_NOW}}
	if err := unix.UtimesNanoAt(int(p.variants.Fd()), name, now, unix.AT_SYMLINK_NOFOLLOW); err != nil && !errors.Is(err, unix.ENOENT) {
		f.Close()
		return nil, fmt.Errorf("touch %s: %w", f.Name(), err)
	}
	return f, nil
}

// makeVariant clones the base disk, resizes the clone and gives it its name when it is
// durable: an agent that is killed before leaves nothing. resize2fs is told (-f) not to ask
// for a check first: nobody has mounted this file system since Build unmounted it, and a
// check would make a lost+found that is not the image's.
func (p *Pool) makeVariant(ctx context.Context, base *os.File, name string, size int64) (*os.File, error) {
	f, err := tempFile(p.variants)
	if err != nil {
		return nil, err
	}
	done := false
	defer func() {
		if !done {
			f.Close()
		}
	}()
	if err := unix.IoctlFileClone(int(f.Fd()), int(base.Fd())); err != nil {
		return nil, fmt.Errorf("clone: %w", err)
	}
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if err := f.Truncate(max(size, st.Size())); err != nil { // the tool would write the last byte
		return nil, err
	}
	if _, err := runTool(ctx, []*os.File{f}, "resize2fs", "-f", "/proc/self/fd/3", fmt.Sprintf("%dK", size/1024)); err != nil {
		return nil, err
	}
	if err := f.Truncate(size); err != nil {
		return nil, err
	}
	if err := f.Chmod(0o400); err != nil {
		return nil, err
	}
	if err := f.Sync(); err != nil {
		return nil, err
	}
	if err := unix.Linkat(int(f.Fd()), "", int(p.variants.Fd()), name, unix.AT_EMPTY_PATH); err != nil {
		return nil, fmt.Errorf("link %s: %w", name, err)
	}
	done = true
	return f, nil // its name need not be durable: it can be made again
}

// evictVariants removes the variants of an image that were not wanted for longest.
func (p *Pool) evictVariants(image string) error {
	all, err := p.variantsOf(image)
	if err != nil || len(all) <= maxVariants {
		return err
	}
	slices.SortFunc(all, func(a, b entry) int { return cmp.Compare(b.touched, a.touched) })
	return p.unlinkVariants(all[maxVariants:])
}

// removeVariants removes all variants of an image.
func (p *Pool) removeVariants(image string) error {
	all, err := p.variantsOf(image)
	if err != nil {
		return err
	}
	return p.unlinkVariants(all)
}

func (p *Pool) variantsOf(image string) ([]entry, error) {
	entries, err := readDir(p.variants)
	if err != nil {
		return nil, fmt.Errorf("list sizes of base disks: %w", err)
	}
	return slices.DeleteFunc(entries, func(e entry) bool {
		of, ok := variantOf(e.name)
		return !ok || of != image
	}), nil
}

func (p *Pool) unlinkVariants(all []entry) error {
	for _, e := range all {
		if err := unix.Unlinkat(int(p.variants.Fd()), e.name, 0); err != nil && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("remove %s/%s: %w", p.variants.Name(), e.name, err)
		}
	}
	return nil
}

// sweepVariants removes the variants whose base disk is gone.
func (p *Pool) sweepVariants() error {
	entries, err := readDir(p.variants)
	if err != nil {
		return fmt.Errorf("list sizes of base disks: %w", err)
	}
	var orphans []entry
	for _, e := range entries {
		image, ok := variantOf(e.name)
		if !ok {
			continue
		}
		var st unix.Stat_t
		err := unix.Fstatat(int(p.bases.Fd()), baseName(image), &st, unix.AT_SYMLINK_NOFOLLOW)
		if errors.Is(err, unix.ENOENT) {
			orphans = append(orphans, e)
		} else if err != nil {
			return fmt.Errorf("examine base disk of %s: %w", image, err)
		}
	}
	return p.unlinkVariants(orphans)
}
