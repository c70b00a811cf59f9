package postgres

import (
	"context"
	"fmt"
	"net"
	"path/filepath"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"golang.org/x/sys/unix"

	"github.com/reflejo/terraform-provider-reflejo/agent/database"
	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
	"github.com/reflejo/terraform-provider-reflejo/agent/guard"
)

// answerLimit is how long a question to a running cluster may take.
const answerLimit = 10 * time.Second

// Connect opens a connection of the agent's own role to a running cluster.
// fault.Unavailable: it takes none now.
func (m *Manager) Connect(ctx context.Context, c database.Cluster, base string) (*pgconn.PgConn, error) {
	l := m.cfg.layout(c)
	// All that the environment could say is said here.
	config, err := pgconn.ParseConfig("host=127.0.0.1 sslmode=disable connect_timeout=10 passfile=/dev/null target_session_attrs=any")
	if err != nil {
		return nil, fmt.Errorf("connect to database %s: %w", c.Name, err)
	}
	config.User, config.Password, config.Database, config.Fallbacks, config.TLSConfig = adminRole, c.Admin, base, nil, nil
	config.RuntimeParams = map[string]string{"application_name": "reflejo-agent", "search_path": "pg_catalog", "statement_timeout": "0"}
	config.DialFunc = func(ctx context.Context, _, _ string) (net.Conn, error) {
		return dialBeneath(ctx, l.shared, filepath.Join(l.sockets, socketName(c.Port)))
	}
	conn, err := pgconn.ConnectConfig(ctx, config)
	if err != nil {
		if sqlState(err) == "" {
			err = fault.Wrap(fault.Unavailable, err)
		}
		return nil, fmt.Errorf("connect to database %s: %w", c.Name, classify(err))
	}
	return conn, nil
}

// dialBeneath connects to a socket in a directory that others may write to: a link there
// leads nowhere.
func dialBeneath(ctx context.Context, dir, name string) (net.Conn, error) {
	root, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", dir, err)
	}
	defer func() { _ = unix.Close(root) }()
	fd, err := unix.Openat2(root, name, &unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS})
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", name, err)
	}
	defer func() { _ = unix.Close(fd) }()
	return (&net.Dialer{}).DialContext(ctx, "unix", fmt.Sprintf("/proc/self/fd/%d", fd))
}

// query runs one statement of the agent's own and returns its rows as text.
func query(ctx context.Context, conn *pgconn.PgConn, sql string) ([][]string, error) {
	results, err := conn.Exec(ctx, sql).ReadAll()
	if err != nil {
		return nil, classify(err)
	}
	var rows [][]string
	for _, r := range results {
		if r.Err != nil {
			return nil, classify(r.Err)
		}
		for _, values := range r.Rows {
			row := make([]string, len(values))
			for i, v := range values {
				row[i] = string(v)
			}
			rows = append(rows, row)
		}
	}
	return rows, nil
}

// asked opens a connection for one query.
func (m *Manager) asked(ctx context.Context, c database.Cluster, sql string) ([][]string, error) {
	ctx, cancel := context.WithTimeout(ctx, answerLimit)
	defer cancel()
	conn, err := m.Connect(ctx, c, adminBase)
	if err != nil {
		return nil, err
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	return query(ctx, conn, sql)
}

// answers waits until a cluster that was started takes connections: recovery may take
// long, so ctx is the limit.
func (m *Manager) answers(ctx context.Context, c database.Cluster, g *guard.Client) error {
	for {
		_, err := m.asked(ctx, c, "SELECT 1")
		if err == nil || !fault.Is(err, fault.Unavailable) {
			return err
		}
		s, serr := g.State(ctx)
		if serr != nil {
			return serr
		}
		if s.Phase == guard.Waiting || s.Phase == guard.Stopped {
			return m.withLog(fault.New(fault.Unavailable, "it has ended: %s", s.Last), m.cfg.layout(c))
		}
		if err := rest(ctx, 10*time.Millisecond); err != nil {
			return fmt.Errorf("wait until it takes connections: %w", err)
		}
	}
}

// loaded is when new connections' settings were read.
func (m *Manager) loaded(ctx context.Context, c database.Cluster) (string, error) {
	rows, err := m.asked(ctx, c, "SELECT pg_conf_load_time()")
	if err != nil || len(rows) != 1 {
		return "", err
	}
	return rows[0][0], nil
}

// settings are those of a running cluster.
func (m *Manager) settings(ctx context.Context, c database.Cluster) (map[string]string, error) {
	rows, err := m.asked(ctx, c, "SELECT name, setting FROM pg_settings")
	have := map[string]string{}
	for _, r := range rows {
		have[r[0]] = r[1]
	}
	return have, err
}

// pending reports whether a running cluster has settings that only a restart changes.
func (m *Manager) pending(ctx context.Context, c database.Cluster) (bool, error) {
	rows, err := m.asked(ctx, c, "SELECT name FROM pg_settings WHERE pending_restart")
	if err != nil {
		return false, err
	}
	have, err := m.settings(ctx, c)
	if err != nil {
		return false, err
	}
	return len(rows) > 0 || len(different(relied(c, m.cfg.layout(c)), have)) > 0, nil
}

// Grant implements database.Clusters.
func (m *Manager) Grant(ctx context.Context, c database.Cluster) error {
	if err := m.grant(ctx, c); err != nil {
		return fmt.Errorf("grant database %s to %s: %w", c.Name, c.Owner, err)
	}
	return nil
}

func (m *Manager) grant(ctx context.Context, c database.Cluster) error {
	conn, err := m.Connect(ctx, c, adminBase)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	roles, err := query(ctx, conn, "SELECT COALESCE(rolpassword, ''), rolcanlogin FROM pg_authid WHERE rolname = "+quoteText(c.Owner))
	if err != nil {
		return err
	}
	for _, sql := range ownerStatements(c, roles) {
		if _, err := query(ctx, conn, sql); err != nil {
			return err
		}
	}
	bases, err := query(ctx, conn, "SELECT r.rolname FROM pg_database d JOIN pg_roles r ON r.oid = d.datdba WHERE d.datname = "+quoteText(c.Name))
	if err != nil {
		return err
	}
	switch {
	case len(bases) == 0:
		_, err = query(ctx, conn, "CREATE DATABASE "+quoteName(c.Name)+" OWNER "+quoteName(c.Owner))
	case bases[0][0] != c.Owner:
		err = m.pass(ctx, c, bases[0][0])
	}
	return err
}

// pass gives what the former owner has in the database to the owner. The former keeps its
// name, as what it has elsewhere may be somebody's, but may not log in any more.
func (m *Manager) pass(ctx context.Context, c database.Cluster, former string) error {
	conn, err := m.Connect(ctx, c, c.Name)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	sql := "ALTER DATABASE " + quoteName(c.Name) + " OWNER TO " + quoteName(c.Owner)
	if former != adminRole {
		sql = "REASSIGN OWNED BY " + quoteName(former) + " TO " + quoteName(c.Owner) + "; ALTER ROLE " + quoteName(former) + " NOLOGIN; " + sql
	}
	_, err = query(ctx, conn, sql) // one message: all of it or nothing
	return err
}
