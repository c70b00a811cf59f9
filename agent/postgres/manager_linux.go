package postgres

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/reflejo/terraform-provider-reflejo/agent/database"
	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
	"github.com/reflejo/terraform-provider-reflejo/agent/guard"
	"github.com/reflejo/terraform-provider-reflejo/agent/vserver"
)

var (
	_ database.Clusters  = (*Manager)(nil)
	_ database.Inspector = (*Manager)(nil)
)

// Manager is the edge. Safe for concurrent use; for one cluster, one changing call at a time.
type Manager struct{ cfg Config }

// Open makes the directories.
func Open(cfg Config) (*Manager, error) {
	if cfg.Log == nil {
		cfg.Log = hclog.NewNullLogger()
	}
	for _, d := range []string{cfg.RunDir, cfg.StateDir} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return nil, fmt.Errorf("make directory of databases: %w", err)
		}
	}
	return &Manager{cfg: cfg}, nil
}

func (m *Manager) guard(l layout) *guard.Client {
	return &guard.Client{Dir: l.guard, Program: m.cfg.Guard}
}

// maxOutput bounds what a program in a server may say to us.
const maxOutput = 256 << 10

// bounded keeps the first bytes of what is written to it.
type bounded struct{ bytes.Buffer }

func (b *bounded) Write(p []byte) (int, error) {
	if room := maxOutput - b.Len(); room > 0 {
		_, _ = b.Buffer.Write(p[:min(room, len(p))])
	}
	return len(p), nil
}

// script runs a shell script in a server and returns what it printed. An exit code other
// than 0 is fault.Precondition.
func (m *Manager) script(ctx context.Context, server, user, text, stdin string, args ...string) (string, error) {
	out, code, err := m.try(ctx, server, user, text, stdin, args...)
	if err == nil && code != 0 {
		err = fault.New(fault.Precondition, "exit code %d: %s", code, refusal(out))
	}
	return out, err
}

func (m *Manager) try(ctx context.Context, server, user, text, stdin string, args ...string) (string, int, error) {
	var out bounded
	cmd := vserver.Command{
		Argv: append([]string{"/bin/sh", "-c", text, "sh"}, args...), User: user, Env: []string{"LC_ALL=C"},
		Stdout: &out, Stderr: &out,
	}
	if stdin != "" {
		cmd.Stdin = strings.NewReader(stdin)
	}
	code, err := m.cfg.Servers.Exec(ctx, server, cmd)
	return out.String(), code, err
}

// Versions implements database.Inspector.
func (m *Manager) Versions(ctx context.Context, server string) ([]int, error) {
	all, err := m.versions(ctx, server)
	if err != nil {
		return nil, err
	}
	majors := make([]int, 0, len(all))
	for _, v := range all {
		majors = append(majors, v.major)
	}
	return majors, nil
}

func (m *Manager) versions(ctx context.Context, server string) ([]version, error) {
	out, err := m.script(ctx, server, "root", findVersions, "")
	if err != nil {
		return nil, fmt.Errorf("list PostgreSQL of server %s: %w", server, err)
	}
	return parseVersions(out), nil
}

// bin is where the programs of a major are in a server.
func (m *Manager) bin(ctx context.Context, server string, major int) (string, error) {
	all, err := m.versions(ctx, server)
	if err != nil {
		return "", err
	}
	i := slices.IndexFunc(all, func(v version) bool { return v.major == major })
	if i < 0 {
		var have []string
		for _, v := range all {
			have = append(have, fmt.Sprint(v.major))
		}
		if len(have) == 0 {
			have = []string{"none"}
		}
		return "", fault.Field("pg_major", "find PostgreSQL %d in server %s: its image has %s", major, server, strings.Join(have, ", "))
	}
	return all[i].bin, nil
}

// Check implements database.Inspector. PostgreSQL itself looks at every value, started for
// that alone and without a cluster.
func (m *Manager) Check(ctx context.Context, server string, major int, was, want map[string]string) (database.Effect, error) {
	bin, err := m.bin(ctx, server, major)
	if err != nil {
		return "", err
	}
	out, err := m.script(ctx, server, systemUser, `exec "$1/postgres" --describe-config`, "", bin)
	if err != nil {
		return "", fmt.Errorf("list parameters of PostgreSQL %d: %w", major, err)
	}
	contexts := parseContexts(out)
	var all []string
	for name, value := range want {
		if err := refuse(contexts, name); err != nil {
			return "", err
		}
		all = append(all, "-c", name+"="+value)
	}
	if _, code, err := m.tryParameters(ctx, server, bin, all); err != nil {
		return "", err
	} else if code != 0 {
		return "", m.blame(ctx, server, bin, want)
	}
	return effect(contexts, was, want), nil
}

