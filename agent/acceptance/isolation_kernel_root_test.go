//go:build linux && root && crashpoints

package acceptance

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/google/uuid"

	"github.com/reflejo/terraform-provider-reflejo/agent/testbed"
)

// ownSettings belong to a server's own namespaces; it may change them.
var ownSettings = []string{
	"/proc/sys/net/", "/proc/sys/user/", "/proc/sys/fs/mqueue/", "/proc/sys/fs/binfmt_misc", "/proc/sys/kernel/hostname", "/proc/sys/kernel/domainname",
	"/proc/sys/kernel/shm", "/proc/sys/kernel/msg", "/proc/sys/kernel/sem", "/proc/sys/kernel/auto_msgmni", "/proc/sys/kernel/ns_last_pid", "/proc/sys/kernel/pid_max",
}

// kernel attacks by system calls and by the kernel's files.
func (s *siege) kernel() {
	s.try("system calls", func(t *testing.T) { s.systemCalls(attack, s.program) })
	if runtime.GOARCH == "amd64" {
		s.try("system calls of 32 bits", func(t *testing.T) {
			program := buildAttack(t, []string{"GOARCH=386"})
			content, err := os.ReadFile(program)
			if err != nil {
				t.Fatal(err)
			}
			if exec.Command(program, "syscalls").Run() != nil {
				t.Log("this kernel runs no programs of 32 bits")
				return
			}
			s.put(s.mallory, attack+"32", content)
			s.systemCalls(attack+"32", program)
		})
	}
	for _, name := range []string{"set the clock", "adjust the clock", "read the kernel log", "gain capabilities", "raise the file limit", "raise the priority", "real-time scheduling"} {
		s.refused(name, attack+" call '"+name+"'")
	}
	// Files of the kernel, also behind a mount namespace of its own and without the masks.
	find := attack + " writable /proc/sys /proc/sysrq-trigger /proc/irq /proc/bus /proc/fs /proc/driver /proc/kcore /proc/timer_list /sys"
	for name, script := range map[string]string{
		"settings":             find,
		"settings, nested":     "unshare -U -r -m " + find,
		"settings, unmasked":   "for m in $(grep -o ' /proc/[^ ]* ' /proc/self/mounts; grep -o ' /sys[^ ]* ' /proc/self/mounts); do umount $m 2>/dev/null; mount -o remount,rw,bind $m 2>/dev/null; done; mount -o remount,rw /sys 2>/dev/null; " + find,
		"settings, fresh proc": "unshare -m -p -f sh -c 'mount -t proc x /proc 2>/dev/null; mount -t sysfs x /sys 2>/dev/null; " + find + "'",
	} {
		s.try(name, func(t *testing.T) {
			_, out := s.exec(s.mallory, "unshare", "-m", "sh", "-c", script)
			if !strings.Contains(out, "/proc/sys/") && name != "settings, nested" {
				t.Error("it cannot even write its own: the test sees nothing:", out)
			}
			for f := range strings.Lines(out) {
				f = strings.TrimSpace(f)
				if strings.HasPrefix(f, "/sys/fs/cgroup/") || f == "/sys/devices/system/cpu/online" {
					continue // see groups, and below
				}
				if !slices.ContainsFunc(ownSettings, func(p string) bool { return strings.HasPrefix(f, p) }) {
					t.Errorf("a server can write %s", f)
				}
			}
		})
	}
	s.refused("sysrq", "umount /proc/sysrq-trigger; echo h > /proc/sysrq-trigger")
	s.refused("kernel memory", "umount /proc/kcore; dd if=/proc/kcore bs=1 count=1 of=/tmp/x && test -s /tmp/x")
	s.refused("core pattern", "echo '|/bin/x' > /proc/sys/kernel/core_pattern")
	s.refused("module loader", "echo /bin/x > /proc/sys/kernel/modprobe")
	s.refused("event helper", "mount -o remount,rw /sys; echo /bin/x > /sys/kernel/uevent_helper")
	s.refused("network setting of the whole machine", "echo 1 > /proc/sys/net/netfilter/nf_conntrack_max || echo 1 > /proc/sys/net/core/rmem_max")
	s.refused("dropping caches", "echo 3 > /proc/sys/vm/drop_caches")
	s.refused("binary formats of the host", "echo ':x:M::x::/bin/sh:' > /proc/sys/fs/binfmt_misc/register")
	s.refused("file of lxcfs", "echo 0 > /sys/devices/system/cpu/online; test \"$(cat /sys/devices/system/cpu/online)\" = 0 && nproc | grep -v -x 1")
	s.refused("x32", attack+" call x32")
	s.allowed("host name", "hostname mallory")
}

