package backup

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
	"github.com/reflejo/terraform-provider-reflejo/agent/vserver"
)

// Config is what a manager is made of.
type Config struct {
	Records   Records // of backups
	Runs      Records // of policies
	Snapshots Snapshots
	Servers   Servers
	Stores    Stores
	Parallel  int // backups that are written at once; 0 means 2
	Log       hclog.Logger
	Observe   func(operation string, took time.Duration, err error) // create, delete or policy, for metrics; may be nil
	Delays    []time.Duration                                       // between tries of a target that is away; nil means 1s … 15m
}

// Manager makes the backups of a host. Its methods may be called at any time from any goroutine.
type Manager struct {
	cfg   Config
	ctx   context.Context
	stop  context.CancelFunc
	wg    sync.WaitGroup
	slots chan struct{} // bounds backups at once

	mu      sync.Mutex
	backups map[string]*item
	runs    map[string]*run // by server
	busy    map[string]int  // by backup: imports and verifications that read its file
	leaving map[string]bool // by backup: another host's that is being deleted
}

// item is a backup in memory. The manager's lock guards it.
type item struct {
	rec      Record
	op       vserver.Operation
	cancel   context.CancelFunc // ends the work under way; nil: there is none
	done     chan struct{}      // closed when that work has ended
	watchers map[chan View]struct{}
	gone     bool
}

// NewManager loads the records. Nothing is done before Recover.
func NewManager(cfg Config) (*Manager, error) {
	if cfg.Parallel == 0 {
		cfg.Parallel = 2
	}
	if cfg.Log == nil {
		cfg.Log = hclog.NewNullLogger()
	}
	if cfg.Observe == nil {
		cfg.Observe = func(string, time.Duration, error) {}
	}
	if cfg.Delays == nil {
		cfg.Delays = []time.Duration{time.Second, 10 * time.Second, time.Minute, 5 * time.Minute, 15 * time.Minute}
	}
	m := &Manager{cfg: cfg, slots: make(chan struct{}, cfg.Parallel), backups: map[string]*item{}, runs: map[string]*run{}, busy: map[string]int{}, leaving: map[string]bool{}}
	m.ctx, m.stop = context.WithCancel(context.Background())
	err := cfg.Records.ForEach(func(key string, value []byte) error {
		it := &item{watchers: map[chan View]struct{}{}}
		if err := json.Unmarshal(value, &it.rec); err != nil {
			return fmt.Errorf("read record of backup %s: %w", key, err)
		}
		it.failed()
		m.backups[key] = it
		return nil
	})
	if err != nil {
		return nil, err
	}
	return m, m.loadRuns()
}

// Recover goes on with what a killed agent was at. Call it once, when snapshots can be opened.
func (m *Manager) Recover() {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, it := range m.backups {
		switch it.rec.Phase {
		case PhaseWriting:
			m.begin(it, "create", m.write)
		case PhaseDeleting:
			m.begin(it, "delete", m.remove)
		}
	}
}

// Close ends what is under way; the next agent's Recover goes on with it.
func (m *Manager) Close() {
	m.stop()
	m.wg.Wait()
}

// Create records a new backup and begins to write it. The same request again is the same
// backup, and goes on with one that failed. Outcomes besides success: fault.NotFound for a
// snapshot that is not there, fault.Exists for an id that is another request's,
// fault.Precondition for a target that is not allowed.
func (m *Manager) Create(ctx context.Context, req Request) (View, error) {
	if req.Origin == "" {
		req.Origin = OriginManual
	}
	if err := req.Validate(); err != nil {
		return View{}, err
	}
	if err := m.cfg.Stores.Allow(req.Target); err != nil {
		return View{}, err
	}
	if v, there, err := m.again(req); there || err != nil {
		return v, err
	}
	content, source, err := m.cfg.Snapshots.Open(ctx, req.Snapshot)
	if err != nil {
		return View{}, fmt.Errorf("back up snapshot %s: %w", req.Snapshot, err)
	}
	content.Close()
	asked := req
	if req.Name == "" {
		req.Name = source.Name
	}
	m.mu.Lock()
	if _, there := m.backups[req.ID]; there { // another caller was faster
		m.mu.Unlock()
		v, _, err := m.again(asked)
		return v, err
	}
	defer m.mu.Unlock()
	it := &item{watchers: map[chan View]struct{}{}, rec: Record{Request: req, Phase: PhaseWriting, Source: source, Begun: time.Now().UTC()}}
	it.rec.Source.Spec.FirstBoot.UserData = ""
	if err := m.cfg.Records.Put(req.ID, it.rec); err != nil {
		return View{}, fmt.Errorf("record backup %s: %w", req.ID, err)
	}
	m.backups[req.ID] = it
	m.begin(it, "create", m.write)
	return it.view(), nil
}

