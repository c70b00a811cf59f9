package guard

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/reflejo/terraform-provider-reflejo/agent/undo"
)

// enterLimit is how long the way into the server may take.
const enterLimit = 30 * time.Second

// run is one life of the database.
type run struct {
	process *os.Process // 1 of the database's pid namespace
	argv    []string
	started time.Time
	control *net.UnixConn
	done    chan struct{} // closed when everything of it is gone
	end     string        // valid after done
	write   sync.Mutex
}

// begin enters the server and starts the program there. When it returns an error nothing of it is left.
func begin(ctx context.Context, c Config, log *os.File) (_ *run, err error) {
	ctx, cancel := context.WithTimeout(ctx, enterLimit)
	defer cancel()
	var back undo.Stack
	defer back.Run()
	ours, theirs, err := pair()
	if err != nil {
		return nil, err
	}
	back.Add(func() { _ = ours.Close() }) // whoever holds the other end leaves then
	err = enter(ctx, c, theirs, log)
	_ = theirs.Close()
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { _ = ours.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	process, err := meet(ours)
	if err != nil {
		return nil, err
	}
	back.Add(func() { _, _ = process.Kill(), waitFor(process) })
	if err := writeLine(ours, inside{Program: &c.Program}); err != nil {
		return nil, err
	}
	in := lines(ours)
	var answer outside
	if err := readLine(in, &answer); err != nil {
		return nil, err
	}
	if !answer.Started {
		return nil, fmt.Errorf("start %s: %s", c.Program.Argv[0], answer.Error)
	}
	back.Keep()
	r := &run{process: process, argv: c.Program.Argv, started: time.Now(), control: ours, done: make(chan struct{})}
	go r.wait()
	return r, nil
}

// pair is a connection of two descriptors. What comes in at ours says who sent it.
func pair() (ours *net.UnixConn, theirs *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("make connection into the server: %w", err)
	}
	theirs = os.NewFile(uintptr(fds[1]), "control")
	mine := os.NewFile(uintptr(fds[0]), "control")
	defer func() { _ = mine.Close() }()
	err = unix.SetsockoptInt(fds[0], unix.SOL_SOCKET, unix.SO_PASSCRED, 1)
	var c net.Conn
	if err == nil {
		c, err = net.FileConn(mine)
	}
	if err != nil {
		_ = theirs.Close()
		return nil, nil, fmt.Errorf("make connection into the server: %w", err)
	}
	return c.(*net.UnixConn), theirs, nil
}

// enter runs the way into the server, which ends when the program there runs.
func enter(ctx context.Context, c Config, control, log *os.File) error {
	self, err := os.Open("/proc/self/exe")
	if err != nil {
		return fmt.Errorf("open own program: %w", err)
	}
	defer func() { _ = self.Close() }()
	cmd := exec.CommandContext(ctx, c.Enter[0], c.Enter[1:]...)
	cmd.Dir, cmd.Stdout, cmd.Stderr, cmd.ExtraFiles = "/", log, log, []*os.File{self, control}
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("enter the server: %w", err)
	}
	return nil
}

// meet waits for the stub and for process 1 of the namespace, which it makes, and takes
// notice of the stub's end.
func meet(c *net.UnixConn) (*os.Process, error) {
	stub, err := introduced(c)
	if err != nil {
		return nil, err
	}
	pid, err := introduced(c)
	if err != nil {
		return nil, err
	}
	if p, err := os.FindProcess(stub); err == nil {
		waitFor(p)
	}
	var info unix.Siginfo
	if err := unix.Waitid(unix.P_PID, pid, &info, unix.WEXITED|unix.WNOHANG|unix.WNOWAIT, nil); err != nil {
		return nil, fmt.Errorf("check process %d: it is not the guard's child: %w", pid, err) // our end would not be its
	}
	return os.FindProcess(pid)
}

// introduced waits for an empty message and returns who sent it, as the kernel says.
func introduced(c *net.UnixConn) (pid int, err error) {
	b, oob := make([]byte, len(hello)), make([]byte, unix.CmsgSpace(unix.SizeofUcred))
	for n := 0; n < len(b); {
		m, oobn, _, _, err := c.ReadMsgUnix(b[n:], oob)
		if err != nil {
			return 0, fmt.Errorf("wait for the program in the server: %w", err)
		}
		if m == 0 {
			return 0, errors.New("wait for the program in the server: it ended")
		}
		n += m
		messages, err := unix.ParseSocketControlMessage(oob[:oobn])
		if err != nil || len(messages) == 0 {
			return 0, errors.New("wait for the program in the server: it did not say who it is")
		}
		cred, err := unix.ParseUnixCredentials(&messages[0])
		if err != nil {
			return 0, fmt.Errorf("wait for the program in the server: %w", err)
		}
		pid = int(cred.Pid)
	}
	return pid, nil
}

// waitFor takes notice of a child's end and says what it was.
func waitFor(p *os.Process) string {
	state, err := p.Wait()
	if err != nil {
		return err.Error()
	}
	status, ok := state.Sys().(syscall.WaitStatus)
	switch {
	case !ok:
		return state.String()
	case status.Signaled():
		return "killed by " + status.Signal().String()
	case status.ExitStatus() > 128:
		return "killed by " + syscall.Signal(status.ExitStatus()-128).String()
	}
	return fmt.Sprintf("exit code %d", status.ExitStatus())
}

// wait takes notice of the end. The kernel reports process 1's only after all others'.
func (r *run) wait() {
	r.end = waitFor(r.process)
	_ = r.control.Close()
	close(r.done)
}

// signal passes n on to postgres.
func (r *run) signal(n syscall.Signal) error {
	r.write.Lock()
	defer r.write.Unlock()
	_ = r.control.SetWriteDeadline(time.Now().Add(5 * time.Second))
	return writeLine(r.control, inside{Signal: int(n)})
}

// stop ends the run: a fast shutdown, and by force after limit.
func (r *run) stop(limit time.Duration) {
	if err := r.signal(syscall.SIGINT); err == nil {
		t := time.NewTimer(limit)
		defer t.Stop()
		select {
		case <-r.done:
			return
		case <-t.C:
		}
	}
	r.force()
}

// force ends the run at once.
func (r *run) force() {
	_ = r.process.Kill()
	<-r.done
}
