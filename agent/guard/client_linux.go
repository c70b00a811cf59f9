package guard

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
)

// startLimit is how long a new guard may take until it answers.
const startLimit = 10 * time.Second

// Client is the agent's side of one guard. Its methods may be used at any time, also while
// there is no guard: then they are fault.Unavailable, all but Ensure.
type Client struct {
	Dir     string   // of the guard: made, 0700
	Program []string // starts one: the program, then arguments before "-dir DIR"
}

// Ensure makes c what the next start runs, and a guard be there.
func (g *Client) Ensure(ctx context.Context, c Config) (State, error) {
	if err := c.Validate(); err != nil {
		return State{}, err
	}
	if err := os.MkdirAll(g.Dir, 0o700); err != nil {
		return State{}, fmt.Errorf("make directory of guard %s: %w", c.ID, err)
	}
	if err := c.save(g.Dir); err != nil {
		return State{}, err
	}
	if s, err := g.State(ctx); err == nil {
		return s, nil
	}
	return g.start(ctx)
}

// start starts a guard in a session of its own and waits until it answers.
func (g *Client) start(ctx context.Context) (State, error) {
	cmd := exec.Command(g.Program[0], append(g.Program[1:len(g.Program):len(g.Program)], "-dir", g.Dir)...)
	cmd.Dir = "/"
	cmd.Env = append(os.Environ(), "GOMAXPROCS=1")
	// Not the agent's: a guard that outlives it would print into nothing, and end by that.
	said, err := os.OpenFile(filepath.Join(g.Dir, "guard.err"), os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return State{}, fmt.Errorf("start guard: %w", err)
	}
	defer func() { _ = said.Close() }()
	cmd.Stderr = said
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return State{}, fmt.Errorf("start guard: %w", err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	ctx, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for {
		if s, err := g.State(ctx); err == nil {
			return s, nil
		}
		select {
		case <-ctx.Done():
			return State{}, fmt.Errorf("start guard: %w", ctx.Err())
		case err := <-ended:
			if err != nil {
				why, _ := os.ReadFile(said.Name())
				return State{}, fmt.Errorf("start guard: %w: %s", err, bytes.TrimSpace(why))
			}
			ended = nil // another one was quicker: wait for its socket
		case <-tick.C:
		}
	}
}

// State asks what is there. fault.Unavailable: no guard runs, so nothing of the database does.
func (g *Client) State(ctx context.Context) (State, error) { return g.ask(ctx, request{Op: opState}) }

// Start runs the database and returns when it runs. fault.Unavailable: it could not be
// started, the guard goes on trying.
func (g *Client) Start(ctx context.Context) (State, error) { return g.ask(ctx, request{Op: opStart}) }

// Stop ends the database, by force after limit, and returns when nothing of it is left.
func (g *Client) Stop(ctx context.Context, limit time.Duration) (State, error) {
	return g.ask(ctx, request{Op: opStop, Seconds: limit.Seconds()})
}

// Restart is Stop and Start.
func (g *Client) Restart(ctx context.Context, limit time.Duration) (State, error) {
	return g.ask(ctx, request{Op: opRestart, Seconds: limit.Seconds()})
}

// Signal sends n to the database's postmaster. fault.Precondition: it does not run.
func (g *Client) Signal(ctx context.Context, n syscall.Signal) error {
	_, err := g.ask(ctx, request{Op: opSignal, Signal: int(n)})
	return err
}

// Fence ends everything of the database, and the guard, at once. It returns when the guard
// is no more; no guard is a fence already.
func (g *Client) Fence(ctx context.Context) error {
	_, err := g.ask(ctx, request{Op: opFence})
	if fault.Is(err, fault.Unavailable) {
		return nil
	}
	return err
}

// Quit is Stop, and the guard ends too. No guard is one that has quit.
func (g *Client) Quit(ctx context.Context, limit time.Duration) error {
	_, err := g.ask(ctx, request{Op: opQuit, Seconds: limit.Seconds()})
	if fault.Is(err, fault.Unavailable) {
		return nil
	}
	return err
}

// Watch calls f with the state now and after each change, until ctx ends or the guard does:
// fault.Unavailable then.
func (g *Client) Watch(ctx context.Context, f func(State)) error {
	c, err := g.dial(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = c.Close() }()
	stop := context.AfterFunc(ctx, func() { _ = c.Close() })
	defer stop()
	if err := writeLine(c, request{Op: opWatch}); err != nil {
		return fault.Wrap(fault.Unavailable, err)
	}
	in := lines(c)
	for {
		var r response
		if err := readLine(in, &r); err != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			return fault.New(fault.Unavailable, "watch guard: it has ended: %w", err)
		}
		f(r.State)
	}
}

func (g *Client) ask(ctx context.Context, r request) (State, error) {
	c, err := g.dial(ctx)
	if err != nil {
		return State{}, err
	}
	defer func() { _ = c.Close() }()
	stop := context.AfterFunc(ctx, func() { _ = c.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	var answer response
	err = writeLine(c, r)
	if err == nil {
		err = readLine(lines(c), &answer)
	}
	switch {
	case ctx.Err() != nil:
		return State{}, fmt.Errorf("ask guard to %s: %w", r.Op, ctx.Err())
	case errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE):
		return State{}, fault.New(fault.Unavailable, "ask guard to %s: it has ended", r.Op)
	case err != nil:
		return State{}, fmt.Errorf("ask guard to %s: %w", r.Op, err)
	}
	return answer.State, answer.err()
}

func (g *Client) dial(ctx context.Context) (*net.UnixConn, error) {
	dir, err := os.Open(g.Dir)
	if err != nil {
		return nil, fault.New(fault.Unavailable, "find guard: %w", err)
	}
	defer func() { _ = dir.Close() }()
	c, err := (&net.Dialer{Timeout: startLimit}).DialContext(ctx, "unix", socketPath(dir))
	if err != nil {
		return nil, fault.New(fault.Unavailable, "connect to guard in %s: %w", filepath.Base(g.Dir), err)
	}
	conn := c.(*net.UnixConn)
	if err := checkPeer(conn); err != nil {
		_ = conn.Close()
		return nil, err
	}
	return conn, nil
}
