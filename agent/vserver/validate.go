package vserver

import (
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/reflejo/terraform-provider-reflejo/agent/cpuset"
	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
	"github.com/reflejo/terraform-provider-reflejo/agent/schedule"
)

// Bounds of a Spec. They keep nonsense out; what a host can really give is the ledger's word.
const (
	minMilliCores  = 10
	maxMilliCores  = 4096 * 1000
	minWeight      = 1
	maxWeight      = 10000
	minMemory      = 16 << 20
	maxMemory      = 64 << 40
	minDisk        = 64 << 20
	maxDisk        = 64 << 40
	minDiskRate    = 64 << 10 // bytes per second; below this a file system cannot even be mounted in time
	minDiskIOPS    = 10
	minBitrate     = 64_000
	maxBitrate     = 1_000_000_000_000
	minProcesses   = 16
	maxProcesses   = 4 << 20
	maxNICs        = 8
	maxPublish     = 128
	maxAllow       = 128
	maxLabels      = 64
	maxUserData    = 256 << 10
	maxTarget      = 1024
	maxShutdown    = time.Hour
	maxDNSEntries  = 6
	maxDeviceValue = 1 << 53 // rates: what JSON clients can still say exactly
)

// Defaults of a Spec, for what a user left out.
const (
	DefaultMilliCores      = 1000
	DefaultWeight          = 100
	DefaultMemory          = 512 << 20
	DefaultDisk            = 10 << 30
	DefaultProcesses       = 4096
	DefaultShutdownTimeout = 30 * time.Second
	DefaultMaxDowntime     = 5 * time.Second
)

var (
	idPattern       = regexp.MustCompile(`^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$`)
	namePattern     = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)
	hostnamePattern = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?(\.[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?)*$`)
	nicPattern      = regexp.MustCompile(`^[a-z][a-z0-9]{0,14}$`)
	zonePattern     = regexp.MustCompile(`^[A-Za-z0-9_+-]+(/[A-Za-z0-9_+-]+){0,2}$`)
	keyPattern      = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9._/-]{0,61}[A-Za-z0-9])?$`)
)

// ValidID reports whether id is a UUID in lower case, the only form that edges are given.
func ValidID(id string) bool { return idPattern.MatchString(id) }

// ValidName reports whether name is a DNS label in lower case.
func ValidName(name string) bool { return namePattern.MatchString(name) }

// WithDefaults is the spec with everything filled in that a user may leave out.
func (s Spec) WithDefaults() Spec {
	or := func(v *int64, d int64) {
		if *v == 0 {
			*v = d
		}
	}
	or(&s.CPU.MilliCores, DefaultMilliCores)
	or(&s.CPU.Weight, DefaultWeight)
	or(&s.Memory.Max, DefaultMemory)
	or(&s.Disk.Size, DefaultDisk)
	or(&s.Processes, DefaultProcesses)
	if s.ShutdownTimeout == 0 {
		s.ShutdownTimeout = DefaultShutdownTimeout
	}
	if len(s.Network) == 0 {
		s.Network = map[string]NIC{"eth0": {}}
	}
	return s.clone()
}

// Validate checks everything about a spec that needs no knowledge of the host. The error
// is fault.Invalid and names the attribute to blame.
func (s Spec) Validate() error {
	for _, check := range []func() error{s.validateIdentity, s.validateCPU, s.validateMemory, s.validateDisk, s.validateOS, s.validateNetwork, s.validateCopies} {
		if err := check(); err != nil {
			return err
		}
	}
	return nil
}

