package backup

import (
	"bytes"
	"cmp"
	"context"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
	"github.com/reflejo/terraform-provider-reflejo/agent/snapshot"
	"github.com/reflejo/terraform-provider-reflejo/agent/vserver"
)

// disk is a server's disk in memory, as a snapshot shows it.
type disk struct {
	content []byte
	data    []snapshot.Range
	changed map[string][]snapshot.Range // since which snapshot
}

func (d *disk) ReadAt(p []byte, off int64) (int, error) {
	return bytes.NewReader(d.content).ReadAt(p, off)
}
func (d *disk) Close() error { return nil }
func (d *disk) Size() int64  { return int64(len(d.content)) }
func (d *disk) Data(context.Context) ([]snapshot.Range, error) {
	return d.data, nil
}
func (d *disk) Changed(_ context.Context, since string) ([]snapshot.Range, error) {
	r, ok := d.changed[since]
	if !ok {
		return nil, fault.New(fault.NotFound, "there is no snapshot %s", since)
	}
	return r, nil
}

func (d *disk) checksum(t testing.TB) string {
	t.Helper()
	sums, err := snapshot.SumContent(context.Background(), d, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	return sums.Checksum()
}

// write fills a range with bytes, half of which can be packed; nil r: with zeros.
func (d *disk) write(r *rand.Rand, at snapshot.Range) {
	p := d.content[at.Offset:at.End()]
	clear(p)
	if r != nil {
		for i := range p[:len(p)/2] {
			p[i] = byte(r.Uint32())
		}
		p[len(p)-1] = 1
	}
	d.data = merge(append(slices.Clone(d.data), at), d.Size())
}

// changes is a copy of the disk with pieces changed, as a later snapshot shows it.
func (d *disk) changes(r *rand.Rand, since string, n int) *disk {
	next := &disk{content: slices.Clone(d.content), data: d.data, changed: map[string][]snapshot.Range{}}
	var all []snapshot.Range
	for range n {
		blocks := d.Size() / 4096
		at := snapshot.Range{Offset: r.Int64N(blocks) * 4096}
		at.Length = min(d.Size()-at.Offset, (1+r.Int64N(400))*4096)
		if r.IntN(3) == 0 {
			next.write(nil, at)
		} else {
			next.write(r, at)
		}
		all = append(all, at)
	}
	slices.SortFunc(all, func(a, b snapshot.Range) int { return cmp.Compare(a.Offset, b.Offset) })
	next.changed[since] = merge(all, d.Size())
	return next
}

func newDisk(seed uint64, size int64) *disk {
	r := rand.New(rand.NewPCG(seed, 1))
	d := &disk{content: make([]byte, size)}
	d.write(r, snapshot.Range{Offset: 4096, Length: min(8192, size-4096)})
	if size > 4<<20 {
		d.write(r, snapshot.Range{Offset: 2<<20 - 4096, Length: 1 << 20})
		d.write(nil, snapshot.Range{Offset: 3 << 20, Length: 8192})
	}
	return d
}

// recordOf describes a disk as a snapshot.
func recordOf(t testing.TB, id, server string, d *disk) snapshot.Record {
	t.Helper()
	return snapshot.Record{
		ID: id, Server: server, ServerName: "web", Host: "alpha", Name: "nightly", Consistency: snapshot.ConsistencyFilesystem,
		Origin: snapshot.OriginBackup, Phase: snapshot.PhaseReady, ServerState: vserver.StateRunning, Size: d.Size(),
		Checksum: d.checksum(t), Created: time.Date(2026, 3, 20, 12, 0, 0, 0, time.UTC),
		Spec:  vserver.Spec{ID: server, Name: "web", Image: "sha256:abc", FirstBoot: vserver.FirstBoot{UserData: "#!secret", Version: "1"}},
		Image: vserver.Image{ID: "sha256:abc", Size: 1 << 20, Init: []string{"/sbin/init"}},
	}
}

func newID() string { return uuid.NewString() }

// file writes a backup of a disk whole. parent is nil for a full one.
func file(t testing.TB, d *disk, id, server string, parent *Manifest) ([]byte, Manifest) {
	t.Helper()
	m := manifestOf(id, "nightly", OriginManual, recordOf(t, newID(), server, d))
	var changed []snapshot.Range
	if parent != nil {
		m = m.onto(*parent)
		for _, changed = range d.changed {
		}
	}
	var out bytes.Buffer
	w, err := NewWriter(&out, m, State{})
	if err != nil {
		t.Fatal(err)
	}
	if err := writeContent(t.Context(), d, changed, parent != nil, w, nil); err != nil {
		t.Fatal(err)
	}
	if totals, err := w.Close(); err != nil || totals.Bytes != int64(out.Len()) {
		t.Fatalf("close: %+v, %v; the file has %d bytes", totals, err, out.Len())
	}
	return out.Bytes(), m
}

// arrival is a disk that is being received, in memory.
type arrival struct {
	content []byte
	closed  bool
}

func (a *arrival) WriteAt(p []byte, off int64) (int, error) { return copy(a.content[off:], p), nil }
func (a *arrival) ReadAt(p []byte, off int64) (int, error) {
	return bytes.NewReader(a.content).ReadAt(p, off)
}
func (a *arrival) Zero(r snapshot.Range) error { clear(a.content[r.Offset:r.End()]); return nil }
func (a *arrival) Sync() error                 { return nil }
func (a *arrival) Close() error                { a.closed = true; return nil }

// pool keeps arrivals, and what was made of them.
type pool struct {
	mu        sync.Mutex
	arrivals  map[string]*arrival
	snapshots map[string][]byte
}

func newPool() *pool { return &pool{arrivals: map[string]*arrival{}, snapshots: map[string][]byte{}} }

func (p *pool) Receive(_ context.Context, id string, size int64) (snapshot.Arrival, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.arrivals[id] == nil {
		p.arrivals[id] = &arrival{content: make([]byte, size)}
	}
	return p.arrivals[id], nil
}

func (p *pool) Keep(_ context.Context, from, id string) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.snapshots[id] = slices.Clone(p.arrivals[from].content)
	return nil
}

func (p *pool) Place(context.Context, string, string) error { return nil }

func (p *pool) Drop(_ context.Context, id string) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.arrivals, id)
	return nil
}

func (p *pool) Arriving(context.Context) ([]string, error) { return nil, nil }
