package oci

import (
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/reflejo/terraform-provider-reflejo/agent/vserver"
)

// RLIMIT_NOFILE inside: the soft limit is what select(2) users survive, the hard one what
// PostgreSQL or a proxy may ask for, as systemd sets them.
const (
	openFilesSoft = 1024
	openFilesHard = 524288
)

// guestInitPath is where the reflejo binary is in a server that needs it: in /run, a
// tmpfs of ours, so that nothing is written to the server's disk.
const guestInitPath = "/run/reflejo/init"

// specInput is everything that decides a server's runtime configuration.
type specInput struct {
	Container  vserver.Container
	Launch     launch
	CgroupPath string // below the mount point of each hierarchy
	Unified    bool   // the host has cgroup v2 only
	InitBinary string // host path of the reflejo binary
	View       string // mount point of lxcfs, "" without
	OpenFiles  uint64 // the agent's own hard limit: without CAP_SYS_RESOURCE nobody can give more
	Arch       string // as runtime.GOARCH
}

// buildSpec is the whole configuration of one server.
func buildSpec(in specInput) *specs.Spec {
	c := in.Container
	oom := 0
	return &specs.Spec{
		Version:  "1.0.2", // the oldest that has all we use: older runtimes refuse newer ones
		Hostname: c.Hostname,
		Root:     &specs.Root{Path: c.Rootfs},
		Process: &specs.Process{
			Terminal:     true,
			ConsoleSize:  &specs.Box{Height: 24, Width: 80},
			Args:         in.Launch.Argv,
			Env:          initEnv(c.Env),
			Cwd:          in.Launch.dir(c.Dir),
			Capabilities: capabilities(0),
			Rlimits:      rlimits(in.OpenFiles),
			// Set-user-id programs (sudo, su, ping) are part of an operating system.
			NoNewPrivileges: false,
			OOMScoreAdj:     &oom, // the server's own memory limit decides, not the agent's score
		},
		Mounts: mounts(in),
		Linux: &specs.Linux{
			Namespaces: []specs.LinuxNamespace{
				{Type: specs.UserNamespace}, {Type: specs.PIDNamespace}, {Type: specs.MountNamespace},
				// Made by the runtime, inside the user namespace: one that the host made belongs
				// to the host's, and sysfs could not be mounted.
				{Type: specs.NetworkNamespace},
				{Type: specs.IPCNamespace}, {Type: specs.UTSNamespace}, {Type: specs.CgroupNamespace},
			},
			UIDMappings: []specs.LinuxIDMapping{{ContainerID: 0, HostID: c.IDs.First, Size: c.IDs.Size}},
			GIDMappings: []specs.LinuxIDMapping{{ContainerID: 0, HostID: c.IDs.First, Size: c.IDs.Size}},
			CgroupsPath: in.CgroupPath,
			// Limits are another edge's. The runtime adds the nodes that every server has.
			Resources:         &specs.LinuxResources{Devices: []specs.LinuxDeviceCgroup{{Allow: false, Access: "rwm"}}},
			Seccomp:           seccompProfile(in.Arch),
			RootfsPropagation: "rslave",
			MaskedPaths:       maskedPaths(),
			ReadonlyPaths:     readonlyPaths(),
		},
	}
}

// initEnv is init's environment: the image's, then ours where it says nothing.
func initEnv(image []string) []string {
	env := append([]string(nil), image...)
	for _, d := range []string{"PATH=" + defaultPath, "TERM=linux", "HOME=/root", "container=oci"} {
		name, _, _ := strings.Cut(d, "=")
		if !hasEnv(env, name) {
			env = append(env, d)
		}
	}
	return env
}

const defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

func hasEnv(env []string, name string) bool {
	for _, e := range env {
		if strings.HasPrefix(e, name+"=") {
			return true
		}
	}
	return false
}

// rlimits of init and of commands; most is the largest number of files that can be set.
func rlimits(most uint64) []specs.POSIXRlimit {
	return []specs.POSIXRlimit{
		{Type: "RLIMIT_NOFILE", Soft: min(openFilesSoft, most), Hard: min(openFilesHard, most)},
		{Type: "RLIMIT_CORE", Soft: 0, Hard: 0}, // the host's core_pattern would run on the host
	}
}

