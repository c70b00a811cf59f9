package oci

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/go-runc"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
	"github.com/reflejo/terraform-provider-reflejo/agent/vserver"
)

const (
	maxArguments = 1 << 20         // bytes of arguments and environment of a command
	killLimit    = 5 * time.Second // from the end of a command's context to the end of waiting for it
)

// Exec runs a command in a running server; see vserver.Commands. It returns when the
// command has ended and nothing that it left behind holds its output. When ctx ends that
// process (not what it started, nor anything else) is killed and ctx's error returned.
// A Read of Stdin that is under way when the command ends goes on until the caller closes
// it. fault.NotFound or fault.Precondition: the server does not run; fault.Invalid: there
// is no such user, program or directory.
func (r *Runtime) Exec(ctx context.Context, id string, cmd vserver.Command) (int, error) {
	if err := checkCommand(cmd); err != nil {
		return 0, err
	}
	s, err := r.running(id)
	if err != nil {
		return 0, err
	}
	process, err := execProcess(s, cmd)
	if err != nil {
		return 0, fmt.Errorf("run %q in server %s: %w", cmd.Argv[0], id, err)
	}
	base := filepath.Join(r.cfg.RunDir, "exec", strings.ToLower(rand.Text()))
	run := &execution{ctx: ctx, cmd: cmd, pidFile: base + ".pid", server: s}
	log := base + ".log"
	defer func() { _, _ = os.Remove(run.pidFile), os.Remove(log) }()
	if err := run.open(); err != nil {
		return 0, fmt.Errorf("run %q in server %s: %w", cmd.Argv[0], id, err)
	}
	// A runtime of its own setting: this one may outlive the agent, with the command.
	rt := &runc.Runc{Command: r.cfg.Runc, Root: r.cfg.Root, LogFormat: runc.JSON}
	err = rt.Exec(ctx, id, *process, &runc.ExecOpts{IO: run, PidFile: run.pidFile, LogFile: log})
	run.finish()
	if ctx.Err() != nil {
		return 0, fmt.Errorf("run %q in server %s: %w", cmd.Argv[0], id, ctx.Err())
	}
	if _, serr := os.Stat(run.pidFile); serr == nil { // written once the program runs
		var exit *runc.ExitError
		switch {
		case err == nil:
			return 0, nil
		case errors.As(err, &exit):
			return exit.Status, nil
		}
		return 0, fmt.Errorf("run %q in server %s: %w", cmd.Argv[0], id, err)
	}
	if _, serr := r.running(id); serr != nil {
		return 0, serr
	}
	return 0, fault.New(fault.Invalid, "run %q in server %s: %s", cmd.Argv[0], id, lastMessage(log, err))
}

// checkCommand refuses what cannot be a command line.
func checkCommand(cmd vserver.Command) error {
	if len(cmd.Argv) == 0 || cmd.Argv[0] == "" {
		return fault.New(fault.Invalid, "run command: no program is named")
	}
	size := 0
	for _, list := range [][]string{cmd.Argv, cmd.Env} {
		for _, s := range list {
			if strings.ContainsRune(s, 0) {
				return fault.New(fault.Invalid, "run command: an argument has a zero byte")
			}
			size += len(s) + 1
		}
	}
	if size > maxArguments {
		return fault.New(fault.Invalid, "run command: %d bytes of arguments, at most %d are possible", size, maxArguments)
	}
	for _, e := range cmd.Env {
		if i := strings.IndexByte(e, '='); i <= 0 {
			return fault.New(fault.Invalid, "run command: an environment entry has no name and value")
		}
	}
	if cmd.Dir != "" && !path.IsAbs(cmd.Dir) {
		return fault.New(fault.Invalid, "run command: directory %q is not absolute", cmd.Dir)
	}
	return nil
}

// running is the state of a server whose init runs.
func (r *Runtime) running(id string) (runState, error) {
	s, status, err := r.inspect(id)
	if err == nil && status != vserver.RunRunning {
		err = fault.New(fault.Precondition, "server %s does not run: it is %s", id, status)
	}
	return s, err
}

// execProcess is the runtime's description of cmd in the server whose init is s.
func execProcess(s runState, cmd vserver.Command) (*specs.Process, error) {
	a, err := accountIn(s, cmd.User)
	if err != nil {
		return nil, err
	}
	return execSpec(a, cmd), nil
}

