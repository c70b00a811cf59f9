package cgroup

import (
	"context"
	"os"
	"path/filepath"
	"testing"

	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
	"github.com/reflejo/terraform-provider-reflejo/agent/vserver"
)

// fakeV2 is a folder that looks like a cgroup v2 mount with one server's group.
func fakeV2(t *testing.T, id string, files map[string]string) (*Manager, func(string) string) {
	t.Helper()
	root := t.TempDir()
	put := func(name, content string) {
		t.Helper()
		file := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	const all = "cpuset cpu io memory pids\n"
	put("cgroup.controllers", all)
	put("cpuset.cpus.effective", "0-3\n")
	for _, dir := range []string{"r", "r/" + id, "r/" + id + "/guest"} {
		put(dir+"/cgroup.controllers", all)
	}
	for _, f := range []string{"cpu.weight", "cpu.max", "memory.min"} {
		put("r/"+f, "0")
	}
	for f, content := range map[string]string{
		"memory.max": "max\n", "memory.high": "max\n", "memory.min": "0\n", "memory.current": "1000000\n", "cpu.max": "max 100000\n",
		"cpu.weight": "100\n", "cpuset.cpus": "\n", "pids.max": "max\n", "pids.current": "3\n", "io.max": "", "cpu.stat": "usage_usec 5000\nthrottled_usec 7\n",
		"cgroup.events": "populated 1\nfrozen 0\n", "memory.stat": "inactive_file 1000\nactive_file 24\n", "memory.events": "oom_kill 2\n",
		"io.stat": "7:3 rbytes=1 wbytes=2 rios=3 wios=4\n8:0 rbytes=9 wbytes=9 rios=9 wios=9\n",
	} {
		put("r/"+id+"/"+f, content)
	}
	for f, content := range files {
		put("r/"+id+"/"+f, content)
	}
	m, err := Open(Config{Parent: "r", Root: root})
	if err != nil {
		t.Fatal(err)
	}
	return m, func(name string) string {
		b, err := os.ReadFile(filepath.Join(root, name))
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
}

const testID = "00000000-0000-4000-8000-000000000001"

func TestV2InFolder(t *testing.T) {
	m, read := fakeV2(t, testID, nil)
	want := vserver.LimitSet{
		CPU: vserver.CPU{MilliCores: 1500, Weight: 50, Pin: "1"}, Memory: vserver.Memory{Max: 1 << 30},
		Processes: 77, Disk: vserver.Disk{WriteBPS: 1 << 20}, Major: 7, Minor: 3,
	}
	if err := m.Set(context.Background(), testID, want); err != nil {
		t.Fatal(err)
	}
	for file, value := range map[string]string{
		"memory.max": "1073741824", "memory.min": "1073741824", "memory.high": "max\n", "cpu.max": "150000 100000", "cpu.weight": "50",
		"cpuset.cpus": "1", "pids.max": "77", "io.max": "7:3 rbps=max wbps=1048576 riops=max wiops=max",
	} {
		if got := read("r/" + testID + "/" + file); got != value {
			t.Errorf("%s is %q, want %q", file, got, value)
		}
	}
	if got := read("r/memory.min"); got != "1073741824" {
		t.Errorf("the parent guarantees %q", got)
	}
	if got, want := m.Path(testID), "/r/"+testID+"/guest"; got != want {
		t.Errorf("the runtime's path is %s, want %s", got, want)
	}
	u, err := m.Usage(context.Background(), testID)
	wantUsage := vserver.Usage{
		CPU: 5e6, Throttled: 7e3, MemoryUsed: 1000000 - 1024, MemoryCache: 1024, OOMKills: 2, Tasks: 3,
		ReadBytes: 1, WriteBytes: 2, ReadOps: 3, WriteOps: 4,
	}
	if err != nil || u != wantUsage {
		t.Errorf("usage %+v, %v\nwant  %+v", u, err, wantUsage)
	}
	list, err := m.List(context.Background())
	if err != nil || len(list) != 1 || list[0] != (vserver.GroupInfo{ID: testID, Tasks: 3}) {
		t.Errorf("list %+v, %v", list, err)
	}
}

// Memory that cannot be reclaimed refuses a lower limit, and everything is as before.
func TestV2RefusesMemoryBelowUse(t *testing.T) {
	m, read := fakeV2(t, testID, map[string]string{"memory.current": "900000000\n", "memory.high": "950000000\n", "memory.max": "1073741824\n"})
	want := vserver.LimitSet{CPU: vserver.CPU{MilliCores: 100}, Memory: vserver.Memory{Max: 1 << 29}}
	err := m.Set(context.Background(), testID, want)
	if !fault.Is(err, fault.Precondition) || fault.FieldOf(err) != "memory.max" {
		t.Fatalf("got %v, want fault.Precondition about memory.max", err)
	}
	for file, value := range map[string]string{"memory.max": "1073741824\n", "memory.high": "950000000", "cpu.max": "max 100000\n"} {
		if got := read("r/" + testID + "/" + file); got != value {
			t.Errorf("%s is %q, want %q", file, got, value)
		}
	}
}

// A write that fails half-way takes back those before it.
func TestV2TakesBack(t *testing.T) {
	m, read := fakeV2(t, testID, nil)
	if err := os.Remove(filepath.Join(string(m.tree), "r", testID, "pids.max")); err != nil {
		t.Fatal(err)
	}
	want := vserver.LimitSet{CPU: vserver.CPU{MilliCores: 100, Pin: "2"}, Memory: vserver.Memory{Max: 1 << 29}}
	if err := m.Set(context.Background(), testID, want); err == nil {
		t.Fatal("no error for a missing control file")
	}
	for file, value := range map[string]string{"memory.max": "max", "cpu.max": "max 100000", "cpuset.cpus": "\n", "memory.min": "0"} {
		if got := read("r/" + testID + "/" + file); got != value {
			t.Errorf("%s is %q, want %q", file, got, value)
		}
	}
}

func TestOpenV2SaysWhatIsMissing(t *testing.T) {
	root := t.TempDir()
	if err := os.WriteFile(filepath.Join(root, "cgroup.controllers"), []byte("cpu memory\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	_, err := Open(Config{Parent: "r", Root: root})
	if !fault.Is(err, fault.Unavailable) || err.Error() != "open cgroups: the kernel has no cgroup controller cpuset, io, pids" {
		t.Errorf("got %v", err)
	}
}

func TestInGroup(t *testing.T) {
	const proc = "8:pids:/r/a\n1:name=systemd:/r/a/init.scope\n0::/\n"
	for dir, want := range map[string]bool{"/r/a": true, "/r": true, "/r/a/b": false, "/r/": false, "/q": false} {
		if inGroup(proc, dir) != want {
			t.Errorf("inGroup(%q) = %v", dir, !want)
		}
	}
	if inGroup("0::/r/ab\n", "/r/a") {
		t.Error("a neighbour whose name begins alike is taken for the group")
	}
}
