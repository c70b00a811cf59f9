package testbed

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// process is a process that can't be mistaken for a later one with the same id.
type process struct {
	PID   int
	Start uint64 // clock ticks after the boot
}

// readProcess reads who has a process id now.
func readProcess(pid int) (process, error) {
	p, _, err := readStat(pid)
	return p, err
}

// readStat reads a process and its parent's id. A zombie does not exist.
func readStat(pid int) (process, int, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return process{}, 0, err
	}
	return parseStat(string(text))
}

// parseStat reads proc_pid_stat(5).
func parseStat(text string) (process, int, error) {
	id, _, _ := strings.Cut(text, " ")
	// The second field is the program's name in brackets, with anything in it.
	fields := strings.Fields(text[strings.LastIndexByte(text, ')')+1:])
	if len(fields) < 20 {
		return process{}, 0, fmt.Errorf("read process: %q is not what the kernel writes", text)
	}
	if fields[0] == "Z" || fields[0] == "X" {
		return process{}, 0, os.ErrNotExist
	}
	pid, err1 := strconv.Atoi(id)
	parent, err2 := strconv.Atoi(fields[1])
	start, err3 := strconv.ParseUint(fields[19], 10, 64)
	return process{PID: pid, Start: start}, parent, errors.Join(err1, err2, err3)
}

// alive reports whether the process still runs.
func (p process) alive() bool {
	now, err := readProcess(p.PID)
	return err == nil && now == p
}

// kill sends SIGKILL to the process, never to another one with its id.
func (p process) kill() error {
	fd, err := unix.PidfdOpen(p.PID, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("open process %d: %w", p.PID, err)
	}
	defer unix.Close(fd)
	if !p.alive() { // checked after the descriptor was opened: it is this process or nobody
		return nil
	}
	if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("kill process %d: %w", p.PID, err)
	}
	return nil
}

// save writes who the process is to a file; loadProcess reads it.
func (p process) save(file string) error {
	text, err := json.Marshal(p)
	if err != nil {
		return err
	}
	return os.WriteFile(file, text, 0o644)
}

// loadProcess reads the process of a file; ok is false if there is none or it has ended.
func loadProcess(file string) (p process, ok bool) {
	text, err := os.ReadFile(file)
	if err != nil || json.Unmarshal(text, &p) != nil {
		return process{}, false
	}
	return p, p.alive()
}

// belonging says which processes are a host's.
type belonging struct {
	netns, mountns uint64 // inode numbers of its namespaces, 0: none
	cgroup         string // its control groups' parent, "/reflejo-alpha"
}

// processes lists everything that runs on a host: what is in its namespaces, what is in
// its control groups, and all that these have started.
func (b belonging) processes() ([]process, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	type seen struct {
		process
		parent int
	}
	var all []seen
	ours := map[int]bool{}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		p, parent, err := readStat(pid)
		if err != nil {
			continue // ended meanwhile
		}
		all = append(all, seen{p, parent})
		ours[pid] = b.owns(pid)
	}
	for grown := true; grown; {
		grown = false
		for _, p := range all {
			if !ours[p.PID] && ours[p.parent] {
				ours[p.PID], grown = true, true
			}
		}
	}
	var found []process
	for _, p := range all {
		if ours[p.PID] && p.PID != os.Getpid() {
			found = append(found, p.process)
		}
	}
	return found, nil
}

func (b belonging) owns(pid int) bool {
	dir := fmt.Sprintf("/proc/%d/", pid)
	if n := namespaceID(dir + "ns/net"); n != 0 && n == b.netns {
		return true
	}
	if n := namespaceID(dir + "ns/mnt"); n != 0 && n == b.mountns {
		return true
	}
	groups, err := os.ReadFile(dir + "cgroup")
	if err != nil {
		return false
	}
	for line := range strings.Lines(string(groups)) {
		_, rest, _ := strings.Cut(strings.TrimSpace(line), ":")
		_, path, _ := strings.Cut(rest, ":")
		if path == b.cgroup || path == b.cgroup+besideSuffix || strings.HasPrefix(path, b.cgroup+"/") {
			return true
		}
	}
	return false
}

// namespaceID is the inode number of a namespace, 0 if it can't be read.
func namespaceID(path string) uint64 {
	var st unix.Stat_t
	if unix.Stat(path, &st) != nil {
		return 0
	}
	return st.Ino
}

// killAll ends every process of a host by SIGKILL, frozen ones too, and returns when none
// is left.
func (b belonging) killAll(ctx context.Context) error {
	for {
		found, err := b.processes()
		if err != nil {
			return err
		}
		if len(found) == 0 {
			return nil
		}
		for _, p := range found {
			if err := p.kill(); err != nil {
				return err
			}
		}
		if err := thawAll(b.cgroup); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("end %d processes of %s: %w", len(found), b.cgroup, ctx.Err())
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// besideSuffix is what an agent adds to its parent control group's name for the group of
// what it keeps beside the servers.
const besideSuffix = "-beside"

// groupDirs lists the directories of a host's control groups in every hierarchy, parents
// first.
func groupDirs(parent string) ([]string, error) {
	mounts, err := readMounts()
	if err != nil {
		return nil, err
	}
	var dirs []string
	for _, m := range mounts {
		if m.kind != "cgroup" && m.kind != "cgroup2" {
			continue
		}
		for _, top := range []string{parent, parent + besideSuffix} {
			err := filepath.WalkDir(filepath.Join(m.point, top), func(path string, d os.DirEntry, err error) error {
				if errors.Is(err, os.ErrNotExist) {
					return nil // never was, or went away while we looked
				}
				if err == nil && d.IsDir() {
					dirs = append(dirs, path)
				}
				return err
			})
			if err != nil {
				return nil, fmt.Errorf("list control groups %s: %w", top, err)
			}
		}
	}
	return dirs, nil
}

// thawAll lets frozen tasks run on, to their end: a v1 freezer holds even killed ones.
func thawAll(parent string) error {
	dirs, err := groupDirs(parent)
	if err != nil {
		return err
	}
	for _, dir := range dirs {
		err := os.WriteFile(filepath.Join(dir, "freezer.state"), []byte("THAWED"), 0)
		if err != nil && !errors.Is(err, os.ErrNotExist) && !errors.Is(err, os.ErrPermission) && !errors.Is(err, unix.ENODEV) {
			return fmt.Errorf("thaw %s: %w", dir, err)
		}
	}
	return nil
}

// removeGroups removes the empty control groups of a host.
func removeGroups(ctx context.Context, parent string) error {
	for {
		dirs, err := groupDirs(parent)
		if err != nil || len(dirs) == 0 {
			return err
		}
		for i := len(dirs) - 1; i >= 0 && err == nil; i-- {
			if err = unix.Rmdir(dirs[i]); errors.Is(err, unix.ENOENT) {
				err = nil
			}
		}
		if err == nil {
			continue
		}
		select { // the kernel takes its time with the dead
		case <-ctx.Done():
			return fmt.Errorf("remove control groups %s: %w", parent, err)
		case <-time.After(10 * time.Millisecond):
		}
	}
}
