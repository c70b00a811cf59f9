package api

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"strconv"
	"strings"
	"time"

	"connectrpc.com/connect"

	"github.com/reflejo/terraform-provider-reflejo/agent/api/reflejo/v1/reflejov1connect"
	"github.com/reflejo/terraform-provider-reflejo/agent/pki"
)

// DefaultPort is where agents listen, DefaultEndpointPort where they do for each other.
const (
	DefaultPort         = "7443"
	DefaultEndpointPort = "7444"
)

// Bounds of single messages on the wire, bytes. The server holds callers to them too.
const (
	MaxMessage   = 4 << 20  // any answer; the list of a thousand servers is about 1 MiB
	MaxRequest   = 1 << 20  // any request but an upload
	MaxChunk     = 1 << 20  // data of one UploadImage message
	MaxExecChunk = 64 << 10 // stdin of one Exec message, data of one Console message
)

// How long a client waits before it takes a host for silent. A request under way is cut
// off after ping + answer, so a host that loses power is noticed without a deadline.
const (
	dialTimeout = 5 * time.Second
	pingAfter   = 10 * time.Second
	pingAnswer  = 10 * time.Second
)

// Credentials returns what to use for the next connection, so that renewed
// certificates are taken up by programs that run for long.
type Credentials func() pki.Credentials

// CredentialFiles reads credentials from PEM files, and again whenever the files change.
func CredentialFiles(ca, cert, key string) (Credentials, error) {
	source, err := pki.NewSource(pki.Files{CA: ca, Cert: cert, Key: key})
	if err != nil {
		return nil, err
	}
	return source.Get, nil
}

// CredentialPEM takes credentials from PEM texts.
func CredentialPEM(ca, cert, key []byte) (Credentials, error) {
	c, err := pki.NewCredentials(ca, pki.Pair{Cert: cert, Key: key})
	if err != nil {
		return nil, err
	}
	return func() pki.Credentials { return c }, nil
}

// Config says whom to dial and as whom.
type Config struct {
	// Host is the agent's name. Its certificate must be for reflejo://agent/<Host>, whatever
	// the address. If empty, the certificate must be an agent's that has the address in it.
	Host        string
	Address     string // "198.18.0.11:7443"; without a port DefaultPort
	Credentials Credentials
	// Dial makes the TCP connections; nil means from where the process is.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
}

// Client calls one agent. It is safe for use by several goroutines.
type Client struct {
	Hosts     reflejov1connect.HostServiceClient
	Images    reflejov1connect.ImageServiceClient
	Networks  reflejov1connect.NetworkServiceClient
	Servers   reflejov1connect.ServerServiceClient
	Snapshots reflejov1connect.SnapshotServiceClient
	Backups   reflejov1connect.BackupServiceClient

	name      string
	address   string
	transport *http.Transport
}

// Dial makes a client. It connects with the first call (HTTP/2, TLS 1.3) and again as
// needed; calls share one connection.
func Dial(c Config) (*Client, error) {
	address, err := Address(c.Address)
	if err != nil {
		return nil, err
	}
	if c.Credentials == nil {
		return nil, fmt.Errorf("dial %s: no certificate given", address)
	}
	if c.Dial == nil {
		c.Dial = (&net.Dialer{Timeout: dialTimeout}).DialContext
	}
	protocols := new(http.Protocols)
	protocols.SetHTTP2(true)
	transport := &http.Transport{
		DialContext:         c.Dial,
		TLSClientConfig:     pki.ClientTLS(c.Credentials, c.Host, address, "h2"),
		TLSHandshakeTimeout: dialTimeout,
		Protocols:           protocols,
		HTTP2:               &http.HTTP2Config{SendPingTimeout: pingAfter, PingTimeout: pingAnswer},
		IdleConnTimeout:     2 * time.Minute,
		DisableCompression:  true, // Connect does its own
	}
	client := &http.Client{Transport: transport}
	base := "https://" + address
	options := connect.WithClientOptions(connect.WithReadMaxBytes(MaxMessage))
	return &Client{
		Hosts:     reflejov1connect.NewHostServiceClient(client, base, options),
		Images:    reflejov1connect.NewImageServiceClient(client, base, options),
		Networks:  reflejov1connect.NewNetworkServiceClient(client, base, options),
		Servers:   reflejov1connect.NewServerServiceClient(client, base, options),
		Snapshots: reflejov1connect.NewSnapshotServiceClient(client, base, options),
		Backups:   reflejov1connect.NewBackupServiceClient(client, base, options),
		name:      c.Host,
		address:   address,
		transport: transport,
	}, nil
}

// Name is the host's name as the client was told, "" if it was not.
func (c *Client) Name() string { return c.name }

// Address is the dialled address, with port.
func (c *Client) Address() string { return c.address }

// Close drops idle connections. Calls under way go on.
func (c *Client) Close() { c.transport.CloseIdleConnections() }

// Address checks a host's address and adds the default port where there is none.
func Address(text string) (string, error) {
	host, port, err := net.SplitHostPort(text)
	if err != nil {
		host, port = text, DefaultPort
		if ip := net.ParseIP(text); ip == nil && !pki.ValidAddress(text) {
			return "", fmt.Errorf("address %q: want a name or IP address and a port, such as \"198.18.0.11:7443\"", text)
		}
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 || !pki.ValidAddress(host) {
		return "", fmt.Errorf("address %q: want a name or IP address and a port from 1 to 65535, such as \"198.18.0.11:7443\"", text)
	}
	return net.JoinHostPort(host, port), nil
}

// Endpoint is where the agent behind an API address listens for other agents. What it says
// of that itself (an answer's endpoint) may leave out the port, or the host, or both.
func Endpoint(address, told string) string {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		host = address
	}
	toldHost, port, err := net.SplitHostPort(told)
	if err != nil {
		toldHost, port = strings.Trim(told, "[]"), ""
	}
	if toldHost != "" {
		host = toldHost
	}
	if port == "" {
		port = DefaultEndpointPort
	}
	return net.JoinHostPort(host, port)
}
