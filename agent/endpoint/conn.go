package endpoint

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
)

// Conn is a connection to another agent, ready for the purpose's frames. One goroutine may
// send while another receives.
type Conn struct {
	peer, purpose string
	right         []byte
	version       uint16
	tls           *tls.Conn
	link          *link

	write  chan struct{} // full while somebody sends
	out    []byte        // the frame being sent
	sent   time.Time     // when the last one was
	frames chan Frame
	spare  chan []byte // buffers that the reader may fill
	held   []byte      // the one that the last frame is in

	ended    chan struct{} // closed when the reader has stopped
	closed   chan struct{}
	once     sync.Once
	draining atomic.Bool // what still comes in is dropped
	halted   chan error  // holds why the handler should return
	mu       sync.Mutex
	err      error // why nothing can be sent or received any more
}

// Frame is one message of a purpose. Its payload is valid until the next Receive.
type Frame struct {
	Type    byte
	Payload []byte
}

// newConn begins to read and to ping on a connection whose hello has been answered.
func newConn(t *tls.Conn, l *link, r *bufio.Reader, peer string, h hello, version uint16) *Conn {
	c := &Conn{peer: peer, purpose: h.Purpose, right: h.Right, version: version, tls: t, link: l, sent: time.Now(), write: make(chan struct{}, 1),
		frames: make(chan Frame, 1), spare: make(chan []byte, 3), ended: make(chan struct{}), closed: make(chan struct{}), halted: make(chan error, 1)}
	for range cap(c.spare) {
		c.spare <- nil
	}
	go c.read(r)
	go c.keepAlive()
	return c
}

// Peer is the name of the other agent's host, as its certificate says.
func (c *Conn) Peer() string { return c.peer }

// Purpose is what the connection is for.
func (c *Conn) Purpose() string { return c.purpose }

// Right is what the side that called gave as its right, none in most purposes.
func (c *Conn) Right() []byte { return c.right }

// Version is the protocol's version that both sides speak.
func (c *Conn) Version() uint16 { return c.version }

// Send sends one frame whose payload are the parts, one after the other. An error is
// fault.Unavailable for a lost link, or what the other side said when it gave up.
func (c *Conn) Send(kind byte, parts ...[]byte) error {
	if kind < FirstType {
		return fault.New(fault.Internal, "send frame: type %d is not a purpose's", kind)
	}
	return c.send(kind, parts...)
}

func (c *Conn) send(kind byte, parts ...[]byte) error {
	n := 0
	for _, p := range parts {
		n += len(p)
	}
	if n > MaxPayload {
		return fault.New(fault.Internal, "send frame: %d bytes, at most %d are allowed", n, MaxPayload)
	}
	c.write <- struct{}{}
	defer func() { <-c.write }()
	if err := c.lost(); err != nil {
		return err
	}
	c.out = appendHeader(c.out[:0], kind, n) // one write: one TLS record for what is short
	for _, p := range parts {
		c.out = append(c.out, p...)
	}
	_, err := c.tls.Write(c.out)
	c.sent = time.Now()
	if err != nil {
		limit := time.NewTimer(lingerTime)
		defer limit.Stop()
		select { // the reason may just be coming in
		case <-c.ended:
		case <-limit.C:
		}
		err = c.fail(err)
		c.close()
	}
	return err
}

// Receive is the next frame; io.EOF when the other side said bye, otherwise as Send.
func (c *Conn) Receive() (Frame, error) {
	c.release()
	select {
	case f := <-c.frames:
		c.held = f.Payload
		return f, nil
	case err := <-c.halted:
		return Frame{}, err
	case <-c.ended:
		select { // what came before the end
		case f := <-c.frames:
			c.held = f.Payload
			return f, nil
		default:
			return Frame{}, c.lost()
		}
	}
}

// release gives the last frame's buffer back to the reader.
func (c *Conn) release() {
	if c.held != nil {
		c.spare <- c.held
		c.held = nil
	}
}

// halt wakes a handler that waits for a frame, or will.
func (c *Conn) halt(err error) {
	select {
	case c.halted <- err:
	default:
	}
	_ = c.link.limitWrites(lingerTime)
}

