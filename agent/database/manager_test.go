package database_test

import (
	"context"
	"encoding/json"
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/uuid"

	"github.com/reflejo/terraform-provider-reflejo/agent/database"
	"github.com/reflejo/terraform-provider-reflejo/agent/database/databasetest"
	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
	"github.com/reflejo/terraform-provider-reflejo/agent/vserver"
)

// records are a store in memory.
type records map[string][]byte

func (r records) Put(key string, v any) error {
	b, err := json.Marshal(v)
	r[key] = b
	return err
}

func (r records) Delete(key string) error {
	delete(r, key)
	return nil
}

func (r records) ForEach(f func(string, []byte) error) error {
	for k, v := range r {
		if err := f(k, v); err != nil {
			return err
		}
	}
	return nil
}

// world is a host with one server, and the manager of its databases.
type world struct {
	t       *testing.T
	host    *databasetest.Host
	server  string
	records records
	*database.Manager
}

// inWorld runs f with time that passes at once.
func inWorld(t *testing.T, f func(w *world)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		w := &world{t: t, host: databasetest.New(), server: uuid.NewString(), records: records{}}
		w.host.SetServer(w.server, vserver.StateRunning)
		w.start()
		f(w)
		w.Close()
	})
}

// start is an agent's start.
func (w *world) start() {
	w.t.Helper()
	m, err := database.NewManager(database.Config{Host: "alpha", Records: w.records, Clusters: w.host, Inspector: w.host, Servers: w.host, Secrets: w.host, Ports: databasetest.Ports{Host: w.host}})
	if err != nil {
		w.t.Fatal(err)
	}
	w.Manager = m
	if err := m.Recover(w.t.Context()); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) spec(name string) database.Spec {
	return database.Spec{ID: uuid.NewString(), Name: name, Server: w.server, Port: 5432, Owner: "app", Password: "secret",
		Parameters: map[string]string{"work_mem": "1MB", "shared_buffers": "16MB"},
		Clients:    database.Clients{CIDRs: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}}}
}

// settle waits until nothing is under way and returns what there is; nil if it is gone.
func (w *world) settle(id string) *database.View {
	w.t.Helper()
	if err := w.Settled(w.t.Context()); err != nil {
		w.t.Fatal(err)
	}
	v, err := w.Get(id)
	if fault.Is(err, fault.NotFound) {
		return nil
	}
	if err != nil {
		w.t.Fatal(err)
	}
	return &v
}

func (w *world) create(s database.Spec) *database.View {
	w.t.Helper()
	if _, err := w.Create(w.t.Context(), s); err != nil {
		w.t.Fatal(err)
	}
	return w.settle(s.ID)
}

func (w *world) want(v *database.View, s database.State) {
	w.t.Helper()
	if v == nil || v.State != s || !v.Operation.Settled() {
		w.t.Fatalf("it is %+v, want %s", v, s)
	}
}

// calls are those since the last time, without the questions.
func (w *world) calls() string {
	asks := func(c string) bool {
		verb, _, _ := strings.Cut(c, " ")
		return slices.Contains([]string{"inspect", "versions", "check"}, verb)
	}
	return strings.Join(slices.DeleteFunc(w.host.Calls(), asks), ", ")
}

func (w *world) expect(want string) {
	w.t.Helper()
	if got := w.calls(); got != want {
		w.t.Errorf("done:\n%s\nwant:\n%s", got, want)
	}
}

const up = "close 5432, create orders, run orders, grant orders, open 5432"

