package pki

import (
	"crypto/tls"
	"crypto/x509"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"
)

func newCA(t *testing.T) *CA {
	t.Helper()
	ca, err := NewCA("test", 0)
	if err != nil {
		t.Fatal(err)
	}
	return ca
}

func issue(t *testing.T, ca *CA, role Role, name string, o Options) (Pair, *x509.Certificate) {
	t.Helper()
	pair, err := ca.Issue(Identity{role, name}, o)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := ParseCertificate(pair.Cert)
	if err != nil {
		t.Fatal(err)
	}
	return pair, cert
}

func TestIssue(t *testing.T) {
	t.Parallel()
	ca := newCA(t)
	_, agent := issue(t, ca, RoleAgent, "alpha", Options{Addresses: []string{"198.18.0.11", "alpha.example"}})
	if id, err := IdentityOf(agent); err != nil || id.String() != "reflejo://agent/alpha" {
		t.Errorf("got %v, %v", id, err)
	}
	if got := AddressesOf(agent); !slices.Equal(got, []string{"198.18.0.11", "alpha.example"}) {
		t.Errorf("addresses %v", got)
	}
	if life := time.Until(agent.NotAfter); life < 364*24*time.Hour || life > LeafLife {
		t.Errorf("life %s", life)
	}
	_, op := issue(t, ca, RoleOperator, "ci", Options{})
	if slices.Contains(op.ExtKeyUsage, x509.ExtKeyUsageServerAuth) {
		t.Error("an operator's certificate can serve")
	}
	_, long := issue(t, ca, RoleMonitor, "long", Options{Life: 20 * CALife})
	if long.NotAfter.After(ca.Certificate().NotAfter) {
		t.Error("a certificate outlives its authority")
	}
	for _, bad := range []struct {
		id Identity
		o  Options
	}{
		{Identity{"root", "a"}, Options{}},
		{Identity{RoleAgent, ""}, Options{}},
		{Identity{RoleAgent, "a/b"}, Options{}},
		{Identity{RoleAgent, "Alpha"}, Options{}},
		{Identity{RoleOperator, "ci"}, Options{Addresses: []string{"127.0.0.1"}}},
		{Identity{RoleAgent, "alpha"}, Options{Addresses: []string{"127.0.0.1:7443"}}},
		{Identity{RoleAgent, "alpha"}, Options{Life: -time.Second}},
	} {
		if _, err := ca.Issue(bad.id, bad.o); err == nil {
			t.Errorf("issue %v %v succeeded", bad.id, bad.o)
		}
	}
}

func TestIdentityOf(t *testing.T) {
	t.Parallel()
	for text, ok := range map[string]bool{
		"reflejo://operator/ci":              true,
		"reflejo://operator/ci?x=1":          false,
		"reflejo://operator/ci#x":            false,
		"reflejo://user@operator/ci":         false,
		"reflejo://operator:1/ci":            false,
		"reflejo://operator//ci":             false,
		"reflejo://operator/ci/":             false,
		"reflejo://operator":                 false,
		"reflejo:operator/ci":                false,
		"https://operator/ci":                false,
		"reflejo://operator/%63i":            false,
		"reflejo://administrator/everything": false,
	} {
		u, err := url.Parse(text)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := IdentityOf(&x509.Certificate{URIs: []*url.URL{u}}); (err == nil) != ok {
			t.Errorf("%s: %v", text, err)
		}
	}
	two := []*url.URL{{Scheme: Scheme, Host: "monitor", Path: "/a"}, {Scheme: Scheme, Host: "operator", Path: "/a"}}
	if _, err := IdentityOf(&x509.Certificate{URIs: two}); err == nil {
		t.Error("a certificate with two names was accepted")
	}
}

func TestRenew(t *testing.T) {
	t.Parallel()
	ca := newCA(t)
	old, oldCert := issue(t, ca, RoleAgent, "alpha", Options{Addresses: []string{"127.0.0.1"}, NotBefore: time.Now().Add(-2 * time.Hour)})
	pair, err := ca.Renew(old.Cert, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	cert, _ := ParseCertificate(pair.Cert)
	if id, _ := IdentityOf(cert); id.String() != "reflejo://agent/alpha" || !slices.Equal(AddressesOf(cert), AddressesOf(oldCert)) {
		t.Errorf("renewed as %v at %v", id, AddressesOf(cert))
	}
	if _, err := newCA(t).Renew(old.Cert, 0); err == nil {
		t.Error("another authority renewed the certificate")
	}
}

func TestFiles(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "pki")
	ca := newCA(t)
	if err := ca.Save(dir); err != nil {
		t.Fatal(err)
	}
	if err := ca.Save(dir); err == nil {
		t.Error("an authority was overwritten")
	}
	if info, _ := os.Stat(filepath.Join(dir, CAKeyFile)); runtime.GOOS != "windows" && info.Mode().Perm() != 0o600 {
		t.Errorf("key has mode %s", info.Mode())
	}
	back, err := LoadCA(dir)
	if err != nil || !back.Certificate().Equal(ca.Certificate()) {
		t.Fatalf("load: %v", err)
	}
	pair, _ := issue(t, newCA(t), RoleAgent, "a", Options{})
	if _, err := ParseCA(Pair{Cert: ca.Pair().Cert, Key: pair.Key}); err == nil {
		t.Error("an authority with somebody else's key was accepted")
	}
	if _, err := ParseCA(pair); err == nil {
		t.Error("a leaf was accepted as an authority")
	}
}

