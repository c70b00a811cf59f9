package cgroup

import (
	"strconv"
	"strings"
	"time"

	"github.com/reflejo/terraform-provider-reflejo/agent/vserver"
)

// flat parses "key value" lines, as in memory.stat, cpu.stat and cgroup.events. Lines of
// another form are skipped: kernels add some.
func flat(content string) map[string]int64 {
	out := map[string]int64{}
	for l := range strings.Lines(content) {
		key, value, ok := strings.Cut(strings.TrimSpace(l), " ")
		if !ok {
			continue
		}
		if n, err := strconv.ParseInt(value, 10, 64); err == nil {
			out[key] = n
		}
	}
	return out
}

// single parses a file with one number; "max" and what is no number are -1.
func single(content string) int64 {
	n, err := strconv.ParseInt(strings.TrimSpace(content), 10, 64)
	if err != nil {
		return -1
	}
	return n
}

// some10 is the share of the last ten seconds in which some task waited, from a pressure
// file: "some avg10=1.50 avg60=…".
func some10(content string) float64 {
	for l := range strings.Lines(content) {
		rest, ok := strings.CutPrefix(l, "some avg10=")
		if !ok {
			continue
		}
		value, _, _ := strings.Cut(rest, " ")
		if pct, err := strconv.ParseFloat(value, 64); err == nil {
			return pct / 100
		}
	}
	return 0
}

// transfer are the I/O counters of one device.
type transfer struct{ readBytes, writeBytes, readOps, writeOps int64 }

// ioStatV2 parses io.stat: "7:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=0 dios=0".
func ioStatV2(content string) map[string]transfer {
	out := map[string]transfer{}
	for l := range strings.Lines(content) {
		fields := strings.Fields(l)
		if len(fields) < 2 {
			continue
		}
		var t transfer
		for _, f := range fields[1:] {
			key, value, _ := strings.Cut(f, "=")
			n, err := strconv.ParseInt(value, 10, 64)
			if err != nil {
				continue
			}
			switch key {
			case "rbytes":
				t.readBytes = n
			case "wbytes":
				t.writeBytes = n
			case "rios":
				t.readOps = n
			case "wios":
				t.writeOps = n
			}
		}
		out[fields[0]] = t
	}
	return out
}

// ioStatV1 parses blkio.throttle.io_service_bytes and io_serviced: "7:0 Read 4096".
func ioStatV1(bytes, ops string) map[string]transfer {
	out := map[string]transfer{}
	each := func(content string, add func(t *transfer, kind string, n int64)) {
		for l := range strings.Lines(content) {
			fields := strings.Fields(l)
			if len(fields) != 3 {
				continue // "Total 0"
			}
			n, err := strconv.ParseInt(fields[2], 10, 64)
			if err != nil {
				continue
			}
			t := out[fields[0]]
			add(&t, fields[1], n)
			out[fields[0]] = t
		}
	}
	each(bytes, func(t *transfer, kind string, n int64) {
		switch kind {
		case "Read":
			t.readBytes = n
		case "Write":
			t.writeBytes = n
		}
	})
	each(ops, func(t *transfer, kind string, n int64) {
		switch kind {
		case "Read":
			t.readOps = n
		case "Write":
			t.writeOps = n
		}
	})
	return out
}

// pick chooses a server's transfers. What it does to its disk is counted again on every
// device below (the pool's, when that is a file), so devices are never added up: it is
// the known device, or without one the largest of each counter.
func pick(all map[string]transfer, device string) transfer {
	if t, ok := all[device]; ok {
		return t
	}
	var out transfer
	for _, t := range all {
		out.readBytes = max(out.readBytes, t.readBytes)
		out.writeBytes = max(out.writeBytes, t.writeBytes)
		out.readOps = max(out.readOps, t.readOps)
		out.writeOps = max(out.writeOps, t.writeOps)
	}
	return out
}

// Rates are a server's use between two moments.
type Rates struct {
	Cores     float64 // processors in use
	Throttled float64 // share of the time in which the quota held it back, summed over processors
	ReadBPS   float64 // bytes per second
	WriteBPS  float64
	ReadIOPS  float64 // operations per second
	WriteIOPS float64
}

// RatesOf compares two readings of Usage taken elapsed apart: what the limits came to in
// fact. Zero elapsed gives zero rates.
func RatesOf(before, after vserver.Usage, elapsed time.Duration) Rates {
	s := elapsed.Seconds()
	if s <= 0 {
		return Rates{}
	}
	return Rates{
		Cores:     (after.CPU - before.CPU).Seconds() / s,
		Throttled: (after.Throttled - before.Throttled).Seconds() / s,
		ReadBPS:   float64(after.ReadBytes-before.ReadBytes) / s,
		WriteBPS:  float64(after.WriteBytes-before.WriteBytes) / s,
		ReadIOPS:  float64(after.ReadOps-before.ReadOps) / s,
		WriteIOPS: float64(after.WriteOps-before.WriteOps) / s,
	}
}
