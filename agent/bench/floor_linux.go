package bench

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"github.com/google/uuid"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	reflejov1 "github.com/reflejo/terraform-provider-reflejo/agent/api/reflejo/v1"
	"github.com/reflejo/terraform-provider-reflejo/agent/testbed"
)

// floorIDs are the owners in the floors' user namespaces, away from those of any test host.
const floorIDs = 62000 << 16

// floor makes a server with nothing but what cannot be left out.
type floor struct {
	host *host
	dir  string // in the pool's file system
	base string // the base disk that servers are clones of
}

// newFloor finds the base disk of servers like spec, which the first of them made the pool
// keep, and makes a directory in the same file system.
func (h *host) newFloor(ctx context.Context, spec *reflejov1.ServerSpec) (*floor, error) {
	if err := errors.Join(h.create(ctx, spec), h.removeAll(ctx, spec)); err != nil {
		return nil, err
	}
	d, err := h.describe(ctx)
	if err != nil {
		return nil, err
	}
	f := &floor{host: h}
	err = f.inside(func() (err error) {
		if f.base, err = baseDisk(d.GetPool().GetPath(), spec.GetImage(), spec.GetDisk().GetSize()); err == nil {
			f.dir, err = os.MkdirTemp(filepath.Dir(filepath.Dir(f.base)), "bench-")
		}
		return err
	})
	return f, err
}

// baseDisk finds the file that disks of this size are clones of.
func baseDisk(pool, image string, size int64) (string, error) {
	name := strings.Replace(image, ":", "-", 1)
	var found []string
	err := filepath.WalkDir(pool, func(path string, d os.DirEntry, err error) error {
		if err != nil || !strings.HasPrefix(d.Name(), name) {
			return err
		}
		if info, err := d.Info(); err == nil && info.Mode().IsRegular() && info.Size() == size {
			found = append(found, path)
		}
		return nil
	})
	if err == nil && len(found) != 1 {
		err = fmt.Errorf("found %d files", len(found))
	}
	if err != nil {
		return "", fmt.Errorf("find base disk of image %s in %s: %w", image, pool, err)
	}
	return found[0], nil
}

func (f *floor) close() error { return f.inside(func() error { return os.RemoveAll(f.dir) }) }

// inside runs what with the host's mounts.
func (f *floor) inside(what func() error) error {
	return testbed.Inside(f.host.tb.Netns(), f.host.tb.Mountns(), what)
}

