package bench

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
)

// machine describes the host under test.
func (r *run) machine(ctx context.Context) (Machine, error) {
	d, err := r.host.describe(ctx)
	if err != nil {
		return Machine{}, err
	}
	m := Machine{Cores: runtime.NumCPU(), Kernel: d.GetKernel(), Cgroups: d.GetCgroupMode(), Pool: d.GetPool().GetFileSystem()}
	if d.GetPool().GetEmbedded() {
		m.Pool += " in a file"
	}
	text, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return m, err
	}
	if _, err := fmt.Sscanf(string(text), "MemTotal: %d kB", &m.Memory); err != nil {
		return m, fmt.Errorf("read memory size: %w", err)
	}
	m.Memory <<= 10
	out, err := exec.CommandContext(ctx, "runc", "--version").Output()
	if err != nil {
		return m, fmt.Errorf("read version of runc: %w", err)
	}
	first, _, _ := strings.Cut(string(out), "\n")
	m.Runtime = strings.Replace(first, "version ", "", 1)
	if r.lxd != nil {
		m.LXD, err = r.lxd.version(ctx)
	}
	return m, err
}
