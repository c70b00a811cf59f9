package snapshot

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
	"github.com/reflejo/terraform-provider-reflejo/agent/units"
	"github.com/reflejo/terraform-provider-reflejo/agent/vserver"
)

// Config is what a manager is made of.
type Config struct {
	Host    string
	Records vserver.Records
	Disks   Disks
	// Quiet makes what stops the writers of a server's disk: the file system mounted at
	// root, and with tasks the server's tasks before it. When they go on, held is told for
	// how long they were held up.
	Quiet func(server, root string, tasks bool, held func(time.Duration)) Quiet
	Bring Bring // brings what imported snapshots hold; nil: there are none
	// Foreign says whether a snapshot in the pool that no record here knows is somebody
	// else's, who removes it; nil: none is.
	Foreign  func(id string) bool
	SumsDir  string // where the sums of snapshots' chunks are kept; it must exist
	Parallel int    // snapshots taken at once; 0 means 4
	Log      hclog.Logger
	Observe  func(operation string, took time.Duration, err error) // for metrics; may be nil
	Now      func() time.Time                                      // nil means time.Now
}

// Manager keeps the snapshots of one host. Its methods may be called at any time from any
// goroutine. It is closed before the servers' manager is.
type Manager struct {
	cfg     Config
	ctx     context.Context
	stop    context.CancelFunc
	wg      sync.WaitGroup
	servers Servers
	takes   chan struct{} // bounds snapshots taken at once
	sums    chan struct{} // bounds disks read for their checksums: one

	admission sync.Mutex   // one creation at a time is admitted
	reserved  atomic.Int64 // of the pool, bytes; servers' admission reads it under a lock of its own

	mu      sync.Mutex // items and all that is in them
	items   map[string]*item
	chains  map[string]chan struct{} // by server: who has the turn may change what is counted of its snapshots
	asked   int64                    // reserved without a record, bytes
	unknown []string                 // in the pool, without a record
	use     use
}

