package disk

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"unsafe"

	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
	"golang.org/x/sys/unix"
)

const (
	ext4IocResizeFS = 0x40086610 // _IOW('f', 16, __u64)
	fiTrim          = 0xc0185879 // _IOWR('X', 121, struct fstrim_range)
)

// readSuperblock reads the superblock of a disk.
func readSuperblock(disk *os.File) (superblock, error) {
	b := make([]byte, superblockSize)
	if _, err := disk.ReadAt(b, superblockOffset); err != nil {
		return superblock{}, fmt.Errorf("read superblock of %s: %w", disk.Name(), err)
	}
	s, err := parseSuperblock(b)
	if err != nil {
		return s, fmt.Errorf("read superblock of %s: %w", disk.Name(), err)
	}
	return s, nil
}

// growExt4 makes the mounted file system as many blocks large; it may be in use.
func growExt4(root *os.File, blocks uint64) error {
	if err := ioctlPointer(root, ext4IocResizeFS, unsafe.Pointer(&blocks)); err != nil {
		return fmt.Errorf("grow file system %s to %d blocks: %w", root.Name(), blocks, err)
	}
	return nil
}

// mayGrowLive reports whether the kernel lets this process grow a mounted ext4.
func mayGrowLive() bool {
	var data [2]unix.CapUserData
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	if err := unix.Capget(&header, &data[0]); err != nil {
		return false
	}
	return data[unix.CAP_SYS_RESOURCE/32].Effective&(1<<(unix.CAP_SYS_RESOURCE%32)) != 0
}

// growUnmounted makes the file system fill its device, for an agent that may not do it
// live. Both programs open the device exclusively: it is not mounted under them.
func growUnmounted(ctx context.Context, l *loopDevice) error {
	if err := l.resize(); err != nil {
		return err
	}
	if _, _, err := repair(ctx, l.path(), "-f"); err != nil { // resize2fs asks for a full check
		return err
	}
	if _, err := runTool(ctx, nil, "resize2fs", l.path()); err != nil {
		return fmt.Errorf("grow file system: %w", err)
	}
	return nil
}

// trim gives free extents of at least minimum bytes back to the pool.
func trim(root *os.File, minimum uint64) (freed uint64, err error) {
	r := struct{ start, length, minimum uint64 }{0, ^uint64(0), minimum}
	if err := ioctlPointer(root, fiTrim, unsafe.Pointer(&r)); err != nil {
		return 0, fmt.Errorf("trim %s: %w", root.Name(), err)
	}
	return r.length, nil
}

func ioctlPointer(f *os.File, request uintptr, p unsafe.Pointer) error {
	for {
		_, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), request, uintptr(p))
		if errno == unix.EINTR {
			continue
		}
		if errno != 0 {
			return errno
		}
		return nil
	}
}

// repair lets e2fsck mend what it can without losing data. An error says that an operator
// has to look at the disk.
func repair(ctx context.Context, device string, options ...string) (mended bool, report string, err error) {
	argv := append([]string{"e2fsck", "-p"}, options...)
	out, err := runTool(ctx, nil, append(argv, device)...)
	var exit *exec.ExitError
	switch {
	case err == nil:
		return false, out, nil
	case errors.As(err, &exit) && exit.ExitCode() > 0 && exit.ExitCode() < 4: // 1: mended, 2: … and reboot if it were the root
		return true, out, nil
	case errors.As(err, &exit) && exit.ExitCode()&(4|8) != 0: // 8: not even the superblock is sound
		return false, out, fault.New(fault.Precondition, "e2fsck cannot mend the file system by itself; copy the disk and run e2fsck -y on it, or restore a snapshot: %s", out)
	}
	return false, out, fmt.Errorf("check file system: %w", err)
}

// runTool runs a program with fixed arguments; its output is in the error. Files are
// /proc/self/fd/3 and up in it.
func runTool(ctx context.Context, files []*os.File, argv ...string) (string, error) {
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Env = []string{"LC_ALL=C", "PATH=/usr/sbin:/usr/bin:/sbin:/bin"}
	cmd.ExtraFiles = files
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err := cmd.Run()
	text := strings.TrimSpace(out.String())
	if len(text) > 2000 {
		text = text[:2000] + "…"
	}
	if err != nil {
		return text, fmt.Errorf("run %s: %w: %s", argv[0], err, text)
	}
	return text, nil
}
