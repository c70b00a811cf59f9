package migrate

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/uuid"

	"github.com/reflejo/terraform-provider-reflejo/agent/endpoint"
	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
	"github.com/reflejo/terraform-provider-reflejo/agent/snapshot"
	"github.com/reflejo/terraform-provider-reflejo/agent/vserver"
	"github.com/reflejo/terraform-provider-reflejo/agent/vserver/vservertest"
)

// world is two hosts whose agents can die at any write of a record, joined by links that can
// break at any frame. A guest writes to the server's disk wherever it runs.
type world struct {
	t     *testing.T
	hosts map[string]*host
	id    string // of the server
	rand  *rand.Rand

	mu     sync.Mutex
	events int // writes of records and frames so far
	faults map[int]faultKind
	cuts   []func()
	log    []string
	truth  content // what the server's disk should hold
	tag    int
	dead   chan *host
	moved  int64 // bytes of data frames
}

// faultKind is what happens at an event.
type faultKind int

const (
	faultBefore faultKind = iota // the agent dies, or the link breaks, before it happens
	faultAfter                   // … just after
	faultBoth                    // just after, and the other host's agent dies too
	faultKinds
)

// host is what survives an agent, and the agent.
type host struct {
	w    *world
	name string
	v    *vservertest.Host
	pool *pool
	in   *vservertest.Records
	out  *vservertest.Records

	servers *vserver.Manager
	m       *Manager
	alive   bool
}

func newWorld(t *testing.T, seed uint64) *world {
	w := &world{t: t, hosts: map[string]*host{}, rand: rand.New(rand.NewPCG(seed, 1)), faults: map[int]faultKind{}, dead: make(chan *host, 100)}
	for _, name := range []string{"alpha", "beta"} {
		h := &host{w: w, name: name, v: vservertest.NewHost(t.TempDir()), in: vservertest.NewRecords(), out: vservertest.NewRecords()}
		h.pool = &pool{h: h, disks: map[string]*content{}, snapshots: map[string]content{}, arrivals: map[string]*arriving{}, known: map[string]snapshot.Record{}}
		w.hosts[name] = h
		h.start()
	}
	return w
}

func (w *world) close() {
	for _, h := range w.hosts {
		h.stop()
	}
}

// start is an agent's start.
func (h *host) start() {
	h.alive = true
	h.pool.alive = true
	config := h.v.Config()
	config.Host = h.name
	config.Records = gate{config.Records, h, "servers"}
	config.Edges.Disks = serverDisks{config.Edges.Disks, h.pool}
	var err error
	if h.servers, err = vserver.NewManager(config); err != nil {
		h.w.t.Fatal(err)
	}
	h.m, err = NewManager(Config{Host: h.name, Incoming: gate{h.in, h, "incoming"}, Outgoing: gate{h.out, h, "outgoing"},
		Servers: h.servers, Disks: h.pool, Arrivals: h.pool, Snapshots: h.pool, Dial: h.dial})
	if err != nil {
		h.w.t.Fatal(err)
	}
	h.m.markEvery = 1 << 20
	if err := errors.Join(h.servers.Recover(h.w.t.Context()), h.m.Recover(h.w.t.Context())); err != nil && h.alive {
		h.w.t.Error(err)
	}
}

func (h *host) stop() {
	h.m.Close()
	h.servers.Close()
}

// errDead is what a dead agent's actions end with.
var errDead = fault.New(fault.Internal, "the agent is dead")

// die ends what the agent can do; the test ends the rest and starts it again.
func (h *host) die() {
	if h.alive {
		h.alive = false
		h.pool.crash()
		h.w.cutAll()
		h.w.dead <- h
	}
}

func (w *world) cutAll() {
	for _, cut := range w.cuts {
		cut()
	}
	w.cuts = nil
}

// event counts something that a fault can happen at, and tells which one does. w.mu is held.
func (w *world) event(text string) (faultKind, bool) {
	w.events++
	w.log = append(w.log, fmt.Sprintf("%d %s", w.events, text))
	w.check()
	k, ok := w.faults[w.events]
	return k, ok
}

// check holds the invariants at every event: no server in two places, ever.
func (w *world) check() {
	var where []string
	for name, h := range w.hosts {
		running, _ := h.v.Runtime.List(context.Background())
		for _, r := range running {
			if r.ID == w.id && r.Status == vserver.RunRunning {
				where = append(where, name)
			}
		}
	}
	if len(where) > 1 {
		w.t.Errorf("the server runs on %v", where)
	}
	if len(where) == 1 {
		w.guest(w.hosts[where[0]].pool)
	}
}