// execSpec is the runtime's description of cmd, run by a.
func execSpec(a account, cmd vserver.Command) *specs.Process {
	dir := cmd.Dir
	if dir == "" {
		dir = "/"
	}
	p := &specs.Process{
		Terminal:     cmd.TTY,
		User:         specs.User{UID: a.UID, GID: a.GID, AdditionalGids: a.Groups},
		Args:         cmd.Argv,
		Env:          commandEnv(a, cmd.TTY, cmd.Env),
		Cwd:          dir,
		Capabilities: capabilities(a.UID),
		Rlimits:      rlimits(openFiles()),
	}
	if cmd.TTY && cmd.Rows > 0 && cmd.Columns > 0 {
		p.ConsoleSize = &specs.Box{Height: uint(cmd.Rows), Width: uint(cmd.Columns)}
	}
	return p
}

// execution is one command's input and output, as go-runc wants it.
type execution struct {
	ctx     context.Context
	cmd     vserver.Command
	server  runState
	pidFile string

	theirs  []*os.File // ends that the runtime gets; closed here once it runs
	stdin   *os.File   // our ends
	master  *os.File
	outputs []*output
	child   [3]*os.File
	done    chan struct{}
}

var _ runc.IO = (*execution)(nil)

// Stdin, Stdout, Stderr and Close are for callers of go-runc that want its own pipes.
func (e *execution) Stdin() io.WriteCloser { return nil }

// Stdout is unused.
func (e *execution) Stdout() io.ReadCloser { return nil }

// Stderr is unused.
func (e *execution) Stderr() io.ReadCloser { return nil }

// Close is unused: finish closes.
func (e *execution) Close() error { return nil }

// open makes the pipes or the terminal.
func (e *execution) open() error {
	e.done = make(chan struct{})
	if e.cmd.TTY {
		return e.openTerminal()
	}
	if e.cmd.Stdin != nil {
		r, w, err := os.Pipe()
		if err != nil {
			return err
		}
		e.child[0], e.stdin, e.theirs = r, w, append(e.theirs, r)
	}
	for i, w := range []io.Writer{e.cmd.Stdout, e.cmd.Stderr} {
		if i == 1 && sameWriter(e.cmd.Stdout, w) { // one stream, in the order in which it is written
			e.child[2] = e.child[1]
			break
		}
		if w == nil {
			w = io.Discard
		}
		ours, theirs, err := os.Pipe()
		if err != nil {
			e.finish()
			return err
		}
		e.child[i+1], e.theirs = theirs, append(e.theirs, theirs)
		e.outputs = append(e.outputs, &output{from: ours, to: w})
	}
	return nil
}

// sameWriter reports whether both streams go to one writer, which need not be safe for
// two at once.
func sameWriter(a, b io.Writer) (same bool) {
	defer func() { _ = recover() }() // writers of a kind that cannot be compared are not the same
	return a != nil && a == b
}

// openTerminal makes a terminal on the host between us and the runtime, which connects it
// to one in the server and passes window sizes on.
func (e *execution) openTerminal() error {
	master, slave, err := openTerminal()
	if err != nil {
		return err
	}
	e.master, e.stdin = master, master
	e.child = [3]*os.File{slave, slave, slave}
	e.theirs = []*os.File{slave}
	if e.cmd.Rows > 0 && e.cmd.Columns > 0 {
		e.resize([2]uint16{e.cmd.Rows, e.cmd.Columns})
	}
	to := e.cmd.Stdout
	if to == nil {
		to = io.Discard
	}
	e.outputs = []*output{{from: master, to: to}}
	return nil
}

func (e *execution) resize(size [2]uint16) {
	_ = control(e.master, func(fd int) error {
		return unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &unix.Winsize{Row: size[0], Col: size[1]})
	})
}

// Set gives the runtime's process its ends.
func (e *execution) Set(c *exec.Cmd) {
	if e.child[0] != nil {
		c.Stdin = e.child[0]
	}
	c.Stdout, c.Stderr = e.child[1], e.child[2]
	if e.cmd.TTY {
		c.SysProcAttr.Setsid, c.SysProcAttr.Setctty, c.SysProcAttr.Setpgid = true, true, false
	}
	c.Cancel = func() error {
		if !e.killCommand() {
			return c.Process.Kill()
		}
		return nil // the runtime leaves when its child has
	}
	c.WaitDelay = killLimit
}

