package console

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
)

// TestMain lets the test's own program be the keeper.
func TestMain(m *testing.M) {
	if len(os.Args) == 4 && os.Args[1] == "console-keeper" {
		if err := Serve(context.Background(), os.Args[2], os.Args[3]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

type testKeeper struct {
	*Client
	cfg Config
}

func newTestKeeper(t *testing.T) *testKeeper {
	t.Helper()
	dir := filepath.Join(t.TempDir(), strings.Repeat("long", 20)) // too long for a socket address
	k := &testKeeper{cfg: Config{Dir: filepath.Join(dir, "run"), LogDir: filepath.Join(dir, "log")}}
	k.cfg.Argv = []string{os.Args[0], "console-keeper", k.cfg.Dir, k.cfg.LogDir}
	var err error
	if k.Client, err = Open(t.Context(), k.cfg); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if pid := k.pid(t); pid != 0 {
			_ = unix.Kill(pid, unix.SIGKILL)
		}
		_ = k.Close()
	})
	return k
}

// pid is the keeper that answers, 0 if none does.
func (k *testKeeper) pid(t *testing.T) int {
	t.Helper()
	conn, err := dial(context.Background(), k.dir, socketName)
	if err != nil {
		return 0
	}
	defer func() { _ = conn.Close() }()
	pid, err := peer(conn)
	if err != nil {
		t.Fatal(err)
	}
	return pid
}

// server opens a terminal and hands its master over, as a runtime does.
func (k *testKeeper) server(t *testing.T, id string) (slave *os.File) {
	t.Helper()
	path, err := k.Expect(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = master.Close() }()
	n := 0
	if err := control(master, func(fd int) error {
		var err error
		if n, err = unix.IoctlGetInt(fd, unix.TIOCGPTN); err != nil {
			return err
		}
		return unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0)
	}); err != nil {
		t.Fatal(err)
	}
	if slave, err = os.OpenFile("/dev/pts/"+strconv.Itoa(n), os.O_RDWR|unix.O_NOCTTY, 0); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = slave.Close() })
	conn, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	if err := sendFile(conn.(*net.UnixConn), []byte("/dev/ptmx"), master); err != nil {
		t.Fatal(err)
	}
	if err := k.Accept(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	return slave
}

func (k *testKeeper) waitLog(t *testing.T, id, want string) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		got := readAll(t, k.cfg.LogDir, id)
		if strings.Contains(got, want) {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("no %q in the log %q", want, got)
		}
	}
}

func TestKeeperOutlivesAgentAndAgentOutlivesKeeper(t *testing.T) {
	k := newTestKeeper(t)
	a, b := k.server(t, "a"), k.server(t, "b")
	_, _ = a.WriteString("first\n")
	k.waitLog(t, "a", "first")

	if err := k.Close(); err != nil { // the agent ends and another one starts
		t.Fatal(err)
	}
	var err error
	if k.Client, err = Open(t.Context(), k.cfg); err != nil {
		t.Fatal(err)
	}
	_, _ = a.WriteString("second\n")
	k.waitLog(t, "a", "second")

	ctx, cancel := context.WithCancel(t.Context())
	watching := make(chan error, 1)
	go func() { watching <- k.Watch(ctx) }()
	old := k.pid(t)
	if err := unix.Kill(old, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	_, aerr := a.WriteString("third\n") // waits in the kernel for the next keeper
	_, berr := b.WriteString("third\n")
	if err := errors.Join(aerr, berr); err != nil {
		t.Fatal("the terminal was hung up:", err)
	}
	k.waitLog(t, "a", "third")
	k.waitLog(t, "b", "third")
	if pid := k.pid(t); pid == old || pid == 0 {
		t.Errorf("the keeper is %d, the dead one was %d", pid, old)
	}
	cancel()
	if err := <-watching; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

// Whoever starts the next keeper, it gets the terminals.
func TestKeeperStartedByAnother(t *testing.T) {
	k := newTestKeeper(t)
	a := k.server(t, "a")
	if err := unix.Kill(k.pid(t), unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	for k.pid(t) != 0 { // until it has ended
		time.Sleep(time.Millisecond)
	}
	other, err := Open(t.Context(), k.cfg) // starts the next
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = other.Close() }()
	ctx, cancel := context.WithCancel(t.Context())
	watching := make(chan error, 1)
	go func() { watching <- k.Watch(ctx) }()
	defer func() { cancel(); <-watching }()
	if _, err := a.WriteString("kept\n"); err != nil {
		t.Fatal(err)
	}
	k.waitLog(t, "a", "kept")
}

func TestKeeperKnowsNoOthers(t *testing.T) {
	k := newTestKeeper(t)
	if err := k.Join(t.Context(), "none", nil); !fault.Is(err, fault.NotFound) {
		t.Error(err)
	}
	if err := k.Resize(t.Context(), "none", 1, 1); !fault.Is(err, fault.NotFound) {
		t.Error(err)
	}
	if err := k.Forget(t.Context(), "none"); err != nil {
		t.Error(err)
	}
	for _, junk := range []string{"", "\n", "{}\n", `{"op":"expect","id":"../x"}` + "\n", strings.Repeat("x", 1<<17)} {
		conn, err := dial(t.Context(), k.dir, socketName)
		if err != nil {
			t.Fatal(err)
		}
		_ = conn.SetDeadline(time.Now().Add(20 * time.Second))
		_, _ = conn.Write([]byte(junk))
		_ = conn.CloseWrite()
		if b, err := io.ReadAll(conn); len(b) > 0 {
			t.Errorf("%q was answered with %q, %v", junk, b, err)
		}
		_ = conn.Close()
	}
	if ids, err := k.List(t.Context()); err != nil || len(ids) != 0 {
		t.Error(ids, err)
	}
}

func TestForgetHangsUp(t *testing.T) {
	k := newTestKeeper(t)
	a := k.server(t, "a")
	if err := k.Forget(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		if _, err := a.WriteString("x"); err != nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal("the terminal is still open")
		}
	}
}

func TestManyTerminals(t *testing.T) {
	k := newTestKeeper(t)
	const servers = 300
	for i := range servers {
		id := fmt.Sprintf("s%d", i)
		s := k.server(t, id)
		if _, err := fmt.Fprintf(s, "I am %s.\n", id); err != nil {
			t.Fatal(err)
		}
	}
	for i := range servers {
		k.waitLog(t, fmt.Sprintf("s%d", i), fmt.Sprintf("I am s%d.", i))
	}
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", k.pid(t)))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if strings.HasPrefix(line, "VmRSS") || strings.HasPrefix(line, "Threads") {
			t.Log(servers, "terminals:", strings.TrimSpace(line))
		}
	}
}
