//go:build linux && root

package postgres

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/reflejo/terraform-provider-reflejo/agent/database"
	"github.com/reflejo/terraform-provider-reflejo/agent/database/databasetest"
	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
)

// One server for all: a server is the slow part.
func TestClusters(t *testing.T) {
	w := newWorld(t)
	for _, test := range []struct {
		name string
		run  func(*testing.T, *world)
	}{
		{"contract", func(t *testing.T, w *world) {
			c := w.cluster("contract", 5440)
			databasetest.RunClusters(t, w, c)
		}},
		{"clients", clients},
		{"owners", owners},
		{"guard killed", guardKilled},
		{"fence", fence},
		{"agent comes back", agentComesBack},
		{"postgres crashes", postgresCrashes},
		{"port moves", portMoves},
		{"tampering", tampering},
		{"interrupted creation", interruptedCreation},
		{"manager", managed},
		{"server stops", serverStops},
	} {
		t.Run(test.name, func(t *testing.T) {
			w.t = t
			test.run(t, w)
		})
	}
}

// A client on the network gets in with the password and over TLS, and nobody else does.
func clients(t *testing.T, w *world) {
	c := w.made("orders", 5432)
	if out, err := w.psql(c, "sslmode=require", "CREATE TABLE t(a int); INSERT INTO t VALUES (42); SELECT a FROM t"); err != nil || out != "42" {
		t.Errorf("%v: %s", err, out)
	}
	if out, err := w.psql(c, "sslmode=disable", "SELECT 1"); err == nil || !strings.Contains(out, "pg_hba.conf") {
		t.Errorf("without TLS: %v: %s", err, out)
	}
	for _, options := range []string{"user=reflejo", "user=postgres", "user=reflejo dbname=replication replication=true", "password=wrong"} {
		if out, err := w.psql(c, options, "SELECT 1"); err == nil {
			t.Errorf("with %s: %s", options, out)
		}
	}
	if out, code := w.inside("runuser -u postgres -- psql -h /run/reflejo/databases/" + c.ID + "/socket -U reflejo -w -c 'SELECT 1' postgres"); code == 0 {
		t.Errorf("in the server, by the socket: %s", out)
	}
	c.Clients.CIDRs = []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}
	w.run(c)
	if out, err := w.psql(c, "sslmode=require", "SELECT 1"); err == nil {
		t.Errorf("from elsewhere: %s", out)
	}
	c.Clients = database.Clients{CIDRs: []netip.Prefix{netip.MustParsePrefix(clientAddress + "/32")}, TLS: database.TLSOff}
	w.run(c)
	if out, err := w.psql(c, "sslmode=disable", "SELECT a FROM t"); err != nil || out != "42" {
		t.Errorf("without TLS, allowed: %v: %s", err, out)
	}
	if out, _ := w.inside("systemctl is-enabled postgresql.service postgresql@15-main.service; systemctl is-active postgresql.service"); out != "masked\nmasked\ninactive\n" {
		t.Errorf("the image's own service is %q", out)
	}
}

// inside runs a script in the server.
func (w *world) inside(script string) (string, int) {
	w.t.Helper()
	out, code, err := w.try(w.t.Context(), w.server, "root", script, "")
	if err != nil {
		w.t.Fatal(err)
	}
	return out, code
}

// Another owner gets all that the first one had; another password replaces the first.
func owners(t *testing.T, w *world) {
	c := w.made("owned", 5433)
	if out, err := w.psql(c, "", "CREATE TABLE t(a int)"); err != nil {
		t.Fatal(err, out)
	}
	former := c
	c.Owner = "new-app"
	w.run(c)
	if out, err := w.psql(c, "", "INSERT INTO t VALUES (1); DROP TABLE t; SELECT 'all'"); err != nil || out != "all" {
		t.Errorf("the new owner: %v: %s", err, out)
	}
	if out, err := w.psql(former, "", "SELECT 1"); err == nil {
		t.Errorf("the former owner: %s", out)
	}
	var err error
	if c.Secret, err = Secret("another"); err != nil {
		t.Fatal(err)
	}
	w.run(c)
	if out, err := w.psql(c, "", "SELECT 1"); err == nil {
		t.Errorf("by the old password: %s", out)
	}
	if out, err := w.psql(c, "password=another", "SELECT 1"); err != nil {
		t.Errorf("by the new password: %v: %s", err, out)
	}
}

