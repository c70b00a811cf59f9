//go:build linux && root && crashpoints

package acceptance

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	reflejov1 "github.com/reflejo/terraform-provider-reflejo/agent/api/reflejo/v1"
	"github.com/reflejo/terraform-provider-reflejo/agent/testbed"
)

// asPostgres begins a command line as PostgreSQL's user. (A runuser that waits for its child
// can stay stopped when systemd shuts down, which stops and continues all that is left.)
const asPostgres = "cd / && exec setpriv --reuid=postgres --regid=postgres --init-groups "

// makeDatabase makes a PostgreSQL cluster that starts with its server, and in it the tables
// of the client and of pgbench. Small segments and many checkpoints let a snapshot meet
// every phase of them.
const makeDatabase = `set -e
until s=$(systemctl is-system-running --wait 2>/dev/null); [ "$s" = running ] || [ "$s" = degraded ]; do sleep 0.1; done
version=$(ls /usr/lib/postgresql)
pg_createcluster --locale=C.UTF-8 -o synchronous_commit=on -o shared_buffers=32MB -o max_wal_size=64MB -o checkpoint_timeout=30s \
	$version main -- --data-checksums --wal-segsize=4 >/dev/null
systemctl start postgresql@$version-main
(` + asPostgres + `createdb app)
(` + asPostgres + `psql -q -v ON_ERROR_STOP=1 -c 'create table acknowledged (n bigint primary key, at timestamptz default now())' -c 'create extension amcheck' app)
(` + asPostgres + `/usr/lib/postgresql/$version/bin/pgbench -i -q app) 2>&1`

// awaitDatabase waits until PostgreSQL serves.
const awaitDatabase = `until (` + asPostgres + `psql -qAtc 'select 1' app) >/dev/null 2>&1; do sleep 0.05; done`

// tearless is what PostgreSQL must be able to say whatever moment it was put back to: a
// transaction of pgbench adds the same amount in four tables, so it is there in all or none.
const tearless = `select count(*), coalesce(min(n), 1), coalesce(max(n), 0),
	(select sum(abalance) from pgbench_accounts) = (select coalesce(sum(delta), 0) from pgbench_history) and
	(select sum(bbalance) from pgbench_branches) = (select coalesce(sum(delta), 0) from pgbench_history) and
	(select sum(tbalance) from pgbench_tellers) = (select coalesce(sum(delta), 0) from pgbench_history)
	from acknowledged`

// Snapshots of a server with a PostgreSQL that commits all the time, in every state of the
// server and without a quiet file system: in a clone, and put back in place, PostgreSQL
// starts, recovers, and has every commit that it acknowledged before, and none from after.
// REFLEJO_SNAPSHOTS says how many are taken.
func TestSnapshotsOfDatabases(t *testing.T) {
	h := newHosts(t, "alpha")[0]
	image, err := bed(t, h.config).Import(t.Context(), testbed.Debian)
	if err != nil {
		t.Fatal(err)
	}
	s := databaseSpec("subject")
	s.Image = image
	h.create(s)
	if code, out := h.exec(s.GetId(), "sh", "-c", makeDatabase); code != 0 {
		t.Fatalf("make a database: exit %d\n%s", code, out)
	}
	count := 4
	if n, err := strconv.Atoi(os.Getenv("REFLEJO_SNAPSHOTS")); err == nil {
		count = n
	}
	for i := range count {
		state := []string{"running", "suspended", "stopped", "crash"}[i%4]
		t.Run(fmt.Sprintf("%d %s", i+1, state), func(t *testing.T) {
			h.t = t
			h.databaseMoment(s, state, i%8 == 0) // of a running server: the safety snapshot is of a stopped one
		})
	}
	h.t = t
	h.remove(s.GetId())
}

// databaseSpec is a server's that PostgreSQL fits in.
func databaseSpec(name string) *reflejov1.ServerSpec {
	s := spec(name, "")
	s.Cpu.MilliCores, s.Memory.Max = 1000, 256<<20
	return s
}

