package cgroup

import (
	"fmt"
	"path"
	"strings"

	"github.com/reflejo/terraform-provider-reflejo/agent/vserver"
)

// The hierarchies of v1. A co-mounted pair ("cpu,cpuacct") is reached by both names
// through the links that every distribution makes.
var (
	requiredV1 = []string{"cpu", "cpuacct", "cpuset", "memory", "blkio", "freezer", "pids"}
	// systemd carries no limits, unified has pressure files and cgroup.kill.
	optionalV1 = []string{"systemd", "unified"}
	// the runtime makes groups there by itself; we only remove what it left.
	runtimeV1 = []string{"devices", "hugetlb", "net_cls", "net_prio", "perf_event", "rdma", "misc"}
)

// stateV1 is what the order and the number of writes depend on.
type stateV1 struct {
	memsw    int64             // memory.memsw.limit_in_bytes
	hasMemsw bool              // the kernel accounts for swap
	throttle map[string]string // content of the blkio.throttle files by name
}

// limitsV1 is every limit of a server, the memory limit first because it alone may be
// refused for a reason of the server's. dir is the server's group below each hierarchy
// and pin its canonical, non-empty cpuset.
func limitsV1(dir string, want vserver.LimitSet, pin string, maxMilliCores int64, now stateV1, pageSize int) []setting {
	in := func(hierarchy, file, value string) setting {
		return setting{file: path.Join(hierarchy, dir, file), value: value}
	}
	out := memoryV1(in, want.Memory, now, pageSize)
	// Buffers of sockets are not part of the limit on v1. Without one of their own a server
	// can fill the table of the whole machine (gigabytes, and then no neighbour receives a
	// datagram); a quarter of its memory is more than the kernel gives a machine by default.
	sockets := in("memory", "memory.kmem.tcp.limit_in_bytes", number(pages(want.Memory.Max/4, pageSize)))
	sockets.optional = true
	quotaValue := "-1"
	if us, ok := quota(capped(want.CPU.MilliCores, maxMilliCores)); ok {
		quotaValue = number(us)
	}
	processes := unlimited
	if want.Processes > 0 {
		processes = number(want.Processes)
	}
	burst := in("cpu", "cpu.cfs_burst_us", "0")
	burst.optional = true
	out = append(out,
		sockets,
		burst,
		in("cpu", "cpu.cfs_period_us", number(period)),
		in("cpu", "cpu.cfs_quota_us", quotaValue),
		in("cpu", "cpu.shares", number(shares(want.CPU.Weight))),
		in("cpuset", "cpuset.cpus", pin),
		in("pids", "pids.max", processes),
	)
	for _, s := range throttleV1(now.throttle, want) {
		s.file = path.Join("blkio", dir, s.file)
		out = append(out, s)
	}
	return out
}

// capped is a quota that its parent's cap admits: v1 refuses a larger one, and its
// effect would be the same.
func capped(milliCores, limit int64) int64 {
	if limit > 0 && (milliCores == 0 || milliCores > limit) {
		return limit
	}
	return milliCores
}

// memoryV1 orders the two hard limits so that memory never exceeds memory+swap on the
// way, which the kernel refuses.
func memoryV1(in func(h, f, v string) setting, m vserver.Memory, now stateV1, pageSize int) []setting {
	hard, high := memoryLimits(m, pageSize)
	limit := in("memory", "memory.limit_in_bytes", number(hard))
	limit.memory = true
	var out []setting
	if now.hasMemsw {
		total := hard + pages(m.Swap, pageSize)
		swap := in("memory", "memory.memsw.limit_in_bytes", number(total))
		swap.memory = true
		if hard > now.memsw {
			out = append(out, swap, limit)
		} else {
			out = append(out, limit, swap)
		}
	} else {
		out = append(out, limit)
		if m.Swap == 0 {
			// the nearest thing where swap is not accounted for
			s := in("memory", "memory.swappiness", "0")
			s.optional = true
			out = append(out, s)
		}
	}
	// Under pressure of the whole host v1 first takes from groups above their soft
	// limit. Without a throttle limit a server's is its hard one: as near to a guarantee
	// as v1 comes.
	soft := hard
	if high > 0 {
		soft = high
	}
	return append(out, in("memory", "memory.soft_limit_in_bytes", number(soft)))
}

// throttleV1 gives the wanted device its rates and takes those of other devices away.
// Lines of the files: "7:3 1048576"; writing a rate of 0 removes the line.
func throttleV1(now map[string]string, want vserver.LimitSet) []setting {
	device := fmt.Sprintf("%d:%d", want.Major, want.Minor)
	var out []setting
	for _, r := range rates(want.Disk) {
		present := "0"
		for l := range strings.Lines(now[r.v1]) {
			key, value, ok := strings.Cut(strings.TrimSpace(l), " ")
			switch {
			case !ok:
			case key == device:
				present = value
			default:
				out = append(out, setting{file: r.v1, value: key + " 0", old: key + " " + value, keyed: true, optional: true})
			}
		}
		if wanted := number(r.value); want.Major != 0 && present != wanted {
			out = append(out, setting{file: r.v1, value: device + " " + wanted, old: device + " " + present, keyed: true, optional: r.value == 0})
		}
	}
	return out
}

// parentV1 are the settings of the group of all servers.
func parentV1(cfg Config) []setting {
	quotaValue := "-1"
	if us, ok := quota(cfg.MaxMilliCores); ok {
		quotaValue = number(us)
	}
	return []setting{
		{file: path.Join("cpu", cfg.Parent, "cpu.shares"), value: number(shares(cfg.Weight))},
		{file: path.Join("cpu", cfg.Parent, "cpu.cfs_period_us"), value: number(period)},
		{file: path.Join("cpu", cfg.Parent, "cpu.cfs_quota_us"), value: quotaValue},
	}
}
