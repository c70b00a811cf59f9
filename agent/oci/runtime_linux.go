package oci

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"syscall"
	"time"

	"github.com/containerd/cgroups/v3"
	"github.com/containerd/go-runc"
	"github.com/hashicorp/go-hclog"
	"golang.org/x/sys/unix"

	"github.com/reflejo/terraform-provider-reflejo/agent/console"
	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
	"github.com/reflejo/terraform-provider-reflejo/agent/undo"
	"github.com/reflejo/terraform-provider-reflejo/agent/vserver"
)

var (
	_ vserver.Runtime  = (*Runtime)(nil)
	_ vserver.Commands = (*Runtime)(nil)
	_ vserver.Preparer = (*Runtime)(nil)
)

// Config is what the runtime edge of one agent needs. Directories are made, 0700. Two
// agents on one kernel have different ones.
type Config struct {
	Runc       string                 // path of runc or crun
	Root       string                 // the runtime's state; on a tmpfs, it means nothing after a boot
	RunDir     string                 // our own: bundles, sockets, the lxcfs mount; on a tmpfs
	StateDir   string                 // console logs; survives a boot
	CgroupPath func(id string) string // a server's group below each hierarchy's mount point ("/reflejo/alpha/<id>"), made by the limits edge
	InitBinary string                 // the static reflejo binary, for `init` in servers and for the console keeper
	Lxcfs      string                 // path of lxcfs; "" leaves /proc as the kernel shows it
	Resolver   string                 // the host's resolver file for servers without DNS settings; "" means /etc/resolv.conf
	Log        hclog.Logger
}

// Runtime is the runtime edge. Safe for concurrent use; calls for one server wait for
// each other.
type Runtime struct {
	cfg      Config
	runc     *runc.Runc
	consoles *console.Client
	view     *view
	unified  bool
	locks    keyedMutex
	states   stateCache
}

// bundle is where a server's configuration is while the runtime knows it.
func (r *Runtime) bundle(id string) string { return filepath.Join(r.cfg.RunDir, "bundles", id) }

func (r *Runtime) logDir() string { return filepath.Join(r.cfg.StateDir, "console") }

// Open finds or starts the console keeper and lxcfs, and closes terminals of servers that
// are no more. Call Watch afterwards to keep both going.
func Open(ctx context.Context, cfg Config) (*Runtime, error) {
	if cfg.Log == nil {
		cfg.Log = hclog.NewNullLogger()
	}
	if cfg.Resolver == "" {
		cfg.Resolver = "/etc/resolv.conf"
	}
	r := &Runtime{
		cfg:     cfg,
		unified: cgroups.Mode() == cgroups.Unified,
		// A runtime that outlives a killed agent would go on making a server that the next
		// agent is about to remove.
		runc: &runc.Runc{Command: cfg.Runc, Root: cfg.Root, PdeathSignal: syscall.SIGKILL},
	}
	for _, d := range []string{cfg.Root, cfg.RunDir, filepath.Join(cfg.RunDir, "bundles"), filepath.Join(cfg.RunDir, "exec"), r.logDir()} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return nil, fmt.Errorf("make runtime directory: %w", err)
		}
	}
	keeperDir := filepath.Join(cfg.RunDir, "console")
	consoles, err := console.Open(ctx, console.Config{
		Dir: keeperDir, LogDir: r.logDir(), Log: cfg.Log.Named("console"),
		Argv: []string{cfg.InitBinary, "console-keeper", "-dir", keeperDir, "-log-dir", r.logDir()},
	})
	if err != nil {
		return nil, err
	}
	r.consoles = consoles
	if cfg.Lxcfs != "" {
		r.view = &view{lxcfs: cfg.Lxcfs, dir: filepath.Join(cfg.RunDir, "lxcfs"), pidFile: filepath.Join(cfg.RunDir, "lxcfs.pid"), log: cfg.Log.Named("view"), running: r.runningPids}
		if err := r.view.ensure(ctx); err != nil { // servers work without it, they only see more than their share
			cfg.Log.Error("start lxcfs; servers see the whole machine until it runs", "error", err)
		}
	}
	if err := r.dropTerminals(ctx); err != nil {
		_ = r.Close()
		return nil, err
	}
	return r, nil
}

// Watch keeps the console keeper and lxcfs running until ctx ends, and mends the servers
// when one of them had to be started again. It returns ctx's error.
func (r *Runtime) Watch(ctx context.Context) error {
	var wg sync.WaitGroup
	wg.Go(func() { _ = r.consoles.Watch(ctx) })
	if r.view != nil {
		wg.Go(func() { r.view.watch(ctx) })
	}
	wg.Wait()
	return ctx.Err()
}

// Close gives up this process's descriptors. Servers, keeper and lxcfs go on.
func (r *Runtime) Close() error { return r.consoles.Close() }

