//go:build linux

package main

import (
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// attempt is one thing to try. Its arguments are such that it changes nothing where it is
// allowed, but then fails in another way (or succeeds).
type attempt struct {
	name string
	do   func() error
}

func raw(number uintptr, args ...uintptr) func() error {
	return func() error {
		a := [6]uintptr{}
		copy(a[:], args)
		_, _, errno := syscall.Syscall6(number, a[0], a[1], a[2], a[3], a[4], a[5])
		if errno != 0 {
			return unix.Errno(errno)
		}
		return nil
	}
}

const nowhere = ^uintptr(0) // an address that is nobody's, or a descriptor that is not open

// calls are those that reach the whole machine or have been ways out of a server.
func calls() []attempt {
	zeros := make([]byte, 4096)
	zero := uintptr(unsafe.Pointer(&zeros[0]))
	attempts := []attempt{
		{"bpf", raw(unix.SYS_BPF, 0, zero, 48)},
		{"perf_event_open", raw(unix.SYS_PERF_EVENT_OPEN, nowhere, 0, nowhere, nowhere, 0)},
		{"userfaultfd", raw(unix.SYS_USERFAULTFD, nowhere)},
		{"io_uring_setup", raw(unix.SYS_IO_URING_SETUP, 1, nowhere)},
		{"io_uring_enter", raw(unix.SYS_IO_URING_ENTER, nowhere)},
		{"io_uring_register", raw(unix.SYS_IO_URING_REGISTER, nowhere)},
		{"init_module", raw(unix.SYS_INIT_MODULE, nowhere, 1, nowhere)},
		{"finit_module", raw(unix.SYS_FINIT_MODULE, nowhere, zero, 0)},
		{"delete_module", raw(unix.SYS_DELETE_MODULE, nowhere, 0)},
		{"kexec_load", raw(unix.SYS_KEXEC_LOAD, 0, 0, 0, 0xffff)},
		{"open_by_handle_at", raw(unix.SYS_OPEN_BY_HANDLE_AT, nowhere, nowhere, 0)},
		{"swapon", raw(unix.SYS_SWAPON, nowhere, 0)},
		{"swapoff", raw(unix.SYS_SWAPOFF, nowhere)},
		{"acct", raw(unix.SYS_ACCT, nowhere)},
		{"quotactl", raw(unix.SYS_QUOTACTL, nowhere, nowhere, 0, 0)},
		{"settimeofday", raw(unix.SYS_SETTIMEOFDAY, nowhere, 0)},
		{"clock_settime", raw(unix.SYS_CLOCK_SETTIME, unix.CLOCK_REALTIME, nowhere)},
		{"request_key", raw(unix.SYS_REQUEST_KEY, nowhere, nowhere, nowhere, 0)},
		{"move_pages", raw(unix.SYS_MOVE_PAGES, 0, 1, nowhere, 0, nowhere, 0)},
		{"migrate_pages", raw(unix.SYS_MIGRATE_PAGES, 0, 64, nowhere, nowhere)},
		{"fanotify of content", raw(unix.SYS_FANOTIFY_INIT, unix.FAN_CLASS_PRE_CONTENT|unix.FAN_CLOEXEC, unix.O_RDONLY)},
		{"socket AF_ALG", raw(unix.SYS_SOCKET, unix.AF_ALG, unix.SOCK_SEQPACKET, 0)},
		{"socket AF_VSOCK", raw(unix.SYS_SOCKET, unix.AF_VSOCK, unix.SOCK_STREAM, 0)},
	}
	return append(attempts, archCalls()...)
}

// call tries one thing that changes something where it succeeds.
func call(name string) error {
	runtime.LockOSThread()
	switch name {
	case "x32":
		return x32()
	case "set the clock":
		var now unix.Timespec
		if err := unix.ClockGettime(unix.CLOCK_REALTIME, &now); err != nil {
			return err
		}
		now.Sec -= 86400
		return unix.ClockSettime(unix.CLOCK_REALTIME, &now)
	case "adjust the clock":
		_, err := unix.Adjtimex(&unix.Timex{Modes: 0x4000 /* ADJ_TICK */, Tick: 10001})
		return err
	case "read the kernel log":
		_, err := unix.Klogctl(unix.SYSLOG_ACTION_READ_ALL, make([]byte, 4096))
		return err
	case "reboot":
		return unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART)
	case "gain capabilities":
		return gainCapabilities()
	case "raise the file limit":
		return unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 1 << 29, Max: 1 << 29})
	case "raise the priority":
		return unix.Setpriority(unix.PRIO_PROCESS, 0, -20)
	case "real-time scheduling":
		param := struct{ priority int32 }{50}
		return raw(unix.SYS_SCHED_SETSCHEDULER, 0, 1 /* SCHED_FIFO */, uintptr(unsafe.Pointer(&param)))()
	}
	broken(unix.EINVAL)
	return nil
}

// nested runs a command as root of namespaces of its own and returns its exit code.
func nested(argv []string) int {
	c := exec.Command(argv[0], argv[1:]...)
	c.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  unix.CLONE_NEWUSER | unix.CLONE_NEWNS | unix.CLONE_NEWCGROUP,
		UidMappings: []syscall.SysProcIDMap{{Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{Size: 1}},
	}
	c.Stdin, c.Stdout, c.Stderr = os.Stdin, os.Stdout, os.Stderr
	if err := c.Run(); c.ProcessState == nil {
		broken(err)
	}
	return c.ProcessState.ExitCode()
}

// escape is the classic: keep a directory outside of a new root and go up from there.
func escape(path string) error {
	for _, err := range []error{os.MkdirAll("/below", 0o755), unix.Chroot("/below")} {
		if err != nil {
			broken(err)
		}
	}
	for range 64 {
		if err := unix.Chdir(".."); err != nil {
			return err
		}
	}
	if err := unix.Chroot("."); err != nil {
		return err
	}
	var st unix.Stat_t
	return unix.Stat(path, &st)
}

// gainCapabilities does it for real with what a nested user namespace gives: everything
// there, and nothing outside. It succeeds if that is enough to set the clock.
func gainCapabilities() error {
	c := exec.Command("/proc/self/exe", "call", "set the clock")
	c.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  unix.CLONE_NEWUSER,
		UidMappings: []syscall.SysProcIDMap{{Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{Size: 1}},
	}
	c.Stderr = os.Stderr
	if err := c.Run(); err != nil {
		return unix.EPERM
	}
	return nil
}
