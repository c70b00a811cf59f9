//go:build linux && root

package postgres

import (
	"bytes"
	"context"
	"crypto/rand"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/hashicorp/go-hclog"
	"golang.org/x/sys/unix"

	"github.com/reflejo/terraform-provider-reflejo/agent/cgroup"
	"github.com/reflejo/terraform-provider-reflejo/agent/database"
	"github.com/reflejo/terraform-provider-reflejo/agent/guard"
	"github.com/reflejo/terraform-provider-reflejo/agent/oci"
	"github.com/reflejo/terraform-provider-reflejo/agent/testbed"
	"github.com/reflejo/terraform-provider-reflejo/agent/vserver"
)

// world is a server with real PostgreSQL, and a client's machine beside it.
type world struct {
	t       testing.TB
	dir     string
	bin     string
	runtime *oci.Runtime
	limits  *cgroup.Manager
	server  string
	pid     int
	*Manager
}

const (
	serverAddress = "198.18.7.1"
	clientAddress = "198.18.7.2"
)

func newWorld(t testing.TB) *world {
	t.Helper()
	dir := t.TempDir()
	for d := dir; d != filepath.Clean(os.TempDir()) && d != "/"; d = filepath.Dir(d) {
		if err := os.Chmod(d, 0o711); err != nil { // the server's users walk through
			t.Fatal(err)
		}
	}
	w := &world{t: t, dir: dir, bin: filepath.Join(dir, "reflejo"), server: uuid.NewString()}
	build := exec.Command("go", "build", "-o", w.bin, "github.com/reflejo/terraform-provider-reflejo/agent")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	w.must(build.CombinedOutput())
	parent := "reflejo-pg-" + strings.ToLower(rand.Text()[:8])
	var err error
	if w.limits, err = cgroup.Open(cgroup.Config{Parent: parent}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := w.limits.Destroy(context.Background()); err != nil {
			t.Error(err)
		}
	})
	w.openRuntime()
	ids := vserver.IDRange{First: 1<<29 + uint32(os.Getpid()%4096)<<16, Size: vserver.IDsPerServer}
	w.root(ids)
	ctx := t.Context()
	if err := w.limits.Set(ctx, w.server, vserver.LimitSet{CPU: vserver.CPU{Weight: 100}, Memory: vserver.Memory{Max: 2 << 30}, Processes: 4096, IDs: ids}); err != nil {
		t.Fatal(err)
	}
	w.pid, err = w.runtime.Create(ctx, vserver.Container{ID: w.server, Name: "db", Hostname: "db", Rootfs: filepath.Join(dir, "rootfs"), IDs: ids})
	if err != nil {
		t.Fatal(err)
	}
	w.network()
	if err := w.runtime.Start(ctx, w.server); err != nil {
		t.Fatal(err)
	}
	w.open()
	return w
}

func (w *world) must(out []byte, err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatalf("%v\n%s", err, out)
	}
}

func (w *world) sh(script string) {
	w.t.Helper()
	w.must(exec.Command("/bin/sh", "-ec", script).CombinedOutput())
}

// openRuntime makes the runtime edge, whose keeper is ended with the test.
func (w *world) openRuntime() {
	w.t.Helper()
	run := filepath.Join(w.dir, "run")
	runtime, err := oci.Open(w.t.Context(), oci.Config{
		Runc: "runc", Root: filepath.Join(w.dir, "runc"), RunDir: run, StateDir: filepath.Join(w.dir, "state"),
		CgroupPath: w.limits.Path, InitBinary: w.bin, Log: w.log(),
	})
	if err != nil {
		w.t.Fatal(err)
	}
	w.runtime = runtime
	w.t.Cleanup(func() {
		if err := runtime.Delete(context.Background(), w.server); err != nil {
			w.t.Error(err)
		}
		for _, p := range processesWith("console-keeper\x00-dir\x00" + filepath.Join(run, "console") + "\x00") {
			_ = syscall.Kill(p, syscall.SIGKILL)
		}
		_ = runtime.Close()
	})
}

// processesWith lists the processes whose command line has this text.
func processesWith(text string) (pids []int) {
	all, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, f := range all {
		if b, err := os.ReadFile(f); err == nil && bytes.Contains(b, []byte(text)) {
			var pid int
			if _, err := fmt.Sscanf(f, "/proc/%d/", &pid); err == nil {
				pids = append(pids, pid)
			}
		}
	}
	return pids
}

