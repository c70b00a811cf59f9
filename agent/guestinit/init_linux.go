package guestinit

import (
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"runtime/debug"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// shutdownGrace is how long the processes of a server without an entry point have
// between SIGTERM and SIGKILL. The host's own timeout for a clean stop is what users set
// and usually ends first.
const shutdownGrace = 30 * time.Second

// Exit codes for what a shell would report too.
const (
	exitUsage    = 64
	exitNotFound = 127
	exitNotRun   = 126
)

// Run is the whole life of process 1; args are the arguments after "init". It returns
// the exit code: the entry point's, 128 + n where signal n ended it, 127 or 126 where
// it could not be run.
func Run(args []string) int {
	debug.SetGCPercent(20) // a few hundred kilobytes live: collect early rather than grow
	o, err := ParseArgs(args)
	if err != nil {
		fmt.Fprintln(os.Stderr, "reflejo init:", err)
		return exitUsage
	}
	k := newKeeper()
	if o.FirstBoot != "" {
		k.firstBoot(o.FirstBoot)
	}
	switch {
	case k.stopping:
		return 0
	case o.Exec:
		return become(o.Argv)
	case len(o.Argv) == 0:
		k.idle()
		return 0
	default:
		return k.supervise(o.Argv)
	}
}

// keeper is process 1: it sees every signal and every dead child.
type keeper struct {
	signals  chan os.Signal
	stopping bool // a signal asked for the end
}

func newKeeper() *keeper {
	k := &keeper{signals: make(chan os.Signal, 64)}
	// Process 1 leads the console's session. Let go of it, so that the child can lead a
	// session of its own there (Ctrl-C, job control) and a hang-up does not reach us. The
	// kernel announces that with a SIGHUP, which must not be passed on.
	signal.Ignore(unix.SIGHUP)
	_ = unix.IoctlSetInt(0, unix.TIOCNOTTY, 0)
	// What is not named here stays with Go's runtime (SIGURG) or means nothing to forward.
	signal.Notify(k.signals, unix.SIGCHLD, unix.SIGTERM, unix.SIGINT, unix.SIGHUP, unix.SIGQUIT,
		unix.SIGUSR1, unix.SIGUSR2, unix.SIGPWR, unix.SIGCONT, unix.SIGALRM)
	return k
}

// become replaces this process by argv.
func become(argv []string) int {
	path, err := exec.LookPath(argv[0])
	if err == nil {
		signal.Reset()
		err = unix.Exec(path, argv, os.Environ())
	}
	fmt.Fprintf(os.Stderr, "reflejo init: run %s: %v\n", argv[0], err)
	return exitNotRun
}

// firstBoot runs the script at path at most once: a script that was interrupted half-way
// is not run again, because only its author could know whether it may be.
func (k *keeper) firstBoot(path string) {
	running := path + ".running"
	if err := os.Rename(path, running); err != nil {
		if !os.IsNotExist(err) {
			fmt.Fprintln(os.Stderr, "reflejo init: first boot:", err)
		}
		return
	}
	defer func() { _ = os.Remove(running) }()
	if code := k.supervise([]string{running}); code != 0 {
		fmt.Fprintf(os.Stderr, "reflejo init: first-boot script ended with exit code %d\n", code)
	}
}

// supervise runs argv and returns its exit code; meanwhile it reaps and forwards.
func (k *keeper) supervise(argv []string) int {
	path, err := exec.LookPath(argv[0])
	if err != nil {
		fmt.Fprintf(os.Stderr, "reflejo init: run %s: %v\n", argv[0], err)
		return exitNotFound
	}
	attr := &syscall.ProcAttr{
		Env:   os.Environ(),
		Files: []uintptr{0, 1, 2},
		Sys:   &syscall.SysProcAttr{Setsid: true},
	}
	if _, err := unix.IoctlGetTermios(0, unix.TCGETS); err == nil {
		attr.Sys.Setctty = true
	}
	pid, err := syscall.ForkExec(path, argv, attr)
	if err != nil {
		fmt.Fprintf(os.Stderr, "reflejo init: run %s: %v\n", argv[0], err)
		return exitNotRun
	}
	for {
		if code, ended := reap(pid); ended {
			return code
		}
		if s := (<-k.signals).(syscall.Signal); s != unix.SIGCHLD {
			k.note(s)
			_ = unix.Kill(pid, s)
		}
	}
}

// idle stays until a signal asks for the end, then ends everything else in order.
func (k *keeper) idle() {
	for !k.stopping {
		reap(0)
		k.note((<-k.signals).(syscall.Signal))
	}
	_ = unix.Kill(-1, unix.SIGTERM)
	deadline := time.After(shutdownGrace)
	tick := time.NewTicker(50 * time.Millisecond) // commands run from outside are nobody's children here: look for them
	defer tick.Stop()
	for {
		reap(0)
		if alone() {
			return
		}
		select {
		case <-k.signals:
		case <-tick.C:
		case <-deadline:
			return // the kernel kills what is left together with us
		}
	}
}

// note remembers that a signal asked for the end.
func (k *keeper) note(s syscall.Signal) {
	switch s {
	case unix.SIGTERM, unix.SIGINT, unix.SIGPWR, unix.SIGQUIT:
		k.stopping = true
	}
}

// alone reports whether no other process is left in the server.
func alone() bool { return unix.Kill(-1, 0) == unix.ESRCH }

// reap collects every dead child; ended is true if pid was among them.
func reap(pid int) (code int, ended bool) {
	for {
		var ws unix.WaitStatus
		got, err := unix.Wait4(-1, &ws, unix.WNOHANG, nil)
		switch {
		case err == unix.EINTR:
			continue
		case err != nil || got <= 0:
			return code, ended
		case got == pid && ws.Exited():
			code, ended = ws.ExitStatus(), true
		case got == pid && ws.Signaled():
			code, ended = 128+int(ws.Signal()), true
		}
	}
}
