package database

import (
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
)

// Spec is what a user asked a database to be. All but ID, Name, Server and Major can change
// while it lives.
type Spec struct {
	ID                 string // UUID made by the client before it asks, so that a retry is the same request
	Name               string // of the SQL database; unique on the host
	Server             string // id of the virtual server
	Port               int    // on the host's address and in the server
	Owner              string // role that owns the SQL database and may log in
	Password           string // of Owner; never kept, only what proves it is
	PasswordVersion    string // the user's version of it, which is returned
	Parameters         map[string]string
	Major              int // PostgreSQL's; 0 at creation means the newest that the server's image has
	Clients            Clients
	DeletionProtection bool
}

// Clients says who may connect and how.
type Clients struct {
	CIDRs []netip.Prefix // none: nobody but the agent
	TLS   TLS            // "" means TLSRequire
}

// TLS is whether clients encrypt.
type TLS string

// The kinds of clients.
const (
	TLSRequire TLS = "require" // those without TLS are rejected
	TLSAllow   TLS = "allow"
	TLSOff     TLS = "off"
)

// Bounds on what is asked for.
const (
	OldestMajor = 13

	maxName       = 63 // PostgreSQL's NAMEDATALEN less one
	maxPassword   = 1024
	maxVersion    = 256
	maxParameters = 200
	maxValue      = 4096
	maxRanges     = 200
)

// WithDefaults fills what was left out.
func (s Spec) WithDefaults() Spec {
	s = s.clone()
	if s.Port == 0 {
		s.Port = 5432
	}
	if s.Clients.TLS == "" {
		s.Clients.TLS = TLSRequire
	}
	return s
}

// Validate refuses what can never be: the error names the attribute. Values of parameters
// are PostgreSQL's to check (Inspector.Check).
func (s Spec) Validate() error {
	switch {
	case !validID(s.ID):
		return fault.Field("id", "database id %q: want a UUID in lower case", s.ID)
	case !validID(s.Server):
		return fault.Field("server_id", "database %s: server id %q: want a UUID in lower case", s.Name, s.Server)
	case s.Port < 1 || s.Port > 65535:
		return fault.Field("port", "database %s: port %d: want 1 … 65535", s.Name, s.Port)
	case s.Major != 0 && (s.Major < OldestMajor || s.Major > 99):
		return fault.Field("pg_major", "database %s: PostgreSQL %d: want %d or newer", s.Name, s.Major, OldestMajor)
	case len(s.Password) > maxPassword || strings.ContainsRune(s.Password, 0):
		return fault.Field("password_wo", "database %s: the password is longer than %d bytes or has a zero byte", s.Name, maxPassword)
	case len(s.PasswordVersion) > maxVersion:
		return fault.Field("password_wo_version", "database %s: the password's version is longer than %d bytes", s.Name, maxVersion)
	}
	if err := checkName("name", s.Name); err != nil {
		return err
	}
	if err := checkName("owner", s.Owner); err != nil {
		return err
	}
	if err := s.Clients.validate(s.Name); err != nil {
		return err
	}
	return validateParameters(s.Name, s.Parameters)
}

// taken are names that PostgreSQL or the agent has.
var taken = []string{"postgres", "template0", "template1", "public", "none", "user", "current_user", "session_user", "current_role", "reflejo", "replication", "all", "sameuser", "samerole", "samegroup"}

// checkName allows what needs no quoting in connection strings, shells and access rules.
func checkName(field, name string) error {
	if name == "" || len(name) > maxName {
		return fault.Field(field, "%s %q: want 1 to %d characters", field, name, maxName)
	}
	for i, c := range name {
		letter := c >= 'a' && c <= 'z'
		if !letter && (i == 0 || !(c >= '0' && c <= '9' || c == '_' || c == '-')) {
			return fault.Field(field, "%s %q: want lower-case letters, digits, _ and -, a letter first", field, name)
		}
	}
	if slices.Contains(taken, name) || strings.HasPrefix(name, "pg_") || strings.HasPrefix(name, "reflejo") {
		return fault.Field(field, "%s %q: the name is PostgreSQL's or the agent's own", field, name)
	}
	return nil
}

func (c Clients) validate(name string) error {
	if len(c.CIDRs) > maxRanges {
		return fault.Field("clients.cidrs", "database %s: %d client ranges, at most %d are possible", name, len(c.CIDRs), maxRanges)
	}
	for _, p := range c.CIDRs {
		if !p.IsValid() || p != p.Masked() {
			return fault.Field("clients.cidrs", "database %s: client range %s: want an address range without bits set beyond its length", name, p)
		}
	}
	switch c.TLS {
	case TLSRequire, TLSAllow, TLSOff:
		return nil
	}
	return fault.Field("clients.tls", "database %s: clients.tls %q: want require, allow or off", name, c.TLS)
}

