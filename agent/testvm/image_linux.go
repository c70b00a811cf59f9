package testvm

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"
)

// BuildImage makes the machine's image, or finds it in the cache. Several processes may
// ask at once: one builds. A build that was killed leaves only a temporary directory
// that the next one removes.
func BuildImage(ctx context.Context, c ImageConfig) (Image, error) {
	if c.Log == nil {
		c.Log = io.Discard
	}
	cache, err := filepath.Abs(c.Cache)
	if err != nil {
		return Image{}, fmt.Errorf("build test machine: %w", err)
	}
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return Image{}, fmt.Errorf("build test machine: %w", err)
	}
	unlock, err := lock(filepath.Join(cache, "testvm.lock"))
	if err != nil {
		return Image{}, fmt.Errorf("build test machine: %w", err)
	}
	defer unlock()
	dir := filepath.Join(cache, "testvm-"+Key())
	img := imageIn(dir)
	if _, err := os.Stat(dir); err == nil {
		return img, nil
	}
	work := dir + ".new"
	if err := os.RemoveAll(work); err != nil {
		return Image{}, fmt.Errorf("build test machine: %w", err)
	}
	if err := build(ctx, c, work); err != nil {
		return Image{}, errors.Join(fmt.Errorf("build test machine: %w", err), os.RemoveAll(work))
	}
	if err := os.Rename(work, dir); err != nil {
		return Image{}, fmt.Errorf("build test machine: %w", err)
	}
	img.Built = true
	return img, nil
}

func build(ctx context.Context, c ImageConfig, work string) error {
	files, root := filepath.Join(work, "files"), filepath.Join(work, "root")
	for _, name := range sorted(guestFiles()) {
		file := filepath.Join(files, name)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			return err
		}
		mode := fs.FileMode(0o644)
		if filepath.Base(filepath.Dir(name)) == "sbin" {
			mode = 0o755
		}
		if err := os.WriteFile(file, []byte(guestFiles()[name]), mode); err != nil {
			return err
		}
	}
	fmt.Fprintf(c.Log, "building the test machine's image (Debian %s), once\n", Suite)
	if err := tool(ctx, c.Log, "mmdebstrap", bootstrapArgs(c, files, root)...); err != nil {
		return err
	}
	img := imageIn(work)
	for link, file := range map[string]string{"vmlinuz": img.Kernel, "initrd.img": img.Initrd} {
		if err := copyNewest(filepath.Join(root, "boot", link+"-*"), file); err != nil {
			return err
		}
	}
	if err := makeDisk(ctx, img.Disk, root, "root", diskSize); err != nil {
		return err
	}
	return errors.Join(os.RemoveAll(root), os.RemoveAll(files))
}

// copyNewest copies the last file, by name, that matches.
func copyNewest(pattern, to string) error {
	found, err := filepath.Glob(pattern)
	if err != nil {
		return err
	}
	if len(found) == 0 {
		return fmt.Errorf("find %s: %w", pattern, fs.ErrNotExist)
	}
	in, err := os.Open(found[len(found)-1])
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.Create(to)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}

// CopyDisk makes a root disk of a machine's own, which outlives its boots.
func (i Image) CopyDisk(ctx context.Context, to string) error {
	if err := tool(ctx, io.Discard, "cp", "--reflink=auto", "--sparse=always", "--", i.Disk, to); err != nil {
		return fmt.Errorf("copy the test machine's disk: %w", err)
	}
	return nil
}

// makeDisk makes a file system with a directory's content in a sparse file.
func makeDisk(ctx context.Context, disk, dir, label string, size int64) error {
	f, err := os.Create(disk)
	if err != nil {
		return err
	}
	if err := errors.Join(f.Truncate(size), f.Close()); err != nil {
		return err
	}
	return tool(ctx, io.Discard, "mkfs.ext4", "-q", "-F", "-L", label, "-E", "root_owner=0:0", "-m", "0", "-d", dir, disk)
}

// tool runs a program; the error has the end of what it printed.
func tool(ctx context.Context, log io.Writer, name string, args ...string) error {
	if _, err := exec.LookPath(name); err != nil {
		return fmt.Errorf("%w (on Debian: apt-get install mmdebstrap e2fsprogs qemu-system-x86)", err)
	}
	var out tail
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Stdout = io.MultiWriter(log, &out)
	cmd.Stderr = cmd.Stdout
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("run %s: %w\n%s", name, err, out.b)
	}
	return nil
}

// tail keeps the end of what is written.
type tail struct{ b []byte }

func (t *tail) Write(p []byte) (int, error) {
	const most = 4096
	t.b = append(t.b, p...)
	if len(t.b) > most {
		t.b = append(t.b[:0], t.b[len(t.b)-most:]...)
	}
	return len(p), nil
}

func lock(file string) (unlock func(), err error) {
	f, err := os.OpenFile(file, os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		return nil, errors.Join(fmt.Errorf("lock %s: %w", file, err), f.Close())
	}
	return func() { f.Close() }, nil
}

// directorySize is what the files of a directory need on a disk, generously.
func directorySize(dir string) (int64, error) {
	size := int64(16 << 20)
	err := filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		size += info.Size() + info.Size()/16 + 8192
		return nil
	})
	return size, err
}

func commandFile(i int) string { return strconv.Itoa(100000 + i) }
