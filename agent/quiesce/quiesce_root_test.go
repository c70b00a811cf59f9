//go:build linux && root

package quiesce

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/reflejo/terraform-provider-reflejo/agent/cgroup"
	"github.com/reflejo/terraform-provider-reflejo/agent/disk"
	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
	"github.com/reflejo/terraform-provider-reflejo/agent/vserver"
	"github.com/reflejo/terraform-provider-reflejo/agent/vserver/vservertest"
)

// What this test binary is when it is not the test: a program of a server that writes, or an
// agent that freezes and stays.
const (
	writeCommand  = "write-for-ever"
	freezeCommand = "freeze-and-stay"

	testImage = "sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
)

func TestMain(m *testing.M) {
	if len(os.Args) > 1 {
		switch os.Args[1] {
		case Command:
			os.Exit(Watch(os.Args[2:]))
		case writeCommand:
			os.Exit(writeForEver(os.Args[2]))
		case freezeCommand:
			os.Exit(freezeAndStay(os.Args[2:]))
		}
	}
	os.Exit(m.Run())
}

// writeForEver counts in a file, durably, until its standard input ends.
func writeForEver(path string) int {
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		os.Exit(0)
	}()
	for n := 1; ; n++ {
		f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE, 0o644)
		if err == nil {
			_, err = fmt.Fprintf(f, "%020d", n)
		}
		if err == nil {
			err = f.Sync()
		}
		if err != nil {
			fmt.Println(err)
			return 1
		}
		f.Close()
	}
}

// freezeAndStay is an agent that is killed: args are root and the fields of one freezer.
func freezeAndStay(args []string) int {
	target := Target{Root: args[0], Tasks: []Freezer{{Path: args[1], Freeze: args[2], Thaw: args[3], State: args[4], Frozen: args[5]}}}
	if _, err := Quiet(context.Background(), target, time.Hour); err != nil {
		fmt.Println(err)
		return 1
	}
	fmt.Println("frozen")
	select {}
}

// server is a disk that a program in a group writes to.
type server struct {
	root    string
	freezer Freezer
	file    string // where the program counts
}