func TestLifeOfADatabase(t *testing.T) {
	inWorld(t, func(w *world) {
		t := w.t
		s := w.spec("orders")
		v := w.create(s)
		w.want(v, database.StateRunning)
		w.expect(up)
		if v.Spec.Password != "" || v.Major != 15 || v.Identity == "" || v.Spec.Clients.TLS != database.TLSRequire {
			t.Errorf("%+v", v)
		}
		for _, b := range w.records {
			if strings.Contains(string(b), `"secret"`) {
				t.Errorf("the password is kept: %s", b)
			}
		}
		s.Parameters = map[string]string{"work_mem": "2MB", "shared_buffers": "16MB"}
		if e, err := w.Effect(t.Context(), s); err != nil || e != database.EffectReload {
			t.Errorf("%s %v", e, err)
		}
		if _, err := w.Update(t.Context(), s); err != nil {
			t.Fatal(err)
		}
		w.want(w.settle(s.ID), database.StateRunning)
		w.expect("run orders, grant orders, open 5432")
		if n := w.host.Starts(s.ID); n != 1 {
			t.Errorf("started %d times", n)
		}
		if err := w.Delete(t.Context(), "orders"); err != nil {
			t.Fatal(err)
		}
		if v := w.settle(s.ID); v != nil {
			t.Errorf("it is still there: %+v", v)
		}
		w.expect("close 5432, remove orders")
		if len(w.records) != 0 || w.host.String() != "" {
			t.Errorf("left: %v\n%s", w.records, w.host)
		}
	})
}

func TestCreateIsIdempotent(t *testing.T) {
	inWorld(t, func(w *world) {
		t := w.t
		s := w.spec("orders")
		w.create(s)
		w.calls()
		w.want(w.create(s), database.StateRunning)
		w.expect("")
		s.Password = "another"
		if _, err := w.Create(t.Context(), s); !fault.Is(err, fault.Exists) {
			t.Errorf("another password under the same id: %v", err)
		}
	})
}

func TestFailedCreateLeavesNothing(t *testing.T) {
	inWorld(t, func(w *world) {
		t := w.t
		s := w.spec("orders")
		w.host.Fail("grant", errors.New("broken"))
		v := w.create(s)
		w.want(v, database.StateFailed)
		if v.Operation.Err == "" || w.host.String() != "" {
			t.Errorf("%+v\n%s", v, w.host)
		}
		other := w.spec("orders")
		w.host.Fail("grant", nil)
		w.want(w.create(other), database.StateRunning) // name and port are free
		if err := w.Delete(t.Context(), other.ID); err != nil {
			t.Fatal(err)
		}
		w.settle(other.ID)
		w.want(w.create(s), database.StateRunning) // begun anew
	})
}

func TestFailedUpdateFallsBack(t *testing.T) {
	inWorld(t, func(w *world) {
		t := w.t
		s := w.spec("orders")
		w.create(s)
		bad := s
		bad.Parameters = map[string]string{"shared_buffers": "1TB"}
		if _, err := w.Update(t.Context(), bad); err != nil {
			t.Fatal(err)
		}
		v := w.settle(s.ID)
		w.want(v, database.StateRunning)
		if v.Operation.Err == "" || v.Spec.Parameters["shared_buffers"] != "16MB" {
			t.Errorf("%+v", v)
		}
		w.calls()
		w.ServerChanged(vserver.View{Spec: vserver.Spec{ID: w.server}}, "")
		w.want(w.settle(s.ID), database.StateRunning)
		w.expect("")
	})
}

