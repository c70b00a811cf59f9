package peers

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/uuid"

	"github.com/reflejo/terraform-provider-reflejo/agent/backup"
	"github.com/reflejo/terraform-provider-reflejo/agent/backup/backuptest"
	"github.com/reflejo/terraform-provider-reflejo/agent/endpoint"
	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
)

// scissors cut a connection in the middle of one of its TLS records, counted from the
// connection's first in one direction. Each of our short frames is a record, a long one is many.
type scissors struct {
	sent, received int // which record to cut; -1: none

	mu      sync.Mutex
	cut     bool
	records [2]int // seen in a connection, sent and received
}

func (s *scissors) dial(ctx context.Context, network, address string) (net.Conn, error) {
	raw, err := new(net.Dialer).DialContext(ctx, network, address)
	if err != nil {
		return nil, err
	}
	return &cutConn{Conn: raw, s: s, out: counter{at: s.sent}, in: counter{at: s.received}}, nil
}

// counter finds the middle of a record in a stream.
type counter struct {
	at, seen int
	head     []byte // of the record
	left     int    // bytes of its body
}

// allow is how many bytes of p come before the cut; all if it is not in there.
func (c *counter) allow(p []byte) (n int, cut bool) {
	for n < len(p) {
		if len(c.head) < 5 {
			c.head, n = append(c.head, p[n]), n+1
			if len(c.head) < 5 {
				continue
			}
			c.left = int(c.head[3])<<8 | int(c.head[4])
			if c.seen == c.at {
				return min(len(p), n+c.left/2), true
			}
		}
		skip := min(c.left, len(p)-n)
		n, c.left = n+skip, c.left-skip
		if c.left == 0 {
			c.head, c.seen = c.head[:0], c.seen+1
		}
	}
	return n, false
}

type cutConn struct {
	net.Conn
	s       *scissors
	out, in counter
}

var errCut = errors.New("cut")

func (c *cutConn) note(way, seen int, cut bool) {
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	c.s.cut = c.s.cut || cut
	c.s.records[way] = max(c.s.records[way], seen)
}

func (c *cutConn) Write(p []byte) (int, error) {
	n, cut := c.out.allow(p)
	c.note(0, c.out.seen, cut)
	written, err := c.Conn.Write(p[:n])
	if cut {
		_ = c.Conn.Close()
		err = errCut
	}
	return written, err
}

func (c *cutConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	n, cut := c.in.allow(p[:n])
	c.note(1, c.in.seen, cut)
	if cut {
		_ = c.Conn.Close()
		err = errCut
	}
	return n, err
}

// cutEverywhere does try over links that are cut in every stride-th record, both ways. Then
// check gets what try returned.
func cutEverywhere(t *testing.T, cfg Config, stride int, try func(p *Peers) error, check func(err error)) {
	t.Helper()
	cuts := 0
	for _, sending := range []bool{true, false} {
		for n := 0; ; n += stride {
			s := &scissors{sent: -1, received: n}
			if sending {
				s.sent, s.received = n, -1
			}
			cfg.Dial = s.dial
			err := try(New(cfg))
			s.mu.Lock()
			cut, records := s.cut, s.records
			s.mu.Unlock()
			if err != nil && !fault.Is(err, fault.Unavailable) {
				t.Errorf("sending %t, record %d: %v", sending, n, err)
			}
			if err != nil && !cut {
				t.Fatalf("sending %t, record %d of %v: nothing was cut: %v", sending, n, records, err)
			}
			check(err)
			if !cut {
				break
			}
			cuts++
		}
	}
	if cuts < 8 {
		t.Errorf("only %d cuts", cuts)
	}
}

// eventually repeats what is refused while the store has not noticed that a link is lost.
func eventually(t *testing.T, f func() error) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); ; {
		err := f()
		if err == nil {
			return
		}
		if !fault.Is(err, fault.Unavailable) || time.Now().After(deadline) {
			t.Fatal(err)
		}
		time.Sleep(time.Millisecond)
	}
}

