package console

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime/debug"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
)

const (
	socketName  = "keeper.sock"
	lockName    = "keeper.lock"
	memoryLimit = 12 << 20 // for the collector; the process stays below 15 MiB
)

// Serve is the body of `reflejo console-keeper`: it keeps terminals until ctx ends. dir
// is where its sockets are, logDir where logs go; both exist and belong to root alone.
// Where another keeper serves dir already it returns nil at once.
func Serve(ctx context.Context, dir, logDir string) error {
	debug.SetGCPercent(50)
	debug.SetMemoryLimit(memoryLimit)
	lock, err := os.OpenFile(filepath.Join(dir, lockName), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return fmt.Errorf("open lock: %w", err)
	}
	defer func() { _ = lock.Close() }()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil
		}
		return fmt.Errorf("lock %s: %w", lock.Name(), err)
	}
	d, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("open directory: %w", err)
	}
	defer func() { _ = d.Close() }()
	l, err := listen(d, socketName)
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { _ = l.Close() })
	defer stop()
	k := &keeper{dir: d, logDir: logDir, terminals: map[string]*terminal{}, expected: map[string]*expectation{}}
	for {
		c, err := l.AcceptUnix()
		switch {
		case err == nil:
			go k.handle(c)
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, net.ErrClosed):
			return fmt.Errorf("accept: %w", err)
		default:
			time.Sleep(100 * time.Millisecond) // out of descriptors: the next one may find some
		}
	}
}

// keeper holds the terminals.
type keeper struct {
	dir    *os.File
	logDir string

	mu        sync.Mutex
	terminals map[string]*terminal
	expected  map[string]*expectation
}

// expectation is a master that is to come through a socket of its own.
type expectation struct {
	listener *net.UnixListener
	done     chan struct{} // closed when it came, failed or was given up
	err      error         // valid after done
}

// handle answers one connection.
func (k *keeper) handle(c *net.UnixConn) {
	defer func() { _ = c.Close() }()
	if _, err := peer(c); err != nil {
		return
	}
	_ = c.SetReadDeadline(time.Now().Add(10 * time.Second))
	first, file, err := receive(c)
	if err != nil {
		return
	}
	line, err := readLine(c, first)
	var r request
	if err != nil || json.Unmarshal(line, &r) != nil || (r.Op != opHello && r.Op != opList && !ValidID(r.ID)) {
		if file != nil {
			_ = file.Close()
		}
		return
	}
	_ = c.SetReadDeadline(time.Time{})
	if r.Op == opAdopt && file != nil {
		k.answer(c, response{}, nil, k.adopt(r.ID, file))
		return
	}
	if file != nil {
		_ = file.Close()
	}
	k.dispatch(c, r)
}

func (k *keeper) dispatch(c *net.UnixConn, r request) {
	switch r.Op {
	case opHello:
		k.answer(c, response{Version: version}, nil, nil)
		_, _ = c.Read(make([]byte, 1)) // the agent holds this connection to learn of our end
	case opList:
		k.answer(c, response{IDs: k.list()}, nil, nil)
	case opExpect:
		path, err := k.expect(r.ID)
		k.answer(c, response{Path: path}, nil, err)
	case opAccept:
		err := k.wait(r.ID, time.Duration(r.Seconds)*time.Second)
		var master *os.File
		if err == nil {
			master, err = k.master(r.ID)
		}
		k.answer(c, response{}, master, err)
	case opFetch:
		master, err := k.master(r.ID)
		k.answer(c, response{}, master, err)
	case opForget:
		k.forget(r.ID)
		k.answer(c, response{}, nil, nil)
	case opJoin, opResize:
		k.attend(c, r)
	default:
		k.answer(c, response{}, nil, fault.New(fault.Invalid, "unknown request %q", r.Op))
	}
}

// attend handles what needs the terminal itself.
func (k *keeper) attend(c *net.UnixConn, r request) {
	t, err := k.terminal(r.ID)
	if err == nil && r.Rows > 0 && r.Columns > 0 {
		err = t.resize(r.Rows, r.Columns)
	}
	k.answer(c, response{}, nil, err)
	if err == nil && r.Op == opJoin {
		t.join(c)
	}
}

