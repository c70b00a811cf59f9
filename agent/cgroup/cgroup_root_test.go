//go:build linux && root

package cgroup

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
	"github.com/reflejo/terraform-provider-reflejo/agent/vserver"
	"github.com/reflejo/terraform-provider-reflejo/agent/vserver/vservertest"
	"golang.org/x/sys/unix"
)

func TestContract(t *testing.T) {
	vservertest.LimitsContract(t, func(t *testing.T) vservertest.LimitsHost {
		m := testManager(t)
		return vservertest.LimitsHost{Limits: m, Run: func(t *testing.T, id string, tasks int, held int64) {
			for range tasks {
				helper(t, m, id, fmt.Sprintf("hold %d", held/int64(tasks)), true)
			}
		}}
	})
}

// The quota holds over any time that is long against its period, and it is the quota
// that holds the server back (how close below it comes is for the benchmark: this
// machine may be busy). A machine that is itself held back in the middle of a tick sees
// its tasks overrun, so one good window of several is enough.
func TestQuotaBinds(t *testing.T) {
	m := testManager(t)
	want := vservertest.SomeLimits()
	id := testServer(t, m, want)
	helper(t, m, id, "burn 2", true)
	for _, milli := range []int64{500, 200} {
		want.CPU.MilliCores = milli
		if err := m.Set(t.Context(), id, want); err != nil {
			t.Fatal(err)
		}
		asked := float64(milli) / 1000
		eventually(t, fmt.Sprintf("no more than %.3f cores are used", asked), func() bool {
			before, began := usage(t, m, id), time.Now()
			time.Sleep(2 * time.Second)
			after, elapsed := usage(t, m, id), time.Since(began)
			r := RatesOf(before, after, elapsed)
			t.Logf("asked %.3f cores, used %.3f", asked, r.Cores)
			// One period's quota may fall on either side of the window.
			return r.Cores <= asked*1.05+asked*0.2/elapsed.Seconds() && r.Throttled > 0
		})
	}
}

func TestPinAndWeight(t *testing.T) {
	m := testManager(t)
	want := vservertest.SomeLimits()
	want.CPU.Pin, want.CPU.Weight = "0", 200
	id := testServer(t, m, want)
	p := helper(t, m, id, "hold 0", true)
	allowed := func() string {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.cmd.Process.Pid))
		if err != nil {
			t.Fatal(err)
		}
		_, rest, _ := strings.Cut(string(b), "Cpus_allowed_list:")
		line, _, _ := strings.Cut(rest, "\n")
		return strings.TrimSpace(line)
	}
	if got := allowed(); got != "0" {
		t.Errorf("pinned to 0, may run on %s", got)
	}
	if got, v1, v2 := control(t, m, id, "cpu", map[bool]string{true: "cpu.weight", false: "cpu.shares"}[m.Unified()]), "2048", "200"; got != map[bool]string{true: v2, false: v1}[m.Unified()] {
		t.Errorf("weight 200 reads %s", got)
	}
	want.CPU.Pin = ""
	if err := m.Set(t.Context(), id, want); err != nil {
		t.Fatal(err)
	}
	host, err := m.HostCPUs()
	if err != nil {
		t.Fatal(err)
	}
	if got := allowed(); got != host.String() {
		t.Errorf("unpinned, may run on %s, want all of %s", got, host)
	}
	want.CPU.Pin = "8000"
	if err := m.Set(t.Context(), id, want); !fault.Is(err, fault.Invalid) || fault.FieldOf(err) != "cpu.pin" {
		t.Errorf("pin to a core that is not there: %v", err)
	}
}