// systemCalls compares what the kernel answers inside with what it answers on the host.
func (s *siege) systemCalls(inside, outside string) {
	t := s.t
	t.Helper()
	_, text := s.exec(s.mallory, inside, "syscalls")
	control, err := exec.Command(outside, "syscalls").Output()
	if err != nil {
		t.Fatal(err)
	}
	host := map[string]string{}
	for line := range strings.Lines(string(control)) {
		i := strings.LastIndexByte(strings.TrimSpace(line), ' ')
		host[line[:i]] = strings.TrimSpace(line[i:])
	}
	tried, kept := 0, 0
	for line := range strings.Lines(text) {
		i := strings.LastIndexByte(strings.TrimSpace(line), ' ')
		name, got := line[:i], strings.TrimSpace(line[i:])
		tried++
		if got != "EPERM" && got != "ENOSYS" && got != "EACCES" && got != "EAFNOSUPPORT" {
			t.Errorf("%s: %s, not refused (the host: %s)", name, got, host[name])
		}
		if got != host[name] {
			kept++
		}
	}
	if tried < 20 || kept < 12 {
		t.Errorf("the test shows nothing: %d calls tried, %d answered otherwise than on the host:\n%s\nhost:\n%s", tried, kept, text, control)
	}
}

// mounts attacks by file systems.
func (s *siege) mounts() {
	t := s.t
	s.allowed("memory file system", "mkdir -p /m && mount -t tmpfs x /m && umount /m")
	s.allowed("image", "dd if=/dev/zero of=/image bs=1M count=4")
	_, out := s.exec(s.mallory, "unshare", "-m", attack, "mounts")
	if strings.Count(out, "\n") < 30 {
		t.Fatalf("the attack is broken: %s", out)
	}
	for line := range strings.Lines(out) {
		// Control groups are looked at below: what can be mounted is the server's own part.
		if strings.HasSuffix(line, " ok\n") && !strings.HasPrefix(line, "cgroup") && line != "cpuset ok\n" && line != "proc ok\n" && line != "sysfs ok\n" {
			t.Errorf("a server can mount %s", line)
		}
	}
	s.refused("loop device", "test -e /dev/loop-control || test -e /dev/loop0")
	s.refused("fuse", "test -c /dev/fuse")
	s.refused("leaving by chroot", "cd / && "+attack+" escape "+s.handle().Dir())
	s.allowed("leaving a chroot of its own", "cd / && "+attack+" escape /etc/passwd")
	s.refused("host's files", "ls "+s.handle().Dir()+" || ls /proc/1/root"+s.handle().Dir()+" || ls /proc/1/cwd"+s.handle().Dir())
	s.try("descriptors of the host", func(t *testing.T) {
		_, out := s.exec(s.mallory, "sh", "-c", "find /proc/[0-9]*/fd -type l | while read f; do readlink $f; done")
		for line := range strings.Lines(out) {
			line = strings.TrimSpace(line)
			own := slices.ContainsFunc([]string{"pipe:[", "/dev/null", "/dev/pts/", "/dev/console", "/proc", "socket:[", "anon_inode:[", "/bin/",
				"/sys/fs/cgroup/cpu" /* of our own init: Go looks at its limits */}, func(p string) bool { return strings.HasPrefix(line, p) })
			if !own {
				t.Errorf("a process of the server has %s open", line)
			}
		}
	})
	s.try("propagation", func(t *testing.T) {
		mark := "intruder-" + uuid.NewString()
		s.allowed("mount", "mount --make-rshared / && mkdir -p /"+mark+" && mount -t tmpfs "+mark+" /"+mark)
		defer s.allowed("unmount", "umount /"+mark+" && rmdir /"+mark)
		for _, mountns := range []string{"", s.handle().Mountns()} {
			err := testbed.Inside(s.handle().Netns(), mountns, func() error {
				text, err := os.ReadFile("/proc/thread-self/mountinfo")
				if strings.Contains(string(text), mark) {
					t.Errorf("a server's mount shows on the host (%q)", mountns)
				}
				return err
			})
			if err != nil {
				t.Fatal(err)
			}
		}
		if _, own := s.exec(s.mallory, "cat", "/proc/1/mountinfo"); !strings.Contains(own, mark) {
			t.Error("the mount does not show inside either: the test shows nothing")
		}
	})
}