// again answers a request whose id is known.
func (m *Manager) again(req Request) (v View, there bool, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	it, there := m.backups[req.ID]
	if !there {
		return View{}, false, nil
	}
	if req.Name == "" {
		req.Name = it.rec.Name
	}
	if it.rec.Request != req {
		return View{}, true, fault.New(fault.Exists, "create backup %s: the id is taken by a backup that was asked for with other settings", req.ID)
	}
	switch it.rec.Phase {
	case PhaseDeleting:
		return View{}, true, fault.New(fault.Aborted, "create backup %s: it is being deleted", req.ID)
	case PhaseFailed:
		if err := m.put(it, func(r *Record) { r.Phase, r.Err, r.ErrKind = PhaseWriting, "", "" }); err != nil {
			return View{}, true, err
		}
		m.begin(it, "create", m.write)
	}
	return it.view(), true, nil
}

// begin starts work on a backup that no work is under way on. m.mu is held.
func (m *Manager) begin(it *item, kind string, work func(context.Context, *item) error) {
	ctx, cancel := context.WithCancel(m.ctx)
	done := make(chan struct{})
	it.cancel, it.done = cancel, done
	it.op = vserver.Operation{Kind: kind, Started: time.Now().UTC()}
	it.notify()
	m.wg.Go(func() {
		defer close(done)
		began := time.Now()
		err := m.retry(ctx, it, work)
		cancelled := ctx.Err() != nil
		cancel()
		if !cancelled {
			m.cfg.Observe(kind, time.Since(began), err)
		}
		m.finish(it, done, cancelled, err)
	})
}

// retry does work on a backup, some times if its target is away. Who waits lets others have
// the slot.
func (m *Manager) retry(ctx context.Context, it *item, work func(context.Context, *item) error) error {
	for try := 0; ; try++ {
		err := m.inSlot(ctx, it, work)
		if err == nil || try == len(m.cfg.Delays) || !fault.Is(err, fault.Unavailable) {
			return err
		}
		m.cfg.Log.Warn("backup waits for its target", "backup", it.rec.ID, "for", m.cfg.Delays[try], "error", err)
		m.step(it, "wait for target: "+err.Error(), 0, 0)
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(m.cfg.Delays[try]):
		}
	}
}

func (m *Manager) inSlot(ctx context.Context, it *item, work func(context.Context, *item) error) error {
	m.step(it, "wait for others", 0, 0)
	select {
	case m.slots <- struct{}{}:
		defer func() { <-m.slots }()
		return work(ctx, it)
	case <-ctx.Done():
		return ctx.Err()
	}
}

// finish records how work ended. Work that was cancelled leaves the record to who did so.
func (m *Manager) finish(it *item, done chan struct{}, cancelled bool, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if it.done == done {
		it.cancel, it.done = nil, nil
	}
	if cancelled || it.gone {
		return
	}
	if err == nil {
		it.op = vserver.Operation{}
		it.notify()
		return
	}
	m.cfg.Log.Error("backup failed", "backup", it.rec.ID, "operation", it.op.Kind, "error", err)
	perr := m.put(it, func(r *Record) {
		r.Err, r.ErrKind = err.Error(), fault.KindOf(err).String()
		if r.Phase == PhaseWriting {
			r.Phase = PhaseFailed
		}
	})
	if perr != nil {
		m.cfg.Log.Error("record failed backup", "backup", it.rec.ID, "error", perr)
	}
	it.failed()
	it.notify()
}

