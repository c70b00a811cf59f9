package store

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// holder names the process that has the lock on the file, for an error message.
func holder(path string) string {
	const unknown = "another process"
	var st unix.Stat_t
	if unix.Stat(path, &st) != nil {
		return unknown
	}
	locks, err := os.Open("/proc/locks")
	if err != nil {
		return unknown
	}
	defer locks.Close()
	pid := lockHolder(io.LimitReader(locks, 1<<20), unix.Major(st.Dev), unix.Minor(st.Dev), st.Ino)
	if pid <= 0 { // none, or of another PID namespace
		return unknown
	}
	if pid == os.Getpid() {
		return fmt.Sprintf("this process (%d)", pid)
	}
	name, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
	if err != nil {
		return fmt.Sprintf("process %d", pid)
	}
	return fmt.Sprintf("process %d (%s)", pid, strings.TrimSpace(string(name)))
}

// lockHolder finds who holds a flock lock in the text of /proc/locks, 0 if nobody:
//
//	1: FLOCK  ADVISORY  WRITE 1234 fe:00:5678 0 EOF
func lockHolder(locks io.Reader, major, minor uint32, inode uint64) int {
	want := fmt.Sprintf("%02x:%02x:%d", major, minor, inode)
	for lines := bufio.NewScanner(locks); lines.Scan(); {
		f := strings.Fields(lines.Text())
		// A waiting process has an extra "->" after the number.
		if len(f) < 6 || f[1] != "FLOCK" || f[5] != want {
			continue
		}
		var pid int
		if _, err := fmt.Sscanf(f[4], "%d", &pid); err == nil {
			return pid
		}
	}
	return 0
}

// release gives up the file's lock after bbolt has panicked. Closing alone would not: the
// mapping that bbolt leaves behind keeps the open file, and with it the lock.
func release(file *os.File) {
	unix.Flock(int(file.Fd()), unix.LOCK_UN) // an error means bbolt has closed it itself
	file.Close()
}

// syncDir makes a new name in the directory durable.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("sync %s: %w", dir, err)
	}
	defer d.Close()
	if err := d.Sync(); err != nil {
		return fmt.Errorf("sync %s: %w", dir, err)
	}
	return nil
}
