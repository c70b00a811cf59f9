package oci

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// stateFile and fifoFile are what a runtime keeps of a server in <root>/<id>. While the
// fifo is there, init waits to be started. Reading them takes microseconds; asking the
// runtime starts a process, which for 500 servers is seconds.
const (
	stateFileRunc = "state.json"
	stateFileCrun = "status"
	fifoFile      = "exec.fifo"
)

// runState is what we need of a state file.
type runState struct {
	Pid     int
	Ticks   uint64 // start of the process in clock ticks since boot: tells it from a later one with its pid
	Created time.Time
	Freezer string // v1: directory of the freezer group; v2: of the group; "" if unknown
}

// decodeRunc reads runc's state.json.
func decodeRunc(b []byte) (runState, error) {
	var s struct {
		Pid     int               `json:"init_process_pid"`
		Ticks   uint64            `json:"init_process_start"`
		Created time.Time         `json:"created"`
		Cgroups map[string]string `json:"cgroup_paths"`
	}
	if err := json.Unmarshal(b, &s); err != nil {
		return runState{}, fmt.Errorf("decode runc state: %w", err)
	}
	out := runState{Pid: s.Pid, Ticks: s.Ticks, Created: s.Created, Freezer: s.Cgroups["freezer"]}
	if out.Freezer == "" {
		out.Freezer = s.Cgroups[""]
	}
	return out, nil
}

// decodeCrun reads crun's status.
func decodeCrun(b []byte) (runState, error) {
	var s struct {
		Pid     int       `json:"pid"`
		Ticks   uint64    `json:"process-start-time"`
		Created time.Time `json:"created"`
	}
	if err := json.Unmarshal(b, &s); err != nil {
		return runState{}, fmt.Errorf("decode crun status: %w", err)
	}
	return runState{Pid: s.Pid, Ticks: s.Ticks, Created: s.Created}, nil
}

// parseStat reads /proc/<pid>/stat: the state letter and the start in ticks. The command
// name between the parentheses is the process's own choice and may contain anything.
func parseStat(b []byte) (state byte, ticks uint64, err error) {
	end := bytes.LastIndexByte(b, ')')
	if end < 0 {
		return 0, 0, fmt.Errorf("parse stat: no command in %q", b)
	}
	const startTime = 19 // counted from the state
	fields := bytes.Fields(b[end+1:])
	if len(fields) <= startTime {
		return 0, 0, fmt.Errorf("parse stat: %d fields after the command", len(fields))
	}
	ticks, err = strconv.ParseUint(string(fields[startTime]), 10, 64)
	if err != nil {
		return 0, 0, fmt.Errorf("parse stat: %w", err)
	}
	return fields[0][0], ticks, nil
}

// handlesSignal reads /proc/<pid>/status: whether signal s is caught, or blocked for a signalfd.
func handlesSignal(status string, s int) bool {
	for line := range strings.Lines(status) {
		name, value, _ := strings.Cut(line, ":")
		if name != "SigCgt" && name != "SigBlk" {
			continue
		}
		mask, err := strconv.ParseUint(strings.TrimSpace(value), 16, 64)
		if err == nil && mask&(1<<(s-1)) != 0 {
			return true
		}
	}
	return false
}
