package image

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"io"
	"path"
	"syscall"
	"time"

	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
	"github.com/reflejo/terraform-provider-reflejo/agent/units"
)

// archive is a sequence of entries with their content; *tar.Reader is one.
type archive interface {
	// Next goes to the next entry; io.EOF after the last.
	Next() (*tar.Header, error)
	// Read reads the content of the entry that Next returned.
	Read([]byte) (int, error)
}

// tree is a root directory on disk. No path leads out of it, whatever links are in it: each is
// resolved as by a process whose root directory it is, and the last component is never followed.
type tree interface {
	// Put makes the entry, with content if it is a file, in place of what is there; a directory
	// that is there stays, with the entry's attributes. Directories above it are made.
	Put(e entry, content io.Reader) error
	// Remove deletes what is below path, and path too if self is set, except paths that keep wants.
	Remove(path string, self bool, keep func(path string) bool) error
	// SetTime sets the time of a directory; one that is no more is left out.
	SetTime(path string, t time.Time) error
	// Open opens a regular file for reading, following links; executable tells its mode.
	Open(path string) (file io.ReadCloser, executable bool, err error)
	// Space is the size of the file system and what is free of it, bytes; no free inodes is nothing free.
	Space() (total, free int64, err error)
	Close() error
}

// unpacker writes the layers of an image into a tree, in order.
type unpacker struct {
	tree    tree
	limits  Limits
	entries int64 // so far, over all layers
	bytes   int64 // so far: logical sizes of files
	layers  int
	read    int64                // so far: bytes of tars
	dirs    map[string]time.Time // whose times are set at the end
	dirSize int64                // bytes of keys in dirs
	seed    maphash.Seed
}

func newUnpacker(t tree, l Limits) *unpacker {
	return &unpacker{tree: t, limits: l, dirs: map[string]time.Time{}, seed: maphash.MakeSeed()}
}

// layer unpacks one archive over what is there. With layered, whiteouts are obeyed: they delete what
// lower layers have, never what this one brings, in whichever order it says so.
func (u *unpacker) layer(ctx context.Context, a archive, layered bool) error {
	own := own{seed: u.seed}
	if layered && u.layers > 0 {
		own.paths = map[uint64]struct{}{}
	}
	u.layers++
	for {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		h, err := a.Next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return damagedArchive(err)
		}
		if u.entries++; u.entries > u.limits.Entries {
			return fault.New(fault.Invalid, "unpack: more than %d entries", u.limits.Entries)
		}
		e, err := parse(h, layered)
		if err != nil {
			return fmt.Errorf("unpack: %w", err)
		}
		if err := u.apply(e, a, &own); err != nil {
			return fmt.Errorf("unpack %q: %w", e.path, err)
		}
	}
}

func (u *unpacker) apply(e entry, content io.Reader, own *own) error {
	switch e.kind {
	case kindSkip:
		return nil
	case kindWhiteout, kindOpaque:
		if own.paths == nil { // nothing is below the first layer
			return nil
		}
		return u.tree.Remove(e.path, e.kind == kindWhiteout, own.has)
	case kindFile:
		if u.bytes += e.size; e.size < 0 || u.bytes > u.limits.Size {
			return fault.New(fault.Invalid, "the image is larger than %s", units.FormatBytes(u.limits.Size))
		}
	case kindDir:
		if err := u.remember(e); err != nil {
			return err
		}
	}
	own.add(e.path)
	err := u.tree.Put(e, contentReader{content})
	if re := (readError{}); errors.As(err, &re) {
		return damagedArchive(re.err)
	}
	return err
}

// remember keeps a directory's time until all layers are there: each entry made in it changes it.
func (u *unpacker) remember(e entry) error {
	if _, ok := u.dirs[e.path]; !ok {
		if u.dirSize += int64(len(e.path)) + 64; u.dirSize > maxDirTimes {
			return fault.New(fault.Invalid, "too many directories with too long names")
		}
	}
	u.dirs[e.path] = e.time
	return nil
}

// finish sets what only can be set when everything is there.
func (u *unpacker) finish(ctx context.Context) error {
	for p, t := range u.dirs {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err := u.tree.SetTime(p, t); err != nil {
			return fmt.Errorf("unpack %q: %w", p, err)
		}
	}
	return nil
}

// own remembers which paths the layer under way has brought, directories above them included:
// 64 bits each, hashed with a secret seed, so that an archive of many long names costs little.
type own struct {
	seed  maphash.Seed
	paths map[uint64]struct{} // nil: not needed
}

func (o *own) add(p string) {
	if o.paths == nil {
		return
	}
	for {
		h := maphash.String(o.seed, p)
		if _, ok := o.paths[h]; ok || p == "." {
			return
		}
		o.paths[h] = struct{}{}
		p = path.Dir(p)
	}
}

func (o *own) has(p string) bool {
	_, ok := o.paths[maphash.String(o.seed, p)]
	return ok
}

// contentReader marks errors of reading, which blame the archive, apart from errors of writing.
type contentReader struct{ r io.Reader }

type readError struct{ err error }

func (e readError) Error() string { return e.err.Error() }
func (e readError) Unwrap() error { return e.err }

func (c contentReader) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	if err != nil && err != io.EOF {
		err = readError{err}
	}
	return n, err
}

// damagedArchive says whose fault a failed read is: with no reason of its own (a limit, a wrong
// digest, the end of the caller's patience, the disk) the data is damaged.
func damagedArchive(err error) error {
	var f *fault.Error
	var errno syscall.Errno
	if errors.As(err, &f) || errors.As(err, &errno) || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return fmt.Errorf("read archive: %w", err)
	}
	return fault.New(fault.Invalid, "read archive: it is damaged, cut short or no tar (plain, gz, zst or xz): %w", err)
}
