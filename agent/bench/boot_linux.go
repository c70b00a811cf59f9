package bench

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"github.com/containerd/go-runc"
	"github.com/google/uuid"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// booted waits inside a server until systemd has started all there is to start.
const booted = `until s=$(systemctl is-system-running --wait 2>/dev/null); [ "$s" = running ] || [ "$s" = degraded ]; do sleep 0.02; done; echo $s`

// boot is V2: from the request until systemd says that it is running, against a boot of the
// same root file system by runc alone, with the disk ready and mounted.
func (r *run) boot(ctx context.Context) (rows []Row, err error) {
	hand, err := r.host.newHandBoot(ctx)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, hand.close()) }()
	var ours, bare, lxd []float64
	for i := range r.pick(5, 2) {
		took, err := r.bootOurs(ctx, fmt.Sprintf("v2-%d", i))
		if err != nil {
			return nil, err
		}
		alone, err := hand.boot(ctx)
		if err != nil {
			return nil, fmt.Errorf("boot by hand: %w", err)
		}
		ours, bare = append(ours, ms(took)), append(bare, ms(alone))
		if r.lxd != nil {
			if took, err = r.lxd.boot(ctx, fmt.Sprintf("v2-%d", i)); err != nil {
				return nil, err
			}
			lxd = append(lxd, ms(took))
		}
	}
	rows = []Row{
		{What: "create → systemd running, at the API", Unit: "ms", Values: ours},
		{What: "runc by hand, disk ready and mounted", Unit: "ms", Values: bare},
		{What: "÷ by hand", Unit: "×", Values: ratios(ours, bare), Target: AtMost(1.1)},
	}
	if r.lxd != nil {
		rows = append(rows, Row{What: "LXD, btrfs", Unit: "ms", Values: lxd}, Row{What: "÷ LXD", Unit: "×", Values: ratios(ours, lxd)})
	}
	return rows, nil
}

func (r *run) bootOurs(ctx context.Context, name string) (took time.Duration, err error) {
	spec := r.host.debianSpec(name)
	defer func() { err = errors.Join(err, r.host.removeAll(ctx, spec)) }()
	began := time.Now()
	if err := r.host.create(ctx, spec); err != nil {
		return 0, err
	}
	state, err := r.host.sh(ctx, spec.GetId(), booted)
	if err == nil && state != "running" {
		err = fmt.Errorf("systemd is %s", state)
	}
	return time.Since(began), err
}

// boot is bootOurs for LXD.
func (l *lxd) boot(ctx context.Context, name string) (took time.Duration, err error) {
	began := time.Now()
	if err := l.create(ctx, name, "debian", map[string]string{"limits.memory": "512MiB"}); err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, l.removeAll(ctx, name)) }()
	_, err = l.exec(ctx, name, "/bin/sh", "-c", booted)
	return time.Since(began), err
}

// handBoot boots Debian with runc alone.
type handBoot struct {
	*floor
	root string // mount point; the server's users walk through it
}

func (h *host) newHandBoot(ctx context.Context) (*handBoot, error) {
	f, err := h.newFloor(ctx, h.debianSpec("floor"))
	if err != nil {
		return nil, err
	}
	return &handBoot{floor: f, root: filepath.Join("/run", "reflejo-bench-"+uuid.NewString()[:8])}, nil
}

// boot makes a fresh disk, whose making is not counted, and boots it.
func (b *handBoot) boot(ctx context.Context) (took time.Duration, err error) {
	err = b.inside(func() (err error) {
		disk := filepath.Join(b.dir, uuid.NewString())
		defer os.Remove(disk)
		if err := cloneDisk(b.base, disk, bootDisk); err != nil {
			return err
		}
		loop, err := attach(disk)
		if err != nil {
			return err
		}
		defer loop.Close()
		if err := os.MkdirAll(b.root, 0o755); err != nil {
			return err
		}
		defer os.Remove(b.root)
		if err := unix.Mount(loop.Name(), b.root, "ext4", unix.MS_NOATIME, ""); err != nil {
			return fmt.Errorf("mount %s: %w", loop.Name(), err)
		}
		defer func() { _ = unix.Unmount(b.root, unix.MNT_DETACH) }()
		if err := shiftOwners(b.root, floorIDs); err != nil {
			return err
		}
		took, err = b.run(ctx)
		return err
	})
	return took, err
}

