package servicetest

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/reflejo/terraform-provider-reflejo/agent/backup"
	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
	"github.com/reflejo/terraform-provider-reflejo/agent/recovery"
	"github.com/reflejo/terraform-provider-reflejo/agent/snapshot"
	"github.com/reflejo/terraform-provider-reflejo/agent/vserver"
)

// Backups is the host's backups: service.Backups and service.Targets.
func (c *Copies) Backups() Backups { return Backups{c} }

// Backups keeps the backups that a host knows.
type Backups struct{ c *Copies }

// reach refuses a directory of another host.
func (b Backups) reach(v backup.View) bool {
	return !strings.HasPrefix(v.Target, "dir:") || v.Host == b.c.host
}

// Create implements service.Backups.
func (b Backups) Create(ctx context.Context, r backup.Request) (backup.View, error) {
	s, err := b.c.Get(ctx, r.Snapshot)
	if err != nil {
		return backup.View{}, err
	}
	if r.Target == "s3://unknown" {
		return backup.View{}, fault.Field("target", "target %s: this host has no credentials for it", r.Target)
	}
	shelf := b.c.shelf
	shelf.mu.Lock()
	defer shelf.mu.Unlock()
	if v, ok := shelf.backups[r.ID]; ok {
		return v, nil
	}
	v := backup.View{
		ID: r.ID, Name: cmp.Or(r.Name, s.Name), Server: s.Server, ServerName: s.ServerName, Snapshot: s.ID, Host: b.c.host, Target: r.Target, State: backup.PhaseReady,
		Size: 3 << 20, DiskSize: s.Size, Checksum: s.Checksum, Created: s.Created, Origin: backup.OriginManual, Spec: s.Spec,
	}
	for _, other := range shelf.sorted(func(o backup.View) bool {
		return o.Server == s.Server && o.Target == r.Target && o.State == backup.PhaseReady
	}) {
		if r.Incremental {
			v.Parent, v.Size = other.ID, 1<<20
		}
	}
	if b.c.failing != "" {
		v.State, v.Operation = backup.PhaseFailed, vserver.Operation{Kind: "create", Err: b.c.failing, ErrKind: fault.Exhausted.String(), Done: true, Started: b.c.now()}
	}
	shelf.backups[v.ID] = v
	return v, nil
}

// sorted are the backups that are wanted, oldest first. s.mu is held.
func (s *Shelf) sorted(wanted func(backup.View) bool) []backup.View {
	var all []backup.View
	for _, v := range s.backups {
		if wanted(v) {
			all = append(all, v)
		}
	}
	slices.SortFunc(all, func(x, y backup.View) int {
		return cmp.Or(x.Created.Compare(y.Created), strings.Compare(x.ID, y.ID))
	})
	return all
}

// Get implements service.Backups.
func (b Backups) Get(id string) (backup.View, error) {
	b.c.shelf.mu.Lock()
	defer b.c.shelf.mu.Unlock()
	v, ok := b.c.shelf.backups[id]
	if !ok || v.Host != b.c.host {
		return backup.View{}, fault.New(fault.NotFound, "backup %q: host %s knows none of this id", id, b.c.host)
	}
	return v, nil
}

// List implements service.Backups.
func (b Backups) List(server string) []backup.View {
	b.c.shelf.mu.Lock()
	defer b.c.shelf.mu.Unlock()
	return b.c.shelf.sorted(func(v backup.View) bool { return v.Host == b.c.host && (server == "" || v.Server == server) })
}

// Watch implements service.Backups: there is never anything under way.
func (b Backups) Watch(_ context.Context, id string) (<-chan backup.View, error) {
	v, err := b.Get(id)
	if err != nil {
		return nil, err
	}
	ch := make(chan backup.View, 1)
	ch <- v
	return ch, nil
}

// Delete implements service.Backups.
func (b Backups) Delete(_ context.Context, target, id string) error {
	b.c.shelf.mu.Lock()
	defer b.c.shelf.mu.Unlock()
	if v, ok := b.c.shelf.backups[id]; !ok || !b.reach(v) || target == "" && v.Host != b.c.host || target != "" && v.Target != target {
		return fault.New(fault.NotFound, "backup %q: host %s knows none of this id", id, b.c.host)
	}
	for _, other := range b.c.shelf.backups {
		if other.Parent == id {
			return fault.New(fault.Precondition, "delete backup %s: backup %s builds on it; delete that first", id, other.ID)
		}
	}
	delete(b.c.shelf.backups, id)
	return nil
}

// Verify implements service.Targets.
func (b Backups) Verify(_ context.Context, target, id string, progress backup.Progress) (backup.Report, error) {
	b.c.shelf.mu.Lock()
	v, ok := b.c.shelf.backups[id]
	problem := b.c.shelf.damaged[id]
	b.c.shelf.mu.Unlock()
	if !ok || (target != "" && v.Target != target) {
		return backup.Report{}, fault.New(fault.NotFound, "backup %q: it is not there", id)
	}
	progress(v.Size/2, v.Size)
	progress(v.Size, v.Size)
	return backup.Report{OK: problem == "", Problem: problem, Bytes: v.Size}, nil
}

// Catalog implements service.Targets.
func (b Backups) Catalog(_ context.Context, target, server string) ([]backup.Found, error) {
	b.c.shelf.mu.Lock()
	defer b.c.shelf.mu.Unlock()
	var all []backup.Found
	for _, v := range b.c.shelf.sorted(func(v backup.View) bool {
		return v.Target == target && v.State == backup.PhaseReady && (server == "" || v.Server == server) && b.reach(v)
	}) {
		all = append(all, backup.Found{
			File: backup.File{Ref: backup.Ref{Server: v.Server, Backup: v.ID}, Size: v.Size, Complete: true}, Target: v.Target,
			Manifest: backup.Manifest{ID: v.ID, Name: v.Name, Origin: v.Origin, Parent: v.Parent, Snapshot: snapshot.Record{
				ID: v.Snapshot, Server: v.Server, ServerName: v.ServerName, Host: v.Host, Size: v.DiskSize, Checksum: v.Checksum, Created: v.Created, Spec: v.Spec,
			}},
		})
	}
	return all, nil
}

// Import is recovery.Manager's.
func (b Backups) Import(ctx context.Context, r recovery.ImportRequest) (snapshot.View, error) {
	found, err := b.Catalog(ctx, r.Target, "")
	i := slices.IndexFunc(found, func(f backup.Found) bool { return f.Backup == r.Backup })
	if err != nil || i < 0 {
		return snapshot.View{}, fault.New(fault.NotFound, "backup %q: it is not at %s", r.Backup, r.Target)
	}
	v := found[i].View()
	b.c.mu.Lock()
	defer b.c.mu.Unlock()
	s := b.c.put(vserver.View{Spec: vserver.Spec{ID: v.Server, Name: v.ServerName, Disk: vserver.Disk{Size: v.DiskSize}}, State: vserver.StateStopped},
		snapshot.Request{ID: r.Snapshot, Name: cmp.Or(r.Name, v.Name), Description: fmt.Sprintf("from backup %s", v.ID), Origin: snapshot.OriginBackup})
	s.Checksum = v.Checksum
	return b.c.set(s), nil
}