func TestCutUpload(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	store := t.TempDir()
	cfg := s.config(s.serve(PurposeBackup, Handler(store)))
	m := backuptest.Manifest(uuid.NewString(), 2)
	good := open(t, cfg)
	if err := backUp(t.Context(), good, m); err != nil {
		t.Fatal(err)
	}
	name := filepath.Join(store, m.Snapshot.Server, m.ID+".rbk")
	want, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	if err := good.Delete(t.Context(), ref(m)); err != nil {
		t.Fatal(err)
	}
	resumed := 0
	cutEverywhere(t, cfg, 23, func(p *Peers) error {
		target, err := p.Open(t.Context(), "beta")
		if err != nil {
			return err
		}
		return backUp(t.Context(), target, m)
	}, func(error) {
		eventually(t, func() error { // the store goes on where it was left
			up, err := good.Append(t.Context(), ref(m), backup.MostBytes(m.Snapshot.Size))
			if fault.Is(err, fault.Exists) {
				return nil
			}
			if err != nil {
				return err
			}
			if up.State().Next > 0 {
				resumed++
			}
			return up.Close()
		})
		if err := backUp(t.Context(), good, m); err != nil {
			t.Fatal(err)
		}
		if got, err := os.ReadFile(name); err != nil || !bytes.Equal(got, want) {
			t.Errorf("after a cut the file has %d bytes and is not that of one go of %d: %v", len(got), len(want), err)
		}
		if err := good.Delete(t.Context(), ref(m)); err != nil {
			t.Fatal(err)
		}
	})
	if resumed == 0 {
		t.Error("no upload went on from where it was")
	}
}

// A reader returns what came before the cut, then an error that is no end.
func TestCutDownload(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	cfg := s.config(s.serve(PurposeBackup, Handler(t.TempDir())))
	m := backuptest.Manifest(uuid.NewString(), 2)
	good := open(t, cfg)
	if err := backUp(t.Context(), good, m); err != nil {
		t.Fatal(err)
	}
	want, err := download(t.Context(), good, ref(m), 0)
	if err != nil {
		t.Fatal(err)
	}
	var got []byte
	cutEverywhere(t, cfg, 23, func(p *Peers) error {
		target, err := p.Open(t.Context(), "beta")
		if err == nil {
			got, err = download(t.Context(), target, ref(m), 0)
		}
		return err
	}, func(err error) {
		if !bytes.HasPrefix(want, got) || err == nil && len(got) != len(want) {
			t.Fatalf("%d bytes were read, which are not the file's first ones: %v", len(got), err)
		}
		rest, err := download(t.Context(), good, ref(m), int64(len(got)))
		if err != nil || !bytes.Equal(rest, want[len(got):]) {
			t.Fatalf("from %d on: %d bytes, %v", len(got), len(rest), err)
		}
	})
}

func TestCutCalls(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	store := t.TempDir()
	cfg := s.config(s.serve(PurposeBackup, Handler(store)))
	good, id := open(t, cfg), uuid.NewString()
	f := backup.Ref{Server: id, Backup: uuid.NewString()}
	for name, do := range map[string]func(target backup.Target) error{
		"list":   func(target backup.Target) error { return second(target.List(t.Context(), "")) },
		"delete": func(target backup.Target) error { return target.Delete(t.Context(), f) },
		"load": func(target backup.Target) error {
			_, err := target.Load(t.Context(), id)
			if fault.Is(err, fault.NotFound) {
				return nil
			}
			return err
		},
	} {
		t.Log(name)
		cutEverywhere(t, cfg, 1, func(p *Peers) error {
			target, err := p.Open(t.Context(), "beta")
			if err != nil {
				return err
			}
			return do(target)
		}, func(error) {})
	}
	// A note is the old or the new one.
	generation := uint64(0)
	cutEverywhere(t, cfg, 1, func(p *Peers) error {
		target, err := p.Open(t.Context(), "beta")
		if err != nil {
			return err
		}
		generation++
		return backup.PutClaim(t.Context(), target, backup.Claim{Server: id, Host: "alpha", Generation: generation})
	}, func(err error) {
		is, lerr := backup.GetClaim(t.Context(), good, id)
		if err == nil && (lerr != nil || is.Generation != generation) {
			t.Errorf("a claim that was taken is %+v, %v", is, lerr)
		}
		again := backup.Claim{Server: id, Host: "alpha", Generation: generation}
		eventually(t, func() error { return ifAborted(backup.PutClaim(t.Context(), good, again)) })
	})
}

// ifAborted: the call before may still be at work at the store.
func ifAborted(err error) error {
	if fault.Is(err, fault.Aborted) {
		return fault.Wrap(fault.Unavailable, err)
	}
	return err
}

