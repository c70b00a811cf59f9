package vserver

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"

	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
)

// fromSource fills in what a new server takes over from the snapshot that it is a clone of.
func (m *Manager) fromSource(spec Spec) (Spec, error) {
	if spec.RestoreFrom != "" {
		return spec, fault.Field("restore_from", "create server %s: there is no disk yet that a snapshot could be put back in place of; use clone_of", spec.Name)
	}
	if spec.CloneOf == "" {
		return spec, nil
	}
	c, err := m.capture(spec.CloneOf, "clone_of")
	if err != nil {
		return spec, err
	}
	if spec.Image == "" {
		spec.Image = c.Image.ID
	}
	if spec.Disk.Size == 0 {
		spec.Disk.Size = c.Size
	}
	return spec, nil
}

// capture finds a complete snapshot; field is to blame if there is none.
func (m *Manager) capture(id, field string) (Capture, error) {
	if m.cfg.Captures == nil {
		return Capture{}, fault.Field(field, "snapshot %s: host %s has no snapshots", id, m.cfg.Host)
	}
	c, err := m.cfg.Captures.Find(id)
	if err != nil {
		return c, &fault.Error{Kind: fault.KindOf(err), Field: field, Err: err}
	}
	return c, nil
}

// imageFor is the image of a new server, whose disk must be large enough.
func (m *Manager) imageFor(spec Spec) (Image, error) {
	if spec.CloneOf != "" {
		c, err := m.capture(spec.CloneOf, "clone_of")
		switch {
		case err != nil:
			return Image{}, err
		case spec.Image != c.Image.ID && !m.sameImage(spec.Image, c.Image.ID):
			return Image{}, fault.Field("image", "create server %s: snapshot %s is of a server of image %s; leave image out", spec.Name, c.ID, c.Image.ID)
		case spec.Disk.Size < c.Size:
			return Image{}, fault.Field("disk.size", "disk size %s: the disk in snapshot %s has %s", formatBytes(spec.Disk.Size), c.ID, formatBytes(c.Size))
		}
		return c.Image, nil
	}
	image, err := m.cfg.Images.Find(spec.Image)
	if err != nil {
		return Image{}, &fault.Error{Kind: fault.KindOf(err), Field: "image", Err: fmt.Errorf("create server %s: %w", spec.Name, err)}
	}
	if spec.Disk.Size < image.Size {
		return Image{}, fault.Field("disk.size", "disk size %s: image %s needs at least %s", formatBytes(spec.Disk.Size), image.ID, formatBytes(image.Size))
	}
	return image, nil
}

func (m *Manager) sameImage(name, id string) bool {
	i, err := m.cfg.Images.Find(name)
	return err == nil && i.ID == id
}

// Restore puts a snapshot back in place of the server's disk: id, addresses and MACs stay.
// The server is stopped cleanly for it and then brought to what it should be. What was there
// is kept as a safety snapshot whose id is request, so that the same request again is the
// same one. A snapshot of another server is fault.Invalid.
func (m *Manager) Restore(ctx context.Context, idOrName, snapshot, request string) (View, error) {
	if !ValidID(request) {
		return View{}, fault.Field("id", "request id %q: want a UUID in lower case", request)
	}
	s, err := m.find(idOrName)
	if err != nil {
		return View{}, err
	}
	if rec := s.record(); rec.Restore.Safety == request {
		return s.view(), nil
	} else if c, err := m.capture(request, "id"); err == nil && c.Server == rec.Spec.ID {
		return s.view(), nil // it has been done
	}
	return m.change(ctx, s.id, "restore", false, func(rec *Record) error {
		return m.askRestore(rec, snapshot, request)
	})
}

