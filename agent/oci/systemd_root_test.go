//go:build linux && root

package oci

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/reflejo/terraform-provider-reflejo/agent/vserver"
)

// debianRoot is a root directory with Debian and systemd. The tar is made once per machine.
func debianRoot(t testing.TB, dir string) string {
	t.Helper()
	cache := os.Getenv("REFLEJO_CACHE")
	if cache == "" {
		user, err := os.UserCacheDir()
		if err != nil {
			t.Fatal(err)
		}
		cache = filepath.Join(user, "reflejo")
	}
	tar := filepath.Join(cache, "oci-test-bookworm.tar")
	if _, err := os.Stat(tar); err != nil {
		if err := os.MkdirAll(cache, 0o755); err != nil {
			t.Fatal(err)
		}
		tmp := fmt.Sprintf("%s.%d.partial", tar, os.Getpid())
		defer os.Remove(tmp)
		cmd := exec.Command("mmdebstrap", "--variant=minbase", "--include=systemd-sysv,procps,dbus", "--format=tar", "bookworm", tmp)
		if b, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("make Debian root (needs mmdebstrap): %v\n%s", err, b)
		}
		if err := os.Rename(tmp, tar); err != nil {
			t.Fatal(err)
		}
	}
	root := filepath.Join(dir, "debian")
	if err := os.Mkdir(root, 0o755); err != nil {
		t.Fatal(err)
	}
	if b, err := exec.Command("tar", "-C", root, "--numeric-owner", "--exclude=./dev/*", "-xf", tar).CombinedOutput(); err != nil {
		t.Fatalf("unpack Debian root: %v\n%s", err, b)
	}
	return root
}

// delegate makes the server's groups as the limits edge would: a memory limit, one core,
// and the part that systemd manages given to the server's root.
func (h *testHost) delegate(t testing.TB, c vserver.Container, memory int64) {
	t.Helper()
	set := func(path, value string) {
		t.Helper()
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(value), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	group := h.cfg.CgroupPath(c.ID)
	give := []string{"", "cgroup.procs", "tasks"}
	delegated := "/sys/fs/cgroup/systemd" + group
	if h.unified {
		delegated = "/sys/fs/cgroup" + group
		give = []string{"", "cgroup.procs", "cgroup.threads", "cgroup.subtree_control"}
		for _, d := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup" + h.parent} {
			set(d+"/cgroup.subtree_control", "+cpu +memory +pids +io")
		}
		set(delegated+"/memory.max", fmt.Sprint(memory))
		set(delegated+"/cpu.max", "100000 100000")
	} else {
		set("/sys/fs/cgroup/memory"+group+"/memory.limit_in_bytes", fmt.Sprint(memory))
		set("/sys/fs/cgroup/cpu"+group+"/cpu.cfs_quota_us", "100000")
		if err := os.MkdirAll(delegated, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, f := range give {
		if err := os.Chown(filepath.Join(delegated, f), int(c.IDs.First), int(c.IDs.First)); err != nil {
			t.Fatal(err)
		}
	}
}

// TestSystemd is one long walk through the life of a Debian server, because the boot is dear.
func TestSystemd(t *testing.T) {
	lxcfs, err := exec.LookPath("lxcfs")
	if err != nil {
		t.Fatal("install lxcfs:", err)
	}
	h := newHost(t, lxcfs)
	ctx := t.Context()
	watching := make(chan error, 1)
	watchCtx, stop := context.WithCancel(context.Background())
	go func() { watching <- h.Watch(watchCtx) }()
	defer func() { stop(); <-watching }()

	root := debianRoot(t, h.dir)
	c := h.newContainer(t, root)
	h.delegate(t, c, 512<<20)
	p := vserver.Preparation{
		ID: c.ID, Hostname: "web", Timezone: "Europe/Madrid", First: true, DNS: vserver.DNS{Servers: []string{"10.0.0.1"}},
		Links:     []vserver.Link{{Name: "eth0", Address: netip.MustParsePrefix("10.1.2.3/24")}},
		FirstBoot: vserver.FirstBoot{UserData: "#!/bin/sh\necho ran >> /root/first-boot-ran\n"},
	}
	if err := h.Prepare(ctx, root, p); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	pid := h.run(t, c)
	eventually(t, 2*time.Minute, func() error {
		out, _ := h.sh(t, c.ID, "systemctl is-system-running 2>&1")
		if strings.TrimSpace(out) == "degraded" {
			failed, _ := h.sh(t, c.ID, "systemctl --failed --no-legend; journalctl -b -p warning --no-pager | tail -40")
			t.Fatal("degraded:\n", failed)
		}
		if strings.TrimSpace(out) != "running" {
			return errors.New("systemd is " + out)
		}
		return nil
	})
	t.Log("running after", time.Since(began))
	h.logHas(t, c.ID, "web login:", 30*time.Second)

	t.Run("prepared", func(t *testing.T) { testPrepared(t, h, c) })
	t.Run("live host name", func(t *testing.T) {
		q := p
		q.First, q.Hostname, q.Pid = false, "renamed", pid
		if err := h.Prepare(ctx, root, q); err != nil {
			t.Fatal(err)
		}
		if out, _ := h.sh(t, c.ID, "hostname; cat /etc/hostname; getent hosts renamed"); !strings.HasPrefix(out, "renamed\nrenamed\n10.1.2.3") {
			t.Error(out)
		}
		if mine, err := os.Hostname(); err != nil || mine == "renamed" {
			t.Fatal("the host was renamed", err)
		}
	})
	t.Run("view", func(t *testing.T) { testView(t, h, c) })

	if err := h.Stop(ctx, c.ID); err != nil {
		t.Fatal(err)
	}
	limited, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	if err := h.Wait(limited, c.ID); err != nil {
		b, _ := readLog(h, c.ID)
		t.Fatalf("no clean stop: %v\n%s", err, b)
	}
}

// testPrepared checks that a server shows what Prepare wrote.
func testPrepared(t *testing.T, h *testHost, c vserver.Container) {
	out, code := h.sh(t, c.ID, "hostname; date +%Z; getent hosts web; cat /root/first-boot-ran; ls /var/lib/reflejo; cat /etc/resolv.conf; systemctl is-enabled systemd-firstboot.service")
	for _, want := range []string{"web\n", "CE", "10.1.2.3", "ran\n", "nameserver 10.0.0.1", "masked"} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in %q (%d)", want, out, code)
		}
	}
	if strings.Count(out, "ran\n") != 1 || strings.Contains(out, "first-boot.running") {
		t.Errorf("the first-boot script did not run once and go: %q", out)
	}
}

