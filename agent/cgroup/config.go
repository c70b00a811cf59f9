package cgroup

import (
	"path"
	"strings"

	"github.com/reflejo/terraform-provider-reflejo/agent/cpuset"
	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
	"github.com/reflejo/terraform-provider-reflejo/agent/vserver"
)

// Config says where an agent's groups are and how all servers together stand against
// the host's own processes.
type Config struct {
	// Parent is the directory of all our groups in every hierarchy: one path element,
	// "reflejo" or "reflejo-alpha". Two agents on one kernel need two.
	Parent string
	// Root is the cgroup mount; "" means /sys/fs/cgroup. Any other is taken to be v2.
	Root string
	// Weight is the share of all servers together under contention, against 100 for the
	// host's own (one of its services on v2, one of its tasks on v1). 0 means 1000: what
	// was promised to servers comes first, and the host keeps its reserve because
	// admission does not promise it.
	Weight int64
	// MaxMilliCores caps all servers together, in 1/1000 of a core; 0 means no cap. It
	// keeps the host's reserve where CPU is overcommitted. Without overcommitment leave it
	// 0: a cap that equals the sum of the servers' quotas takes from their accuracy.
	MaxMilliCores int64
}

const (
	defaultRoot   = "/sys/fs/cgroup"
	defaultWeight = 1000

	// guestDir is the delegated group inside a server's group on v2.
	guestDir = "guest"

	// A delegated group lets the server make groups of its own, which cost the host's
	// kernel memory. systemd with a few hundred services needs some hundreds.
	maxDescendants = 4096
	maxDepth       = 64
)

// Validate checks the settings. What is wrong is fault.Invalid.
func (c Config) Validate() error {
	if c.Parent == "" || c.Parent == "." || c.Parent == ".." || strings.ContainsAny(c.Parent, "/\x00\n") || len(c.Parent) > 200 {
		return fault.New(fault.Invalid, "check cgroup parent %q: it must be one path element", c.Parent)
	}
	if c.Root != "" && !path.IsAbs(c.Root) {
		return fault.New(fault.Invalid, "check cgroup root %q: it must be an absolute path", c.Root)
	}
	if c.Weight < 0 || c.Weight > 10000 {
		return fault.New(fault.Invalid, "check cgroup weight %d: it must be 1 to 10000", c.Weight)
	}
	if c.MaxMilliCores < 0 {
		return fault.New(fault.Invalid, "check cgroup CPU cap %d: it must not be negative", c.MaxMilliCores)
	}
	return nil
}

func (c Config) withDefaults() Config {
	if c.Root == "" {
		c.Root = defaultRoot
	}
	if c.Weight == 0 {
		c.Weight = defaultWeight
	}
	return c
}

// validID reports whether id is a UUID in lower case: the only names that this package
// makes, lists or removes below its parent.
func validID(id string) bool {
	if len(id) != 36 {
		return false
	}
	for i := range len(id) {
		c := id[i]
		switch i {
		case 8, 13, 18, 23:
			if c != '-' {
				return false
			}
		default:
			if (c < '0' || c > '9') && (c < 'a' || c > 'f') {
				return false
			}
		}
	}
	return true
}

func checkID(id string) error {
	if !validID(id) {
		return fault.New(fault.Invalid, "check server id %q: it must be a UUID in lower case", id)
	}
	return nil
}

const (
	minMemory     = 1 << 20
	minMilliCores = 10 // the kernel's smallest quota is 1 ms, of our period of 100 ms
	maxMilliCores = 8192 * 1000
	maxRate       = 1 << 50
)

// check refuses a LimitSet that no kernel could keep, before anything is touched, and
// returns its pinned cores. The error names the attribute.
func check(want vserver.LimitSet, host cpuset.Set) (cpuset.Set, error) {
	bad := func(field, format string, args ...any) (cpuset.Set, error) {
		return nil, fault.Field(field, format, args...)
	}
	cpu, mem, disk := want.CPU, want.Memory, want.Disk
	switch {
	case cpu.MilliCores < 0 || cpu.MilliCores > maxMilliCores || (cpu.MilliCores > 0 && cpu.MilliCores < minMilliCores):
		return bad("cpu.cores", "set CPU quota %d/1000 of a core: it must be 0 (no quota) or %d to %d", cpu.MilliCores, minMilliCores, maxMilliCores)
	case cpu.Weight < 0 || cpu.Weight > 10000:
		return bad("cpu.weight", "set CPU weight %d: it must be 1 to 10000", cpu.Weight)
	case mem.Max < minMemory:
		return bad("memory.max", "set memory limit of %d bytes: the least is %d", mem.Max, minMemory)
	case mem.High < 0 || mem.High > mem.Max:
		return bad("memory.high", "set memory throttle limit of %d bytes: it must be 0 (none) to the hard limit, %d", mem.High, mem.Max)
	case mem.Swap < 0:
		return bad("memory.swap", "set swap limit of %d bytes: it must not be negative", mem.Swap)
	case want.Processes < 0:
		return bad("processes", "set process limit %d: it must not be negative", want.Processes)
	}
	rated := false
	for _, r := range rates(disk) {
		if r.value < 0 || r.value > maxRate {
			return bad(r.field, "set disk rate %s=%d: it must be 0 (unlimited) to %d", r.v2, r.value, int64(maxRate))
		}
		rated = rated || r.value > 0
	}
	if rated && want.Major == 0 {
		return bad("disk", "set disk rates: the server's disk is not attached (no device)")
	}
	pin, err := cpuset.Parse(cpu.Pin)
	if err != nil {
		return bad("cpu.pin", "%w", err)
	}
	if missing := pin.Minus(host); len(missing) > 0 {
		return bad("cpu.pin", "pin to cores %s: the host has no core %s, only %s", pin, missing, host)
	}
	return pin, nil
}

// rate is one limit of a disk, in both dialects.
type rate struct {
	v1, v2, field string
	value         int64
}

func rates(d vserver.Disk) []rate {
	return []rate{
		{"blkio.throttle.read_bps_device", "rbps", "disk.read_bps", d.ReadBPS},
		{"blkio.throttle.write_bps_device", "wbps", "disk.write_bps", d.WriteBPS},
		{"blkio.throttle.read_iops_device", "riops", "disk.read_iops", d.ReadIOPS},
		{"blkio.throttle.write_iops_device", "wiops", "disk.write_iops", d.WriteIOPS},
	}
}
