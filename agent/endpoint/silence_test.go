package endpoint

import (
	"context"
	"errors"
	"net"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
	"github.com/reflejo/terraform-provider-reflejo/agent/pki"
)

// A link that is cut without a word is noticed by both sides, by one that waits and by one
// that sends; one on which nothing is said is kept; a side that is slow with what it got is
// waited for.
func TestSilence(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite(t)
		lost := make(chan time.Duration, 4)
		w := newWire()
		server := NewServer(ServerConfig{Credentials: s.credentials(pki.RoleAgent, "beta")})
		server.Handle("wait/1", func(_ context.Context, c *Conn) error {
			_, err := c.Receive()
			w.note(lost)
			return err
		})
		server.Handle("slow/1", func(_ context.Context, c *Conn) error {
			time.Sleep(5 * time.Minute) // it reads nothing meanwhile
			return echo(context.Background(), c)
		})
		go server.Serve(w)
		cfg := s.config("198.18.0.12:7444", "wait/1")
		cfg.Dial = w.dial

		slow := cfg
		slow.Purpose = "slow/1"
		c, err := Dial(t.Context(), slow)
		if err != nil {
			t.Fatal(err)
		}
		go func() {
			for range 8 {
				if err := c.Send(17, make([]byte, MaxPayload)); err != nil {
					t.Errorf("send to a slow side: %v", err)
				}
			}
		}()
		for range 8 {
			if _, err := c.Receive(); err != nil {
				t.Fatalf("wait for a slow side: %v", err)
			}
		}
		c.Close()

		idle, err := Dial(t.Context(), cfg)
		if err != nil {
			t.Fatal(err)
		}
		sender, err := Dial(t.Context(), cfg)
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Hour)
		w.cut()
		go func() {
			for sender.Send(17, make([]byte, MaxPayload)) == nil {
			}
			w.note(lost)
		}()
		if _, err := idle.Receive(); !fault.Is(err, fault.Unavailable) {
			t.Errorf("a silent link: %v", err)
		}
		w.note(lost)
		for range 4 { // both ends of both
			if d := <-lost; d > 15*time.Second {
				t.Errorf("noticed after %s", d)
			}
		}
		idle.Close()
		sender.Close()
		server.Shutdown(context.Background())
	})
}

// wire joins both sides in memory, as TCP would, and can be cut without a word.
type wire struct {
	accepted chan net.Conn
	closed   chan struct{}
	once     sync.Once
	mu       sync.Mutex
	gone     bool
	cutAt    time.Time
}

func newWire() *wire { return &wire{accepted: make(chan net.Conn), closed: make(chan struct{})} }

func (w *wire) dial(context.Context, string, string) (net.Conn, error) {
	a, b := net.Pipe()
	w.accepted <- newWireEnd(b, w)
	return newWireEnd(a, w), nil
}

func (w *wire) cut() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.gone, w.cutAt = true, time.Now()
}

func (w *wire) note(lost chan time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	lost <- time.Since(w.cutAt)
}

func (w *wire) Accept() (net.Conn, error) {
	select {
	case c := <-w.accepted:
		return c, nil
	case <-w.closed:
		return nil, net.ErrClosed
	}
}
func (w *wire) Close() error   { w.once.Do(func() { close(w.closed) }); return nil }
func (w *wire) Addr() net.Addr { return &net.TCPAddr{} }

// wireEnd stops to take what is written once the wire is cut, as a connection does whose
// buffers are full.
type wireEnd struct {
	net.Conn
	hole net.Conn // nobody reads at its other end
	w    *wire
}

func newWireEnd(c net.Conn, w *wire) *wireEnd {
	hole, _ := net.Pipe()
	return &wireEnd{c, hole, w}
}

func (e *wireEnd) Write(p []byte) (int, error) {
	e.w.mu.Lock()
	gone := e.w.gone
	e.w.mu.Unlock()
	if gone {
		return e.hole.Write(p)
	}
	return e.Conn.Write(p)
}

func (e *wireEnd) SetWriteDeadline(t time.Time) error {
	return errors.Join(e.Conn.SetWriteDeadline(t), e.hole.SetWriteDeadline(t))
}

func (e *wireEnd) Close() error {
	e.w.mu.Lock()
	gone := e.w.gone
	e.w.mu.Unlock()
	_ = e.hole.Close()
	if gone { // the other side must not hear of it; this one's read must end
		return e.Conn.SetReadDeadline(time.Unix(1, 0))
	}
	return e.Conn.Close()
}