func TestRefusals(t *testing.T) {
	inWorld(t, func(w *world) {
		t := w.t
		kept := w.spec("kept")
		kept.DeletionProtection = true
		w.create(kept)
		w.calls()
		for name, c := range map[string]struct {
			spoil func(*database.Spec)
			kind  fault.Kind
			field string
		}{
			"name":             {func(s *database.Spec) { s.Name = "Orders" }, fault.Invalid, "name"},
			"reserved name":    {func(s *database.Spec) { s.Name = "postgres" }, fault.Invalid, "name"},
			"taken name":       {func(s *database.Spec) { s.Name = "kept" }, fault.Exists, "name"},
			"taken port":       {func(s *database.Spec) { s.Name = "orders" }, fault.Exists, "port"},
			"owner":            {func(s *database.Spec) { s.Owner = "reflejo" }, fault.Invalid, "owner"},
			"port":             {func(s *database.Spec) { s.Port = 70000 }, fault.Invalid, "port"},
			"range":            {func(s *database.Spec) { s.Clients.CIDRs = []netip.Prefix{netip.MustParsePrefix("10.0.0.1/8")} }, fault.Invalid, "clients.cidrs"},
			"tls":              {func(s *database.Spec) { s.Clients.TLS = "perhaps" }, fault.Invalid, "clients.tls"},
			"owned":            {func(s *database.Spec) { s.Parameters = map[string]string{"fsync": "off"} }, fault.Invalid, "parameters.fsync"},
			"family":           {func(s *database.Spec) { s.Parameters = map[string]string{"ssl_ca_file": "x"} }, fault.Invalid, "parameters.ssl_ca_file"},
			"not PostgreSQL's": {func(s *database.Spec) { s.Port, s.Parameters = 1, map[string]string{"work_mem": "bogus"} }, fault.Invalid, "parameters.work_mem"},
			"line":             {func(s *database.Spec) { s.Parameters = map[string]string{"work_mem": "1\nfsync=off"} }, fault.Invalid, "parameters.work_mem"},
			"major":            {func(s *database.Spec) { s.Port, s.Major = 1, 16 }, fault.Invalid, "pg_major"},
			"no server":        {func(s *database.Spec) { s.Server = uuid.NewString() }, fault.NotFound, ""},
		} {
			s := w.spec("new")
			c.spoil(&s)
			if _, err := w.Create(t.Context(), s); !fault.Is(err, c.kind) || fault.FieldOf(err) != c.field {
				t.Errorf("%s: %v (%s), blames %q", name, err, fault.KindOf(err), fault.FieldOf(err))
			}
		}
		if err := w.Delete(t.Context(), "kept"); !fault.Is(err, fault.Precondition) {
			t.Errorf("deleted what is protected: %v", err)
		}
		for name, spoil := range map[string]func(*database.Spec){
			"name": func(s *database.Spec) { s.Name = "other" }, "server_id": func(s *database.Spec) { s.Server = uuid.NewString() },
			"pg_major": func(s *database.Spec) { s.Major = 16 },
		} {
			s := kept
			spoil(&s)
			if _, err := w.Update(t.Context(), s); fault.FieldOf(err) != name {
				t.Errorf("changed %s: %v", name, err)
			}
		}
		w.expect("")
		w.host.SetServer(w.server, vserver.StateStopped)
		if _, err := w.Create(t.Context(), w.spec("new")); !fault.Is(err, fault.Precondition) {
			t.Errorf("created in a stopped server: %v", err)
		}
	})
}

// A database follows its server: down before it and cleanly, up after it.
func TestFollowsItsServer(t *testing.T) {
	inWorld(t, func(w *world) {
		t := w.t
		s := w.spec("orders")
		w.create(s)
		w.calls()
		if err := w.ServerStops(t.Context(), w.server, time.Minute); err != nil {
			t.Fatal(err)
		}
		w.expect("stop")
		w.want(w.settle(s.ID), database.StateStopped)
		synctest.Wait()
		w.expect("") // it stays down while the server goes
		state := func(s vserver.State) {
			w.host.SetServer(w.server, s)
			w.ServerChanged(vserver.View{Spec: vserver.Spec{ID: w.server}, State: s}, "")
		}
		state(vserver.StateStopped)
		w.want(w.settle(s.ID), database.StateStopped)
		w.expect("close 5432")
		state(vserver.StateRunning)
		w.want(w.settle(s.ID), database.StateRunning)
		w.expect("close 5432, run orders, grant orders, open 5432")
		state(vserver.StateStopped) // it died
		w.want(w.settle(s.ID), database.StateStopped)
		w.expect("close 5432, stop")
		state(vserver.StateRunning)
		w.want(w.settle(s.ID), database.StateRunning)
		w.calls()
		state(vserver.StateSuspended)
		w.want(w.settle(s.ID), database.StateRunning)
		w.expect("")
	})
}

// Whose guard ends is started again, until it works.
func TestGuardEnds(t *testing.T) {
	inWorld(t, func(w *world) {
		t := w.t
		s := w.spec("orders")
		w.create(s)
		w.calls()
		w.host.Fail("run", errors.New("not yet"))
		w.host.KillGuard(s.ID)
		synctest.Wait()
		time.Sleep(30 * time.Second)
		w.host.Fail("run", nil)
		w.want(w.settle(s.ID), database.StateRunning)
		if calls := w.calls(); strings.Count(calls, "run orders") < 3 || strings.Count(calls, "open 5432") != 1 {
			t.Error(calls)
		}
	})
}

