//go:build linux && root && crashpoints

package acceptance

import (
	"bufio"
	"bytes"
	"context"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"connectrpc.com/connect"

	reflejov1 "github.com/reflejo/terraform-provider-reflejo/agent/api/reflejo/v1"
)

// attack is where testdata/attack is in a server.
const attack = "/bin/attack"

// siege is a host with an attacker, who is root in a server, and who must harm neither the
// neighbour nor the host.
type siege struct {
	*host
	mallory, alice string // servers' ids
	addresses      map[string]string
	macs           map[string]string
	program        string // the attacker's, for controls on the host
	born           string // when alice's process 1 began
}

// A server cannot reach, change or use up what is not its own. Every attack is made for
// real from inside, and after each the neighbour and the host must be as they were.
func TestIsolation(t *testing.T) {
	s := newSiege(t)
	before := hostSettings(t)
	for _, group := range []struct {
		name string
		run  func(*siege)
	}{
		{"kernel", (*siege).kernel},
		{"mounts", (*siege).mounts},
		{"devices", (*siege).devices},
		{"groups", (*siege).groups},
		{"processes", (*siege).processes},
		{"network", (*siege).network},
		{"exhaustion", (*siege).exhaustion},
		{"bombs", (*siege).bombs},
		{"agent", (*siege).deceiveAgent},
	} {
		t.Run(group.name, func(t *testing.T) {
			s.on(t, func() { group.run(s) })
		})
	}
	s.t = t
	after := hostSettings(t)
	for _, f := range slices.Sorted(maps.Keys(before)) {
		if before[f] != after[f] {
			t.Errorf("%s was %q, is %q", f, before[f], after[f])
		}
	}
}

func newSiege(t *testing.T) *siege {
	h := newHosts(t, "alpha")[0]
	s := &siege{host: h, addresses: map[string]string{}, macs: map[string]string{}, program: buildAttack(t, nil)}
	image := h.tinyImage()
	program, err := os.ReadFile(s.program)
	if err != nil {
		t.Fatal(err)
	}
	for name, id := range map[string]*string{"mallory": &s.mallory, "alice": &s.alice} {
		want := spec(name, image)
		want.Cpu.MilliCores, want.Memory.Max, want.Processes = 500, 192<<20, 256
		want.Network = map[string]*reflejov1.Nic{"eth0": {}}
		if name == "alice" {
			want.Network["eth0"].Publish = map[string]*reflejov1.Publish{"web": {Protocol: "tcp", HostPort: 18080, Port: 80}}
		}
		server := h.create(want)
		*id = want.GetId()
		nic := server.GetNics()["eth0"]
		s.addresses[name], _, _ = strings.Cut(nic.GetAddress(), "/")
		s.macs[name] = nic.GetMac()
		s.put(*id, attack, program)
	}
	_, s.born = h.exec(s.alice, "stat", "-c", "%Y", "/proc/1")
	return s
}

// buildAttack builds the attacker's program, with more in the environment.
func buildAttack(t *testing.T, env []string) string {
	t.Helper()
	program := filepath.Join(t.TempDir(), "attack")
	build := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", program, "./testdata/attack")
	build.Env = append(append(os.Environ(), "CGO_ENABLED=0"), env...)
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build the attacker's program: %v\n%s", err, out)
	}
	return program
}

// on runs a part of the test as t, and looks after the neighbour and the host afterwards.
func (s *siege) on(t *testing.T, part func()) {
	t.Helper()
	outer := s.t
	s.t = t
	defer func() { s.t = outer }()
	defer s.unharmed()
	part()
}

// try runs one attack as a test of its own.
func (s *siege) try(name string, part func(t *testing.T)) {
	s.t.Run(name, func(t *testing.T) { s.on(t, func() { part(t) }) })
}

