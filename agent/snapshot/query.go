package snapshot

import (
	"cmp"
	"context"
	"maps"
	"slices"
	"time"
)

// use is what the pool was last seen to hold of each snapshot alone.
type use struct {
	exclusive map[string]int64 // bytes, by id
	at        time.Time
	reading   chan struct{} // closed when the reading that is under way ends; nil if none is
}

const (
	// useAge is how old what is shown of the pool's use may be.
	useAge = 2 * time.Second
	// useWait is how long an answer waits for it: with many fragmented disks reading all
	// extent maps takes longer, and then what was read last is shown.
	useWait = time.Second
)

// refreshUse reads the pool's use if it was not read of late.
func (m *Manager) refreshUse(ctx context.Context) {
	m.mu.Lock()
	if m.use.exclusive != nil && time.Since(m.use.at) < useAge || m.ctx.Err() != nil {
		m.mu.Unlock()
		return
	}
	if m.use.reading == nil {
		m.use.reading = make(chan struct{})
		m.wg.Go(m.readUse)
	}
	reading := m.use.reading
	m.mu.Unlock()
	t := time.NewTimer(useWait)
	defer t.Stop()
	select {
	case <-reading:
	case <-t.C:
	case <-ctx.Done():
	}
}

func (m *Manager) readUse() {
	all, err := m.cfg.Disks.List(m.ctx)
	m.mu.Lock()
	defer m.mu.Unlock()
	if err != nil {
		m.cfg.Log.Warn("list snapshots in the pool", "error", err)
	} else {
		m.use.exclusive = make(map[string]int64, len(all))
		for _, d := range all {
			m.use.exclusive[d.ID] = d.Exclusive
		}
		m.use.at = time.Now()
	}
	close(m.use.reading)
	m.use.reading = nil
}

func (m *Manager) view(id string) (View, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	it, err := m.find(id)
	if err != nil {
		return View{}, err
	}
	return it.view(), nil
}

// taking reports whether snapshots are under way.
func (m *Manager) taking() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, it := range m.items {
		if it.rec.Phase == PhaseCreating {
			return true
		}
	}
	return false
}

// Get is one snapshot by id.
func (m *Manager) Get(ctx context.Context, id string) (View, error) {
	m.refreshUse(ctx)
	return m.view(id)
}

// List is all snapshots of a server by its id, or of all there were with "", oldest first.
func (m *Manager) List(ctx context.Context, server string) []View {
	m.refreshUse(ctx)
	return m.list(server)
}

func (m *Manager) list(server string) []View {
	m.mu.Lock()
	defer m.mu.Unlock()
	var views []View
	for _, it := range m.items {
		if server == "" || it.rec.Server == server {
			views = append(views, it.view())
		}
	}
	slices.SortFunc(views, func(a, b View) int {
		return cmp.Or(a.Created.Compare(b.Created), cmp.Compare(a.Order, b.Order), cmp.Compare(a.ID, b.ID))
	})
	return views
}

// Watch sends the snapshot's view now and after each change, the newest only if the reader
// is slow. The channel is closed after a view with Gone set, when ctx ends, or at Close.
func (m *Manager) Watch(ctx context.Context, id string) (<-chan View, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	it, err := m.find(id)
	if err != nil {
		return nil, err
	}
	return it.watch(ctx), nil
}

// Export is the records of a server's complete snapshots in the order in which another pool
// has to be given them, so that each differs little from the one before.
func (m *Manager) Export(server string) []Record {
	all := m.ofServer(server)
	return slices.DeleteFunc(all, func(r Record) bool { return r.Phase != PhaseReady })
}

// Stats is what the snapshots of one server come to.
type Stats struct {
	Server    string // id
	Name      string // of the server, when the newest of them was taken
	Snapshots int    // complete ones
	Exclusive int64  // bytes that only one of them holds
	Reserved  int64  // bytes of the host's promise
}

// Stats adds up the snapshots of each server, sorted by server.
func (m *Manager) Stats(ctx context.Context) []Stats {
	by := map[string]Stats{}
	for _, v := range m.List(ctx, "") { // oldest first: the newest name stays
		s := by[v.Server]
		s.Server, s.Name = v.Server, v.ServerName
		if v.State == PhaseReady {
			s.Snapshots++
		}
		s.Exclusive += v.Exclusive
		s.Reserved += v.Reserved
		by[v.Server] = s
	}
	return slices.SortedFunc(maps.Values(by), func(a, b Stats) int { return cmp.Compare(a.Server, b.Server) })
}

// Settled waits until nothing is under way.
func (m *Manager) Settled(ctx context.Context) error {
	m.mu.Lock()
	var idle []<-chan struct{}
	for _, it := range m.items {
		idle = append(idle, it.idle)
	}
	m.mu.Unlock()
	for _, ch := range idle {
		select {
		case <-ch:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// Unknown names the snapshots that are in the pool without a record: a sign that the
// agent's state was lost or restored. They are never removed by themselves.
func (m *Manager) Unknown() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.unknown)
}