func (m *Manager) tryParameters(ctx context.Context, server, bin string, parameters []string) (out string, code int, err error) {
	return m.try(ctx, server, systemUser, `bin="$1"; shift; exec "$bin/postgres" -D /tmp -c config_file=/dev/null "$@" -C max_connections`, "", append([]string{bin}, parameters...)...)
}

// blame finds the parameter that PostgreSQL does not take.
func (m *Manager) blame(ctx context.Context, server, bin string, want map[string]string) error {
	for name, value := range want {
		out, code, err := m.tryParameters(ctx, server, bin, []string{"-c", name + "=" + value})
		if err != nil {
			return err
		}
		if code != 0 {
			return fault.Field("parameters."+name, "parameter %s: PostgreSQL says: %s", name, refusal(out))
		}
	}
	return fault.Field("parameters", "parameters: PostgreSQL takes each, but not all together")
}

// mask makes the image's own service be none: two that start one cluster would be one too many.
const mask = `
d=/etc/systemd/system
if [ -d "$d" ]; then
	for u in postgresql.service postgresql@.service "postgresql-$1.service"; do ln -sfn /dev/null "$d/$u"; done
	if [ -d /run/systemd/system ]; then
		systemctl daemon-reload || true
		systemctl stop postgresql.service "postgresql-$1.service" 'postgresql@*.service' || true
	fi
fi
parent=$(dirname "$2")
mkdir -p "$parent"
chown postgres: "$parent"
chown postgres: "$(dirname "$parent")"
mkdir -p "$3"
`

// initialize makes a cluster under another name first: what has the right name is whole.
const initialize = `
set -eu
umask 077
bin="$1" data="$2"
if [ -e "$data" ]; then exit 0; fi
rm -rf "$data.half" "$data.password"
cat >"$data.password"
locale=C.UTF-8
"$bin/initdb" -D "$data.half" --data-checksums --encoding=UTF8 --locale=$locale -U reflejo --pwfile="$data.password" --auth=scram-sha-256 >/dev/null
rm -f "$data.password"
mv "$data.half" "$data"
sync "$data" "$(dirname "$data")" 2>/dev/null || sync
`

// Create implements database.Clusters.
func (m *Manager) Create(ctx context.Context, c database.Cluster) (string, error) {
	l := m.cfg.layout(c)
	bin, err := m.bin(ctx, c.Server, c.Major)
	if err != nil {
		return "", err
	}
	if _, err := m.script(ctx, c.Server, "root", mask, "", fmt.Sprint(c.Major), l.data, l.share); err != nil {
		return "", fmt.Errorf("prepare server %s for database %s: %w", c.Server, c.Name, err)
	}
	if _, err := m.script(ctx, c.Server, systemUser, initialize, c.Admin+"\n", bin, l.data); err != nil {
		return "", fmt.Errorf("make cluster of database %s: %w", c.Name, err)
	}
	d, err := m.ControlData(ctx, c)
	if err != nil {
		return "", err
	}
	if !d.Checksums {
		return "", fault.New(fault.Precondition, "make cluster of database %s: it has no checksums", c.Name)
	}
	return d.Identity, nil
}

// ControlData reads the control file of a cluster in a running server, whether the cluster
// runs or not. fault.NotFound: there is no cluster.
func (m *Manager) ControlData(ctx context.Context, c database.Cluster) (ControlData, error) {
	l := m.cfg.layout(c)
	bin, err := m.bin(ctx, c.Server, c.Major)
	if err != nil {
		return ControlData{}, err
	}
	const absent = 44
	out, code, err := m.try(ctx, c.Server, systemUser, fmt.Sprintf(`[ -e "$2/PG_VERSION" ] || exit %d; exec "$1/pg_controldata" -D "$2"`, absent), "", bin, l.data)
	switch {
	case err != nil:
		return ControlData{}, fmt.Errorf("read control data of database %s: %w", c.Name, err)
	case code == absent:
		return ControlData{}, fault.New(fault.NotFound, "read control data of database %s: server %s has no files of it", c.Name, c.Server)
	case code != 0:
		return ControlData{}, fault.New(fault.Precondition, "read control data of database %s: %s", c.Name, refusal(out))
	}
	return ParseControlData(out)
}

