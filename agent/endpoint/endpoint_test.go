package endpoint

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
	"github.com/reflejo/terraform-provider-reflejo/agent/pki"
)

// site is an authority and who it knows.
type site struct {
	t  *testing.T
	ca *pki.CA
}

func newSite(t *testing.T) site {
	t.Helper()
	ca, err := pki.NewCA("test", 0)
	if err != nil {
		t.Fatal(err)
	}
	return site{t, ca}
}

func (s site) credentials(role pki.Role, name string) func() pki.Credentials {
	s.t.Helper()
	pair, err := s.ca.Issue(pki.Identity{Role: role, Name: name}, pki.Options{})
	if err != nil {
		s.t.Fatal(err)
	}
	c, err := pki.NewCredentials(s.ca.Pair().Cert, pair)
	if err != nil {
		s.t.Fatal(err)
	}
	return func() pki.Credentials { return c }
}

// serve starts beta's endpoint on the loopback.
func (s site) serve(handlers map[string]Handler) (*Server, string) {
	s.t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		s.t.Fatal(err)
	}
	server := NewServer(ServerConfig{Credentials: s.credentials(pki.RoleAgent, "beta")})
	for purpose, h := range handlers {
		server.Handle(purpose, h)
	}
	served := make(chan error, 1)
	go func() { served <- server.Serve(l) }()
	s.t.Cleanup(func() {
		if err := errors.Join(server.Shutdown(context.Background()), <-served); err != nil {
			s.t.Error(err)
		}
	})
	return server, l.Addr().String()
}

func (s site) config(address, purpose string) Config {
	return Config{Host: "beta", Address: address, Credentials: s.credentials(pki.RoleAgent, "alpha"), Purpose: purpose}
}

// echo sends back what it gets, and fails where it is told to.
func echo(_ context.Context, c *Conn) error {
	for {
		f, err := c.Receive()
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return err
		case f.Type == 20:
			return fault.Field("disk", "no: %s", f.Payload)
		case f.Type == 21:
			panic("told to")
		}
		if err := c.Send(f.Type, f.Payload); err != nil {
			return err
		}
	}
}

