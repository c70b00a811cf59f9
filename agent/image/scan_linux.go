package image

import (
	"archive/tar"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"path"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
	"github.com/reflejo/terraform-provider-reflejo/agent/units"
)

// scan reads a directory tree as an archive: sorted, depth first, on one file system, and computes its
// digest on the way. Sockets and devices are left out. Later names of a file with several are hard links.
//
// The digest is the sha256 of "reflejo tree 1\n" and, for each entry, of kind, path, target, mode, owner,
// group, size and capability, each as a netstring, and the content. Times are not in it: they differ
// between copies of one tree.
type scan struct {
	root   *os.File
	limits Limits
	tick   func(bytes int64)

	sum     hash.Hash
	stack   []frame
	dev     uint64
	links   map[uint64]string // inode → first path, of files with several names
	started bool
	file    *os.File // of the entry under way, nil if none
	left    int64
	names   int64
	bytes   int64
}

// frame is a directory whose entries are being listed.
type frame struct {
	path  string
	dir   *os.File
	names []string // still to come
}

func newScan(root *os.File, l Limits) *scan {
	s := &scan{root: root, limits: l, sum: sha256.New(), links: map[uint64]string{}}
	io.WriteString(s.sum, "reflejo tree 1\n")
	return s
}

func (s *scan) digest() string { return digestOf(s.sum) }

func (s *scan) close() {
	for _, f := range s.stack {
		f.dir.Close()
	}
	s.stack = nil
	s.closeFile()
}

func (s *scan) closeFile() {
	if s.file != nil {
		s.file.Close()
		s.file = nil
	}
}

// drain reads everything, for the digest.
func (s *scan) drain(ctx context.Context, tick func(int64)) error {
	s.tick = tick
	buffer := make([]byte, 256<<10)
	for {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		_, err := s.Next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		if _, err := io.CopyBuffer(io.Discard, struct{ io.Reader }{s}, buffer); err != nil {
			return err
		}
	}
}

// Next goes to the next entry. What was not read of the one before is read now, for the digest.
func (s *scan) Next() (*tar.Header, error) {
	if _, err := io.Copy(io.Discard, s); err != nil {
		return nil, err
	}
	s.closeFile()
	if !s.started {
		s.started = true
		return s.first()
	}
	for len(s.stack) > 0 {
		top := &s.stack[len(s.stack)-1]
		if len(top.names) == 0 {
			top.dir.Close()
			s.stack = s.stack[:len(s.stack)-1]
			continue
		}
		name := top.names[0]
		top.names = top.names[1:]
		h, err := s.entry(int(top.dir.Fd()), name, path.Join(top.path, name))
		if err != nil || h != nil {
			return h, err
		}
	}
	return nil, io.EOF
}

func (s *scan) first() (*tar.Header, error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(s.root.Fd()), &st); err != nil {
		return nil, fmt.Errorf("read directory: %w", err)
	}
	s.dev = uint64(st.Dev)
	if err := s.push(int(s.root.Fd()), ".", "."); err != nil {
		return nil, err
	}
	return s.header(".", &st, tar.TypeDir, "", nil), nil
}

// entry describes name in directory dir, nil if it is left out.
func (s *scan) entry(dir int, name, p string) (*tar.Header, error) {
	var st unix.Stat_t
	if err := unix.Fstatat(dir, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return nil, changed(p, err)
	}
	if uint64(st.Dev) != s.dev {
		// A mount: /proc in a directory that somebody uses as a root. Only its mount point is of the tree.
		if st.Mode&unix.S_IFMT != unix.S_IFDIR {
			return nil, nil
		}
		return s.header(p, &st, tar.TypeDir, "", nil), nil
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		if err := s.push(dir, name, p); err != nil {
			return nil, err
		}
		return s.header(p, &st, tar.TypeDir, "", nil), nil
	case unix.S_IFLNK:
		target, err := readlinkat(dir, name)
		if err != nil {
			return nil, changed(p, err)
		}
		return s.header(p, &st, tar.TypeSymlink, target, nil), nil
	case unix.S_IFIFO:
		return s.header(p, &st, tar.TypeFifo, "", nil), nil
	case unix.S_IFREG:
		return s.regular(dir, name, p, &st)
	}
	return nil, nil
}

