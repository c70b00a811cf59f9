//go:build linux

package main

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// mounts are the file systems that a server's root could be after. Each is mounted for a
// moment; what a server may have is for the tests to say.
func mounts() []attempt {
	var all []attempt
	add := func(name, kind, source, data string) {
		all = append(all, attempt{name, func() error { return mountOnce(kind, source, data) }})
	}
	for _, device := range []string{"/dev/vda", "/dev/sda1", "/dev/loop0", "/image"} {
		for _, kind := range []string{"ext4", "xfs", "btrfs", "vfat"} {
			add(kind+" of "+device, kind, device, "")
		}
	}
	for _, kind := range []string{"debugfs", "tracefs", "securityfs", "configfs", "pstore", "efivarfs", "devtmpfs", "hugetlbfs", "selinuxfs", "smackfs",
		"fuseblk", "fuse", "9p", "nfs", "cifs", "binder", "nsfs", "proc", "sysfs", "rpc_pipefs", "resctrl", "functionfs", "cpuset"} {
		add(kind, kind, "x", "")
	}
	add("cgroup", "cgroup", "x", "memory")
	add("cgroup, devices", "cgroup", "x", "devices")
	add("cgroup, all", "cgroup", "x", "all")
	add("cgroup, named", "cgroup", "x", "none,name=intruder")
	return all
}

func mountOnce(kind, source, data string) error {
	const at = "/mountpoint"
	if err := os.MkdirAll(at, 0o755); err != nil {
		broken(err)
	}
	if err := unix.Mount(source, at, kind, 0, data); err != nil {
		return err
	}
	if err := unix.Unmount(at, unix.MNT_DETACH); err != nil {
		broken(fmt.Errorf("unmount: %w", err))
	}
	return nil
}

// writable opens every file there is, without changing it.
func writable(dirs []string) {
	for _, dir := range dirs {
		_ = filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
			if err != nil || !entry.Type().IsRegular() {
				return nil
			}
			if fd, err := unix.Open(path, unix.O_WRONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0); err == nil {
				_ = unix.Close(fd)
				fmt.Println(path)
			}
			return nil
		})
	}
}