// osCapabilities are what an operating system uses, all of them relative to the server's
// own user namespace. Left out: what works on the whole machine only, so that programs
// see at once that they need not try (systemd skips units by it): SYS_MODULE, SYS_RAWIO,
// SYS_TIME, SYSLOG, MAC_*, AUDIT_READ and AUDIT_CONTROL, WAKE_ALARM, BLOCK_SUSPEND, BPF,
// PERFMON, SYS_PACCT, LINUX_IMMUTABLE; and MKNOD, since the kernel refuses device nodes
// here whatever a process holds.
var osCapabilities = []string{
	"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_DAC_READ_SEARCH", "CAP_FOWNER", "CAP_FSETID", // files on its own disk
	"CAP_KILL", "CAP_SETGID", "CAP_SETUID", "CAP_SETPCAP", "CAP_SETFCAP", // users; package managers set file capabilities
	"CAP_NET_ADMIN", "CAP_NET_BIND_SERVICE", "CAP_NET_BROADCAST", "CAP_NET_RAW", // its own network namespace
	"CAP_IPC_OWNER", "CAP_IPC_LOCK", "CAP_LEASE",
	"CAP_SYS_ADMIN",  // mounts and namespaces of its own: systemd cannot start a service without
	"CAP_SYS_CHROOT", // sshd, postfix
	"CAP_SYS_PTRACE", // debuggers, inside
	"CAP_SYS_BOOT",   // reboot(2) in a pid namespace ends its init: how poweroff works
	"CAP_SYS_NICE", "CAP_SYS_RESOURCE", "CAP_SYS_TTY_CONFIG",
	"CAP_AUDIT_WRITE", // pam writes audit records and takes a refusal for a failure
}

// capabilities are those of a process of user uid: all for root; others start with none
// and gain them through set-user-id programs.
func capabilities(uid uint32) *specs.LinuxCapabilities {
	c := &specs.LinuxCapabilities{Bounding: osCapabilities}
	if uid == 0 {
		c.Effective, c.Permitted = osCapabilities, osCapabilities
	}
	return c
}

// maskedPaths show what is the machine's and no server's business. The kernel refuses
// most of them to a foreign root anyway.
func maskedPaths() []string {
	return []string{
		"/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
		"/proc/sched_debug", "/proc/scsi", "/proc/timer_list", "/proc/timer_stats",
		"/sys/devices/virtual/powercap", "/sys/firmware",
	}
}

// readonlyPaths: /proc/sys is not among them, because a server may set what is its own
// there (net.*, kernel.hostname, kernel.shm*); the rest belongs to the host's root.
func readonlyPaths() []string {
	return []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sysrq-trigger"}
}

// mounts in the order in which they are made.
func mounts(in specInput) []specs.Mount {
	safe := []string{"nosuid", "noexec", "nodev"}
	with := func(more ...string) []string { return append(append([]string(nil), safe...), more...) }
	m := []specs.Mount{
		{Destination: "/proc", Type: "proc", Source: "proc", Options: safe},
		{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: with("ro")},
		cgroupMount(in.Unified),
		{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "strictatime", "mode=755", "size=512k"}},
		{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"}},
		{Destination: "/dev/shm", Type: "tmpfs", Source: "shm", Options: []string{"nosuid", "nodev", "mode=1777"}},
		{Destination: "/dev/mqueue", Type: "mqueue", Source: "mqueue", Options: safe},
		// What systemd expects to find or would mount. Their pages count as the server's memory.
		{Destination: "/run", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "nodev", "mode=755"}},
		{Destination: "/tmp", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "nodev", "mode=1777"}},
	}
	if in.Launch.NeedsBinary {
		m = append(m, specs.Mount{Destination: guestInitPath, Type: "bind", Source: in.InitBinary, Options: []string{"bind", "ro", "nosuid", "nodev"}})
	}
	if in.View != "" {
		for _, p := range viewPaths {
			m = append(m, specs.Mount{Destination: p, Type: "bind", Source: in.View + p, Options: with("bind")})
		}
	}
	return m
}

// cgroupMount is the server's own part of the hierarchy, seen as the root of it.
func cgroupMount(unified bool) specs.Mount {
	options := []string{"nosuid", "noexec", "nodev", "relatime", "rw"}
	if unified {
		return specs.Mount{Destination: "/sys/fs/cgroup", Type: "cgroup2", Source: "cgroup", Options: options}
	}
	// v1 and hybrid: the runtime mounts each hierarchy. The unified one is left out, or
	// systemd would take it and find no controllers there.
	return specs.Mount{Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup", Options: options}
}

// viewPaths are the files that lxcfs answers with the server's share of the machine.
var viewPaths = []string{
	"/proc/cpuinfo", "/proc/diskstats", "/proc/loadavg", "/proc/meminfo", "/proc/stat", "/proc/swaps", "/proc/uptime",
	"/sys/devices/system/cpu/online",
}
