//go:build linux && root && crashpoints

package acceptance

import (
	"bytes"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"connectrpc.com/connect"

	reflejov1 "github.com/reflejo/terraform-provider-reflejo/agent/api/reflejo/v1"
)

// A server sees its own share of the machine, not the machine, and goes on while what
// shows it (lxcfs) is away.
func TestSeenFromInside(t *testing.T) {
	h := newHosts(t, "alpha")[0]
	want := spec("seen", h.tinyImage())
	want.Cpu, want.Memory.Max = &reflejov1.Cpu{MilliCores: 500, Pin: "0"}, 96<<20
	id := h.create(want).GetSpec().GetId()
	_, born := h.exec(id, "stat", "-c", "%Y", "/proc/1")
	h.share(id, 96)

	// Live.
	want.Memory.Max = 128 << 20
	if _, err := h.api.Servers.UpdateServer(t.Context(), connect.NewRequest(&reflejov1.UpdateServerRequest{Spec: want})); err != nil {
		t.Fatal(err)
	}
	h.settled(id)
	h.share(id, 128)

	// A program of the server that has the files open, and that lives through it all.
	reader := h.start(id, "sh", "-c", "while read x; do cat /proc/meminfo >/dev/null && echo read || echo failed; done")
	old := h.lxcfs()
	if err := syscall.Kill(old, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	h.eventually("a new lxcfs", func() bool { now := h.findLxcfs(); return now != 0 && now != old })
	h.eventually("the server's view", func() bool { return h.memory(id) == 128 })
	h.share(id, 128)
	reader.write([]byte("again\n"))
	if got := reader.line(); got != "read" {
		t.Errorf("a program of the server can't read any more: %s", got)
	}
	reader.kill()
	if _, now := h.exec(id, "stat", "-c", "%Y", "/proc/1"); now != born {
		t.Errorf("the server was restarted: process 1 began at %s, now at %s", born, now)
	}
	h.remove(id)
}

// share checks what a server with exclusive core 0 and that much memory (in MiB) sees.
func (h *host) share(id string, memory int) {
	h.t.Helper()
	if _, out := h.exec(id, "nproc"); out != "1\n" {
		h.t.Errorf("nproc: %q", out)
	}
	if _, out := h.exec(id, "grep", "-c", "^processor", "/proc/cpuinfo"); out != "1\n" {
		h.t.Errorf("processors of /proc/cpuinfo: %q", out)
	}
	if got := h.memory(id); got != memory {
		h.t.Errorf("/proc/meminfo: %d MiB, want %d", got, memory)
	}
	_, out := h.exec(id, "df", "-m", "/")
	f := strings.Fields(out[strings.LastIndex(strings.TrimSpace(out), "\n")+1:])
	if size, _ := strconv.Atoi(f[1]); size < 9<<10 || size > 10<<10 { // less what ext4 needs itself
		h.t.Errorf("df: %q", out)
	}
	_, out = h.exec(id, "cat", "/proc/uptime")
	up, _, _ := strings.Cut(out, " ")
	inside, err := strconv.ParseFloat(up, 64)
	if err != nil || inside > patience.Seconds() {
		h.t.Errorf("up for %q s: the machine's, not the server's", up)
	}
}

// memory is the server's total memory in MiB, from where free of procps takes it. (Free of
// BusyBox asks the system call sysinfo instead, which no file can change.)
func (h *host) memory(id string) int {
	h.t.Helper()
	_, out := h.exec(id, "cat", "/proc/meminfo")
	for line := range strings.Lines(out) {
		if f := strings.Fields(line); len(f) > 1 && f[0] == "MemTotal:" {
			n, _ := strconv.Atoi(f[1])
			return n >> 10
		}
	}
	return 0
}

// lxcfs is the process of this host's.
func (h *host) lxcfs() int {
	h.t.Helper()
	pid := h.findLxcfs()
	if pid == 0 {
		h.t.Fatal("no lxcfs of this host runs")
	}
	return pid
}

// findLxcfs looks for a process of that name in the host's own mount namespace: 0 if none.
func (h *host) findLxcfs() int {
	h.t.Helper()
	own, err := os.Stat(h.handle().Mountns())
	if err != nil {
		h.t.Fatal(err)
	}
	names, _ := filepath.Glob("/proc/[0-9]*/comm")
	for _, file := range names {
		text, _ := os.ReadFile(file)
		dir := filepath.Dir(file)
		ns, err := os.Stat(filepath.Join(dir, "ns/mnt"))
		if bytes.Equal(bytes.TrimSpace(text), []byte("lxcfs")) && err == nil && os.SameFile(own, ns) {
			pid, _ := strconv.Atoi(filepath.Base(dir))
			return pid
		}
	}
	return 0
}

// eventually waits until something is so.
func (h *host) eventually(what string, is func() bool) {
	h.t.Helper()
	for deadline := time.Now().Add(patience); !is(); {
		if time.Now().After(deadline) {
			h.t.Fatalf("%s does not come", what)
		}
		pause(20 * time.Millisecond)
	}
}
