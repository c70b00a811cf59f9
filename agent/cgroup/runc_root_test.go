//go:build linux && root

package cgroup

import (
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/reflejo/terraform-provider-reflejo/agent/vserver/vservertest"
)

// The runtime joins the group that is there and changes none of its limits, provided that
// the specification has no linux.resources but devices.
func TestRuncKeepsLimits(t *testing.T) {
	m := testManager(t)
	want := vservertest.SomeLimits()
	want.CPU.Pin, want.Memory.High = "0", 48<<20
	id := testServer(t, m, want)
	bundle := t.TempDir()
	spec(t, bundle, m.Path(id))
	state := filepath.Join(t.TempDir(), "runc")
	runc := func(args ...string) ([]byte, error) {
		cmd := exec.Command("runc", append([]string{"--root", state}, args...)...)
		if args[0] == "create" || args[0] == "start" {
			return nil, cmd.Run() // the container would keep a pipe open
		}
		return cmd.CombinedOutput()
	}
	t.Cleanup(func() {
		_ = m.Kill(context.Background(), id)
		_, _ = runc("delete", "--force", id)
	})
	files := map[string]string{"cpu.max": "cpu", "cpuset.cpus": "cpuset", "memory.max": "memory", "memory.high": "memory", "memory.min": "memory", "pids.max": "pids", "cpu.weight": "cpu"}
	if !m.Unified() {
		files = map[string]string{"cpu.cfs_quota_us": "cpu", "cpu.shares": "cpu", "cpuset.cpus": "cpuset", "memory.limit_in_bytes": "memory", "memory.soft_limit_in_bytes": "memory", "pids.max": "pids"}
	}
	before := map[string]string{}
	for file, hierarchy := range files {
		before[file] = control(t, m, id, hierarchy, file)
	}
	if _, err := runc("create", "--bundle", bundle, id); err != nil {
		t.Fatalf("runc create: %v", err)
	}
	if _, err := runc("start", id); err != nil {
		t.Fatalf("runc start: %v", err)
	}
	for file, hierarchy := range files {
		if now := control(t, m, id, hierarchy, file); now != before[file] {
			t.Errorf("%s was %s, after runc it is %s", file, before[file], now)
		}
	}
	eventually(t, "the container is in the group", func() bool { return usage(t, m, id).Tasks >= 1 })
	if out, err := runc("exec", id, "/bin/busybox", "true"); err != nil {
		t.Errorf("runc exec: %v\n%s", err, out)
	}
	if err := m.Freeze(t.Context(), id, true); err != nil {
		t.Error(err)
	}
	if err := m.Kill(t.Context(), id); err != nil { // frozen by us, killed by us
		t.Fatal(err)
	}
	eventually(t, "runc sees the end", func() bool {
		out, err := runc("delete", id)
		if err != nil {
			t.Logf("runc delete: %s", out)
		}
		return err == nil
	})
	// The runtime may have removed the group, limits and all: Set makes it again.
	if err := m.Set(t.Context(), id, want); err != nil {
		t.Fatal(err)
	}
	for file, hierarchy := range files {
		if now := control(t, m, id, hierarchy, file); now != before[file] {
			t.Errorf("%s was %s, for the next start it is %s", file, before[file], now)
		}
	}
}

// spec writes a bundle with one static program.
func spec(t *testing.T, bundle, cgroupsPath string) {
	t.Helper()
	rootfs := filepath.Join(bundle, "rootfs")
	for _, dir := range []string{"bin", "proc"} {
		if err := os.MkdirAll(filepath.Join(rootfs, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	busybox, err := os.ReadFile("/bin/busybox")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(rootfs, "bin", "busybox"), busybox, 0o755); err != nil {
		t.Fatal(err)
	}
	oom := 0
	s := specs.Spec{
		Version: "1.0.2",
		Root:    &specs.Root{Path: "rootfs"},
		Process: &specs.Process{Cwd: "/", Args: []string{"/bin/busybox", "sleep", "1000"}, OOMScoreAdj: &oom},
		Mounts:  []specs.Mount{{Destination: "/proc", Type: "proc", Source: "proc"}},
		Linux: &specs.Linux{
			CgroupsPath: cgroupsPath,
			Namespaces: []specs.LinuxNamespace{
				{Type: specs.PIDNamespace}, {Type: specs.MountNamespace}, {Type: specs.CgroupNamespace},
				{Type: specs.NetworkNamespace}, {Type: specs.IPCNamespace}, {Type: specs.UTSNamespace},
			},
			Resources: &specs.LinuxResources{Devices: []specs.LinuxDeviceCgroup{{Allow: false, Access: "rwm"}}},
		},
	}
	b, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(bundle, "config.json"), b, 0o644); err != nil {
		t.Fatal(err)
	}
}
