package console

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
)

// startLimit is how long a new keeper may take until it answers.
const startLimit = 10 * time.Second

// Config says where the keeper of one agent is and how to start it.
type Config struct {
	Dir    string   // its sockets; made, 0700
	LogDir string   // the servers' logs; made, 0700
	Argv   []string // starts a keeper: the program, then arguments that make it call Serve(ctx, Dir, LogDir)
	Log    hclog.Logger
}

// Client is the agent's side: it finds or starts the keeper, and holds a second
// descriptor of every terminal for the case that the keeper dies. Safe for concurrent use.
type Client struct {
	cfg Config
	dir *os.File

	starting sync.Mutex // one start of a keeper at a time
	mu       sync.Mutex
	masters  map[string]*os.File
}

// Open finds the keeper of cfg.Dir, or starts one, and takes a descriptor of every
// terminal it keeps.
func Open(ctx context.Context, cfg Config) (*Client, error) {
	if cfg.Log == nil {
		cfg.Log = hclog.NewNullLogger()
	}
	for _, d := range []string{cfg.Dir, cfg.LogDir} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return nil, fmt.Errorf("make directory of the console keeper: %w", err)
		}
	}
	dir, err := os.Open(cfg.Dir)
	if err != nil {
		return nil, fmt.Errorf("open directory of the console keeper: %w", err)
	}
	c := &Client{cfg: cfg, dir: dir, masters: map[string]*os.File{}}
	if err := c.sync(ctx); err != nil {
		_ = c.Close()
		return nil, err
	}
	return c, nil
}

// Close gives the descriptors up; the keeper goes on.
func (c *Client) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	for id, f := range c.masters {
		_ = f.Close()
		delete(c.masters, id)
	}
	return c.dir.Close()
}

// sync takes descriptors of what the keeper has.
func (c *Client) sync(ctx context.Context) error {
	ids, err := c.List(ctx)
	if err != nil {
		return err
	}
	for _, id := range ids {
		_, f, err := c.call(ctx, request{Op: opFetch, ID: id}, nil)
		if err != nil && !fault.Is(err, fault.NotFound) {
			return fmt.Errorf("fetch terminal of server %s: %w", id, err)
		}
		c.hold(id, f)
	}
	return nil
}

// hold remembers f as the second descriptor of id; nil forgets it.
func (c *Client) hold(id string, f *os.File) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if old := c.masters[id]; old != nil {
		_ = old.Close()
	}
	if f == nil {
		delete(c.masters, id)
		return
	}
	c.masters[id] = f
}

// Watch restarts the keeper whenever it ends, until ctx does, and gives it back the
// terminals.
func (c *Client) Watch(ctx context.Context) error {
	for ctx.Err() == nil {
		conn, err := c.hello(ctx)
		if err != nil {
			if err = c.revive(ctx); err != nil && ctx.Err() == nil {
				c.cfg.Log.Error("restart the console keeper", "error", err)
				select {
				case <-ctx.Done():
				case <-time.After(time.Second):
				}
			}
			continue
		}
		c.handOver(ctx) // another one may have started it
		stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
		_, _ = conn.Read(make([]byte, 1)) // returns when the keeper ends
		stop()
		_ = conn.Close()
	}
	return ctx.Err()
}

// hello connects to a keeper that answers.
func (c *Client) hello(ctx context.Context) (*net.UnixConn, error) {
	conn, err := dial(ctx, c.dir, socketName)
	if err != nil {
		return nil, err
	}
	r, _, err := exchange(ctx, conn, request{Op: opHello}, nil)
	if err == nil && r.Version < 1 {
		err = errors.New("check console keeper: it has no version")
	}
	if err != nil {
		_ = conn.Close()
		return nil, err
	}
	return conn, nil
}

// revive makes a keeper run and gives it the terminals that this side still holds.
func (c *Client) revive(ctx context.Context) error {
	c.starting.Lock()
	defer c.starting.Unlock()
	if conn, err := c.hello(ctx); err == nil {
		_ = conn.Close()
	} else if err := c.start(ctx); err != nil {
		return err
	}
	c.handOver(ctx)
	return nil
}

// handOver gives the keeper the terminals that this side holds; it leaves those it has.
func (c *Client) handOver(ctx context.Context) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for id, f := range c.masters {
		conn, err := dial(ctx, c.dir, socketName)
		if err == nil {
			_, _, err = exchange(ctx, conn, request{Op: opAdopt, ID: id}, f)
			_ = conn.Close()
		}
		if err != nil {
			c.cfg.Log.Error("hand a terminal to the new console keeper", "server", id, "error", err)
		}
	}
}

