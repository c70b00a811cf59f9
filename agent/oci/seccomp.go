package oci

import (
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// seccompProfile is an allowlist: what is not named here fails with EPERM (ENOSYS where
// the runtime knows the kernel is newer than the list), as if the kernel were older.
//
// It is for a whole operating system in a user namespace, so mounting, namespaces, chroot
// and ptrace are in: systemd, package managers and debuggers use them and the kernel
// checks them against the server's own namespaces. Out is what reaches the whole machine
// or has been a way out of one: modules, kexec, clock setting, swap, raw I/O ports, BPF,
// perf events, userfaultfd, io_uring (its operations bypass this very filter), NUMA page
// moving, file handles by number, quotactl, accounting, the kernel log, and the kernel's
// keys: request_key makes it start a program on the host, and what add_key and keyctl keep
// is memory that no control group counts, 20 kB for each of a server's 65,536 users. (As
// in other container runtimes; systemd does without.)
func seccompProfile(arch string) *specs.LinuxSeccomp {
	errno := uint(1) // EPERM
	p := &specs.LinuxSeccomp{
		DefaultAction:   specs.ActErrno,
		DefaultErrnoRet: &errno,
		Architectures:   architectures(arch),
		Syscalls:        []specs.LinuxSyscall{{Names: allowedSyscalls, Action: specs.ActAllow}},
	}
	if arch == "amd64" {
		p.Syscalls = append(p.Syscalls, specs.LinuxSyscall{Names: []string{"arch_prctl", "modify_ldt"}, Action: specs.ActAllow})
	}
	// Only address families that make sense inside: AF_VSOCK (40) would speak to the
	// hypervisor of the host, AF_ALG (38) opens the kernel's crypto to unprivileged callers.
	// One comparison per rule: runtimes take two of the same argument as "or", so that a
	// range would allow everything.
	for _, a := range []specs.LinuxSeccompArg{{Value: 38, Op: specs.OpLessThan}, {Value: 39, Op: specs.OpEqualTo}, {Value: 40, Op: specs.OpGreaterThan}} {
		p.Syscalls = append(p.Syscalls, specs.LinuxSyscall{Names: []string{"socket"}, Action: specs.ActAllow, Args: []specs.LinuxSeccompArg{a}})
	}
	return p
}

// architectures: the machine's own, and its 32-bit ancestor whose programs people still run.
func architectures(arch string) []specs.Arch {
	switch arch {
	case "amd64":
		return []specs.Arch{specs.ArchX86_64, specs.ArchX86}
	case "arm64":
		return []specs.Arch{specs.ArchAARCH64, specs.ArchARM}
	case "riscv64":
		return []specs.Arch{specs.ArchRISCV64}
	}
	return nil // the runtime's default: its own
}

// allowedSyscalls in groups; names that an architecture does not have are skipped by the runtime.
var allowedSyscalls = []string{
	// files
	"access", "chdir", "chmod", "chown", "chown32", "close", "close_range", "copy_file_range", "creat", "dup", "dup2", "dup3",
	"faccessat", "faccessat2", "fadvise64", "fadvise64_64", "fallocate", "fchdir", "fchmod", "fchmodat", "fchmodat2", "fchown", "fchown32",
	"fchownat", "fcntl", "fcntl64", "fdatasync", "fgetxattr", "flistxattr", "flock", "fremovexattr", "fsetxattr", "fstat", "fstat64",
	"fstatat64", "fstatfs", "fstatfs64", "fsync", "ftruncate", "ftruncate64", "futimesat", "getcwd", "getdents", "getdents64", "getxattr",
	"getxattrat", "ioctl", "lchown", "lchown32", "lgetxattr", "link", "linkat", "listxattr", "listxattrat", "llistxattr", "lremovexattr", "lseek", "_llseek",
	"lsetxattr", "lstat", "lstat64", "mkdir", "mkdirat", "mknod", "mknodat", "newfstatat", "open", "openat", "openat2", "pread64",
	"preadv", "preadv2", "pwrite64", "pwritev", "pwritev2", "read", "readahead", "readlink", "readlinkat", "readv", "removexattr", "removexattrat",
	"rename", "renameat", "renameat2", "rmdir", "sendfile", "sendfile64", "setxattr", "setxattrat", "splice", "stat", "stat64", "statfs", "statfs64",
	"statx", "symlink", "symlinkat", "sync", "sync_file_range", "syncfs", "tee", "truncate", "truncate64", "umask", "unlink", "unlinkat",
	"utime", "utimensat", "utimensat_time64", "utimes", "vmsplice", "write", "writev",
	"fanotify_init", "fanotify_mark", "inotify_add_watch", "inotify_init", "inotify_init1", "inotify_rm_watch",
	// waiting
	"epoll_create", "epoll_create1", "epoll_ctl", "epoll_ctl_old", "epoll_pwait", "epoll_pwait2", "epoll_wait", "epoll_wait_old",
	"eventfd", "eventfd2", "poll", "ppoll", "ppoll_time64", "pselect6", "pselect6_time64", "select", "_newselect", "signalfd", "signalfd4",
	"timerfd_create", "timerfd_gettime", "timerfd_gettime64", "timerfd_settime", "timerfd_settime64", "pipe", "pipe2",
	"io_cancel", "io_destroy", "io_getevents", "io_pgetevents", "io_pgetevents_time64", "io_setup", "io_submit",
	// memory
	"brk", "cachestat", "get_mempolicy", "madvise", "map_shadow_stack", "mbind", "membarrier", "memfd_create", "memfd_secret", "mincore", "mlock", "mlock2", "mlockall",
	"mmap", "mmap2", "mprotect", "mremap", "mseal", "msync", "munlock", "munlockall", "munmap", "pkey_alloc", "pkey_free", "pkey_mprotect",
	"process_madvise", "process_mrelease", "remap_file_pages", "set_mempolicy", "set_mempolicy_home_node",
	// processes
	"capget", "capset", "clone", "clone3", "execve", "execveat", "exit", "exit_group", "fork", "vfork", "get_robust_list",
	"get_thread_area", "getcpu", "getegid", "getegid32", "geteuid", "geteuid32", "getgid", "getgid32", "getgroups", "getgroups32",
	"getpgid", "getpgrp", "getpid", "getppid", "getpriority", "getresgid", "getresgid32", "getresuid", "getresuid32", "getrlimit",
	"getrusage", "getsid", "gettid", "getuid", "getuid32", "ioprio_get", "ioprio_set", "kcmp", "kill", "landlock_add_rule",
	"landlock_create_ruleset", "landlock_restrict_self", "nice", "personality", "pidfd_getfd", "pidfd_open", "pidfd_send_signal", "prctl", "prlimit64",
	"process_vm_readv", "process_vm_writev", "ptrace", "restart_syscall", "rseq", "sched_get_priority_max", "sched_get_priority_min",
	"sched_getaffinity", "sched_getattr", "sched_getparam", "sched_getscheduler", "sched_rr_get_interval", "sched_rr_get_interval_time64",
	"sched_setaffinity", "sched_setattr", "sched_setparam", "sched_setscheduler", "sched_yield", "seccomp", "set_robust_list",
	"set_thread_area", "set_tid_address", "setfsgid", "setfsgid32", "setfsuid", "setfsuid32", "setgid", "setgid32", "setgroups",
	"setgroups32", "setpgid", "setpriority", "setregid", "setregid32", "setresgid", "setresgid32", "setresuid", "setresuid32",
	"setreuid", "setreuid32", "setrlimit", "setsid", "setuid", "setuid32", "tgkill", "tkill", "times", "ugetrlimit", "uname", "wait4", "waitid", "waitpid",
	"cacheflush", "breakpoint", "set_tls", "arm_fadvise64_64", "arm_sync_file_range", "sync_file_range2", "riscv_flush_icache", "riscv_hwprobe",
	// signals, futexes, time
	"alarm", "clock_getres", "clock_getres_time64", "clock_gettime", "clock_gettime64", "clock_nanosleep", "clock_nanosleep_time64",
	"futex", "futex_requeue", "futex_time64", "futex_wait", "futex_waitv", "futex_wake", "getitimer", "gettimeofday", "nanosleep",
	"pause", "rt_sigaction", "rt_sigpending", "rt_sigprocmask", "rt_sigqueueinfo", "rt_sigreturn", "rt_sigsuspend", "rt_sigtimedwait",
	"rt_sigtimedwait_time64", "rt_tgsigqueueinfo", "setitimer", "sigaction", "sigaltstack", "signal", "sigpending", "sigprocmask", "sigreturn", "sigsuspend",
	"time", "timer_create", "timer_delete", "timer_getoverrun", "timer_gettime", "timer_gettime64", "timer_settime", "timer_settime64",
	"getrandom",
	// network; socket itself is below, by address family
	"accept", "accept4", "bind", "connect", "getpeername", "getsockname", "getsockopt", "listen", "recv", "recvfrom", "recvmmsg",
	"recvmmsg_time64", "recvmsg", "send", "sendmmsg", "sendmsg", "sendto", "setsockopt", "shutdown", "socketcall", "socketpair",
	// System V and POSIX inter-process communication, in a namespace of its own
	"ipc", "mq_getsetattr", "mq_notify", "mq_open", "mq_timedreceive", "mq_timedreceive_time64", "mq_timedsend", "mq_timedsend_time64",
	"mq_unlink", "msgctl", "msgget", "msgrcv", "msgsnd", "semctl", "semget", "semop", "semtimedop", "semtimedop_time64", "shmat",
	"shmctl", "shmdt", "shmget",
	// an operating system in namespaces of its own
	"chroot", "fsconfig", "fsmount", "fsopen", "fspick", "listmount", "mount", "mount_setattr", "move_mount", "name_to_handle_at", "open_tree", "open_tree_attr", "pivot_root",
	"reboot", "setdomainname", "sethostname", "setns", "statmount", "sysinfo", "umount", "umount2", "unshare", "vhangup",
	"lsm_get_self_attr", "lsm_list_modules", "lsm_set_self_attr",
	"adjtimex", "clock_adjtime", "clock_adjtime64", // to read the clock's state; setting needs the machine's CAP_SYS_TIME
	"syslog", // answers EPERM by itself, which programs expect; without it dmesg says "not implemented"
}
