package endpoint

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"runtime/debug"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
	"github.com/reflejo/terraform-provider-reflejo/agent/pki"
)

// Handler does what a connection is for. ctx ends with the connection, and when the server
// shuts down. What it returns is told to the other side: nil as bye.
type Handler func(ctx context.Context, c *Conn) error

// ServerConfig is what a server is made of.
type ServerConfig struct {
	Credentials func() pki.Credentials // asked at each connection, so that renewed ones are used
	Log         hclog.Logger
}

// Bounds of a server.
const (
	maxConns      = 256 // agents with an answered hello
	maxPerHost    = 64  // of these from one host
	maxHandshakes = 64  // connections that have not proved anything yet
)

// Server answers other agents.
type Server struct {
	cfg  ServerConfig
	ctx  context.Context
	stop context.CancelCauseFunc

	mu         sync.Mutex
	handlers   map[string]Handler
	listeners  map[net.Listener]struct{}
	perHost    map[string]int
	conns      int
	handshakes int
	wg         sync.WaitGroup
}

// NewServer makes a server that answers nothing yet; see [Server.Handle] and [Server.Serve].
func NewServer(cfg ServerConfig) *Server {
	if cfg.Log == nil {
		cfg.Log = hclog.NewNullLogger()
	}
	s := &Server{cfg: cfg, handlers: map[string]Handler{}, listeners: map[net.Listener]struct{}{}, perHost: map[string]int{}}
	s.ctx, s.stop = context.WithCancelCause(context.Background())
	return s
}

// Handle registers who handles connections of a purpose. It may be called while serving.
func (s *Server) Handle(purpose string, h Handler) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.handlers[purpose] = h
}

// errStopping is what handlers and callers are told at Shutdown.
var errStopping = fault.New(fault.Unavailable, "the agent is stopping")

// Serve accepts connections until Shutdown, then it returns nil; otherwise the listener's error.
func (s *Server) Serve(l net.Listener) error {
	s.mu.Lock()
	if s.ctx.Err() != nil {
		s.mu.Unlock()
		return errors.Join(l.Close())
	}
	s.listeners[l] = struct{}{}
	s.mu.Unlock()
	for delay := 5 * time.Millisecond; ; {
		c, err := l.Accept()
		if s.ctx.Err() != nil {
			if err == nil {
				_ = c.Close()
			}
			return nil
		}
		var temporary net.Error
		switch {
		case errors.As(err, &temporary) && !errors.Is(err, net.ErrClosed): // too many open files
			s.cfg.Log.Warn("accept a connection", "error", err)
			select {
			case <-time.After(delay):
			case <-s.ctx.Done():
			}
			delay = min(2*delay, time.Second)
			continue
		case err != nil:
			return fmt.Errorf("listen for other agents: %w", err)
		}
		delay = 5 * time.Millisecond
		if !s.begin() {
			_ = c.Close() // those who prove nothing wait for each other, not for others
			continue
		}
		go s.serve(c)
	}
}

// begin counts a connection that has proved nothing yet; false if there are too many.
func (s *Server) begin() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.handshakes >= maxHandshakes || s.ctx.Err() != nil {
		return false
	}
	s.handshakes++
	s.wg.Add(1)
	return true
}

// Shutdown stops listening, ends the connections, telling the other sides why, and waits for
// the handlers to return, or ctx.
func (s *Server) Shutdown(ctx context.Context) error {
	s.stop(errStopping)
	s.mu.Lock()
	for l := range s.listeners {
		_ = l.Close()
	}
	s.mu.Unlock()
	done := make(chan struct{})
	go func() {
		s.wg.Wait()
		close(done)
	}()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return fault.Wrap(fault.Unavailable, fmt.Errorf("wait for connections of other agents to end: %w", ctx.Err()))
	}
}

// serve is one connection from its first byte to its last.
func (s *Server) serve(raw net.Conn) {
	defer s.wg.Done()
	defer raw.Close()
	c, h, err := s.admit(raw)
	if err != nil {
		s.cfg.Log.Warn("refuse a connection", "from", raw.RemoteAddr().String(), "error", err)
		return
	}
	defer s.leave(c.peer)
	ctx, cancel := context.WithCancelCause(s.ctx)
	go func() {
		<-c.ended
		cancel(c.lost())
	}()
	err = s.run(ctx, h, c)
	if s.ctx.Err() != nil {
		err = errStopping
	}
	if err != nil && c.lost() == nil {
		s.cfg.Log.Info("end a connection", "host", c.peer, "purpose", c.purpose, "error", err)
	}
	c.end(err)
	<-c.ended
}