// A renewal on disk is in use at the next handshake; half a renewal is not.
func TestSourceReloads(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	ca := newCA(t)
	files := Files{CA: filepath.Join(dir, "ca.crt"), Cert: filepath.Join(dir, "a.crt"), Key: filepath.Join(dir, "a.key")}
	if _, err := NewSource(files); err == nil {
		t.Fatal("a source without files was accepted")
	}
	if err := os.WriteFile(files.CA, ca.Pair().Cert, 0o600); err != nil {
		t.Fatal(err)
	}
	first, firstCert := issue(t, ca, RoleAgent, "alpha", Options{})
	if err := first.Save(files.Cert, files.Key); err != nil {
		t.Fatal(err)
	}
	s, err := NewSource(files)
	if err != nil {
		t.Fatal(err)
	}
	second, secondCert := issue(t, ca, RoleAgent, "alpha", Options{})
	stamp := time.Now().Add(time.Second) // another version even on a file system with coarse times
	write := func(name string, data []byte) {
		t.Helper()
		if err := os.WriteFile(name, data, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(name, stamp, stamp); err != nil {
			t.Fatal(err)
		}
	}
	write(files.Key, second.Key)
	if got := s.Get().Certificate.Leaf; !got.Equal(firstCert) || s.Err() == nil {
		t.Error("half a renewal is in use")
	}
	write(files.Cert, second.Cert)
	if got := s.Get().Certificate.Leaf; !got.Equal(secondCert) || s.Err() != nil {
		t.Errorf("the renewal is not in use: %v", s.Err())
	}
}

func TestHandshake(t *testing.T) {
	t.Parallel()
	ca, other := newCA(t), newCA(t)
	creds := func(issuer, trusted *CA, role Role, name string, o Options) Credentials {
		pair, _ := issue(t, issuer, role, name, o)
		// Not NewCredentials: it refuses what some cases want.
		cert, err := tls.X509KeyPair(pair.Cert, pair.Key)
		if err != nil {
			t.Fatal(err)
		}
		pool := x509.NewCertPool()
		pool.AddCert(trusted.Certificate())
		return Credentials{Certificate: cert, CAs: pool}
	}
	local := Options{Addresses: []string{"127.0.0.1"}}
	past := Options{NotBefore: time.Now().Add(-time.Hour), Life: time.Nanosecond}
	server := creds(ca, ca, RoleAgent, "alpha", local)
	client := creds(ca, ca, RoleOperator, "ci", Options{})
	for name, c := range map[string]struct {
		server, client Credentials
		host           string
		bad            string
	}{
		"by name":              {server, client, "alpha", ""},
		"by address":           {server, client, "", ""},
		"another host":         {server, client, "beta", "want reflejo://agent/beta"},
		"unknown address":      {creds(ca, ca, RoleAgent, "alpha", Options{}), client, "", "127.0.0.1"},
		"operator serves":      {client, client, "", "verify certificates"},
		"server of another CA": {creds(other, ca, RoleAgent, "alpha", local), client, "alpha", "unknown authority"},
		"client of another CA": {server, creds(other, ca, RoleOperator, "ci", Options{}), "alpha", "certificate"},
		"expired client":       {server, creds(ca, ca, RoleOperator, "ci", past), "alpha", "our own certificate (ci) ended"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			err := handshake(t, c.server, c.client, c.host)
			if (c.bad == "") != (err == nil) || (err != nil && !strings.Contains(err.Error(), c.bad)) {
				t.Errorf("got %v, want %q", err, c.bad)
			}
		})
	}
}

// handshake returns what the client, or else the server, found wrong.
func handshake(t *testing.T, server, client Credentials, host string) error {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	served := make(chan error, 1)
	go func() {
		conn, err := l.Accept()
		if err != nil {
			served <- err
			return
		}
		defer conn.Close()
		tc := tls.Server(conn, ServerTLS(func() Credentials { return server }, "h2"))
		if err = tc.Handshake(); err == nil {
			_, err = tc.Write([]byte{1})
		}
		served <- err
	}()
	conn, err := tls.Dial("tcp", l.Addr().String(), ClientTLS(func() Credentials { return client }, host, l.Addr().String(), "h2"))
	if err != nil {
		return err
	}
	defer conn.Close()
	_, err = conn.Read(make([]byte, 1)) // with TLS 1.3 the server's refusal comes after the handshake
	if serr := <-served; err == nil {
		err = serr
	}
	return err
}
