package migrate

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/uuid"

	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
	"github.com/reflejo/terraform-provider-reflejo/agent/network"
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
	lose   int // event at which beta is lost, with all that it is; 0 for none
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
	nets *vservertest.Records
	lent *vservertest.Records

	servers *vserver.Manager
	network *network.Manager
	m       *Manager
	*life
}

// life is one agent's, from its start to its end; what is left of an older one can do nothing.
type life struct{ alive bool }

func newWorld(t *testing.T, seed uint64, names ...string) *world {
	w := &world{t: t, hosts: map[string]*host{}, rand: rand.New(rand.NewPCG(seed, 1)), faults: map[int]faultKind{}, dead: make(chan *host, 100)}
	for _, name := range names {
		h := &host{w: w, name: name, v: vservertest.NewHost(t.TempDir()), in: vservertest.NewRecords(), out: vservertest.NewRecords(),
			nets: vservertest.NewRecords(), lent: vservertest.NewRecords()}
		h.pool = &pool{h: h, disks: map[string]*content{}, snapshots: map[string]content{}, arrivals: map[string]*arriving{}, known: map[string]snapshot.Record{}}
		w.hosts[name] = h
		h.start()
		if _, err := h.network.Put(t.Context(), span); err != nil {
			t.Fatal(err)
		}
	}
	return w
}

// noBridge: the fake host makes bridges by itself.
type noBridge struct{}

func (noBridge) SetNetwork(context.Context, vserver.Network) error { return nil }
func (noBridge) RemoveNetwork(context.Context, string) error       { return nil }

// span is a network on all hosts.
var span = network.Definition{ID: "77777777-0000-0000-0000-000000000001", Name: "app", CIDR: netip.MustParsePrefix("10.0.0.0/25"), Members: []network.Member{
	{Host: "alpha", Address: netip.MustParseAddr("192.0.2.1"), Slot: 0},
	{Host: "beta", Address: netip.MustParseAddr("192.0.2.2"), Slot: 1},
	{Host: "gamma", Address: netip.MustParseAddr("192.0.2.3"), Slot: 2}}}

func (w *world) close() {
	time.Sleep(2 * time.Millisecond) // a link that is about to break does so
	for _, h := range w.hosts {
		h.stop()
	}
}

// start is an agent's start.
func (h *host) start() {
	life := &life{alive: true}
	pool := handle{h.pool, life}
	config := h.v.Config()
	config.Host = h.name
	config.IDs.Size = 128 * vserver.IDsPerServer
	config.Records = gate{config.Records, h, life, "servers"}
	config.Edges.Disks = serverDisks{config.Edges.Disks, pool}
	made := make(chan *Manager, 1)
	networks, err := network.NewManager(network.Config{Host: h.name, DefaultCIDR: netip.MustParsePrefix("10.1.0.0/24"), Records: h.nets, Loans: gate{h.lent, h, life, "loans"},
		Edge: noBridge{}, Exhausted: func() { k := <-made; made <- k; k.AskLoans() }})
	if err != nil {
		h.w.t.Fatal(err)
	}
	config.Segments, config.Superseded = networks, h.superseded
	servers, err := vserver.NewManager(config)
	if err != nil {
		h.w.t.Fatal(err)
	}
	networks.SetServers(servers)
	if err := networks.Recover(h.w.t.Context()); err != nil {
		h.w.t.Fatal(err)
	}
	m, err := NewManager(Config{Host: h.name, Incoming: gate{h.in, h, life, "incoming"}, Outgoing: gate{h.out, h, life, "outgoing"},
		Servers: servers, Disks: pool, Arrivals: pool, Snapshots: pool, Loans: networks, Dial: h.dial})
	if err != nil {
		h.w.t.Fatal(err)
	}
	made <- m
	m.markEvery = 256 << 10
	h.w.mu.Lock() // other hosts' agents call this one
	h.life, h.network, h.servers, h.m = life, networks, servers, m
	h.w.mu.Unlock()
	if err := errors.Join(servers.Recover(h.w.t.Context()), m.Recover(h.w.t.Context())); err != nil && life.alive {
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

// lost is die for a host whose agent nobody starts again.
func (h *host) lost() {
	h.alive = false
	h.pool.crash()
	h.w.cutAll()
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
	if w.events == w.lose {
		w.hosts["beta"].lost()
	}
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
	for range 3 {
		b := w.rand.IntN(blocks)
		w.tag++
		if w.rand.IntN(2) == 0 {
			w.truth[b] = block{}
		} else {
			w.truth[b] = block{tag: w.tag, fill: byte(w.rand.IntN(3))} // a third of the blocks is zeros
		}
		d[b] = w.truth[b]
	}
}

// gate is a bucket that a dead agent can't write to.
type gate struct {
	vserver.Records
	h    *host
	life *life
	name string
}

func (g gate) write(what string, f func() error) error {
	w := g.h.w
	w.mu.Lock()
	defer w.mu.Unlock()
	if !g.life.alive {
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

// The scenario.

// create makes the server on alpha, with something on its disk.
func (w *world) create(power vserver.Power) {
	w.id = uuid.NewString()
	spec := vserver.Spec{ID: w.id, Name: "web", Image: "tiny", Power: power, CPU: vserver.CPU{MilliCores: 500},
		Memory: vserver.Memory{Max: 256 << 20}, Disk: vserver.Disk{Size: 2 << 30}, Network: map[string]vserver.NIC{"eth0": {Network: "app"}}}
	alpha := w.hosts["alpha"]
	if _, err := alpha.servers.Create(w.t.Context(), spec); err != nil {
		w.t.Fatal(err)
	}
	if err := alpha.servers.Settled(w.t.Context()); err != nil {
		w.t.Fatal(err)
	}
	if v, err := alpha.servers.Get(w.id); err != nil || v.Operation.Err != "" {
		w.t.Fatalf("make the server: %s, %v", v.Operation.Err, err)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for range 80 {
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
	for n := range 3000 {
		synctest.Wait()
		for {
			select {
			case h := <-w.dead:
				h.stop()
				time.Sleep(3 * time.Second)
				w.mu.Lock()
				for range 20 { // servers go on
					w.check()
				}
				w.mu.Unlock()
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
		if n == 2999 {
			for name, h := range w.hosts {
				w.t.Logf("%s: works on %v, has %+v and %+v", name, h.m.working, h.m.out, h.m.in)
				for _, v := range h.servers.List() {
					w.t.Logf("%s: %s %+v", name, v.State, v.Operation)
				}
			}
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
			w.t.Errorf("on host %s the server is %s, %+v, %+v: %v", name, v.State, v.Operation, v.Messages, err)
		} else if got := h.pool.disks[w.id]; !bytes.Equal(got.bytes(), w.truth.bytes()) {
			w.t.Errorf("the disk on %s is not what the server wrote", name)
		}
		if n := len(h.network.Loans()); name == on && n > 0 {
			w.t.Errorf("host %s has the server, and lent it %d addresses", name, n)
		} else if name != on && n != 1 {
			w.t.Errorf("host %s lent the server %d addresses", name, n)
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
		w := newWorld(t, seed, "alpha", "beta")
		defer w.close()
		defer func() {
			if t.Failed() {
				for _, line := range w.log[max(0, len(w.log)-100):] {
					t.Log(line)
				}
			}
		}()
		f(w)
	})
}