// newServer starts one.
func newServer(t *testing.T) server {
	t.Helper()
	dir, err := os.MkdirTemp("", "reflejo-quiesce-")
	must(t, err)
	t.Cleanup(func() { must(t, os.RemoveAll(dir)) })
	pool, err := disk.Open(t.Context(), disk.Config{Path: filepath.Join(dir, "pool"), RunDir: filepath.Join(dir, "run"), PoolSize: disk.MinPoolSize})
	must(t, err)
	t.Cleanup(func() {
		must(t, pool.Close())
		out, err := exec.Command("umount", "-R", filepath.Join(dir, "pool", "pool")).CombinedOutput()
		if err != nil {
			t.Errorf("umount: %v: %s", err, out)
		}
	})
	must(t, pool.Bases().Build(t.Context(), testImage, 64<<20, func(string) error { return nil }))
	id := uuid.NewString()
	must(t, pool.Create(t.Context(), id, testImage, 64<<20))
	at, err := pool.Attach(t.Context(), id, vserver.IDRange{First: 3 << 20, Size: 1 << 16})
	must(t, err)
	t.Cleanup(func() { must(t, pool.Remove(context.Background(), id)) })
	groups, err := cgroup.Open(cgroup.Config{Parent: "reflejo-test-" + uuid.NewString()[:8]})
	must(t, err)
	t.Cleanup(func() { must(t, groups.Destroy(context.Background())) })
	must(t, groups.Set(t.Context(), id, vservertest.SomeLimits()))
	f, err := groups.Freezer(id)
	must(t, err)
	s := server{root: at.Root, freezer: Freezer(f), file: filepath.Join(at.Root, "count")}
	p := exec.Command("/proc/self/exe", writeCommand, s.file)
	stdin, err := p.StdinPipe()
	must(t, err)
	must(t, p.Start())
	t.Cleanup(func() {
		must(t, stdin.Close())
		must(t, p.Wait())
	})
	must(t, groups.Join(id, p.Process.Pid))
	s.wantWriting(t)
	return s
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func (s server) count(t *testing.T) int {
	t.Helper()
	b, err := os.ReadFile(s.file)
	if os.IsNotExist(err) || len(b) == 0 {
		return 0
	}
	must(t, err)
	n, err := strconv.Atoi(strings.TrimLeft(string(b), "0"))
	must(t, err)
	return n
}

// wantWriting waits until the program has written something new.
func (s server) wantWriting(t *testing.T) {
	t.Helper()
	before, deadline := s.count(t), time.Now().Add(time.Minute)
	for s.count(t) <= before {
		if time.Now().After(deadline) {
			t.Fatal("the program does not write")
		}
		time.Sleep(time.Millisecond)
	}
}

// wantQuiet looks for a while whether something is written.
func (s server) wantQuiet(t *testing.T) {
	t.Helper()
	before := s.count(t)
	for range 50 {
		time.Sleep(time.Millisecond)
		if now := s.count(t); now != before {
			t.Fatalf("count went from %d to %d", before, now)
		}
	}
}

func TestQuiet(t *testing.T) {
	s := newServer(t)
	var held time.Duration
	for _, tasks := range [][]Freezer{{s.freezer}, nil} {
		for range 5 {
			loud, err := Quiet(t.Context(), Target{Root: s.root, Tasks: tasks, Held: func(d time.Duration) { held = d }}, time.Minute)
			must(t, err)
			s.wantQuiet(t)
			if _, err := Quiet(t.Context(), Target{Root: s.root}, time.Minute); !fault.Is(err, fault.Precondition) {
				t.Errorf("freezing what is frozen: %v, want Precondition", err)
			}
			s.wantQuiet(t)
			must(t, loud())
			must(t, loud()) // calls may be made twice
			if held < 50*time.Millisecond {
				t.Errorf("held for %v", held)
			}
			s.wantWriting(t)
		}
	}
	if b, err := os.ReadFile(expediteFile); err == nil && strings.TrimSpace(string(b)) != "0" {
		t.Errorf("%s is %s", expediteFile, b)
	}
}

func TestLimitPasses(t *testing.T) {
	s := newServer(t)
	loud, err := Quiet(t.Context(), Target{Root: s.root, Tasks: []Freezer{s.freezer}}, 200*time.Millisecond)
	must(t, err)
	s.wantWriting(t) // though nobody has called loud
	if err := loud(); !fault.Is(err, fault.Unavailable) {
		t.Errorf("error %v, want Unavailable: it was not quiet", err)
	}
	s.wantWriting(t)
}

func TestKilledAgent(t *testing.T) {
	s := newServer(t)
	for range 3 {
		f := s.freezer
		agent := exec.Command("/proc/self/exe", freezeCommand, s.root, f.Path, f.Freeze, f.Thaw, f.State, f.Frozen)
		out, err := agent.StdoutPipe()
		must(t, err)
		must(t, agent.Start())
		line := make([]byte, 100)
		n, err := out.Read(line)
		if err != nil || string(line[:n]) != "frozen\n" {
			t.Fatalf("the agent said %q (%v)", line[:n], err)
		}
		s.wantQuiet(t)
		must(t, agent.Process.Kill())
		_ = agent.Wait()
		s.wantWriting(t)
	}
}

func TestWatchdogDies(t *testing.T) {
	s := newServer(t)
	target := Target{Root: s.root, Tasks: []Freezer{s.freezer}, Watchdog: []string{"/bin/false"}}
	if _, err := Quiet(t.Context(), target, time.Minute); err == nil {
		t.Error("no error without a watchdog")
	}
	s.wantWriting(t)
	if err := Recover([]string{s.root}); err != nil {
		t.Errorf("nothing is frozen: %v", err)
	}
	root, err := openRoot(s.root)
	must(t, err)
	defer root.Close()
	h := &hold{root: root, target: Target{Root: s.root}}
	must(t, h.freezeFile())
	s.wantQuiet(t)
	must(t, Recover([]string{s.root}))
	s.wantWriting(t)
}

// A task that does not stop in time: the state file never says so.
func TestTasksDoNotStop(t *testing.T) {
	s := newServer(t)
	f := s.freezer
	f.Frozen = "never"
	if _, err := Quiet(t.Context(), Target{Root: s.root, Tasks: []Freezer{f}}, 100*time.Millisecond); !fault.Is(err, fault.Unavailable) {
		t.Errorf("error %v, want Unavailable", err)
	}
	s.wantWriting(t)
	if _, err := Quiet(t.Context(), Target{Root: s.root}, 0); !fault.Is(err, fault.Invalid) {
		t.Errorf("error %v for no limit, want Invalid", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Quiet(ctx, Target{Root: s.root, Tasks: []Freezer{s.freezer}}, time.Minute); err == nil {
		t.Error("no error for a context that has ended")
	}
	s.wantWriting(t)
}