// failed makes the operation what the record says of the last one.
func (it *item) failed() {
	if it.rec.Err == "" {
		return
	}
	kind := "create"
	if it.rec.Phase == PhaseDeleting {
		kind = "delete"
	}
	it.op = vserver.Operation{Kind: kind, Started: it.rec.Begun, Err: it.rec.Err, ErrKind: it.rec.ErrKind, Done: true}
}

// put changes a record, durably. m.mu is held.
func (m *Manager) put(it *item, change func(*Record)) error {
	next := it.rec
	change(&next)
	if err := m.cfg.Records.Put(next.ID, next); err != nil {
		return fmt.Errorf("record backup %s: %w", next.ID, err)
	}
	it.rec = next
	return nil
}

// save is put for who does not hold the lock.
func (m *Manager) save(it *item, change func(*Record)) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.put(it, change)
}

func (m *Manager) record(it *item) Record {
	m.mu.Lock()
	defer m.mu.Unlock()
	return it.rec
}

// step says what a backup is at.
func (m *Manager) step(it *item, step string, done, total int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if it.op.Step == step && it.op.BytesTotal == total && done-it.op.BytesDone < total/200 && done != total { // watchers need no more
		return
	}
	it.op.Step, it.op.BytesDone, it.op.BytesTotal = step, done, total
	it.notify()
}

func (it *item) view() View {
	v := it.rec.view()
	v.Operation, v.Gone = it.op, it.gone
	return v
}

// notify sends the view to all watchers; a slow one finds only the newest.
func (it *item) notify() {
	for ch := range it.watchers {
		select {
		case <-ch:
		default:
		}
		ch <- it.view()
		if it.gone {
			delete(it.watchers, ch)
			close(ch)
		}
	}
}

// Get is one backup; fault.NotFound where this host knows none of the id.
func (m *Manager) Get(id string) (View, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	it, err := m.find(id)
	if err != nil {
		return View{}, err
	}
	return it.view(), nil
}

func (m *Manager) find(id string) (*item, error) {
	it, ok := m.backups[id]
	if !ok {
		return nil, fault.New(fault.NotFound, "find backup %s: this host knows none of this id", clip(id))
	}
	return it, nil
}

// List is all backups that this host made, of a server if it is not "", oldest first.
func (m *Manager) List(server string) []View {
	m.mu.Lock()
	defer m.mu.Unlock()
	var all []View
	for it := range maps.Values(m.backups) {
		if server == "" || it.rec.Source.Server == server {
			all = append(all, it.view())
		}
	}
	slices.SortFunc(all, func(a, b View) int { return cmp.Or(a.Created.Compare(b.Created), cmp.Compare(a.ID, b.ID)) })
	return all
}

// Watch sends the backup's view now and after each change, the newest only if the reader is
// slow. The channel is closed after a view with Gone set, when ctx ends, or at Close.
func (m *Manager) Watch(ctx context.Context, id string) (<-chan View, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	it, err := m.find(id)
	if err != nil {
		return nil, err
	}
	ch := make(chan View, 1)
	ch <- it.view()
	it.watchers[ch] = struct{}{}
	drop := func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		if _, ok := it.watchers[ch]; ok {
			delete(it.watchers, ch)
			close(ch)
		}
	}
	stop := context.AfterFunc(m.ctx, drop)
	context.AfterFunc(ctx, func() { stop(); drop() })
	return ch, nil
}

// Settled waits until nothing is under way on a backup and returns how it then is.
func (m *Manager) Settled(ctx context.Context, id string) (View, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	ch, err := m.Watch(ctx, id)
	if err != nil {
		return View{}, err
	}
	for v := range ch {
		if v.Gone || v.Operation.Settled() {
			return v, nil
		}
	}
	if err := ctx.Err(); err != nil {
		return View{}, err
	}
	return View{}, fault.New(fault.Unavailable, "wait for backup %s: the agent is ending", id)
}

// Uses reports whether a backup that is being written reads a snapshot, or is an increment
// to a backup of it, so that it can't be deleted now.
func (m *Manager) Uses(snapshot string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, it := range m.backups {
		if it.rec.Phase == PhaseWriting && (it.rec.Snapshot == snapshot || it.rec.Base == snapshot) {
			return true
		}
	}
	return false
}
