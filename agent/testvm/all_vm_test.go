//go:build linux && vm

package testvm

import (
	"testing"
	"time"
)

// TestAllOnV2 runs every test of the edges that have a say in cgroups.
func TestAllOnV2(t *testing.T) {
	dir := t.TempDir()
	compile(t, dir, "root,vm", "github.com/reflejo/terraform-provider-reflejo/agent/cgroup")
	inMachine(t, 18*time.Minute, dir, "./cgroup.test -test.v -test.timeout 8m")
}
