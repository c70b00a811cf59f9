package servicetest

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
	"github.com/reflejo/terraform-provider-reflejo/agent/service"
	"github.com/reflejo/terraform-provider-reflejo/agent/snapshot"
	"github.com/reflejo/terraform-provider-reflejo/agent/vserver"
)

// Backups is the host's backups: service.Backups and service.Targets.
func (c *Copies) Backups() Backups { return Backups{c} }

// Backups keeps the backups that a host knows.
type Backups struct{ c *Copies }

// reach refuses a directory of another host.
func (b Backups) reach(v service.BackupView) bool {
	return !strings.HasPrefix(v.Target, "dir:") || v.Host == b.c.host
}

// Create implements service.Backups.
func (b Backups) Create(ctx context.Context, r service.BackupRequest) (service.BackupView, error) {
	s, err := b.c.Get(ctx, r.Snapshot)
	if err != nil {
		return service.BackupView{}, err
	}
	if r.Target == "s3://unknown" {
		return service.BackupView{}, fault.Field("target", "target %s: this host has no credentials for it", r.Target)
	}
	shelf := b.c.shelf
	shelf.mu.Lock()
	defer shelf.mu.Unlock()
	if v, ok := shelf.backups[r.ID]; ok {
		return v, nil
	}
	v := service.BackupView{
		ID: r.ID, Name: cmp.Or(r.Name, s.Name), Server: s.Server, ServerName: s.ServerName, Snapshot: s.ID, Host: b.c.host, Target: r.Target, State: "ready",
		Size: 3 << 20, DiskSize: s.Size, Checksum: s.Checksum, Created: s.Created, Origin: "manual",
	}
	for _, other := range shelf.sorted(func(o service.BackupView) bool {
		return o.Server == s.Server && o.Target == r.Target && o.State == "ready"
	}) {
		if r.Incremental {
			v.Parent, v.Size = other.ID, 1<<20
		}
	}
	if b.c.failing != "" {
		v.State, v.Operation = "failed", vserver.Operation{Kind: "create", Err: b.c.failing, ErrKind: fault.Exhausted.String(), Done: true, Started: b.c.now()}
	}
	shelf.backups[v.ID] = v
	return v, nil
}

// sorted are the backups that are wanted, oldest first. s.mu is held.
func (s *Shelf) sorted(wanted func(service.BackupView) bool) []service.BackupView {
	var all []service.BackupView
	for _, v := range s.backups {
		if wanted(v) {
			all = append(all, v)
		}
	}
	slices.SortFunc(all, func(x, y service.BackupView) int {
		return cmp.Or(x.Created.Compare(y.Created), strings.Compare(x.ID, y.ID))
	})
	return all
}

// Get implements service.Backups.
func (b Backups) Get(id string) (service.BackupView, error) {
	b.c.shelf.mu.Lock()
	defer b.c.shelf.mu.Unlock()
	v, ok := b.c.shelf.backups[id]
	if !ok || v.Host != b.c.host {
		return service.BackupView{}, fault.New(fault.NotFound, "backup %q: host %s knows none of this id", id, b.c.host)
	}
	return v, nil
}

// List implements service.Backups.
func (b Backups) List(server string) []service.BackupView {
	b.c.shelf.mu.Lock()
	defer b.c.shelf.mu.Unlock()
	return b.c.shelf.sorted(func(v service.BackupView) bool { return v.Host == b.c.host && (server == "" || v.Server == server) })
}

// Watch implements service.Backups: there is never anything under way.
func (b Backups) Watch(_ context.Context, id string) (<-chan service.BackupView, error) {
	v, err := b.Get(id)
	if err != nil {
		return nil, err
	}
	ch := make(chan service.BackupView, 1)
	ch <- v
	return ch, nil
}

// Delete implements service.Backups.
func (b Backups) Delete(_ context.Context, id string) error {
	b.c.shelf.mu.Lock()
	defer b.c.shelf.mu.Unlock()
	if v, ok := b.c.shelf.backups[id]; !ok || !b.reach(v) {
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
func (b Backups) Verify(_ context.Context, target, id string, progress func(done, total int64)) error {
	b.c.shelf.mu.Lock()
	v, ok := b.c.shelf.backups[id]
	problem := b.c.shelf.damaged[id]
	b.c.shelf.mu.Unlock()
	if !ok || (target != "" && v.Target != target) {
		return fault.New(fault.NotFound, "backup %q: it is not there", id)
	}
	progress(v.Size/2, v.Size)
	progress(v.Size, v.Size)
	if problem != "" {
		return fault.New(fault.Precondition, "%s", problem)
	}
	return nil
}

// Catalog implements service.Targets.
func (b Backups) Catalog(_ context.Context, target, server string) ([]service.BackupView, error) {
	b.c.shelf.mu.Lock()
	defer b.c.shelf.mu.Unlock()
	return b.c.shelf.sorted(func(v service.BackupView) bool {
		return v.Target == target && (server == "" || v.Server == server) && b.reach(v)
	}), nil
}

// Import implements service.Targets.
func (b Backups) Import(_ context.Context, r service.ImportRequest) (snapshot.View, error) {
	b.c.shelf.mu.Lock()
	v, ok := b.c.shelf.backups[r.Backup]
	b.c.shelf.mu.Unlock()
	if !ok || v.Target != r.Target || !b.reach(v) {
		return snapshot.View{}, fault.New(fault.NotFound, "backup %q: it is not at %s", r.Backup, r.Target)
	}
	b.c.mu.Lock()
	defer b.c.mu.Unlock()
	s := b.c.put(vserver.View{Spec: vserver.Spec{ID: v.Server, Name: v.ServerName, Disk: vserver.Disk{Size: v.DiskSize}}, State: vserver.StateStopped},
		snapshot.Request{ID: r.Snapshot, Name: cmp.Or(r.Name, v.Name), Description: fmt.Sprintf("from backup %s", v.ID), Origin: snapshot.OriginBackup})
	s.Checksum = v.Checksum
	return b.c.set(s), nil
}
