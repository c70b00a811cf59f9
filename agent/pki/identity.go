// Package pki is the private certificate authority of a set of hosts: it makes the
// authority, issues and renews certificates, reads who a certificate names, and
// hands a running program its certificate anew when the files change.
//
// A certificate says who its owner is, in one URI: reflejo://agent/<host>,
// reflejo://operator/<name> or reflejo://monitor/<name>. It never says what the
// owner may do: that is the table in agent/service.
package pki

import (
	"crypto/x509"
	"fmt"
	"net/url"
	"regexp"
	"strings"
)

// Scheme is the scheme of the URI that names a certificate's owner.
const Scheme = "reflejo"

// Role is what kind of party a certificate names.
type Role string

// The roles.
const (
	RoleAgent    Role = "agent"    // the daemon of one host
	RoleOperator Role = "operator" // a person or a pipeline that may change things
	RoleMonitor  Role = "monitor"  // somebody who may only look
)

// Roles lists all roles.
var Roles = []Role{RoleAgent, RoleOperator, RoleMonitor}

// Identity is who a certificate names.
type Identity struct {
	Role Role
	Name string // of the host for an agent
}

var validName = regexp.MustCompile(`^[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?$`)

// ParseIdentity makes an identity of a role and a name; the error says which of the two is wrong.
func ParseIdentity(role, name string) (Identity, error) {
	id := Identity{Role: Role(role), Name: name}
	switch id.Role {
	case RoleAgent, RoleOperator, RoleMonitor:
	default:
		return Identity{}, fmt.Errorf("role %q is unknown: use agent, operator or monitor", role)
	}
	if !validName.MatchString(name) {
		return Identity{}, fmt.Errorf("name %q is not valid: use 1 to 63 lower-case letters, digits, '.', '_' or '-', with a letter or digit at both ends", name)
	}
	return id, nil
}

// String is the identity's URI.
func (i Identity) String() string { return Scheme + "://" + string(i.Role) + "/" + i.Name }

func (i Identity) url() *url.URL {
	return &url.URL{Scheme: Scheme, Host: string(i.Role), Path: "/" + i.Name}
}

// IdentityOf reads who a certificate names. A certificate without exactly one
// well-formed URI of ours is an error. It does not verify the certificate.
func IdentityOf(cert *x509.Certificate) (Identity, error) {
	var found []*url.URL
	for _, u := range cert.URIs {
		if u.Scheme == Scheme {
			found = append(found, u)
		}
	}
	if len(found) != 1 {
		return Identity{}, fmt.Errorf("read certificate of %q: %d %s:// names in it, want one", cert.Subject.CommonName, len(found), Scheme)
	}
	id, err := ParseIdentity(found[0].Host, strings.TrimPrefix(found[0].Path, "/"))
	if err == nil && id.String() != found[0].String() {
		err = fmt.Errorf("name %q has parts that do not belong there", found[0])
	}
	if err != nil {
		return Identity{}, fmt.Errorf("read certificate of %q: %w", cert.Subject.CommonName, err)
	}
	return id, nil
}