// root unpacks the image and mounts it with the server's ids.
func (w *world) root(ids vserver.IDRange) {
	w.t.Helper()
	image, err := testbed.Debian.File(w.t.Context())
	if err != nil {
		w.t.Fatal(err)
	}
	from, to := filepath.Join(w.dir, "image"), filepath.Join(w.dir, "rootfs")
	w.sh(fmt.Sprintf("mkdir -m 755 %[1]s; mkdir -m 711 %[2]s; zstd -dc %[3]s | tar -C %[1]s --numeric-owner --xattrs --exclude='./dev/*' -xf -", from, to, image))
	holder := exec.Command("sleep", "600")
	m := []syscall.SysProcIDMap{{ContainerID: 0, HostID: int(ids.First), Size: int(ids.Size)}}
	holder.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWUSER, UidMappings: m, GidMappings: m}
	if err := holder.Start(); err != nil {
		w.t.Fatal(err)
	}
	defer func() { _, _ = holder.Process.Kill(), holder.Wait() }()
	ns, err := os.Open(fmt.Sprintf("/proc/%d/ns/user", holder.Process.Pid))
	if err != nil {
		w.t.Fatal(err)
	}
	defer ns.Close()
	tree, err := unix.OpenTree(unix.AT_FDCWD, from, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		w.t.Fatal(err)
	}
	defer unix.Close(tree)
	if err := unix.MountSetattr(tree, "", unix.AT_EMPTY_PATH, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_IDMAP, Userns_fd: uint64(ns.Fd())}); err != nil {
		w.t.Fatal(err)
	}
	if err := unix.MoveMount(tree, "", unix.AT_FDCWD, to, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() {
		for deadline := time.Now().Add(10 * time.Second); unix.Unmount(to, 0) != nil; time.Sleep(10 * time.Millisecond) {
			if time.Now().After(deadline) {
				w.t.Error("the server's root is still in use")
				_ = unix.Unmount(to, unix.MNT_DETACH)
				return
			}
		}
	})
}

// network connects the server with a client's machine, which is a network namespace.
func (w *world) network() {
	w.t.Helper()
	client := w.client()
	w.sh(fmt.Sprintf(`ip netns add %[1]s
ip -n %[1]s link add eth0 type veth peer name veth1
ip -n %[1]s link set veth1 netns %[2]d
ip -n %[1]s addr add %[3]s/24 dev eth0; ip -n %[1]s link set eth0 up; ip -n %[1]s link set lo up
nsenter -t %[2]d -n ip link set veth1 name eth0
nsenter -t %[2]d -n ip addr add %[4]s/24 dev eth0; nsenter -t %[2]d -n ip link set eth0 up; nsenter -t %[2]d -n ip link set lo up`,
		client, w.pid, clientAddress, serverAddress))
	w.t.Cleanup(func() { w.sh("ip netns del " + client) })
}

func (w *world) client() string { return "pg-" + w.server[:8] }

// open is an agent's start: nothing of an earlier one is in memory.
func (w *world) open() {
	w.t.Helper()
	groups, err := w.limits.Beside()
	if err != nil {
		w.t.Fatal(err)
	}
	w.Manager, err = Open(Config{
		RunDir: filepath.Join(w.dir, "databases"), StateDir: filepath.Join(w.dir, "state", "databases"), Servers: w.runtime,
		Guard: []string{w.bin, "guard"}, Groups: groups, Addresses: []string{serverAddress}, Log: w.log(),
	})
	if err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) log() hclog.Logger {
	return hclog.New(&hclog.LoggerOptions{Output: writer{w.t}, Level: hclog.Info})
}

type writer struct{ t testing.TB }

func (w writer) Write(p []byte) (int, error) {
	if w.t.Context().Err() == nil {
		w.t.Log(strings.TrimSpace(string(p)))
	}
	return len(p), nil
}

const password = "it's \\ a p@ssword"

// cluster is one in the server, with an owner whose password is known.
func (w *world) cluster(name string, port int) database.Cluster {
	w.t.Helper()
	secret, err := Secret(password)
	if err != nil {
		w.t.Fatal(err)
	}
	c := database.Cluster{ID: uuid.NewString(), Name: name, Server: w.server, Major: 15, Port: port, Owner: "app", Secret: secret, Admin: rand.Text(),
		Parameters: map[string]string{"shared_buffers": "16MB", "work_mem": "1MB"},
		Clients:    database.Clients{CIDRs: []netip.Prefix{netip.MustParsePrefix("198.18.0.0/15")}, TLS: database.TLSRequire}}
	w.t.Cleanup(func() {
		if err := w.Remove(context.Background(), c); err != nil {
			w.t.Error(err)
		}
	})
	return c
}

