package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"

	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
)

// beneath is how paths in directories of the host are resolved: a link may lead anywhere below the
// allowed directory, and nowhere else.
const beneath = unix.RESOLVE_BENEATH | unix.RESOLVE_NO_MAGICLINKS

// openHost opens what is at path p below one of dirs: a tar, an OCI layout or a directory tree.
func openHost(ctx context.Context, dirs []string, p string, checksum bool, o options) (content, error) {
	dir, rel, err := allowedDir(dirs, p)
	if err != nil {
		return nil, err
	}
	root, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open image directory %s: %w", dir, err)
	}
	defer unix.Close(root)
	fd, err := openIn(root, rel, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY, beneath)
	switch {
	case errors.Is(err, fs.ErrNotExist) || err == unix.ENOTDIR:
		return nil, fault.New(fault.NotFound, "open host:%s: there is no such file or directory on the host", p)
	case err == unix.EXDEV || err == unix.ELOOP:
		return nil, fault.Field("source", "open host:%s: a link in it leads out of %s", p, dir)
	case err != nil:
		return nil, fmt.Errorf("open host:%s: %w", p, err)
	}
	f := os.NewFile(uintptr(fd), p)
	info, err := f.Stat()
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("open host:%s: %w", p, err)
	}
	var c content
	switch {
	case info.IsDir():
		c, err = openDir(ctx, f, o)
	case !info.Mode().IsRegular():
		f.Close()
		return nil, fault.Field("source", "open host:%s: it is neither a file nor a directory", p)
	default:
		c, err = openTar(ctx, tarFile{f, info.Size(), func() (string, error) { return hashFile(ctx, f, info.Size(), o.report) }, checksum}, o)
	}
	if err != nil {
		return nil, fmt.Errorf("open host:%s: %w", p, err)
	}
	return c, nil
}

// openDir opens an OCI layout or a directory tree. It takes over dir.
func openDir(ctx context.Context, dir *os.File, o options) (content, error) {
	b := dirBlobs{dir}
	if f, err := b.open("oci-layout"); err == nil {
		f.Close()
		c, err := openImage(b, o.arch, o.limits)
		if err != nil {
			dir.Close()
			return nil, err
		}
		c.closers = append(c.closers, func() { dir.Close() })
		return c, nil
	}
	c := &treeContent{dir: dir, limits: o.limits}
	s := newScan(dir, o.limits)
	err := s.drain(ctx, func(n int64) { o.report("reading", n, 0) })
	s.close()
	if err != nil {
		dir.Close()
		return nil, err
	}
	c.id, c.size = s.digest(), s.bytes
	return c, nil
}

// dirBlobs are the files of an OCI layout in a directory.
type dirBlobs struct{ dir *os.File }

func (b dirBlobs) open(name string) (io.ReadCloser, error) {
	fd, err := openIn(int(b.dir.Fd()), name, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY, beneath)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: name, Err: err}
	}
	f := os.NewFile(uintptr(fd), name)
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		f.Close()
		return nil, fault.New(fault.Invalid, "open %s: it is no regular file", name)
	}
	return f, nil
}

// treeContent is a root file system in a directory.
type treeContent struct {
	dir    *os.File
	limits Limits
	id     string
	size   int64
}

func (c *treeContent) about() about {
	return about{id: c.id, digests: []string{c.id}, size: c.size}
}

func (c *treeContent) close() { c.dir.Close() }

func (c *treeContent) fetch(context.Context, string, Progress) error { return nil }

func (c *treeContent) unpack(ctx context.Context, u *unpacker, report Progress) error {
	s := newScan(c.dir, c.limits)
	defer s.close()
	s.tick = func(n int64) { report("unpacking", n, c.size) }
	if err := u.layer(ctx, s, false); err != nil {
		return err
	}
	if s.digest() != c.id {
		return fault.New(fault.Aborted, "verify directory: it changed while it was read")
	}
	return nil
}