// guest is what the server does while it runs: it writes and discards here and there.
func (w *world) guest(p *pool) {
	d, ok := p.disks[w.id]
	if !ok {
		return
	}
	b := w.rand.IntN(blocks)
	w.tag++
	if w.rand.IntN(4) == 0 {
		w.truth[b] = block{}
	} else {
		w.truth[b] = block{tag: w.tag, fill: byte(w.rand.IntN(3))} // a third of the blocks is zeros
	}
	d[b] = w.truth[b]
}

// gate is a bucket that a dead agent can't write to.
type gate struct {
	vserver.Records
	h    *host
	name string
}

func (g gate) write(what string, f func() error) error {
	w := g.h.w
	w.mu.Lock()
	defer w.mu.Unlock()
	if !g.h.alive {
		return errDead
	}
	k, failing := w.event(g.h.name + " " + g.name + " " + what)
	if failing && k == faultBefore {
		g.h.die()
		return errDead
	}
	err := f()
	if failing {
		g.h.die()
		if k == faultBoth {
			w.other(g.h.name).die()
		}
		return errDead
	}
	return err
}

func (w *world) other(name string) *host {
	if name == "alpha" {
		return w.hosts["beta"]
	}
	return w.hosts["alpha"]
}

func (g gate) Put(key string, v any) error {
	what := ""
	switch r := v.(type) {
	case outgoing:
		what = string(r.Phase)
	case incoming:
		what = string(r.Phase)
	}
	return g.write("put "+what, func() error { return g.Records.Put(key, v) })
}
func (g gate) Delete(key string) error {
	return g.write("delete", func() error { return g.Records.Delete(key) })
}

// The disks.

const (
	blockSize = 4096
	blocks    = 512
)

// block is one block of a disk: tag tells its versions apart, as an extent's place does; 0
// is a hole.
type block struct {
	tag  int
	fill byte
}

type content [blocks]block

func (c content) render(p []byte, off int64) {
	for i := range p {
		b := c[(off+int64(i))/blockSize]
		p[i] = 0
		if b.tag != 0 && b.fill != 0 {
			p[i] = b.fill + byte(b.tag) | 1
		}
	}
}

func (c content) bytes() []byte {
	p := make([]byte, blocks*blockSize)
	c.render(p, 0)
	return p
}

// pool is one host's pool.
type pool struct {
	h         *host
	alive     bool
	disks     map[string]*content
	snapshots map[string]content
	arrivals  map[string]*arriving
	known     map[string]snapshot.Record
	full      bool
}

// arriving is an arrival: what was not synced is lost with the agent.
type arriving struct {
	p            *pool
	data, synced []byte
}

func (p *pool) crash() {
	p.alive = false
	for _, a := range p.arrivals {
		copy(a.data, a.synced)
	}
}

// do runs f unless the agent is dead.
func (p *pool) do(f func() error) error {
	p.h.w.mu.Lock()
	defer p.h.w.mu.Unlock()
	if !p.alive {
		return errDead
	}
	return f()
}

func (p *pool) Take(_ context.Context, id, server string, _ snapshot.Quiet) (snapshot.Taken, error) {
	return snapshot.Taken{Size: blocks * blockSize}, p.do(func() error {
		d, ok := p.disks[server]
		if !ok {
			return fault.New(fault.NotFound, "no disk")
		}
		if _, ok := p.snapshots[id]; !ok {
			p.snapshots[id] = *d
		}
		return nil
	})
}

func (p *pool) Remove(_ context.Context, id string) error {
	return p.do(func() error {
		delete(p.snapshots, id)
		return nil
	})
}

type reading struct {
	p *pool
	c content
}

func (p *pool) Open(_ context.Context, id string) (r snapshot.Content, err error) {
	err = p.do(func() error {
		c, ok := p.snapshots[id]
		if !ok {
			return fault.New(fault.NotFound, "no snapshot %s", id)
		}
		r = &reading{p, c}
		return nil
	})
	return r, err
}

func (p *pool) OpenDisk(_ context.Context, server string) (r snapshot.Content, err error) {
	err = p.do(func() error {
		d, ok := p.disks[server]
		if !ok {
			return fault.New(fault.NotFound, "no disk")
		}
		r = &reading{p, *d}
		return nil
	})
	return r, err
}

