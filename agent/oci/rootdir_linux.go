package oci

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"strings"

	"golang.org/x/sys/unix"
)

// maxGuestFile bounds every file of a server that we read.
const maxGuestFile = 1 << 20

// rootDir is a server's root directory, opened: everything in it is what the server's
// users made of it. Paths are resolved by the kernel as the server itself would (links
// stay inside, however they are written) and no device, pipe or socket is ever opened.
type rootDir struct{ fd int }

func openRoot(dir string) (*rootDir, error) {
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: dir, Err: err}
	}
	return &rootDir{fd: fd}, nil
}

func (r *rootDir) Close() error { return unix.Close(r.fd) }

// resolve opens p (all links followed, inside) as a place, not as a file.
func (r *rootDir) resolve(p string, flags uint64) (int, error) {
	fd, err := retry(func() (int, error) {
		return unix.Openat2(r.fd, p, &unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC | flags, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS})
	})
	if err != nil {
		return -1, &os.PathError{Op: "open", Path: p, Err: err}
	}
	return fd, nil
}

// retry repeats what was interrupted, or raced with a rename (openat2 answers EAGAIN).
func retry(f func() (int, error)) (int, error) {
	for tries := 0; ; tries++ {
		fd, err := f()
		if (err != unix.EINTR && err != unix.EAGAIN) || tries == 100 {
			return fd, err
		}
	}
}

// target says which regular, executable file p leads to (its full path as the kernel
// writes it); "" if p leads to none.
func (r *rootDir) target(p string) string {
	fd, err := r.resolve(p, 0)
	if err != nil {
		return ""
	}
	defer closeFD(fd)
	var st unix.Stat_t
	if unix.Fstat(fd, &st) != nil || st.Mode&unix.S_IFMT != unix.S_IFREG || st.Mode&0o111 == 0 {
		return ""
	}
	name, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd))
	if err != nil {
		return ""
	}
	return name
}

// exists reports whether p leads to something.
func (r *rootDir) exists(p string) bool {
	fd, err := r.resolve(p, 0)
	closeFD(fd)
	return err == nil
}

// isDir reports whether p leads to a directory.
func (r *rootDir) isDir(p string) bool {
	fd, err := r.resolve(p, unix.O_DIRECTORY)
	closeFD(fd)
	return err == nil
}

// readFile reads a regular file of at most maxGuestFile bytes.
func (r *rootDir) readFile(p string) ([]byte, error) {
	fd, err := r.resolve(p, 0)
	if err != nil {
		return nil, err
	}
	defer closeFD(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, &os.PathError{Op: "stat", Path: p, Err: err}
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return nil, &os.PathError{Op: "read", Path: p, Err: errors.New("not a regular file")}
	}
	f, err := os.Open(fmt.Sprintf("/proc/self/fd/%d", fd)) // the very file that was looked at
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	b, err := io.ReadAll(io.LimitReader(f, maxGuestFile+1))
	if err == nil && len(b) > maxGuestFile {
		err = &os.PathError{Op: "read", Path: p, Err: fmt.Errorf("larger than %d bytes", maxGuestFile)}
	}
	return b, err
}

// dir opens the directory at p, and makes it and its parents where they are missing.
func (r *rootDir) dir(p string) (int, error) {
	fd, err := r.resolve(p, unix.O_DIRECTORY)
	if err == nil || !errors.Is(err, unix.ENOENT) || p == "/" || p == "." {
		return fd, err
	}
	parent, err := r.dir(path.Dir(p))
	if err != nil {
		return -1, err
	}
	defer closeFD(parent)
	if err := unix.Mkdirat(parent, path.Base(p), 0o755); err != nil && err != unix.EEXIST {
		return -1, &os.PathError{Op: "mkdir", Path: p, Err: err}
	}
	return r.resolve(p, unix.O_DIRECTORY) // a dangling link in the way stays an error
}

// inDir calls f with the opened parent of p and p's last name.
func (r *rootDir) inDir(p string, f func(dir int, name string) error) error {
	dir, err := r.dir(path.Dir(p))
	if err != nil {
		return err
	}
	defer closeFD(dir)
	return f(dir, path.Base(p))
}

// place puts what make makes under a new name in p's directory and then renames it to p.
// Whatever is at p (a file, a link anywhere, a pipe, a device) is replaced, never opened;
// a directory there is an error.
func (r *rootDir) place(p string, make func(dir int, name string) error) error {
	return r.inDir(p, func(dir int, name string) error {
		temporary := ".reflejo-" + strings.ToLower(rand.Text())
		if err := make(dir, temporary); err != nil {
			return &os.PathError{Op: "write", Path: p, Err: err}
		}
		if err := unix.Renameat(dir, temporary, dir, name); err != nil {
			_ = unix.Unlinkat(dir, temporary, 0)
			return &os.PathError{Op: "replace", Path: p, Err: err}
		}
		return nil
	})
}

// writeFile makes p a regular file with this content, owned by the server's root. What
// has that content already is left alone.
func (r *rootDir) writeFile(p string, content []byte, mode uint32) error {
	if have, err := r.plainFile(p, mode); err == nil && string(have) == string(content) {
		return nil
	}
	return r.place(p, func(dir int, name string) error {
		fd, err := unix.Openat(dir, name, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
		if err != nil {
			return err
		}
		f := os.NewFile(uintptr(fd), p)
		_, err = f.Write(content)
		if err == nil {
			err = unix.Fchmod(fd, mode)
		}
		if cerr := f.Close(); err == nil {
			err = cerr
		}
		if err != nil {
			_ = unix.Unlinkat(dir, name, 0)
		}
		return err
	})
}

// plainFile reads p if it is itself a regular file with this mode, not a link to one.
func (r *rootDir) plainFile(p string, mode uint32) ([]byte, error) {
	dir, err := r.resolve(path.Dir(p), unix.O_DIRECTORY)
	if err != nil {
		return nil, err
	}
	defer closeFD(dir)
	var st unix.Stat_t
	if err := unix.Fstatat(dir, path.Base(p), &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return nil, err
	}
	if st.Mode != unix.S_IFREG|mode {
		return nil, unix.EINVAL
	}
	return r.readFile(p)
}

// symlink makes p a symbolic link to target.
func (r *rootDir) symlink(target, p string) error {
	return r.place(p, func(dir int, name string) error { return unix.Symlinkat(target, dir, name) })
}

// remove removes a file, link or the like; what is not there is removed already.
func (r *rootDir) remove(p string) error {
	dir, err := r.resolve(path.Dir(p), unix.O_DIRECTORY)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
		return nil
	}
	if err != nil {
		return err
	}
	defer closeFD(dir)
	if err := unix.Unlinkat(dir, path.Base(p), 0); err != nil && err != unix.ENOENT {
		return &os.PathError{Op: "remove", Path: p, Err: err}
	}
	return nil
}

// names lists the directory at p, at most limit of them; a directory that is not there is empty.
func (r *rootDir) names(p string, limit int) ([]string, error) {
	fd, err := r.resolve(p, unix.O_DIRECTORY)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer closeFD(fd)
	d, err := os.Open(fmt.Sprintf("/proc/self/fd/%d", fd))
	if err != nil {
		return nil, err
	}
	defer func() { _ = d.Close() }()
	names, err := d.Readdirnames(limit)
	if err == io.EOF {
		err = nil
	}
	return names, err
}

func closeFD(fd int) {
	if fd >= 0 {
		_ = unix.Close(fd)
	}
}