// start starts a keeper in a session of its own and waits until it answers.
func (c *Client) start(ctx context.Context) error {
	cmd := exec.Command(c.cfg.Argv[0], c.cfg.Argv[1:]...)
	cmd.Dir = "/"
	cmd.Env = append(os.Environ(), "GOMAXPROCS=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start console keeper: %w", err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	ctx, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for {
		if conn, err := c.hello(ctx); err == nil {
			return conn.Close()
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("start console keeper: %w", ctx.Err())
		case err := <-ended:
			if err != nil {
				return fmt.Errorf("start console keeper: %w", err)
			}
			ended = nil // another one was quicker: wait for its socket
		case <-tick.C:
		}
	}
}

// call is one request and its response, with a keeper started if there is none.
func (c *Client) call(ctx context.Context, r request, file *os.File) (response, *os.File, error) {
	conn, err := dial(ctx, c.dir, socketName)
	if err != nil {
		if err := c.revive(ctx); err != nil {
			return response{}, nil, err
		}
		if conn, err = dial(ctx, c.dir, socketName); err != nil {
			return response{}, nil, err
		}
	}
	defer func() { _ = conn.Close() }()
	return exchange(ctx, conn, r, file)
}

// exchange sends r and reads the response; nothing may follow the response.
func exchange(ctx context.Context, conn *net.UnixConn, r request, file *os.File) (response, *os.File, error) {
	var resp response
	b, err := encode(r)
	if err != nil {
		return resp, nil, err
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	if file != nil {
		err = sendFile(conn, b, file)
	} else {
		err = send(conn, b, -1)
	}
	if err != nil {
		return resp, nil, err
	}
	line, got, err := receive(conn)
	for err == nil && !complete(line) && len(line) < maxLine {
		more := make([]byte, 4096)
		var n int
		n, err = conn.Read(more)
		line = append(line, more[:n]...)
	}
	if err == nil {
		err = json.Unmarshal(line, &resp)
	}
	if err == nil {
		err = resp.err()
	} else {
		err = fmt.Errorf("ask console keeper to %s: %w", r.Op, err)
	}
	if err != nil && got != nil {
		_ = got.Close()
		got = nil
	}
	return resp, got, err
}

// Expect makes the keeper listen for the terminal of id; path is for runc's
// --console-socket. An older terminal of id is closed.
func (c *Client) Expect(ctx context.Context, id string) (path string, err error) {
	c.hold(id, nil)
	r, _, err := c.call(ctx, request{Op: opExpect, ID: id}, nil)
	return r.Path, err
}

// Accept waits until the terminal of id came through Expect's socket.
func (c *Client) Accept(ctx context.Context, id string) error {
	_, f, err := c.call(ctx, request{Op: opAccept, ID: id, Seconds: 10}, nil)
	if err == nil {
		c.hold(id, f)
	}
	return err
}

// Forget closes the terminal of id; its log stays until [RemoveLog].
func (c *Client) Forget(ctx context.Context, id string) error {
	c.hold(id, nil)
	_, _, err := c.call(ctx, request{Op: opForget, ID: id}, nil)
	return err
}

// List names the servers whose terminal is kept.
func (c *Client) List(ctx context.Context) ([]string, error) {
	r, _, err := c.call(ctx, request{Op: opList}, nil)
	return r.IDs, err
}

// Resize sets the window of id's terminal.
func (c *Client) Resize(ctx context.Context, id string, rows, columns uint16) error {
	_, _, err := c.call(ctx, request{Op: opResize, ID: id, Rows: rows, Columns: columns}, nil)
	return err
}

// Join connects rw to the terminal of id until ctx ends (nil), rw or the terminal does.
// A read of rw that is under way when it returns goes on until the caller closes rw; what
// it reads is dropped. fault.NotFound: the server has no terminal.
func (c *Client) Join(ctx context.Context, id string, rw io.ReadWriter) error {
	conn, err := c.joined(ctx, id)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	ended := make(chan error, 2)
	go func() {
		_, err := io.Copy(conn, rw)
		ended <- err
	}()
	go func() {
		_, err := io.Copy(rw, conn)
		ended <- err
	}()
	err = <-ended
	if ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

func (c *Client) joined(ctx context.Context, id string) (*net.UnixConn, error) {
	conn, err := c.hello(ctx) // through a keeper that certainly answers
	if err != nil {
		if err := c.revive(ctx); err != nil {
			return nil, err
		}
	} else {
		_ = conn.Close()
	}
	if conn, err = dial(ctx, c.dir, socketName); err != nil {
		return nil, err
	}
	b, err := encode(request{Op: opJoin, ID: id})
	if err == nil {
		err = send(conn, b, -1)
	}
	var line []byte
	if err == nil {
		_ = conn.SetReadDeadline(time.Now().Add(startLimit))
		line, err = readLine(conn, nil) // byte by byte: what the console prints may follow at once
		_ = conn.SetReadDeadline(time.Time{})
	}
	var resp response
	if err == nil {
		err = json.Unmarshal(line, &resp)
	}
	if err == nil {
		err = resp.err()
	}
	if err != nil {
		_ = conn.Close()
		return nil, fmt.Errorf("join console of server %s: %w", id, err)
	}
	return conn, nil
}
