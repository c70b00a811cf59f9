package guard

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"runtime/debug"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
)

const (
	socketName  = "guard.sock"
	lockName    = "guard.lock"
	memoryLimit = 12 << 20 // for the collector
	onFault     = 4        // MCL_ONFAULT: pages are locked as they come, reservations are not filled

	// quitLimit is how long a clean stop may take when the guard is told to end by SIGTERM.
	quitLimit = time.Minute
)

// Run is the body of `reflejo guard -dir DIR`: it keeps a database until it is told to quit.
// Where another guard has the directory already it ends at once.
func Run(args []string) int {
	flags := flag.NewFlagSet(Command, flag.ContinueOnError)
	dir := flags.String("dir", "", "directory of the guard")
	if flags.Parse(args) != nil || *dir == "" {
		return 2
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	if err := serve(ctx, *dir); err != nil {
		fmt.Fprintln(os.Stderr, "reflejo guard:", err)
		return 1
	}
	return 0
}

// guard keeps one database.
type guard struct {
	dir string
	log *os.File // what children print into

	mu       sync.Mutex
	state    State
	want     bool          // it should run
	limit    time.Duration // of the stop that is asked for
	run      *run
	changed  chan struct{} // closed and replaced at each change
	restarts int           // asked for and not begun
}

func serve(ctx context.Context, dir string) error {
	lock, err := os.OpenFile(filepath.Join(dir, lockName), os.O_RDWR|os.O_CREATE|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return fmt.Errorf("open lock: %w", err)
	}
	defer func() { _ = lock.Close() }()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); errors.Is(err, unix.EWOULDBLOCK) {
		return nil
	} else if err != nil {
		return fmt.Errorf("lock %s: %w", lock.Name(), err)
	}
	c, err := load(dir)
	if err != nil {
		return err
	}
	if err := settle(c); err != nil {
		return err
	}
	g := &guard{dir: dir, state: State{ID: c.ID, Phase: Stopped}, changed: make(chan struct{})}
	keep, err := openLog(c.LogFile)
	if err != nil {
		return err
	}
	g.log = keep
	l, err := listen(dir)
	if err != nil {
		return err
	}
	ctx, quit := context.WithCancel(ctx)
	defer quit()
	context.AfterFunc(ctx, func() { _ = l.Close() })
	supervised := make(chan struct{})
	go func() { g.supervise(ctx); close(supervised) }()
	for {
		conn, err := l.AcceptUnix()
		switch {
		case err == nil:
			go g.answer(ctx, quit, conn)
		case ctx.Err() != nil:
			<-supervised
			return nil
		default:
			time.Sleep(100 * time.Millisecond) // out of descriptors: the next one may find some
		}
	}
}

// settle makes this process one that outlives trouble: of the agent's group, of memory, of
// the server's limits.
func settle(c Config) error {
	debug.SetGCPercent(50)
	debug.SetMemoryLimit(memoryLimit)
	for _, g := range c.Groups {
		if err := os.WriteFile(filepath.Join(g, "cgroup.procs"), []byte("0"), 0); err != nil {
			return fmt.Errorf("join own control group: %w", err)
		}
	}
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("adopt orphans: %w", err)
	}
	// Either may be refused where the agent has few capabilities; the fence works without.
	_ = os.WriteFile("/proc/self/oom_score_adj", []byte("-1000"), 0)
	_ = unix.Mlockall(unix.MCL_CURRENT | unix.MCL_FUTURE | onFault)
	return nil
}

// listen makes the socket in place of what a killed guard left. The lock is ours.
func listen(dir string) (*net.UnixListener, error) {
	d, err := os.Open(dir)
	if err != nil {
		return nil, fmt.Errorf("open directory: %w", err)
	}
	defer func() { _ = d.Close() }()
	path := socketPath(d)
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("remove old socket: %w", err)
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("listen: %w", err)
	}
	l.SetUnlinkOnClose(false) // the path may be through a descriptor that is closed by then
	return l, nil
}

// socketPath is a path of the socket that is short enough for an address.
func socketPath(dir *os.File) string {
	const longest = 107
	if path := filepath.Join(dir.Name(), socketName); len(path) <= longest {
		return path
	}
	return fmt.Sprintf("/proc/self/fd/%d/%s", dir.Fd(), socketName)
}

