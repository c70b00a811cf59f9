package cgroup

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
	"github.com/reflejo/terraform-provider-reflejo/agent/undo"
	"golang.org/x/sys/unix"
)

// maxFile bounds what is read of a control file: memory.stat and io.stat of a busy host
// have some kilobytes.
const maxFile = 1 << 20

// errMemoryBusy: the kernel could not bring a group's use below the limit.
var errMemoryBusy = errors.New("memory is in use")

// tree is a cgroup mount. All names are relative to it.
type tree string

func (t tree) path(name string) string { return filepath.Join(string(t), name) }

func (t tree) read(file string) (string, error) {
	f, err := os.Open(t.path(file))
	if err != nil {
		return "", err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxFile))
	return string(b), err
}

// readOr is a file's content or "" where the kernel does not have it.
func (t tree) readOr(file string) string {
	s, _ := t.read(file)
	return s
}

// write bypasses os.File: control files can be polled, so the runtime would take an
// EAGAIN of the kernel's for "wait until writable" and never come back.
func (t tree) write(file, value string) error {
	fd, err := unix.Open(t.path(file), unix.O_WRONLY|unix.O_TRUNC|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return &fs.PathError{Op: "open", Path: t.path(file), Err: err}
	}
	defer unix.Close(fd)
	if value == "" {
		value = "\n" // the kernel is not called for an empty write
	}
	for {
		_, err := unix.Write(fd, []byte(value))
		if errors.Is(err, unix.EINTR) {
			continue // a lower memory limit waits for reclaim, which signals interrupt
		}
		if err != nil {
			return fmt.Errorf("write %q to %s: %w", value, file, err)
		}
		return nil
	}
}

// apply makes the settings so, in order. What is so already is left alone; the way back
// of each write goes on u. A refused memory limit is errMemoryBusy.
func (t tree) apply(u *undo.Stack, settings []setting) error {
	for _, s := range settings {
		old := s.old
		if !s.keyed {
			now, err := t.read(s.file)
			if s.optional && absent(err) {
				continue
			}
			if err != nil {
				return err
			}
			if old = strings.TrimSpace(now); old == s.value {
				continue
			}
		}
		err := t.write(s.file, s.value)
		switch {
		case err == nil:
			u.Add(func() { _ = t.write(s.file, old) })
		case s.optional && absent(err):
		case s.memory && errors.Is(err, unix.EBUSY):
			return errMemoryBusy
		default:
			return err
		}
	}
	return nil
}

// absent: the kernel has no such file, or the device is gone.
func absent(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV) || errors.Is(err, unix.ENXIO) || errors.Is(err, unix.EOPNOTSUPP)
}

// mkdir makes a group and reports whether it is new.
func (t tree) mkdir(name string) (bool, error) {
	err := os.Mkdir(t.path(name), 0o755)
	if errors.Is(err, fs.ErrExist) {
		return false, nil
	}
	return err == nil, err
}

// own hands a file or directory of a group to a user, if it is not theirs already. What
// the kernel does not have is left out.
func (t tree) own(name string, id uint32) error {
	var st unix.Stat_t
	if err := unix.Lstat(t.path(name), &st); err != nil {
		if errors.Is(err, unix.ENOENT) {
			return nil
		}
		return fmt.Errorf("stat %s: %w", name, err)
	}
	if st.Uid == id && st.Gid == id {
		return nil
	}
	if err := os.Lchown(t.path(name), int(id), int(id)); err != nil {
		return fmt.Errorf("delegate %s to %d: %w", name, id, err)
	}
	return nil
}

// subgroups names the groups directly below a directory; none where it does not exist.
func (t tree) subgroups(dir string) ([]string, error) {
	entries, err := os.ReadDir(t.path(dir))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var out []string
	for _, e := range entries {
		if e.IsDir() {
			out = append(out, e.Name())
		}
	}
	return out, nil
}

