package snapshot_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/uuid"

	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
	"github.com/reflejo/terraform-provider-reflejo/agent/snapshot"
	"github.com/reflejo/terraform-provider-reflejo/agent/vserver"
	"github.com/reflejo/terraform-provider-reflejo/agent/vserver/vservertest"
)

// world is a host in memory with an agent on it.
type world struct {
	t       *testing.T
	host    *vservertest.Host
	pool    *pool
	disks   snapshot.Disks // pool, or one that keeps real files
	records *vservertest.Records
	runs    *vservertest.Records
	sums    string
	bring   snapshot.Bring
	foreign string       // id of a snapshot in the pool that is somebody else's
	room    atomic.Int64 // of the host's disks

	m        *snapshot.Manager
	servers  *vserver.Manager
	policies *snapshot.Policies
	jump     atomic.Int64      // by how much the host's clock is wrong
	summed   map[string]string // checksums by a full reading

	mu     sync.Mutex
	quiets []string // how writers were stopped since the last look
	loud   int      // how often they go on
	told   []string // what the policies say
}

// inWorld runs f in a bubble with its own time.
func inWorld(t *testing.T, f func(w *world)) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.start()
		defer w.close()
		f(w)
	})
}

func newWorld(t *testing.T) *world {
	w := &world{t: t, host: vservertest.NewHost(t.TempDir()), records: vservertest.NewRecords(), runs: vservertest.NewRecords(), sums: t.TempDir(), summed: map[string]string{}}
	w.room.Store(100 << 30)
	w.pool = newPool(func(server string) bool {
		all, err := w.host.Pool.Disks().List(context.Background())
		return err != nil || slices.ContainsFunc(all, func(d vserver.DiskInfo) bool { return d.ID == server && d.Attached })
	})
	w.disks = w.pool
	return w
}

// start is an agent's start.
func (w *world) start() {
	w.t.Helper()
	must(w.t, w.startErr())
}

func (w *world) startErr() error {
	var err error
	w.m, err = snapshot.NewManager(snapshot.Config{Host: "alpha", Records: gatedRecords{w.records, w.pool.gate}, Disks: w.disks,
		Quiet: w.quiet, Bring: w.bring, Foreign: func(id string) bool { return id == w.foreign }, SumsDir: w.sums, Now: w.now})
	if err != nil {
		return err
	}
	config := w.host.Config()
	config.Captures, config.Records = w.m, gatedRecords{w.host.Records, w.pool.gate}
	config.Capacity = func() vserver.Capacity {
		return vserver.Capacity{MilliCores: 100_000, Cores: []int{0, 1, 2, 3}, Memory: 100 << 30, Disk: w.room.Load()}
	}
	config.Changed = func(v vserver.View, was vserver.State) { w.policies.Changed(v, was) }
	if w.servers, err = vserver.NewManager(config); err != nil {
		return err
	}
	w.policies, err = snapshot.NewPolicies(snapshot.PolicyConfig{Snapshots: w.m, Servers: w.servers, Records: w.runs,
		Say: w.say, Now: w.now})
	if err != nil {
		return err
	}
	w.m.Bind(w.servers)
	if err := w.servers.Recover(w.t.Context()); err != nil {
		return err
	}
	if err := w.servers.Settled(w.t.Context()); err != nil {
		return err
	}
	return w.m.Recover(w.t.Context())
}

func (w *world) now() time.Time { return time.Now().Add(time.Duration(w.jump.Load())) }

func (w *world) close() {
	w.m.Close()
	w.servers.Close()
}

func (w *world) quiet(_, root string, tasks bool, held func(time.Duration)) snapshot.Quiet {
	return func(context.Context) (func() error, error) {
		w.mu.Lock()
		defer w.mu.Unlock()
		if root == "" {
			return nil, errors.New("no file system to stop")
		}
		w.quiets = append(w.quiets, fmt.Sprintf("tasks=%t", tasks))
		return func() error {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.loud++
			held(7 * time.Millisecond)
			return nil
		}, nil
	}
}

func (w *world) say(_, text string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.told = append(w.told, text)
}

func (w *world) said() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.told)
}

// server makes a server with four written blocks.
func (w *world) server(name string, power vserver.Power, change ...func(*vserver.Spec)) string {
	w.t.Helper()
	spec := vserver.Spec{ID: uuid.NewString(), Name: name, Image: "tiny", Power: power,
		CPU: vserver.CPU{MilliCores: 100}, Memory: vserver.Memory{Max: 64 << 20}, Disk: vserver.Disk{Size: diskSize}}
	for _, f := range change {
		f(&spec)
	}
	_, err := w.servers.Create(w.t.Context(), spec)
	must(w.t, err)
	must(w.t, w.servers.Settled(w.t.Context()))
	if v, err := w.servers.Get(spec.ID); err != nil || v.State == vserver.StateFailed {
		w.t.Fatal(v.Operation, err)
	}
	w.pool.write(spec.ID, 0, 1, 2, 1000)
	return spec.ID
}