// dropTerminals closes the terminals of servers that the runtime does not know.
func (r *Runtime) dropTerminals(ctx context.Context) error {
	ids, err := r.consoles.List(ctx)
	if err != nil {
		return fmt.Errorf("list terminals: %w", err)
	}
	for _, id := range ids {
		if _, _, err := r.inspect(id); fault.Is(err, fault.NotFound) {
			if err := r.consoles.Forget(ctx, id); err != nil {
				return fmt.Errorf("forget terminal of server %s: %w", id, err)
			}
		}
	}
	return nil
}

// Create makes everything of the server but the run of its init; see vserver.Runtime. A
// server that is created or running already is kept; one that ended or is half made is
// made anew. The server's group must exist. fault.Invalid: the id or the image cannot be run.
func (r *Runtime) Create(ctx context.Context, c vserver.Container) (int, error) {
	if !console.ValidID(c.ID) {
		return 0, fault.New(fault.Invalid, "create server: %q is not an id", c.ID)
	}
	defer r.locks.lock(c.ID)()
	switch s, status, err := r.inspect(c.ID); {
	case err == nil && status != vserver.RunStopped:
		return s.Pid, nil
	case err == nil:
		if err := r.delete(ctx, c.ID); err != nil {
			return 0, err
		}
	case !fault.Is(err, fault.NotFound):
		return 0, err
	}
	var back undo.Stack
	defer back.Run()
	back.Add(func() {
		if err := r.delete(context.WithoutCancel(ctx), c.ID); err != nil {
			r.cfg.Log.Error("take a failed creation back", "server", c.ID, "error", err)
		}
	})
	if err := r.writeBundle(c); err != nil {
		return 0, err
	}
	socket, err := r.consoles.Expect(ctx, c.ID)
	if err != nil {
		return 0, fmt.Errorf("prepare console of server %s: %w", c.ID, err)
	}
	limited, cancel := context.WithTimeout(ctx, createLimit)
	defer cancel()
	err = r.runc.Create(limited, c.ID, r.bundle(c.ID), &runc.CreateOpts{ConsoleSocket: socketAt(socket)})
	if err != nil && limited.Err() != nil && ctx.Err() == nil {
		return 0, fmt.Errorf("create server %s: the runtime did not finish in %v: %w", c.ID, createLimit, err)
	}
	if err != nil {
		return 0, fmt.Errorf("create server %s: %w", c.ID, err)
	}
	if err := r.consoles.Accept(ctx, c.ID); err != nil {
		return 0, fmt.Errorf("receive console of server %s: %w", c.ID, err)
	}
	s, status, err := r.inspect(c.ID)
	if err != nil {
		return 0, err
	}
	if status == vserver.RunStopped {
		return 0, fmt.Errorf("create server %s: its first process ended at once", c.ID)
	}
	back.Keep()
	return s.Pid, nil
}

// createLimit is far more than a creation takes (0.1 s). The runtime opens files of the
// server's, in the server, and whoever is root there can make them such that it waits.
const createLimit = time.Minute

// checkUsers refuses what the runtime would wait for, or not understand, when it looks up
// root in the server's own list of users.
func checkUsers(root *rootDir) error {
	for _, f := range []string{"/etc/passwd", "/etc/group"} {
		if _, err := root.readFile(f); err != nil && !errors.Is(err, unix.ENOENT) {
			return fault.Wrap(fault.Precondition, err)
		}
	}
	return nil
}

// socketAt is a path where a console keeper listens.
type socketAt string

// Path is for go-runc.
func (s socketAt) Path() string { return string(s) }

// writeBundle decides how the server starts and writes its configuration.
func (r *Runtime) writeBundle(c vserver.Container) error {
	if err := reachable(c.Rootfs, c.IDs); err != nil {
		return err
	}
	root, err := openRoot(c.Rootfs)
	if err != nil {
		return fmt.Errorf("open root of server %s: %w", c.ID, err)
	}
	defer func() { _ = root.Close() }()
	if err := checkUsers(root); err != nil {
		return fmt.Errorf("create server %s: %w", c.ID, err)
	}
	in := specInput{
		Container: c, Launch: findLaunch(root, c.Init), CgroupPath: "/reflejo/" + c.ID,
		Unified: r.unified, InitBinary: r.cfg.InitBinary, Arch: runtime.GOARCH, OpenFiles: openFiles(),
	}
	if r.cfg.CgroupPath != nil {
		in.CgroupPath = r.cfg.CgroupPath(c.ID)
	}
	if r.view != nil && r.view.healthy() {
		in.View = r.view.dir
	}
	spec := buildSpec(in)
	spec.Annotations = map[string]string{initAnnotation: string(in.Launch.System)}
	b, err := json.Marshal(spec)
	if err != nil {
		return fmt.Errorf("encode configuration of server %s: %w", c.ID, err)
	}
	if err := os.MkdirAll(r.bundle(c.ID), 0o700); err != nil {
		return fmt.Errorf("make bundle: %w", err)
	}
	if err := os.WriteFile(filepath.Join(r.bundle(c.ID), "config.json"), b, 0o600); err != nil {
		return fmt.Errorf("write configuration of server %s: %w", c.ID, err)
	}
	return nil
}

