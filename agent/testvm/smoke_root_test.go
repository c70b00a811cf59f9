//go:build linux && root

package testvm

import (
	"testing"
	"time"
)

// The control group contract on cgroup v2, on a stock kernel below systemd: the part of
// `make test-vm` that every `make test` runs.
func TestSmokeCgroupV2(t *testing.T) {
	img, dir := testImage(t), t.TempDir()
	compile(t, dir, "root,vm", "github.com/reflejo/terraform-provider-reflejo/agent/cgroup")
	t.Logf("image %s", img.Disk)
	inMachine(t, 10*time.Minute, dir,
		"./cgroup.test -test.v -test.timeout 5m -test.run '^(TestContract|TestMachineIsUnified|TestMemoryIsGuaranteed|TestDelegation)$'")
}
