// Package sysctl raises the kernel-wide tables that servers share.
//
// Some tables are counted per user of the host, and every server's user namespace belongs
// to the host's root: with the kernel's defaults one server can take them all (128 inotify
// instances are gone in a moment) and its neighbours, and the agent, get errors. They are
// raised so far that a server's own limits (memory, which pays for each entry, processes,
// open files) end it first. What a server is bounded by is therefore its own control group.
//
// Values are only ever raised; what an administrator set higher stays.
package sysctl

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// Table is one kernel-wide table.
type Table struct {
	Name    string // below /proc/sys, with slashes
	AtLeast int64
	Why     string
}

// most is the largest value that the kernel takes for a 32-bit table.
const most = 1<<31 - 1

// neighbours are the addresses that the kernel knows at once, 384 bytes each. More can be
// used up by scanning a network that is large enough, but not from a server with its
// default bandwidth, as the entries of addresses that do not answer end after seconds.
const neighbours = 1 << 17

// Tables are all that are raised.
func Tables() []Table {
	return []Table{
		{"fs/inotify/max_user_instances", most, "counted for the host's root over all servers; memory pays for each"},
		{"fs/inotify/max_user_watches", most, "counted for the host's root over all servers; memory pays for each"},
		{"fs/inotify/max_queued_events", 65536, "systemd and file watchers of large servers"},
		{"fs/fanotify/max_user_groups", most, "counted for the host's root over all servers"},
		{"fs/fanotify/max_user_marks", most, "counted for the host's root over all servers"},
		{"fs/aio-max-nr", most, "one table for the host; databases take tens of thousands"},
		{"fs/file-max", most << 10, "one table for the host; memory pays for each"},
		{"fs/nr_open", 1 << 30, "the ceiling of every server's own file limit"},
		{"kernel/pid_max", 4 << 20, "servers' process limits add up"},
		{"kernel/threads-max", 4 << 20, "servers' process limits add up"},
		{"kernel/pty/max", 32768, "one table for the host; not more, as 20 kB of each are nobody's memory"},
		{"kernel/keys/root_maxkeys", 1_000_000, "the host's own keys, one set per server"},
		{"kernel/keys/root_maxbytes", 25_000_000, "the host's own keys, one set per server"},
		{"net/ipv4/neigh/default/gc_thresh3", neighbours, "one table for the network namespaces of all servers, whose entries are nobody's memory"},
		{"net/ipv6/neigh/default/gc_thresh3", neighbours, "one table for the network namespaces of all servers, whose entries are nobody's memory"},
		{"user/max_cgroup_namespaces", most, "counted for the host's root over all servers"},
		{"user/max_ipc_namespaces", most, "counted for the host's root over all servers"},
		{"user/max_mnt_namespaces", most, "counted for the host's root over all servers; systemd makes one per hardened service"},
		{"user/max_net_namespaces", most, "counted for the host's root over all servers"},
		{"user/max_pid_namespaces", most, "counted for the host's root over all servers"},
		{"user/max_time_namespaces", most, "counted for the host's root over all servers"},
		{"user/max_user_namespaces", most, "counted for the host's root over all servers; the agent needs one per server"},
		{"user/max_uts_namespaces", most, "counted for the host's root over all servers"},
		{"vm/max_map_count", 262144, "databases and search engines map many files"},
	}
}

// Raise raises all tables below root ("/proc/sys"). A table that this kernel does not have
// is passed over; the error names those that could not be raised and wraps the first cause.
func Raise(root string) error {
	var failed []string
	var first error
	for _, t := range Tables() {
		if err := raise(filepath.Join(root, t.Name), t.AtLeast); err != nil && !errors.Is(err, fs.ErrNotExist) {
			failed = append(failed, t.Name)
			if first == nil {
				first = err
			}
		}
	}
	if first == nil {
		return nil
	}
	return fmt.Errorf("raise %s: %w", strings.Join(failed, ", "), first)
}

func raise(path string, atLeast int64) error {
	text, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	now, err := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64)
	if err != nil {
		return fmt.Errorf("read it: %w", err)
	}
	if now >= atLeast {
		return nil
	}
	return os.WriteFile(path, []byte(strconv.FormatInt(atLeast, 10)), 0)
}