// read passes frames on until there are no more.
func (c *Conn) read(r *bufio.Reader) {
	defer close(c.ended)
	for {
		var buf []byte
		select {
		case buf = <-c.spare:
		case <-c.closed:
			c.fail(net.ErrClosed)
			return
		}
		kind, payload, err := readFrame(r, buf[:0], MaxPayload)
		switch {
		case errors.Is(err, io.EOF):
			err = io.ErrUnexpectedEOF // without a bye it is no end
		case err != nil:
		case kind == typePing, c.draining.Load() && kind >= FirstType:
			c.spare <- payload
			continue
		case kind == typeBye:
			err = errBye
		case kind == typeError:
			err = decodeError(c.peer, payload)
		case kind < FirstType:
			err = fault.New(fault.Invalid, "read from host %s: a frame of type %d, which has no place here", c.peer, kind)
		}
		if err != nil {
			if c.fail(err); !c.draining.Load() {
				c.close() // wakes a Send that waits
			}
			return
		}
		if payload == nil {
			payload = []byte{}
		}
		select {
		case c.frames <- Frame{kind, payload}:
		case <-c.closed:
			c.fail(net.ErrClosed)
			return
		}
	}
}

// keepAlive lets the other side hear something at least every pingEvery.
func (c *Conn) keepAlive() {
	tick := time.NewTicker(pingEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			select {
			case c.write <- struct{}{}:
			default: // a Send is under way: that is heard as well
				continue
			}
			idle := time.Since(c.sent) >= pingEvery/2
			<-c.write
			if idle && c.send(typePing) != nil {
				return
			}
		case <-c.closed:
			return
		}
	}
}

// Close says bye where that is possible at once, and ends the connection.
func (c *Conn) Close() error {
	select {
	case c.write <- struct{}{}:
		if c.lost() == nil {
			_ = c.link.limitWrites(lingerTime)
			_, _ = c.tls.Write(appendHeader(nil, typeBye, 0))
		}
		<-c.write
	default:
	}
	c.fail(net.ErrClosed)
	c.close()
	return nil
}

// CloseWith ends the connection when ctx does; stop undoes that.
func (c *Conn) CloseWith(ctx context.Context) (stop func() bool) {
	return context.AfterFunc(ctx, func() {
		c.fail(context.Cause(ctx))
		c.close()
	})
}

// end is how a handler's connection ends: with bye, or the error that the handler had. The
// other side gets time to read it: closing at once would take it back with all else that is
// unread.
func (c *Conn) end(err error) {
	c.draining.Store(true)
	c.release()
	_ = c.link.limitWrites(lingerTime)
	if err != nil {
		_ = c.send(typeError, encodeError(err))
	} else {
		_ = c.send(typeBye)
	}
	c.fail(net.ErrClosed)
	_ = c.tls.CloseWrite()
	limit := time.NewTimer(lingerTime)
	defer limit.Stop()
	for {
		select {
		case f := <-c.frames:
			c.spare <- f.Payload
		case <-c.ended:
			c.close()
			return
		case <-limit.C:
			c.close()
			return
		}
	}
}

func (c *Conn) close() {
	c.once.Do(func() {
		close(c.closed)
		_ = c.link.Close() // not the TLS connection, whose farewell would wait for a Send
	})
}

// fail notes why the connection ended; the first reason stays.
func (c *Conn) fail(err error) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err == nil {
		if c.err = explain(c.peer, err); errors.Is(err, errBye) {
			c.err = io.EOF
		}
	}
	return c.err
}

func (c *Conn) lost() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

// errBye: the other side said bye.
var errBye = errors.New("the other side has ended the connection")

// explain gives the error of a connection its kind.
func explain(peer string, err error) error {
	var known *fault.Error
	switch {
	case errors.As(err, &known):
		return err
	case errors.Is(err, os.ErrDeadlineExceeded):
		return fault.New(fault.Unavailable, "link to host %s: nothing was heard for %s: %w", peer, silence, err)
	}
	return fault.New(fault.Unavailable, "link to host %s: %w", peer, err)
}