// made is a cluster that runs.
func (w *world) made(name string, port int) database.Cluster {
	w.t.Helper()
	c := w.cluster(name, port)
	var err error
	if c.Identity, err = w.Create(w.t.Context(), c); err != nil {
		w.t.Fatal(err)
	}
	w.run(c)
	return c
}

func (w *world) run(c database.Cluster) {
	w.t.Helper()
	if _, err := w.Run(w.t.Context(), c); err != nil {
		w.t.Fatal(err)
	}
	if err := w.Grant(w.t.Context(), c); err != nil {
		w.t.Fatal(err)
	}
}

// psql is a client's: from elsewhere, over TCP.
func (w *world) psql(c database.Cluster, options, sql string) (string, error) {
	w.t.Helper()
	uri := fmt.Sprintf("host=%s port=%d dbname=%s user=%s connect_timeout=5 %s", serverAddress, c.Port, c.Name, c.Owner, options)
	out, err := w.onClient("psql", "-XAtq", "-v", "ON_ERROR_STOP=1", "-d", uri, "-c", sql).CombinedOutput()
	return strings.TrimSpace(string(out)), err
}

// onClient is a program on the client's machine.
func (w *world) onClient(argv ...string) *exec.Cmd {
	cmd := exec.Command("ip", append([]string{"netns", "exec", w.client()}, argv...)...)
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "PGPASSWORD=" + password, "HOME=/nonexistent", "LC_ALL=C"}
	return cmd
}

// state is what the guard says.
func (w *world) state(c database.Cluster) guard.State {
	w.t.Helper()
	s, err := w.guard(w.cfg.layout(c)).State(w.t.Context())
	if err != nil {
		w.t.Fatal(err)
	}
	return s
}

// guardPID is the guard of what runs.
func (w *world) guardPID(c database.Cluster) (pid int) {
	w.t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", w.state(c).PID))
	if err != nil {
		w.t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(b), "\nPPid:")
	if _, err := fmt.Sscan(rest, &pid); err != nil {
		w.t.Fatal(err)
	}
	return pid
}

// load is 4 backends that commit all the time, until the database's end. end waits for that
// and returns how many commits were acknowledged.
func (w *world) load(c database.Cluster) (end func() int) {
	w.t.Helper()
	logs, err := os.MkdirTemp(w.dir, "load")
	if err != nil {
		w.t.Fatal(err)
	}
	script := filepath.Join(w.dir, "commit.sql")
	if err := os.WriteFile(script, []byte("INSERT INTO load(at) VALUES (clock_timestamp());\n"), 0o644); err != nil {
		w.t.Fatal(err)
	}
	cmd := w.onClient("pgbench", "-n", "-l", "--log-prefix", filepath.Join(logs, "acked"), "-c", "4", "-T", "600", "-f", script, "-h", serverAddress, "-p", fmt.Sprint(c.Port), "-U", c.Owner, c.Name)
	if err := cmd.Start(); err != nil {
		w.t.Fatal(err)
	}
	for deadline := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
		out, err := w.psql(c, "", "SELECT count(*) FROM load WHERE at > clock_timestamp() - interval '1 s'")
		if n, _ := strconv.Atoi(out); err == nil && n > 50 {
			break
		}
		if time.Now().After(deadline) {
			w.t.Fatal("the load does not begin: ", out)
		}
	}
	return func() (acked int) {
		_ = cmd.Wait() // fails, as its connections have
		files, _ := filepath.Glob(filepath.Join(logs, "acked*"))
		for _, f := range files {
			b, err := os.ReadFile(f)
			if err != nil {
				w.t.Fatal(err)
			}
			acked += bytes.Count(b, []byte("\n"))
		}
		return acked
	}
}

const patience = time.Minute

// gone is how long it takes from end until nothing of the database is left: the kernel
// reports the end of a pid namespace's first process after all others'.
func (w *world) gone(c database.Cluster, end func()) time.Duration {
	w.t.Helper()
	pid := w.state(c).PID
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		w.t.Fatal(err)
	}
	defer unix.Close(fd)
	began := time.Now()
	end()
	fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	for {
		n, err := unix.Poll(fds, int(patience/time.Millisecond))
		if err == unix.EINTR {
			continue
		}
		if err != nil || n == 0 {
			w.t.Fatal("it does not end: ", err)
		}
		return time.Since(began)
	}
}
