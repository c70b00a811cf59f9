package cgroup

import (
	"fmt"
	"os"
	"slices"

	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
	"golang.org/x/sys/unix"
)

// recursiveProtection makes sure that memory.min of a server's group protects the groups
// that the server makes inside it too (memory_recursiveprot, Linux 5.7). systemd mounts
// cgroup2 so, but the option belongs to the kernel's one hierarchy, and whoever mounts
// cgroup2 once more without options takes it away from all: lxcfs does when it starts.
// Everything else about the mount stays as it is.
func recursiveProtection(t tree) error {
	var st unix.Statfs_t
	if err := unix.Statfs(string(t), &st); err != nil {
		return fmt.Errorf("stat %s: %w", t, err)
	}
	if st.Type != unix.CGROUP2_SUPER_MAGIC {
		return nil // a folder in a test
	}
	mountinfo, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return fmt.Errorf("read mounts: %w", err)
	}
	const option = "memory_recursiveprot"
	options, ok := mountOptions(string(mountinfo), string(t))
	if !ok {
		return fault.New(fault.Unavailable, "find cgroup2 at %s among the mounts", t)
	}
	if slices.Contains(options, option) {
		return nil
	}
	if err := reconfigure(string(t), append(options, option)); err != nil {
		return fmt.Errorf("protect memory of nested groups: set %s of %s: %w", option, t, err)
	}
	return nil
}

// reconfigure sets a file system's own options without touching those of the mount. Those
// that are not named again would be taken away.
func reconfigure(dir string, options []string) error {
	fd, err := unix.Fspick(unix.AT_FDCWD, dir, unix.FSPICK_CLOEXEC)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	for _, o := range options {
		if o == "rw" || o == "ro" {
			continue
		}
		if err := unix.FsconfigSetFlag(fd, o); err != nil {
			return fmt.Errorf("option %s: %w", o, err)
		}
	}
	return unix.FsconfigReconfigure(fd)
}
