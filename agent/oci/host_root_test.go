//go:build linux && root

package oci

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/hashicorp/go-hclog"
	"golang.org/x/sys/unix"

	"github.com/reflejo/terraform-provider-reflejo/agent/vserver"
)

// testHost is one agent's runtime edge with directories and a cgroup parent of its own.
type testHost struct {
	*Runtime
	dir    string
	parent string // cgroup parent
	cfg    Config
}

// reflejoBinary is the program that servers' own init is part of, built once; or, on a machine
// without Go, the file that REFLEJO_TEST_BINARY names.
var reflejoBinary = sync.OnceValues(func() (string, error) {
	if built := os.Getenv(testBinary); built != "" {
		return built, nil
	}
	dir, err := os.MkdirTemp("", "reflejo-oci-bin")
	if err != nil {
		return "", err
	}
	out := filepath.Join(dir, "reflejo")
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", out, "./testdata/reflejo")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if b, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("%w: %s", err, b)
	}
	return out, os.Chmod(dir, 0o755)
})

const testBinary = "REFLEJO_TEST_BINARY"

func TestMain(m *testing.M) {
	code := m.Run()
	if bin, err := reflejoBinary(); err == nil && os.Getenv(testBinary) == "" {
		_ = os.RemoveAll(filepath.Dir(bin))
	}
	os.Exit(code)
}

// newHost makes a runtime edge; lxcfs is run for it only where a test asks for it.
func newHost(t testing.TB, lxcfs string) *testHost {
	t.Helper()
	bin, err := reflejoBinary()
	if err != nil {
		t.Fatal("build reflejo for tests:", err)
	}
	dir := worldReachable(t)
	h := &testHost{dir: dir, parent: "/reflejo-oci-" + strings.ToLower(rand.Text())}
	h.cfg = Config{
		Runc: "runc", Root: filepath.Join(dir, "runc"), RunDir: filepath.Join(dir, "run"), StateDir: filepath.Join(dir, "state"),
		CgroupPath: func(id string) string { return h.parent + "/" + id }, InitBinary: bin, Lxcfs: lxcfs,
		Log: hclog.New(&hclog.LoggerOptions{Output: testWriter{t}, Level: hclog.Debug}),
	}
	h.Runtime, err = Open(context.Background(), h.cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { h.cleanUp(t) })
	return h
}

// reopen is a new agent's start: all that a killed one knew is gone.
func (h *testHost) reopen(t testing.TB) {
	t.Helper()
	if err := h.Runtime.Close(); err != nil {
		t.Fatal(err)
	}
	var err error
	if h.Runtime, err = Open(context.Background(), h.cfg); err != nil {
		t.Fatal(err)
	}
}

func (h *testHost) cleanUp(t testing.TB) {
	ctx := context.Background()
	all, err := h.List(ctx)
	if err != nil {
		t.Error(err)
	}
	for _, s := range all {
		if err := h.Delete(ctx, s.ID); err != nil {
			t.Error(err)
		}
	}
	if h.view != nil {
		if p := h.view.find(); p != nil {
			_ = p.signal(unix.SIGKILL)
			_ = p.wait(ctx)
			p.Close()
		}
		for unix.Unmount(h.view.dir, unix.MNT_DETACH) == nil {
		}
	}
	if p := h.keeper(t); p != nil {
		_ = p.Kill()
		_, _ = p.Wait()
	}
	_ = h.Close()
	groups, _ := filepath.Glob("/sys/fs/cgroup/*" + h.parent)
	for _, g := range append(groups, "/sys/fs/cgroup"+h.parent) {
		sub, _ := filepath.Glob(g + "/*/")
		for _, s := range sub {
			_ = os.Remove(s)
		}
		_ = os.Remove(g)
	}
}

// keeper finds this host's console keeper by its arguments.
func (h *testHost) keeper(t testing.TB) *os.Process {
	t.Helper()
	lines, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range lines {
		b, err := os.ReadFile(l)
		if err == nil && bytes.Contains(b, []byte("console-keeper\x00")) && bytes.Contains(b, []byte(filepath.Join(h.cfg.RunDir, "console")+"\x00")) {
			var pid int
			_, _ = fmt.Sscanf(l, "/proc/%d/", &pid)
			p, err := os.FindProcess(pid)
			if err == nil {
				return p
			}
		}
	}
	return nil
}

type testWriter struct{ t testing.TB }

func (w testWriter) Write(p []byte) (int, error) {
	if w.t.Context().Err() == nil { // after the end a log line would be a panic
		w.t.Log(strings.TrimSpace(string(p)))
	}
	return len(p), nil
}