// Whoever asks for more memory than the server has is killed; the neighbour is not.
func TestMemoryLimitKillsInsideOnly(t *testing.T) {
	m := testManager(t)
	want := vservertest.SomeLimits()
	id, neighbour := testServer(t, m, want), testServer(t, m, want)
	quiet := helper(t, m, neighbour, "hold 16777216", true)
	greedy := helper(t, m, id, "hold 134217728", false)
	select {
	case <-greedy.ended:
	case <-time.After(60 * time.Second):
		t.Fatal("128 MiB in a server of 64 MiB: still running")
	}
	if ws := greedy.cmd.ProcessState.Sys().(syscall.WaitStatus); ws.Signal() != syscall.SIGKILL {
		t.Errorf("the greedy program ended by %v", greedy.cmd.ProcessState)
	}
	if u := usage(t, m, id); u.OOMKills < 1 {
		t.Errorf("usage does not count the kill: %+v", u)
	}
	if u := usage(t, m, neighbour); u.OOMKills != 0 {
		t.Errorf("the neighbour has %d kills", u.OOMKills)
	}
	select {
	case <-quiet.ended:
		t.Error("the neighbour's program ended")
	default:
	}
}

func TestProcessLimit(t *testing.T) {
	m := testManager(t)
	want := vservertest.SomeLimits()
	want.Processes = 20
	id := testServer(t, m, want)
	p := start(t, m, id, nil, "/bin/sh", "-c", "exec 2>/dev/null; for i in $(seq 60); do sleep 1000 & done; wait")
	eventually(t, "all 20 tasks are in use", func() bool { return usage(t, m, id).Tasks >= 19 })
	select {
	case <-p.ended: // the shell gives up when it can't fork
	case <-time.After(60 * time.Second):
		t.Error("the shell could start 60 programs")
	}
	if u := usage(t, m, id); u.Tasks > 20 {
		t.Errorf("%d tasks in a server of 20", u.Tasks)
	}
}

func TestKillForkBomb(t *testing.T) {
	m := testManager(t)
	want := vservertest.SomeLimits()
	want.Processes, want.Memory.Max = 200, 256<<20
	id := testServer(t, m, want)
	start(t, m, id, nil, "/bin/sh", "-c", `exec 2>/dev/null; b() { b | b & }; while :; do b; sleep 1 & done`)
	eventually(t, "the bomb goes off", func() bool { return usage(t, m, id).Tasks > 50 })
	if err := m.Kill(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	eventually(t, "nothing is left", func() bool { return usage(t, m, id).Tasks == 0 })
	// The way of kernels without cgroup.kill.
	start(t, m, id, nil, "/bin/sh", "-c", `exec 2>/dev/null; b() { b | b & }; while :; do b; sleep 1 & done`)
	eventually(t, "the bomb goes off again", func() bool { return usage(t, m, id).Tasks > 50 })
	freezer := "freezer/" + filepath.Join(m.cfg.Parent, id, "freezer.state")
	frozen, thawed := "FROZEN", "THAWED"
	dir := "freezer/" + filepath.Join(m.cfg.Parent, id)
	if m.Unified() {
		freezer, frozen, thawed = filepath.Join(m.cfg.Parent, id, "cgroup.freeze"), "1", "0"
		dir = filepath.Join(m.cfg.Parent, id)
	}
	err := killAll(t.Context(), func() ([]int, error) { return m.tree.procs(context.Background(), dir) }, "/"+filepath.Join(m.cfg.Parent, id),
		func() error { return m.tree.write(freezer, frozen) }, func() error { return m.tree.write(freezer, thawed) })
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "nothing is left", func() bool { return usage(t, m, id).Tasks == 0 })
}

// A frozen server uses no processor time.
func TestFreezeStopsWork(t *testing.T) {
	m := testManager(t)
	id := testServer(t, m, vservertest.SomeLimits())
	helper(t, m, id, "burn 1", true)
	if err := m.Freeze(t.Context(), id, true); err != nil {
		t.Fatal(err)
	}
	before := usage(t, m, id).CPU
	for until := time.Now().Add(300 * time.Millisecond); time.Now().Before(until); time.Sleep(20 * time.Millisecond) {
		if after := usage(t, m, id).CPU; after-before > time.Millisecond {
			t.Fatalf("frozen, and used %v", after-before)
		}
	}
	if err := m.Freeze(t.Context(), id, false); err != nil {
		t.Fatal(err)
	}
	eventually(t, "it works again", func() bool { return usage(t, m, id).CPU > before+10*time.Millisecond })
}

