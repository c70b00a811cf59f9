package image

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
)

// inRoot is how every path below a root directory is resolved: links lead back into it, ".." stops
// at it, /proc's links are not followed and other file systems not entered.
const inRoot = unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS | unix.RESOLVE_NO_XDEV

// diskTree is a tree on a mounted file system.
type diskTree struct {
	root   int
	owners bool // may give files to others and set capabilities: always, but in tests without root

	parent     int // the directory of the last entry: archives are sorted by directory
	parentPath string
	buffer     []byte
}

func openTree(root string) (tree, error) {
	fd, err := unix.Open(root, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open root directory %s: %w", root, err)
	}
	return &diskTree{root: fd, owners: os.Geteuid() == 0, parent: -1, buffer: make([]byte, 128<<10)}, nil
}

func (t *diskTree) Close() error {
	t.forget()
	return unix.Close(t.root)
}

// forget closes the remembered directory; called when something was removed, which may be it.
func (t *diskTree) forget() {
	if t.parent >= 0 {
		unix.Close(t.parent)
		t.parent = -1
	}
}

// openIn opens p as a process would whose root directory is root.
func openIn(root int, p string, flags int, resolve uint64) (int, error) {
	for {
		fd, err := unix.Openat2(root, p, &unix.OpenHow{Flags: uint64(flags | unix.O_CLOEXEC), Resolve: resolve})
		// EAGAIN: a rename somewhere on the host made the kernel unsure about a "..".
		if err != unix.EINTR && err != unix.EAGAIN {
			return fd, err
		}
	}
}

// directory is the descriptor of directory p, made with all above it where missing. It belongs to t.
func (t *diskTree) directory(p string) (int, error) {
	if t.parent >= 0 && t.parentPath == p {
		return t.parent, nil
	}
	fd, err := t.makeAll(p, 0)
	if err != nil {
		return -1, err
	}
	t.forget()
	t.parent, t.parentPath = fd, p
	return fd, nil
}

func (t *diskTree) makeAll(p string, links int) (int, error) {
	fd, err := openIn(t.root, p, unix.O_PATH|unix.O_DIRECTORY, inRoot)
	if err != unix.ENOENT || p == "." {
		return fd, pathError("open directory", p, err)
	}
	up, err := t.makeAll(path.Dir(p), links)
	if err != nil {
		return -1, err
	}
	defer unix.Close(up)
	err = unix.Mkdirat(up, path.Base(p), 0o755)
	if err == unix.EEXIST { // a link that points to nothing: make what it points to
		target, lerr := readlinkat(up, path.Base(p))
		if lerr != nil || links >= 16 {
			return -1, fault.New(fault.Invalid, "directory %q: there is a link that leads nowhere", p)
		}
		if !path.IsAbs(target) {
			target = path.Join("/", path.Dir(p), target)
		}
		clean := strings.TrimLeft(path.Clean(target), "/")
		return t.makeAll(path.Clean(clean), links+1)
	}
	if err != nil {
		return -1, pathError("make directory", p, err)
	}
	fd, err = openIn(t.root, p, unix.O_PATH|unix.O_DIRECTORY, inRoot)
	return fd, pathError("open directory", p, err)
}

// pathError blames the archive for what only its paths can cause.
func pathError(verb, p string, err error) error {
	switch err {
	case nil:
		return nil
	case unix.ENOTDIR, unix.ELOOP, unix.ENAMETOOLONG, unix.EXDEV, unix.ENOENT, unix.EISDIR, unix.EPERM, unix.EMLINK, unix.EINVAL:
		return fault.New(fault.Invalid, "%s %q: %w", verb, p, err)
	}
	return fmt.Errorf("%s %q: %w", verb, p, err)
}

func readlinkat(dir int, name string) (string, error) {
	b := make([]byte, 4096)
	n, err := unix.Readlinkat(dir, name, b)
	if err != nil {
		return "", err
	}
	return string(b[:n]), nil
}

func (t *diskTree) Put(e entry, content io.Reader) error {
	if e.path == "." {
		fd, err := openIn(t.root, ".", unix.O_RDONLY|unix.O_DIRECTORY, inRoot)
		if err != nil {
			return pathError("open", e.path, err)
		}
		defer unix.Close(fd)
		return t.attributes(fd, e)
	}
	dir, err := t.directory(path.Dir(e.path))
	if err != nil {
		return err
	}
	name := path.Base(e.path)
	err = t.putAt(dir, name, e, content)
	if errors.Is(err, unix.EEXIST) {
		if err := t.removeAt(dir, name, e.path, nil); err != nil {
			return err
		}
		err = t.putAt(dir, name, e, content)
	}
	return err
}