// askRestore makes a restore in place the next thing to do for a server.
func (m *Manager) askRestore(rec *Record, snapshot, safety string) error {
	if err := rec.operable("restore"); err != nil {
		return err
	}
	c, err := m.capture(snapshot, "restore_from")
	switch {
	case err != nil:
		return err
	case c.Server != rec.Spec.ID:
		return fault.Field("restore_from", "restore server %s: snapshot %s (%s) is of another server, %s; make a clone of it instead (clone_of)", rec.Spec.Name, c.Name, c.ID, c.Server)
	case c.Size > rec.Spec.Disk.Size:
		return fault.Field("restore_from", "restore server %s: the disk in snapshot %s has %s, the server's %s; grow it first", rec.Spec.Name, c.ID, formatBytes(c.Size), formatBytes(rec.Spec.Disk.Size))
	}
	rec.Restore = Restore{Snapshot: snapshot, Safety: safety}
	return nil
}

// safetyID is the id of the safety snapshot of the restore that a change of the spec asks
// for: the same however often the change is carried out.
func safetyID(rec Record) string {
	return uuid.NewSHA1(uuid.MustParse(rec.Spec.ID), fmt.Appendf(nil, "restore/%s/%d", rec.Spec.RestoreFrom, rec.Generation)).String()
}

// restored: the snapshot is in place, and what comes next is a start, as after a reboot.
func (r *Record) restored() {
	r.Restore, r.Applied.RestoreFrom, r.Rebooting = Restore{}, r.Spec.RestoreFrom, false
}

// createDisk makes the disk of a new server. The disk of one that exists is not made anew
// when it is missing: that would look as if its data had never been.
func (s *server) createDisk(ctx context.Context, rec Record) error {
	switch {
	case rec.Phase != PhaseCreate:
		return fault.New(fault.Precondition, "the disk of server %s is not in the pool any more: bring it back, or delete the server and make it from a snapshot or backup", rec.Spec.Name)
	case rec.Source != "":
		return s.m.cfg.Captures.Copy(ctx, rec.Source, s.id, rec.Spec.Disk.Size)
	}
	return s.m.cfg.Edges.Disks.Create(ctx, s.id, rec.Image.ID, rec.Spec.Disk.Size)
}

// Revive makes a server anew from a snapshot that was imported from its last backup, as the
// host that it was on is lost: it keeps its id and is no new machine inside. The snapshot
// may still be on its way: the disk waits for it. term must be higher than any before.
func (m *Manager) Revive(ctx context.Context, spec Spec, c Capture, term uint64) (View, error) {
	spec.Image, spec.CloneOf, spec.RestoreFrom, spec.Disk.Size = c.Image.ID, "", "", max(spec.Disk.Size, c.Size)
	spec = spec.WithDefaults()
	if err := spec.Validate(); err != nil {
		return View{}, err
	}
	m.mu.Lock()
	if s, ok := m.servers[spec.ID]; ok {
		m.mu.Unlock()
		switch rec := s.record(); {
		case rec.Phase == PhaseFailed || rec.Phase == PhaseUndo:
			if err := errors.Join(m.Delete(ctx, s.id), s.settled(ctx)); err != nil {
				return View{}, err
			}
			return m.Revive(ctx, spec, c, term)
		case rec.Source == c.ID:
			return s.view(), nil
		}
		return View{}, fault.New(fault.Exists, "recover server %s: host %s has it already", spec.Name, m.cfg.Host)
	}
	defer m.mu.Unlock()
	now := time.Now().UTC()
	rec := Record{Spec: spec, Phase: PhaseCreate, Source: c.ID, Want: wanted(spec.Power, PowerRunning), Image: c.Image,
		Generation: 1, Created: now, Booted: true, Term: term, Operation: Operation{Kind: "create", Started: now}}
	if err := m.admit(&rec, nil); err != nil {
		return View{}, err
	}
	var err error
	if rec.IDs, err = m.freeIDs(); err != nil {
		return View{}, err
	}
	if err := m.cfg.Records.Put(spec.ID, rec); err != nil {
		return View{}, fmt.Errorf("record server %s: %w", spec.Name, err)
	}
	s := newServer(m, rec)
	m.servers[spec.ID] = s
	s.begin()
	return s.view(), nil
}