// An agent's start takes over what runs and disturbs nothing.
func TestAgentComesBack(t *testing.T) {
	inWorld(t, func(w *world) {
		t := w.t
		s := w.spec("orders")
		w.create(s)
		w.calls()
		w.Close()
		w.start()
		w.want(w.settle(s.ID), database.StateRunning)
		w.expect("run orders, grant orders, open 5432")
		if n := w.host.Starts(s.ID); n != 1 {
			t.Errorf("started %d times", n)
		}
		w.Close()
		w.host.SetServer(w.server, vserver.StateStopped)
		w.start()
		w.want(w.settle(s.ID), database.StateStopped)
		w.expect("stop") // an earlier agent's guard may wait for the server
	})
}

// What somebody changed behind the agent's back is said and put right.
func TestTamperingIsFound(t *testing.T) {
	inWorld(t, func(w *world) {
		t := w.t
		s := w.spec("orders")
		w.create(s)
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		go w.Look(ctx, time.Minute)
		time.Sleep(90 * time.Second)
		w.calls()
		w.host.Tamper(s.ID, "fsync is off")
		time.Sleep(time.Minute)
		v := w.settle(s.ID)
		w.want(v, database.StateRunning)
		w.expect("run orders, grant orders, open 5432")
		if len(v.Messages) == 0 || v.Messages[len(v.Messages)-1].Text != "fsync is off" {
			t.Errorf("%v", v.Messages)
		}
		cancel()
	})
}

// An agent that ends in the middle of any step, before or after its effect, finishes the
// operation when it is back.
func TestEveryStepMayBeTheLast(t *testing.T) {
	for _, done := range []bool{false, true} {
		for _, call := range []string{"create", "run", "grant", "open", "remove"} {
			inWorld(t, func(w *world) {
				t := w.t
				s := w.spec("orders")
				ends := func(again func()) {
					w.host.Stick(call, done)
					again()
					synctest.Wait()
					w.Close()
					w.host.Stick("", false)
					w.start()
				}
				ends(func() {
					if _, err := w.Create(t.Context(), s); err != nil {
						t.Fatal(err)
					}
				})
				w.want(w.settle(s.ID), database.StateRunning)
				s.Parameters = map[string]string{"shared_buffers": "32MB"}
				ends(func() {
					if _, err := w.Update(t.Context(), s); err != nil {
						t.Fatal(err)
					}
				})
				v := w.settle(s.ID)
				w.want(v, database.StateRunning)
				if !strings.Contains(w.host.String(), "32MB") || v.Operation.Err != "" {
					t.Errorf("%s, done %v: %+v\n%s", call, done, v, w.host)
				}
				ends(func() {
					if err := w.Delete(t.Context(), s.ID); err != nil {
						t.Fatal(err)
					}
				})
				if v := w.settle(s.ID); v != nil || w.host.String() != "" || len(w.records) != 0 {
					t.Errorf("%s, done %v: %+v\n%s", call, done, v, w.host)
				}
			})
		}
	}
}

// A deletion breaks a creation off.
func TestDeleteBreaksOff(t *testing.T) {
	inWorld(t, func(w *world) {
		t := w.t
		s := w.spec("orders")
		w.host.Stick("run", false)
		if _, err := w.Create(t.Context(), s); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if err := w.Delete(t.Context(), s.ID); err != nil {
			t.Fatal(err)
		}
		if v := w.settle(s.ID); v != nil || w.host.String() != "" {
			t.Errorf("%+v\n%s", v, w.host)
		}
	})
}

// A server that is to stop stops, whatever its databases are at.
func TestServerStopsInTheMiddle(t *testing.T) {
	inWorld(t, func(w *world) {
		t := w.t
		s := w.spec("orders")
		w.create(s)
		s.Parameters = nil
		w.host.Stick("run", false)
		if _, err := w.Update(t.Context(), s); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if err := w.ServerStops(t.Context(), w.server, time.Minute); err != nil {
			t.Fatal(err)
		}
		w.host.Stick("", false)
		if v := w.settle(s.ID); v.State != database.StateStopped {
			t.Errorf("%+v", v)
		}
		w.ServerStarted(w.server) // it only rebooted
		v := w.settle(s.ID)
		w.want(v, database.StateRunning)
		if v.Spec.Parameters != nil || strings.Contains(w.host.String(), "16MB") {
			t.Errorf("the change is lost: %+v\n%s", v, w.host)
		}
	})
}
