//go:build linux && vm

package testvm

import (
	"os"
	"path/filepath"
	"testing"
	"time"
)

// TestEdges runs all tests that need root of every edge, each edge on a machine of its own.
func TestEdges(t *testing.T) {
	for pkg, prepare := range map[string]func(t *testing.T, dir string) (environment []string){
		"agent/bridge": nil,
		"agent/cgroup": nil,
		"agent/disk":   nil,
		"agent/oci":    ociFiles,
		"agent/sysctl": nil,
	} {
		t.Run(filepath.Base(pkg), func(t *testing.T) {
			dir := t.TempDir()
			var environment []string
			if prepare != nil {
				environment = prepare(t, dir)
			}
			inMachine(t, 18*time.Minute, Machine{Dir: dir}, compile(t, dir, "root,vm", pkg, rootTests(t, pkg), environment...))
		})
	}
}

// ociFiles are what the runtime's tests make for themselves where there is Go and a network.
func ociFiles(t *testing.T, dir string) []string {
	goTool(t, "build", "-trimpath", "-ldflags=-s -w", "-o", filepath.Join(dir, "reflejo"), module+"agent/oci/testdata/reflejo")
	debian := filepath.Join(dir, "oci-test-bookworm.tar")
	if err := tool(t.Context(), os.Stderr, "mmdebstrap", "--variant=minbase", "--include=systemd-sysv,procps,dbus", "--format=tar", Suite, debian); err != nil {
		t.Fatal(err)
	}
	return []string{"REFLEJO_TEST_BINARY=/testvm/reflejo", "REFLEJO_CACHE=/testvm"}
}