// putAt makes the entry; where something else is, it reads nothing of content and fails with EEXIST.
func (t *diskTree) putAt(dir int, name string, e entry, content io.Reader) error {
	switch e.kind {
	case kindFile:
		return t.putFile(dir, name, e, content)
	case kindDir:
		return t.putDir(dir, name, e)
	case kindSymlink:
		return t.putSymlink(dir, name, e)
	case kindHardLink:
		return t.putHardLink(dir, name, e)
	case kindFIFO:
		return t.putFIFO(dir, name, e)
	}
	return fmt.Errorf("make %q: kind %d cannot be made", e.path, e.kind)
}

func (t *diskTree) putFile(dir int, name string, e entry, content io.Reader) error {
	fd, err := unix.Openat(dir, name, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return pathError("make file", e.path, err)
	}
	err = t.copy(fd, content, e.size)
	if err == nil {
		err = t.attributes(fd, e)
	}
	if cerr := unix.Close(fd); err == nil && cerr != nil {
		err = fmt.Errorf("close: %w", cerr)
	}
	return err
}

// copy writes size bytes and leaves blocks of zeros unwritten.
func (t *diskTree) copy(fd int, content io.Reader, size int64) error {
	var at int64
	for at < size {
		n, err := io.ReadFull(content, t.buffer[:min(int64(len(t.buffer)), size-at)])
		if err == io.EOF || err == io.ErrUnexpectedEOF {
			return readError{io.ErrUnexpectedEOF}
		}
		if err != nil {
			return err
		}
		if !zero(t.buffer[:n]) {
			if err := writeAt(fd, t.buffer[:n], at); err != nil {
				return fmt.Errorf("write: %w", err)
			}
		}
		at += int64(n)
	}
	if size == 0 {
		return nil
	}
	if err := unix.Ftruncate(fd, size); err != nil {
		return fmt.Errorf("set size: %w", err)
	}
	return nil
}

func writeAt(fd int, b []byte, at int64) error {
	for len(b) > 0 {
		n, err := unix.Pwrite(fd, b, at)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return err
		}
		b, at = b[n:], at+int64(n)
	}
	return nil
}

var zeros [4096]byte

func zero(b []byte) bool {
	for len(b) > 0 {
		n := min(len(b), len(zeros))
		if !bytes.Equal(b[:n], zeros[:n]) {
			return false
		}
		b = b[n:]
	}
	return true
}

