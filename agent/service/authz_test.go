package service

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net/url"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/reflect/protoreflect"

	reflejov1 "github.com/reflejo/terraform-provider-reflejo/agent/api/reflejo/v1"
	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
	"github.com/reflejo/terraform-provider-reflejo/agent/pki"
)

// files are all files of the contract.
var files = []protoreflect.FileDescriptor{
	reflejov1.File_reflejo_v1_host_proto, reflejov1.File_reflejo_v1_server_proto, reflejov1.File_reflejo_v1_image_proto,
	reflejov1.File_reflejo_v1_network_proto, reflejov1.File_reflejo_v1_error_proto,
	reflejov1.File_reflejo_v1_snapshot_proto, reflejov1.File_reflejo_v1_backup_proto,
}

// Every procedure of the contract is in the table and nothing else is; what reads is no
// mutation, what changes is one, and only operators may change.
func TestEveryProcedureHasRoles(t *testing.T) {
	t.Parallel()
	left := map[string]bool{}
	for path := range authz {
		left[path] = true
	}
	delete(left, MetricsPath)
	for _, f := range files {
		for i := range f.Services().Len() {
			s := f.Services().Get(i)
			for j := range s.Methods().Len() {
				m := s.Methods().Get(j)
				path := fmt.Sprintf("/%s/%s", s.FullName(), m.Name())
				a, ok := authz[path]
				if !ok || len(a.roles) == 0 {
					t.Errorf("%s: no roles in authz.go", path)
				}
				delete(left, path)
				checkMutation(t, path, string(m.Name()), a)
			}
		}
	}
	for path := range left {
		t.Errorf("%s is in authz.go but not in the contract", path)
	}
}

// A certificate that ends while its connection stays open counts no more.
func TestIdentify(t *testing.T) {
	t.Parallel()
	end := time.Now()
	cert := &x509.Certificate{NotAfter: end, URIs: []*url.URL{{Scheme: pki.Scheme, Host: "operator", Path: "/ci"}}}
	verified := &tls.ConnectionState{PeerCertificates: []*x509.Certificate{cert}, VerifiedChains: [][]*x509.Certificate{{cert}}}
	if id, err := identify(verified, end); err != nil || id.String() != "reflejo://operator/ci" {
		t.Errorf("got %s, %v", id, err)
	}
	stranger := &x509.Certificate{NotAfter: end}
	for name, state := range map[string]*tls.ConnectionState{
		"no TLS":       nil,
		"not verified": {PeerCertificates: []*x509.Certificate{cert}},
		"no name":      {PeerCertificates: []*x509.Certificate{stranger}, VerifiedChains: [][]*x509.Certificate{{stranger}}},
	} {
		if _, err := identify(state, end); !fault.Is(err, fault.Denied) {
			t.Errorf("%s: got %v", name, err)
		}
	}
	if _, err := identify(verified, end.Add(time.Second)); !fault.Is(err, fault.Denied) {
		t.Errorf("ended: got %v", err)
	}
}

func checkMutation(t *testing.T, path, method string, a access) {
	t.Helper()
	reads := false
	for _, verb := range []string{"Get", "List", "Watch", "Read", "Verify"} {
		reads = reads || strings.HasPrefix(method, verb)
	}
	if reads == a.mutation {
		t.Errorf("%s: mutation is %v", path, a.mutation)
	}
	if a.mutation && (a.allows(pki.RoleMonitor) || a.allows(pki.RoleAgent)) {
		t.Errorf("%s: somebody besides operators may change things", path)
	}
}