// The guard's end is the end of every backend: nothing commits after it (hazard A9).
func guardKilled(t *testing.T, w *world) {
	c := w.made("killed", 5434)
	if out, err := w.psql(c, "", "CREATE TABLE load(at timestamptz)"); err != nil {
		t.Fatal(err, out)
	}
	acked := 0
	for range 3 {
		end := w.load(c)
		guard := w.guardPID(c)
		var at time.Time
		took := w.gone(c, func() {
			at = time.Now()
			if err := syscall.Kill(guard, syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
		})
		acked += end()
		if h, err := w.Inspect(t.Context(), c); err != nil || h.Running || !h.Made {
			t.Errorf("%+v %v", h, err)
		}
		w.run(c)
		out, err := w.psql(c, "", fmt.Sprintf("SELECT round(1000 * (extract(epoch FROM max(at)) - %d.%09d), 1) FROM load", at.Unix(), at.Nanosecond()))
		if err != nil {
			t.Fatal(err, out)
		}
		t.Logf("nothing left after %s; the last durable commit began %s ms after the kill", took, out)
		rows, err := w.psql(c, "", "SELECT count(*) FROM load")
		if n, _ := strconv.Atoi(rows); err != nil || acked == 0 || n < acked || n > acked+4*3 {
			t.Errorf("%d commits were acknowledged, there are %s: %v", acked, rows, err)
		}
	}
}

// The fence ends everything, and the guard with it (D6).
func fence(t *testing.T, w *world) {
	c := w.made("fenced", 5435)
	if out, err := w.psql(c, "", "CREATE TABLE load(at timestamptz)"); err != nil {
		t.Fatal(err, out)
	}
	took := w.fences(c, 10)
	t.Logf("decision to nothing left: median %s, worst of %d %s", took[len(took)/2], len(took), took[len(took)-1])
}

// fences measures some of them under load, sorted.
func (w *world) fences(c database.Cluster, n int) (took []time.Duration) {
	for range n {
		end := w.load(c)
		took = append(took, w.gone(c, func() {
			go func() { _ = w.Fence(context.WithoutCancel(w.t.Context()), c.ID) }()
		}))
		end()
		w.run(c)
	}
	slices.Sort(took)
	return took
}

// An agent that starts finds the database and leaves it alone.
func agentComesBack(t *testing.T, w *world) {
	c := w.made("adopted", 5436)
	before, started := w.state(c), w.inspected(c).Started
	w.open()
	w.run(c)
	if after := w.state(c); after.PID != before.PID || !w.inspected(c).Started.Equal(started) {
		t.Errorf("it was %+v, is %+v", before, after)
	}
	for what, pid := range map[string]int{"guard": w.guardPID(c), "process 1": before.PID} {
		status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
		_, rest, _ := strings.Cut(string(status), "VmRSS:")
		rss, _, _ := strings.Cut(rest, "\n")
		t.Logf("%s takes %s %v", what, strings.TrimSpace(rss), err)
	}
	groups, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", w.guardPID(c)))
	if err != nil || strings.Contains(string(groups), w.server) || !strings.Contains(string(groups), "-beside") {
		t.Errorf("the guard is in %s %v", groups, err)
	}
	if groups, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", before.PID)); err != nil || !strings.Contains(string(groups), w.server) {
		t.Errorf("the database is in %s %v", groups, err)
	}
}

func (w *world) inspected(c database.Cluster) database.Condition {
	w.t.Helper()
	h, err := w.Inspect(w.t.Context(), c)
	if err != nil || h.Problem != "" {
		w.t.Fatal(h, err)
	}
	return h
}

// A crash of a backend is a crash of all: postgres does not go on by itself, the guard
// starts it again (hazard A14).
func postgresCrashes(t *testing.T, w *world) {
	c := w.made("crashing", 5437)
	before := w.state(c)
	out, code := w.inside("pkill -9 -f '^postgres: crashing: checkpointer'")
	if code != 0 {
		t.Fatal(out)
	}
	for deadline := time.Now().Add(patience); ; time.Sleep(5 * time.Millisecond) {
		if s := w.state(c); s.Starts > before.Starts && s.Phase == "running" {
			if s.PID == before.PID || s.Failures != 1 {
				t.Errorf("was %+v, is %+v", before, s)
			}
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("it is not started again")
		}
	}
	w.run(c)
	w.inspected(c)
}