func (s Spec) validateIdentity() error {
	if !ValidID(s.ID) {
		return fault.Field("id", "id %q: want a UUID in lower case", s.ID)
	}
	if !ValidName(s.Name) {
		return fault.Field("name", "name %q: want a DNS label: lower-case letters, digits and inner hyphens, at most 63", s.Name)
	}
	if s.Image == "" || len(s.Image) > 256 {
		return fault.Field("image", "image: want an image's id or name")
	}
	switch s.Power {
	case PowerUnmanaged, PowerRunning, PowerStopped, PowerSuspended:
	default:
		return fault.Field("power", "power %q: want running, stopped or suspended", s.Power)
	}
	if s.ShutdownTimeout < 0 || s.ShutdownTimeout > maxShutdown {
		return fault.Field("on_destroy.shutdown_timeout", "shutdown timeout %s: want 0s … 1h", s.ShutdownTimeout)
	}
	if len(s.Labels) > maxLabels {
		return fault.Field("labels", "labels: %d given, at most %d", len(s.Labels), maxLabels)
	}
	for k, v := range s.Labels {
		if !keyPattern.MatchString(k) {
			return fault.Field("labels", "label key %q: want letters, digits, '.', '_', '/', '-', at most 63", k)
		}
		if len(v) > 255 {
			return fault.Field("labels", "label %q: value longer than 255 bytes", k)
		}
	}
	return nil
}

func (s Spec) validateCPU() error {
	c := s.CPU
	if c.MilliCores < minMilliCores || c.MilliCores > maxMilliCores {
		return fault.Field("cpu.cores", "cpu cores %s: want 0.01 … 4096", milli(c.MilliCores))
	}
	if c.Weight < minWeight || c.Weight > maxWeight {
		return fault.Field("cpu.weight", "cpu weight %d: want %d … %d", c.Weight, minWeight, maxWeight)
	}
	if c.Pin == "" {
		return nil
	}
	if len(c.Pin) > 1024 {
		return fault.Field("cpu.pin", "cpu pin: longer than 1024 bytes")
	}
	cores, err := cpuset.Parse(c.Pin)
	if err != nil {
		return fault.Field("cpu.pin", "cpu pin: %w", err)
	}
	if int64(len(cores))*1000 < c.MilliCores {
		return fault.Field("cpu.pin", "cpu pin %q: %d cores, fewer than the %s asked with cpu.cores", c.Pin, len(cores), milli(c.MilliCores))
	}
	return nil
}

func (s Spec) validateMemory() error {
	m := s.Memory
	if m.Max < minMemory || m.Max > maxMemory {
		return fault.Field("memory.max", "memory max %d bytes: want 16MiB … 64TiB", m.Max)
	}
	if m.High != 0 && (m.High < minMemory || m.High > m.Max) {
		return fault.Field("memory.high", "memory high %d bytes: want 16MiB … memory.max (%d)", m.High, m.Max)
	}
	if m.Swap < 0 || m.Swap > maxMemory {
		return fault.Field("memory.swap", "memory swap %d bytes: want 0 … 64TiB", m.Swap)
	}
	if s.Processes < minProcesses || s.Processes > maxProcesses {
		return fault.Field("processes", "processes %d: want %d … %d", s.Processes, minProcesses, maxProcesses)
	}
	return nil
}

func (s Spec) validateDisk() error {
	d := s.Disk
	if d.Size < minDisk || d.Size > maxDisk {
		return fault.Field("disk.size", "disk size %d bytes: want 64MiB … 64TiB", d.Size)
	}
	if d.Size%4096 != 0 {
		return fault.Field("disk.size", "disk size %d bytes: want a multiple of 4KiB", d.Size)
	}
	for _, r := range []struct {
		field     string
		value     int64
		low       int64
		wantWords string
	}{
		{"disk.read_bps", d.ReadBPS, minDiskRate, "at least 64KiB per second"},
		{"disk.write_bps", d.WriteBPS, minDiskRate, "at least 64KiB per second"},
		{"disk.read_iops", d.ReadIOPS, minDiskIOPS, "at least 10 per second"},
		{"disk.write_iops", d.WriteIOPS, minDiskIOPS, "at least 10 per second"},
	} {
		if r.value != 0 && (r.value < r.low || r.value > maxDeviceValue) {
			return fault.Field(r.field, "%s %d: want %s, or leave it out for no limit", r.field, r.value, r.wantWords)
		}
	}
	return nil
}

