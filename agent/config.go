package main

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/gohcl"
	"github.com/hashicorp/hcl/v2/hclparse"
	"github.com/hashicorp/hcl/v2/hclsyntax"

	"github.com/reflejo/terraform-provider-reflejo/agent/api"
	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
	"github.com/reflejo/terraform-provider-reflejo/agent/network"
	"github.com/reflejo/terraform-provider-reflejo/agent/pki"
	"github.com/reflejo/terraform-provider-reflejo/agent/units"
)

// Config is an agent's configuration, as in agent.hcl. Amounts are texts with units;
// the methods of each part give them as numbers once Validate has passed.
// examples/agent/agent.hcl says what each attribute does.
type Config struct {
	Name               string   `hcl:"name,optional"`
	Listen             string   `hcl:"listen,optional"`
	UnderlayAddress    string   `hcl:"underlay_address,optional"`
	StateDir           string   `hcl:"state_dir,optional"`
	RunDir             string   `hcl:"run_dir,optional"`
	ImageDirs          []string `hcl:"image_dirs,optional"`
	CgroupParent       string   `hcl:"cgroup_parent,optional"`
	InsecureRegistries []string `hcl:"insecure_registries,optional"`

	TLS        *TLSConfig        `hcl:"tls,block"`
	Log        *LogConfig        `hcl:"log,block"`
	Pool       *PoolConfig       `hcl:"pool,block"`
	Reserve    *ReserveConfig    `hcl:"reserve,block"`
	Overcommit *OvercommitConfig `hcl:"overcommit,block"`
	Network    *NetworkConfig    `hcl:"network,block"`
	IDRange    *IDRangeConfig    `hcl:"id_range,block"`
	Runtime    *RuntimeConfig    `hcl:"runtime,block"`
	Endpoint   *EndpointConfig   `hcl:"endpoint,block"`
	Backup     *BackupConfig     `hcl:"backup,block"`
	Hosts      []HostConfig      `hcl:"host,block"`
	S3         []S3Config        `hcl:"s3,block"`
}

// TLSConfig names the agent's certificate and the authority it trusts.
type TLSConfig struct {
	CAFile   string `hcl:"ca_file,optional"`
	CertFile string `hcl:"cert_file,optional"`
	KeyFile  string `hcl:"key_file,optional"`
}

// LogConfig says what is logged, to standard error.
type LogConfig struct {
	Level string `hcl:"level,optional"`
	JSON  bool   `hcl:"json,optional"`
}

// PoolConfig says where disks are kept.
type PoolConfig struct {
	Path string `hcl:"path,optional"`
	Size string `hcl:"size,optional"`
}

// ReserveConfig is what stays with the host: an amount or a share in percent.
type ReserveConfig struct {
	CPU    string `hcl:"cpu,optional"`
	Memory string `hcl:"memory,optional"`
	Disk   string `hcl:"disk,optional"`
}

// OvercommitConfig says how often a resource may be promised.
type OvercommitConfig struct {
	CPU string `hcl:"cpu,optional"`
}

// NetworkConfig is about the host's own side of networks.
type NetworkConfig struct {
	Uplink      string `hcl:"uplink,optional"`
	Ingress     string `hcl:"ingress,optional"`
	Egress      string `hcl:"egress,optional"`
	DefaultCIDR string `hcl:"default_cidr,optional"`
}

// IDRangeConfig is the range of user and group ids that servers get theirs from.
type IDRangeConfig struct {
	First int64 `hcl:"first,optional"`
	Count int64 `hcl:"count,optional"`
}

// RuntimeConfig names the programs that the agent runs.
type RuntimeConfig struct {
	Runc  string `hcl:"runc,optional"`
	Lxcfs string `hcl:"lxcfs,optional"`
}

