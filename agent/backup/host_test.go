package backup

import (
	"context"
	"encoding/json"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
	"github.com/reflejo/terraform-provider-reflejo/agent/snapshot"
	"github.com/reflejo/terraform-provider-reflejo/agent/vserver"
)

// bucket is a bucket of the state in memory.
type bucket struct {
	mu     sync.Mutex
	values map[string][]byte
}

func newBucket() *bucket { return &bucket{values: map[string][]byte{}} }

func (b *bucket) Put(key string, v any) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	text, err := json.Marshal(v)
	b.values[key] = text
	return err
}

func (b *bucket) Delete(key string) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.values, key)
	return nil
}

func (b *bucket) ForEach(f func(key string, value []byte) error) error {
	for key, value := range b.values {
		if err := f(key, value); err != nil {
			return err
		}
	}
	return nil
}

// host has a server's disk and its snapshots.
type host struct {
	t      testing.TB
	server string
	rand   *rand.Rand

	mu        sync.Mutex
	now       *disk // the server's disk
	last      string
	snapshots map[string]*disk
	records   map[string]snapshot.Record
	policy    vserver.BackupPolicy
	none      bool // the server is gone
}

func newHost(t testing.TB, seed uint64, size int64) *host {
	return &host{t: t, server: newID(), rand: rand.New(rand.NewPCG(seed, 9)), now: newDisk(seed, size), snapshots: map[string]*disk{}, records: map[string]snapshot.Record{}}
}

// take takes a snapshot of the disk, which changes a little after.
func (h *host) take(id string) snapshot.Record {
	h.mu.Lock()
	defer h.mu.Unlock()
	if rec, ok := h.records[id]; ok {
		return rec
	}
	now := h.now
	rec := recordOf(h.t, id, h.server, now)
	rec.Created = time.Now().UTC()
	h.snapshots[id], h.records[id] = now, rec
	h.now = now.changes(h.rand, id, 3)
	for since, r := range now.changed { // what differs from older ones is what differed then, and now
		h.now.changed[since] = merge(append(slices.Clone(r), h.now.changed[id]...), now.Size())
	}
	h.last = id
	return rec
}

func (h *host) Open(_ context.Context, id string) (snapshot.Content, snapshot.Record, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	d, ok := h.snapshots[id]
	if !ok {
		return nil, snapshot.Record{}, fault.New(fault.NotFound, "there is no snapshot %s", id)
	}
	known := &disk{content: d.content, data: d.data, changed: map[string][]snapshot.Range{}}
	for since, r := range d.changed {
		if h.snapshots[since] != nil {
			known.changed[since] = r
		}
	}
	return known, h.records[id], nil
}

func (h *host) Take(_ context.Context, req snapshot.Request) (snapshot.Record, error) {
	return h.take(req.ID), nil
}

func (h *host) Drop(_ context.Context, id string) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.snapshots, id)
	delete(h.records, id)
	return nil
}

func (h *host) List() []vserver.View {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.none {
		return nil
	}
	return []vserver.View{{State: vserver.StateRunning, Spec: vserver.Spec{ID: h.server, Name: "web", BackupPolicy: h.policy}}}
}

func (h *host) count() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.snapshots)
}

// stores are targets with faults in them.
type stores struct {
	Targets
	mu    sync.Mutex
	left  int64 // bytes that can be written before fault happens; < 0: any
	fault error
	away  error // any use of the target
}

func (s *stores) Open(ctx context.Context, text string) (Target, error) {
	t, err := s.Targets.Open(ctx, text)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.away != nil {
		return nil, s.away
	}
	return &faulty{t, s}, nil
}

// set makes writes fail after n bytes.
func (s *stores) set(n int64, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.left, s.fault = n, err
}

func (s *stores) goAway(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.away = err
}

type faulty struct {
	Target
	s *stores
}

func (f *faulty) Append(ctx context.Context, r Ref, most int64) (Upload, error) {
	u, err := f.Target.Append(ctx, r, most)
	if err != nil {
		return nil, err
	}
	return &faultyUpload{u, f.s}, nil
}

type faultyUpload struct {
	Upload
	s *stores
}

func (u *faultyUpload) Write(p []byte) (int, error) {
	u.s.mu.Lock()
	defer u.s.mu.Unlock()
	if u.s.left < 0 || int64(len(p)) <= u.s.left {
		if u.s.left > 0 {
			u.s.left -= int64(len(p))
		}
		return u.Upload.Write(p)
	}
	n, err := u.Upload.Write(p[:u.s.left])
	if err == nil {
		u.s.left, err = 0, classify(u.s.fault)
	}
	return n, err
}

func (u *faultyUpload) Commit() error {
	u.s.mu.Lock()
	defer u.s.mu.Unlock()
	if u.s.left == 0 {
		u.Upload.Close()
		return classify(u.s.fault)
	}
	return u.Upload.Commit()
}

// agent is a manager of a host, which can be ended and begun anew over the same state.
type agent struct {
	*Manager
	t      testing.TB
	cfg    Config
	stores *stores
	target string
	dir    string
}

func newAgent(t testing.TB, h *host) *agent {
	t.Helper()
	dir := t.TempDir()
	a := &agent{t: t, dir: dir, target: "dir:" + dir, stores: &stores{Targets: Targets{Dirs: []string{dir}}, left: -1}}
	a.cfg = Config{Records: newBucket(), Runs: newBucket(), Snapshots: h, Servers: h, Stores: a.stores, Delays: []time.Duration{time.Second, time.Minute}}
	a.start()
	return a
}

func (a *agent) start() {
	a.t.Helper()
	var err error
	if a.Manager, err = NewManager(a.cfg); err != nil {
		a.t.Fatal(err)
	}
	a.Recover()
}

func (a *agent) restart() {
	a.Close()
	a.start()
}

func (a *agent) make(req Request) View {
	a.t.Helper()
	if req.Target == "" {
		req.Target = a.target
	}
	if _, err := a.Create(context.Background(), req); err != nil {
		a.t.Fatal(err)
	}
	return a.wait(req.ID)
}

func (a *agent) wait(id string) View {
	a.t.Helper()
	v, err := a.Settled(context.Background(), id)
	if err != nil {
		a.t.Fatal(err)
	}
	return v
}

// check imports a backup and compares it with the snapshot that it is of.
func (a *agent) check(h *host, v View) {
	a.t.Helper()
	p, into := newPool(), newID()
	m, err := a.Import(context.Background(), a.target, v.ID, into, p, nil)
	if err != nil || m.Snapshot.ID != v.Snapshot || len(p.arrivals) != 0 {
		a.t.Fatalf("import: %v", err)
	}
	if got := (&disk{content: p.snapshots[into], data: []snapshot.Range{{Offset: 0, Length: int64(len(p.snapshots[into]))}}}).checksum(a.t); got != v.Checksum {
		a.t.Fatalf("imported disk has checksum %s, not %s", got, v.Checksum)
	}
	r, err := a.Verify(context.Background(), "", v.ID, nil)
	if err != nil || !r.OK || r.Bytes == 0 {
		a.t.Fatalf("verify: %+v, %v", r, err)
	}
}

func (a *agent) file(v View) string { return filepath.Join(a.dir, v.Server, v.ID+".rbk") }
