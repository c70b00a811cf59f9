package database

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
	"github.com/reflejo/terraform-provider-reflejo/agent/vserver"
)

// Config is what a manager is made of.
type Config struct {
	Host      string
	Records   Records
	Clusters  Clusters
	Inspector Inspector
	Servers   Servers
	Secrets   Secrets
	Ports     Ports // nil: databases are reached by their servers' addresses
	Log       hclog.Logger
	StopLimit time.Duration                                         // of a clean stop; 0 means 30 s
	Observe   func(operation string, took time.Duration, err error) // for metrics; may be nil
	Retry     []time.Duration                                       // between tries of what nobody waits for; nil means 1s, 5s, 15s, then every minute
}

// Manager keeps the databases of one host. Its methods may be called at any time from any
// goroutine; operations on one database happen one after the other.
type Manager struct {
	cfg  Config
	ctx  context.Context
	stop context.CancelFunc
	wg   sync.WaitGroup

	mu    sync.Mutex // admission: the set of databases and every change of a record
	items map[string]*item
}

// NewManager loads the records. Nothing is done to any database before Recover.
func NewManager(cfg Config) (*Manager, error) {
	if cfg.Log == nil {
		cfg.Log = hclog.NewNullLogger()
	}
	if cfg.Observe == nil {
		cfg.Observe = func(string, time.Duration, error) {}
	}
	if cfg.StopLimit == 0 {
		cfg.StopLimit = 30 * time.Second
	}
	if cfg.Retry == nil {
		cfg.Retry = []time.Duration{time.Second, 5 * time.Second, 15 * time.Second, time.Minute}
	}
	m := &Manager{cfg: cfg, items: map[string]*item{}}
	m.ctx, m.stop = context.WithCancel(context.Background())
	err := cfg.Records.ForEach(func(key string, value []byte) error {
		var rec Record
		if err := json.Unmarshal(value, &rec); err != nil {
			return fmt.Errorf("read record of database %s: %w", key, err)
		}
		if rec.Spec.ID != key || !validID(key) {
			return fault.New(fault.Internal, "read record of database %s: it is of %q", key, rec.Spec.ID)
		}
		m.items[key] = newItem(m, rec)
		return nil
	})
	return m, err
}

// Recover finishes or undoes what a stopped or killed agent left half done, and takes over
// what runs, without disturbing it. Servers are recovered before.
func (m *Manager) Recover(context.Context) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, id := range slices.Sorted(maps.Keys(m.items)) {
		m.items[id].begin(opRecover)
	}
	return nil
}

// Close stops managing: steps under way are cancelled where they can be and picked up by
// the next Recover. Databases go on.
func (m *Manager) Close() {
	m.stop()
	m.wg.Wait()
}