func (s Spec) validateOS() error {
	if s.Hostname != "" && (len(s.Hostname) > 64 || !hostnamePattern.MatchString(s.Hostname)) {
		return fault.Field("hostname", "hostname %q: want a host name of at most 64 characters", s.Hostname)
	}
	if s.Timezone != "" && (len(s.Timezone) > 64 || !zonePattern.MatchString(s.Timezone)) {
		return fault.Field("timezone", "timezone %q: want an IANA name like Europe/Madrid", s.Timezone)
	}
	if len(s.DNS.Servers) > maxDNSEntries || len(s.DNS.Search) > maxDNSEntries {
		return fault.Field("dns", "dns: at most %d servers and %d search domains", maxDNSEntries, maxDNSEntries)
	}
	for _, a := range s.DNS.Servers {
		if _, err := netip.ParseAddr(a); err != nil {
			return fault.Field("dns.servers", "dns server %q: want an IP address", a)
		}
	}
	for _, d := range s.DNS.Search {
		if len(d) > 253 || !hostnamePattern.MatchString(d) {
			return fault.Field("dns.search", "dns search %q: want a domain name", d)
		}
	}
	if len(s.FirstBoot.UserData) > maxUserData {
		return fault.Field("first_boot_wo", "first-boot data: %d bytes, at most %d", len(s.FirstBoot.UserData), maxUserData)
	}
	if u := s.FirstBoot.UserData; u != "" && !strings.HasPrefix(u, "#!") && !strings.HasPrefix(u, "#cloud-config") {
		return fault.Field("first_boot_wo", "first-boot data: want it to begin with #cloud-config or with #! (a script)")
	}
	if len(s.FirstBoot.Version) > 255 {
		return fault.Field("first_boot_wo_version", "first-boot version: longer than 255 bytes")
	}
	return nil
}

func (s Spec) validateCopies() error {
	for _, r := range []struct{ field, id string }{{"restore_from", s.RestoreFrom}, {"clone_of", s.CloneOf}} {
		if r.id != "" && !ValidID(r.id) {
			return fault.Field(r.field, "%s %q: want a snapshot's id, a UUID in lower case", r.field, r.id)
		}
	}
	if err := validateSchedule("snapshot_policy", s.SnapshotPolicy.Schedule, s.SnapshotPolicy.Keep); err != nil {
		return err
	}
	for i, on := range s.SnapshotPolicy.On {
		if !slices.Contains([]string{"start", "stop", "suspend"}, on) || slices.Contains(s.SnapshotPolicy.On[:i], on) {
			return fault.Field("snapshot_policy.on", "snapshot policy on %q: want start, stop or suspend, each once", on)
		}
	}
	if err := validateSchedule("backup_policy", s.BackupPolicy.Schedule, s.BackupPolicy.Keep); err != nil {
		return err
	}
	if b := s.BackupPolicy; (b.Schedule == "") != (b.Target == "") || len(b.Target) > maxTarget {
		return fault.Field("backup_policy.target", "backup policy: want a schedule and a target, such as \"s3://bucket/prefix\", of at most %d bytes", maxTarget)
	}
	return s.Migration.Validate()
}

func validateSchedule(field, cron string, keep schedule.Keep) error {
	if cron != "" {
		if _, err := schedule.Parse(cron); err != nil {
			return fault.Field(field+".schedule", "schedule %q: %w", cron, err)
		}
	}
	if err := keep.Validate(); err != nil {
		return fault.Field(field+".keep", "keep: %w", err)
	}
	return nil
}

// Validate checks how a server is to be moved.
func (m Migration) Validate() error {
	switch {
	case !slices.Contains([]string{"", MigrateWarm, MigrateCold}, m.Mode):
		return fault.Field("migration.mode", "migration mode %q: want warm or cold", m.Mode)
	case m.MaxDowntime < 0 || m.MaxDowntime > maxShutdown:
		return fault.Field("migration.max_downtime", "max downtime %s: want 0s … 1h", m.MaxDowntime)
	case m.Bandwidth != 0 && (m.Bandwidth < minBitrate || m.Bandwidth > maxBitrate):
		return fault.Field("migration.bandwidth", "migration bandwidth %d bit/s: want 64kbit … 1tbit, or leave it out for no limit", m.Bandwidth)
	}
	return nil
}