func (r *reading) ReadAt(b []byte, off int64) (int, error) { r.c.render(b, off); return len(b), nil }
func (r *reading) Close() error                            { return nil }
func (r *reading) Size() int64                             { return blocks * blockSize }
func (r *reading) Data(context.Context) ([]snapshot.Range, error) {
	return r.where(func(i int) bool { return r.c[i].tag != 0 }), nil
}
func (r *reading) Changed(_ context.Context, since string) (ranges []snapshot.Range, err error) {
	err = r.p.do(func() error {
		old, ok := r.p.snapshots[since]
		if !ok {
			return fault.New(fault.NotFound, "no snapshot %s", since)
		}
		ranges = r.where(func(i int) bool { return r.c[i].tag != old[i].tag })
		return nil
	})
	return ranges, err
}

func (r *reading) where(is func(int) bool) (ranges []snapshot.Range) {
	for i := range blocks {
		if is(i) {
			ranges = append(ranges, snapshot.Range{Offset: int64(i) * blockSize, Length: blockSize})
		}
	}
	return union(ranges, nil, blocks*blockSize)
}

func (p *pool) Receive(_ context.Context, id string, size int64) (a snapshot.Arrival, err error) {
	err = p.do(func() error {
		if p.full {
			return fault.New(fault.Exhausted, "the pool is full")
		}
		if p.arrivals[id] == nil {
			p.arrivals[id] = &arriving{p, make([]byte, size), make([]byte, size)}
		}
		a = p.arrivals[id]
		return nil
	})
	return a, err
}

func (a *arriving) WriteAt(b []byte, off int64) (int, error) {
	return len(b), a.p.do(func() error { copy(a.data[off:], b); return nil })
}
func (a *arriving) ReadAt(b []byte, off int64) (int, error) { return copy(b, a.data[off:]), nil }
func (a *arriving) Zero(r snapshot.Range) error {
	return a.p.do(func() error { clear(a.data[r.Offset:r.End()]); return nil })
}
func (a *arriving) Sync() error {
	return a.p.do(func() error { copy(a.synced, a.data); return nil })
}
func (a *arriving) Close() error { return nil }

// parse is the content that these bytes are, as far as tags can be known: what reads the
// same as the truth is the truth.
func (a *arriving) parse(like content) content {
	c := like
	for i := range blocks {
		want := make([]byte, blockSize)
		like.render(want, int64(i)*blockSize)
		if !bytes.Equal(want, a.data[i*blockSize:(i+1)*blockSize]) {
			c[i] = block{tag: -1 - i, fill: 77}
		}
	}
	return c
}

func (p *pool) Keep(_ context.Context, from, id string) error {
	return p.do(func() error {
		a := p.arrivals[from]
		if a == nil {
			return fault.New(fault.NotFound, "no arrival %s", from)
		}
		if _, ok := p.snapshots[id]; !ok {
			p.snapshots[id] = a.parse(p.h.w.other(p.h.name).pool.snapshots[id])
		}
		return nil
	})
}

func (p *pool) Place(ctx context.Context, from, server string) error {
	return p.do(func() error {
		if _, ok := p.disks[server]; ok {
			return nil
		}
		a := p.arrivals[from]
		if a == nil {
			return fault.New(fault.NotFound, "no arrival %s", from)
		}
		c := a.parse(p.h.w.truth)
		delete(p.arrivals, from)
		p.disks[server] = &c
		return p.h.v.Pool.Disks().Create(ctx, server, vservertest.Image, 2<<30)
	})
}

func (p *pool) Drop(_ context.Context, id string) error {
	return p.do(func() error { delete(p.arrivals, id); return nil })
}

func (p *pool) Arriving(context.Context) ([]string, error) {
	return slices.Collect(maps.Keys(p.arrivals)), nil
}

// The snapshots that people see.

func (p *pool) Export(server string) []snapshot.Record {
	p.h.w.mu.Lock()
	defer p.h.w.mu.Unlock()
	return slices.SortedFunc(maps.Values(p.known), func(a, b snapshot.Record) int { return a.Created.Compare(b.Created) })
}

func (p *pool) Adopt(_ context.Context, rec snapshot.Record) (snapshot.View, error) {
	return snapshot.View{}, p.do(func() error {
		if _, ok := p.snapshots[rec.ID]; !ok {
			return fault.New(fault.NotFound, "no disk of snapshot %s", rec.ID)
		}
		p.known[rec.ID] = rec
		return nil
	})
}

