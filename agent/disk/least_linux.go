package disk

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// leastAttribute of a base disk holds, in decimal, the smallest size of its clones in bytes.
const leastAttribute = "trusted.reflejo.least"

// measureBase notes in the file of the new base disk how small its clones can be.
func measureBase(ctx context.Context, f *os.File, size int64) error {
	s, err := readSuperblock(f)
	if err == nil && s.Errors {
		err = errors.New("check new file system: the kernel has found errors in it")
	}
	if err != nil {
		return err
	}
	out, err := runTool(ctx, []*os.File{f}, "resize2fs", "-P", "/proc/self/fd/3")
	if err != nil {
		return err
	}
	blocks, err := parseMinimum(out)
	if err != nil {
		return err
	}
	least := strconv.FormatInt(leastFor(blocks, size), 10)
	if err := unix.Fsetxattr(int(f.Fd()), leastAttribute, []byte(least), 0); err != nil {
		return fmt.Errorf("set attribute of %s: %w", f.Name(), err)
	}
	return nil
}

// leastSize is what measureBase has noted; the whole size where it has not.
func leastSize(f *os.File) (int64, error) {
	st, err := f.Stat()
	if err != nil {
		return 0, err
	}
	b := make([]byte, 32)
	n, err := unix.Fgetxattr(int(f.Fd()), leastAttribute, b)
	if errors.Is(err, unix.ENODATA) {
		return st.Size(), nil
	}
	if err != nil {
		return 0, fmt.Errorf("read attribute of %s: %w", f.Name(), err)
	}
	least, err := strconv.ParseInt(string(b[:n]), 10, 64)
	if err != nil || least <= 0 || least > st.Size() {
		return 0, fmt.Errorf("read attribute of %s: %q is no size", f.Name(), b[:n])
	}
	return least, nil
}
