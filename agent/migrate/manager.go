package migrate

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"runtime"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/reflejo/terraform-provider-reflejo/agent/endpoint"
	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
	"github.com/reflejo/terraform-provider-reflejo/agent/snapshot"
)

// Config is what a manager is made of.
type Config struct {
	Host      string
	Outgoing  Records // moves from here
	Incoming  Records // moves to here
	Servers   Servers
	Disks     Disks
	Arrivals  snapshot.Arrivals
	Snapshots Snapshots
	Loans     Loans
	Dial      Dial
	Log       hclog.Logger
}

// Manager moves servers to and from one host. Its methods may be called at any time from any
// goroutine. It is closed before the servers' manager is.
type Manager struct {
	cfg  Config
	ctx  context.Context
	stop context.CancelFunc
	wg   sync.WaitGroup

	mu      sync.Mutex
	out     map[string]outgoing // by server
	in      map[string]incoming // by move
	working map[string]*working // by server
	visits  map[string]*visit   // moves that a link or a sweep is at
	prepare sync.Mutex          // one offer at a time
	change  sync.Mutex          // one change of a record at a time, from reading it to its being durable

	markEvery int64
	asking    chan struct{} // holds one if hosts are to be asked about lent addresses
}

// NewManager loads the records. Nothing is done before Recover.
func NewManager(cfg Config) (*Manager, error) {
	if cfg.Log == nil {
		cfg.Log = hclog.NewNullLogger()
	}
	m := &Manager{cfg: cfg, out: map[string]outgoing{}, in: map[string]incoming{}, working: map[string]*working{}, visits: map[string]*visit{}, markEvery: defaultMarkEvery, asking: make(chan struct{}, 1)}
	m.ctx, m.stop = context.WithCancel(context.Background())
	return m, errors.Join(load(cfg.Outgoing, m.out), load(cfg.Incoming, m.in))
}

func load[R any](records Records, into map[string]R) error {
	return records.ForEach(func(key string, value []byte) error {
		var r R
		if err := json.Unmarshal(value, &r); err != nil {
			return fmt.Errorf("read record of move %s: %w", key, err)
		}
		into[key] = r
		return nil
	})
}

// Close breaks off what is under way; the next Recover goes on with it.
func (m *Manager) Close() {
	m.stop()
	m.wg.Wait()
}

// Recover goes on with what a stopped or killed agent left. The servers' manager has to be
// recovered before it.
func (m *Manager) Recover(ctx context.Context) error {
	m.mu.Lock()
	out, in := slices.Collect(maps.Values(m.out)), slices.Collect(maps.Values(m.in))
	m.mu.Unlock()
	for _, r := range in {
		m.finishIncoming(ctx, r.Move)
	}
	for _, r := range out {
		if r.Phase != SourceDone {
			m.begin(r.Server)
		}
	}
	m.wg.Go(m.sweep)
	if m.cfg.Loans != nil {
		m.wg.Go(m.watchLoans)
	}
	return nil
}

// sweep forgets what nobody came back for, once a minute.
func (m *Manager) sweep() {
	tick := time.NewTicker(time.Minute)
	defer tick.Stop()
	for {
		select {
		case <-m.ctx.Done():
			return
		case <-tick.C:
		}
		m.mu.Lock()
		out, in := slices.Collect(maps.Values(m.out)), slices.Collect(maps.Values(m.in))
		m.mu.Unlock()
		for _, r := range in {
			if r.Phase != TargetIncoming || time.Now().After(r.Expires) {
				m.finishIncoming(m.ctx, r.Move)
			}
		}
		for _, r := range out {
			old := time.Since(r.Progressed)
			switch {
			case r.Phase == SourceCopying && old > ticketLife, r.Phase == SourceHandover, r.Phase == SourceMoved, r.Phase == SourceReclaims:
				m.begin(r.Server)
			case r.Phase == SourceDone && old > doneLife:
				if err := m.dropOutgoing(r.Server); err != nil {
					m.cfg.Log.Warn("forget where a server went", "server", r.Server, "error", err)
				}
			}
		}
	}
}

// Handle is the endpoint's handler of [Purpose].
func (m *Manager) Handle(ctx context.Context, c *endpoint.Conn) error { return m.Serve(ctx, c) }

