package servicetest

import (
	"context"
	"time"

	"github.com/google/uuid"

	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
	"github.com/reflejo/terraform-provider-reflejo/agent/migrate"
	"github.com/reflejo/terraform-provider-reflejo/agent/recovery"
	"github.com/reflejo/terraform-provider-reflejo/agent/snapshot"
	"github.com/reflejo/terraform-provider-reflejo/agent/vserver"
)

// Network is what hosts of a site know of each other: whom they send servers to.
type Network struct{ hosts map[string]*Host }

// Join lets hosts move servers to each other and keep backups on one shelf.
func Join(hosts ...*Host) {
	n, shelf := &Network{hosts: map[string]*Host{}}, NewShelf()
	for _, h := range hosts {
		n.hosts[h.name] = h
		h.network = n
		h.Copies.shelf = shelf
	}
}

// Shelf has the backups of the site.
func (h *Host) Shelf() *Shelf { return h.Copies.shelf }

// Refuse makes the host take no server that is to come, with a text; "" ends that.
func (h *Host) Refuse(text string) { h.mu.Lock(); h.refusing = text; h.mu.Unlock() }

// Prepare implements service.Migrations.
func (h *Host) Prepare(_ context.Context, o migrate.Offer) (migrate.Ticket, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.refusing != "" {
		return migrate.Ticket{}, fault.New(fault.Exhausted, "take server %s: %s", o.Server.Spec.Name, h.refusing)
	}
	ticket := uuid.NewString()
	h.tickets[ticket] = o.Server.Spec.ID
	return migrate.Ticket{Secret: ticket, Expires: Began.Add(time.Hour)}, nil
}

// Start implements service.Migrations: the server is there at once, or with [Host.Hold] at Release.
func (h *Host) Start(_ context.Context, m migrate.Move) (vserver.View, error) {
	v, err := h.Get(m.Server)
	if err != nil {
		return v, err
	}
	to := h.network.hosts[m.Target]
	if to == nil || to == h {
		return v, fault.Field("target", "move server %s: no host %q", v.Spec.Name, m.Target)
	}
	to.mu.Lock()
	valid := to.tickets[m.Ticket] == v.Spec.ID
	delete(to.tickets, m.Ticket)
	to.mu.Unlock()
	switch {
	case !valid:
		return v, fault.New(fault.Denied, "move server %s: host %s does not know the ticket", v.Spec.Name, m.Target)
	case v.State == vserver.StateSuspended:
		return v, fault.New(fault.Precondition, "move server %s: it is suspended; resume or stop it first", v.Spec.Name)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	v.MovedTo = m.Target
	return h.begin(v, "migrate", v.State), nil
}

// arrive takes over what another host has sent.
func (h *Host) arrive(v vserver.View, from *Host) {
	v.MovedTo, v.Gone, v.Operation = "", false, vserver.Operation{}
	h.mu.Lock()
	h.set(v)
	h.mu.Unlock()
	if v.Spec.Migration.Snapshots {
		from.Copies.Move(v.Spec.ID, h.Copies)
	}
}

// Restore implements service.Restores.
func (h *Host) Restore(ctx context.Context, idOrName, id, request string) (vserver.View, error) {
	v, err := h.Get(idOrName)
	if err != nil {
		return v, err
	}
	s, err := h.Copies.Get(ctx, id)
	if err != nil {
		return v, err
	}
	if s.Server != v.Spec.ID {
		return v, fault.Field("restore_from", "restore server %s: snapshot %s is of another server", v.Spec.Name, id)
	}
	if err := h.Copies.Captures().Keep(ctx, request, vserver.Record{Spec: v.Spec}); err != nil {
		return v, err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.begin(v, "restore", v.State), nil
}

// Import implements service.Recoveries.
func (h *Host) Import(ctx context.Context, r recovery.ImportRequest) (snapshot.View, error) {
	return h.Copies.Backups().Import(ctx, r)
}

// Strand leaves a server as it is when the host that it is being handed over to is lost.
func (h *Host) Strand(id, to string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	v := h.servers[id]
	v.State, v.Leaving = vserver.StateStopped, to
	h.set(v)
}

// Recover implements service.Recoveries.
func (h *Host) Recover(ctx context.Context, r recovery.Request) (recovery.Recovered, error) {
	h.mu.Lock()
	if v, ok := h.servers[r.Spec.ID]; ok && v.Leaving != "" {
		defer h.mu.Unlock()
		if v.Leaving != r.LostHost {
			return recovery.Recovered{}, fault.New(fault.Precondition, "take server %s back: it is being handed over to host %s, not to host %s", v.Spec.Name, v.Leaving, r.LostHost)
		}
		v.Leaving = ""
		return recovery.Recovered{Server: h.begin(v, "migrate back", vserver.StateRunning)}, nil
	}
	h.mu.Unlock()
	target := r.Target
	if target == "" {
		target = r.Spec.BackupPolicy.Target
	}
	list, err := h.Copies.Backups().Catalog(ctx, target, r.Spec.ID)
	if err != nil || len(list) == 0 {
		return recovery.Recovered{}, fault.New(fault.NotFound, "recover server %s: no backup of it at %s", r.Spec.Name, target)
	}
	last := list[len(list)-1]
	for _, f := range list {
		if f.Backup == r.Backup {
			last = f
		}
	}
	v, err := h.Create(ctx, r.Spec)
	return recovery.Recovered{Server: v, Backup: last.Backup, At: last.Manifest.Snapshot.Created}, err
}