func validateParameters(name string, parameters map[string]string) error {
	if len(parameters) > maxParameters {
		return fault.Field("parameters", "database %s: %d parameters, at most %d are possible", name, len(parameters), maxParameters)
	}
	for _, k := range slices.Sorted(maps.Keys(parameters)) {
		field := "parameters." + k
		if !validParameter(k) {
			return fault.Field("parameters", "database %s: parameter %q: want lower-case letters, digits and _, with a dot in an extension's", name, k)
		}
		if why := ownedBecause(k); why != "" {
			return fault.Field(field, "database %s: parameter %s can't be set: %s", name, k, why)
		}
		if v := parameters[k]; len(v) > maxValue || strings.ContainsAny(v, "\x00\n\r") {
			return fault.Field(field, "database %s: parameter %s: the value is longer than %d bytes or more than one line", name, k, maxValue)
		}
	}
	return nil
}

func validParameter(k string) bool {
	if k == "" || len(k) > maxName || strings.Count(k, ".") > 1 {
		return false
	}
	for part := range strings.SplitSeq(k, ".") {
		for i, c := range part {
			if !(c >= 'a' && c <= 'z' || c == '_' || i > 0 && c >= '0' && c <= '9') {
				return false
			}
		}
		if part == "" {
			return false
		}
	}
	return true
}

// owned are the parameters that the agent sets or relies on, each with the reason that
// people are told. A name that ends in * is a family.
var owned = map[string]string{
	"data_directory": "the agent decides where the cluster is", "config_file": "the agent writes it", "hba_file": "the agent writes it from clients", "ident_file": "the agent writes it",
	"external_pid_file": "the agent decides where files are", "unix_socket_*": "the agent talks to the database through a socket of its own", "listen_addresses": "use clients.cidrs",
	"port": "use the database's port", "bonjour*": "a database does not announce itself", "cluster_name": "it is the database's name",
	"ssl*": "use clients.tls", "password_encryption": "the agent keeps passwords as SCRAM",
	"wal_level": "mirroring needs replica", "fsync": "what is acknowledged must be on stable storage", "full_page_writes": "a crash would damage pages", "wal_log_hints": "the agent sets it",
	"data_sync_retry": "a failed write must not be taken for done", "ignore_checksum_failure": "damage must not be passed over", "zero_damaged_pages": "damage must not be passed over",
	"ignore_invalid_pages": "damage must not be passed over", "ignore_system_indexes": "the agent sets it",
	"restart_after_crash": "the guard decides about restarts", "remove_temp_files_after_crash": "the guard decides about restarts",
	"synchronous_standby_names": "mirroring owns it", "archive_*": "mirroring owns it", "restore_command": "mirroring owns it", "recovery_*": "mirroring owns it", "primary_*": "mirroring owns it",
	"hot_standby": "mirroring owns it", "hot_standby_feedback": "mirroring owns it", "promote_trigger_file": "mirroring owns it", "max_slot_wal_keep_size": "mirroring owns it",
	"idle_replication_slot_timeout": "mirroring owns it", "max_standby_*": "mirroring owns it", "wal_receiver_*": "mirroring owns it", "sync_replication_slots": "mirroring owns it",
	"log_destination": "the guard keeps what the server prints", "event_source": "it is for another system", "restrict_nonsystem_relation_kind": "the agent sets it",
	"allow_alter_system": "the agent sets it", "post_auth_delay": "it is for developers", "pre_auth_delay": "it is for developers", "debug_*": "it is for developers", "include*": "the agent writes the file",
}

// ownedBecause is why a parameter is not the user's; "" if it is.
func ownedBecause(name string) string {
	if why := owned[name]; why != "" {
		return why
	}
	for i := range len(name) + 1 {
		if why := owned[name[:i]+"*"]; why != "" {
			return why
		}
	}
	return ""
}

// clone is a copy that shares nothing that can be written through; empty collections are
// nil in it, so that equal specs are deeply equal.
func (s Spec) clone() Spec {
	s.Parameters, s.Clients.CIDRs = maps.Clone(s.Parameters), slices.Clone(s.Clients.CIDRs)
	if len(s.Parameters) == 0 {
		s.Parameters = nil
	}
	if len(s.Clients.CIDRs) == 0 {
		s.Clients.CIDRs = nil
	}
	return s
}

func validID(id string) bool {
	if len(id) != 36 {
		return false
	}
	for i, c := range id {
		dash := i == 8 || i == 13 || i == 18 || i == 23
		if dash != (c == '-') || !dash && !(c >= '0' && c <= '9' || c >= 'a' && c <= 'f') {
			return false
		}
	}
	return true
}