func TestFramesOverLoopback(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	seen := make(chan string, 10)
	_, address := s.serve(map[string]Handler{"echo/1": func(ctx context.Context, c *Conn) error {
		seen <- fmt.Sprint(c.Peer(), c.Purpose(), string(c.Right()), c.Version())
		return echo(ctx, c)
	}})
	cfg := s.config(address, "echo/1")
	cfg.Right = []byte("right")
	c, err := Dial(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if got := <-seen; got != "alphaecho/1right1" {
		t.Errorf("the handler saw %s", got)
	}
	for _, n := range []int{0, 1, 16 << 10, MaxPayload} {
		sent := bytes.Repeat([]byte{byte(n + 1)}, n)
		if err := c.Send(17, sent[:n/2], sent[n/2:]); err != nil {
			t.Fatal(err)
		}
		if f, err := c.Receive(); err != nil || f.Type != 17 || !bytes.Equal(f.Payload, sent) {
			t.Fatalf("%d bytes came back as %d of type %d: %v", n, len(f.Payload), f.Type, err)
		}
	}
	if err := c.Send(17, make([]byte, MaxPayload+1)); !fault.Is(err, fault.Internal) {
		t.Errorf("too long a frame: %v", err)
	}
	if err := c.Send(typePing); !fault.Is(err, fault.Internal) {
		t.Errorf("a frame of a type that is not ours: %v", err)
	}
	if err := c.Send(20, []byte("full")); err != nil {
		t.Fatal(err)
	}
	_, err = c.Receive()
	if !fault.Is(err, fault.Invalid) || fault.FieldOf(err) != "disk" || !isRemote(err) {
		t.Errorf("the handler's error came as %v", err)
	}
	if again := c.Send(17); again == nil || again.Error() != err.Error() {
		t.Errorf("after the end: %v", again)
	}
}

func TestEnds(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	ends := make(chan error, 1)
	_, address := s.serve(map[string]Handler{
		"echo/1": echo,
		"bye/1":  func(context.Context, *Conn) error { return nil },
		"end/1": func(ctx context.Context, c *Conn) error {
			_, err := c.Receive()
			<-ctx.Done()
			ends <- err
			return err
		}})
	dial := func(purpose string) *Conn {
		t.Helper()
		c, err := Dial(t.Context(), s.config(address, purpose))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return c
	}
	if _, err := dial("bye/1").Receive(); err != io.EOF {
		t.Errorf("bye came as %v", err)
	}
	dial("end/1").Close()
	if err := <-ends; err != io.EOF {
		t.Errorf("bye of the caller came as %v", err)
	}
	dial("end/1").link.Close()
	if err := <-ends; !fault.Is(err, fault.Unavailable) {
		t.Errorf("an end without bye came as %v", err)
	}
	c := dial("echo/1")
	if err := c.Send(21); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Receive(); !fault.Is(err, fault.Internal) || !isRemote(err) {
		t.Errorf("a panic came as %v", err)
	}
	// A side that sends without end learns why it is refused.
	c = dial("echo/1")
	err := c.Send(20, []byte("enough"))
	for err == nil {
		err = c.Send(17, make([]byte, 1<<20))
	}
	if !fault.Is(err, fault.Invalid) {
		t.Errorf("a sender was told %v", err)
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	c = dial("echo/1")
	c.CloseWith(ctx)
	cancel(fault.New(fault.Aborted, "broken off"))
	if _, err := c.Receive(); !fault.Is(err, fault.Aborted) {
		t.Errorf("a cancelled connection ended with %v", err)
	}
}

func TestWhoIsRefused(t *testing.T) {
	t.Parallel()
	s, other := newSite(t), newSite(t)
	_, address := s.serve(map[string]Handler{"echo/1": echo})
	for name, c := range map[string]struct {
		change func(*Config)
		kind   fault.Kind
	}{
		"an operator":              {func(c *Config) { c.Credentials = s.credentials(pki.RoleOperator, "ci") }, fault.Denied},
		"a monitor":                {func(c *Config) { c.Credentials = s.credentials(pki.RoleMonitor, "m") }, fault.Denied},
		"an agent of another site": {func(c *Config) { c.Credentials = other.credentials(pki.RoleAgent, "alpha") }, fault.Denied},
		"the wrong host":           {func(c *Config) { c.Host = "gamma" }, fault.Denied},
		"no host":                  {func(c *Config) { c.Host = "" }, fault.Invalid},
		"an unknown purpose":       {func(c *Config) { c.Purpose = "mirror/1" }, fault.Precondition},
		"no purpose":               {func(c *Config) { c.Purpose = "" }, fault.Invalid},
		"nobody there":             {func(c *Config) { c.Address = "127.0.0.1:1" }, fault.Unavailable},
	} {
		cfg := s.config(address, "echo/1")
		c.change(&cfg)
		conn, err := Dial(t.Context(), cfg)
		if !fault.Is(err, c.kind) {
			t.Errorf("%s: want %s, got %v", name, c.kind, err)
		}
		if err == nil {
			conn.Close()
		}
	}
}

// Whatever bytes come, the server answers with an error or nothing, and goes on.
func TestNonsense(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	_, address := s.serve(map[string]Handler{"echo/1": echo})
	good, _ := hello{1, 1, "echo/1", nil}.encode()
	frame := func(kind byte, payload []byte) []byte {
		return append(appendHeader(nil, kind, len(payload)), payload...)
	}
	alpha := s.credentials(pki.RoleAgent, "alpha")
	for name, b := range map[string][]byte{
		"no hello":             frame(17, nil),
		"a ping first":         frame(typePing, nil),
		"a wrong magic":        frame(typeHello, bytes.Replace(good, []byte("reflejo"), []byte("REFLEJO"), 1)),
		"an empty hello":       frame(typeHello, nil),
		"a huge hello":         appendHeader(nil, typeHello, MaxPayload),
		"an endless frame":     {0xff, 0xff, 0xff, 0xff, typeHello},
		"HTTP":                 []byte("GET / HTTP/1.1\r\n\r\n"),
		"a later version only": frame(typeHello, []byte(magic+"\x00\x02\x00\x03\x06echo/1\x00\x00")),
		"a hello again":        slices.Concat(frame(typeHello, good), frame(typeHello, good)),
		"too long a frame":     slices.Concat(frame(typeHello, good), appendHeader(nil, 17, MaxPayload+1)),
	} {
		c, err := tls.Dial("tcp", address, pki.ClientTLS(alpha, "beta", address, Protocol))
		if err != nil {
			t.Fatal(err)
		}
		_, _ = c.Write(b)
		if err := c.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		answer, _ := io.ReadAll(c)
		if bytes.Contains(answer, []byte("echo/1")) {
			t.Errorf("%s: was answered %q", name, answer)
		}
		c.Close()
	}
	plain, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	_, _ = plain.Write([]byte("SSH-2.0-nonsense\r\n"))
	plain.Close()
	c, err := Dial(t.Context(), s.config(address, "echo/1"))
	if err != nil {
		t.Fatalf("after nonsense: %v", err)
	}
	c.Close()
}

func TestBoundOfConnections(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	_, address := s.serve(map[string]Handler{"echo/1": echo})
	cfg := s.config(address, "echo/1")
	var conns []*Conn
	for range maxPerHost {
		c, err := Dial(t.Context(), cfg)
		if err != nil {
			t.Fatal(err)
		}
		conns = append(conns, c)
	}
	if _, err := Dial(t.Context(), cfg); !fault.Is(err, fault.Unavailable) {
		t.Errorf("one more than is allowed: %v", err)
	}
	gamma := cfg
	gamma.Credentials = s.credentials(pki.RoleAgent, "gamma")
	c, err := Dial(t.Context(), gamma)
	if err != nil {
		t.Errorf("another host is kept out: %v", err)
	} else {
		c.Close()
	}
	for _, c := range conns {
		c.Close()
	}
	for deadline := time.Now().Add(20 * time.Second); ; {
		c, err := Dial(t.Context(), cfg)
		if err == nil {
			c.Close()
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("ended connections are still counted")
		}
		time.Sleep(time.Millisecond)
	}
}

func TestShutdownTellsWhy(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	server, address := s.serve(map[string]Handler{"echo/1": echo})
	c, err := Dial(t.Context(), s.config(address, "echo/1"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := server.Shutdown(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Receive(); !fault.Is(err, fault.Unavailable) || !isRemote(err) {
		t.Errorf("got %v", err)
	}
}

// Renewed certificates are used by the next connection, while the old one goes on.
func TestCredentialsAreReadForEachConnection(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	var mu sync.Mutex
	current := s.credentials(pki.RoleAgent, "beta")
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := NewServer(ServerConfig{Credentials: func() pki.Credentials {
		mu.Lock()
		defer mu.Unlock()
		return current()
	}})
	server.Handle("echo/1", echo)
	go server.Serve(l)
	defer server.Shutdown(context.Background())
	serial := func() string {
		c, err := Dial(t.Context(), s.config(l.Addr().String(), "echo/1"))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		return c.tls.ConnectionState().PeerCertificates[0].SerialNumber.String()
	}
	before := serial()
	renewed := s.credentials(pki.RoleAgent, "beta")
	mu.Lock()
	current = renewed
	mu.Unlock()
	if after := serial(); after == before {
		t.Error("the old certificate is still used")
	}
}
