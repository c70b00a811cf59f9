package postgres

import (
	"bufio"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
)

// version is one PostgreSQL that a server's image has.
type version struct {
	major int
	bin   string // directory of its programs
}

// places are where distributions put PostgreSQL; the part in brackets is the major.
var places = []*regexp.Regexp{
	regexp.MustCompile(`^/usr/lib/postgresql/([0-9]{2})/bin/postgres$`), // Debian
	regexp.MustCompile(`^/usr/pgsql-([0-9]{2})/bin/postgres$`),          // PGDG for Red Hat
	regexp.MustCompile(`^/usr/libexec/postgresql([0-9]{2})/postgres$`),  // Alpine
	regexp.MustCompile(`^/usr/lib/postgresql([0-9]{2})/bin/postgres$`),  // SUSE
}

// findVersions is the shell pattern list that finds them.
const findVersions = `ls -d /usr/lib/postgresql/*/bin/postgres /usr/pgsql-*/bin/postgres /usr/libexec/postgresql*/postgres /usr/lib/postgresql*/bin/postgres 2>/dev/null; true`

// parseVersions reads a list of paths, newest major first.
func parseVersions(out string) []version {
	var all []version
	for line := range strings.Lines(out) {
		line = strings.TrimSpace(line)
		for _, p := range places {
			if m := p.FindStringSubmatch(line); m != nil {
				major, _ := strconv.Atoi(m[1])
				if !slices.ContainsFunc(all, func(v version) bool { return v.major == major }) {
					all = append(all, version{major, path.Dir(line)})
				}
			}
		}
	}
	slices.SortFunc(all, func(a, b version) int { return b.major - a.major })
	return all
}

// ControlData is what pg_controldata says of a cluster.
type ControlData struct {
	Identity   string // system identifier
	State      string // "in production", "shut down", …
	Timeline   uint32 // of the last checkpoint
	Checkpoint string // LSN
	Redo       string // LSN from which recovery begins
	Checksums  bool
	Fields     map[string]string // all of it
}

// ParseControlData reads the output of pg_controldata in the C locale.
func ParseControlData(out string) (ControlData, error) {
	d := ControlData{Fields: map[string]string{}}
	for s := bufio.NewScanner(strings.NewReader(out)); s.Scan(); {
		if name, value, ok := strings.Cut(s.Text(), ":"); ok {
			d.Fields[strings.TrimSpace(name)] = strings.TrimSpace(value)
		}
	}
	d.Identity, d.State = d.Fields["Database system identifier"], d.Fields["Database cluster state"]
	d.Checkpoint, d.Redo = d.Fields["Latest checkpoint location"], d.Fields["Latest checkpoint's REDO location"]
	timeline, err := strconv.ParseUint(d.Fields["Latest checkpoint's TimeLineID"], 10, 32)
	if err != nil || d.Identity == "" || d.State == "" {
		return d, fault.New(fault.Precondition, "read control data: it is not what pg_controldata prints")
	}
	if _, err := strconv.ParseUint(d.Identity, 10, 64); err != nil {
		return d, fault.New(fault.Precondition, "read control data: system identifier %q is no number", d.Identity)
	}
	d.Timeline = uint32(timeline)
	d.Checksums = d.Fields["Data page checksum version"] != "0" && d.Fields["Data page checksum version"] != ""
	return d, nil
}

// parseContexts reads `postgres --describe-config`: when a parameter can change, by its name.
func parseContexts(out string) map[string]string {
	all := map[string]string{}
	for line := range strings.Lines(out) {
		if f := strings.SplitN(line, "\t", 3); len(f) == 3 {
			all[f[0]] = strings.ToLower(f[1])
		}
	}
	return all
}
