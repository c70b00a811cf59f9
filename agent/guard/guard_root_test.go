//go:build linux && root

package guard

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
)

// This program is the guard, what it runs in the "server", and the way there: a server is
// not needed for what is shown here.
func TestMain(m *testing.M) {
	if code, done := RunInside(os.Args); done {
		os.Exit(code)
	}
	if len(os.Args) > 1 {
		switch os.Args[1] {
		case Command:
			os.Exit(Run(os.Args[2:]))
		case "enter":
			inside := Inside()
			cmd := exec.Command(inside[0], inside[1:]...)
			cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
			cmd.ExtraFiles = []*os.File{os.NewFile(fileBinary, "binary"), os.NewFile(fileControl, "control")}
			if err := cmd.Start(); err != nil {
				fmt.Fprintln(os.Stderr, err)
				os.Exit(1)
			}
			os.Exit(0)
		}
	}
	os.Exit(m.Run())
}

const nobody = 65534

// kept is a guard that runs a shell script as nobody.
func kept(t *testing.T, script string) (*Client, Config) {
	t.Helper()
	dir := t.TempDir()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	g := &Client{Dir: filepath.Join(dir, strings.Repeat("long", 30)), Program: []string{self, Command}}
	c := Config{ID: "test", Enter: []string{self, "enter"}, LogFile: filepath.Join(dir, "log"),
		Program: Program{Argv: []string{"/bin/sh", "-c", script}, Env: []string{"PATH=/usr/bin:/bin"}, Dir: "/", UID: nobody, GID: nobody}}
	if _, err := g.Ensure(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := g.Quit(context.Background(), 0); err != nil {
			t.Error(err)
		}
	})
	return g, c
}

// under lists the processes of a pid namespace.
func under(namespace string) []int {
	all, _ := filepath.Glob("/proc/[0-9]*/ns/pid")
	var pids []int
	for _, f := range all {
		if ns, err := os.Readlink(f); err == nil && ns == namespace {
			var pid int
			if _, err := fmt.Sscanf(f, "/proc/%d/", &pid); err == nil {
				pids = append(pids, pid)
			}
		}
	}
	return pids
}

func namespaceOf(t *testing.T, pid int) string {
	t.Helper()
	ns, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/pid", pid))
	if err != nil {
		t.Fatal(err)
	}
	return ns
}

func eventually(t *testing.T, what string, check func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !check(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("never: ", what)
		}
	}
}

func parentOf(t *testing.T, pid int) (parent int) {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(b), "\nPPid:")
	if _, err := fmt.Sscan(rest, &parent); err != nil {
		t.Fatal(err)
	}
	return parent
}