// NewManager loads the records. [Manager.Bind] has to follow before anything else; nothing
// is done to any snapshot before Recover.
func NewManager(cfg Config) (*Manager, error) {
	if cfg.Parallel == 0 {
		cfg.Parallel = 4
	}
	if cfg.Log == nil {
		cfg.Log = hclog.NewNullLogger()
	}
	if cfg.Observe == nil {
		cfg.Observe = func(string, time.Duration, error) {}
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	m := &Manager{cfg: cfg, items: map[string]*item{}, chains: map[string]chan struct{}{},
		takes: make(chan struct{}, cfg.Parallel), sums: make(chan struct{}, 1)}
	m.ctx, m.stop = context.WithCancel(context.Background())
	err := cfg.Records.ForEach(func(key string, value []byte) error {
		var rec Record
		if err := json.Unmarshal(value, &rec); err != nil {
			return fmt.Errorf("read record of snapshot %s: %w", key, err)
		}
		if !vserver.ValidID(rec.ID) || rec.ID != key {
			return fault.New(fault.Invalid, "read record of snapshot %s: its id is %q", key, rec.ID)
		}
		m.items[key] = newItem(m, rec)
		return nil
	})
	if err != nil {
		return nil, err
	}
	m.count()
	m.removeStraySums()
	return m, nil
}

// Bind names the servers, whose manager asks this one too and so is made after it.
func (m *Manager) Bind(servers Servers) { m.servers = servers }

// Close stops managing: what is under way is broken off and picked up by the next Recover.
func (m *Manager) Close() {
	m.stop()
	m.wg.Wait()
}

// Create admits and records a new snapshot and begins to take it. The same request under
// the same id again is the same snapshot, with other settings it is fault.Exists; one that
// failed is begun anew. No room for what it may come to take is fault.Exhausted.
func (m *Manager) Create(_ context.Context, req Request) (View, error) {
	req = req.withDefaults()
	if err := req.Validate(); err != nil {
		return View{}, err
	}
	m.admission.Lock()
	defer m.admission.Unlock()
	if v, there, err := m.again(req); there || err != nil {
		return v, err
	}
	server, err := m.servers.Get(req.Server)
	if err != nil {
		return View{}, &fault.Error{Kind: fault.KindOf(err), Field: "server_id", Err: fmt.Errorf("take snapshot: %w", err)}
	}
	switch server.State {
	case vserver.StateRunning, vserver.StateStopped, vserver.StateSuspended:
	default:
		return View{}, fault.New(fault.Precondition, "take snapshot of server %s: it is %s", server.Spec.Name, server.State)
	}
	rec := Record{ID: req.ID, Server: server.Spec.ID, ServerName: server.Spec.Name, Host: m.cfg.Host, Name: req.Name,
		Description: req.Description, Labels: maps.Clone(req.Labels), Consistency: req.Consistency, Origin: req.Origin,
		Phase: PhaseCreating, ServerState: server.State, Size: server.Spec.Disk.Size, Created: m.cfg.Now().UTC(), Held: atMost(server)}
	prefix := rec.ServerName
	if rec.Origin != OriginManual {
		prefix = string(rec.Origin)
	}
	var v View
	_, err = m.admit(rec, prefix, func(it *item) {
		it.begin("create", it.take)
		v = it.view()
	})
	return v, err
}

// again answers a request whose id is known already. A failed one goes, to be begun anew.
func (m *Manager) again(req Request) (v View, there bool, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	it := m.items[req.ID]
	switch {
	case it == nil:
		return View{}, false, nil
	case !it.rec.answers(req):
		return View{}, true, fault.New(fault.Exists, "take snapshot: id %s is taken by snapshot %s of server %s, which was asked for with other settings",
			req.ID, it.rec.Name, it.rec.ServerName)
	case it.rec.Phase == PhaseFailed && !it.busy():
		return View{}, false, nil
	}
	return it.view(), true, nil
}

// atMost is what a snapshot of the server may come to take from the pool: what its disk has
// allocated. What of that older snapshots hold already is only known when it is taken.
func atMost(server vserver.View) int64 {
	if server.DiskUsed > 0 {
		return min(server.DiskUsed, server.Spec.Disk.Size)
	}
	return server.Spec.Disk.Size
}

// admit makes a new record durable if there is room for what it holds, and lets begin do
// something with it at once. A record without a name is called after prefix and its moment.
// m.admission is held.
func (m *Manager) admit(rec Record, prefix string, begin func(*item)) (*item, error) {
	if err := m.reserve("take snapshot of server "+rec.ServerName, rec.Held); err != nil {
		return nil, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.ask(-rec.Held) // what follows is seen by nobody before the record counts
	if err := m.name(&rec, prefix); err != nil {
		return nil, err
	}
	it, err := m.insert(rec)
	if err == nil {
		begin(it)
	}
	return it, err
}

// Reserve takes that many bytes of the host's promise for what is to become snapshots, until
// release is called. No room is fault.Exhausted; what says for what it is asked.
func (m *Manager) Reserve(what string, bytes int64) (release func(), err error) {
	if err := m.reserve(what, bytes); err != nil {
		return nil, err
	}
	return sync.OnceFunc(func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		m.ask(-bytes)
	}), nil
}

// reserve is Reserve without an end: who calls it takes the bytes back with ask.
func (m *Manager) reserve(what string, bytes int64) error {
	m.mu.Lock()
	m.ask(bytes) // first: a server that is admitted at this moment has to see it
	m.mu.Unlock()
	capacity, promised, _ := m.servers.Resources()
	if free := capacity.Disk - (promised.Disk - bytes); bytes > free {
		m.mu.Lock()
		defer m.mu.Unlock()
		m.ask(-bytes)
		return &fault.Error{Kind: fault.Exhausted, Err: fmt.Errorf(
			"%s: disk: it may come to take %s, the host has %s free; delete snapshots, or free some of its disk elsewhere",
			what, inMiB(bytes+1<<20-1), inMiB(max(0, free)))}
	}
	return nil
}

// ask counts bytes that are reserved without a record. m.mu is held.
func (m *Manager) ask(bytes int64) {
	m.asked += bytes
	m.count()
}

func inMiB(bytes int64) string { return units.FormatBytes(bytes >> 20 << 20) }

// insert makes a new record durable and known. m.mu is held.
func (m *Manager) insert(rec Record) (*item, error) {
	if err := m.cfg.Records.Put(rec.ID, rec); err != nil {
		return nil, fmt.Errorf("record snapshot %s: %w", rec.Name, err)
	}
	it := m.items[rec.ID]
	if it == nil {
		it = newItem(m, rec)
		m.items[rec.ID] = it
	}
	it.rec = rec
	m.count()
	return it, nil
}

// name gives a record without a name one that is free, and refuses one that is not, and a
// server with too many. m.mu is held.
func (m *Manager) name(rec *Record, prefix string) error {
	taken := m.names(*rec)
	if len(taken) >= maxPerServer {
		return fault.New(fault.Exhausted, "snapshots of server %s: it has %d, at most %d; delete some", rec.ServerName, len(taken), maxPerServer)
	}
	if rec.Name == "" {
		rec.Name = freeName(defaultName(prefix, rec.Created), taken)
	} else if taken[rec.Name] {
		return &fault.Error{Kind: fault.Exists, Field: "name", Err: fmt.Errorf("name %q: another snapshot of server %s has it", rec.Name, rec.ServerName)}
	}
	return nil
}

// names are those of the other snapshots of a record's server. m.mu is held.
func (m *Manager) names(rec Record) map[string]bool {
	taken := map[string]bool{}
	for id, it := range m.items {
		if it.rec.Server == rec.Server && id != rec.ID {
			taken[it.rec.Name] = true
		}
	}
	return taken
}

// count adds up what is reserved. m.mu is held, or nobody else knows the manager yet.
func (m *Manager) count() {
	sum := m.asked
	for _, it := range m.items {
		sum += it.rec.Held
	}
	m.reserved.Store(sum)
}

// Reserved is how much of the pool all snapshots may come to take, bytes.
func (m *Manager) Reserved() int64 { return m.reserved.Load() }

// Update changes a snapshot's name, description and labels; "" keeps the name.
func (m *Manager) Update(id, name, description string, labels map[string]string) (View, error) {
	if name != "" {
		if err := validateName(name); err != nil {
			return View{}, err
		}
	}
	if err := validateTexts(description, labels); err != nil {
		return View{}, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	it, err := m.find(id)
	if err != nil {
		return View{}, err
	}
	if p := it.rec.Phase; p != PhaseCreating && p != PhaseReady {
		return View{}, fault.New(fault.Precondition, "update snapshot %s: it is %s", it.rec.Name, p)
	}
	err = it.saveLocked(func(r *Record) error {
		if name != "" {
			r.Name = name
		}
		r.Description, r.Labels = description, maps.Clone(labels)
		return m.name(r, r.ServerName)
	})
	return it.view(), err
}

// Delete begins to remove a snapshot, whatever others were taken before or after it. One
// that something uses is fault.Precondition and left alone.
func (m *Manager) Delete(_ context.Context, id string) error {
	var servers []vserver.View
	if _, err := m.view(id); err == nil {
		servers = m.servers.List()
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	it, err := m.find(id)
	if err != nil {
		return err
	}
	for _, s := range servers {
		restoring := !s.Operation.Settled() && (s.Spec.RestoreFrom == id || s.Operation.Kind == "restore" && s.Spec.ID == it.rec.Server)
		if restoring || s.Spec.CloneOf == id && s.State == vserver.StateCreating {
			return fault.New(fault.Precondition, "delete snapshot %s: server %s is being made from it or restored; wait until that is complete", it.rec.Name, s.Spec.Name)
		}
	}
	if err := it.unused(); err != nil {
		return err
	}
	return it.beginRemove()
}

// unused refuses a deletion of what is in use. m.mu is held.
func (it *item) unused() error {
	if it.pins > 0 {
		return fault.New(fault.Precondition, "delete snapshot %s of server %s: a backup, migration, restore or clone reads it; wait until it is complete", it.rec.Name, it.rec.ServerName)
	}
	return nil
}

// beginRemove makes a deletion durable and begins it. m.mu is held.
func (it *item) beginRemove() error {
	if it.rec.Phase == PhaseDeleting && it.busy() {
		return nil
	}
	err := it.saveLocked(func(r *Record) error {
		r.Phase, r.Err, r.ErrKind = PhaseDeleting, "", ""
		return nil
	})
	if err == nil {
		it.begin("delete", it.remove)
	}
	return err
}

// find is a snapshot by id. m.mu is held.
func (m *Manager) find(id string) (*item, error) {
	if it := m.items[id]; it != nil {
		return it, nil
	}
	return nil, fault.New(fault.NotFound, "snapshot %q: host %s has none of this id", id, m.cfg.Host)
}
