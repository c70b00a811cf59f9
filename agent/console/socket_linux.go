package console

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// maxSunPath is how long a unix socket's path may be.
const maxSunPath = 107

// socketPath is a path of name in dir that is short enough for a socket address: through
// the descriptor where the real path is not. It is good as long as dir stays open.
func socketPath(dir *os.File, name string) string {
	if path := filepath.Join(dir.Name(), name); len(path) <= maxSunPath {
		return path
	}
	return fmt.Sprintf("/proc/%d/fd/%d/%s", os.Getpid(), dir.Fd(), name)
}

// listen makes a socket name in dir, in place of what a killed process left there.
func listen(dir *os.File, name string) (*net.UnixListener, error) {
	path := socketPath(dir, name)
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("remove old socket: %w", err)
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("listen on %s in %s: %w", name, dir.Name(), err)
	}
	return l, nil
}

// dial connects to the socket name in dir and makes sure that the other side is the same user.
func dial(ctx context.Context, dir *os.File, name string) (*net.UnixConn, error) {
	c, err := (&net.Dialer{Timeout: 5 * time.Second}).DialContext(ctx, "unix", socketPath(dir, name))
	if err != nil {
		return nil, fmt.Errorf("connect to %s in %s: %w", name, dir.Name(), err)
	}
	conn := c.(*net.UnixConn)
	if _, err := peer(conn); err != nil {
		_ = conn.Close()
		return nil, err
	}
	return conn, nil
}

// peer is the process at the other end of c, which must be of our own user.
func peer(c *net.UnixConn) (pid int, err error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return 0, fmt.Errorf("read peer credentials: %w", err)
	}
	var cred *unix.Ucred
	var serr error
	if err := raw.Control(func(fd uintptr) { cred, serr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }); err != nil {
		serr = err
	}
	if serr != nil {
		return 0, fmt.Errorf("read peer credentials: %w", serr)
	}
	if int(cred.Uid) != os.Geteuid() {
		return 0, fmt.Errorf("check peer: process %d belongs to user %d", cred.Pid, cred.Uid)
	}
	return int(cred.Pid), nil
}

// receive reads what one send carried: bytes and at most one descriptor (else nil).
func receive(c *net.UnixConn) ([]byte, *os.File, error) {
	buf, oob := make([]byte, 4096), make([]byte, unix.CmsgSpace(4*4))
	n, oobn, flags, _, err := c.ReadMsgUnix(buf, oob)
	if err != nil {
		return nil, nil, fmt.Errorf("receive message: %w", err)
	}
	if n == 0 && oobn == 0 {
		return nil, nil, io.EOF
	}
	fds, err := descriptors(oob[:oobn])
	if err == nil && (flags&unix.MSG_CTRUNC != 0 || len(fds) > 1) {
		err = errors.New("more than one descriptor")
	}
	if err == nil && len(fds) == 1 {
		err = unix.SetNonblock(fds[0], true) // before os.NewFile, so that reads wait in the poller and not in a thread
	}
	if err != nil {
		for _, fd := range fds {
			_ = unix.Close(fd)
		}
		return nil, nil, fmt.Errorf("receive message: %w", err)
	}
	if len(fds) == 0 {
		return buf[:n], nil, nil
	}
	return buf[:n], os.NewFile(uintptr(fds[0]), "terminal"), nil
}

func descriptors(oob []byte) ([]int, error) {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, err
	}
	var all []int
	for i := range messages {
		fds, err := unix.ParseUnixRights(&messages[i])
		if err != nil {
			return all, err
		}
		all = append(all, fds...)
	}
	return all, nil
}

// send writes p, with descriptor fd unless that is negative.
func send(c *net.UnixConn, p []byte, fd int) error {
	var oob []byte
	if fd >= 0 {
		oob = unix.UnixRights(fd)
	}
	n, _, err := c.WriteMsgUnix(p, oob, nil)
	if err == nil && n < len(p) {
		_, err = c.Write(p[n:])
	}
	if err != nil {
		return fmt.Errorf("send message: %w", err)
	}
	return nil
}

// sendFile is send for an open file, without changing its blocking mode.
func sendFile(c *net.UnixConn, p []byte, f *os.File) error {
	raw, err := f.SyscallConn()
	if err != nil {
		return fmt.Errorf("send descriptor: %w", err)
	}
	var serr error
	if err := raw.Control(func(fd uintptr) { serr = send(c, p, int(fd)) }); err != nil {
		return fmt.Errorf("send descriptor: %w", err)
	}
	return serr
}
