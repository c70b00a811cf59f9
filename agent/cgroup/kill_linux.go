package cgroup

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
	"golang.org/x/sys/unix"
)

// killAll ends every process of a group where the kernel has no cgroup.kill. The group
// is stopped first, so that a fork bomb cannot run ahead of the list, and continued
// afterwards, because on v1 a frozen task does not die. It goes round until nothing is
// left. dir is the group as /proc/<pid>/cgroup shows it.
func killAll(ctx context.Context, procs func() ([]int, error), dir string, freeze, thaw func() error) error {
	left := 0
	err := poll(ctx, patience, func() (bool, error) {
		if err := freeze(); err != nil {
			return false, errors.Join(err, thaw())
		}
		pids, err := procs()
		for _, pid := range pids {
			err = errors.Join(err, killOne(pid, dir))
		}
		if err := errors.Join(err, thaw()); err != nil {
			return false, err
		}
		if pids, err = procs(); err != nil {
			return false, err
		}
		if left = len(pids); left > 0 {
			settle(pids)
		}
		return left == 0, nil
	})
	if fault.Is(err, fault.Unavailable) {
		return fault.New(fault.Unavailable, "%d processes do not end: %w", left, err)
	}
	return err
}

// settle gives killed processes a moment to end before they are stopped once more.
func settle(pids []int) {
	deadline := time.Now().Add(50 * time.Millisecond)
	for _, pid := range pids {
		fd, err := unix.PidfdOpen(pid, 0)
		if err != nil {
			continue
		}
		wait := max(0, time.Until(deadline))
		_, _ = unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, int(wait.Milliseconds()))
		unix.Close(fd)
	}
}

// killOne sends SIGKILL to a process if it is in the group. The descriptor holds on to
// the process: its number may have been given to another one since it was listed.
func killOne(pid int, dir string) error {
	fd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) || errors.Is(err, unix.EINVAL) {
		return nil // ended
	}
	if err != nil {
		return fmt.Errorf("open process %d: %w", pid, err)
	}
	defer unix.Close(fd)
	groups, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err != nil || !inGroup(string(groups), dir) {
		return nil // ended, or another process by now
	}
	if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("kill process %d: %w", pid, err)
	}
	return nil
}

// inGroup reports whether some line "n:controllers:path" of a /proc/<pid>/cgroup is the
// group or below it.
func inGroup(content, dir string) bool {
	for l := range strings.Lines(content) {
		parts := strings.SplitN(strings.TrimSuffix(l, "\n"), ":", 3)
		if len(parts) == 3 && (parts[2] == dir || strings.HasPrefix(parts[2], dir+"/")) {
			return true
		}
	}
	return false
}