// descend calls visit for a group and every group below it, a group after those below.
// It holds one descriptor and a list of names: a server may nest its own groups deeper
// than a path can be long. visit gets the parent's descriptor and the name in it.
// Groups that vanish on the way are skipped.
func (t tree) descend(ctx context.Context, dir string, visit func(parent int, name string) error) error {
	start, err := unix.Open(t.path(filepath.Dir(dir)), unix.O_DIRECTORY|unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("open %s: %w", filepath.Dir(dir), err)
	}
	w := walker{fd: start}
	defer func() { unix.Close(w.fd) }()
	if err := w.down(filepath.Base(dir)); err != nil {
		if errors.Is(err, unix.ENOENT) {
			return nil
		}
		return fmt.Errorf("open %s: %w", dir, err)
	}
	for len(w.stack) > 0 {
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("walk %s: %w", dir, err)
		}
		if err := w.step(visit); err != nil {
			return fmt.Errorf("walk %s: %w", dir, err)
		}
	}
	return nil
}

// walker is where descend is: fd is the directory at the end of stack.
type walker struct {
	fd    int
	stack []level
}

type level struct {
	name string
	todo []string // children not yet visited
}

func (w *walker) down(name string) error {
	fd, err := unix.Openat(w.fd, name, unix.O_DIRECTORY|unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	children, err := directories(fd)
	if err != nil {
		unix.Close(fd)
		return err
	}
	unix.Close(w.fd)
	w.fd = fd
	w.stack = append(w.stack, level{name, children})
	return nil
}

// step enters the next child, or visits the present group and goes back up.
func (w *walker) step(visit func(parent int, name string) error) error {
	top := &w.stack[len(w.stack)-1]
	if n := len(top.todo); n > 0 {
		child := top.todo[n-1]
		top.todo = top.todo[:n-1]
		if err := w.down(child); err != nil && !errors.Is(err, unix.ENOENT) {
			return err
		}
		return nil
	}
	up, err := unix.Openat(w.fd, "..", unix.O_DIRECTORY|unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	unix.Close(w.fd)
	w.fd = up
	name := top.name
	w.stack = w.stack[:len(w.stack)-1]
	return visit(up, name)
}

func directories(fd int) ([]string, error) {
	dup, err := unix.Openat(fd, ".", unix.O_DIRECTORY|unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(dup), "cgroup")
	defer f.Close()
	entries, err := f.ReadDir(-1)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	var out []string
	for _, e := range entries {
		if e.IsDir() {
			out = append(out, e.Name())
		}
	}
	return out, nil
}

// remove deletes a group and all below it. Groups whose last task is just being reaped
// are busy for a moment, so it tries for a while.
func (t tree) remove(ctx context.Context, dir string) error {
	rmdir := func(parent int, name string) error {
		err := unix.Unlinkat(parent, name, unix.AT_REMOVEDIR)
		if errors.Is(err, unix.ENOENT) {
			return nil
		}
		return err
	}
	err := poll(ctx, patience, func() (bool, error) {
		err := t.descend(ctx, dir, rmdir)
		if errors.Is(err, unix.EBUSY) || errors.Is(err, unix.ENOTEMPTY) {
			return false, nil
		}
		return err == nil, err
	})
	if err != nil {
		return fmt.Errorf("remove group %s: %w", dir, err)
	}
	return nil
}

// patience is how long the kernel is given to do what it was told, where the caller's
// context does not end sooner.
const patience = 20 * time.Second

// poll calls f until it is done or fails, with growing pauses. The end of ctx or of
// limit is fault.Unavailable.
func poll(ctx context.Context, limit time.Duration, f func() (bool, error)) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	pause := 200 * time.Microsecond
	for {
		done, err := f()
		if done || err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return fault.Wrap(fault.Unavailable, ctx.Err())
		case <-time.After(pause):
			pause = min(pause*3/2, 20*time.Millisecond)
		}
	}
}

// procs are the processes in a group and all below it.
func (t tree) procs(ctx context.Context, dir string) ([]int, error) {
	var out []int
	err := t.descend(ctx, dir, func(parent int, name string) error {
		fd, err := unix.Openat(parent, name+"/cgroup.procs", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			if errors.Is(err, unix.ENOENT) {
				return nil
			}
			return err
		}
		f := os.NewFile(uintptr(fd), "cgroup.procs")
		defer f.Close()
		b, err := io.ReadAll(f)
		if err != nil && !errors.Is(err, syscall.ENODEV) && !errors.Is(err, syscall.EOPNOTSUPP) {
			return err // EOPNOTSUPP: a threaded group; its processes are listed at its domain
		}
		for field := range strings.FieldsSeq(string(b)) {
			if pid := single(field); pid > 0 {
				out = append(out, int(pid))
			}
		}
		return nil
	})
	return out, err
}
