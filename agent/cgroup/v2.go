package cgroup

import (
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/reflejo/terraform-provider-reflejo/agent/vserver"
)

// controllersV2 are enabled from the root of the tree down to what is delegated.
var controllersV2 = []string{"cpu", "cpuset", "io", "memory", "pids"}

// limitsV2 is everything but the hard memory limit, which needs care (see lowerV2).
// dir is the server's group below the mount, pin its canonical cpuset and ioMax the
// present content of io.max.
func limitsV2(dir string, want vserver.LimitSet, pin, ioMax string, pageSize int) []setting {
	hard, high := memoryLimits(want.Memory, pageSize)
	highValue := unlimited
	if high > 0 {
		highValue = number(high)
	}
	cpuMax := unlimited
	if us, ok := quota(want.CPU.MilliCores); ok {
		cpuMax = number(us)
	}
	processes := unlimited
	if want.Processes > 0 {
		processes = number(want.Processes)
	}
	s := []setting{
		{file: "memory.high", value: highValue},
		{file: "memory.swap.max", value: number(pages(want.Memory.Swap, pageSize)), optional: true},
		{file: "memory.min", value: number(hard)},
		{file: "cpu.max", value: fmt.Sprintf("%s %d", cpuMax, period)},
		{file: "cpu.max.burst", value: "0", optional: true},
		{file: "cpu.weight", value: number(weightV2(want.CPU.Weight))},
		{file: "cpuset.cpus", value: pin},
		{file: "pids.max", value: processes},
		{file: "cgroup.max.descendants", value: number(maxDescendants), optional: true},
		{file: "cgroup.max.depth", value: number(maxDepth), optional: true},
	}
	s = append(s, ioMaxV2(ioMax, want)...)
	for i := range s {
		s[i].file = path.Join(dir, s[i].file)
	}
	return s
}

// ioMaxV2 gives the wanted device its rates and takes those of all other devices away.
// Lines of io.max: "8:16 rbps=2097152 wbps=max riops=max wiops=120".
func ioMaxV2(now string, want vserver.LimitSet) []setting {
	const none = "rbps=max wbps=max riops=max wiops=max"
	device := fmt.Sprintf("%d:%d", want.Major, want.Minor)
	line := make([]string, 0, 4)
	for _, r := range rates(want.Disk) {
		if r.value == 0 {
			line = append(line, r.v2+"="+unlimited)
		} else {
			line = append(line, r.v2+"="+number(r.value))
		}
	}
	wanted := strings.Join(line, " ")
	present := none
	var out []setting
	for l := range strings.Lines(now) {
		key, rest, ok := strings.Cut(strings.TrimSpace(l), " ")
		if !ok {
			continue
		}
		if key == device {
			present = rest
			continue
		}
		// optional: a device that is gone has taken its limits along
		out = append(out, setting{file: "io.max", value: key + " " + none, old: key + " " + rest, keyed: true, optional: true})
	}
	if want.Major != 0 && present != wanted {
		out = append(out, setting{file: "io.max", value: device + " " + wanted, old: device + " " + present, keyed: true, optional: wanted == none})
	}
	return out
}

// parentV2 are the settings of the group of all servers. min is the sum of what the
// servers are guaranteed: protection counts only as far as every ancestor has it too.
func parentV2(cfg Config, min int64) []setting {
	cpuMax := unlimited
	if us, ok := quota(cfg.MaxMilliCores); ok {
		cpuMax = number(us)
	}
	s := []setting{
		{file: "cpu.weight", value: number(cfg.Weight)},
		{file: "cpu.max", value: fmt.Sprintf("%s %d", cpuMax, period)},
		{file: "memory.min", value: number(min)},
	}
	for i := range s {
		s[i].file = path.Join(cfg.Parent, s[i].file)
	}
	return s
}

// mountOptions finds the options of the file system mounted at a directory in the content
// of /proc/self/mountinfo; the last mount there counts.
func mountOptions(mountinfo, dir string) (options []string, ok bool) {
	for l := range strings.Lines(mountinfo) {
		// 35 24 0:30 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate
		mount, fs, found := strings.Cut(l, " - ")
		fields, fsFields := strings.Fields(mount), strings.Fields(fs)
		if !found || len(fields) < 5 || len(fsFields) < 3 || fields[4] != dir {
			continue
		}
		options, ok = strings.Split(fsFields[2], ","), fsFields[0] == "cgroup2"
	}
	return options, ok
}

// missing are the wanted controllers that are not in a file like cgroup.controllers.
func missing(content string, wanted []string) []string {
	have := strings.Fields(content)
	var out []string
	for _, c := range wanted {
		if !slices.Contains(have, c) {
			out = append(out, c)
		}
	}
	return out
}