// Another port is a restart, and the agent finds the way.
func portMoves(t *testing.T, w *world) {
	c := w.made("moved", 5438)
	c.Port = 5439
	w.run(c)
	if out, err := w.psql(c, "", "SELECT 1"); err != nil {
		t.Error(err, out)
	}
}

// What the server's users change of what the agent relies on is of no effect, or is seen.
func tampering(t *testing.T, w *world) {
	c := w.made("tampered", 5441)
	l := w.cfg.layout(c)
	if _, err := w.asked(t.Context(), c, "ALTER SYSTEM SET fsync = off"); err != nil {
		t.Fatal(err)
	}
	w.run(c) // a reload
	w.inspected(c)
	if out, code := w.inside("echo fsync=off >>" + l.share + "/postgresql.conf"); code == 0 {
		t.Errorf("the server's root writes the agent's file: %s", out)
	}
	w.inside("printf 'fsync=off\n' >" + l.data + "/postgresql.conf; echo 'host all all all trust' >" + l.data + "/pg_hba.conf")
	if err := w.Stop(t.Context(), c.ID, patience); err != nil {
		t.Fatal(err)
	}
	w.run(c)
	w.inspected(c)
	if out, err := w.psql(c, "password=wrong", "SELECT 1"); err == nil {
		t.Errorf("access by the server's own file: %s", out)
	}
	// The server's root fills what it can write to: it is little, and not the host's.
	w.inside("head -c 100m /dev/zero >" + l.share + "/socket/full; rm -f " + l.share + "/socket/full")
	// A link in place of the socket leads nowhere.
	w.inside("cd " + l.share + "/socket && mv .s.PGSQL.5441 real && ln -s real .s.PGSQL.5441")
	if _, err := w.asked(t.Context(), c, "SELECT 1"); !fault.Is(err, fault.Unavailable) {
		t.Errorf("through a link: %v", err)
	}
	w.inside("cd " + l.share + "/socket && mv real .s.PGSQL.5441")
	w.inspected(c)
}

// What a killed creation left is no cluster.
func interruptedCreation(t *testing.T, w *world) {
	c := w.cluster("interrupted", 5442)
	l := w.cfg.layout(c)
	w.inside(fmt.Sprintf("mkdir -p %[1]s.half/base; chown -R postgres: /var/lib/postgresql; echo 15 >%[1]s.half/PG_VERSION", l.data))
	if h, err := w.Inspect(t.Context(), c); err != nil || h.Made {
		t.Errorf("%+v %v", h, err)
	}
	var err error
	if c.Identity, err = w.Create(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	w.run(c)
	w.inspected(c)
}

// A server that dies takes its databases along; nothing of them keeps its disk.
func serverStops(t *testing.T, w *world) {
	c := w.made("last", 5443)
	took := w.gone(c, func() {
		if err := w.limits.Kill(t.Context(), w.server); err != nil {
			t.Fatal(err)
		}
	})
	t.Log("it ended with its server after", took)
	if err := w.Stop(t.Context(), c.ID, patience); err != nil {
		t.Error(err)
	}
	if _, err := w.Inspect(t.Context(), c); !fault.Is(err, fault.Precondition) {
		t.Errorf("inspected in a server that does not run: %v", err)
	}
}

// BenchmarkFence measures D6: the decision to fence until nothing of the database is left.
func BenchmarkFence(b *testing.B) {
	w := newWorld(b)
	c := w.made("fenced", 5432)
	if out, err := w.psql(c, "", "CREATE TABLE load(at timestamptz)"); err != nil {
		b.Fatal(err, out)
	}
	took := w.fences(c, max(b.N, 10))
	b.ReportMetric(float64(took[len(took)/2].Microseconds())/1000, "p50-ms")
	b.ReportMetric(float64(took[(len(took)*99+99)/100-1].Microseconds())/1000, "p99-ms")
	b.Logf("the worst: %v", took[len(took)-min(len(took), 5):])
	b.ReportMetric(float64(took[len(took)-1].Microseconds())/1000, "max-ms")
}
