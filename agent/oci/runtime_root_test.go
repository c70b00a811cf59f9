//go:build linux && root

package oci

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
	"github.com/reflejo/terraform-provider-reflejo/agent/vserver"
)

func TestEntryPoint(t *testing.T) {
	h := newHost(t, "")
	c := h.newContainer(t, busyboxRoot(t, h.dir))
	c.Init = []string{"sh", "-c", "echo up $A $PWD $$; trap 'echo bye; exit 3' TERM; while :; do sleep 0.1; done"}
	c.Env, c.Dir = []string{"A=image"}, "/etc"
	h.run(t, c)
	h.logHas(t, c.ID, "up image /etc", 10*time.Second)
	if err := h.Stop(context.Background(), c.ID); err != nil {
		t.Fatal(err)
	}
	if err := h.Wait(context.Background(), c.ID); err != nil {
		t.Fatal(err)
	}
	h.logHas(t, c.ID, "bye", 10*time.Second)
	out, err := h.Exec(context.Background(), c.ID, vserver.Command{Argv: []string{"/bin/true"}})
	if !fault.Is(err, fault.Precondition) {
		t.Fatalf("a command in an ended server gave %d, %v", out, err)
	}
}

func TestExec(t *testing.T) {
	h := newHost(t, "")
	c := h.newContainer(t, busyboxRoot(t, h.dir))
	h.run(t, c)
	ctx := context.Background()
	for _, tt := range []struct {
		name     string
		cmd      vserver.Command
		out, err string
		code     int
	}{
		{name: "streams apart", cmd: vserver.Command{Argv: []string{"sh", "-c", "echo out; echo err >&2; exit 7"}}, out: "out\n", err: "err\n", code: 7},
		{name: "input", cmd: vserver.Command{Argv: []string{"cat"}, Stdin: strings.NewReader("hello")}, out: "hello"},
		{name: "no input", cmd: vserver.Command{Argv: []string{"cat"}}},
		{name: "signal", cmd: vserver.Command{Argv: []string{"sh", "-c", "kill -9 $$"}}, code: 137},
		{name: "user by name", cmd: vserver.Command{Argv: []string{"sh", "-c", "id -u; id -G; echo $HOME; pwd"}, User: "ann", Dir: "/tmp"}, out: "1000\n1000 2000\n/home/ann\n/tmp\n"},
		{name: "user by number", cmd: vserver.Command{Argv: []string{"sh", "-c", "id -u; id -g"}, User: "77:88"}, out: "77\n88\n"},
		{name: "environment", cmd: vserver.Command{Argv: []string{"sh", "-c", "echo $X $container"}, Env: []string{"X=a b"}}, out: "a b oci\n"},
		{name: "code 255", cmd: vserver.Command{Argv: []string{"sh", "-c", "exit 255"}}, code: 255},
		{name: "left behind", cmd: vserver.Command{Argv: []string{"sh", "-c", "sleep 30 >/dev/null 2>&1 & echo done"}}, out: "done\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var out, errs bytes.Buffer
			tt.cmd.Stdout, tt.cmd.Stderr = &out, &errs
			code, err := h.Exec(ctx, c.ID, tt.cmd)
			if err != nil || code != tt.code || out.String() != tt.out || errs.String() != tt.err {
				t.Errorf("code %d (%v), out %q, err %q", code, err, out.String(), errs.String())
			}
		})
	}
	for _, cmd := range []vserver.Command{{Argv: []string{"/no/such"}}, {Argv: []string{"true"}, User: "bob"}, {Argv: []string{"true"}, Dir: "/nowhere"}, {}} {
		if _, err := h.Exec(ctx, c.ID, cmd); !fault.Is(err, fault.Invalid) {
			t.Errorf("%q: %v", cmd.Argv, err)
		}
	}
	if _, err := h.Exec(ctx, "none", vserver.Command{Argv: []string{"true"}}); !fault.Is(err, fault.NotFound) {
		t.Error(err)
	}
	big := strings.Repeat("0123456789abcdef", 1<<16)
	var out bytes.Buffer
	if _, err := h.Exec(ctx, c.ID, vserver.Command{Argv: []string{"cat"}, Stdin: strings.NewReader(big), Stdout: &out}); err != nil || out.String() != big {
		t.Errorf("1 MiB through cat came back as %d bytes, %v", out.Len(), err)
	}
}