// What Freezer names does what Freeze does, on either kind of cgroups.
func TestFreezerFiles(t *testing.T) {
	m := testManager(t)
	id := testServer(t, m, vservertest.SomeLimits())
	helper(t, m, id, "burn 1", true)
	f, err := m.Freezer(id)
	if err != nil {
		t.Fatal(err)
	}
	frozen := func() bool {
		b, err := os.ReadFile(f.State)
		if err != nil {
			t.Fatal(err)
		}
		return strings.Contains("\n"+string(b), "\n"+f.Frozen+"\n")
	}
	for range 3 {
		if frozen() {
			t.Error("frozen already")
		}
		if err := os.WriteFile(f.Path, []byte(f.Freeze), 0); err != nil {
			t.Fatal(err)
		}
		eventually(t, "it is frozen", frozen)
		if all, err := m.List(t.Context()); err != nil || len(all) != 1 || !all[0].Frozen {
			t.Errorf("groups %+v (%v), want one that is frozen", all, err)
		}
		if err := os.WriteFile(f.Path, []byte(f.Thaw), 0); err != nil {
			t.Fatal(err)
		}
		eventually(t, "it is thawed", func() bool { return !frozen() })
	}
	if _, err := m.Freezer(uuid.NewString()); !fault.Is(err, fault.NotFound) {
		t.Errorf("error %v, want NotFound", err)
	}
}

// delegated is the directory that the server's own root manages.
func delegated(m *Manager, id string) string {
	if m.Unified() {
		return m.tree.path(filepath.Join(m.cfg.Parent, id, guestDir))
	}
	return m.tree.path(filepath.Join("systemd", m.cfg.Parent, id))
}