// devices attacks by device nodes, and by set-user-id programs that the host could run.
func (s *siege) devices() {
	s.allowed("pipe node", "mknod /pipe p && rm /pipe")
	for name, numbers := range map[string]string{"memory": "c 1 1", "ports": "c 1 4", "kernel log": "c 1 11", "disk": "b 254 0", "sda": "b 8 0", "loop": "b 7 0", "loop control": "c 10 237",
		"fuse": "c 10 229", "kvm": "c 10 232", "tun": "c 10 200", "uinput": "c 10 223", "null": "c 1 3"} {
		s.refused("node for "+name, "rm -f /node; mknod /node "+numbers)
		s.refused("node for "+name+", nested", "rm -f /dev/node; unshare -U -r -m mknod /dev/node "+numbers)
	}
	s.refused("block devices of sysfs", "for d in /sys/block/*/dev; do for p in /dev /tmp /; do mknod $p/b b $(tr : ' ' < $d) && exit 0; done; done; exit 1")
	s.try("programs that the host could run", func(t *testing.T) {
		s.allowed("set-user-id", "cp "+attack+" /suid && chmod 4755 /suid")
		var mounts, seen []string
		err := testbed.Inside(s.handle().Netns(), s.handle().Mountns(), func() error {
			text, err := os.ReadFile("/proc/thread-self/mountinfo")
			for line := range strings.Lines(string(text)) {
				f := strings.Fields(line)
				if len(f) > 5 && strings.Contains(f[4], s.mallory) && !strings.Contains(line, " proc ") {
					mounts = append(mounts, f[4]+" "+f[5])
				}
			}
			for _, m := range mounts {
				path, _, _ := strings.Cut(m, " ")
				if _, err := os.Stat(filepath.Join(path, "suid")); err != nil {
					continue
				}
				seen = append(seen, m)
				c := exec.Command(filepath.Join(path, "suid"), "call", "read the kernel log")
				c.Dir, c.SysProcAttr = "/", &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
				if err := c.Run(); err == nil || c.ProcessState != nil {
					t.Errorf("any user of the host can run a server's programs at %s", m)
				}
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		if len(seen) == 0 {
			t.Errorf("no mount of the server's disk is found, the test shows nothing: %q", mounts)
		}
		for _, m := range seen {
			options := strings.Split(strings.Fields(m)[1], ",")
			if !slices.Contains(options, "nodev") {
				t.Errorf("device nodes on a server's disk would work at %s", m)
			}
		}
	})
}

// groups attacks by control groups.
func (s *siege) groups() {
	t := s.t
	_, out := s.exec(s.mallory, "sh", "-c", `find /sys/fs/cgroup -type f | while read f; do (: >>"$f") 2>/dev/null && echo "$f"; done`)
	for f := range strings.Lines(out) {
		// systemd's own, without limits, is the server's; on v2 what is delegated to it.
		if !strings.HasPrefix(f, "/sys/fs/cgroup/systemd/") && !slices.Contains([]string{"cgroup.procs", "cgroup.threads", "cgroup.subtree_control"}, filepath.Base(strings.TrimSpace(f))) {
			t.Errorf("a server can write %s", f)
		}
	}
	fresh := `mkdir -p /cg; for c in memory devices pids cpu,cpuacct cpuset blkio freezer none,name=systemd; do
		mount -t cgroup -o $c x /cg 2>/dev/null || continue; `
	s.refused("release agent", "unshare -m sh -c '"+fresh+"(echo /bin/x > /cg/release_agent) 2>/dev/null && exit 0; umount /cg; done; exit 1'")
	s.refused("release agent in a new namespace", attack+" nested sh -c '"+fresh+"(echo /bin/x > /cg/release_agent) 2>/dev/null && exit 0; umount /cg; done; exit 1'")
	s.refused("limits of a fresh mount", "unshare -m sh -c '"+fresh+`for f in memory.limit_in_bytes pids.max cpu.cfs_quota_us devices.allow cpuset.cpus freezer.state cpu.shares; do
		test -f /cg/$f && (echo 1 > /cg/$f) 2>/dev/null && exit 0; done; umount /cg; done; exit 1'`)
	s.refused("neighbours in a fresh mount", "unshare -m sh -c '"+fresh+"find /cg | grep -q "+s.alice+" && exit 0; umount /cg; done; mount -t cgroup2 x /cg && find /cg | grep -q "+s.alice+"'")
	s.refused("another group", "for d in /sys/fs/cgroup/*/.. /sys/fs/cgroup/*/../..; do (echo $$ > $d/cgroup.procs) 2>/dev/null && grep -q / /proc/self/cgroup && grep -v ':/$' /proc/self/cgroup | grep '/\\.\\.' && exit 0; done; exit 1")
	s.try("process outside of its limits", func(t *testing.T) {
		// Whatever was tried above, all processes of the server are still in its groups.
		c := s.start(s.mallory, "sh", "-c", "echo begun; cat | "+attack+" nested cat")
		defer c.kill()
		c.line()
		ns, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/pid", s.pid1(s.mallory)))
		if err != nil {
			t.Fatal(err)
		}
		found := 0
		dirs, _ := filepath.Glob("/proc/[0-9]*")
		for _, dir := range dirs {
			if theirs, err := os.Readlink(dir + "/ns/pid"); err != nil || theirs != ns {
				continue
			}
			text, _ := os.ReadFile(dir + "/cgroup")
			for line := range strings.Lines(string(text)) {
				f := strings.SplitN(strings.TrimSpace(line), ":", 3)
				limited := f[1] == "" && f[0] == "0" && strings.Count(string(text), "\n") == 1
				for _, c := range []string{"memory", "pids", "cpu", "cpuset", "blkio", "devices", "freezer"} {
					limited = limited || slices.Contains(strings.Split(f[1], ","), c)
				}
				if limited && !strings.Contains(f[2]+"/", "/"+s.handle().Cgroup()+"/"+s.mallory+"/") {
					t.Errorf("a process of the server is in group %s", line)
				}
			}
			found++
		}
		if found < 2 {
			t.Errorf("%d processes of the server are found", found)
		}
	})
}

// processes attacks other processes, and what is the host's because of a name.
func (s *siege) processes() {
	t := s.t
	one, other := s.pid1(s.mallory), s.pid1(s.alice)
	for _, kind := range []string{"uid_map", "gid_map"} {
		var first [3][2]uint64
		for i, pid := range []int{one, other} {
			text, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", pid, kind))
			var inside uint64
			if _, serr := fmt.Sscan(string(text), &inside, &first[i][0], &first[i][1]); err != nil || serr != nil || strings.Count(string(text), "\n") != 1 {
				t.Fatalf("%s of %d: %q, %v", kind, pid, text, err)
			}
		}
		a, b := first[0], first[1]
		if a[0] == 0 || b[0] == 0 || a[1] != 65536 || b[1] != 65536 || (a[0] < b[0]+b[1] && b[0] < a[0]+a[1]) {
			t.Errorf("%s: %v and %v", kind, a, b)
		}
		s.refused(kind+" beyond its own", fmt.Sprintf("unshare -U sh -c 'echo 0 %d 1 > /proc/self/%s'", b[0], kind))
	}
	s.allowed("user namespace", "unshare -U -r true")
	s.refused("signal to a neighbour", fmt.Sprintf("kill -0 %d", other))
	s.refused("signal to the agent", fmt.Sprintf("kill -0 %d", s.handle().AgentPID()))
	s.refused("memory of a neighbour", fmt.Sprintf("cat /proc/%d/maps || cat /proc/%d/environ", other, s.handle().AgentPID()))
	s.refused("namespaces of the agent", fmt.Sprintf("nsenter -t %d -m true || nsenter -t %d -n true", s.handle().AgentPID(), other))
	s.try("process list", func(t *testing.T) {
		if _, out := s.exec(s.mallory, "ls", "/proc"); strings.Contains(out, fmt.Sprintf("\n%d\n", other)) {
			t.Error("a neighbour's process shows")
		}
	})
	s.try("abstract socket of the host", func(t *testing.T) {
		at := "@" + uuid.NewString()
		for _, netns := range []string{s.handle().Netns(), ""} {
			var l net.Listener
			listen := func() (err error) { l, err = net.Listen("unix", at); return err }
			err := listen
			if netns != "" {
				err = func() error { return testbed.Inside(netns, "", listen) }
			}
			if err := err(); err != nil {
				t.Fatal(err)
			}
			if code, out := s.exec(s.mallory, attack, "connect", "unix", at); code != 1 {
				t.Errorf("reached from a server (exit %d): %s", code, out)
			}
			connect := exec.Command(s.program, "connect", "unix", at)
			if netns != "" {
				connect = exec.Command("nsenter", "--net="+netns, s.program, "connect", "unix", at)
			}
			if out, err := connect.CombinedOutput(); err != nil {
				t.Errorf("the host itself does not reach it: the test shows nothing: %v, %s", err, out)
			}
			l.Close()
		}
	})
	s.try("links of the host", func(t *testing.T) {
		if _, out := s.exec(s.mallory, "ip", "link"); strings.Contains(out, "rfb") || strings.Contains(out, "rfv") || !strings.Contains(out, "eth0") {
			t.Errorf("links that a server sees: %s", out)
		}
	})
}
