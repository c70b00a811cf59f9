//go:build linux && root

package testvm

import (
	"testing"
	"time"
)

// What this machine may not have, on a stock kernel below systemd: cgroup v2 and the right to
// grow a file system in use. The part of `make test-vm` that every `make test` runs.
func TestSmoke(t *testing.T) {
	dir := t.TempDir()
	inMachine(t, 10*time.Minute, Machine{Dir: dir, Image: testImage(t)},
		compile(t, dir, "root,vm", "agent/cgroup", "'^(TestContract|TestMachineIsUnified|TestMemoryIsGuaranteed|TestDelegation)$'"),
		compile(t, dir, "root", "agent/disk", "'^TestLiveGrowth$'"))
}