// Groups nested deeper than a path is long are removed with the server.
func TestRemoveDeeplyNestedGroups(t *testing.T) {
	m := testManager(t)
	id := testServer(t, m, vservertest.SomeLimits())
	fd, err := unix.Open(delegated(m, id), unix.O_DIRECTORY|unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	name := strings.Repeat("deep", 25)
	for range 55 {
		if err := unix.Mkdirat(fd, name, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := unix.Mkdirat(fd, "beside", 0o755); err != nil {
			t.Fatal(err)
		}
		next, err := unix.Openat(fd, name, unix.O_DIRECTORY|unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		unix.Close(fd)
		fd = next
	}
	unix.Close(fd)
	if err := m.Remove(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	if list, err := m.List(t.Context()); err != nil || len(list) != 0 {
		t.Errorf("after Remove: %v, %v", list, err)
	}
}

// The server's root may make groups of its own and change no limit.
func TestDelegation(t *testing.T) {
	m := testManager(t)
	want := vservertest.SomeLimits()
	id := testServer(t, m, want)
	as := func(script string) error {
		cmd := exec.Command("/bin/sh", "-c", script)
		cmd.Dir = delegated(m, id)
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: want.IDs.First, Gid: want.IDs.First}}
		return cmd.Run()
	}
	if err := as("mkdir unit && rmdir unit"); err != nil {
		t.Errorf("making a group: %v", err)
	}
	files := []string{"memory/%s/memory.limit_in_bytes", "cpu/%s/cpu.cfs_quota_us", "pids/%s/pids.max", "blkio/%s/cgroup.procs"}
	if m.Unified() {
		files = []string{"%s/memory.max", "%s/guest/memory.max", "%s/guest/cpu.max", "%s/cgroup.procs", "%s/guest/cgroup.kill", "%s/cgroup.freeze"}
		if err := as("echo +memory +cpu +io +pids > cgroup.subtree_control && mkdir unit && echo 1000 > unit/pids.max && rmdir unit"); err != nil {
			t.Errorf("dividing what it has: %v", err)
		}
	}
	for _, f := range files {
		file := m.tree.path(fmt.Sprintf(f, filepath.Join(m.cfg.Parent, id)))
		if _, err := os.Stat(file); err != nil {
			t.Error(err)
		}
		if err := as("echo 1 > " + file); err == nil {
			t.Errorf("the server's root could write %s", file)
		}
	}
}

// What an agent left that was killed while it made or removed a group.
func TestHalfMadeGroups(t *testing.T) {
	m := testManager(t)
	id := uuid.NewString()
	dirs := m.kind.paths(id).all
	if err := os.Mkdir(m.tree.path(dirs[len(dirs)/2]), 0o755); err != nil {
		t.Fatal(err)
	}
	if list, err := m.List(t.Context()); err != nil || len(list) != 1 || list[0].ID != id {
		t.Fatalf("half a group is listed as %v, %v", list, err)
	}
	if err := m.Set(t.Context(), id, vservertest.SomeLimits()); err != nil {
		t.Fatal(err)
	}
	helper(t, m, id, "hold 0", true)
	again, err := Open(m.cfg) // the next agent
	if err != nil {
		t.Fatal(err)
	}
	for _, dir := range again.kind.paths(id).all[1:] {
		_ = os.Remove(again.tree.path(dir)) // as far as they are empty
	}
	if err := again.Remove(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	if list, err := again.List(t.Context()); err != nil || len(list) != 0 {
		t.Errorf("after Remove: %v, %v", list, err)
	}
}

// Groups of others below the same parent's neighbour are neither listed nor removed.
func TestLeavesOthersAlone(t *testing.T) {
	a, b := testManager(t), testManager(t)
	id := testServer(t, a, vservertest.SomeLimits())
	if list, err := b.List(t.Context()); err != nil || len(list) != 0 {
		t.Errorf("another agent lists %v, %v", list, err)
	}
	if err := b.Remove(t.Context(), id); err != nil {
		t.Error(err)
	}
	if list, err := a.List(t.Context()); err != nil || len(list) != 1 {
		t.Errorf("after another agent's Remove: %v, %v", list, err)
	}
}

func TestDiskRatesBindDirectWrites(t *testing.T) {
	m := testManager(t)
	device, major, minor := loopDevice(t, 64<<20)
	want := vservertest.SomeLimits()
	want.Major, want.Minor = major, minor
	want.Disk = vserver.Disk{WriteBPS: 4 << 20, ReadIOPS: 1000}
	id := testServer(t, m, want)
	began := time.Now()
	p := start(t, m, id, nil, "dd", "if=/dev/zero", "of="+device, "bs=64k", "count=128", "oflag=direct", "status=none")
	<-p.ended
	if !p.cmd.ProcessState.Success() {
		t.Fatal(p.cmd.ProcessState)
	}
	if took := time.Since(began); took < 1700*time.Millisecond {
		t.Errorf("8 MiB at 4 MiB/s took %v", took)
	}
	if u := usage(t, m, id); u.WriteBytes < 8<<20 || u.WriteBytes > 9<<20 || u.WriteOps < 8 {
		t.Errorf("usage counts %d bytes, %d operations for 8 MiB", u.WriteBytes, u.WriteOps)
	}
	// Another device, then none: no rate of the old one stays.
	_, major2, minor2 := loopDevice(t, 1<<20)
	want.Major, want.Minor = major2, minor2
	if err := m.Set(t.Context(), id, want); err != nil {
		t.Fatal(err)
	}
	file := map[bool]string{true: "io.max", false: "blkio.throttle.write_bps_device"}[m.Unified()]
	if got := control(t, m, id, "blkio", file); !strings.HasPrefix(got, fmt.Sprintf("%d:%d ", major2, minor2)) || strings.Contains(got, "\n") {
		t.Errorf("after a change of device, %s is %q", file, got)
	}
	want.Disk = vserver.Disk{}
	if err := m.Set(t.Context(), id, want); err != nil {
		t.Fatal(err)
	}
	if got := control(t, m, id, "blkio", file); got != "" {
		t.Errorf("without rates, %s is %q", file, got)
	}
}
