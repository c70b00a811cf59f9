package console

import (
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	readSize   = 2 << 10          // per server: 500 servers cost 1 MiB of buffers
	queueSize  = 64               // reads that one joined person may be behind
	inputLimit = 10 * time.Second // how long a server may leave typed bytes unread
	hungPause  = 50 * time.Millisecond
)

// terminal is the master of one server's console. One goroutine reads it for good.
type terminal struct {
	master *os.File
	log    *ringLog // touched by run only, after newTerminal

	mu     sync.Mutex
	joined map[*joiner]bool
	closed bool
}

// joiner is somebody at the console.
type joiner struct {
	conn   *net.UnixConn
	output chan []byte
}

func newTerminal(master *os.File, logPath string) (*terminal, error) {
	if err := control(master, func(fd int) error {
		_, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
		return err
	}); err != nil {
		return nil, fmt.Errorf("take terminal: not a pty master: %w", err)
	}
	log, err := openRingLog(logPath, LogHalf)
	if err != nil {
		return nil, err
	}
	return &terminal{master: master, log: log, joined: map[*joiner]bool{}}, nil
}

// run reads until the master is closed. While no process has the other side open (or an
// init has hung it up) reads fail with EIO; holding it open here keeps that from spinning.
func (t *terminal) run() {
	buf := make([]byte, readSize)
	slave := t.openSlave()
	for {
		n, err := t.master.Read(buf)
		if n > 0 {
			_, _ = t.log.Write(buf[:n]) // a full disk must not stop the console
			t.spread(buf[:n])
		}
		switch {
		case err == nil:
		case errors.Is(err, os.ErrClosed):
			closeFD(slave)
			_ = t.log.Close()
			return
		default:
			time.Sleep(hungPause)
			closeFD(slave)
			slave = t.openSlave()
		}
	}
}

// openSlave opens the other side, wherever it is mounted; -1 if it cannot be.
func (t *terminal) openSlave() int {
	slave := -1
	_ = control(t.master, func(fd int) error {
		r, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.TIOCGPTPEER, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC|unix.O_NONBLOCK)
		if errno == 0 {
			slave = int(r)
		}
		return nil
	})
	return slave
}

func closeFD(fd int) {
	if fd >= 0 {
		_ = unix.Close(fd)
	}
}

// spread gives output to everybody who joined; who cannot keep up is sent away, because
// the server's writers must not wait for a person's network.
func (t *terminal) spread(p []byte) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.joined) == 0 {
		return
	}
	chunk := append([]byte(nil), p...)
	for j := range t.joined {
		select {
		case j.output <- chunk:
		default:
			t.leave(j)
		}
	}
}

// leave forgets j; the caller holds mu.
func (t *terminal) leave(j *joiner) {
	if t.joined[j] {
		delete(t.joined, j)
		close(j.output)
	}
}

// join connects conn to the terminal until either ends.
func (t *terminal) join(conn *net.UnixConn) {
	j := &joiner{conn: conn, output: make(chan []byte, queueSize)}
	t.mu.Lock()
	if t.closed {
		t.mu.Unlock()
		return
	}
	t.joined[j] = true
	t.mu.Unlock()
	var writer sync.WaitGroup
	writer.Go(func() {
		for p := range j.output {
			if _, err := conn.Write(p); err != nil {
				break
			}
		}
		_ = conn.Close() // ends the reads below
	})
	buf := make([]byte, readSize)
	for {
		n, err := conn.Read(buf)
		if n > 0 {
			_ = t.master.SetWriteDeadline(time.Now().Add(inputLimit))
			if _, werr := t.master.Write(buf[:n]); werr != nil {
				break
			}
		}
		if err != nil {
			break
		}
	}
	t.mu.Lock()
	t.leave(j)
	t.mu.Unlock()
	_ = conn.Close()
	writer.Wait()
}

func (t *terminal) resize(rows, columns uint16) error {
	return control(t.master, func(fd int) error {
		return unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &unix.Winsize{Row: rows, Col: columns})
	})
}

// close hangs the terminal up and sends everybody away.
func (t *terminal) close() {
	t.mu.Lock()
	t.closed = true
	for j := range t.joined {
		t.leave(j)
	}
	t.mu.Unlock()
	_ = t.master.Close()
}

// control calls f with f's descriptor, without taking it out of the poller as Fd would.
func control(file *os.File, f func(fd int) error) error {
	raw, err := file.SyscallConn()
	if err != nil {
		return err
	}
	var ferr error
	if err := raw.Control(func(fd uintptr) { ferr = f(int(fd)) }); err != nil {
		return err
	}
	return ferr
}