func TestExecCancelKillsOnlyIt(t *testing.T) {
	h := newHost(t, "")
	c := h.newContainer(t, busyboxRoot(t, h.dir))
	h.run(t, c)
	ctx, cancel := context.WithCancel(context.Background())
	r, w := io.Pipe()
	ended := make(chan error, 1)
	go func() {
		_, err := h.Exec(ctx, c.ID, vserver.Command{Argv: []string{"sh", "-c", "echo ready; exec sleep 1000"}, Stdout: w})
		ended <- err
	}()
	other := make(chan error, 1)
	go func() {
		_, err := h.Exec(context.Background(), c.ID, vserver.Command{Argv: []string{"sh", "-c", "while ! test -e /tmp/go; do sleep 0.05; done"}})
		other <- err
	}()
	if _, err := io.ReadFull(r, make([]byte, 6)); err != nil {
		t.Fatal(err)
	}
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	eventually(t, 5*time.Second, func() error {
		if out, _ := h.sh(t, c.ID, "ps"); strings.Contains(out, "sleep 1000") {
			return errors.New("the cancelled command still runs:\n" + out)
		}
		return nil
	})
	h.sh(t, c.ID, "touch /tmp/go")
	if err := <-other; err != nil {
		t.Fatal("the other command:", err)
	}
	if out, _ := h.sh(t, c.ID, "cat /proc/[0-9]*/stat"); strings.Contains(out, ") Z ") {
		t.Error("a zombie is left:\n", out)
	}
}

func TestExecTerminal(t *testing.T) {
	h := newHost(t, "")
	c := h.newContainer(t, busyboxRoot(t, h.dir))
	h.run(t, c)
	in, typed := io.Pipe()
	resize := make(chan [2]uint16)
	var out lockedBuffer
	ended := make(chan error, 1)
	go func() {
		code, err := h.Exec(context.Background(), c.ID, vserver.Command{Argv: []string{"sh"}, TTY: true, Rows: 30, Columns: 100, Resize: resize, Stdin: in, Stdout: &out})
		if err == nil && code != 4 {
			err = fmt.Errorf("exit code %d", code)
		}
		ended <- err
	}()
	say := func(text, want string) {
		t.Helper()
		if _, err := io.WriteString(typed, text); err != nil {
			t.Fatal(err)
		}
		eventually(t, 10*time.Second, func() error {
			if !strings.Contains(out.String(), want) {
				return fmt.Errorf("no %q in %q", want, out.String())
			}
			return nil
		})
	}
	say("tty; stty size\n", "30 100")
	resize <- [2]uint16{40, 120}
	eventually(t, 10*time.Second, func() error {
		_, _ = io.WriteString(typed, "stty size\n")
		if !strings.Contains(out.String(), "40 120") {
			return fmt.Errorf("not resized: %q", out.String())
		}
		return nil
	})
	say("exit 4\n", "exit 4")
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
}

func TestConsole(t *testing.T) {
	h := newHost(t, "")
	c := h.newContainer(t, busyboxRoot(t, h.dir))
	c.Init = []string{"/bin/sh", "-i"}
	h.run(t, c)
	ctx, cancel := context.WithCancel(context.Background())
	watching := make(chan error, 1)
	go func() { watching <- h.Watch(ctx) }()
	endWatch := sync.OnceFunc(func() { cancel(); <-watching })
	defer endWatch()
	person := newPerson()
	joined := make(chan error, 1)
	joinCtx, leave := context.WithCancel(ctx)
	go func() { joined <- h.Console(joinCtx, c.ID, person) }()
	person.say(t, "echo $((6*7))\n", "42")
	if err := h.ResizeConsole(ctx, c.ID, 11, 22); err != nil {
		t.Fatal(err)
	}
	person.say(t, "stty size\n", "11 22")
	leave()
	if err := <-joined; err != nil {
		t.Fatal(err)
	}

	// A new agent finds the console again.
	endWatch()
	h.reopen(t)
	ctx2, cancel2 := context.WithCancel(context.Background())
	watching2 := make(chan error, 1)
	go func() { watching2 <- h.Watch(ctx2) }()
	defer func() { cancel2(); <-watching2 }()

	// The keeper dies; the next one has the console and the shell lives.
	old := h.keeper(t)
	if old == nil {
		t.Fatal("no keeper")
	}
	if err := old.Kill(); err != nil {
		t.Fatal(err)
	}
	eventually(t, 10*time.Second, func() error {
		p := h.keeper(t)
		if p == nil || p.Pid == old.Pid {
			return errors.New("no new keeper")
		}
		ids, err := h.consoles.List(ctx2)
		if err == nil && len(ids) != 1 {
			err = fmt.Errorf("the new keeper has %v", ids)
		}
		return err
	})
	person = newPerson()
	go func() { joined <- h.Console(ctx2, c.ID, person) }()
	person.say(t, "echo $((7*7))\n", "49")
	h.logHas(t, c.ID, "42", time.Second)
	h.logHas(t, c.ID, "49", 5*time.Second)
	rss := status(t, h.keeper(t).Pid, "VmRSS")
	t.Logf("keeper: %s, init: %s", rss, status(t, h.pid(t, c.ID), "VmRSS"))
}