func (p *pool) Delete(_ context.Context, id string) error {
	return p.do(func() error {
		if _, ok := p.known[id]; !ok {
			return fault.New(fault.NotFound, "no snapshot %s", id)
		}
		delete(p.known, id)
		delete(p.snapshots, id)
		return nil
	})
}

// serverDisks keeps the contents in step with the fake host's disks.
type serverDisks struct {
	vserver.Disks
	p *pool
}

func (d serverDisks) Create(ctx context.Context, id, image string, size int64) error {
	err := d.Disks.Create(ctx, id, image, size)
	return errors.Join(err, d.p.do(func() error {
		if d.p.disks[id] == nil {
			d.p.disks[id] = &content{}
		}
		return nil
	}))
}

func (d serverDisks) Remove(ctx context.Context, id string) error {
	if err := d.p.do(func() error { delete(d.p.disks, id); return nil }); err != nil {
		return err
	}
	return d.Disks.Remove(ctx, id)
}

// The links.

// pipe is one direction of a link: what has been sent arrives, unless the link breaks.
type pipe struct {
	frames chan endpoint.Frame
	broken chan struct{}
}

type end struct {
	w         *world
	me, peer  string
	right     []byte
	send, get *pipe
	cut       func()
}

func (h *host) dial(ctx context.Context, target, address, purpose string, right []byte) (Link, error) {
	w := h.w
	w.mu.Lock()
	defer w.mu.Unlock()
	other := w.hosts[target]
	if !h.alive || !other.alive || address != target+":7444" || purpose != Purpose {
		return nil, fault.New(fault.Unavailable, "nobody at %s", address)
	}
	broken := make(chan struct{})
	cut := sync.OnceFunc(func() { close(broken) })
	w.cuts = append(w.cuts, cut)
	a, b := &pipe{make(chan endpoint.Frame, 1000), broken}, &pipe{make(chan endpoint.Frame, 1000), broken}
	mine, theirs := &end{w, h.name, target, right, a, b, cut}, &end{w, target, h.name, right, b, a, cut}
	m := other.m
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		defer cancel()
		err := m.Serve(ctx, theirs)
		theirs.finish(err)
	}()
	go func() { <-broken; cancel() }()
	return mine, nil
}

func (e *end) Peer() string  { return e.peer }
func (e *end) Right() []byte { return e.right }
func (e *end) CloseWith(ctx context.Context) func() bool {
	return context.AfterFunc(ctx, e.cut)
}
func (e *end) Close() error { e.cut(); return nil }

var errBroken = fault.New(fault.Unavailable, "the link broke: %w", net.ErrClosed)

func (e *end) Send(kind byte, parts ...[]byte) error {
	payload := slices.Concat(parts...)
	e.w.mu.Lock()
	defer e.w.mu.Unlock()
	select {
	case <-e.send.broken:
		return errBroken
	default:
	}
	text := ""
	if kind != frameData && kind != frameZero && kind != frameOpen && kind != frameKeep {
		text = string(payload)
	}
	k, failing := e.w.event(fmt.Sprintf("%s sends %d %.120s", e.me, kind, text))
	if failing && k == faultBefore {
		e.cut()
		return errBroken
	}
	if kind == frameData {
		e.w.moved += int64(len(payload))
	}
	e.send.frames <- endpoint.Frame{Type: kind, Payload: payload}
	if failing { // it arrives, and nothing after it
		late := e.cut
		go func() {
			time.Sleep(time.Millisecond)
			late()
		}()
		if k == faultBoth {
			e.w.hosts[e.me].die()
		}
	}
	return nil
}

// finish tells the other side how it ended.
func (e *end) finish(err error) {
	var text []byte
	if err != nil {
		text = []byte(err.Error())
	}
	select {
	case e.send.frames <- endpoint.Frame{Type: 3, Payload: append([]byte{byte(fault.KindOf(err))}, text...)}:
	default:
	}
}

func (e *end) Receive() (endpoint.Frame, error) {
	select {
	case f := <-e.get.frames:
		if f.Type == 3 {
			return f, &fault.Error{Kind: fault.Kind(f.Payload[0]), Err: &endpoint.RemoteError{Host: e.peer, Text: string(f.Payload[1:])}}
		}
		return f, nil
	case <-e.get.broken:
		select { // what had arrived
		case f := <-e.get.frames:
			if f.Type != 3 {
				return f, nil
			}
		default:
		}
		return endpoint.Frame{}, errBroken
	}
}

