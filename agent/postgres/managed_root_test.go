//go:build linux && root

package postgres

import (
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/reflejo/terraform-provider-reflejo/agent/database"
	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
	"github.com/reflejo/terraform-provider-reflejo/agent/store"
	"github.com/reflejo/terraform-provider-reflejo/agent/vserver"
)

// inventory is the one server, which runs.
type inventory struct{ id string }

// Get implements database.Servers.
func (i inventory) Get(id string) (vserver.View, error) {
	if id != i.id {
		return vserver.View{}, fault.New(fault.NotFound, "no server %s", id)
	}
	return vserver.View{Spec: vserver.Spec{ID: id, Name: "db"}, State: vserver.StateRunning}, nil
}

// agent is the manager over the real edge and the real store, as an agent starts it.
func (w *world) agent(t *testing.T) (*database.Manager, func()) {
	t.Helper()
	w.open()
	db, err := store.Open(filepath.Join(w.dir, "state.db"))
	if err != nil {
		t.Fatal(err)
	}
	m, err := database.NewManager(database.Config{Host: "alpha", Records: db.Bucket("databases"), Clusters: w, Inspector: w, Servers: inventory{w.server}, Secrets: Secrets{}, Log: w.log()})
	if err != nil {
		t.Fatal(err)
	}
	if err := m.Recover(t.Context()); err != nil {
		t.Fatal(err)
	}
	return m, func() {
		m.Close()
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	}
}

// The whole: a database is made, used, changed, adopted, mended and removed.
func managed(t *testing.T, w *world) {
	m, end := w.agent(t)
	s := database.Spec{ID: uuid.NewString(), Name: "shop", Server: w.server, Port: 5450, Owner: "app", Password: password,
		Parameters: map[string]string{"work_mem": "1MB", "shared_buffers": "16MB"},
		Clients:    database.Clients{CIDRs: []netip.Prefix{netip.MustParsePrefix("198.18.0.0/15")}}}
	settled := func() database.View {
		t.Helper()
		if err := m.Settled(t.Context()); err != nil {
			t.Fatal(err)
		}
		v, err := m.Get(s.ID)
		if err != nil || v.State != database.StateRunning {
			t.Fatalf("%+v %v", v, err)
		}
		return v
	}
	// Refused before anything is touched.
	for name, value := range map[string]string{"work_mem": "much", "no_such_parameter": "1", "block_size": "8192", "wal_sync_method": "hope"} {
		bad := s
		bad.Parameters = map[string]string{name: value}
		if _, err := m.Create(t.Context(), bad); !fault.Is(err, fault.Invalid) || fault.FieldOf(err) != "parameters."+name {
			t.Errorf("%s = %s: %v", name, value, err)
		}
	}
	if _, err := os.Stat(filepath.Join(w.cfg.RunDir, s.ID)); !os.IsNotExist(err) || len(m.List()) != 0 {
		t.Errorf("a refused creation left something: %v, %v", err, m.List())
	}
	if _, err := m.Create(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	first := settled()
	c, err := m.Cluster("shop")
	if err != nil {
		t.Fatal(err)
	}
	w.works(c, "CREATE TABLE t(a int); INSERT INTO t VALUES (1); SELECT sum(a) FROM t", "1")
	change := func(effect database.Effect, parameters map[string]string) {
		t.Helper()
		s.Parameters = parameters
		if e, err := m.Effect(t.Context(), s); err != nil || e != effect {
			t.Errorf("%v needs %s, want %s: %v", parameters, e, effect, err)
		}
		before := settled()
		if _, err := m.Update(t.Context(), s); err != nil {
			t.Fatal(err)
		}
		after := settled()
		if restarted := !after.Started.Equal(before.Started); restarted != (effect == database.EffectRestart) {
			t.Errorf("%v: restarted %v", parameters, restarted)
		}
	}
	change(database.EffectReload, map[string]string{"work_mem": "3MB", "shared_buffers": "16MB"})
	w.works(c, "SHOW work_mem", "3MB")
	change(database.EffectRestart, map[string]string{"work_mem": "3MB", "shared_buffers": "24MB"})
	w.works(c, "SHOW shared_buffers", "24MB")
	// PostgreSQL takes the value and cannot run with it: what was is there again.
	bad := s
	bad.Parameters = map[string]string{"shared_buffers": "7TB"}
	if _, err := m.Update(t.Context(), bad); err != nil {
		t.Fatal(err)
	}
	if v := settled(); !strings.Contains(v.Operation.Err, "memory") || v.Spec.Parameters["shared_buffers"] != "24MB" {
		t.Errorf("%+v", v)
	}
	w.works(c, "SHOW shared_buffers", "24MB")

	before := settled()
	end()
	m, end = w.agent(t)
	if after := settled(); !after.Started.Equal(before.Started) || after.Identity != first.Identity {
		t.Errorf("it was %+v, is %+v", before, after)
	}
	if err := syscall.Kill(w.guardPID(c), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(patience); ; time.Sleep(5 * time.Millisecond) {
		if v, err := m.Get(s.ID); err == nil && v.State == database.StateRunning && v.Started.After(before.Started) {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("it is not started again")
		}
	}
	settled()
	w.works(c, "SELECT sum(a) FROM t", "1")
	if err := m.ServerStops(t.Context(), w.server, patience); err != nil {
		t.Fatal(err)
	}
	if d, err := w.ControlData(t.Context(), c); err != nil || d.State != "shut down" {
		t.Errorf("%+v %v", d, err)
	}
	m.ServerStarted(w.server)
	settled()
	if err := m.Delete(t.Context(), s.ID); err != nil {
		t.Fatal(err)
	}
	if err := m.Settled(t.Context()); err != nil {
		t.Fatal(err)
	}
	if h, err := w.Inspect(t.Context(), c); err != nil || h.Made || len(m.List()) != 0 {
		t.Errorf("%+v %v %v", h, err, m.List())
	}
	end()
}

// works runs SQL as the client and wants this answer.
func (w *world) works(c database.Cluster, sql, want string) {
	w.t.Helper()
	if out, err := w.psql(c, "sslmode=require", sql); err != nil || out != want {
		w.t.Errorf("%s: %v: %s", sql, err, out)
	}
}