// CloseAfterStart is called by go-runc when the runtime runs.
func (e *execution) CloseAfterStart() error {
	e.closeTheirs()
	for _, o := range e.outputs {
		o.start()
	}
	if e.cmd.Stdin != nil {
		go func() {
			_, _ = io.Copy(e.stdin, e.cmd.Stdin)
			if !e.cmd.TTY {
				_ = e.stdin.Close() // end of file
			}
		}()
	}
	if e.cmd.TTY && e.cmd.Resize != nil {
		go func() {
			for {
				select {
				case <-e.done:
					return
				case size, ok := <-e.cmd.Resize:
					if !ok {
						return
					}
					e.resize(size)
				}
			}
		}()
	}
	return nil
}

func (e *execution) closeTheirs() {
	for _, f := range e.theirs {
		_ = f.Close()
	}
	e.theirs = nil
}

// finish waits for the rest of the output and closes our ends.
func (e *execution) finish() {
	e.closeTheirs()
	for _, o := range e.outputs {
		o.finish()
	}
	if e.stdin != nil {
		_ = e.stdin.Close()
	}
	close(e.done)
}

// killCommand kills the command, and it alone; false if the runtime has not said in
// time which process it is.
func (e *execution) killCommand() bool {
	for deadline := time.Now().Add(killLimit / 2); ; time.Sleep(5 * time.Millisecond) {
		b, err := os.ReadFile(e.pidFile)
		pid, aerr := strconv.Atoi(strings.TrimSpace(string(b)))
		if err == nil && aerr == nil {
			return e.killPid(pid)
		}
		if time.Now().After(deadline) {
			return false
		}
	}
}

// killPid kills process pid if it is one of the server's: a number can be reused.
func (e *execution) killPid(pid int) bool {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return err == unix.ESRCH
	}
	defer closeFD(fd)
	theirs, err1 := os.Readlink(fmt.Sprintf("/proc/%d/ns/pid", pid))
	servers, err2 := os.Readlink(fmt.Sprintf("/proc/%d/ns/pid", e.server.Pid))
	if err1 != nil || err2 != nil || theirs != servers {
		return true // ended meanwhile
	}
	return unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0) == nil
}

// output copies one stream to its writer until nobody can write to it any more.
type output struct {
	from *os.File
	to   io.Writer
	done chan struct{} // nil before start
}

func (o *output) start() {
	o.done = make(chan struct{})
	go func() {
		defer close(o.done)
		if _, err := io.Copy(o.to, o.from); err != nil {
			_, _ = io.Copy(io.Discard, o.from) // nobody listens any more; the command must not block
		}
	}()
}

// finish is called when the runtime has ended: what is left in the stream is the last of it.
func (o *output) finish() {
	if o.done != nil {
		<-o.done
	}
	_ = o.from.Close()
}

// openTerminal makes a pseudo-terminal on the host.
func openTerminal() (master, slave *os.File, err error) {
	fd, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("open terminal: %w", err)
	}
	if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
		closeFD(fd)
		return nil, nil, fmt.Errorf("unlock terminal: %w", err)
	}
	s, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.TIOCGPTPEER, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC)
	if errno != 0 {
		closeFD(fd)
		return nil, nil, fmt.Errorf("open terminal's other side: %w", errno)
	}
	return os.NewFile(uintptr(fd), "terminal"), os.NewFile(s, "terminal"), nil
}

// lastMessage is what the runtime wrote last into its log, for people; err where it wrote nothing.
func lastMessage(logFile string, err error) string {
	f, oerr := os.Open(logFile)
	if oerr == nil {
		defer func() { _ = f.Close() }()
		b, _ := io.ReadAll(io.LimitReader(f, 64<<10))
		lines := strings.Split(strings.TrimSpace(string(b)), "\n")
		var entry struct {
			Message string `json:"msg"`
		}
		if json.Unmarshal([]byte(lines[len(lines)-1]), &entry) == nil && entry.Message != "" {
			return entry.Message
		}
	}
	if err == nil {
		return "the runtime did not say why"
	}
	return err.Error()
}
