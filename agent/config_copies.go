package main

import (
	"net"
	"net/url"
	"path/filepath"
	"slices"
	"strconv"

	"github.com/reflejo/terraform-provider-reflejo/agent/api"
	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
	"github.com/reflejo/terraform-provider-reflejo/agent/pki"
)

// EndpointConfig is where other agents reach this one.
type EndpointConfig struct {
	Listen  string `hcl:"listen,optional"`
	Address string `hcl:"address,optional"`
}

// HostConfig is another host, where its agent's endpoint is.
type HostConfig struct {
	Name     string `hcl:"name,label"`
	Endpoint string `hcl:"endpoint"`
}

// BackupConfig says where backups may be kept on this host.
type BackupConfig struct {
	Dirs  []string `hcl:"dirs,optional"`
	Store string   `hcl:"store,optional"`
}

// S3Config is how a bucket is reached.
type S3Config struct {
	Bucket        string `hcl:"bucket,label"`
	Endpoint      string `hcl:"endpoint"`
	Region        string `hcl:"region,optional"`
	AccessKeyFile string `hcl:"access_key_file"`
	SecretKeyFile string `hcl:"secret_key_file"`
	PathStyle     bool   `hcl:"path_style,optional"`
}

// validateCopies checks what concerns other hosts and backups.
func (c Config) validateCopies() error {
	if _, port, err := net.SplitHostPort(c.Endpoint.Listen); err != nil || !validPort(port) {
		return fault.Field("endpoint.listen", "%q: want an address and a port, such as \":7444\"", c.Endpoint.Listen)
	}
	if a := c.Endpoint.Address; a != "" {
		if err := validEndpoint(a); err != nil {
			return fault.Field("endpoint.address", "%w", err)
		}
	}
	seen := map[string]bool{}
	for _, h := range c.Hosts {
		if _, err := pki.ParseIdentity(string(pki.RoleAgent), h.Name); err != nil || h.Name == c.Name || seen[h.Name] {
			return fault.Field("host", "%q: want the name of another host, each once", h.Name)
		}
		seen[h.Name] = true
		if err := validEndpoint(h.Endpoint); err != nil {
			return fault.Field("host.endpoint", "%w", err)
		}
	}
	if slices.ContainsFunc(c.Backup.Dirs, func(d string) bool { return d == "" || filepath.Clean(d) == "/" }) {
		return fault.Field("backup.dirs", "want paths of directories")
	}
	if c.Backup.Store != "" && filepath.Clean(c.Backup.Store) == "/" {
		return fault.Field("backup.store", "want the path of a directory")
	}
	buckets := map[string]bool{}
	for _, s := range c.S3 {
		if err := s.validate(); err != nil {
			return err
		}
		if buckets[s.Bucket] {
			return fault.Field("s3", "%q: want each bucket once", s.Bucket)
		}
		buckets[s.Bucket] = true
	}
	return nil
}

func (s S3Config) validate() error {
	u, err := url.Parse(s.Endpoint)
	switch {
	case s.Bucket == "" || len(s.Bucket) > 63:
		return fault.Field("s3", "%q: want the name of a bucket", s.Bucket)
	case err != nil || (u.Scheme != "https" && u.Scheme != "http") || u.Host == "" || (u.Path != "" && u.Path != "/"):
		return fault.Field("s3.endpoint", "%q: want a store's address, such as \"https://s3.example.org\"", s.Endpoint)
	case s.AccessKeyFile == "":
		return fault.Field("s3.access_key_file", "want a path")
	case s.SecretKeyFile == "":
		return fault.Field("s3.secret_key_file", "want a path")
	}
	return nil
}

func validEndpoint(address string) error {
	_, port, err := net.SplitHostPort(address)
	if err == nil && validPort(port) {
		_, err = api.Address(address)
	}
	if err != nil || !validPort(port) {
		return fault.New(fault.Invalid, "%q: want a host's address and port, such as \"198.18.0.11:7444\"", address)
	}
	return nil
}

func validPort(port string) bool {
	n, err := strconv.ParseUint(port, 10, 16)
	return err == nil && n > 0
}

// endpointPort is where agents listen for each other; servers never reach it.
func (c Config) endpointPort() uint16 {
	_, port, _ := net.SplitHostPort(c.Endpoint.Listen)
	n, _ := strconv.ParseUint(port, 10, 16)
	return uint16(n) // checked by Validate
}

// endpointAddress is what other hosts are told to dial: as configured, else on the address
// for other hosts; ":port" leaves the host to who asks.
func (c Config) endpointAddress() string {
	if c.Endpoint.Address != "" {
		return c.Endpoint.Address
	}
	host := c.UnderlayAddress
	if at, _, _ := net.SplitHostPort(c.Endpoint.Listen); at != "" && host == "" {
		if ip := net.ParseIP(at); ip != nil && !ip.IsUnspecified() {
			host = at
		}
	}
	return net.JoinHostPort(host, strconv.Itoa(int(c.endpointPort())))
}
