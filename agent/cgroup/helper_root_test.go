//go:build linux && root

package cgroup

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/reflejo/terraform-provider-reflejo/agent/vserver"
	"golang.org/x/sys/unix"
)

// helperEnv makes this test binary act as a program inside a server.
const helperEnv = "REFLEJO_CGROUP_TEST_HELPER"

func TestMain(m *testing.M) {
	if mode, ok := os.LookupEnv(helperEnv); ok {
		help(mode)
		return
	}
	os.Exit(m.Run())
}

// help runs one of the helper programs until its standard input ends.
func help(mode string) {
	kind, arg, _ := strings.Cut(mode, " ")
	n, _ := strconv.Atoi(arg)
	switch kind {
	case "hold":
		mem, err := unix.Mmap(-1, 0, max(n, 1), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
		if err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		for i := 0; i < n; i += 4096 {
			mem[i] = 1
		}
	case "burn":
		for range n {
			go func() {
				for i := 0; ; i++ {
					runtime.KeepAlive(i) // work, so that it is no empty loop
				}
			}()
		}
	}
	fmt.Println("ready")
	_, _ = io.Copy(io.Discard, os.Stdin)
}

// testManager is a manager of its own tree that is removed at the end.
func testManager(t *testing.T) *Manager {
	t.Helper()
	m, err := Open(Config{Parent: "reflejo-test-" + uuid.NewString()[:8]})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if err := m.Destroy(ctx); err != nil {
			t.Error(err)
		}
	})
	return m
}

// testServer makes a server's group.
func testServer(t *testing.T, m *Manager, want vserver.LimitSet) string {
	t.Helper()
	id := uuid.NewString()
	if err := m.Set(t.Context(), id, want); err != nil {
		t.Fatal(err)
	}
	return id
}

// program is a process in a server.
type program struct {
	cmd    *exec.Cmd
	stdin  io.Closer
	stdout *bufio.Reader
	ended  chan struct{} // closed when it has
}

// start runs argv in the server; it is in the group before argv begins.
func start(t *testing.T, m *Manager, id string, env []string, argv ...string) *program {
	t.Helper()
	cmd := exec.Command("/bin/sh", append([]string{"-c", `read _; echo 0 > /proc/self/oom_score_adj; exec "$@"`, "sh"}, argv...)...)
	cmd.Env = append(os.Environ(), env...)
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stdout = w
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	w.Close()
	p := &program{cmd: cmd, stdin: in, stdout: bufio.NewReader(out), ended: make(chan struct{})}
	go func() { _ = cmd.Wait(); close(p.ended) }()
	t.Cleanup(func() {
		in.Close()
		_ = cmd.Process.Kill()
		// Frozen ones die when Destroy has thawed them; the kernel keeps the rest of the order.
		_ = m.Kill(context.Background(), id)
		<-p.ended
		out.Close()
	})
	if err := m.Join(id, cmd.Process.Pid); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(in, "go\n"); err != nil {
		t.Fatal(err)
	}
	return p
}

// help starts this binary as a helper in the server. wait is for its "ready".
func helper(t *testing.T, m *Manager, id, mode string, wait bool) *program {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	p := start(t, m, id, []string{helperEnv + "=" + mode}, self)
	if wait {
		if line, err := p.stdout.ReadString('\n'); err != nil || line != "ready\n" {
			t.Fatalf("helper %s said %q, %v", mode, line, err)
		}
	}
	return p
}

// eventually polls until ok, or fails the test after a generous while.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(60 * time.Second); !ok(); {
		if time.Now().After(deadline) {
			t.Fatalf("timed out: %s", what)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func usage(t *testing.T, m *Manager, id string) vserver.Usage {
	t.Helper()
	u, err := m.Usage(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	return u
}

// control reads a server's control file: name on v2, hierarchy/name on v1.
func control(t *testing.T, m *Manager, id, v1Hierarchy, file string) string {
	t.Helper()
	name := filepath.Join(m.cfg.Parent, id, file)
	if !m.Unified() {
		name = filepath.Join(v1Hierarchy, name)
	}
	s, err := m.tree.read(name)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(s)
}

// loopDevice attaches a new sparse file of this size.
func loopDevice(t *testing.T, size int64) (device string, major, minor uint32) {
	t.Helper()
	file, err := os.Create(filepath.Join(t.TempDir(), "disk"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if err := file.Truncate(size); err != nil {
		t.Fatal(err)
	}
	ctl, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer ctl.Close()
	for {
		n, err := unix.IoctlRetInt(int(ctl.Fd()), unix.LOOP_CTL_GET_FREE)
		if err != nil {
			t.Fatal(err)
		}
		device = fmt.Sprintf("/dev/loop%d", n)
		dev, err := os.OpenFile(device, os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		err = unix.IoctlLoopConfigure(int(dev.Fd()), &unix.LoopConfig{Fd: uint32(file.Fd())})
		if errors.Is(err, unix.EBUSY) {
			dev.Close() // somebody else was quicker
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if _, err := unix.IoctlRetInt(int(dev.Fd()), unix.LOOP_CLR_FD); err != nil {
				t.Error(err)
			}
			dev.Close()
		})
		var st unix.Stat_t
		if err := unix.Fstat(int(dev.Fd()), &st); err != nil {
			t.Fatal(err)
		}
		return device, unix.Major(st.Rdev), unix.Minor(st.Rdev)
	}
}
