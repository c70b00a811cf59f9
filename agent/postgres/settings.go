package postgres

import (
	"maps"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/reflejo/terraform-provider-reflejo/agent/database"
)

// relied are the settings that the agent relies on, as pg_settings shows them. On the
// command line they beat every file.
func relied(c database.Cluster, l layout) map[string]string {
	return map[string]string{
		"config_file": path.Join(l.share, l.settings),
		"hba_file":    path.Join(l.share, l.access),
		"ident_file":  path.Join(l.share, l.people),

		"port":                    strconv.Itoa(c.Port),
		"listen_addresses":        "*", // the filter decides who gets here, pg_hba.conf whom it serves
		"unix_socket_directories": path.Join(l.share, l.sockets),
		"unix_socket_permissions": "0700",
		"cluster_name":            c.Name,

		// Everything is logged, and a crash is the guard's business.
		"wal_level":           "replica",
		"fsync":               "on",
		"full_page_writes":    "on",
		"wal_log_hints":       "on",
		"hot_standby":         "on",
		"archive_mode":        "off",
		"restart_after_crash": "off",

		// What was acknowledged is there, and damage is seen.
		"data_sync_retry":         "off",
		"ignore_checksum_failure": "off",
		"zero_damaged_pages":      "off",
		"ignore_invalid_pages":    "off",

		"password_encryption":    "scram-sha-256",
		"max_slot_wal_keep_size": "-1",
	}
}

// commandLine is how postgres is started.
func commandLine(bin string, c database.Cluster, l layout) []string {
	argv := []string{path.Join(bin, "postgres"), "-D", l.data}
	settings := relied(c, l)
	for _, name := range slices.Sorted(maps.Keys(settings)) {
		argv = append(argv, "-c", name+"="+settings[name])
	}
	return argv
}

// settingsFile is postgresql.conf: what can be reloaded of the agent's, then the user's own.
func settingsFile(c database.Cluster, l layout) string {
	var b strings.Builder
	b.WriteString("# Written by reflejo; changes are lost. Use the database's parameters.\n")
	line := func(name, value string) { b.WriteString(name + " = " + quoteSetting(value) + "\n") }
	line("log_destination", "stderr")
	line("log_line_prefix", "%m [%p] ")
	if c.Clients.TLS == database.TLSOff {
		line("ssl", "off")
	} else {
		line("ssl", "on")
		line("ssl_cert_file", path.Join(l.share, l.cert))
		line("ssl_key_file", path.Join(l.share, l.key))
		line("ssl_min_protocol_version", "TLSv1.2")
	}
	for _, name := range slices.Sorted(maps.Keys(c.Parameters)) {
		line(name, c.Parameters[name])
	}
	return b.String()
}

// quoteSetting writes a value so that postgresql.conf's reader has it back.
func quoteSetting(v string) string {
	return "'" + strings.NewReplacer(`\`, `\\`, "'", "''").Replace(v) + "'"
}

// quoteName and quoteText write SQL.
func quoteName(s string) string { return `"` + strings.ReplaceAll(s, `"`, `""`) + `"` }

// quoteText is right for any text without zero bytes, whatever standard_conforming_strings is.
func quoteText(s string) string {
	return `E'` + strings.NewReplacer(`\`, `\\`, "'", `\'`).Replace(s) + `'`
}
