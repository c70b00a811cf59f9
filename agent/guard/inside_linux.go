package guard

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"runtime/debug"
	"syscall"

	"golang.org/x/sys/unix"
)

// RunInside is the body of the two programs in the server, by their first argument; done is
// false for any other.
func RunInside(args []string) (code int, done bool) {
	if len(args) < 2 {
		return 0, false
	}
	switch args[1] {
	case commandStub:
		return exitCode(stub()), true
	case commandInit:
		code, err := initProcess()
		if err != nil {
			return exitCode(err), true
		}
		return code, true
	}
	return 0, false
}

// hello is what both programs say first. The guard learns by it who they are, as the kernel
// adds that.
const hello = "{}\n"

func sayHello() error {
	if _, err := unix.Write(fileControl, []byte(hello)); err != nil {
		return fmt.Errorf("greet the guard: %w", err)
	}
	return nil
}

func exitCode(err error) int {
	if err != nil {
		fmt.Fprintln(os.Stderr, "reflejo guard:", err)
		return 1
	}
	return 0
}

// stub clones process 1 of a new pid namespace as its own sibling and leaves.
func stub() error {
	if err := sayHello(); err != nil {
		return err
	}
	_, err := syscall.ForkExec(fmt.Sprintf("/proc/self/fd/%d", fileBinary), []string{"reflejo", commandInit}, &syscall.ProcAttr{
		Dir: "/", Env: []string{"GOMAXPROCS=1"}, Files: []uintptr{0, 1, 2, fileBinary, fileControl},
		Sys: &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWPID | unix.CLONE_PARENT, Setsid: true},
	})
	if err != nil {
		return fmt.Errorf("begin a pid namespace: %w", err)
	}
	return nil
}

const insideMemory = 8 << 20 // for the collector: it counts as the server's

// initProcess is process 1 of the database's pid namespace: it starts postgres when the
// guard says so and passes signals on. Its end is the end of everything in the namespace;
// the code is postgres' own.
func initProcess() (int, error) {
	debug.SetGCPercent(20)
	debug.SetMemoryLimit(insideMemory)
	if err := unix.Close(fileBinary); err != nil {
		return 0, fmt.Errorf("close program: %w", err)
	}
	c, err := net.FileConn(os.NewFile(fileControl, "guard"))
	if err != nil {
		return 0, fmt.Errorf("open connection to the guard: %w", err)
	}
	unix.CloseOnExec(fileControl)
	if err := sayHello(); err != nil {
		return 0, err
	}
	in := lines(c)
	var first inside
	if err := readLine(in, &first); err != nil {
		return 0, err
	}
	if first.Program == nil {
		return 0, errors.New("the guard names no program")
	}
	// By now the guard is our parent. If it ended before this call nobody sends the signal,
	// but then the connection has ended too.
	if err := unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(unix.SIGKILL), 0, 0, 0); err != nil {
		return 0, fmt.Errorf("tie to the guard: %w", err)
	}
	if err := hungUp(fileControl); err != nil {
		return 0, err
	}
	// The guard may not be chosen when memory runs out; what is the server's may.
	_ = os.WriteFile("/proc/self/oom_score_adj", []byte("0"), 0)
	cmd := command(*first.Program)
	if err := cmd.Start(); err != nil {
		_ = writeLine(c, outside{Error: err.Error()})
		return 0, fmt.Errorf("start %s: %w", first.Program.Argv[0], err)
	}
	if err := writeLine(c, outside{Started: true}); err != nil {
		return 0, err
	}
	go func() {
		for {
			var m inside
			if readLine(in, &m) != nil {
				os.Exit(1) // no guard, no database
			}
			if m.Signal != 0 {
				_ = cmd.Process.Signal(syscall.Signal(m.Signal))
			}
		}
	}()
	return reap(cmd.Process.Pid), nil
}

// hungUp is an error when the other side of a connection is gone.
func hungUp(fd int) error {
	fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLRDHUP}}
	if _, err := unix.Poll(fds, 0); err != nil && err != unix.EINTR {
		return fmt.Errorf("look for the guard: %w", err)
	}
	if fds[0].Revents&(unix.POLLHUP|unix.POLLRDHUP|unix.POLLERR) != 0 {
		return errors.New("the guard has ended")
	}
	return nil
}

func command(p Program) *exec.Cmd {
	cmd := exec.Command(p.Argv[0], p.Argv[1:]...)
	cmd.Env, cmd.Dir = p.Env, p.Dir
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Credential: &syscall.Credential{Uid: p.UID, Gid: p.GID, Groups: p.Groups}}
	return cmd
}

// reap takes notice of every end in the namespace until process pid's, whose code it returns.
func reap(pid int) int {
	for {
		var status syscall.WaitStatus
		got, err := syscall.Wait4(-1, &status, 0, nil)
		switch {
		case err == syscall.EINTR:
		case err != nil:
			return 1
		case got == pid && status.Exited():
			return status.ExitStatus()
		case got == pid && status.Signaled():
			return 128 + int(status.Signal())
		}
	}
}