// unharmed checks that the neighbour runs, was not restarted, and that the agent answers.
func (s *siege) unharmed() {
	s.t.Helper()
	if s.handle().AgentPID() == 0 {
		s.t.Fatal("the agent has ended")
	}
	if _, err := s.api.Hosts.GetHost(s.t.Context(), connect.NewRequest(&reflejov1.GetHostRequest{})); err != nil {
		s.t.Error("the agent does not answer:", err)
	}
	if code, now := s.exec(s.alice, "stat", "-c", "%Y", "/proc/1"); code != 0 || now != s.born {
		s.t.Errorf("the neighbour's process 1 began at %s, now at %s", s.born, now)
	}
}

// refused runs a shell command in mallory's server, which has to fail.
func (s *siege) refused(name, script string) {
	s.t.Helper()
	s.try(name, func(t *testing.T) {
		t.Helper()
		switch code, out := s.exec(s.mallory, "sh", "-c", script); {
		case code == 0:
			t.Errorf("succeeded: %s", out)
		case code == 126 || code == 127 || strings.Contains(out, "not found") || strings.Contains(out, "Usage:"):
			t.Errorf("the attack is broken: exit %d: %s", code, out)
		default:
			t.Logf("refused: %s", strings.TrimSpace(out))
		}
	})
}

// allowed is the control of refused: what differs from an attack only in whose it is.
func (s *siege) allowed(name, script string) {
	s.t.Helper()
	if code, out := s.exec(s.mallory, "sh", "-c", script); code != 0 {
		s.t.Errorf("%s: a server cannot do what it may, so that its attacks prove nothing: exit %d: %s", name, code, out)
	}
}

// hostSettings are the settings of the machine that an intruder would like to change.
func hostSettings(t *testing.T) map[string]string {
	t.Helper()
	found := map[string]string{}
	patterns := []string{"/proc/sys/kernel/core_pattern", "/proc/sys/kernel/core_pipe_limit", "/proc/sys/kernel/modprobe", "/proc/sys/kernel/hotplug",
		"/proc/sys/kernel/poweroff_cmd", "/proc/sys/kernel/sysrq", "/proc/sys/kernel/hostname", "/proc/sys/kernel/panic*", "/proc/sys/kernel/randomize_va_space",
		"/proc/sys/kernel/yama/*", "/proc/sys/kernel/usermodehelper/*", "/proc/sys/fs/suid_dumpable", "/proc/sys/fs/protected_*", "/proc/sys/fs/binfmt_misc/status",
		"/proc/sys/vm/overcommit_memory", "/proc/sys/vm/panic_on_oom", "/proc/sys/vm/drop_caches", "/proc/sys/net/ipv4/ip_forward", "/proc/sys/net/core/bpf_jit_enable",
		"/sys/kernel/uevent_helper", "/sys/fs/cgroup/*/release_agent", "/sys/fs/cgroup/release_agent", "/sys/power/state", "/sys/module/*/parameters/panic_on_oops"}
	for _, p := range patterns {
		files, _ := filepath.Glob(p)
		for _, f := range files {
			if text, err := os.ReadFile(f); err == nil {
				found[f] = string(text)
			}
		}
	}
	if len(found) < 10 {
		t.Fatalf("the host's settings cannot be read: %v", found)
	}
	return found
}

// put writes a program into a server, by its own hands.
func (h *host) put(id, path string, content []byte) {
	h.t.Helper()
	c := h.start(id, "sh", "-c", "cat > "+path+" && chmod 755 "+path)
	c.write(content)
	if code, out := c.end(); code != 0 {
		h.t.Fatalf("write %s: exit %d: %s", path, code, out)
	}
}

// command is a program that runs in a server.
type command struct {
	t      *testing.T
	stream *connect.BidiStreamForClient[reflejov1.ExecRequest, reflejov1.ExecResponse]
	cancel context.CancelFunc
	output *bufio.Reader
	seen   bytes.Buffer
	code   chan int32 // -1: it did not end by itself
}

