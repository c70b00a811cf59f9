package disk

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const (
	loopControl  = "/dev/loop-control"
	loopMajor    = 7
	loopAttempts = 64 // others may take the free device we were told of
)

// loopDevice is an open loop device. While it is open it does not clear itself.
type loopDevice struct {
	*os.File
	number uint32 // N of /dev/loopN, and the device's minor
}

// path is the device's node.
func (l *loopDevice) path() string { return loopPath(l.number) }

func loopPath(n uint32) string { return "/dev/loop" + strconv.FormatUint(uint64(n), 10) }

// attachLoop returns the loop device of the backing file: the one it has, else a new one
// with direct I/O that clears itself after its last user. A file never gets a second
// device (two caches over the same blocks destroy a file system); the caller makes sure
// that it is alone with this file.
func attachLoop(backing *os.File) (*loopDevice, error) {
	l, err := findLoop(backing)
	if l != nil || err != nil {
		return l, err
	}
	control, err := os.OpenFile(loopControl, os.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open loop control: %w", err)
	}
	defer control.Close()
	for range loopAttempts {
		n, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
		if err != nil {
			return nil, fmt.Errorf("get free loop device: %w", err)
		}
		l, err := configureLoop(uint32(n), backing)
		if errors.Is(err, unix.EBUSY) {
			continue
		}
		return l, err
	}
	return nil, fmt.Errorf("get free loop device: %d attempts lost to other programs: %w", loopAttempts, unix.EBUSY)
}

// configureLoop binds the backing file to device n. EBUSY: somebody else was faster.
func configureLoop(n uint32, backing *os.File) (*loopDevice, error) {
	l, err := openLoop(n)
	if err != nil {
		return nil, err
	}
	c := unix.LoopConfig{Fd: uint32(backing.Fd()), Size: blockSize}
	c.Info.Flags = unix.LO_FLAGS_DIRECT_IO | unix.LO_FLAGS_AUTOCLEAR
	copy(c.Info.File_name[:len(c.Info.File_name)-1], filepath.Base(backing.Name()))
	if err := unix.IoctlLoopConfigure(int(l.Fd()), &c); err != nil {
		l.Close()
		return nil, fmt.Errorf("configure %s: %w", l.path(), err)
	}
	info, err := unix.IoctlLoopGetStatus64(int(l.Fd()))
	if err != nil {
		l.Close()
		return nil, fmt.Errorf("read status of %s: %w", l.path(), err)
	}
	if info.Flags&unix.LO_FLAGS_DIRECT_IO == 0 {
		l.Close()
		return nil, fmt.Errorf("configure %s: the pool's file system refuses direct I/O in blocks of %d bytes", l.path(), blockSize)
	}
	return l, nil
}

// openLoop opens device n, making its node where nobody does (containers, static /dev).
func openLoop(n uint32) (*loopDevice, error) {
	flags := os.O_RDWR | unix.O_CLOEXEC | unix.O_NOFOLLOW
	f, err := os.OpenFile(loopPath(n), flags, 0)
	if errors.Is(err, os.ErrNotExist) {
		err = unix.Mknod(loopPath(n), unix.S_IFBLK|0o600, int(unix.Mkdev(loopMajor, n)))
		if err != nil && !errors.Is(err, os.ErrExist) {
			return nil, fmt.Errorf("make node %s: %w", loopPath(n), err)
		}
		f, err = os.OpenFile(loopPath(n), flags, 0)
	}
	if err != nil {
		return nil, fmt.Errorf("open loop device: %w", err)
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		f.Close()
		return nil, fmt.Errorf("examine %s: %w", f.Name(), err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFBLK || unix.Major(st.Rdev) != loopMajor || unix.Minor(st.Rdev) != n {
		f.Close()
		return nil, fmt.Errorf("open loop device: %s is not loop device %d", f.Name(), n)
	}
	return &loopDevice{File: f, number: n}, nil
}

// findLoop returns the device that is bound to the file, or nil. Devices whose backing
// file has another name are not even opened.
func findLoop(backing *os.File) (*loopDevice, error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(backing.Fd()), &st); err != nil {
		return nil, fmt.Errorf("examine %s: %w", backing.Name(), err)
	}
	bound, err := boundLoops(filepath.Base(backing.Name()))
	if err != nil {
		return nil, err
	}
	for _, n := range bound {
		l, err := openLoop(n)
		if err != nil {
			continue // it went away
		}
		info, err := unix.IoctlLoopGetStatus64(int(l.Fd()))
		if err == nil && info.Device == st.Dev && info.Inode == st.Ino {
			return l, nil
		}
		l.Close()
	}
	return nil, nil
}

// boundLoops lists the devices whose backing file is named base, in whatever directory.
func boundLoops(base string) ([]uint32, error) {
	entries, err := os.ReadDir("/sys/block")
	if err != nil {
		return nil, fmt.Errorf("list loop devices: %w", err)
	}
	var all []uint32
	for _, e := range entries {
		digits, ok := strings.CutPrefix(e.Name(), "loop")
		if !ok {
			continue
		}
		n, err := strconv.ParseUint(digits, 10, 20)
		if err != nil {
			continue
		}
		text, err := os.ReadFile("/sys/block/" + e.Name() + "/loop/backing_file")
		if err != nil {
			continue // not bound
		}
		name := strings.TrimSuffix(strings.TrimSuffix(string(text), "\n"), " (deleted)")
		if filepath.Base(name) == base {
			all = append(all, uint32(n))
		}
	}
	return all, nil
}

// resize makes the device as large as its backing file has become.
func (l *loopDevice) resize() error {
	if err := unix.IoctlSetInt(int(l.Fd()), unix.LOOP_SET_CAPACITY, 0); err != nil {
		return fmt.Errorf("resize %s: %w", l.path(), err)
	}
	return nil
}

// awaitCleared waits a little until no device is bound to the file; it reports whether
// that is so. A device outlives its unmount while another program (udev, a runtime
// that is just starting) has it or the mount open.
func awaitCleared(ctx context.Context, backing *os.File, patience time.Duration) (bool, error) {
	deadline := time.Now().Add(patience)
	for pause := time.Millisecond; ; pause = min(2*pause, 50*time.Millisecond) {
		l, err := findLoop(backing)
		if err != nil {
			return false, err
		}
		if l == nil {
			return true, nil
		}
		l.Close()
		if time.Now().After(deadline) {
			return false, nil
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return false, ctx.Err()
		}
	}
}
