package testbed

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// loop is a loop device and the file it was attached to when it was found.
type loop struct {
	device string // "/dev/loop3"
	file   string // as the host sees it
	number uint64 // of the file's own device
	inode  uint64
}

type loops []loop

// loops lists the loop devices whose files are the host's.
func (h *Host) loops() (found loops, err error) {
	mountns := h.Mountns()
	if !isPinned(mountns) {
		mountns = ""
	}
	err = Inside("", mountns, func() error { // the kernel names files as the reader sees them
		files, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
		if err != nil {
			return err
		}
		for _, f := range files {
			text, err := os.ReadFile(f)
			if err != nil {
				continue // detached meanwhile
			}
			name := strings.TrimSuffix(strings.TrimSuffix(string(text), "\n"), " (deleted)")
			if !strings.HasPrefix(name, h.Dir()+"/") {
				continue
			}
			device := "/dev/" + strings.Split(f, "/")[3]
			info, err := loopStatus(device)
			if err == nil {
				found = append(found, loop{device: device, file: name, number: info.Device, inode: info.Inode})
			}
		}
		return nil
	})
	return found, err
}

// loopStatus reads what a loop device is attached to.
func loopStatus(device string) (*unix.LoopInfo64, error) {
	fd, err := unix.Open(device, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	return unix.IoctlLoopGetStatus64(fd)
}

// detach frees the devices that did not free themselves with their last mount. It never
// touches one that has been attached to another file since.
func (ls loops) detach(ctx context.Context) error {
	for _, l := range ls {
		for {
			err := l.detach()
			if err == nil {
				break
			}
			select {
			case <-ctx.Done():
				return fmt.Errorf("detach %s from %s: %w", l.device, l.file, err)
			case <-time.After(10 * time.Millisecond):
			}
		}
	}
	return nil
}

func (l loop) detach() error {
	info, err := loopStatus(l.device)
	if errors.Is(err, unix.ENXIO) || errors.Is(err, unix.ENOENT) {
		return nil // free, or gone
	}
	if err != nil {
		return err
	}
	if info.Device != l.number || info.Inode != l.inode {
		return nil
	}
	fd, err := unix.Open(l.device, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	err = unix.IoctlSetInt(fd, unix.LOOP_CLR_FD, 0)
	unix.Close(fd)
	if err != nil && !errors.Is(err, unix.ENXIO) {
		return err
	}
	if _, err := loopStatus(l.device); !errors.Is(err, unix.ENXIO) {
		return errors.New("the device is in use")
	}
	return nil
}
