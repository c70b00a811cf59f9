package servicetest

import (
	"context"
	"net"
	"path/filepath"
	"testing"
	"time"

	"github.com/reflejo/terraform-provider-reflejo/agent/api"
	"github.com/reflejo/terraform-provider-reflejo/agent/metrics"
	"github.com/reflejo/terraform-provider-reflejo/agent/pki"
	"github.com/reflejo/terraform-provider-reflejo/agent/service"
)

// Site is a running service with an authority of its own.
type Site struct {
	Address string
	CA      *pki.CA
	Dir     string // has the authority's files, and audit.log
	Service *service.Service

	name string
}

// Start serves a host on loopback until the test ends.
func Start(t testing.TB, h *Host) *Site {
	t.Helper()
	ca, err := pki.NewCA("test", 0)
	if err != nil {
		t.Fatal(err)
	}
	return StartWith(t, h, ca)
}

// StartWith is Start with a given authority, for several hosts of one site.
func StartWith(t testing.TB, h *Host, ca *pki.CA) *Site {
	t.Helper()
	s := &Site{CA: ca, Dir: t.TempDir(), name: h.name}
	if err := ca.Save(s.Dir); err != nil {
		t.Fatal(err)
	}
	own := s.Credentials(t, pki.Identity{Role: pki.RoleAgent, Name: h.name}, pki.Options{Addresses: []string{"127.0.0.1"}})
	audit, err := service.OpenAudit(filepath.Join(s.Dir, "audit.log"))
	if err != nil {
		t.Fatal(err)
	}
	m := metrics.New(metrics.Config{Version: "1.2.3", Servers: h, Host: func(context.Context) (metrics.Host, error) {
		return metrics.Host{CertificateExpiry: Began}, nil
	}})
	s.Service = service.New(service.Config{
		Host: h, Servers: h, Views: h, Networks: h.Networks(), Images: h.Images(), Commands: h, Consoles: h,
		Snapshots: h.Copies, Restores: h, Backups: h.Copies.Backups(), Targets: h.Copies.Backups(), Migrations: h, Recoveries: h,
		Credentials: own, Audit: audit, Observer: m, Metrics: m.Handler(),
	})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s.Address = l.Addr().String()
	served := make(chan error, 1)
	go func() { served <- s.Service.Serve(l) }()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := s.Service.Shutdown(ctx); err != nil {
			t.Errorf("shut down: %v", err)
		}
		if err := <-served; err != nil {
			t.Errorf("serve: %v", err)
		}
		audit.Close()
	})
	return s
}

// Files issues a certificate and returns its files.
func (s *Site) Files(t testing.TB, id pki.Identity, o pki.Options) pki.Files {
	t.Helper()
	pair, err := s.CA.Issue(id, o)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	f := pki.Files{CA: filepath.Join(s.Dir, pki.CACertFile), Cert: filepath.Join(dir, "x.crt"), Key: filepath.Join(dir, "x.key")}
	if err := pair.Save(f.Cert, f.Key); err != nil {
		t.Fatal(err)
	}
	return f
}

// Credentials issues a certificate and reads it.
func (s *Site) Credentials(t testing.TB, id pki.Identity, o pki.Options) api.Credentials {
	t.Helper()
	f := s.Files(t, id, o)
	c, err := api.CredentialFiles(f.CA, f.Cert, f.Key)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// Client dials the site as somebody of the role.
func (s *Site) Client(t testing.TB, role pki.Role) *api.Client {
	t.Helper()
	return s.Dial(t, s.Credentials(t, pki.Identity{Role: role, Name: "tester"}, pki.Options{}))
}

// Dial dials the site with any credentials.
func (s *Site) Dial(t testing.TB, c api.Credentials) *api.Client {
	t.Helper()
	client, err := api.Dial(api.Config{Host: s.name, Address: s.Address, Credentials: c})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.Close)
	return client
}
