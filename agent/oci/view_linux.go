package oci

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/hashicorp/go-hclog"
	"golang.org/x/sys/unix"
)

// view is lxcfs: one process per agent that answers /proc/meminfo and the like with the
// share of the server that asks. It outlives the agent and is found again through its pid
// file. When it dies, reads of its files fail in every server, so they are taken away at
// once (the plain files are beneath them), and put back when a new one runs.
//
// What it can show: free, uptime, top, /proc/cpuinfo and the CPUs of sysfs follow memory
// limit, start and quota (rounded up to whole cores). nproc asks the scheduler instead
// and follows exclusive cores (cpuset) only; no file can change that.
type view struct {
	lxcfs   string // program
	dir     string // mount point
	pidFile string // written by lxcfs before it mounts
	log     hclog.Logger
	running func(context.Context) ([]runState, error)

	mu      sync.Mutex // one repair at a time
	process *process   // of the lxcfs that serves dir; nil if none
}

const (
	viewStartLimit = 10 * time.Second
	viewAnswer     = 2 * time.Second // longest that a healthy lxcfs takes to answer
	viewRetry      = time.Second
	viewCheck      = 5 * time.Second // between looks whether it hangs, which hangs its readers too
)

// healthy reports whether lxcfs runs and answers.
func (v *view) healthy() bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.process != nil && answers(v.dir)
}

// answers reports whether dir is served. A hung lxcfs would hang a read: the reading
// goroutine is left behind then, and ends when lxcfs is killed.
func answers(dir string) bool {
	got := make(chan error, 1)
	go func() {
		var st unix.Statfs_t
		err := unix.Statfs(dir, &st)
		if err == nil && st.Type != unix.FUSE_SUPER_MAGIC {
			err = errors.New("not mounted")
		}
		if err == nil {
			_, err = os.ReadFile(filepath.Join(dir, "proc/uptime"))
		}
		got <- err
	}()
	select {
	case err := <-got:
		return err == nil
	case <-time.After(viewAnswer):
		return false
	}
}

// ensure makes lxcfs run and serve dir. A new one's files are put into running servers.
func (v *view) ensure(ctx context.Context) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.process == nil {
		v.process = v.find()
	}
	if v.process != nil && answers(v.dir) {
		return nil
	}
	if v.process != nil {
		v.log.Warn("lxcfs does not answer and is started again")
		_ = v.process.signal(unix.SIGKILL)
		_ = v.process.wait(ctx)
		v.process.Close()
		v.process = nil
	}
	v.release(ctx)
	if err := v.start(ctx); err != nil {
		return err
	}
	v.forServers(ctx, "put lxcfs into a server", v.bind)
	return nil
}

// find opens the lxcfs that an earlier agent started for dir, nil if there is none.
func (v *view) find() *process {
	b, err := os.ReadFile(v.pidFile)
	if err != nil {
		return nil
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil {
		return nil
	}
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return nil
	}
	_, ticks, err := parseStat(stat)
	if err != nil {
		return nil
	}
	args, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err != nil || !bytes.Contains(args, append([]byte(v.dir), 0)) { // a later process with the same number
		return nil
	}
	p, err := openProcess(pid, ticks)
	if err != nil {
		return nil
	}
	return p
}

// release takes a dead lxcfs's files out of the servers and its mount away.
func (v *view) release(ctx context.Context) {
	v.forServers(ctx, "take lxcfs out of a server", v.unbind)
	for unix.Unmount(v.dir, unix.MNT_DETACH) == nil {
	}
}

// start starts lxcfs in a session of its own and waits until it serves.
func (v *view) start(ctx context.Context) error {
	if err := os.MkdirAll(v.dir, 0o755); err != nil {
		return fmt.Errorf("make mount point of lxcfs: %w", err)
	}
	_ = os.Remove(v.pidFile)
	cmd := exec.Command(v.lxcfs, "--foreground", "--enable-cfs", "--enable-loadavg", "--pidfile", v.pidFile, v.dir)
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start lxcfs: %w", err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	ctx, cancel := context.WithTimeout(ctx, viewStartLimit)
	defer cancel()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		if p := v.find(); p != nil {
			if answers(v.dir) {
				v.process = p
				return nil
			}
			p.Close()
		}
		select {
		case err := <-ended:
			return fmt.Errorf("start lxcfs: it ended: %w", errors.Join(err, errGone))
		case <-ctx.Done():
			_ = cmd.Process.Kill()
			return fmt.Errorf("start lxcfs: %w", ctx.Err())
		case <-tick.C:
		}
	}
}

