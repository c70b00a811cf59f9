package vserver

import (
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
)

// admitNew turns an accepted spec into its record. m.mu is held.
func (m *Manager) admitNew(spec Spec) (Record, error) {
	image, err := m.imageFor(spec)
	if err != nil {
		return Record{}, err
	}
	spec.Image = image.ID
	rec := Record{Spec: spec, Phase: PhaseCreate, Source: spec.CloneOf, Want: wanted(spec.Power, PowerRunning), Image: image, Generation: 1, Created: time.Now().UTC()}
	rec.Operation = Operation{Kind: "create", Started: rec.Created}
	if err := m.admit(&rec, nil); err != nil {
		return Record{}, err
	}
	rec.IDs, err = m.freeIDs()
	return rec, err
}

// admit checks rec.Spec against everything the host has and others have, and decides its
// links. m.mu is held.
func (m *Manager) admit(rec *Record, was *Spec) error {
	others := m.otherSpecs(rec.Spec.ID)
	if err := checkUnique(others, rec.Spec); err != nil {
		return err
	}
	if err := Admit(m.cfg.Capacity().less(m.reserved()), others, rec.Spec, was); err != nil {
		return err
	}
	return m.assign(rec)
}

// otherSpecs are the specs of all servers but one, as far as they hold something. m.mu is held.
func (m *Manager) otherSpecs(id string) []Spec {
	var specs []Spec
	for _, key := range slices.Sorted(maps.Keys(m.servers)) {
		if s := m.servers[key]; key != id {
			s.mu.Lock()
			if s.rec.Phase != PhaseFailed {
				specs = append(specs, s.rec.holds())
			}
			s.mu.Unlock()
		}
	}
	return specs
}

// assign decides network, address and MAC of each interface, keeping what was decided before.
func (m *Manager) assign(rec *Record) error {
	used := map[string]map[netip.Addr]bool{}
	take := func(a Assigned) {
		if used[a.NetworkID] == nil {
			used[a.NetworkID] = map[netip.Addr]bool{}
		}
		used[a.NetworkID][a.Address] = true
	}
	for id, s := range m.servers {
		if id == rec.Spec.ID {
			continue
		}
		s.mu.Lock()
		for _, a := range s.rec.assigned() {
			take(a)
		}
		s.mu.Unlock()
	}
	links := make(map[string]Assigned, len(rec.Spec.Network))
	for _, name := range slices.Sorted(maps.Keys(rec.Spec.Network)) {
		nic, had := rec.Spec.Network[name], rec.Links[name]
		field := "network." + name
		seg, err := m.cfg.Segments.Lookup(nic.Network)
		if err != nil {
			return &fault.Error{Kind: fault.KindOf(err), Field: field + ".network", Err: err}
		}
		want, _ := netip.ParseAddr(nic.Address)
		if !want.IsValid() && had.NetworkID == seg.ID {
			want = had.Address
		}
		addr, err := m.cfg.Segments.Allocate(seg.ID, rec.Spec.ID, want, used[seg.ID])
		if err != nil {
			return &fault.Error{Kind: fault.KindOf(err), Field: field + ".address", Err: err}
		}
		if nic.Network != "" {
			nic.Network = seg.ID
			rec.Spec.Network[name] = nic
		}
		links[name] = Assigned{NetworkID: seg.ID, Address: addr, MAC: macOf(rec.Spec.ID, name)}
		take(links[name])
	}
	rec.Links = links
	return nil
}

// freeIDs finds an id range that no other server has. m.mu is held.
func (m *Manager) freeIDs() (IDRange, error) {
	taken := map[uint32]bool{}
	for _, s := range m.servers {
		s.mu.Lock()
		taken[s.rec.IDs.First] = true
		s.mu.Unlock()
	}
	for n := uint32(0); n < m.cfg.IDs.Size/IDsPerServer; n++ {
		if first := m.cfg.IDs.First + n*IDsPerServer; !taken[first] {
			return IDRange{First: first, Size: IDsPerServer}, nil
		}
	}
	return IDRange{}, fault.New(fault.Exhausted, "find an id range: all %d of the host are in use; widen id_range in the agent's configuration", m.cfg.IDs.Size/IDsPerServer)
}