// systemCalls is a server's creation by bare system calls: clone the base disk, attach it
// to a loop device, mount it, make a process with namespaces of its own that runs a static
// program there. It returns the time until the program's first output.
func (f *floor) systemCalls() (took time.Duration, err error) {
	err = f.inside(func() error {
		disk, root := filepath.Join(f.dir, uuid.NewString()), filepath.Join(f.dir, "root")
		if err := os.MkdirAll(root, 0o755); err != nil {
			return err
		}
		began := time.Now()
		err := cloneDisk(f.base, disk, tinyDisk)
		defer os.Remove(disk)
		if err != nil {
			return err
		}
		loop, err := attach(disk)
		if err != nil {
			return err
		}
		defer loop.Close()
		if err := unix.Mount(loop.Name(), root, "ext4", unix.MS_NOATIME, ""); err != nil {
			return fmt.Errorf("mount %s: %w", loop.Name(), err)
		}
		defer func() { _ = unix.Unmount(root, unix.MNT_DETACH) }()
		took, err = firstOutput(began, root)
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("floor by system calls: %w", err)
	}
	return took, nil
}

// cloneDisk makes a disk of a base.
func cloneDisk(base, disk string, size int64) error {
	from, err := os.Open(base)
	if err != nil {
		return err
	}
	defer from.Close()
	to, err := os.OpenFile(disk, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	defer to.Close()
	if err := unix.IoctlFileClone(int(to.Fd()), int(from.Fd())); err != nil {
		return fmt.Errorf("clone base disk: %w", err)
	}
	if st, err := to.Stat(); err != nil || st.Size() >= size {
		return err
	}
	return to.Truncate(size)
}

// attach binds a disk to a free loop device that frees itself after its last user.
func attach(disk string) (*os.File, error) {
	f, err := os.OpenFile(disk, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer control.Close()
	for range 64 { // others may take the free one
		n, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
		if err != nil {
			return nil, fmt.Errorf("get free loop device: %w", err)
		}
		path := fmt.Sprintf("/dev/loop%d", n)
		loop, err := os.OpenFile(path, os.O_RDWR, 0)
		if errors.Is(err, os.ErrNotExist) { // static /dev
			_ = unix.Mknod(path, unix.S_IFBLK|0o600, int(unix.Mkdev(7, uint32(n))))
			loop, err = os.OpenFile(path, os.O_RDWR, 0)
		}
		if err != nil {
			return nil, err
		}
		c := unix.LoopConfig{Fd: uint32(f.Fd()), Size: 4096}
		c.Info.Flags = unix.LO_FLAGS_DIRECT_IO | unix.LO_FLAGS_AUTOCLEAR
		err = unix.IoctlLoopConfigure(int(loop.Fd()), &c)
		if err == nil {
			return loop, nil
		}
		loop.Close()
		if !errors.Is(err, unix.EBUSY) {
			return nil, fmt.Errorf("configure %s: %w", path, err)
		}
	}
	return nil, errors.New("get free loop device: all attempts lost to other programs")
}

// firstOutput runs a program in root, in namespaces of its own, until its first output.
func firstOutput(began time.Time, root string) (time.Duration, error) {
	runtime.LockOSThread() // the child is made by this thread, which has the host's mounts
	defer runtime.UnlockOSThread()
	cmd := exec.Command("/bin/busybox", "echo", "up")
	cmd.Dir = "/"
	ids := []syscall.SysProcIDMap{{ContainerID: 0, HostID: floorIDs, Size: 65536}}
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Chroot: root,
		Cloneflags: unix.CLONE_NEWUSER | unix.CLONE_NEWPID | unix.CLONE_NEWNS | unix.CLONE_NEWNET |
			unix.CLONE_NEWIPC | unix.CLONE_NEWUTS | unix.CLONE_NEWCGROUP,
		UidMappings: ids, GidMappings: ids, Credential: &syscall.Credential{},
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return 0, err
	}
	if err := cmd.Start(); err != nil {
		return 0, fmt.Errorf("start program: %w", err)
	}
	_, err = bufio.NewReader(out).ReadByte()
	took := time.Since(began)
	return took, errors.Join(err, cmd.Wait())
}

// tools is the same by the tools that a script would use, and runc.
func (f *floor) tools(ctx context.Context) (took time.Duration, err error) {
	name := "floor-" + uuid.NewString()[:8]
	disk, bundle := filepath.Join(f.dir, name), filepath.Join(f.host.tb.Dir(), name)
	root := filepath.Join("/run", "reflejo-"+name) // the program's user walks through
	err = f.inside(func() error {
		defer os.RemoveAll(bundle)
		defer os.Remove(disk)
		defer os.Remove(root)
		if err := errors.Join(os.MkdirAll(bundle, 0o755), os.MkdirAll(root, 0o755)); err != nil {
			return err
		}
		if err := writeFloorSpec(bundle, root, f.host.tb.Cgroup()+"/"+name); err != nil {
			return err
		}
		defer func() { _ = exec.Command("umount", root).Run() }()
		script := `set -e
cp --reflink=always "$1" "$2"
truncate --size="$3" "$2"
mount -o loop,noatime "$2" "$4"
exec runc --root "$5/runc" run --bundle "$5" "$6"`
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		cmd := exec.CommandContext(ctx, "/bin/sh", "-c", script, "sh", f.base, disk, fmt.Sprint(tinyDisk), root, bundle, name)
		var errText strings.Builder
		cmd.Stderr = &errText
		out, err := cmd.StdoutPipe()
		if err != nil {
			return err
		}
		began := time.Now()
		if err := cmd.Start(); err != nil {
			return err
		}
		_, err = bufio.NewReader(out).ReadByte()
		took = time.Since(began)
		if err := errors.Join(err, cmd.Wait()); err != nil {
			return fmt.Errorf("%w: %s", err, errText.String())
		}
		return nil
	})
	if err != nil {
		return 0, fmt.Errorf("floor by tools and runc: %w", err)
	}
	return took, nil
}

// writeFloorSpec writes the bundle of a program in root.
func writeFloorSpec(bundle, root, group string) error {
	text, err := json.Marshal(floorSpec(root, group))
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(bundle, "config.json"), text, 0o600)
}

// floorSpec is the least that is isolated as a server is.
func floorSpec(root, group string) specs.Spec {
	ids := []specs.LinuxIDMapping{{ContainerID: 0, HostID: floorIDs, Size: 65536}}
	return specs.Spec{
		Version: "1.0.2", Hostname: "floor", Root: &specs.Root{Path: root},
		Process: &specs.Process{Args: []string{"/bin/busybox", "echo", "up"}, Cwd: "/", Env: []string{"PATH=/bin"}},
		Mounts: []specs.Mount{
			{Destination: "/proc", Type: "proc", Source: "proc"},
			{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "mode=755"}},
		},
		Linux: &specs.Linux{
			UIDMappings: ids, GIDMappings: ids, CgroupsPath: "/" + group,
			Namespaces: []specs.LinuxNamespace{
				{Type: specs.UserNamespace}, {Type: specs.PIDNamespace}, {Type: specs.MountNamespace}, {Type: specs.NetworkNamespace},
				{Type: specs.IPCNamespace}, {Type: specs.UTSNamespace}, {Type: specs.CgroupNamespace},
			},
		},
	}
}

// onThisThread runs a program in the namespaces that the calling thread is in.
func onThisThread(ctx context.Context, argv ...string) (string, error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	var out, errText strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &errText
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("run %s: %w: %s", argv[0], err, errText.String())
	}
	return out.String(), nil
}
