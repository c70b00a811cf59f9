//go:build linux && root && vm

package cgroup

// Tests that need cgroup v2 and a machine of their own: they change its systemd and reclaim its memory.

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/reflejo/terraform-provider-reflejo/agent/vserver"
	"github.com/reflejo/terraform-provider-reflejo/agent/vserver/vservertest"
	"golang.org/x/sys/unix"
)

func TestMachineIsUnified(t *testing.T) {
	if m := testManager(t); !m.Unified() {
		t.Fatal("this machine is not on cgroup v2")
	}
	out, err := exec.Command("systemctl", "is-system-running", "--wait").CombinedOutput()
	if state := strings.TrimSpace(string(out)); state != "running" {
		t.Errorf("systemd is %s: %v", state, err)
	}
}

// systemd, which believes that the whole tree is its own, does not undo what we set.
func TestSystemdLeavesLimitsAlone(t *testing.T) {
	m := testManager(t)
	id := testServer(t, m, vservertest.SomeLimits())
	helper(t, m, id, "hold 0", true)
	for _, verb := range []string{"daemon-reload", "daemon-reexec"} {
		if out, err := exec.Command("systemctl", verb).CombinedOutput(); err != nil {
			t.Fatalf("systemctl %s: %v\n%s", verb, err, out)
		}
	}
	if out, err := exec.Command("systemd-run", "--wait", "-p", "CPUQuota=50%", "-p", "AllowedCPUs=0", "-p", "MemoryMax=64M", "true").CombinedOutput(); err != nil {
		t.Fatalf("systemd-run: %v\n%s", err, out)
	}
	for file, want := range map[string]string{"cpu.max": "50000 100000", "memory.max": "67108864", "memory.min": "67108864", "pids.max": "64"} {
		if got := control(t, m, id, "", file); got != want {
			t.Errorf("%s is %s, want %s", file, got, want)
		}
	}
}

// lxcfs, like every program that mounts cgroup2 anew, takes an option away from the whole
// kernel that the guarantee needs. The next server brings it back.
func TestProtectionSurvivesAnotherMount(t *testing.T) {
	m := testManager(t)
	dir := t.TempDir()
	if err := unix.Mount("cgroup2", dir, "cgroup2", 0, ""); err != nil {
		t.Fatal(err)
	}
	if err := unix.Unmount(dir, 0); err != nil {
		t.Fatal(err)
	}
	testServer(t, m, vservertest.SomeLimits())
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	if options, _ := mountOptions(string(mounts), "/sys/fs/cgroup"); !strings.Contains(strings.Join(options, " "), "memory_recursiveprot") {
		t.Errorf("the hierarchy's options are %v", options)
	}
}

// While the host reclaims memory, a server keeps what it has up to its guarantee, in
// groups of its own making too; a program without a guarantee does not.
func TestMemoryIsGuaranteed(t *testing.T) {
	const cached = 96 << 20
	m := testManager(t)
	want := vservertest.SomeLimits()
	want.Memory.Max = 104 << 20 // what it leaves unused of its guarantee protects its siblings
	kept, lost := testServer(t, m, want), testServer(t, m, want)
	nested := filepath.Join(delegated(m, kept), "unit")
	if err := os.Mkdir(nested, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(delegated(m, kept), "cgroup.subtree_control"), []byte("+memory"), 0); err != nil {
		t.Fatal(err)
	}
	if err := m.tree.write(filepath.Join(m.cfg.Parent, lost, "memory.min"), "0"); err != nil {
		t.Fatal(err)
	}
	if err := m.kind.(*v2).protect(); err != nil { // else it would inherit what is left of the parent's
		t.Fatal(err)
	}
	// Two readers fill the page cache, each in its group, by the same reading.
	read := func(group string) {
		file := filepath.Join(t.TempDir(), "file")
		if err := exec.Command("dd", "if=/dev/zero", "of="+file, "bs=1M", "count=96", "oflag=direct", "status=none").Run(); err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command("/bin/sh", "-c", `echo $$ > "$0"/cgroup.procs && exec dd if="$1" of=/dev/null bs=1M status=none`, group, file)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
	}
	read(nested)
	read(delegated(m, lost))
	before := [2]int64{usage(t, m, kept).MemoryCache, usage(t, m, lost).MemoryCache}
	if min(before[0], before[1]) < cached*9/10 {
		t.Fatalf("caches of %v bytes before, want %d", before, cached)
	}
	// Proactive reclaim from the root takes the way that pressure takes, and kills nothing.
	eventually(t, "the unguaranteed cache is reclaimed", func() bool {
		if err := m.tree.write("memory.reclaim", "32M"); err != nil && !errors.Is(err, unix.EAGAIN) {
			t.Fatal(err)
		}
		return usage(t, m, lost).MemoryCache < before[1]/3
	})
	after := [2]int64{usage(t, m, kept).MemoryCache, usage(t, m, lost).MemoryCache}
	t.Logf("page cache, guaranteed and not: %v MiB before, %v MiB after", [2]int64{before[0] >> 20, before[1] >> 20}, [2]int64{after[0] >> 20, after[1] >> 20})
	if after[0] < before[0]*9/10 {
		t.Errorf("the guaranteed server lost cache: %d of %d bytes left", after[0], before[0])
	}
}

// On v2 a rate binds writes that go through the page cache too: the kernel knows whose
// dirty pages it writes back.
func TestDiskRatesBindBufferedWrites(t *testing.T) {
	m := testManager(t)
	device, major, minor := loopDevice(t, 128<<20)
	if out, err := exec.Command("mkfs.ext4", "-q", device).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	dir := t.TempDir()
	if err := unix.Mount(device, dir, "ext4", 0, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	want := vservertest.SomeLimits()
	want.Major, want.Minor, want.Disk = major, minor, vserver.Disk{WriteBPS: 4 << 20}
	id := testServer(t, m, want)
	began := time.Now()
	p := start(t, m, id, nil, "dd", "if=/dev/zero", "of="+filepath.Join(dir, "file"), "bs=64k", "count=256", "status=none")
	<-p.ended
	wrote := time.Since(began)
	f, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := unix.Syncfs(int(f.Fd())); err != nil { // from outside the server
		t.Fatal(err)
	}
	took := time.Since(began)
	t.Logf("16 MiB at 4 MiB/s: written to the cache after %v, on the disk after %v", wrote, took)
	if took < 3500*time.Millisecond {
		t.Errorf("16 MiB at 4 MiB/s were on the disk after %v", took)
	}
	if u := usage(t, m, id); u.WriteBytes < 15<<20 {
		t.Errorf("usage counts %d bytes written for 16 MiB", u.WriteBytes)
	}
}