func TestKilledAgent(t *testing.T) {
	h := newHost(t, "")
	root := busyboxRoot(t, h.dir)
	created, running, half, bare := h.newContainer(t, root), h.newContainer(t, root), h.newContainer(t, root), h.newContainer(t, root)
	ctx := context.Background()
	if _, err := h.Create(ctx, created); err != nil {
		t.Fatal(err)
	}
	pid := h.run(t, running)
	for _, d := range []string{filepath.Join(h.cfg.Root, half.ID), h.bundle(bare.ID)} { // runc, or the agent, was cut off
		if err := os.Mkdir(d, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	h.reopen(t)
	all, err := h.List(ctx)
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]vserver.RunStatus{}
	for _, s := range all {
		got[s.ID] = s.Status
	}
	want := map[string]vserver.RunStatus{created.ID: vserver.RunCreated, running.ID: vserver.RunRunning, half.ID: vserver.RunStopped, bare.ID: vserver.RunStopped}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Fatalf("listed %v, want %v", got, want)
	}
	if again, err := h.Create(ctx, running); err != nil || again != pid {
		t.Fatalf("created again: %d, %v; it was %d", again, err, pid)
	}
	h.run(t, half)
	for id := range want {
		if err := h.Delete(ctx, id); err != nil {
			t.Fatal(err)
		}
	}
	if all, err := h.List(ctx); err != nil || len(all) != 0 {
		t.Fatalf("left: %v, %v", all, err)
	}
	if b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid)); err == nil && !strings.Contains(string(b), ") Z ") {
		t.Fatalf("process %d lives: %s", pid, b)
	}
}

func TestIdleInitReapsAndStops(t *testing.T) {
	h := newHost(t, "")
	c := h.newContainer(t, busyboxRoot(t, h.dir))
	h.run(t, c)
	h.sh(t, c.ID, "sleep 0.01 & (sleep 0.02 &) ; (sleep 1000 >/dev/null 2>&1 &)")
	eventually(t, 5*time.Second, func() error {
		if out, _ := h.sh(t, c.ID, "cat /proc/[0-9]*/stat"); strings.Contains(out, ") Z ") {
			return errors.New("zombie:\n" + out)
		}
		return nil
	})
	if err := h.Stop(context.Background(), c.ID); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := h.Wait(ctx, c.ID); err != nil {
		t.Fatal(err)
	}
}

func TestBusyboxInitPowersOff(t *testing.T) {
	h := newHost(t, "")
	root := busyboxRoot(t, h.dir)
	if err := os.Symlink("../bin/busybox", filepath.Join(root, "sbin/init")); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(root, "etc/inittab"), "::sysinit:/bin/echo booted\n::shutdown:/bin/echo going\n")
	c := h.newContainer(t, root)
	h.run(t, c)
	h.logHas(t, c.ID, "booted", 10*time.Second)
	if err := h.Stop(context.Background(), c.ID); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	if err := h.Wait(ctx, c.ID); err != nil {
		t.Fatal(err)
	}
	h.logHas(t, c.ID, "going", 5*time.Second)
}