// databaseMoment takes one snapshot and looks at it in a clone and, with restore, in place.
func (h *host) databaseMoment(s *reflejov1.ServerSpec, state string, restore bool) {
	t, id := h.t, s.GetId()
	c := h.commit(id)
	consistency := ""
	switch state {
	case "suspended":
		suspend(h, s)
	case "stopped":
		stop(h, s)
	case "crash":
		consistency = "crash"
	}
	low := c.acknowledged.Load()
	snapshot := h.snapshotAs(id, consistency)
	high := c.asked.Load()
	if state != "crash" {
		h.clean(snapshot.GetId())
	}
	clone := databaseSpec("clone-" + snapshot.GetId()[:8])
	clone.CloneOf = snapshot.GetId()
	began := time.Now()
	h.create(clone)
	rows := h.recovered(clone.GetId(), state == "stopped", low, high)
	t.Logf("%d commits were acknowledged before, the clone has %d and %s of pgbench, %d were asked for at the end; pause %v, checked %v after the clone was asked for",
		low, rows, h.sql(clone.GetId(), "select count(*) from pgbench_history"), high, snapshot.GetPause().AsDuration(), time.Since(began).Round(time.Millisecond))
	h.remove(clone.GetId())
	if state == "suspended" {
		h.power(s, reflejov1.SetPowerRequest_ACTION_RESUME)
	}
	if restore {
		safety := h.restore(id, snapshot.GetId())
		h.clean(safety)
		h.recovered(id, state == "stopped", low, high)
		h.forget(safety)
	}
	c.end()
	if state == "stopped" {
		h.power(s, reflejov1.SetPowerRequest_ACTION_START)
	}
	h.forget(snapshot.GetId())
}

// recovered waits until a server's PostgreSQL serves, and returns how many of the numbered
// commits it has: all from 1 on, at least low, at most high.
func (h *host) recovered(id string, shutDown bool, low, high int64) int64 {
	h.t.Helper()
	h.exec(id, "sh", "-c", awaitDatabase)
	_, was := h.exec(id, "sh", "-c", `cat /var/log/postgresql/*-main.log | grep -o 'database system was [a-z ]*' | tail -n 1`)
	if clean := strings.HasPrefix(was, "database system was shut down"); clean != shutDown {
		h.t.Errorf("PostgreSQL says: %s", was)
	}
	out := h.sql(id, tearless)
	f := strings.Split(out, "|")
	if len(f) != 4 {
		h.t.Fatalf("PostgreSQL answers %q", out)
	}
	n, err := strconv.ParseInt(f[0], 10, 64)
	if err != nil || f[1] != "1" || f[2] != f[0] || f[3] != "t" {
		h.t.Errorf("count, first, last, whole transactions: %s", out)
	}
	if n < low || n > high {
		h.t.Errorf("%d commits: %d were acknowledged before, %d asked for at the end", n, low, high)
	}
	if code, out := h.exec(id, "sh", "-c", asPostgres+"/usr/lib/postgresql/*/bin/pg_amcheck --heapallindexed app"); code != 0 {
		h.t.Errorf("tables and indexes: exit %d\n%s", code, out)
	}
	return n
}

// sql is the answer to a query.
func (h *host) sql(id, query string) string {
	h.t.Helper()
	code, out := h.exec(id, "sh", "-c", asPostgres+`psql -qAtc "$1" app`, "sh", query)
	if code != 0 {
		h.t.Fatalf("ask PostgreSQL: exit %d\n%s", code, out)
	}
	return strings.TrimSpace(out)
}

// committer is a client that commits row after row, each when the one before was
// acknowledged, beside pgbench, until it is ended, or its server is.
type committer struct {
	rows, load          *command
	asked, acknowledged atomic.Int64
	stop                atomic.Bool
	done                chan struct{}
}

// commit begins to write rows, and returns when there are new ones.
func (h *host) commit(id string) *committer {
	h.t.Helper()
	h.exec(id, "sh", "-c", awaitDatabase)
	last, err := strconv.ParseInt(h.sql(id, "select count(*) from acknowledged"), 10, 64)
	if err != nil {
		h.t.Fatal(err)
	}
	c := &committer{done: make(chan struct{})}
	c.load = h.start(id, "sh", "-c", asPostgres+"/usr/lib/postgresql/*/bin/pgbench -n -c 4 -T 3600 app")
	c.rows = h.start(id, "sh", "-c", asPostgres+"psql -qAt app")
	some := make(chan struct{})
	go func() {
		defer close(c.done)
		for n := last + 1; !c.stop.Load(); n++ {
			c.asked.Store(n)
			if !c.rows.ask(fmt.Sprintf("insert into acknowledged values (%d) returning n;\n", n), strconv.FormatInt(n, 10)) {
				return
			}
			c.acknowledged.Store(n)
			if n == last+20 {
				close(some)
			}
		}
	}()
	select {
	case <-some:
	case <-c.done:
		h.t.Fatalf("no commits: %s", c.rows.seen.String())
	}
	return c
}

// ask writes a line and reports whether the next one is the answer; it is false when the
// program or its server has ended.
func (c *command) ask(line, answer string) bool {
	if err := c.stream.Send(&reflejov1.ExecRequest{Part: &reflejov1.ExecRequest_Stdin{Stdin: []byte(line)}}); err != nil {
		return false
	}
	text, err := c.output.ReadString('\n')
	return err == nil && strings.TrimSpace(text) == answer
}

// end ends the client and pgbench.
func (c *committer) end() {
	c.stop.Store(true)
	<-c.done
	c.rows.kill()
	c.load.kill()
}
