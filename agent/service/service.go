package service

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/http"
	"time"

	"connectrpc.com/connect"
	"github.com/hashicorp/go-hclog"

	"github.com/reflejo/terraform-provider-reflejo/agent/api"
	rpc "github.com/reflejo/terraform-provider-reflejo/agent/api/reflejo/v1/reflejov1connect"
	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
	"github.com/reflejo/terraform-provider-reflejo/agent/pki"
	"github.com/reflejo/terraform-provider-reflejo/agent/vserver"
)

// Observer counts requests (package metrics).
type Observer interface {
	// Request reports one finished call: "ServerService/GetServer", "ok" or an error's code.
	Request(procedure, code string, took time.Duration)
}

// Config is what a service is made of.
type Config struct {
	Host     Host
	Servers  Servers
	Views    Views
	Networks Networks
	Images   Images
	Commands vserver.Commands
	Consoles Consoles

	Snapshots  Snapshots // nil: the host keeps none
	Restores   Restores
	Backups    Backups // nil: the host makes none
	Targets    Targets
	Migrations Migrations
	Recoveries Recoveries

	Credentials func() pki.Credentials // the agent's own, asked at each handshake
	Audit       *Audit                 // nil: mutations are only logged
	Observer    Observer               // nil: none
	Metrics     http.Handler           // serves MetricsPath; nil: not found
	Log         hclog.Logger           // nil: none
}

// Service answers the API. It is an http.Handler for connections with verified client
// certificates; [Service.Serve] makes such connections.
type Service struct {
	cfg    Config
	log    hclog.Logger
	mux    *http.ServeMux
	errors *connect.ErrorWriter
	server *http.Server

	draining context.Context
	drain    context.CancelFunc
}

// New makes a service.
func New(cfg Config) *Service {
	s := &Service{cfg: cfg, log: cfg.Log, mux: http.NewServeMux()}
	if s.log == nil {
		s.log = hclog.NewNullLogger()
	}
	s.draining, s.drain = context.WithCancel(context.Background())
	options := connect.WithHandlerOptions(
		connect.WithInterceptors(gate{s}),
		connect.WithReadMaxBytes(api.MaxRequest+api.MaxRequest/16), // a chunk and what is around it
	)
	s.errors = connect.NewErrorWriter(options)
	s.mux.Handle(rpc.NewHostServiceHandler(&hostHandler{s}, options))
	s.mux.Handle(rpc.NewServerServiceHandler(&serverHandler{s}, options))
	s.mux.Handle(rpc.NewNetworkServiceHandler(&networkHandler{s}, options))
	s.mux.Handle(rpc.NewImageServiceHandler(&imageHandler{s}, options))
	if cfg.Snapshots != nil {
		s.mux.Handle(rpc.NewSnapshotServiceHandler(&snapshotHandler{s}, options))
	}
	if cfg.Backups != nil {
		s.mux.Handle(rpc.NewBackupServiceHandler(&backupHandler{s}, options))
	}
	if cfg.Metrics != nil {
		s.mux.Handle("GET "+MetricsPath, cfg.Metrics)
	}
	s.server = s.httpServer()
	return s
}

type callerKey struct{}

// callerOf is who makes a request that came through ServeHTTP.
func callerOf(ctx context.Context) pki.Identity {
	id, _ := ctx.Value(callerKey{}).(pki.Identity)
	return id
}

// ServeHTTP authorises a request by its client certificate, before anything of it is read,
// and answers it.
func (s *Service) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	caller, err := identify(r.TLS, time.Now())
	if err != nil {
		s.deny(w, r, err)
		return
	}
	entry, known := authz[r.URL.Path]
	if !known {
		http.NotFound(w, r)
		return
	}
	if !entry.allows(caller.Role) {
		err := fault.New(fault.Denied, "%s may not call %s: it needs the role %s", caller, shortName(r.URL.Path), entry.roles[0])
		if entry.mutation {
			s.audited(Entry{Time: time.Now().UTC(), Who: caller.String(), From: r.RemoteAddr, What: shortName(r.URL.Path), Outcome: codeOf(err), Error: err.Error()})
		}
		s.deny(w, r, err)
		return
	}
	s.mux.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), callerKey{}, caller)))
}

// identify reads the caller from a verified connection. A certificate that ran out while
// the connection stayed open counts no more.
func identify(state *tls.ConnectionState, now time.Time) (pki.Identity, error) {
	if state == nil || len(state.VerifiedChains) == 0 {
		return pki.Identity{}, fault.New(fault.Denied, "the API needs a client certificate of this site's authority")
	}
	cert := state.PeerCertificates[0]
	if now.After(cert.NotAfter) {
		return pki.Identity{}, fault.New(fault.Denied, "the client certificate ran out at %s: renew it with `reflejo pki renew`", cert.NotAfter.UTC().Format(time.RFC3339))
	}
	id, err := pki.IdentityOf(cert)
	return id, fault.Wrap(fault.Denied, err)
}

func (s *Service) httpServer() *http.Server {
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	protocols.SetHTTP2(true)
	return &http.Server{
		Handler:           s,
		ReadHeaderTimeout: 10 * time.Second,
		IdleTimeout:       5 * time.Minute,
		MaxHeaderBytes:    64 << 10,
		Protocols:         protocols,
		// A client that is gone, or reads nothing, loses its connection and with it its streams.
		HTTP2: &http.HTTP2Config{
			MaxConcurrentStreams: 1024,
			SendPingTimeout:      30 * time.Second,
			PingTimeout:          15 * time.Second,
			WriteByteTimeout:     30 * time.Second,
		},
		ErrorLog: s.log.StandardLogger(&hclog.StandardLoggerOptions{ForceLevel: hclog.Debug}),
	}
}

// Serve answers on a listener until [Service.Shutdown] (then it returns nil) or until the
// listener fails.
func (s *Service) Serve(l net.Listener) error {
	err := s.server.Serve(tls.NewListener(l, pki.ServerTLS(s.cfg.Credentials, "h2", "http/1.1")))
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return err
}

// Shutdown stops accepting, ends streams with an error that tells clients to come back,
// and waits for the calls under way, until ctx ends.
func (s *Service) Shutdown(ctx context.Context) error {
	s.drain()
	if err := s.server.Shutdown(ctx); err != nil {
		return errors.Join(err, s.server.Close())
	}
	return nil
}