func (s *scan) regular(dir int, name, p string, st *unix.Stat_t) (*tar.Header, error) {
	if st.Nlink > 1 {
		if first, ok := s.links[st.Ino]; ok {
			return s.header(p, st, tar.TypeLink, first, nil), nil
		}
		s.links[st.Ino] = p
	}
	fd, err := unix.Openat(dir, name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, changed(p, err)
	}
	s.file = os.NewFile(uintptr(fd), p)
	var now unix.Stat_t
	if err := unix.Fstat(fd, &now); err != nil || now.Ino != st.Ino || uint64(now.Dev) != s.dev || now.Mode != st.Mode {
		return nil, changed(p, errors.New("it was replaced"))
	}
	s.left = now.Size
	if s.bytes+s.left > s.limits.Size {
		return nil, fault.New(fault.Invalid, "read directory: larger than %s", units.FormatBytes(s.limits.Size))
	}
	value := make([]byte, 64)
	n, err := unix.Fgetxattr(fd, "security.capability", value)
	if err != nil {
		n = 0 // none, or a file system without them
	}
	return s.header(p, &now, tar.TypeReg, "", cleanCapability(value[:n])), nil
}

// push begins to list directory name.
func (s *scan) push(dir int, name, p string) error {
	if len(s.stack) >= maxDepth {
		return fault.New(fault.Invalid, "read directory: more than %d levels", maxDepth)
	}
	fd, err := unix.Openat(dir, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return changed(p, err)
	}
	f := os.NewFile(uintptr(fd), p)
	var names []string
	for {
		some, err := f.Readdirnames(4096)
		names = append(names, some...)
		if s.names += int64(len(some)); s.names > s.limits.Entries {
			f.Close()
			return fault.New(fault.Invalid, "read directory: more than %d entries", s.limits.Entries)
		}
		if err == io.EOF {
			break
		}
		if err != nil {
			f.Close()
			return fmt.Errorf("read directory %q: %w", p, err)
		}
	}
	slices.Sort(names)
	s.stack = append(s.stack, frame{p, f, names})
	return nil
}

// header makes the entry's header and adds it to the digest.
func (s *scan) header(p string, st *unix.Stat_t, kind byte, target string, capability []byte) *tar.Header {
	sec, nsec := st.Mtim.Unix()
	h := &tar.Header{
		Name: p, Linkname: target, Typeflag: kind, Mode: int64(st.Mode & 0o7777),
		Uid: int(st.Uid), Gid: int(st.Gid), ModTime: time.Unix(sec, nsec),
	}
	if kind == tar.TypeReg {
		h.Size = st.Size
	}
	if capability != nil {
		h.PAXRecords = map[string]string{capabilityKey: string(capability)}
	}
	for _, v := range []any{string(kind), p, target, h.Mode, h.Uid, h.Gid, h.Size, string(capability)} {
		text := fmt.Sprint(v)
		fmt.Fprintf(s.sum, "%d:%s,", len(text), text)
	}
	return h
}

// Read reads the content of the entry that Next returned.
func (s *scan) Read(p []byte) (int, error) {
	if s.file == nil || s.left == 0 {
		return 0, io.EOF
	}
	n, err := s.file.Read(p[:min(int64(len(p)), s.left)])
	s.sum.Write(p[:n])
	s.left -= int64(n)
	s.bytes += int64(n)
	if s.tick != nil {
		s.tick(s.bytes)
	}
	if err == io.EOF {
		return n, changed(s.file.Name(), errors.New("it became shorter"))
	}
	return n, err
}

// changed is the error for a tree that somebody works on.
func changed(p string, err error) error {
	return fault.New(fault.Aborted, "read %q: it changed while it was read: %w", p, err)
}