func (w *world) power(id string, a vserver.PowerAction) {
	w.t.Helper()
	_, err := w.servers.SetPower(w.t.Context(), id, a, 0)
	must(w.t, err)
	must(w.t, w.servers.Settled(w.t.Context()))
}

func request(server string) snapshot.Request {
	return snapshot.Request{ID: uuid.NewString(), Server: server}
}

// take takes a snapshot and waits for it.
func (w *world) take(req snapshot.Request) snapshot.View {
	w.t.Helper()
	_, err := w.m.Create(w.t.Context(), req)
	must(w.t, err)
	return w.settled(req.ID)
}

func (w *world) settled(id string) snapshot.View {
	w.t.Helper()
	must(w.t, w.m.Settled(w.t.Context()))
	v, err := w.m.Get(w.t.Context(), id)
	must(w.t, err)
	if !v.Operation.Settled() {
		w.t.Fatalf("not settled: %+v", v.Operation)
	}
	return v
}

func (w *world) ready(id string) snapshot.View {
	w.t.Helper()
	v := w.settled(id)
	if v.State != snapshot.PhaseReady || v.Checksum == "" || v.Err != "" {
		w.t.Fatalf("snapshot is %s: %+v", v.State, v)
	}
	return v
}

// remove deletes a snapshot and waits until it is gone.
func (w *world) remove(id string) {
	w.t.Helper()
	must(w.t, w.m.Delete(w.t.Context(), id))
	must(w.t, w.m.Settled(w.t.Context()))
	if _, err := w.m.Get(w.t.Context(), id); !fault.Is(err, fault.NotFound) {
		w.t.Fatalf("snapshot %s is still there: %v", id, err)
	}
}

// check holds the records against the pool: nothing is there that no record knows, what is
// ready is there and summed right, and what is reserved is what the pool has to keep.
func (w *world) check() {
	w.t.Helper()
	var known, complete, sums []string
	reserved, union, servers := int64(0), int64(0), map[string]bool{}
	for _, v := range w.m.List(w.t.Context(), "") {
		known = append(known, v.ID)
		reserved += v.Reserved
		servers[v.Server] = true
		if v.State == snapshot.PhaseReady {
			complete = append(complete, v.ID)
			if want := w.checksum(v.ID); v.Checksum != want {
				w.t.Errorf("snapshot %s: checksum %q, want %q", v.Name, v.Checksum, want)
			}
		}
		if !v.Operation.Settled() {
			w.t.Errorf("snapshot %s is at %+v", v.Name, v.Operation)
		}
	}
	for s := range servers {
		union += w.pool.union(s)
	}
	slices.Sort(known)
	slices.Sort(complete)
	if got := w.pool.ids(); !slices.Equal(got, complete) {
		w.t.Errorf("in the pool: %v, complete by the records: %v", got, complete)
	}
	if reserved != union || w.m.Reserved() != reserved {
		w.t.Errorf("reserved %d and by records %d, the pool holds %d", w.m.Reserved(), reserved, union)
	}
	files, err := os.ReadDir(w.sums)
	must(w.t, err)
	for _, f := range files {
		sums = append(sums, strings.TrimSuffix(f.Name(), ".sums"))
	}
	if !slices.Equal(sums, complete) {
		w.t.Errorf("sums are kept of %v, complete are %v", sums, complete)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.quiets) != w.loud {
		w.t.Errorf("writers were stopped %d times and went on %d times", len(w.quiets), w.loud)
	}
}

// checksum reads all of a snapshot.
func (w *world) checksum(id string) string {
	w.t.Helper()
	if sum, ok := w.summed[id]; ok { // it does not change
		return sum
	}
	c, err := w.pool.Open(w.t.Context(), id)
	must(w.t, err)
	sums, err := snapshot.SumContent(w.t.Context(), c, nil, nil)
	must(w.t, err)
	w.summed[id] = sums.Checksum()
	return w.summed[id]
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func wantKind(t *testing.T, err error, kind fault.Kind, field string) {
	t.Helper()
	if !fault.Is(err, kind) || fault.FieldOf(err) != field {
		t.Fatalf("%v: want %s of field %q", err, kind, field)
	}
}
