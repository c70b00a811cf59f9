//go:build linux && root && crashpoints

package acceptance

import (
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/google/uuid"

	reflejov1 "github.com/reflejo/terraform-provider-reflejo/agent/api/reflejo/v1"
	"github.com/reflejo/terraform-provider-reflejo/agent/database"
	"github.com/reflejo/terraform-provider-reflejo/agent/postgres"
	"github.com/reflejo/terraform-provider-reflejo/agent/store"
	"github.com/reflejo/terraform-provider-reflejo/agent/testbed"
)

// A database outlives its agent, and follows its server: up and down with it, whatever the
// agent's end was in the middle of.
func TestDatabasesFollowTheirServer(t *testing.T) {
	h := newHosts(t, "alpha")[0]
	image, err := bed(t, h.config).Import(t.Context(), testbed.Debian)
	if err != nil {
		t.Fatal(err)
	}
	s := spec("db", image)
	s.Cpu.MilliCores, s.Memory.Max = 1000, 1<<30
	s.Network = map[string]*reflejov1.Nic{"eth0": {Publish: map[string]*reflejov1.Publish{"db": {Protocol: "tcp", HostPort: 5432, Port: 5432}}}}
	h.create(s)
	rec := h.declare(s.GetId())

	// Killed at each step of the creation, and finished by the next agent.
	for _, step := range []database.Step{database.StepCreate, database.StepRun, database.StepGrant} {
		h.restartExpectingEnd("REFLEJO_CRASH_AT=create/" + string(step) + "/after")
	}
	h.restart()
	h.query(rec, "CREATE TABLE t(a int); INSERT INTO t VALUES (1)", "")
	first := h.query(rec, "SELECT pg_postmaster_start_time()", "*")
	h.restart() // kill -9, and another
	h.query(rec, "SELECT pg_postmaster_start_time()", first)

	h.act(s.GetId(), "reboot")
	h.query(rec, "SELECT sum(a) FROM t", "1")
	if out := h.log(rec); !strings.Contains(out, "database system is shut down") || strings.Contains(out, "not properly shut down") {
		t.Errorf("the reboot was no clean end for it:\n%s", out)
	}
	h.act(s.GetId(), "kill")
	h.act(s.GetId(), "start")
	h.query(rec, "SELECT sum(a) FROM t", "1")
	h.act(s.GetId(), "stop")
	h.restart()
	h.act(s.GetId(), "start")
	h.query(rec, "SELECT sum(a) FROM t", "1")
	h.act(s.GetId(), "suspend")
	h.act(s.GetId(), "resume")
	h.query(rec, "SELECT sum(a) FROM t", "1")
	h.remove(s.GetId())
}

const databasePassword = "a password"

// declare writes a database as accepted into the state of an agent that does not run: there
// is nothing that a user could ask by yet. The agent is left ended.
func (h *host) declare(server string) database.Record {
	h.t.Helper()
	handle := h.handle()
	if err := handle.KillAgent(h.t.Context()); err != nil {
		h.t.Fatal(err)
	}
	secret, err := postgres.Secret(databasePassword)
	if err != nil {
		h.t.Fatal(err)
	}
	rec := database.Record{Phase: database.PhaseCreate, Major: 15, Secret: secret, Admin: "the agent's own", Generation: 1, Created: time.Now(),
		Spec: database.Spec{ID: uuid.NewString(), Name: "shop", Server: server, Owner: "app", Clients: database.Clients{CIDRs: []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0")}}}.WithDefaults()}
	rec.Operation.Kind = "create"
	if err := rec.Spec.Validate(); err != nil {
		h.t.Fatal(err)
	}
	db, err := store.Open(filepath.Join(handle.Dir(), "state", "state.db"))
	if err != nil {
		h.t.Fatal(err)
	}
	if err := db.Bucket("databases").Put(rec.Spec.ID, rec); err != nil {
		h.t.Fatal(err)
	}
	if err := db.Close(); err != nil {
		h.t.Fatal(err)
	}
	return rec
}

// restartExpectingEnd starts an agent that kills itself, and waits for that.
func (h *host) restartExpectingEnd(env string) {
	h.t.Helper()
	handle := h.handle(env)
	_ = handle.Start(h.t.Context()) // it may end before it is ready
	for deadline := time.Now().Add(patience); handle.AgentPID() != 0; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			h.t.Fatal("the agent does not come to ", env)
		}
	}
}

// act carries out a power action ("stop").
func (h *host) act(id, action string) {
	h.t.Helper()
	_, err := h.api.Servers.SetPower(h.t.Context(), connect.NewRequest(&reflejov1.SetPowerRequest{Id: id, Action: reflejov1.SetPowerRequest_Action(reflejov1.SetPowerRequest_Action_value["ACTION_"+strings.ToUpper(action)])}))
	if err != nil {
		h.t.Fatal(err)
	}
	if s := h.settled(id); s.GetOperation().GetError() != "" {
		h.t.Fatalf("%s: %s", action, s.GetOperation().GetError())
	}
}

// query asks as a client outside of the host until the answer is want ("*" is any), and
// returns it: a database is a moment later than its server.
func (h *host) query(rec database.Record, sql, want string) string {
	h.t.Helper()
	address, _, _ := strings.Cut(testbed.Endpoint(h.name), ":")
	for deadline := time.Now().Add(patience); ; time.Sleep(50 * time.Millisecond) {
		cmd := bed(h.t, h.config).Command(h.t.Context(), "psql", "-XAtq", "-v", "ON_ERROR_STOP=1", "-c", sql,
			"-d", "host="+address+" port="+strconv.Itoa(rec.Spec.Port)+" dbname="+rec.Spec.Name+" user="+rec.Spec.Owner+" sslmode=require connect_timeout=5")
		cmd.Env = append(cmd.Environ(), "PGPASSWORD="+databasePassword)
		out, err := cmd.CombinedOutput()
		if text := strings.TrimSpace(string(out)); err == nil && (want == "*" || text == want) {
			return text
		}
		if time.Now().After(deadline) {
			h.t.Fatalf("%s: %v: %s", sql, err, out)
		}
	}
}

// log is what postgres has printed.
func (h *host) log(rec database.Record) string {
	h.t.Helper()
	b, err := os.ReadFile(filepath.Join(h.handle().Dir(), "state", "databases", rec.Spec.ID, "postgres.log"))
	if err != nil {
		h.t.Fatal(err)
	}
	return string(b)
}
