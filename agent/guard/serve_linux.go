package guard

import (
	"context"
	"fmt"
	"net"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
)

const answerLimit = 10 * time.Second

// answer serves one connection.
func (g *guard) answer(ctx context.Context, quit func(), c *net.UnixConn) {
	defer func() { _ = c.Close() }()
	if checkPeer(c) != nil {
		return
	}
	_ = c.SetDeadline(time.Now().Add(answerLimit))
	var r request
	if readLine(lines(c), &r) != nil {
		return
	}
	_ = c.SetDeadline(time.Time{})
	if r.Op == opWatch {
		g.tell(ctx, c)
		return
	}
	s, err := g.do(ctx, r)
	answer := response{Version: version, State: s}
	if err != nil {
		answer.Error, answer.Kind = err.Error(), fault.KindOf(err)
	}
	_ = c.SetDeadline(time.Now().Add(answerLimit))
	_ = writeLine(c, answer)
	if r.Op == opQuit {
		quit()
	}
}

func (g *guard) do(ctx context.Context, r request) (State, error) {
	switch r.Op {
	case opState:
		return g.now(), nil
	case opStart:
		before := g.now()
		g.change(func(g *guard) {
			g.want = true
			if g.state.Phase == Waiting { // not when its time has come, but now
				g.restarts++
			}
		})
		if before.Phase == Starting || before.Phase == Running {
			return g.up(ctx, before.Starts)
		}
		return g.up(ctx, before.Starts+1)
	case opStop, opQuit:
		g.change(func(g *guard) { g.want, g.limit = false, r.timeout() })
		return g.until(ctx, func(s State) bool { return s.Phase == Stopped }), nil
	case opRestart:
		before := g.now()
		g.change(func(g *guard) { g.want, g.limit, g.restarts = true, r.timeout(), g.restarts+1 })
		return g.up(ctx, before.Starts+1)
	case opSignal:
		if r.Signal <= 0 || r.Signal > 64 || syscall.Signal(r.Signal) == syscall.SIGKILL {
			return g.now(), fault.New(fault.Invalid, "send signal %d: no such signal is passed on", r.Signal)
		}
		return g.now(), g.signal(r.Signal)
	case opFence:
		g.fence()
	}
	return g.now(), fault.New(fault.Invalid, "unknown request %q", r.Op)
}

func (g *guard) now() State {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.state
}

// up waits until the run of this number runs, or has failed to.
func (g *guard) up(ctx context.Context, number int) (State, error) {
	s := g.until(ctx, func(s State) bool {
		return s.Starts >= number && (s.Phase == Running || s.Phase == Waiting)
	})
	if s.Phase != Running {
		return s, fault.New(fault.Unavailable, "start the database: %s", s.Last)
	}
	return s, nil
}

// tell sends every state until either side ends.
func (g *guard) tell(ctx context.Context, c *net.UnixConn) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		_, _ = c.Read(make([]byte, 1))
		cancel()
	}()
	for ctx.Err() == nil {
		g.mu.Lock()
		s, changed := g.state, g.changed
		g.mu.Unlock()
		_ = c.SetWriteDeadline(time.Now().Add(answerLimit))
		if writeLine(c, response{Version: version, State: s}) != nil {
			return
		}
		select {
		case <-changed:
		case <-ctx.Done():
		}
	}
}

// checkPeer makes sure that the process at the other end is of our own user.
func checkPeer(c *net.UnixConn) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return fmt.Errorf("read peer credentials: %w", err)
	}
	var cred *unix.Ucred
	var serr error
	if err := raw.Control(func(fd uintptr) { cred, serr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }); err != nil {
		serr = err
	}
	if serr != nil {
		return fmt.Errorf("read peer credentials: %w", serr)
	}
	if int(cred.Uid) != os.Geteuid() {
		return fault.New(fault.Denied, "check peer: process %d belongs to user %d", cred.Pid, cred.Uid)
	}
	return nil
}