func (s Spec) validateNetwork() error {
	if len(s.Network) > maxNICs {
		return fault.Field("network", "network: %d interfaces, at most %d", len(s.Network), maxNICs)
	}
	taken := map[string]string{}
	for name, n := range s.Network {
		field := "network." + name
		if !nicPattern.MatchString(name) || name == "lo" {
			return fault.Field("network", "interface name %q: want a letter and up to 14 letters and digits, like eth0", name)
		}
		if err := n.validate(field); err != nil {
			return err
		}
		for key, p := range n.Publish {
			f := field + ".publish." + key
			slot := p.Protocol + "/" + strconv.Itoa(p.HostPort)
			if other, ok := taken[slot]; ok {
				return fault.Field(f+".host_port", "host port %s is published twice, by %s and %s", slot, other, f)
			}
			taken[slot] = f
		}
	}
	return nil
}

func (n NIC) validate(field string) error {
	if len(n.Network) > 64 {
		return fault.Field(field+".network", "network: want a network's id or name")
	}
	if n.Address != "" {
		a, err := netip.ParseAddr(n.Address)
		if err != nil || !a.Is4() {
			return fault.Field(field+".address", "address %q: want an IPv4 address", n.Address)
		}
	}
	for _, r := range []struct {
		name  string
		value int64
	}{{"ingress", n.Ingress}, {"egress", n.Egress}} {
		if r.value != 0 && (r.value < minBitrate || r.value > maxBitrate) {
			return fault.Field(field+"."+r.name, "%s %d bit/s: want 64kbit … 1tbit, or leave it out for no limit", r.name, r.value)
		}
	}
	if len(n.Publish) > maxPublish {
		return fault.Field(field+".publish", "publish: %d ports, at most %d", len(n.Publish), maxPublish)
	}
	for key, p := range n.Publish {
		if err := p.validate(field + ".publish." + key); err != nil {
			return err
		}
	}
	if len(n.Allow) > maxAllow {
		return fault.Field(field+".allow", "allow: %d rules, at most %d", len(n.Allow), maxAllow)
	}
	for i, a := range n.Allow {
		if err := a.validate(field + ".allow." + strconv.Itoa(i)); err != nil {
			return err
		}
	}
	return nil
}

func (p Publish) validate(field string) error {
	if p.Protocol != "tcp" && p.Protocol != "udp" {
		return fault.Field(field+".protocol", "protocol %q: want tcp or udp", p.Protocol)
	}
	if p.HostPort < 1 || p.HostPort > 65535 {
		return fault.Field(field+".host_port", "host port %d: want 1 … 65535", p.HostPort)
	}
	if p.Port < 1 || p.Port > 65535 {
		return fault.Field(field+".port", "port %d: want 1 … 65535", p.Port)
	}
	return nil
}

func (a Allow) validate(field string) error {
	if a.From != "" {
		p, err := netip.ParsePrefix(a.From)
		if err != nil || !p.Addr().Is4() || p.Masked() != p {
			return fault.Field(field+".from", "from %q: want an IPv4 range like 10.0.0.0/8", a.From)
		}
	}
	if !slices.Contains([]string{"", "tcp", "udp", "icmp"}, a.Protocol) {
		return fault.Field(field+".protocol", "protocol %q: want tcp, udp, icmp or none for all", a.Protocol)
	}
	if a.Ports == "" {
		return nil
	}
	if a.Protocol != "tcp" && a.Protocol != "udp" {
		return fault.Field(field+".ports", "ports %q: only with protocol tcp or udp", a.Ports)
	}
	if _, _, err := ParsePorts(a.Ports); err != nil {
		return fault.Field(field+".ports", "ports %q: %w", a.Ports, err)
	}
	return nil
}

// ParsePorts reads "5432" or "8000-8010".
func ParsePorts(s string) (low, high uint16, err error) {
	a, b, isRange := strings.Cut(s, "-")
	if !isRange {
		b = a
	}
	lo, err1 := strconv.ParseUint(a, 10, 16)
	hi, err2 := strconv.ParseUint(b, 10, 16)
	if err1 != nil || err2 != nil || lo == 0 || hi < lo {
		return 0, 0, fault.New(fault.Invalid, "want a port or a range low-high within 1 … 65535")
	}
	return uint16(lo), uint16(hi), nil
}

// milli writes thousandths as people do: 1500 → "1.5".
func milli(m int64) string {
	return strconv.FormatFloat(float64(m)/1000, 'f', -1, 64)
}