// Defaults is the configuration of an agent whose file says nothing.
func Defaults() Config {
	return Config{
		Listen:       ":7443",
		StateDir:     "/var/lib/reflejo",
		RunDir:       "/run/reflejo",
		CgroupParent: "reflejo",
		TLS: &TLSConfig{
			CAFile:   "/etc/reflejo/ca.crt",
			CertFile: "/etc/reflejo/agent.crt",
			KeyFile:  "/etc/reflejo/agent.key",
		},
		Log:        &LogConfig{Level: "info"},
		Pool:       &PoolConfig{},
		Reserve:    &ReserveConfig{CPU: "0.5", Memory: "10%", Disk: "0"},
		Overcommit: &OvercommitConfig{CPU: "1"},
		Network:    &NetworkConfig{DefaultCIDR: "10.90.0.0/16", Ingress: "0", Egress: "0"},
		IDRange:    &IDRangeConfig{First: 100 << 16, Count: 4096 << 16},
		Runtime:    &RuntimeConfig{Runc: "runc", Lxcfs: "lxcfs"},
		Endpoint:   &EndpointConfig{Listen: ":7444"},
		Backup:     &BackupConfig{},
	}
}

// maxConfig bounds a configuration file.
const maxConfig = 1 << 20

// LoadConfig reads a file over the defaults and checks the result. Relative paths in it
// are relative to the file. Errors name file, line and attribute.
func LoadConfig(path string) (Config, error) {
	if info, err := os.Stat(path); err != nil {
		return Config{}, fmt.Errorf("read configuration: %w", err)
	} else if info.Size() > maxConfig {
		return Config{}, fmt.Errorf("read configuration %s: larger than %d bytes", path, maxConfig)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return Config{}, fmt.Errorf("read configuration: %w", err)
	}
	return ParseConfig(text, path)
}

// ParseConfig is LoadConfig for a text that came from path.
func ParseConfig(text []byte, path string) (Config, error) {
	file, diags := hclparse.NewParser().ParseHCL(text, path)
	if diags.HasErrors() {
		return Config{}, diagnosticsError(file, diags)
	}
	c := Defaults()
	if diags := gohcl.DecodeBody(file.Body, nil, &c); diags.HasErrors() {
		return Config{}, diagnosticsError(file, diags)
	}
	c.resolve(filepath.Dir(path))
	if err := c.Validate(); err != nil {
		return Config{}, fmt.Errorf("%s: %s: %w", position(file, path, fault.FieldOf(err)), fault.FieldOf(err), err)
	}
	return c, nil
}

// resolve fills in what other attributes decide and makes paths absolute.
func (c *Config) resolve(dir string) {
	if c.Name == "" {
		c.Name, _ = os.Hostname()
		c.Name, _, _ = strings.Cut(strings.ToLower(c.Name), ".")
	}
	if c.Pool.Path == "" {
		c.Pool.Path = filepath.Join(c.StateDir, "pool")
	}
	if abs, err := filepath.Abs(dir); err == nil {
		dir = abs
	}
	paths := []*string{&c.StateDir, &c.RunDir, &c.TLS.CAFile, &c.TLS.CertFile, &c.TLS.KeyFile, &c.Pool.Path}
	for i := range c.ImageDirs {
		paths = append(paths, &c.ImageDirs[i])
	}
	for i := range c.Backup.Dirs {
		paths = append(paths, &c.Backup.Dirs[i])
	}
	for i := range c.S3 {
		paths = append(paths, &c.S3[i].AccessKeyFile, &c.S3[i].SecretKeyFile)
	}
	paths = append(paths, &c.Backup.Store)
	for _, p := range paths {
		if *p != "" && !filepath.IsAbs(*p) {
			*p = filepath.Join(dir, *p)
		}
	}
}

