package api

import (
	"fmt"
	"slices"
	"strings"

	"github.com/reflejo/terraform-provider-reflejo/agent/pki"
)

// The environment variables that the command line and the provider share.
const (
	EnvHosts    = "REFLEJO_HOSTS"     // "alpha=198.18.0.11:7443,beta=198.18.0.12:7443"
	EnvCAFile   = "REFLEJO_CA_FILE"   // certificate of the authority
	EnvCertFile = "REFLEJO_CERT_FILE" // the caller's certificate
	EnvKeyFile  = "REFLEJO_KEY_FILE"  // and its key
)

// Environment is what the environment says about hosts and credentials; fields that it
// does not say are zero.
type Environment struct {
	Hosts    map[string]string // name → address with port
	CAFile   string
	CertFile string
	KeyFile  string
}

// FromEnv reads the REFLEJO_* variables through getenv (os.Getenv). The error names the variable.
func FromEnv(getenv func(string) string) (Environment, error) {
	hosts, err := ParseHosts(getenv(EnvHosts))
	if err != nil {
		return Environment{}, fmt.Errorf("read %s: %w", EnvHosts, err)
	}
	return Environment{
		Hosts:    hosts,
		CAFile:   getenv(EnvCAFile),
		CertFile: getenv(EnvCertFile),
		KeyFile:  getenv(EnvKeyFile),
	}, nil
}

// ParseHosts reads "name=address,…". A text of nothing gives no hosts.
func ParseHosts(text string) (map[string]string, error) {
	hosts := map[string]string{}
	for part := range strings.SplitSeq(text, ",") {
		part = strings.TrimSpace(part)
		if part == "" {
			continue
		}
		name, address, found := strings.Cut(part, "=")
		if !found {
			return nil, fmt.Errorf("host %q: want name=address, such as \"alpha=198.18.0.11:7443\"", part)
		}
		if _, err := pki.ParseIdentity(string(pki.RoleAgent), name); err != nil {
			return nil, fmt.Errorf("host %q: %w", part, err)
		}
		address, err := Address(address)
		if err != nil {
			return nil, fmt.Errorf("host %s: %w", name, err)
		}
		if other, ok := hosts[name]; ok && other != address {
			return nil, fmt.Errorf("host %s is given twice, at %s and %s", name, other, address)
		}
		hosts[name] = address
	}
	return hosts, nil
}

// HostNames lists the environment's hosts in order.
func (e Environment) HostNames() []string {
	names := make([]string, 0, len(e.Hosts))
	for name := range e.Hosts {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// Credentials reads the credentials that the environment names. The error says which
// variables are missing.
func (e Environment) Credentials() (Credentials, error) {
	var missing []string
	for _, f := range []struct{ value, name string }{{e.CAFile, EnvCAFile}, {e.CertFile, EnvCertFile}, {e.KeyFile, EnvKeyFile}} {
		if f.value == "" {
			missing = append(missing, f.name)
		}
	}
	if len(missing) > 0 {
		return nil, fmt.Errorf("no certificate to call agents with: %s not set (make one with `reflejo pki issue operator NAME`)", strings.Join(missing, ", "))
	}
	return CredentialFiles(e.CAFile, e.CertFile, e.KeyFile)
}