func TestCutTerm(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	cfg := s.config(s.serve(PurposeTerm, TermHandler(func(string) uint64 { return 7 })))
	var got uint64
	cutEverywhere(t, cfg, 1, func(p *Peers) (err error) {
		got, err = p.Term(t.Context(), "beta", uuid.NewString())
		return err
	}, func(err error) {
		if (got == 7) != (err == nil) {
			t.Errorf("term %d, %v", got, err)
		}
	})
}

// wire joins both sides in memory. Once it is cut, what is written is lost and nothing is
// said about it.
type wire struct {
	accepted chan net.Conn
	closed   chan struct{}
	once     sync.Once
	mu       sync.Mutex
	gone     bool
}

func (w *wire) dial(context.Context, string, string) (net.Conn, error) {
	a, b := net.Pipe()
	w.accepted <- wireEnd{b, w}
	return wireEnd{a, w}, nil
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

func (w *wire) set(gone bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.gone = gone
}

type wireEnd struct {
	net.Conn
	w *wire
}

func (e wireEnd) lost() bool {
	e.w.mu.Lock()
	defer e.w.mu.Unlock()
	return e.w.gone
}

func (e wireEnd) Write(p []byte) (int, error) {
	if e.lost() {
		return len(p), nil
	}
	return e.Conn.Write(p)
}

func (e wireEnd) Close() error {
	if e.lost() { // the other side must not hear of it; this one's calls must end
		return e.Conn.SetDeadline(time.Unix(1, 0))
	}
	return e.Conn.Close()
}

// However calls end, nothing of them is left on either side: a goroutine that stays would
// keep the bubble from ending. A link that is lost without a word gives its file free.
func TestNothingIsLeft(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite(t)
		w := &wire{accepted: make(chan net.Conn), closed: make(chan struct{})}
		server := endpoint.NewServer(endpoint.ServerConfig{Credentials: s.credentials("beta")})
		server.Handle(PurposeBackup, Handler(t.TempDir()))
		server.Handle(PurposeTerm, TermHandler(func(string) uint64 { return 7 }))
		go server.Serve(w)
		cfg := s.config("198.18.0.12:7444")
		cfg.Dial = w.dial
		target, m := open(t, cfg), backuptest.Manifest(uuid.NewString(), 2)
		if err := backUp(t.Context(), target, m); err != nil {
			t.Fatal(err)
		}
		each(t, target)
		if _, err := New(cfg).Term(t.Context(), "beta", uuid.NewString()); err != nil {
			t.Error(err)
		}
		// Given up in the middle: by the caller, by its context, by the wire.
		r, err := target.Open(t.Context(), ref(m), 0)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(r, make([]byte, 100)); err != nil {
			t.Error(err)
		}
		r.Close()
		ctx, cancel := context.WithCancel(t.Context())
		f := backup.Ref{Server: m.Snapshot.Server, Backup: uuid.NewString()}
		begin := func() (backup.Upload, io.ReadCloser) {
			t.Helper()
			up, uerr := target.Append(ctx, f, 1<<20)
			r, rerr := target.Open(ctx, ref(m), 0)
			if err := errors.Join(uerr, rerr); err != nil {
				t.Fatal(err)
			}
			return up, r
		}
		_, _ = begin()
		cancel()
		synctest.Wait()
		ctx = t.Context()
		up, r := begin()
		time.Sleep(time.Hour) // an idle link is kept
		wantKind(t, "a second writer", second(target.Append(ctx, f, 1<<20)), fault.Unavailable)
		w.set(true)
		for err = nil; err == nil; {
			time.Sleep(time.Second)
			_, err = up.Write([]byte("x"))
		}
		wantKind(t, "write to a link that was cut", err, fault.Unavailable)
		_, err = io.Copy(io.Discard, r)
		wantKind(t, "read of a link that was cut", err, fault.Unavailable)
		wantKind(t, "close of a link that was cut", up.Close(), fault.Unavailable)
		r.Close()
		time.Sleep(time.Minute)
		w.set(false)
		up, err = target.Append(ctx, f, 1<<20)
		if err != nil {
			t.Fatalf("the file is still held: %v", err)
		}
		// The agent stops in the middle.
		if err := server.Shutdown(context.Background()); err != nil {
			t.Error(err)
		}
		wantKind(t, "commit to an agent that stops", up.Commit(), fault.Unavailable)
	})
}