// Inspect implements database.Clusters.
func (m *Manager) Inspect(ctx context.Context, c database.Cluster) (database.Condition, error) {
	var h database.Condition
	s, err := m.guard(m.cfg.layout(c)).State(ctx)
	switch {
	case fault.Is(err, fault.Unavailable):
	case err != nil:
		return h, fmt.Errorf("inspect database %s: %w", c.Name, err)
	default:
		h.Running, h.Started = s.Phase == guard.Running, s.Started
		if s.Phase == guard.Waiting {
			h.Problem = "it does not run: " + s.Last
		}
	}
	d, err := m.ControlData(ctx, c)
	switch {
	case fault.Is(err, fault.NotFound):
		return h, nil
	case err != nil:
		return h, err
	}
	h.Made, h.Identity = true, d.Identity
	if c.Identity != "" && d.Identity != c.Identity {
		h.Problem = fmt.Sprintf("its files are of another cluster: system identifier %s, not %s", d.Identity, c.Identity)
	}
	if h.Running && h.Problem == "" {
		h.Problem = m.problem(ctx, c)
	}
	return h, nil
}

// problem says what of a running cluster's settings is not the agent's.
func (m *Manager) problem(ctx context.Context, c database.Cluster) string {
	have, err := m.settings(ctx, c)
	if err != nil {
		return "it does not answer: " + err.Error()
	}
	if all := different(relied(c, m.cfg.layout(c)), have); len(all) > 0 {
		return strings.Join(all, "; ")
	}
	return ""
}

// Stop implements database.Clusters.
func (m *Manager) Stop(ctx context.Context, id string, limit time.Duration) error {
	if err := m.guard(m.cfg.layout(database.Cluster{ID: id})).Quit(ctx, limit); err != nil {
		return fmt.Errorf("stop database %s: %w", id, err)
	}
	return nil
}

// Fence ends everything of a database at once; nothing of it is left when it returns.
func (m *Manager) Fence(ctx context.Context, id string) error {
	if err := m.guard(m.cfg.layout(database.Cluster{ID: id})).Fence(ctx); err != nil {
		return fmt.Errorf("fence database %s: %w", id, err)
	}
	return nil
}

// stopLimit is how long a clean stop may take before a restart or a removal is forced.
const stopLimit = time.Minute

// Remove implements database.Clusters.
func (m *Manager) Remove(ctx context.Context, c database.Cluster) error {
	l := m.cfg.layout(c)
	if err := m.guard(l).Quit(ctx, 0); err != nil {
		return fmt.Errorf("remove database %s: %w", c.Name, err)
	}
	_, err := m.script(ctx, c.Server, "root", `rm -rf "$1" "$1.half" "$1.password"; umount "$2" 2>/dev/null; rmdir "$2" 2>/dev/null; true`, "", l.data, l.share)
	if err != nil && !fault.Is(err, fault.Precondition) && !fault.Is(err, fault.NotFound) {
		return fmt.Errorf("remove database %s: %w", c.Name, err)
	}
	if err := unmountShared(l.shared); err != nil {
		return fmt.Errorf("remove database %s: %w", c.Name, err)
	}
	return errors.Join(os.RemoveAll(path.Dir(l.guard)), os.RemoveAll(l.keys))
}

// Log opens what postgres printed, the newest file.
func (m *Manager) Log(id string) (io.ReadCloser, error) {
	f, err := os.Open(m.cfg.layout(database.Cluster{ID: id}).log)
	if err != nil {
		return nil, fmt.Errorf("open log of database %s: %w", id, err)
	}
	return f, nil
}

// Wait implements database.Inspector.
func (m *Manager) Wait(ctx context.Context, id string) error {
	err := m.guard(m.cfg.layout(database.Cluster{ID: id})).Watch(ctx, func(guard.State) {})
	if fault.Is(err, fault.Unavailable) {
		return nil
	}
	return err
}