// run boots what is mounted: create, hand its part of the control groups over, start.
func (b *handBoot) run(ctx context.Context) (took time.Duration, err error) {
	runtime.LockOSThread() // runc is started by this thread, which has the host's mounts
	defer runtime.UnlockOSThread()
	name := "hand-" + uuid.NewString()[:8]
	bundle := filepath.Join(b.host.tb.Dir(), name)
	if err := os.MkdirAll(bundle, 0o755); err != nil {
		return 0, err
	}
	defer os.RemoveAll(bundle)
	group := b.host.tb.Cgroup() + "/" + name
	text, err := json.Marshal(bootSpec(b.root, group))
	if err != nil {
		return 0, err
	}
	if err := os.WriteFile(filepath.Join(bundle, "config.json"), text, 0o600); err != nil {
		return 0, err
	}
	terminal, err := runc.NewTempConsoleSocket()
	if err != nil {
		return 0, err
	}
	defer terminal.Close()
	runc := func(args ...string) error {
		cmd := exec.CommandContext(ctx, "runc", append([]string{"--root", filepath.Join(bundle, "runc")}, args...)...)
		var out strings.Builder
		cmd.Stderr = &out
		if err := cmd.Run(); err != nil {
			return fmt.Errorf("runc %s: %w: %s", args[0], err, out.String())
		}
		return nil
	}
	began := time.Now()
	if err := runc("create", "--bundle", bundle, "--console-socket", terminal.Path(), name); err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, runc("delete", "--force", name)) }()
	master, err := terminal.ReceiveMaster()
	if err != nil {
		return 0, err
	}
	defer master.Close()
	go drain(master)
	if err := delegate(group, floorIDs); err != nil {
		return 0, err
	}
	if err := runc("start", name); err != nil {
		return 0, err
	}
	err = runc("exec", name, "/bin/sh", "-c", booted)
	return time.Since(began), err
}

// drain keeps a terminal from filling up.
func drain(r interface{ Read([]byte) (int, error) }) {
	buf := make([]byte, 4096)
	for {
		if _, err := r.Read(buf); err != nil {
			return
		}
	}
}

// delegate lets the root of a user namespace manage its part of the hierarchy that systemd
// uses: the unified one, or the named one of v1.
func delegate(group string, owner int) error {
	dir := filepath.Join("/sys/fs/cgroup/systemd", group)
	if _, err := os.Stat(dir); errors.Is(err, os.ErrNotExist) {
		dir = filepath.Join("/sys/fs/cgroup", group)
	}
	for _, name := range []string{"", "cgroup.procs", "tasks", "cgroup.threads", "cgroup.subtree_control"} {
		err := os.Chown(filepath.Join(dir, name), owner, owner)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	return nil
}

// shiftOwners adds first to the owner and group of everything below root.
func shiftOwners(root string, first int) error {
	return filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		st := info.Sys().(*syscall.Stat_t)
		if int(st.Uid) >= first { // a hard link that was seen before
			return nil
		}
		if err := os.Lchown(path, first+int(st.Uid), first+int(st.Gid)); err != nil {
			return err
		}
		if info.Mode()&(os.ModeSetuid|os.ModeSetgid) != 0 { // a change of owner takes these away
			return os.Chmod(path, info.Mode())
		}
		return nil
	})
}

// bootSpec is the least that systemd wants, isolated as a server is.
func bootSpec(root, group string) specs.Spec {
	s := floorSpec(root, group)
	capabilities := strings.Fields(`CAP_CHOWN CAP_DAC_OVERRIDE CAP_DAC_READ_SEARCH CAP_FOWNER CAP_FSETID CAP_KILL CAP_SETGID CAP_SETUID
		CAP_SETPCAP CAP_SETFCAP CAP_NET_ADMIN CAP_NET_BIND_SERVICE CAP_NET_BROADCAST CAP_NET_RAW CAP_IPC_OWNER CAP_IPC_LOCK CAP_LEASE
		CAP_SYS_ADMIN CAP_SYS_CHROOT CAP_SYS_PTRACE CAP_SYS_BOOT CAP_SYS_NICE CAP_SYS_RESOURCE CAP_SYS_TTY_CONFIG CAP_AUDIT_WRITE`)
	s.Process = &specs.Process{
		Terminal: true, Args: []string{"/sbin/init"}, Cwd: "/",
		Env:          []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "TERM=linux", "container=oci"},
		Capabilities: &specs.LinuxCapabilities{Bounding: capabilities, Effective: capabilities, Permitted: capabilities},
	}
	safe := []string{"nosuid", "noexec", "nodev"}
	s.Mounts = append(s.Mounts,
		specs.Mount{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: append(safe, "ro")},
		specs.Mount{Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup", Options: append(safe, "rw")},
		specs.Mount{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"}},
		specs.Mount{Destination: "/dev/shm", Type: "tmpfs", Source: "shm", Options: []string{"nosuid", "nodev", "mode=1777"}},
		specs.Mount{Destination: "/run", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "nodev", "mode=755"}},
		specs.Mount{Destination: "/tmp", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "nodev", "mode=1777"}},
	)
	return s
}
