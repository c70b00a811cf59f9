package endpoint

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"

	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
	"github.com/reflejo/terraform-provider-reflejo/agent/pki"
)

// Config says whom to call, and why.
type Config struct {
	Host        string // the name that the other agent must prove
	Address     string // and port
	Credentials func() pki.Credentials
	Purpose     string
	Right       []byte                                                               // a secret that the handler asks for; may be nil
	Dial        func(ctx context.Context, network, address string) (net.Conn, error) // nil means net.Dialer's
}

// Dial calls another agent. ctx and ten seconds bound the call, not the connection. A host
// that can't be reached is fault.Unavailable, one that is not who it should be fault.Denied; a
// refusal has the kind that it had there.
func Dial(ctx context.Context, cfg Config) (*Conn, error) {
	first, err := hello{Lowest: lowestVersion, Highest: highestVersion, Purpose: cfg.Purpose, Right: cfg.Right}.encode()
	if err != nil {
		return nil, fault.New(fault.Invalid, "call host %s: %w", cfg.Host, err)
	}
	if cfg.Host == "" {
		return nil, fault.New(fault.Invalid, "call %s: no name of a host that it must be", cfg.Address)
	}
	dial := cfg.Dial
	if dial == nil {
		dial = (&net.Dialer{KeepAliveConfig: net.KeepAliveConfig{Enable: false}}).DialContext // pings do that
	}
	ctx, cancel := context.WithTimeout(ctx, handshakeTime)
	defer cancel()
	raw, err := dial(ctx, "tcp", cfg.Address)
	if err != nil {
		return nil, fault.New(fault.Unavailable, "call host %s: %w", cfg.Host, err)
	}
	l := newLink(raw)
	stop := context.AfterFunc(ctx, func() { _ = raw.Close() })
	c, err := greet(ctx, l, cfg, first)
	if !stop() && err == nil { // its time was over in the very last moment
		err = context.Cause(ctx)
	}
	if err != nil {
		_ = raw.Close()
		if ctx.Err() != nil && !isRemote(err) {
			err = fault.New(fault.Unavailable, "%w (%w)", err, context.Cause(ctx))
		}
		return nil, fmt.Errorf("call host %s at %s: %w", cfg.Host, cfg.Address, err)
	}
	return c, nil
}

func isRemote(err error) bool {
	var remote *RemoteError
	return errors.As(err, &remote)
}

// greet shakes hands and says hello.
func greet(ctx context.Context, l *link, cfg Config, first []byte) (*Conn, error) {
	t := tls.Client(l, pki.ClientTLS(cfg.Credentials, cfg.Host, cfg.Address, Protocol))
	if err := t.HandshakeContext(ctx); err != nil {
		var peer *pki.PeerError
		if errors.As(err, &peer) {
			return nil, fault.Wrap(fault.Denied, err)
		}
		return nil, explain(cfg.Host, err)
	}
	if t.ConnectionState().NegotiatedProtocol != Protocol {
		return nil, fault.New(fault.Invalid, "this is no endpoint of an agent")
	}
	if err := l.limitWrites(handshakeTime); err != nil {
		return nil, explain(cfg.Host, err)
	}
	if _, err := t.Write(append(appendHeader(nil, typeHello, len(first)), first...)); err != nil {
		return nil, explain(cfg.Host, err)
	}
	r := bufio.NewReaderSize(t, readBuffer)
	kind, payload, err := readFrame(r, nil, maxHello)
	switch {
	case err != nil:
		return nil, explainAlert(cfg.Host, err)
	case kind == typeError:
		return nil, decodeError(cfg.Host, payload)
	case kind != typeWelcome:
		return nil, fault.New(fault.Invalid, "the answer is a frame of type %d, want a welcome", kind)
	}
	version, err := decodeWelcome(payload)
	if err != nil {
		return nil, fault.Wrap(fault.Invalid, err)
	}
	l.limited.Store(false)
	return newConn(t, l, r, cfg.Host, hello{Purpose: cfg.Purpose, Right: cfg.Right}, version), nil
}

// explainAlert: with TLS 1.3 a server's refusal of our certificate arrives with the first read.
func explainAlert(host string, err error) error {
	var alert tls.AlertError
	if errors.As(err, &alert) {
		return fault.New(fault.Denied, "host %s does not accept this host's certificate: %w", host, err)
	}
	return explain(host, err)
}

const readBuffer = 64 << 10