// watch restarts lxcfs when it ends, until ctx does.
func (v *view) watch(ctx context.Context) {
	for ctx.Err() == nil {
		if err := v.ensure(ctx); err != nil {
			if ctx.Err() == nil {
				v.log.Error("restart lxcfs", "error", err)
			}
			select {
			case <-ctx.Done():
			case <-time.After(viewRetry):
			}
			continue
		}
		v.mu.Lock()
		p := v.process
		v.mu.Unlock()
		pause, cancel := context.WithTimeout(ctx, viewCheck)
		err := p.wait(pause)
		cancel()
		if ctx.Err() != nil {
			return
		}
		if err != nil { // still there: ensure replaces it if it does not answer
			continue
		}
		v.log.Warn("lxcfs has ended and is started again")
		v.mu.Lock()
		p.Close()
		v.process = nil
		v.release(ctx)
		v.mu.Unlock()
	}
}

// forServers calls f on a thread that is inside each running server's mount namespace.
func (v *view) forServers(ctx context.Context, what string, f func(inside func(func() error) error) error) {
	servers, err := v.running(ctx)
	if err != nil {
		v.log.Error(what, "error", err)
		return
	}
	for _, s := range servers {
		if err := f(func(do func() error) error { return insideMounts(s, do) }); err != nil && !errors.Is(err, errGone) {
			v.log.Error(what, "pid", s.Pid, "error", err)
		}
	}
}

// insideMounts runs f on a thread of its own in the mount namespace of the server, which
// is thrown away afterwards. Paths that f names are the server's to decide.
func insideMounts(s runState, f func() error) error {
	p, err := openProcess(s.Pid, s.Ticks)
	if err != nil {
		return err
	}
	defer p.Close()
	return onThread(func() error {
		if err := unix.Unshare(unix.CLONE_FS); err != nil {
			return fmt.Errorf("unshare: %w", err)
		}
		if err := control(p.file, func(fd int) error { return unix.Setns(fd, unix.CLONE_NEWNS) }); err != nil {
			if err == unix.ESRCH {
				return errGone
			}
			return fmt.Errorf("enter mount namespace: %w", err)
		}
		return f()
	})
}

// unbind takes every FUSE file off the view's paths, so that the kernel's own show again.
func (v *view) unbind(inside func(func() error) error) error {
	return inside(func() error {
		for _, p := range viewPaths {
			for isFUSE(p) && unix.Unmount(p, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW) == nil {
			}
		}
		return nil
	})
}

// bind puts a clone of each of lxcfs's files over the kernel's.
func (v *view) bind(inside func(func() error) error) error {
	clones := map[string]int{}
	defer func() {
		for _, fd := range clones {
			closeFD(fd)
		}
	}()
	for _, p := range viewPaths {
		fd, err := unix.OpenTree(unix.AT_FDCWD, v.dir+p, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
		if err != nil {
			return fmt.Errorf("clone %s: %w", p, err)
		}
		clones[p] = fd
	}
	return inside(func() error {
		var failed error
		for _, p := range viewPaths {
			if isFUSE(p) {
				continue
			}
			at, err := openKernelFile(p)
			if err != nil {
				failed = errors.Join(failed, err)
				continue
			}
			if err := unix.MoveMount(clones[p], "", at, "", unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH); err != nil {
				failed = errors.Join(failed, fmt.Errorf("mount over %s: %w", p, err))
			}
			closeFD(at)
		}
		return failed
	})
}

// openKernelFile opens p as a place, with no link on the way, if it is proc's or sysfs's.
func openKernelFile(p string) (int, error) {
	fd, err := unix.Openat2(unix.AT_FDCWD, p, &unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_NO_SYMLINKS})
	if err != nil {
		return -1, &os.PathError{Op: "open", Path: p, Err: err}
	}
	var st unix.Statfs_t
	err = unix.Fstatfs(fd, &st)
	if err == nil && st.Type != unix.PROC_SUPER_MAGIC && st.Type != unix.SYSFS_MAGIC {
		err = fmt.Errorf("%s is not the kernel's file here", p)
	}
	if err != nil {
		closeFD(fd)
		return -1, err
	}
	return fd, nil
}

// isFUSE reports whether p is a file of a FUSE file system, also of a dead one (which
// answers ENOTCONN).
func isFUSE(p string) bool {
	fd, err := unix.Openat2(unix.AT_FDCWD, p, &unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_NO_SYMLINKS})
	if err != nil {
		return err == unix.ENOTCONN
	}
	defer closeFD(fd)
	var st unix.Statfs_t
	err = unix.Fstatfs(fd, &st)
	return err == unix.ENOTCONN || (err == nil && st.Type == unix.FUSE_SUPER_MAGIC)
}