// initAnnotation in a bundle remembers the server's init for Stop.
const initAnnotation = "org.reflejo.init"

// findLaunch looks at an image and decides how it starts.
func findLaunch(root *rootDir, entry []string) launch {
	script := root.exists(firstBootScript)
	if len(entry) > 0 {
		system := initSystem("")
		if filepath.IsAbs(entry[0]) {
			if target := root.target(entry[0]); target != "" {
				system = initSystemOf(entry[0], target)
			}
		}
		return planLaunch("", system, entry, script)
	}
	for _, p := range initPaths {
		if target := root.target(p); target != "" {
			return planLaunch(p, initSystemOf(p, target), nil, script)
		}
	}
	return planLaunch("", "", nil, script)
}

// reachable makes sure that the server's root, who is nobody on the host, may walk to
// its root directory: the runtime enters it as that user and group. Directories may be open to all, or
// to the group of the server's root alone.
func reachable(rootfs string, ids vserver.IDRange) error {
	for dir := filepath.Dir(rootfs); ; dir = filepath.Dir(dir) {
		st, err := os.Stat(dir)
		if err != nil {
			return fmt.Errorf("check path of root file system: %w", err)
		}
		stat, ok := st.Sys().(*syscall.Stat_t)
		group := ok && stat.Gid == ids.First && st.Mode().Perm()&0o010 != 0
		if st.Mode().Perm()&0o001 == 0 && !group {
			return fmt.Errorf("check path of root file system: %s is closed to the server's users (mode %#o, needs at least 0711)", dir, st.Mode().Perm())
		}
		if dir == filepath.Dir(dir) {
			return nil
		}
	}
}

// Start lets init run; see vserver.Runtime. fault.NotFound, or fault.Precondition for a
// server that has ended.
func (r *Runtime) Start(ctx context.Context, id string) error {
	defer r.locks.lock(id)()
	s, status, err := r.inspect(id)
	switch {
	case err != nil:
		return err
	case status == vserver.RunRunning:
		return nil
	case status == vserver.RunStopped:
		return fault.New(fault.Precondition, "start server %s: it has ended and has to be created again", id)
	}
	before := program(s.Pid)
	if err := r.runc.Start(ctx, id); err != nil {
		return fmt.Errorf("start server %s: %w", id, err)
	}
	// The runtime's own process becomes init a moment later; a signal in between is lost.
	for deadline := time.Now().Add(initLimit); alive(s.Pid, s.Ticks) && program(s.Pid) == before && time.Now().Before(deadline); {
		time.Sleep(200 * time.Microsecond)
	}
	return nil
}

// initLimit is how long an init may take to be there, and then to be ready for signals.
const initLimit = 2 * time.Second