// OwnsSnapshot reports whether a snapshot in the pool is one of a move's own.
func (m *Manager) OwnsSnapshot(id string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, r := range m.out {
		if slices.Contains(r.Mine, id) {
			return true
		}
	}
	return false
}

// OwnsArrival reports whether an arrival in the pool is one of a move.
func (m *Manager) OwnsArrival(id string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	_, ok := m.in[id]
	return ok
}

// WentTo says where a server went that was moved from here.
func (m *Manager) WentTo(server string) (host string, ok bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	r, ok := m.out[server]
	return r.Target, ok && (r.Phase == SourceMoved || r.Phase == SourceDone)
}

func (m *Manager) outgoingOf(server string) (outgoing, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	r, ok := m.out[server]
	r.Mine, r.Dirty, r.Kept = slices.Clone(r.Mine), slices.Clone(r.Dirty), slices.Clone(r.Kept)
	return r, ok
}

// saveOutgoing makes a changed record durable.
func (m *Manager) saveOutgoing(server string, change func(*outgoing)) (outgoing, error) {
	return m.changeOutgoing(server, func(r *outgoing, there bool) error {
		if !there {
			return fault.New(fault.Internal, "record move of server %s: there is none", server)
		}
		change(r)
		return nil
	})
}

// errUnchanged is a change's way to say that there is nothing to record.
var errUnchanged = errors.New("unchanged")

// changeOutgoing makes a new or changed record durable: a request and an attempt may be at
// one record at once, and neither may undo what the other recorded. change decides by the
// record as it is; with errUnchanged it stays as it is, and that is no error.
func (m *Manager) changeOutgoing(server string, change func(r *outgoing, there bool) error) (outgoing, error) {
	m.change.Lock()
	defer m.change.Unlock()
	r, there := m.outgoingOf(server)
	switch err := change(&r, there); {
	case errors.Is(err, errUnchanged):
		return r, nil
	case err != nil:
		return r, err
	}
	return r, m.putOutgoing(r)
}

// putOutgoing is for changeOutgoing.
func (m *Manager) putOutgoing(r outgoing) error {
	if err := m.cfg.Outgoing.Put(r.Server, r); err != nil {
		return fmt.Errorf("record move of server %s: %w", r.Name, err)
	}
	m.mu.Lock()
	m.out[r.Server] = r
	m.mu.Unlock()
	return nil
}

func (m *Manager) dropOutgoing(server string) error {
	m.change.Lock()
	defer m.change.Unlock()
	if err := m.cfg.Outgoing.Delete(server); err != nil {
		return fmt.Errorf("forget move of server %s: %w", server, err)
	}
	m.mu.Lock()
	delete(m.out, server)
	m.mu.Unlock()
	return nil
}

func (m *Manager) incomingOf(move string) (incoming, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	r, ok := m.in[move]
	r.Kept = slices.Clone(r.Kept)
	return r, ok
}

// saveIncoming makes a changed record durable.
func (m *Manager) saveIncoming(move string, change func(*incoming)) (incoming, error) {
	return m.changeIncoming(move, func(r *incoming, there bool) error {
		if !there {
			return fault.New(fault.Aborted, "record move %s: it has been forgotten", move)
		}
		change(r)
		return nil
	})
}

// changeIncoming is changeOutgoing for a move to here: who is at it and an offer of the same
// may be at one record at once.
func (m *Manager) changeIncoming(move string, change func(r *incoming, there bool) error) (incoming, error) {
	m.change.Lock()
	defer m.change.Unlock()
	r, there := m.incomingOf(move)
	if err := change(&r, there); err != nil {
		return r, err
	}
	return r, m.putIncoming(r)
}

// putIncoming is for changeIncoming.
func (m *Manager) putIncoming(r incoming) error {
	if err := m.cfg.Incoming.Put(r.Move, r); err != nil {
		return fmt.Errorf("record move of server %s: %w", r.Name, err)
	}
	m.mu.Lock()
	m.in[r.Move] = r
	m.mu.Unlock()
	return nil
}

func (m *Manager) dropIncoming(move string) error {
	m.change.Lock()
	defer m.change.Unlock()
	if err := m.cfg.Incoming.Delete(move); err != nil {
		return fmt.Errorf("forget move %s: %w", move, err)
	}
	m.mu.Lock()
	delete(m.in, move)
	m.mu.Unlock()
	return nil
}

// architecture is what runs on this host.
const architecture = runtime.GOARCH