func (t *diskTree) putDir(dir int, name string, e entry) error {
	if err := unix.Mkdirat(dir, name, 0o700); err != nil && err != unix.EEXIST {
		return pathError("make directory", e.path, err)
	}
	fd, err := unix.Openat(dir, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err == unix.ENOTDIR || err == unix.ELOOP {
		return unix.EEXIST // something else is there: it gives way
	}
	if err != nil {
		return pathError("open directory", e.path, err)
	}
	defer unix.Close(fd)
	return t.attributes(fd, e)
}

func (t *diskTree) putSymlink(dir int, name string, e entry) error {
	if err := unix.Symlinkat(e.target, dir, name); err != nil {
		return pathError("make link", e.path, err)
	}
	return t.attributesAt(dir, name, e)
}

func (t *diskTree) putFIFO(dir int, name string, e entry) error {
	if err := unix.Mknodat(dir, name, unix.S_IFIFO|0o600, 0); err != nil {
		return pathError("make FIFO", e.path, err)
	}
	if err := t.attributesAt(dir, name, e); err != nil {
		return err
	}
	return pathError("set mode of", e.path, unix.Fchmodat(dir, name, e.mode, 0)) // it is no link: it was made here
}

func (t *diskTree) putHardLink(dir int, name string, e entry) error {
	from, err := openIn(t.root, path.Dir(e.target), unix.O_PATH|unix.O_DIRECTORY, inRoot)
	if err != nil {
		return pathError("find hard link's target", e.target, err)
	}
	defer unix.Close(from)
	var there, target unix.Stat_t
	if err := unix.Fstatat(from, path.Base(e.target), &target, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return pathError("find hard link's target", e.target, err)
	}
	if unix.Fstatat(dir, name, &there, unix.AT_SYMLINK_NOFOLLOW) == nil && there.Ino == target.Ino && there.Dev == target.Dev {
		return nil // it is the same file; replacing it might delete the only name it has
	}
	return pathError("make hard link", e.path, unix.Linkat(from, path.Base(e.target), dir, name, 0))
}

// attributes sets owner, mode, capability and time, in the order in which none undoes another.
func (t *diskTree) attributes(fd int, e entry) error {
	if t.owners {
		if err := unix.Fchown(fd, e.uid, e.gid); err != nil {
			return fmt.Errorf("set owner: %w", err)
		}
	}
	if err := unix.Fchmod(fd, e.mode); err != nil {
		return fmt.Errorf("set mode: %w", err)
	}
	if t.owners && e.capability != nil {
		if err := unix.Fsetxattr(fd, "security.capability", e.capability, 0); err != nil {
			return fmt.Errorf("set capability: %w", err)
		}
	}
	if e.kind == kindDir {
		return nil // at the end
	}
	if err := unix.UtimesNanoAt(fd, "", times(e.time), unix.AT_EMPTY_PATH); err != nil {
		return fmt.Errorf("set time: %w", err)
	}
	return nil
}

// attributesAt sets owner and time of what cannot be opened.
func (t *diskTree) attributesAt(dir int, name string, e entry) error {
	if t.owners {
		if err := unix.Fchownat(dir, name, e.uid, e.gid, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return fmt.Errorf("set owner: %w", err)
		}
	}
	if err := unix.UtimesNanoAt(dir, name, times(e.time), unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return fmt.Errorf("set time: %w", err)
	}
	return nil
}

// times are access and modification time for utimensat.
func times(m time.Time) []unix.Timespec {
	ts := unix.NsecToTimespec(m.UnixNano())
	return []unix.Timespec{ts, ts}
}

func (t *diskTree) SetTime(p string, m time.Time) error {
	fd, err := openIn(t.root, p, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW, inRoot)
	if err == unix.ENOENT || err == unix.ENOTDIR || err == unix.ELOOP {
		return nil
	}
	if err != nil {
		return pathError("open directory", p, err)
	}
	defer unix.Close(fd)
	if err := unix.UtimesNanoAt(fd, "", times(m), unix.AT_EMPTY_PATH); err != nil {
		return fmt.Errorf("set time: %w", err)
	}
	return nil
}

func (t *diskTree) Remove(p string, self bool, keep func(string) bool) error {
	t.forget()
	up, err := openIn(t.root, path.Dir(p), unix.O_PATH|unix.O_DIRECTORY, inRoot)
	if err == unix.ENOENT || err == unix.ENOTDIR {
		return nil
	}
	if err != nil {
		return pathError("open directory", path.Dir(p), err)
	}
	defer unix.Close(up)
	if self && p != "." {
		return t.removeAt(up, path.Base(p), p, keep)
	}
	return t.clear(up, path.Base(p), p, keep)
}

// removeAt deletes name in directory dir with all below, except paths that keep wants (nil: none).
// A directory in which something is kept stays.
func (t *diskTree) removeAt(dir int, name, p string, keep func(string) bool) error {
	if keep != nil && keep(p) {
		return t.clear(dir, name, p, keep)
	}
	err := unix.Unlinkat(dir, name, 0)
	if err == unix.EISDIR {
		if err := t.clear(dir, name, p, nil); err != nil {
			return err
		}
		err = unix.Unlinkat(dir, name, unix.AT_REMOVEDIR)
	}
	if err != nil && err != unix.ENOENT {
		return fmt.Errorf("remove %q: %w", p, err)
	}
	return nil
}

// clear deletes what is in directory name of dir; what is no directory stays.
func (t *diskTree) clear(dir int, name, p string, keep func(string) bool) error {
	fd, err := unix.Openat(dir, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err == unix.ENOENT || err == unix.ENOTDIR || err == unix.ELOOP {
		return nil
	}
	if err != nil {
		return fmt.Errorf("open directory %q: %w", p, err)
	}
	f := os.NewFile(uintptr(fd), p)
	defer f.Close()
	for {
		names, err := f.Readdirnames(1024)
		for _, n := range names {
			if err := t.removeAt(fd, n, path.Join(p, n), keep); err != nil {
				return err
			}
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read directory %q: %w", p, err)
		}
	}
}

func (t *diskTree) Open(p string) (io.ReadCloser, bool, error) {
	// O_NONBLOCK: a FIFO of that name must not hold us up.
	fd, err := openIn(t.root, p, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY, inRoot)
	if err != nil {
		return nil, false, fmt.Errorf("open %q: %w", p, err)
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFREG {
		unix.Close(fd)
		return nil, false, fmt.Errorf("open %q: it is no regular file", p)
	}
	return os.NewFile(uintptr(fd), p), st.Mode&0o111 != 0, nil
}

func (t *diskTree) Space() (total, free int64, err error) {
	var st unix.Statfs_t
	if err := unix.Fstatfs(t.root, &st); err != nil {
		return 0, 0, fmt.Errorf("read size of the file system: %w", err)
	}
	total, free = int64(st.Blocks)*int64(st.Bsize), int64(st.Bavail)*int64(st.Bsize)
	if st.Files > 0 && st.Ffree == 0 {
		free = 0
	}
	return total, free, nil
}