// Stop asks init to shut down; see vserver.Runtime. What has ended already is stopped.
// fault.NotFound: the runtime does not know the server.
func (r *Runtime) Stop(ctx context.Context, id string) error {
	s, status, err := r.inspect(id)
	if err != nil || status == vserver.RunStopped {
		return err
	}
	p, err := openProcess(s.Pid, s.Ticks)
	if errors.Is(err, errGone) {
		return nil
	}
	if err != nil {
		return err
	}
	defer p.Close()
	if status == vserver.RunCreated { // nothing of the server's runs yet
		return ignoreGone(p.signal(unix.SIGKILL))
	}
	way := stopOf(r.initOf(id))
	if way.Argv == nil {
		// The kernel drops what process 1 has no handler for (yet).
		for deadline := time.Now().Add(initLimit); !handles(s.Pid, way.Signal) && alive(s.Pid, s.Ticks) && ctx.Err() == nil && time.Now().Before(deadline); {
			time.Sleep(time.Millisecond)
		}
		return ignoreGone(p.signal(unix.Signal(way.Signal)))
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	code, err := r.Exec(ctx, id, vserver.Command{Argv: way.Argv})
	if err == nil && code != 0 {
		err = fmt.Errorf("%s ended with exit code %d", way.Argv[0], code)
	}
	if err != nil && alive(s.Pid, s.Ticks) {
		return fmt.Errorf("stop server %s: %w", id, err)
	}
	return nil
}

func ignoreGone(err error) error {
	if errors.Is(err, errGone) {
		return nil
	}
	return err
}

// initOf reads which init the server was created with.
func (r *Runtime) initOf(id string) initSystem {
	var spec struct {
		Annotations map[string]string `json:"annotations"`
	}
	b, err := os.ReadFile(filepath.Join(r.bundle(id), "config.json"))
	if err == nil {
		err = json.Unmarshal(b, &spec)
	}
	if err != nil {
		r.cfg.Log.Error("read configuration of a server; it is asked to end by SIGTERM", "server", id, "error", err)
	}
	return initSystem(spec.Annotations[initAnnotation])
}

// Delete kills what is left and forgets the server; see vserver.Runtime. Its group goes
// too: the limits edge makes it again before the next Create. The console log stays until
// RemoveConsoleLog.
func (r *Runtime) Delete(ctx context.Context, id string) error {
	if !console.ValidID(id) {
		return fault.New(fault.Invalid, "delete server: %q is not an id", id)
	}
	defer r.locks.lock(id)()
	return r.delete(ctx, id)
}

func (r *Runtime) delete(ctx context.Context, id string) error {
	s, _, err := r.inspect(id)
	known := err == nil
	if err != nil && !fault.Is(err, fault.NotFound) {
		return err
	}
	if known {
		if err := kill(ctx, s); err != nil {
			return fmt.Errorf("kill server %s: %w", id, err)
		}
	}
	if _, err := os.Stat(filepath.Join(r.cfg.Root, id)); err == nil {
		if err := r.runc.Delete(ctx, id, &runc.DeleteOpts{Force: true}); err != nil {
			return fmt.Errorf("delete server %s: %w", id, err)
		}
	}
	if err := r.consoles.Forget(ctx, id); err != nil {
		return fmt.Errorf("forget console of server %s: %w", id, err)
	}
	if err := os.RemoveAll(r.bundle(id)); err != nil {
		return fmt.Errorf("remove bundle of server %s: %w", id, err)
	}
	r.states.forget(id)
	return nil
}

// frozenAfter is how long a killed process may take to end before we look whether its
// group is frozen: frozen tasks of v1 do not die.
const frozenAfter = 200 * time.Millisecond

// kill ends a server's init, and with it everything in its pid namespace.
func kill(ctx context.Context, s runState) error {
	p, err := openProcess(s.Pid, s.Ticks)
	if errors.Is(err, errGone) {
		return nil
	}
	if err != nil {
		return err
	}
	defer p.Close()
	if err := p.signal(unix.SIGKILL); err != nil {
		return ignoreGone(err)
	}
	defer reap(s.Pid)
	soon, cancel := context.WithTimeout(ctx, frozenAfter)
	defer cancel()
	if p.wait(soon) == nil {
		return nil
	}
	if s.Freezer != "" {
		for file, thaw := range map[string]string{"freezer.state": "THAWED", "cgroup.freeze": "0"} {
			if f, err := os.OpenFile(filepath.Join(s.Freezer, file), os.O_WRONLY, 0); err == nil {
				_, _ = f.WriteString(thaw)
				_ = f.Close()
			}
		}
	}
	return p.wait(ctx)
}

// Wait returns when the server's init has ended; see vserver.Runtime. fault.NotFound: the
// runtime does not know the server.
func (r *Runtime) Wait(ctx context.Context, id string) error {
	s, status, err := r.inspect(id)
	if err != nil || status == vserver.RunStopped {
		return err
	}
	p, err := openProcess(s.Pid, s.Ticks)
	if err != nil {
		return ignoreGone(err)
	}
	defer p.Close()
	if err := p.wait(ctx); err != nil {
		return err
	}
	if rebooted(s.Pid) {
		return vserver.ErrRebooted
	}
	return nil
}

// Console joins the server's console; see vserver.Commands. fault.NotFound: it has none,
// because it does not run or because agent and console keeper died in the same moment.
func (r *Runtime) Console(ctx context.Context, id string, rw io.ReadWriter) error {
	return r.consoles.Join(ctx, id, rw)
}

// ResizeConsole tells the server's console how large the terminal of the person is.
func (r *Runtime) ResizeConsole(ctx context.Context, id string, rows, columns uint16) error {
	return r.consoles.Resize(ctx, id, rows, columns)
}

// ConsoleLog opens what the console printed, up to now; see vserver.Commands. At most
// 2 MiB are kept. It is empty for a server that never ran.
func (r *Runtime) ConsoleLog(_ context.Context, id string) (io.ReadCloser, error) {
	if !console.ValidID(id) {
		return nil, fault.New(fault.Invalid, "open console log: %q is not an id", id)
	}
	return console.OpenLog(r.logDir(), id)
}

// RemoveConsoleLog deletes the log of a server that is gone for good.
func (r *Runtime) RemoveConsoleLog(id string) error {
	if !console.ValidID(id) {
		return fault.New(fault.Invalid, "remove console log: %q is not an id", id)
	}
	return console.RemoveLog(r.logDir(), id)
}
