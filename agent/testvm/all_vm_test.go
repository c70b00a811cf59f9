//go:build linux && vm

package testvm

import (
	"os"
	"path/filepath"
	"testing"
	"time"
)

// tooFast are tests that send faster than an emulated processor of a busy machine can.
const tooFast = "'^TestLiveChanges$|^TestShaping$/^(200|1000)_Mbit$'"

// TestEdges runs all tests that need root of every edge, each edge on a machine of its own.
func TestEdges(t *testing.T) {
	for _, edge := range []struct {
		name    string
		skip    string
		prepare func(t *testing.T, dir string) (environment []string)
	}{
		{name: "bridge", skip: tooFast},
		{name: "cgroup"},
		{name: "disk"},
		{name: "oci", prepare: ociFiles},
		{name: "quiesce"},
		{name: "sysctl"},
	} {
		t.Run(edge.name, func(t *testing.T) {
			dir, pkg := t.TempDir(), "agent/"+edge.name
			var environment []string
			if edge.prepare != nil {
				environment = edge.prepare(t, dir)
			}
			command := compile(t, dir, "root,vm", pkg, rootTests(t, pkg), environment...)
			if edge.skip != "" {
				command += " -test.skip " + edge.skip
			}
			inMachine(t, 30*time.Minute, Machine{Dir: dir}, command)
		})
	}
}

// ociFiles are what the runtime's tests make for themselves where there is Go and a network.
func ociFiles(t *testing.T, dir string) []string {
	goTool(t, "build", "-trimpath", "-ldflags=-s -w", "-o", filepath.Join(dir, "reflejo"), module+"agent/oci/testdata/reflejo")
	const debian = "oci-test-" + Suite + ".tar"
	cached := filepath.Join(cacheDir(), debian)
	if _, err := os.Stat(cached); err != nil {
		made := filepath.Join(t.TempDir(), debian)
		if err := tool(t.Context(), os.Stderr, "mmdebstrap", "--variant=minbase", "--include=systemd-sysv,procps,dbus", "--format=tar", Suite, made); err != nil {
			t.Fatal(err)
		}
		if err := tool(t.Context(), os.Stderr, "mv", made, cached); err != nil {
			t.Fatal(err)
		}
	}
	if err := tool(t.Context(), os.Stderr, "cp", cached, filepath.Join(dir, debian)); err != nil {
		t.Fatal(err)
	}
	return []string{"REFLEJO_TEST_BINARY=/testvm/reflejo", "REFLEJO_CACHE=/testvm"}
}