// worldReachable is a temporary directory that any user may walk into.
func worldReachable(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	for d := dir; d != filepath.Clean(os.TempDir()) && d != "/"; d = filepath.Dir(d) {
		if err := os.Chmod(d, 0o711); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// newRange is a random range of host ids far away from anybody's.
func newRange(t testing.TB) vserver.IDRange {
	t.Helper()
	n, err := rand.Int(rand.Reader, big.NewInt(10_000))
	if err != nil {
		t.Fatal(err)
	}
	return vserver.IDRange{First: uint32(1<<29 + n.Int64()*65536), Size: 65536}
}

// busyboxRoot is a root directory with BusyBox alone, owned by root as on a disk.
func busyboxRoot(t testing.TB, dir string) string {
	t.Helper()
	root := filepath.Join(dir, "root-"+uuid.NewString())
	for _, d := range []string{"bin", "dev", "etc", "proc", "root", "run", "sbin", "sys", "tmp", "usr/bin", "var/lib"} {
		if err := os.MkdirAll(filepath.Join(root, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	b, err := os.ReadFile("/bin/busybox")
	if err != nil {
		t.Fatal("install busybox-static:", err)
	}
	if err := os.WriteFile(filepath.Join(root, "bin/busybox"), b, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, name := range strings.Fields("sh cat echo false true sleep id ls mount umount mknod ps env pwd kill stty readlink mkdir nproc free uptime hostname insmod chroot dd grep head touch rm date test printf tty swapon dmesg find ln wc") {
		if err := os.Symlink("busybox", filepath.Join(root, "bin", name)); err != nil {
			t.Fatal(err)
		}
	}
	write(t, filepath.Join(root, "etc/passwd"), "root:x:0:0:root:/root:/bin/sh\nann:x:1000:1000::/home/ann:/bin/sh\n")
	write(t, filepath.Join(root, "etc/group"), "root:x:0:\nann:x:1000:\nteam:x:2000:bob,ann\n")
	return root
}

func write(t testing.TB, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// newContainer makes a server of root with an idmapped mount, as the disk edge would.
func (h *testHost) newContainer(t testing.TB, root string) vserver.Container {
	t.Helper()
	id := uuid.NewString()
	c := vserver.Container{ID: id, Name: "web", Hostname: "web", IDs: newRange(t), Rootfs: filepath.Join(h.dir, "mnt-"+id)}
	if err := os.Mkdir(c.Rootfs, 0o711); err != nil {
		t.Fatal(err)
	}
	if err := idmap(root, c.Rootfs, c.IDs); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := h.Delete(context.Background(), id); err != nil {
			t.Error(err)
		}
		if err := unix.Unmount(c.Rootfs, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return c
}

// idmap mounts from at to, with ids shifted.
func idmap(from, to string, ids vserver.IDRange) error {
	cmd := exec.Command("sleep", "60")
	m := []syscall.SysProcIDMap{{ContainerID: 0, HostID: int(ids.First), Size: int(ids.Size)}}
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWUSER, UidMappings: m, GidMappings: m}
	if err := cmd.Start(); err != nil {
		return err
	}
	defer func() { _, _ = cmd.Process.Kill(), cmd.Wait() }()
	ns, err := os.Open(fmt.Sprintf("/proc/%d/ns/user", cmd.Process.Pid))
	if err != nil {
		return err
	}
	defer ns.Close()
	tree, err := unix.OpenTree(unix.AT_FDCWD, from, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return err
	}
	defer unix.Close(tree)
	if err := unix.MountSetattr(tree, "", unix.AT_EMPTY_PATH, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_IDMAP, Userns_fd: uint64(ns.Fd())}); err != nil {
		return err
	}
	return unix.MoveMount(tree, "", unix.AT_FDCWD, to, unix.MOVE_MOUNT_F_EMPTY_PATH)
}

// run creates and starts a server.
func (h *testHost) run(t testing.TB, c vserver.Container) int {
	t.Helper()
	pid, err := h.Create(context.Background(), c)
	if err != nil {
		t.Fatal(err)
	}
	if err := h.Start(context.Background(), c.ID); err != nil {
		t.Fatal(err)
	}
	return pid
}

// sh runs a script in a server; it returns everything it wrote and its exit code.
func (h *testHost) sh(t testing.TB, id, script string) (string, int) {
	t.Helper()
	var out bytes.Buffer
	code, err := h.Exec(context.Background(), id, vserver.Command{Argv: []string{"/bin/sh", "-c", script}, Stdout: &out, Stderr: &out})
	if err != nil {
		t.Fatal(err)
	}
	return out.String(), code
}

// eventually polls until check returns nil.
func eventually(t testing.TB, limit time.Duration, check func() error) {
	t.Helper()
	deadline := time.Now().Add(limit)
	for {
		err := check()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// logHas waits until the console log of id contains text.
func (h *testHost) logHas(t testing.TB, id, text string, limit time.Duration) {
	t.Helper()
	eventually(t, limit, func() error {
		b, err := readLog(h, id)
		if err == nil && !strings.Contains(b, text) {
			err = fmt.Errorf("the console log of %d bytes has no %q; it ends in %q", len(b), text, b[max(0, len(b)-1000):])
		}
		return err
	})
}

func readLog(h *testHost, id string) (string, error) {
	r, err := h.ConsoleLog(context.Background(), id)
	if err != nil {
		return "", err
	}
	var b bytes.Buffer
	_, err = b.ReadFrom(r)
	return b.String(), errors.Join(err, r.Close())
}

func mkfifo(path string) error { return unix.Mkfifo(path, 0o644) }

func mknodNull(path string) error { return unix.Mknod(path, unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))) }
