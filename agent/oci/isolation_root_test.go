//go:build linux && root

package oci

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/reflejo/terraform-provider-reflejo/agent/vserver"
)

// ownSysctls are the settings that belong to a server's own namespaces.
var ownSysctls = []string{
	"/proc/sys/net/", "/proc/sys/user/", "/proc/sys/fs/mqueue/", "/proc/sys/kernel/hostname", "/proc/sys/kernel/domainname",
	"/proc/sys/kernel/shm", "/proc/sys/kernel/msg", "/proc/sys/kernel/sem", "/proc/sys/kernel/auto_msgmni", "/proc/sys/kernel/ns_last_pid", "/proc/sys/kernel/pid_max",
}

func TestIsolation(t *testing.T) {
	h := newHost(t, "")
	secret := filepath.Join(h.dir, "host-secret")
	write(t, secret, "the host's")
	c := h.newContainer(t, busyboxRoot(t, h.dir))
	pid := h.run(t, c)

	t.Run("nothing of the kernel's but its own can be set", func(t *testing.T) {
		out, _ := h.sh(t, c.ID, `find /proc/sys -type f | while read f; do (: >>"$f") 2>/dev/null && echo "$f"; done; for f in /proc/sysrq-trigger /proc/kcore /proc/timer_list /proc/self/../1/../irq/default_smp_affinity; do (: >>$f) 2>/dev/null && test -f $f && echo $f; done; find /sys -type f -perm -200 2>/dev/null | grep -v ^/sys/fs/cgroup | while read f; do (: >>"$f") 2>/dev/null && echo "$f"; done; true`)
		for f := range strings.Lines(out) {
			f = strings.TrimSpace(f)
			own := false
			for _, p := range ownSysctls {
				own = own || strings.HasPrefix(f, p)
			}
			if !own {
				t.Errorf("a server can write %s", f)
			}
		}
		if out == "" {
			t.Error("it cannot even write its own: the test sees nothing")
		}
	})
	for name, script := range escapes(secret) {
		t.Run(name, func(t *testing.T) {
			if out, code := h.sh(t, c.ID, "("+script+") 2>&1"); code == 0 {
				t.Errorf("succeeded: %s", out)
			}
		})
	}
	t.Run("namespaces of its own", func(t *testing.T) {
		for _, ns := range []string{"user", "pid", "mnt", "net", "ipc", "uts", "cgroup"} {
			a, err1 := os.Readlink("/proc/self/ns/" + ns)
			b, err2 := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", pid, ns))
			if err := errors.Join(err1, err2); err != nil || a == b {
				t.Errorf("%s: %s and %s, %v", ns, a, b, err)
			}
		}
	})
	t.Run("ids of its own", func(t *testing.T) {
		if got, want := status(t, pid, "Uid"), fmt.Sprintf("Uid:\t%d", c.IDs.First); !strings.HasPrefix(got, want) {
			t.Errorf("init runs as %q, want %q", got, want)
		}
	})
	t.Run("seccomp on init and commands", func(t *testing.T) {
		if got := status(t, pid, "Seccomp"); got != "Seccomp:\t2" {
			t.Error(got)
		}
		if out, _ := h.sh(t, c.ID, "grep ^Seccomp: /proc/self/status"); out != "Seccomp:\t2\n" {
			t.Error(out)
		}
	})
	t.Run("owns what it writes", func(t *testing.T) {
		if out, code := h.sh(t, c.ID, "echo x > /etc/new && ls -ln /etc/new | cut -c1-60 && hostname other && hostname"); code != 0 || !strings.HasSuffix(out, "other\n") {
			t.Error(out, code)
		}
	})
}

