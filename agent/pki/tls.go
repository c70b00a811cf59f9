package pki

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"time"
)

// ServerTLS is the configuration of a listener: TLS 1.3, a client certificate of our
// authority is required. Each handshake uses what get returns at that moment. Sessions
// are not resumed, so a client's certificate is verified at each connection.
func ServerTLS(get func() Credentials, protocols ...string) *tls.Config {
	base := &tls.Config{
		MinVersion:             tls.VersionTLS13,
		NextProtos:             protocols,
		ClientAuth:             tls.RequireAndVerifyClientCert,
		SessionTicketsDisabled: true,
	}
	base.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) {
		c := get()
		config := base.Clone()
		config.GetConfigForClient = nil
		config.Certificates = []tls.Certificate{c.Certificate}
		config.ClientCAs = c.CAs
		return config, nil
	}
	return base
}

// ClientTLS is the configuration of a caller: TLS 1.3, own certificate, and a server that
// proves to be an agent of our authority. With a host name it must be that host's agent,
// whatever its address; without one its certificate must name the address that was dialled.
func ClientTLS(get func() Credentials, host, address string, protocols ...string) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		NextProtos: protocols,
		ServerName: serverName(address),
		// The standard check wants an address in the certificate; ours is below.
		InsecureSkipVerify: true,
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			c := get()
			if leaf := c.Certificate.Leaf; leaf != nil && time.Now().After(leaf.NotAfter) { // say it here: the other end's alert may get lost
				return nil, &PeerError{fmt.Errorf("our own certificate (%s) ended at %s: renew it with `reflejo pki renew`", leaf.Subject.CommonName, leaf.NotAfter.UTC().Format(time.RFC3339))}
			}
			return &c.Certificate, nil
		},
		VerifyConnection: func(state tls.ConnectionState) error {
			return verifyAgent(state.PeerCertificates, get().CAs, host, address)
		},
	}
}

// PeerError tells that one of the two parties is not the one it should be.
type PeerError struct{ Err error }

func (e *PeerError) Error() string { return "verify certificates: " + e.Err.Error() }
func (e *PeerError) Unwrap() error { return e.Err }

func verifyAgent(chain []*x509.Certificate, roots *x509.CertPool, host, address string) error {
	if len(chain) == 0 {
		return &PeerError{errors.New("it sent no certificate")}
	}
	options := x509.VerifyOptions{Roots: roots, Intermediates: x509.NewCertPool(), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}
	for _, c := range chain[1:] {
		options.Intermediates.AddCert(c)
	}
	if host == "" {
		options.DNSName = serverName(address)
	}
	if _, err := chain[0].Verify(options); err != nil {
		return &PeerError{err}
	}
	id, err := IdentityOf(chain[0])
	if err != nil {
		return &PeerError{err}
	}
	if id.Role != RoleAgent || (host != "" && id.Name != host) {
		return &PeerError{fmt.Errorf("the other end is %s, want %s", id, Identity{Role: RoleAgent, Name: host})}
	}
	return nil
}

func serverName(address string) string {
	if host, _, err := net.SplitHostPort(address); err == nil {
		return host
	}
	return address
}
