package oci

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// process is a descriptor of one process: unlike its number it is never reused.
type process struct{ file *os.File }

// errGone means that the process has ended.
var errGone = errors.New("process has ended")

// openProcess opens process pid that started at ticks; errGone if that one has ended.
func openProcess(pid int, ticks uint64) (*process, error) {
	if pid <= 0 {
		return nil, errGone
	}
	fd, err := unix.PidfdOpen(pid, unix.PIDFD_NONBLOCK)
	if err == unix.ESRCH {
		return nil, errGone
	}
	if err != nil {
		return nil, fmt.Errorf("open process %d: %w", pid, err)
	}
	p := &process{file: os.NewFile(uintptr(fd), "process")}
	if !alive(pid, ticks) { // after opening: now it cannot become another one
		p.Close()
		return nil, errGone
	}
	return p, nil
}

// alive reports whether process pid with this start is there and not a zombie.
func alive(pid int, ticks uint64) bool {
	if pid <= 0 {
		return false
	}
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return false
	}
	state, start, err := parseStat(b)
	return err == nil && start == ticks && state != 'Z' && state != 'X'
}

func (p *process) Close() { _ = p.file.Close() }

// signal sends s; errGone if the process has ended.
func (p *process) signal(s unix.Signal) error {
	err := control(p.file, func(fd int) error { return unix.PidfdSendSignal(fd, s, nil, 0) })
	if err == unix.ESRCH {
		return errGone
	}
	return err
}

// wait returns nil when the process has ended. It waits in the poller: a thousand of
// these cost no threads.
func (p *process) wait(ctx context.Context) error {
	_ = p.file.SetReadDeadline(time.Time{}) // an earlier wait's context may have ended
	stop := context.AfterFunc(ctx, func() { _ = p.file.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	raw, err := p.file.SyscallConn()
	if err != nil {
		return fmt.Errorf("wait for process: %w", err)
	}
	err = raw.Read(func(fd uintptr) bool {
		fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		n, err := unix.Poll(fds, 0)
		return err == nil && n > 0
	})
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return err
}

// rebooted reports, of a process that has ended, whether it was the init of a process
// namespace that was told to reboot: the kernel then lets it end as if by SIGHUP (by SIGINT
// if told to power off, reboot(2)). Only its parent is told, so the answer is no for a
// server that an earlier agent started.
func rebooted(pid int) bool {
	status, ok := reap(pid)
	return ok && status.Signaled() && status.Signal() == unix.SIGHUP
}

// reap takes notice of the end of a child of ours, which servers are while the agent that
// started them runs; ok is false for the child of another.
func reap(pid int) (status unix.WaitStatus, ok bool) {
	got, err := unix.Wait4(pid, &status, unix.WNOHANG, nil)
	return status, err == nil && got == pid
}

// control calls f with file's descriptor, without taking it out of the poller as Fd would.
func control(file *os.File, f func(fd int) error) error {
	raw, err := file.SyscallConn()
	if err != nil {
		return err
	}
	var ferr error
	if err := raw.Control(func(fd uintptr) { ferr = f(int(fd)) }); err != nil {
		return err
	}
	return ferr
}

// openFiles is this process's hard limit of open files.
func openFiles() uint64 {
	var l unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &l); err != nil {
		return openFilesSoft
	}
	return l.Max
}

// program says which file process pid runs.
func program(pid int) string {
	var st unix.Stat_t
	if err := unix.Stat(fmt.Sprintf("/proc/%d/exe", pid), &st); err != nil {
		return ""
	}
	return fmt.Sprintf("%d:%d", st.Dev, st.Ino)
}

// handles reports whether process pid catches signal s, or blocks it to read it elsewhere.
func handles(pid, s int) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	return err == nil && handlesSignal(string(b), s)
}
