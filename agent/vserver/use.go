package vserver

import (
	"context"
	"time"

	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
)

// Usage reads a server's counters. fault.Precondition where it does not run.
func (m *Manager) Usage(ctx context.Context, idOrName string) (Usage, error) {
	s, err := m.find(idOrName)
	if err != nil {
		return Usage{}, err
	}
	u, err := m.cfg.Edges.Limits.Usage(ctx, s.id)
	if fault.Is(err, fault.NotFound) {
		return Usage{}, fault.New(fault.Precondition, "read usage of server %s: it does not run", idOrName)
	}
	return u, err
}

// LinkUsage reads the counters of a server's interfaces.
func (m *Manager) LinkUsage(ctx context.Context, id string) (map[string]LinkUsage, error) {
	return m.cfg.Edges.Networks.Usage(ctx, id)
}

// withUse adds the disk's use, which is at most 2 s old.
func (m *Manager) withUse(v View) View {
	m.use.Lock()
	defer m.use.Unlock()
	if m.use.bytes == nil || time.Since(m.use.at) > 2*time.Second {
		disks, err := m.cfg.Edges.Disks.List(m.ctx)
		if err != nil {
			m.cfg.Log.Warn("list disks", "error", err)
		}
		m.use.bytes, m.use.at = map[string]int64{}, time.Now()
		for _, d := range disks {
			m.use.bytes[d.ID] = d.Used
		}
	}
	v.DiskUsed = m.use.bytes[v.Spec.ID]
	return v
}

// lastUse is the disk's use when somebody last asked for it.
func (m *Manager) lastUse(id string) int64 {
	m.use.Lock()
	defer m.use.Unlock()
	return m.use.bytes[id]
}
