package cgroup

import (
	"strconv"

	"github.com/reflejo/terraform-provider-reflejo/agent/vserver"
)

// setting is one write to a control file.
type setting struct {
	file     string // below the cgroup mount: "memory/reflejo/<id>/memory.limit_in_bytes"
	value    string
	optional bool // not every kernel has the file
	// keyed files take one line per device and merge it: the value before is not the
	// file's content but the line that puts this device back.
	keyed bool
	old   string
	// memory marks a limit that the kernel refuses (EBUSY) when more is in use.
	memory bool
}

// period is the CPU quota's accounting period in microseconds. Longer ones are exact for
// longer and stall a busy server longer; 100 ms is the kernel's own.
const period = 100_000

const unlimited = "max"

// quota is a CPU quota in microseconds per period; ok is false where there is none.
func quota(milliCores int64) (us int64, ok bool) {
	if milliCores <= 0 {
		return 0, false
	}
	return milliCores * period / 1000, true
}

// weightV2 is the wanted weight, 100 where none was asked for.
func weightV2(weight int64) int64 {
	if weight == 0 {
		return 100
	}
	return weight
}

// shares maps a weight to v1: 100 is the kernel's normal 1024.
func shares(weight int64) int64 {
	return max(2, weightV2(weight)*1024/100)
}

// pages rounds down to whole pages, as the kernel does, so that what is read back equals
// what was written.
func pages(bytes int64, pageSize int) int64 {
	return bytes / int64(pageSize) * int64(pageSize)
}

func number(n int64) string { return strconv.FormatInt(n, 10) }

// swapless memory of a server in bytes, rounded, as (hard, throttle) limits.
func memoryLimits(m vserver.Memory, pageSize int) (hard, high int64) {
	return pages(m.Max, pageSize), pages(m.High, pageSize)
}
