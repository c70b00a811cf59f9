package peers

import (
	"context"
	"errors"
	"io"
	"maps"
	"net"
	"slices"
	"strings"

	"github.com/reflejo/terraform-provider-reflejo/agent/backup"
	"github.com/reflejo/terraform-provider-reflejo/agent/endpoint"
	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
	"github.com/reflejo/terraform-provider-reflejo/agent/pki"
)

// The purposes of connections.
const (
	PurposeBackup = "backup/1"
	PurposeTerm   = "term/1"
)

// Config says who the other agents are.
type Config struct {
	Credentials func() pki.Credentials
	Hosts       map[string]string                                                    // their endpoints' addresses, with port, by name
	Dial        func(ctx context.Context, network, address string) (net.Conn, error) // nil means net.Dialer's
}

// Peers are the agents of other hosts. Its methods may be called from any goroutine.
type Peers struct{ cfg Config }

var _ backup.Remote = (*Peers)(nil)

// New is the other agents as they are configured. Nothing is called yet.
func New(cfg Config) *Peers {
	cfg.Hosts = maps.Clone(cfg.Hosts)
	return &Peers{cfg}
}

// Hosts are the names of the other hosts, sorted.
func (p *Peers) Hosts() []string { return slices.Sorted(maps.Keys(p.cfg.Hosts)) }

// address is a host's endpoint; fault.NotFound for one that is not configured.
func (p *Peers) address(host string) (string, error) {
	if a, ok := p.cfg.Hosts[host]; ok {
		return a, nil
	}
	known := "no other host"
	if names := p.Hosts(); len(names) > 0 {
		known = "only " + strings.Join(names, ", ")
	}
	if len(host) > 63 {
		host = strings.ToValidUTF8(host[:63], "") + "…"
	}
	return "", fault.New(fault.NotFound, "find host %q: this host's agent knows %s; add a block host %q { endpoint = \"ADDRESS:%d\" } to its configuration", host, known, host, endpoint.Port)
}

// conn is a connection that ends with the context of the call that it is for.
type conn struct {
	*endpoint.Conn
	host string
	stop func() bool
}

// dial calls a host's agent. Its errors are endpoint.Dial's, and those of address.
func (p *Peers) dial(ctx context.Context, host, purpose string) (*conn, error) {
	address, err := p.address(host)
	if err != nil {
		return nil, err
	}
	c, err := endpoint.Dial(ctx, endpoint.Config{Host: host, Address: address, Credentials: p.cfg.Credentials, Purpose: purpose, Dial: p.cfg.Dial})
	if err != nil {
		return nil, err
	}
	return &conn{c, host, c.CloseWith(ctx)}, nil
}

func (c *conn) Close() error {
	c.stop()
	return c.Conn.Close()
}

// send sends a frame.
func (c *conn) send(kind byte, payload []byte) error { return c.early(c.Send(kind, payload)) }

// receive is the next frame.
func (c *conn) receive() (endpoint.Frame, error) {
	f, err := c.Receive()
	return f, c.early(err)
}

// early: the other side owes an answer until the call is done, so an end without a reason is
// a loss as well, and no end of a file.
func (c *conn) early(err error) error {
	if errors.Is(err, io.EOF) {
		return fault.New(fault.Unavailable, "link to host %s: it was ended before the answer: %w", c.host, io.ErrUnexpectedEOF)
	}
	return err
}

// nonsense is what the other side should not have sent. To try again would not help: one of
// the two programs is wrong.
func (c *conn) nonsense(format string, args ...any) error {
	return fault.New(fault.Internal, "read from host %s: "+format, append([]any{c.host}, args...)...)
}
