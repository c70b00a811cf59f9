package database

import (
	"context"
	"fmt"
	"time"

	"github.com/reflejo/terraform-provider-reflejo/agent/vserver"
)

// forceLimit is how long what was killed may take to be gone.
const forceLimit = 10 * time.Second

// What happens to a database because of its server.

// opServer is the kind of an operation that a change of the server makes necessary.
const (
	opRecover = "recover"
	opServer  = "follow server"
)

// ServerChanged is for vserver.Config.Changed: what has come to rest is looked at.
func (m *Manager) ServerChanged(v vserver.View, _ vserver.State) { m.ServerStarted(v.Spec.ID) }

// ServerStarted is for vserver.Config.Started: a server's databases are started when it runs.
func (m *Manager) ServerStarted(server string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, d := range m.items {
		if d.record().Spec.Server == server {
			d.release()
			d.begin(opServer)
		}
	}
}

// ServerStops is for vserver.Config.Stopping: the server's databases are shut down cleanly,
// by force after limit, and stay down until ServerStarted or ServerChanged say what became
// of the server.
func (m *Manager) ServerStops(ctx context.Context, server string, limit time.Duration) error {
	m.mu.Lock()
	var all []*item
	for _, d := range m.items {
		if r := d.record(); r.Spec.Server == server && r.Phase != PhaseFailed {
			all = append(all, d)
			d.hold()
		}
	}
	m.mu.Unlock()
	// Tasks that a freezer holds do not even die: the server's own end is waited for by others.
	ctx, cancel := context.WithTimeout(ctx, limit+forceLimit)
	defer cancel()
	ended := make(chan error, len(all))
	for _, d := range all {
		go func() { ended <- d.down(ctx, limit) }()
	}
	var failed error
	for range all {
		if err := <-ended; err != nil && failed == nil {
			failed = fmt.Errorf("stop databases of server %s: %w", server, err)
		}
	}
	return failed
}

// Settled waits until no database has an operation under way.
func (m *Manager) Settled(ctx context.Context) error {
	m.mu.Lock()
	all := make([]*item, 0, len(m.items))
	for _, d := range m.items {
		all = append(all, d)
	}
	m.mu.Unlock()
	for _, d := range all {
		if err := d.settled(ctx); err != nil {
			return err
		}
	}
	return nil
}

// Look asks every so often whether the databases are as they were made, until ctx ends:
// their users own their servers, and what was changed behind the agent's back is put right
// where it can be, and said in any case.
func (m *Manager) Look(ctx context.Context, every time.Duration) {
	for wait(ctx, every) {
		m.mu.Lock()
		all := make([]*item, 0, len(m.items))
		for _, d := range m.items {
			all = append(all, d)
		}
		m.mu.Unlock()
		for _, d := range all {
			d.look(ctx)
		}
	}
}

// look inspects a database that is idle and should be running.
func (d *item) look(ctx context.Context) {
	d.mu.Lock()
	rec, due := d.rec.clone(), d.rec.Phase == PhaseLive && !d.busy && !d.held && d.have.Cluster.Running
	d.mu.Unlock()
	v, err := d.m.cfg.Servers.Get(rec.Spec.Server)
	if !due || err != nil || v.State != vserver.StateRunning {
		return
	}
	c, err := d.m.cfg.Clusters.Inspect(ctx, rec.cluster())
	if err == nil && c.Problem == "" && c.Running {
		return
	}
	if err != nil {
		c.Problem = err.Error()
	}
	d.mu.Lock()
	due = !d.busy && !d.held
	d.mu.Unlock()
	if due && ctx.Err() == nil {
		d.m.cfg.Log.Warn("a database is not as it was made", "database", d.id, "problem", c.Problem)
		d.begin(opRecover)
	}
}