// Validate checks everything that needs no look at the host. The error is fault.Invalid
// and names the attribute ("pool.size").
func (c Config) Validate() error {
	if _, err := pki.ParseIdentity(string(pki.RoleAgent), c.Name); err != nil {
		return fault.Field("name", "%w", err)
	}
	if _, port, err := net.SplitHostPort(c.Listen); err != nil || port == "" {
		return fault.Field("listen", "%q: want an address and a port, such as \":7443\" or \"198.18.0.11:7443\"", c.Listen)
	}
	if c.UnderlayAddress != "" {
		if a, err := netip.ParseAddr(c.UnderlayAddress); err != nil || !a.Is4() {
			return fault.Field("underlay_address", "%q: want an IPv4 address of this host", c.UnderlayAddress)
		}
	}
	for _, p := range []struct{ field, value string }{
		{"state_dir", c.StateDir}, {"run_dir", c.RunDir},
		{"tls.ca_file", c.TLS.CAFile}, {"tls.cert_file", c.TLS.CertFile}, {"tls.key_file", c.TLS.KeyFile},
		{"runtime.runc", c.Runtime.Runc},
	} {
		if p.value == "" {
			return fault.Field(p.field, "want a path")
		}
	}
	if slices.Contains(c.ImageDirs, "") {
		return fault.Field("image_dirs", "want paths of directories")
	}
	if c.CgroupParent == "" || strings.ContainsAny(c.CgroupParent, "/\x00\n") || c.CgroupParent == "." || c.CgroupParent == ".." {
		return fault.Field("cgroup_parent", "%q: want one name without '/'", c.CgroupParent)
	}
	if hclog.LevelFromString(c.Log.Level) == hclog.NoLevel {
		return fault.Field("log.level", "%q: want trace, debug, info, warn, error or off", c.Log.Level)
	}
	if r := c.IDRange; r.First < 1<<16 || r.Count < 1<<16 || r.First+r.Count > 1<<32-1<<16 {
		return fault.Field("id_range", "first %d, count %d: want a first of at least 65536, a count of at least 65536 (one server), and a last below 4294901760", r.First, r.Count)
	}
	for _, check := range []func() error{c.validateAmounts, c.validateNetwork, c.validateCopies} {
		if err := check(); err != nil {
			return err
		}
	}
	return nil
}

func (c Config) validateAmounts() error {
	for _, a := range []struct {
		field string
		err   error
	}{
		{"pool.size", errorOf(c.Pool.Bytes())},
		{"reserve.cpu", errorOf(c.Reserve.MilliCores(1000))},
		{"reserve.memory", errorOf(c.Reserve.MemoryBytes(1000))},
		{"reserve.disk", errorOf(c.Reserve.DiskBytes(1000))},
		{"overcommit.cpu", errorOf(c.Overcommit.CPUFactor())},
		{"network.ingress", errorOf(units.ParseBitrate(c.Network.Ingress))},
		{"network.egress", errorOf(units.ParseBitrate(c.Network.Egress))},
	} {
		if a.err != nil {
			return fault.Field(a.field, "%w", a.err)
		}
	}
	return nil
}

func (c Config) validateNetwork() error {
	cidr, err := netip.ParsePrefix(c.Network.DefaultCIDR)
	if err != nil {
		return fault.Field("network.default_cidr", "%q: want an IPv4 range like 10.90.0.0/16", c.Network.DefaultCIDR)
	}
	if err := network.ValidCIDR(cidr); err != nil {
		return fault.Field("network.default_cidr", "%w", err)
	}
	if u := c.Network.Uplink; len(u) > 15 || strings.ContainsAny(u, "/ \x00") {
		return fault.Field("network.uplink", "%q: want the name of a network interface", u)
	}
	for _, r := range c.InsecureRegistries {
		if _, err := api.Address(r); err != nil {
			return fault.Field("insecure_registries", "%q: want a registry's host name, with its port if it is not 443", r)
		}
	}
	return nil
}

// Bytes is the size of an embedded pool; 0 lets the pool choose.
func (p PoolConfig) Bytes() (int64, error) {
	if p.Size == "" {
		return 0, nil
	}
	return units.ParseBytes(p.Size)
}

