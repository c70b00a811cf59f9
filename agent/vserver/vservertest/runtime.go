package vservertest

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
	"github.com/reflejo/terraform-provider-reflejo/agent/vserver"
)

// Runtime is a vserver.Runtime, vserver.Commands and vserver.Preparer in memory. It keeps
// state and prints itself. Its servers know the programs true, false, cat and echo, echo
// their console's input, and end at once when they are asked to, unless told to be Stubborn.
type Runtime struct {
	mu       sync.Mutex
	servers  map[string]*runtimeServer
	prepared map[string]vserver.Preparation // by root
	logs     map[string]*bytes.Buffer
	failures map[string]error
	lastPid  int
}

type runtimeServer struct {
	container vserver.Container
	run       vserver.Running
	ended     chan struct{}
	rebooted  bool
	stubborn  bool
}

var (
	_ vserver.Runtime  = (*Runtime)(nil)
	_ vserver.Commands = (*Runtime)(nil)
	_ vserver.Preparer = (*Runtime)(nil)
)

// NewRuntime is a host on which nothing runs.
func NewRuntime() *Runtime {
	return &Runtime{
		servers: map[string]*runtimeServer{}, prepared: map[string]vserver.Preparation{},
		logs: map[string]*bytes.Buffer{}, failures: map[string]error{}, lastPid: 1000,
	}
}

// Fail makes the next call of an operation ("create", "start", "stop", "delete", "list",
// "exec", "prepare") fail with err.
func (r *Runtime) Fail(operation string, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.failures[operation] = err
}

// Stubborn makes a server ignore Stop.
func (r *Runtime) Stubborn(id string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if s := r.servers[id]; s != nil {
		s.stubborn = true
	}
}

// End lets a server's init end by itself, as a poweroff inside does.
func (r *Runtime) End(id string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if s := r.servers[id]; s != nil {
		s.end()
	}
}

// Reboot lets a server's init end to be started again, as a reboot inside does.
func (r *Runtime) Reboot(id string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if s := r.servers[id]; s != nil {
		s.rebooted = true
		s.end()
	}
}

// Prepared is what was last prepared in a root directory.
func (r *Runtime) Prepared(root string) (vserver.Preparation, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	p, ok := r.prepared[root]
	return p, ok
}

// String is the list of servers, as an operator would read it.
func (r *Runtime) String() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	var b strings.Builder
	for _, id := range slices.Sorted(maps.Keys(r.servers)) {
		s := r.servers[id]
		fmt.Fprintf(&b, "%s %s %s %s\n", id, s.run.Status, s.container.Hostname, s.container.Rootfs)
	}
	return b.String()
}

// begin takes the failure that was ordered for an operation.
func (r *Runtime) begin(ctx context.Context, operation string) error {
	if err := r.failures[operation]; err != nil {
		delete(r.failures, operation)
		return err
	}
	return ctx.Err()
}

func (r *Runtime) find(id string) (*runtimeServer, error) {
	if s := r.servers[id]; s != nil {
		return s, nil
	}
	return nil, fault.New(fault.NotFound, "find server %s: the runtime does not know it", id)
}

func (s *runtimeServer) end() {
	if s.run.Status != vserver.RunStopped {
		s.run.Status, s.run.Pid = vserver.RunStopped, 0
		close(s.ended)
	}
}

// Create implements vserver.Runtime.
func (r *Runtime) Create(ctx context.Context, c vserver.Container) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := r.begin(ctx, "create"); err != nil {
		return 0, err
	}
	if err := checkID(c.ID); err != nil {
		return 0, err
	}
	if s := r.servers[c.ID]; s != nil && s.run.Status != vserver.RunStopped {
		return s.run.Pid, nil
	}
	r.lastPid++
	r.servers[c.ID] = &runtimeServer{
		container: c, ended: make(chan struct{}),
		run: vserver.Running{ID: c.ID, Pid: r.lastPid, Status: vserver.RunCreated, Started: time.Now()},
	}
	if r.logs[c.ID] == nil {
		r.logs[c.ID] = &bytes.Buffer{}
	}
	return r.lastPid, nil
}