// answer sends the response, with the descriptor of file if there is one.
func (k *keeper) answer(c *net.UnixConn, r response, file *os.File, err error) {
	if err != nil {
		r, file = failure(err), nil
	}
	b, err := encode(r)
	if err != nil {
		return
	}
	_ = c.SetWriteDeadline(time.Now().Add(10 * time.Second))
	if file != nil {
		_ = sendFile(c, b, file)
	} else {
		_ = send(c, b, -1)
	}
	_ = c.SetWriteDeadline(time.Time{})
}

func (k *keeper) list() []string {
	k.mu.Lock()
	defer k.mu.Unlock()
	ids := make([]string, 0, len(k.terminals))
	for id := range k.terminals {
		ids = append(ids, id)
	}
	return ids
}

func (k *keeper) terminal(id string) (*terminal, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if t := k.terminals[id]; t != nil {
		return t, nil
	}
	return nil, fault.New(fault.NotFound, "server %s has no terminal", id)
}

func (k *keeper) master(id string) (*os.File, error) {
	t, err := k.terminal(id)
	if err != nil {
		return nil, err
	}
	return t.master, nil
}

// adopt takes a master; one that is kept already is left as it is.
func (k *keeper) adopt(id string, master *os.File) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.terminals[id] != nil {
		return master.Close()
	}
	t, err := newTerminal(master, logPath(k.logDir, id))
	if err != nil {
		_ = master.Close()
		return err
	}
	k.terminals[id] = t
	go t.run()
	return nil
}

// forget closes everything of id; its log stays.
func (k *keeper) forget(id string) {
	k.mu.Lock()
	t, e := k.terminals[id], k.expected[id]
	delete(k.terminals, id)
	delete(k.expected, id)
	k.mu.Unlock()
	if e != nil {
		_ = e.listener.Close()
	}
	if t != nil {
		t.close()
	}
}

// expect begins to listen for the master of id, which replaces an older one.
func (k *keeper) expect(id string) (path string, err error) {
	k.forget(id)
	l, err := listen(k.dir, id)
	if err != nil {
		return "", err
	}
	e := &expectation{listener: l, done: make(chan struct{})}
	k.mu.Lock()
	k.expected[id] = e
	k.mu.Unlock()
	_ = l.SetDeadline(time.Now().Add(expectLimit))
	go func() {
		e.err = k.take(id, l)
		_ = l.Close() // also removes the socket
		close(e.done)
	}()
	return socketPath(k.dir, id), nil
}

// take accepts the one connection that brings the master.
func (k *keeper) take(id string, l *net.UnixListener) error {
	c, err := l.AcceptUnix()
	if err != nil {
		return fmt.Errorf("wait for terminal: %w", err)
	}
	defer func() { _ = c.Close() }()
	if _, err := peer(c); err != nil {
		return err
	}
	_ = c.SetReadDeadline(time.Now().Add(10 * time.Second))
	_, file, err := receive(c)
	if err != nil {
		return err
	}
	if file == nil {
		return errors.New("receive terminal: no descriptor came")
	}
	return k.adopt(id, file)
}

// wait returns when the expected master of id has come.
func (k *keeper) wait(id string, limit time.Duration) error {
	k.mu.Lock()
	e := k.expected[id]
	k.mu.Unlock()
	if e == nil {
		return fault.New(fault.NotFound, "no terminal of server %s is expected", id)
	}
	timeout := time.NewTimer(min(limit, expectLimit))
	defer timeout.Stop()
	select {
	case <-e.done:
		return e.err
	case <-timeout.C:
		return fault.New(fault.Unavailable, "the terminal of server %s did not come within %s", id, limit)
	}
}

// complete reports whether b is exactly one line.
func complete(b []byte) bool { return bytes.IndexByte(b, '\n') == len(b)-1 && len(b) > 0 }