// Create admits and records a new database and begins to make it. The same spec under the
// same id again is the same request; a creation that failed is begun anew. Its server has to
// run: fault.Precondition. A name or port that is taken is fault.Exists.
func (m *Manager) Create(ctx context.Context, spec Spec) (View, error) {
	spec = spec.WithDefaults()
	if err := spec.Validate(); err != nil {
		return View{}, err
	}
	if d, err := m.find(spec.ID); err == nil {
		if v, again, err := m.createAgain(ctx, d, spec); !again {
			return v, err
		}
	}
	rec, err := m.decide(ctx, spec)
	if err != nil {
		return View{}, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, ok := m.items[spec.ID]; ok {
		return View{}, fault.New(fault.Aborted, "create database %s: another request is making it", spec.Name)
	}
	if err := m.admit(rec.Spec); err != nil {
		return View{}, err
	}
	if err := m.cfg.Records.Put(spec.ID, rec); err != nil {
		return View{}, fmt.Errorf("record database %s: %w", spec.Name, err)
	}
	d := newItem(m, rec)
	m.items[spec.ID] = d
	d.begin("create")
	return d.view(), nil
}

// createAgain answers a creation of an id that exists. again is true when it was a failed
// one, whose record is gone now.
func (m *Manager) createAgain(ctx context.Context, d *item, spec Spec) (v View, again bool, err error) {
	rec := d.record()
	if rec.Phase == PhaseFailed || rec.Phase == PhaseUndo {
		if err := m.Delete(ctx, d.id); err != nil {
			return View{}, false, err
		}
		return View{}, true, d.settled(ctx)
	}
	same := spec
	same.Password = ""
	if same.Major == 0 {
		same.Major = rec.Spec.Major
	}
	if !reflect.DeepEqual(rec.Spec.clone(), same.clone()) || spec.Password != "" && !m.cfg.Secrets.Proves(rec.Secret, spec.Password) {
		return View{}, false, fault.New(fault.Exists, "create database %s: id %s is taken by database %s, which was asked for with other settings", spec.Name, spec.ID, rec.Spec.Name)
	}
	return d.view(), false, nil
}

// decide makes the record of a new database: all that its server's PostgreSQL has to say is
// asked before anything is touched.
func (m *Manager) decide(ctx context.Context, spec Spec) (Record, error) {
	if err := m.serverRuns("create", spec); err != nil {
		return Record{}, err
	}
	major, err := m.major(ctx, spec)
	if err != nil {
		return Record{}, err
	}
	if _, err := m.cfg.Inspector.Check(ctx, spec.Server, major, nil, spec.Parameters); err != nil {
		return Record{}, fmt.Errorf("create database %s: %w", spec.Name, err)
	}
	rec := Record{Operation: vserver.Operation{Kind: "create", Started: time.Now().UTC()}, Phase: PhaseCreate, Major: major, Admin: rand.Text() + rand.Text(), Generation: 1, Created: time.Now().UTC()}
	if spec.Password != "" {
		if rec.Secret, err = m.cfg.Secrets.Secret(spec.Password); err != nil {
			return Record{}, fmt.Errorf("create database %s: %w", spec.Name, err)
		}
	}
	spec.Password = ""
	rec.Spec = spec
	return rec, nil
}

// major is the PostgreSQL that a new database gets.
func (m *Manager) major(ctx context.Context, spec Spec) (int, error) {
	have, err := m.cfg.Inspector.Versions(ctx, spec.Server)
	if err != nil {
		return 0, fmt.Errorf("create database %s: %w", spec.Name, err)
	}
	usable := slices.DeleteFunc(have, func(n int) bool { return n < OldestMajor })
	if len(usable) == 0 {
		return 0, fault.Field("server_id", "create database %s: the server's image has no PostgreSQL %d or newer", spec.Name, OldestMajor)
	}
	if spec.Major == 0 {
		return usable[0], nil
	}
	if !slices.Contains(usable, spec.Major) {
		return 0, fault.Field("pg_major", "create database %s: the server's image has PostgreSQL %v, not %d", spec.Name, usable, spec.Major)
	}
	return spec.Major, nil
}

func (m *Manager) serverRuns(verb string, spec Spec) error {
	v, err := m.cfg.Servers.Get(spec.Server)
	if err != nil {
		return fmt.Errorf("%s database %s: %w", verb, spec.Name, err)
	}
	if v.State != vserver.StateRunning {
		return fault.New(fault.Precondition, "%s database %s: server %s is %s; start it first", verb, spec.Name, v.Spec.Name, v.State)
	}
	return nil
}

// admit refuses names and ports that another database of the host has. m.mu is held.
func (m *Manager) admit(spec Spec) error {
	for id, d := range m.items {
		o := d.record()
		if id == spec.ID || o.Phase == PhaseFailed {
			continue
		}
		if o.Spec.Name == spec.Name {
			return &fault.Error{Kind: fault.Exists, Field: "name", Err: fmt.Errorf("database %s: host %s has one of this name", spec.Name, m.cfg.Host)}
		}
		if o.Spec.Port == spec.Port || o.Applied.Port == spec.Port {
			return &fault.Error{Kind: fault.Exists, Field: "port", Err: fmt.Errorf("database %s: port %d is taken by database %s", spec.Name, spec.Port, o.Spec.Name)}
		}
	}
	return nil
}

// Update makes spec the wanted one. What can't change, and parameters that PostgreSQL does
// not take, are refused before anything is touched.
func (m *Manager) Update(ctx context.Context, spec Spec) (View, error) {
	spec = spec.WithDefaults()
	if err := spec.Validate(); err != nil {
		return View{}, err
	}
	if _, err := m.Effect(ctx, spec); err != nil {
		return View{}, err
	}
	d, err := m.find(spec.ID)
	if err != nil {
		return View{}, err
	}
	return m.change(ctx, d, "update", func(rec *Record) error {
		if err := fixed(*rec, spec); err != nil {
			return err
		}
		if err := m.admit(spec); err != nil {
			return err
		}
		if spec.Password != "" && !m.cfg.Secrets.Proves(rec.Secret, spec.Password) {
			if rec.Secret, err = m.cfg.Secrets.Secret(spec.Password); err != nil {
				return fmt.Errorf("update database %s: %w", spec.Name, err)
			}
		}
		major := rec.Spec.Major
		rec.Spec = spec
		rec.Spec.Password, rec.Spec.Major = "", major
		rec.Generation++
		return nil
	})
}

// fixed refuses a change of what can't change.
func fixed(rec Record, spec Spec) error {
	old := rec.Spec
	switch {
	case rec.Phase != PhaseLive:
		return fault.New(fault.Precondition, "update database %s: it is not complete (%s); delete it", old.Name, rec.Phase)
	case spec.Name != old.Name:
		return fault.Field("name", "update database %s: its name can't be changed", old.Name)
	case spec.Server != old.Server:
		return fault.Field("server_id", "update database %s: where it was created can't be changed", old.Name)
	case spec.Major != 0 && spec.Major != rec.Major:
		return fault.Field("pg_major", "update database %s: it is PostgreSQL %d and can't become %d", old.Name, rec.Major, spec.Major)
	}
	return nil
}

// Effect says what Update would do to the running database. It touches nothing.
func (m *Manager) Effect(ctx context.Context, spec Spec) (Effect, error) {
	spec = spec.WithDefaults()
	d, err := m.find(spec.ID)
	if err != nil {
		return "", err
	}
	rec := d.record()
	if err := fixed(rec, spec); err != nil {
		return "", err
	}
	effect := EffectNone
	if !maps.Equal(spec.Parameters, rec.Spec.Parameters) {
		if err := m.serverRuns("update", spec); err != nil {
			return "", err
		}
		if effect, err = m.cfg.Inspector.Check(ctx, spec.Server, rec.Major, rec.Spec.Parameters, spec.Parameters); err != nil {
			return "", fmt.Errorf("update database %s: %w", spec.Name, err)
		}
	}
	switch {
	case spec.Port != rec.Spec.Port:
		return EffectRestart, nil
	case effect == EffectNone && !reflect.DeepEqual(spec.Clients, rec.Spec.clone().Clients):
		return EffectReload, nil
	}
	return effect, nil
}

// Delete begins to remove a database. A protected one is fault.Precondition and left alone.
func (m *Manager) Delete(ctx context.Context, idOrName string) error {
	d, err := m.find(idOrName)
	if err != nil {
		return err
	}
	if d.record().Phase == PhaseDelete {
		return nil
	}
	_, err = m.change(ctx, d, "delete", func(rec *Record) error {
		if rec.Spec.DeletionProtection && rec.Phase == PhaseLive {
			return &fault.Error{Kind: fault.Precondition, Field: "deletion_protection",
				Err: fmt.Errorf("delete database %s: it is protected; set deletion_protection = false first", rec.Spec.Name)}
		}
		rec.Phase = PhaseDelete
		return nil
	})
	return err
}

// change waits for the database's turn, lets f change a copy of its record, persists that
// and begins to carry it out. What goes on by itself is broken off
// for it, and by a deletion everything.
func (m *Manager) change(ctx context.Context, d *item, kind string, f func(*Record) error) (View, error) {
	for {
		if err := d.turn(ctx, kind == "delete"); err != nil {
			return View{}, fmt.Errorf("%s database %s: wait for the operation under way: %w", kind, d.id, err)
		}
		m.mu.Lock()
		if d.busyNow() { // somebody else was faster
			m.mu.Unlock()
			continue
		}
		defer m.mu.Unlock()
		if d.gone() {
			return View{}, fault.New(fault.NotFound, "database %s: it has just been deleted", d.id)
		}
		rec := d.record()
		if rec.Phase == PhaseDelete && kind != "delete" {
			return View{}, fault.New(fault.Precondition, "%s database %s: it is being deleted", kind, rec.Spec.Name)
		}
		err := f(&rec)
		if err == nil {
			rec.Operation = vserver.Operation{Kind: kind, Started: time.Now().UTC()}
			if err = m.cfg.Records.Put(d.id, rec); err != nil {
				err = fmt.Errorf("record database %s: %w", rec.Spec.Name, err)
			}
		}
		if err != nil {
			d.resume() // what was broken off for it goes on
			return View{}, err
		}
		d.set(rec)
		d.begin(kind)
		return d.view(), nil
	}
}

// Get is one database by id or name.
func (m *Manager) Get(idOrName string) (View, error) {
	d, err := m.find(idOrName)
	if err != nil {
		return View{}, err
	}
	return d.view(), nil
}

// Cluster is a database as the edge takes it, for those who work on it (sessions).
func (m *Manager) Cluster(idOrName string) (Cluster, error) {
	d, err := m.find(idOrName)
	if err != nil {
		return Cluster{}, err
	}
	return d.record().clone().cluster(), nil
}

// List is all databases, sorted by name.
func (m *Manager) List() []View {
	m.mu.Lock()
	all := slices.Collect(maps.Values(m.items))
	m.mu.Unlock()
	views := make([]View, 0, len(all))
	for _, d := range all {
		views = append(views, d.view())
	}
	slices.SortFunc(views, func(a, b View) int { return strings.Compare(a.Spec.Name, b.Spec.Name) })
	return views
}

// OfServer are the databases of a server, which must not be deleted under them.
func (m *Manager) OfServer(id string) []View {
	return slices.DeleteFunc(m.List(), func(v View) bool { return v.Spec.Server != id || v.State == StateFailed && v.Identity == "" })
}

// find is a database by id, else by name.
func (m *Manager) find(idOrName string) (*item, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if d, ok := m.items[idOrName]; ok {
		return d, nil
	}
	for _, d := range m.items {
		if d.record().Spec.Name == idOrName {
			return d, nil
		}
	}
	return nil, fault.New(fault.NotFound, "database %q: host %s has none of this id or name", idOrName, m.cfg.Host)
}