// Start implements vserver.Runtime.
func (r *Runtime) Start(ctx context.Context, id string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := r.begin(ctx, "start"); err != nil {
		return err
	}
	s, err := r.find(id)
	if err != nil {
		return err
	}
	if s.run.Status == vserver.RunStopped {
		return fault.New(fault.Precondition, "start server %s: it has ended and has to be created again", id)
	}
	s.run.Status = vserver.RunRunning
	return nil
}

// Stop implements vserver.Runtime.
func (r *Runtime) Stop(ctx context.Context, id string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := r.begin(ctx, "stop"); err != nil {
		return err
	}
	s, err := r.find(id)
	if err == nil && !s.stubborn {
		s.end()
	}
	return err
}

// Delete implements vserver.Runtime.
func (r *Runtime) Delete(ctx context.Context, id string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := r.begin(ctx, "delete"); err != nil {
		return err
	}
	if s := r.servers[id]; s != nil {
		s.end()
		delete(r.servers, id)
	}
	return nil
}

// List implements vserver.Runtime.
func (r *Runtime) List(ctx context.Context) ([]vserver.Running, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := r.begin(ctx, "list"); err != nil {
		return nil, err
	}
	out := make([]vserver.Running, 0, len(r.servers))
	for _, id := range slices.Sorted(maps.Keys(r.servers)) {
		out = append(out, r.servers[id].run)
	}
	return out, nil
}

// Wait implements vserver.Runtime.
func (r *Runtime) Wait(ctx context.Context, id string) error {
	r.mu.Lock()
	s, err := r.find(id)
	r.mu.Unlock()
	if err != nil {
		return err
	}
	select {
	case <-s.ended:
	case <-ctx.Done():
		return ctx.Err()
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if s.rebooted {
		return vserver.ErrRebooted
	}
	return nil
}

// Exec implements vserver.Commands.
func (r *Runtime) Exec(ctx context.Context, id string, cmd vserver.Command) (int, error) {
	r.mu.Lock()
	err := r.begin(ctx, "exec")
	s, ferr := r.find(id)
	switch {
	case err != nil:
	case ferr != nil:
		err = ferr
	case s.run.Status != vserver.RunRunning:
		err = fault.New(fault.Precondition, "server %s does not run: it is %s", id, s.run.Status)
	case len(cmd.Argv) == 0:
		err = fault.New(fault.Invalid, "run command: no program is named")
	}
	r.mu.Unlock()
	if err != nil {
		return 0, err
	}
	out := cmd.Stdout
	if out == nil {
		out = io.Discard
	}
	switch cmd.Argv[0] {
	case "true":
	case "false":
		return 1, nil
	case "echo":
		_, err = fmt.Fprintln(out, strings.Join(cmd.Argv[1:], " "))
	case "cat":
		if cmd.Stdin != nil {
			_, err = io.Copy(out, cmd.Stdin)
		}
	default:
		return 0, fault.New(fault.Invalid, "run %q in server %s: no such program", cmd.Argv[0], id)
	}
	return 0, err
}

// Console implements vserver.Commands: what is typed is printed and logged.
func (r *Runtime) Console(ctx context.Context, id string, rw io.ReadWriter) error {
	buf := make([]byte, 4096)
	for ctx.Err() == nil {
		n, err := rw.Read(buf)
		r.mu.Lock()
		_, ferr := r.find(id)
		if ferr == nil {
			r.logs[id].Write(buf[:n])
		}
		r.mu.Unlock()
		if ferr != nil {
			return ferr
		}
		if _, werr := rw.Write(buf[:n]); werr != nil {
			return werr
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// ConsoleLog implements vserver.Commands.
func (r *Runtime) ConsoleLog(_ context.Context, id string) (io.ReadCloser, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	var b []byte
	if l := r.logs[id]; l != nil {
		b = bytes.Clone(l.Bytes())
	}
	return io.NopCloser(bytes.NewReader(b)), nil
}

// RemoveConsoleLog forgets what a server printed, as the edge does for one that is gone.
func (r *Runtime) RemoveConsoleLog(id string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.logs, id)
	return nil
}

// Prepare implements vserver.Preparer.
func (r *Runtime) Prepare(ctx context.Context, root string, p vserver.Preparation) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := r.begin(ctx, "prepare"); err != nil {
		return err
	}
	r.prepared[root] = p
	return nil
}