// The end of the guard is the end of everything, however it ends: also of what has left
// its session and its parent.
func TestGuardEndsEverything(t *testing.T) {
	for name, end := range map[string]func(*Client, int) error{
		"killed": func(_ *Client, guard int) error { return syscall.Kill(guard, syscall.SIGKILL) },
		"fence":  func(g *Client, _ int) error { return g.Fence(context.Background()) },
	} {
		t.Run(name, func(t *testing.T) {
			g, _ := kept(t, "for i in 1 2 3 4; do setsid sleep 1000 & done; setsid sh -c 'sleep 1000 & sleep 1001' & sleep 1000")
			s, err := g.Start(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			ns := namespaceOf(t, s.PID)
			if ns == namespaceOf(t, os.Getpid()) {
				t.Fatal("it has no pid namespace of its own")
			}
			eventually(t, "all run", func() bool { return len(under(ns)) >= 9 })
			if err := end(g, parentOf(t, s.PID)); err != nil {
				t.Fatal(err)
			}
			eventually(t, "nothing is left", func() bool { return len(under(ns)) == 0 })
			if _, err := g.State(t.Context()); !fault.Is(err, fault.Unavailable) {
				t.Errorf("asked for its state: %v", err)
			}
		})
	}
}

// What ends by itself is started again, later and later; a stop is not an end by itself.
func TestGuardStartsAgain(t *testing.T) {
	g, _ := kept(t, "exec sleep 1000")
	s, err := g.Start(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var phases []Phase
	done := make(chan error, 1)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	go func() {
		done <- g.Watch(ctx, func(n State) {
			phases = append(phases, n.Phase)
			if n.Phase == Running && n.Starts > s.Starts {
				cancel()
			}
		})
	}()
	for _, pid := range under(namespaceOf(t, s.PID)) {
		if pid != s.PID {
			if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
		}
	}
	<-done
	if !slices.Contains(phases, Waiting) {
		t.Errorf("it was %v", phases)
	}
	now, err := g.State(t.Context())
	if err != nil || now.Failures != 1 || now.Last != "killed by killed" || now.PID == s.PID {
		t.Errorf("%+v %v", now, err)
	}
	if stopped, err := g.Stop(t.Context(), 10*time.Second); err != nil || stopped.Phase != Stopped || stopped.Failures != 0 {
		t.Errorf("%+v %v", stopped, err)
	}
	if err := g.Signal(t.Context(), syscall.SIGHUP); !fault.Is(err, fault.Precondition) {
		t.Errorf("a signal to what is stopped: %v", err)
	}
}

// A clean stop is asked for by SIGINT; what does not heed it is killed when its time is over.
func TestGuardStops(t *testing.T) {
	for name, c := range map[string]struct{ script, last string }{
		"clean":  {"trap 'exit 0' INT; while :; do sleep 0.01; done", "exit code 0"},
		"forced": {"trap '' INT; while :; do sleep 0.01; done", "killed by killed"},
	} {
		g, _ := kept(t, c.script)
		if _, err := g.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
		limit := 20 * time.Second
		if name == "forced" {
			limit = 300 * time.Millisecond
		}
		// The trap may not be set yet: then SIGINT ends it, which is a stop as well.
		s, err := g.Stop(t.Context(), limit)
		if err != nil || s.Phase != Stopped || (s.Last != c.last && s.Last != "killed by interrupt") {
			t.Errorf("%s: %+v %v", name, s, err)
		}
	}
}

// A restart runs what the configuration says by then.
func TestGuardRestartsWithANewConfiguration(t *testing.T) {
	g, c := kept(t, "echo one; exec sleep 1000")
	if _, err := g.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	c.Program.Argv[2] = "echo two; exec sleep 1000"
	if _, err := g.Ensure(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	if s, err := g.Restart(t.Context(), time.Second); err != nil || s.Starts != 2 {
		t.Fatalf("%+v %v", s, err)
	}
	eventually(t, "both have printed", func() bool {
		text, _ := os.ReadFile(c.LogFile)
		return strings.Contains(string(text), "two\n")
	})
}

// A program that can't be started is an error of the start, and is tried again.
func TestGuardSaysWhyItCannotStart(t *testing.T) {
	g, c := kept(t, "exit 3")
	c.Program.Argv = []string{"/no/such/program"}
	if _, err := g.Ensure(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	s, err := g.Start(t.Context())
	if !fault.Is(err, fault.Unavailable) || !strings.Contains(err.Error(), "/no/such/program") {
		t.Errorf("%+v %v", s, err)
	}
	eventually(t, "it was tried again", func() bool {
		s, err := g.State(t.Context())
		return err == nil && s.Starts > 1
	})
}

// A second guard for one directory leaves the first alone, and an agent that starts anew
// finds what runs.
func TestGuardIsFoundAgain(t *testing.T) {
	g, c := kept(t, "exec sleep 1000")
	s, err := g.Start(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if code := exec.Command(g.Program[0], Command, "-dir", g.Dir).Run(); code != nil {
		t.Error("a second guard:", code)
	}
	next := &Client{Dir: g.Dir, Program: g.Program}
	if now, err := next.Ensure(t.Context(), c); err != nil || now.PID != s.PID || now.Phase != Running {
		t.Errorf("%+v, was %+v: %v", now, s, err)
	}
	if again, err := next.Start(t.Context()); err != nil || again.PID != s.PID {
		t.Errorf("started twice: %+v, was %+v: %v", again, s, err)
	}
}