// run calls the handler; one that panics ends its connection, not the agent.
func (s *Server) run(ctx context.Context, h Handler, c *Conn) (err error) {
	defer func() {
		if p := recover(); p != nil {
			s.cfg.Log.Error("a handler panicked", "purpose", c.purpose, "panic", p, "stack", string(debug.Stack()))
			err = fault.New(fault.Internal, "the handler of %s failed", c.purpose)
		}
	}()
	// A handler that waits for a frame is woken by Shutdown.
	defer context.AfterFunc(s.ctx, func() { c.halt(errStopping) })()
	return h(ctx, c)
}

// admit lets a connection in whose other side is an agent that asks for something we do.
func (s *Server) admit(raw net.Conn) (*Conn, Handler, error) {
	defer func() {
		s.mu.Lock()
		s.handshakes--
		s.mu.Unlock()
	}()
	ctx, cancel := context.WithTimeout(s.ctx, handshakeTime)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { _ = raw.Close() })
	defer stop()
	l := newLink(raw)
	t := tls.Server(l, pki.ServerTLS(s.cfg.Credentials, Protocol))
	if err := t.HandshakeContext(ctx); err != nil {
		return nil, nil, err
	}
	if err := l.limitWrites(handshakeTime); err != nil {
		return nil, nil, err
	}
	r := bufio.NewReaderSize(t, readBuffer)
	kind, payload, err := readFrame(r, nil, maxHello)
	if err != nil {
		return nil, nil, err
	}
	peer, hi, h, version, err := s.judge(t, kind, payload)
	if err != nil {
		text := encodeError(err)
		_, _ = t.Write(append(appendHeader(nil, typeError, len(text)), text...))
		_ = t.CloseWrite()
		_, _ = readToEnd(r) // see Conn.end
		return nil, nil, err
	}
	welcome := encodeWelcome(version)
	if _, err := t.Write(append(appendHeader(nil, typeWelcome, len(welcome)), welcome...)); err != nil {
		s.leave(peer)
		return nil, nil, err
	}
	if !stop() {
		s.leave(peer)
		return nil, nil, context.Cause(ctx)
	}
	l.limited.Store(false)
	return newConn(t, l, r, peer, hi, version), h, nil
}

// readToEnd drops what a refused caller still sends, up to a bound.
func readToEnd(r *bufio.Reader) (int, error) {
	n := 0
	for n < maxHello {
		m, err := r.Discard(1)
		if n += m; err != nil {
			return n, err
		}
	}
	return n, nil
}

// judge decides about a hello, and counts the connection if it may go on.
func (s *Server) judge(t *tls.Conn, kind byte, payload []byte) (peer string, hi hello, h Handler, version uint16, err error) {
	state := t.ConnectionState()
	id, err := pki.IdentityOf(state.PeerCertificates[0])
	switch {
	case err != nil:
		return peer, hi, h, version, fault.Wrap(fault.Denied, err)
	case id.Role != pki.RoleAgent:
		return peer, hi, h, version, fault.New(fault.Denied, "%s: only agents talk to each other here", id)
	case state.NegotiatedProtocol != Protocol:
		return peer, hi, h, version, fault.New(fault.Invalid, "host %s asks for another protocol than %s", id.Name, Protocol)
	case kind != typeHello:
		return peer, hi, h, version, fault.New(fault.Invalid, "host %s begins with a frame of type %d, want a hello", id.Name, kind)
	}
	if hi, err = decodeHello(payload); err != nil {
		return peer, hi, h, version, fault.New(fault.Invalid, "read the hello of host %s: %w", id.Name, err)
	}
	if version, err = negotiate(hi.Lowest, hi.Highest); err != nil {
		return peer, hi, h, version, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	h = s.handlers[hi.Purpose]
	switch {
	case h == nil:
		return peer, hi, h, version, fault.New(fault.Precondition, "purpose %q: this agent does not know it; bring it up to date", hi.Purpose)
	case s.conns >= maxConns || s.perHost[id.Name] >= maxPerHost:
		return peer, hi, h, version, fault.New(fault.Unavailable, "%d connections of agents, %d of host %s: at most %d and %d are answered", s.conns, s.perHost[id.Name], id.Name, maxConns, maxPerHost)
	}
	s.conns++
	s.perHost[id.Name]++
	return id.Name, hi, h, version, nil
}

func (s *Server) leave(peer string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.conns--
	if s.perHost[peer]--; s.perHost[peer] == 0 {
		delete(s.perHost, peer)
	}
}