// MilliCores is the reserve of a host with that many thousandths of cores.
func (r ReserveConfig) MilliCores(of int64) (int64, error) { return part(r.CPU, of, units.ParseCores) }

// MemoryBytes is the reserve of a host with that much memory.
func (r ReserveConfig) MemoryBytes(of int64) (int64, error) {
	return part(r.Memory, of, units.ParseBytes)
}

// DiskBytes is the reserve of a pool with that much space.
func (r ReserveConfig) DiskBytes(of int64) (int64, error) { return part(r.Disk, of, units.ParseBytes) }

// part reads an amount, or a percentage of a whole.
func part(text string, whole int64, parse func(string) (int64, error)) (int64, error) {
	if !strings.HasSuffix(text, "%") {
		return parse(text)
	}
	share, err := units.ParsePercent(text) // hundredths of a percent
	return whole/10_000*share + whole%10_000*share/10_000, err
}

// rates are what the uplink can carry, bits per second; 0 is not accounted.
func (n NetworkConfig) rates() (ingress, egress int64) {
	ingress, _ = units.ParseBitrate(n.Ingress) // checked by Validate
	egress, _ = units.ParseBitrate(n.Egress)
	return ingress, egress
}

// underlay is invalid where there is none.
func (c Config) underlay() netip.Addr {
	a, _ := netip.ParseAddr(c.UnderlayAddress)
	return a
}

// CPUFactor is how often the processors may be promised, in thousandths.
func (o OvercommitConfig) CPUFactor() (int64, error) {
	factor, err := units.ParseCores(o.CPU) // the same form: at most three decimals
	if err != nil || factor < 100 || factor > 100_000 {
		return 0, fmt.Errorf("%q is not a factor: write a number from 0.1 to 100, such as \"1\" or \"1.5\"", o.CPU)
	}
	return factor, nil
}

func errorOf[T any](_ T, err error) error { return err }

// position is where an attribute is set ("agent.hcl:12"), or the file where it is not.
func position(file *hcl.File, path, field string) string {
	body, ok := file.Body.(*hclsyntax.Body)
	if !ok {
		return path
	}
	at := func(r hcl.Range) string { return fmt.Sprintf("%s:%d", path, r.Start.Line) }
	block, name, nested := strings.Cut(field, ".")
	if attr, ok := body.Attributes[block]; ok && !nested {
		return at(attr.SrcRange)
	}
	for _, b := range body.Blocks {
		if b.Type != block {
			continue
		}
		if attr, ok := b.Body.Attributes[name]; ok {
			return at(attr.SrcRange)
		}
		return at(b.TypeRange)
	}
	return path
}

// diagnosticsError makes one error of what HCL found, a line each.
func diagnosticsError(file *hcl.File, diags hcl.Diagnostics) error {
	var all []error
	for _, d := range diags {
		if d.Severity != hcl.DiagError {
			continue
		}
		text := d.Summary
		if d.Detail != "" {
			text += ": " + d.Detail
		}
		if d.Subject != nil {
			text = fmt.Sprintf("%s:%d: %s%s", d.Subject.Filename, d.Subject.Start.Line, attributeAt(file, *d.Subject), text)
		}
		all = append(all, fault.New(fault.Invalid, "%s", text))
	}
	return errors.Join(all...)
}

// attributeAt names the attribute that a range is in ("pool.size: "), "" if it is in none.
func attributeAt(file *hcl.File, r hcl.Range) string {
	if file == nil {
		return ""
	}
	body, ok := file.Body.(*hclsyntax.Body)
	if !ok {
		return ""
	}
	find := func(prefix string, attributes hclsyntax.Attributes) string {
		for _, a := range attributes {
			if a.SrcRange.Overlaps(r) {
				return prefix + a.Name + ": "
			}
		}
		return ""
	}
	name := find("", body.Attributes)
	for _, b := range body.Blocks {
		if name == "" {
			name = find(b.Type+".", b.Body.Attributes)
		}
	}
	return name
}