func TestFirstBootScriptWithoutInit(t *testing.T) {
	h := newHost(t, "")
	root := busyboxRoot(t, h.dir)
	c := h.newContainer(t, root)
	c.Init = []string{"sh", "-c", "echo entry; cat"}
	p := vserver.Preparation{ID: c.ID, Hostname: "web", First: true, FirstBoot: vserver.FirstBoot{UserData: "#!/bin/sh\necho script >> /root/ran\necho from the script\n"}}
	if err := h.Prepare(t.Context(), root, p); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		h.run(t, c)
		h.logHas(t, c.ID, "entry", 10*time.Second)
		if err := h.Delete(t.Context(), c.ID); err != nil {
			t.Fatal(err)
		}
	}
	h.logHas(t, c.ID, "from the script", time.Second)
	b, err := os.ReadFile(filepath.Join(root, "root/ran"))
	left, _ := filepath.Glob(filepath.Join(root, firstBootScript+"*"))
	if err != nil || string(b) != "script\n" || len(left) != 0 {
		t.Errorf("the script wrote %q, %v; left: %v", b, err, left)
	}
	if err := h.RemoveConsoleLog(c.ID); err != nil {
		t.Error(err)
	}
	if log, err := readLog(h, c.ID); err != nil || log != "" {
		t.Errorf("log %q, %v", log, err)
	}
}

func TestDeleteFrozen(t *testing.T) {
	h := newHost(t, "")
	c := h.newContainer(t, busyboxRoot(t, h.dir))
	h.run(t, c)
	file, value := "/sys/fs/cgroup/freezer"+h.cfg.CgroupPath(c.ID)+"/freezer.state", "FROZEN"
	if h.unified {
		file, value = "/sys/fs/cgroup"+h.cfg.CgroupPath(c.ID)+"/cgroup.freeze", "1"
	}
	if err := os.WriteFile(file, []byte(value), 0); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := h.Delete(ctx, c.ID); err != nil {
		t.Fatal(err)
	}
}

func BenchmarkCreateToFirstCommand(b *testing.B) {
	h := newHost(b, "")
	root := busyboxRoot(b, h.dir)
	var create, start, first, del time.Duration
	for b.Loop() {
		b.StopTimer()
		c := h.newContainer(b, root)
		b.StartTimer()
		t0 := time.Now()
		if _, err := h.Create(b.Context(), c); err != nil {
			b.Fatal(err)
		}
		t1 := time.Now()
		if err := h.Start(b.Context(), c.ID); err != nil {
			b.Fatal(err)
		}
		t2 := time.Now()
		if _, err := h.Exec(b.Context(), c.ID, vserver.Command{Argv: []string{"/bin/true"}}); err != nil {
			b.Fatal(err)
		}
		t3 := time.Now()
		if err := h.Delete(b.Context(), c.ID); err != nil {
			b.Fatal(err)
		}
		create, start, first, del = create+t1.Sub(t0), start+t2.Sub(t1), first+t3.Sub(t2), del+time.Since(t3)
	}
	for name, d := range map[string]time.Duration{"create": create, "start": start, "exec": first, "delete": del} {
		b.ReportMetric(float64(d.Microseconds())/1000/float64(b.N), name+"-ms")
	}
}

// `reboot` inside ends the server so that it can be told from a poweroff.
func TestRebootIsTold(t *testing.T) {
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil { // as the agent does
		t.Fatal(err)
	}
	h := newHost(t, "")
	c := h.newContainer(t, busyboxRoot(t, h.dir))
	for command, want := range map[string]error{"reboot -f": vserver.ErrRebooted, "poweroff -f": nil} {
		h.run(t, c)
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		ended := make(chan error, 1)
		go func() { ended <- h.Wait(ctx, c.ID) }() // only who was there when it ended knows how
		eventually(t, 10*time.Second, func() error {
			_, err := h.Exec(ctx, c.ID, vserver.Command{Argv: []string{"/bin/busybox", "sh", "-c", "busybox " + command}})
			if err == nil && len(ended) == 0 {
				return errors.New("it goes on")
			}
			return nil
		})
		if err := <-ended; !errors.Is(err, want) {
			t.Errorf("%s: %v, want %v", command, err, want)
		}
		cancel()
		if err := h.Delete(context.Background(), c.ID); err != nil {
			t.Fatal(err)
		}
	}
}