// escapes are scripts that must all fail in a server.
func escapes(hostSecret string) map[string]string {
	return map[string]string{
		"device node":        "mknod /tmp/sda b 254 0 && dd if=/tmp/sda bs=1 count=1",
		"device node on dev": "mknod /dev/kmsg2 c 1 11",
		"sysrq":              "echo h > /proc/sysrq-trigger",
		"kernel memory":      "dd if=/proc/kcore bs=1 count=1 of=/tmp/x && test -s /tmp/x",
		"kernel log":         "dmesg -c",
		"clock":              "date -s 2001-01-01; test $(date +%Y) = 2001",
		"swap":               "dd if=/dev/zero of=/swap bs=4096 count=100; swapon /swap",
		"module":             "echo x > /m.ko; insmod /m.ko",
		"host's disk":        "mount -t ext4 /dev/vda /tmp",
		"host's file":        "cat " + hostSecret,
		"host's init root":   "ls /proc/1/root" + hostSecret,
		"leave by chroot":    "mkdir -p /c; cd /c; chroot . /bin/true; ls ../../../../../.." + hostSecret,
		"writable sysfs":     "mount -o remount,rw /sys && echo 0 > /sys/kernel/mm/ksm/run",
		"debugfs":            "mkdir -p /d && mount -t debugfs x /d",
		"release agent": `for d in /sys/fs/cgroup/*/; do test -f $d/release_agent && echo /bin/true > $d/release_agent && exit 0; done;
			mkdir -p /cg && mount -t cgroup -o memory x /cg && echo /bin/true > /cg/release_agent`,
		"more memory":    "for f in /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/memory.max; do test -f $f && echo 99999999999 > $f && exit 0; done; false",
		"more devices":   "echo a > /sys/fs/cgroup/devices/devices.allow",
		"core pattern":   "echo '|/bin/x' > /proc/sys/kernel/core_pattern",
		"host processes": fmt.Sprintf("kill -0 %d", os.Getpid()),
	}
}

// TestPrepareAttacks plants what a server's root could plant and lets the host write over it.
func TestPrepareAttacks(t *testing.T) {
	h := newHost(t, "")
	root := busyboxRoot(t, h.dir)
	outside := filepath.Join(h.dir, "outside")
	write(t, filepath.Join(outside, "shadow"), "precious")
	etc := filepath.Join(root, "etc")
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(os.Symlink(filepath.Join(outside, "shadow"), filepath.Join(etc, "resolv.conf")))
	must(os.Symlink("../../../../../../../../"+filepath.Join(outside, "shadow"), filepath.Join(etc, "hosts")))
	must(mkfifo(filepath.Join(etc, "hostname")))
	must(mknodNull(filepath.Join(etc, "timezone")))
	must(os.Symlink(outside, filepath.Join(root, "var/lib/dbus")))
	must(os.Symlink("/proc/self/root"+outside, filepath.Join(etc, "ssh")))
	must(os.Mkdir(filepath.Join(etc, "cloud"), 0o755))
	must(os.Symlink(outside, filepath.Join(etc, "cloud/cloud.cfg.d")))
	write(t, filepath.Join(etc, "cloud/cloud.cfg"), "")
	must(os.Symlink("/", filepath.Join(root, "var/lib/cloud")))

	p := vserver.Preparation{ID: "x", Hostname: "web", Timezone: "Europe/Madrid", First: true, DNS: vserver.DNS{Servers: []string{"10.0.0.1"}}}
	ended := make(chan error, 1)
	go func() { ended <- h.Prepare(context.Background(), root, p) }()
	select {
	case err := <-ended:
		t.Log("first try:", err) // a link to nowhere in the way of a directory is an error, and that is fine
	case <-time.After(20 * time.Second):
		t.Fatal("Prepare hangs")
	}
	for _, l := range []string{"etc/cloud/cloud.cfg.d", "etc/ssh", "var/lib/dbus"} {
		must(os.Remove(filepath.Join(root, l)))
	}
	if err := h.Prepare(context.Background(), root, p); err != nil {
		t.Fatal(err)
	}
	names, err := os.ReadDir(outside)
	if b, _ := os.ReadFile(filepath.Join(outside, "shadow")); err != nil || len(names) != 1 || string(b) != "precious" {
		t.Fatalf("outside was touched: %v, %q, %v", names, b, err)
	}
	for f, want := range map[string]string{"etc/resolv.conf": "nameserver 10.0.0.1", "etc/hosts": "web", "etc/hostname": "web\n", "etc/timezone": "Europe/Madrid\n", "seed/nocloud/user-data": "#cloud-config"} {
		p := filepath.Join(root, f)
		b, err := os.ReadFile(p)
		st, lerr := os.Lstat(p)
		if err := errors.Join(err, lerr); err != nil || !st.Mode().IsRegular() || !strings.Contains(string(b), want) {
			t.Errorf("%s: %v, %q, %v", f, st, b, err)
		}
	}
}