// supervise makes what runs what is wanted, until ctx ends; then it stops it.
func (g *guard) supervise(ctx context.Context) {
	for {
		want, changed := g.wanted()
		if ctx.Err() != nil {
			return
		}
		if !want {
			g.set(func(s *State) { s.Phase, s.Failures = Stopped, 0 })
			select {
			case <-changed:
			case <-ctx.Done():
			}
			continue
		}
		r, err := g.start(ctx)
		if err != nil {
			g.rest(ctx, failuresAfter(g.failures(), 0), err.Error())
			continue
		}
		g.attend(ctx, r)
	}
}

// start begins a run by the configuration as it is now.
func (g *guard) start(ctx context.Context) (*run, error) {
	g.mu.Lock()
	g.restarts = 0
	g.mu.Unlock()
	g.set(func(s *State) { s.Phase, s.Starts = Starting, s.Starts+1 })
	c, err := load(g.dir)
	if err != nil {
		return nil, err
	}
	return begin(ctx, c, g.log)
}

// attend waits for the run's end, or for that it should end.
func (g *guard) attend(ctx context.Context, r *run) {
	g.mu.Lock()
	g.run = r
	g.mu.Unlock()
	g.set(func(s *State) { s.Phase, s.PID, s.Started, s.Argv = Running, r.process.Pid, r.started.UTC(), r.argv })
	for {
		g.mu.Lock()
		want, changed, limit, restart := g.want, g.changed, g.limit, g.restarts > 0
		g.mu.Unlock()
		if !want || restart || ctx.Err() != nil {
			if ctx.Err() != nil && want {
				limit = quitLimit
			}
			g.set(func(s *State) { s.Phase = Stopping })
			r.stop(limit)
			g.ended()
			g.set(func(s *State) { s.Last, s.Failures = r.end, 0 })
			return
		}
		select {
		case <-r.done:
			g.ended()
			g.rest(ctx, failuresAfter(g.failures(), time.Since(r.started)), r.end)
			return
		case <-changed:
		case <-ctx.Done():
		}
	}
}

func (g *guard) ended() {
	g.change(func(g *guard) {
		g.run = nil
		g.state.PID, g.state.Started, g.state.Argv = 0, time.Time{}, nil
	})
}

// rest waits after a failure until it is time for another try.
func (g *guard) rest(ctx context.Context, failures int, why string) {
	g.set(func(s *State) { s.Phase, s.Failures, s.Last, s.PID = Waiting, failures, why, 0 })
	t := time.NewTimer(pause(failures))
	defer t.Stop()
	for {
		g.mu.Lock()
		want, changed, restart := g.want, g.changed, g.restarts > 0
		g.mu.Unlock()
		if !want || restart {
			return
		}
		select {
		case <-t.C:
			return
		case <-ctx.Done():
			return
		case <-changed:
		}
	}
}

func (g *guard) failures() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.state.Failures
}

func (g *guard) wanted() (bool, <-chan struct{}) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.want, g.changed
}

// set changes the state and tells everybody.
func (g *guard) set(f func(*State)) { g.change(func(g *guard) { f(&g.state) }) }

func (g *guard) change(f func(*guard)) {
	g.mu.Lock()
	defer g.mu.Unlock()
	f(g)
	close(g.changed)
	g.changed = make(chan struct{})
}

// until waits for a state and returns it, or the last one when ctx ends.
func (g *guard) until(ctx context.Context, good func(State) bool) State {
	for {
		g.mu.Lock()
		s, changed := g.state, g.changed
		g.mu.Unlock()
		if good(s) {
			return s
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return s
		}
	}
}

// fence ends everything of the database, and this process with it.
func (g *guard) fence() {
	g.mu.Lock()
	if g.run != nil {
		_ = g.run.process.Kill()
	}
	_ = unix.Kill(os.Getpid(), unix.SIGKILL)
	select {}
}

// signal passes a signal on to postgres.
func (g *guard) signal(n int) error {
	g.mu.Lock()
	r := g.run
	g.mu.Unlock()
	if r == nil {
		return fault.New(fault.Precondition, "send signal %d to the database: it does not run", n)
	}
	return r.signal(syscall.Signal(n))
}