// The scenario.

// create makes the server on alpha, with something on its disk.
func (w *world) create(power vserver.Power) {
	w.id = uuid.NewString()
	spec := vserver.Spec{ID: w.id, Name: "web", Image: "tiny", Power: power, CPU: vserver.CPU{MilliCores: 500},
		Memory: vserver.Memory{Max: 256 << 20}, Disk: vserver.Disk{Size: 2 << 30}, Network: map[string]vserver.NIC{"eth0": {}}}
	alpha := w.hosts["alpha"]
	if _, err := alpha.servers.Create(w.t.Context(), spec); err != nil {
		w.t.Fatal(err)
	}
	if err := alpha.servers.Settled(w.t.Context()); err != nil {
		w.t.Fatal(err)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for range 200 {
		w.guest(alpha.pool)
	}
}

// move is what an apply does: it prepares and starts, if the server is still at the source,
// and waits until nothing is under way.
func (w *world) move(from, to string, settings vserver.Migration) error {
	a, b := w.hosts[from], w.hosts[to]
	v, err := a.servers.Get(w.id)
	if err != nil || v.State == vserver.StateDeleting {
		return w.quiesce()
	}
	ticket, err := b.m.Prepare(w.t.Context(), Offer{Server: v, Source: from})
	if err == nil {
		_, err = a.m.Start(w.t.Context(), Move{Server: w.id, Target: to, Endpoint: to + ":7444", Ticket: ticket.Secret, Settings: &settings})
	}
	return errors.Join(err, w.quiesce())
}

// quiesce lets time pass until nothing is worked on, starting agents again that died.
func (w *world) quiesce() error {
	for range 3000 {
		synctest.Wait()
		for {
			select {
			case h := <-w.dead:
				h.stop()
				time.Sleep(3 * time.Second)
				h.start()
				continue
			default:
			}
			break
		}
		busy := false
		for _, h := range w.hosts {
			h.m.mu.Lock()
			busy = busy || len(h.m.working) > 0
			h.m.mu.Unlock()
			for _, v := range h.servers.List() {
				busy = busy || !v.Operation.Settled()
			}
		}
		if !busy && len(w.dead) == 0 {
			return nil
		}
		time.Sleep(100 * time.Millisecond)
	}
	return errors.New("it does not come to rest")
}

// finished holds that the server is complete on one host and nothing is left anywhere else.
func (w *world) finished(on string, running bool) {
	w.t.Helper()
	time.Sleep(2 * ticketLife) // what was given up is forgotten
	if err := w.quiesce(); err != nil {
		w.t.Error(err)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for name, h := range w.hosts {
		v, err := h.servers.Get(w.id)
		if name != on {
			if err == nil {
				w.t.Errorf("host %s still has the server, %s", name, v.State)
			}
			if len(h.pool.disks) > 0 || len(h.pool.known) > 0 {
				w.t.Errorf("host %s still has disk or snapshots", name)
			}
		} else if err != nil || (v.State == vserver.StateRunning) != running {
			w.t.Errorf("on host %s the server is %s: %v", name, v.State, err)
		} else if got := h.pool.disks[w.id]; !bytes.Equal(got.bytes(), w.truth.bytes()) {
			w.t.Errorf("the disk on %s is not what the server wrote", name)
		}
		for id := range h.pool.snapshots {
			if _, ok := h.pool.known[id]; !ok {
				w.t.Errorf("host %s still has snapshot %s", name, id)
			}
		}
		if len(h.pool.arrivals) > 0 {
			w.t.Errorf("host %s still has an arrival", name)
		}
		for _, r := range h.m.in {
			w.t.Errorf("host %s still has the record of a move, %s", name, r.Phase)
		}
		for _, r := range h.m.out {
			if r.Phase != SourceDone {
				w.t.Errorf("host %s still has the record of a move, %s: %s", name, r.Phase, r.Err)
			}
		}
	}
}

// inWorld runs f in a world with its own time.
func inWorld(t *testing.T, seed uint64, f func(w *world)) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, seed)
		defer w.close()
		f(w)
		if t.Failed() {
			for _, line := range w.log {
				t.Log(line)
			}
		}
	})
}