// start runs a program in a server and returns while it runs.
func (h *host) start(id string, argv ...string) *command {
	h.t.Helper()
	ctx, cancel := context.WithTimeout(h.t.Context(), patience)
	stream := h.api.Servers.Exec(ctx)
	if err := stream.Send(&reflejov1.ExecRequest{Part: &reflejov1.ExecRequest_Start{Start: &reflejov1.ExecStart{Id: id, Argv: argv}}}); err != nil {
		h.t.Fatal(err)
	}
	r, w := io.Pipe()
	c := &command{t: h.t, stream: stream, cancel: cancel, code: make(chan int32, 1)}
	c.output = bufio.NewReader(io.TeeReader(r, &c.seen))
	go func() {
		code := int32(-1)
		var failed error = io.EOF
		for {
			m, err := stream.Receive()
			if err != nil {
				if code < 0 {
					failed = err
				}
				break
			}
			switch p := m.GetPart().(type) {
			case *reflejov1.ExecResponse_Stdout:
				_, _ = w.Write(p.Stdout)
			case *reflejov1.ExecResponse_Stderr:
				_, _ = w.Write(p.Stderr)
			case *reflejov1.ExecResponse_ExitCode:
				code = p.ExitCode
			}
		}
		_ = w.CloseWithError(failed)
		c.code <- code
	}()
	h.t.Cleanup(c.kill)
	return c
}

func (c *command) write(b []byte) {
	c.t.Helper()
	for len(b) > 0 {
		n := min(len(b), 64<<10)
		if err := c.stream.Send(&reflejov1.ExecRequest{Part: &reflejov1.ExecRequest_Stdin{Stdin: b[:n]}}); err != nil {
			c.t.Fatal(err)
		}
		b = b[n:]
	}
}

// line is the next line of what the program prints.
func (c *command) line() string {
	c.t.Helper()
	text, err := c.output.ReadString('\n')
	if err != nil {
		c.t.Fatalf("read a line: %v: %s", err, c.seen.String())
	}
	return strings.TrimSpace(text)
}

// end closes the program's standard input and waits for its end.
func (c *command) end() (code int32, out string) {
	c.t.Helper()
	_ = c.stream.Send(&reflejov1.ExecRequest{Part: &reflejov1.ExecRequest_StdinClosed{StdinClosed: true}})
	_, err := io.Copy(io.Discard, c.output)
	code = <-c.code
	c.code <- code
	if err != nil {
		c.t.Fatalf("run a program: %v: %s", err, c.seen.String())
	}
	c.cancel()
	return code, c.seen.String()
}

// kill ends the program, whatever it does.
func (c *command) kill() {
	_ = c.stream.CloseRequest() // or the connection goes on waiting for more of it
	c.cancel()
	_, _ = io.Copy(io.Discard, c.output)
	c.code <- <-c.code
}

// pid1 is a server's process 1 as the host numbers it.
func (s *siege) pid1(id string) int {
	s.t.Helper()
	groups, _ := filepath.Glob("/sys/fs/cgroup/pids/" + s.handle().Cgroup() + "/" + id)
	unified, _ := filepath.Glob("/sys/fs/cgroup/" + s.handle().Cgroup() + "/" + id)
	for _, dir := range append(groups, unified...) {
		first := 0
		_ = filepath.WalkDir(dir, func(path string, _ os.DirEntry, err error) error {
			if err == nil && filepath.Base(path) == "cgroup.procs" {
				text, _ := os.ReadFile(path)
				for _, p := range strings.Fields(string(text)) {
					if n, err := strconv.Atoi(p); err == nil && insideNumber(n) == "1" {
						first = n
					}
				}
			}
			return nil
		})
		if first != 0 {
			return first
		}
	}
	s.t.Fatalf("no process 1 of server %s is found", id)
	return 0
}

// insideNumber is a process's number in its own namespace.
func insideNumber(pid int) string {
	text, _ := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/status")
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, "NSpid:"); ok {
			f := strings.Fields(rest)
			return f[len(f)-1]
		}
	}
	return ""
}