// testView checks what a server of 512 MiB and one core sees, and that it outlives lxcfs.
func testView(t *testing.T, h *testHost, c vserver.Container) {
	seen := func() error {
		out, code := h.sh(t, c.ID, "free -m | awk '/Mem/ {print $2}'; grep -c ^processor /proc/cpuinfo; cat /sys/devices/system/cpu/online; cut -d. -f1 /proc/uptime; cat /proc/loadavg >/dev/null && cat /proc/stat >/dev/null && cat /proc/diskstats > /dev/null; cat /proc/swaps > /dev/null")
		var memory, cpus, uptime int
		var online string
		if _, err := fmt.Sscan(out, &memory, &cpus, &online, &uptime); err != nil || code != 0 {
			return fmt.Errorf("%q: %w (%d)", out, err, code)
		}
		if memory != 512 || cpus != 1 || online != "0" || uptime > 600 {
			return fmt.Errorf("memory %d MiB, %d processors, online %s, up %d s", memory, cpus, online, uptime)
		}
		return nil
	}
	eventually(t, 10*time.Second, seen)
	h.view.mu.Lock()
	old := h.view.process
	h.view.mu.Unlock()
	if err := old.signal(unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	eventually(t, 5*time.Second, func() error { // plain files or the new lxcfs's, but readable
		if out, code := h.sh(t, c.ID, "cat /proc/meminfo /proc/uptime /proc/stat /sys/devices/system/cpu/online 2>&1 >/dev/null"); code != 0 {
			return errors.New(out)
		}
		return nil
	})
	eventually(t, 20*time.Second, seen)
	h.view.mu.Lock()
	old = h.view.process
	h.view.mu.Unlock()
	if err := old.signal(unix.SIGSTOP); err != nil { // it hangs: its readers wait until it is replaced
		t.Fatal(err)
	}
	eventually(t, 30*time.Second, seen)
	if out, _ := h.sh(t, c.ID, "grep -c lxcfs /proc/self/mounts"); strings.TrimSpace(out) != fmt.Sprint(len(viewPaths)) {
		t.Errorf("%s mounts of lxcfs, want %d", strings.TrimSpace(out), len(viewPaths))
	}
}
