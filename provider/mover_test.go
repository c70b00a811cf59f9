package provider

import (
	"context"
	"net/netip"
	"sync"
	"time"

	"github.com/google/uuid"

	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
	"github.com/reflejo/terraform-provider-reflejo/agent/migrate"
	"github.com/reflejo/terraform-provider-reflejo/agent/recovery"
	"github.com/reflejo/terraform-provider-reflejo/agent/snapshot"
	"github.com/reflejo/terraform-provider-reflejo/agent/vserver"
)

// moves are the moves between the hosts of a world.
type moves struct {
	mu      *sync.Mutex
	tickets map[string]string // → host
	hold    map[string]chan struct{}
	fail    map[string]error // by the host that servers come to
}

func newMoves() moves {
	return moves{mu: new(sync.Mutex), tickets: map[string]string{}, hold: map[string]chan struct{}{}, fail: map[string]error{}}
}

// mover moves servers between the real managers of a world, with disks that are all alike.
type mover struct{ h *testHost }

func (m mover) Prepare(ctx context.Context, o migrate.Offer) (migrate.Ticket, error) {
	v := o.Server
	in := vserver.Incoming{
		Spec: v.Spec, Image: vserver.Image{ID: v.Spec.Image}, Booted: true, Created: v.Created, Generation: v.Generation,
		Want: vserver.Power(v.State), Links: map[string]vserver.Assigned{}, Source: o.Source, Reserved: o.SnapshotBytes,
	}
	for name, nic := range v.NICs {
		prefix, err := netip.ParsePrefix(nic.Address)
		if err != nil {
			return migrate.Ticket{}, fault.New(fault.Invalid, "address %q", nic.Address)
		}
		if _, err := m.h.nets.Lookup(nic.NetworkID); err == nil {
			in.Links[name] = vserver.Assigned{NetworkID: nic.NetworkID, Address: prefix.Addr(), MAC: nic.MAC}
		}
	}
	if err := m.h.servers.Reserve(ctx, in); err != nil {
		return migrate.Ticket{}, err
	}
	ticket := uuid.NewString()
	moves := m.h.world.moves
	moves.mu.Lock()
	moves.tickets[ticket] = m.h.name
	moves.mu.Unlock()
	return migrate.Ticket{Secret: ticket, Expires: time.Now().Add(time.Hour)}, nil
}

func (m mover) Start(_ context.Context, move migrate.Move) (vserver.View, error) {
	moves := m.h.world.moves
	moves.mu.Lock()
	valid := moves.tickets[move.Ticket] == move.Target
	moves.mu.Unlock()
	if !valid {
		return vserver.View{}, fault.New(fault.Denied, "move server %s: a wrong ticket", move.Server)
	}
	to := m.h.world.hosts[move.Target]
	begun := make(chan struct{})
	failed := make(chan error, 1)
	go func() {
		failed <- m.h.servers.Hold(context.Background(), move.Server, "migrate", func(ctx context.Context, held *vserver.Held) error {
			close(begun)
			return m.carry(ctx, held, to)
		})
	}()
	select {
	case <-begun:
	case err := <-failed:
		return vserver.View{}, err
	}
	go func() {
		if err := <-failed; err != nil {
			_ = to.servers.Abandon(context.Background(), move.Server)
			return
		}
		if move.Settings != nil && move.Settings.Snapshots {
			m.h.copies.Move(move.Server, to.copies)
		}
		_ = m.h.servers.Release(context.Background(), move.Server, move.Target)
	}()
	return m.h.servers.Get(move.Server)
}

// carry takes a held server to another host.
func (m mover) carry(ctx context.Context, held *vserver.Held, to *testHost) error {
	held.Progress("copying", 1, 3, 1<<20, 2<<20)
	moves := m.h.world.moves
	moves.mu.Lock()
	hold, fail := moves.hold[m.h.name], moves.fail[to.name]
	moves.mu.Unlock()
	if hold != nil {
		select {
		case <-hold:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	if err := held.Down(ctx); err != nil {
		return err
	}
	if fail != nil {
		return fail
	}
	if err := held.Leave(to.name); err != nil {
		return err
	}
	rec := held.Record()
	if err := to.kernel.Pool.Disks().Create(ctx, rec.Spec.ID, rec.Image.ID, rec.Spec.Disk.Size); err != nil {
		return err
	}
	return to.servers.Accept(ctx, rec.Spec.ID, false)
}

// Recover makes a server anew; its disk is as new as those of other tests.
func (m mover) Recover(ctx context.Context, r recovery.Request) (recovery.Recovered, error) {
	if v, err := m.h.servers.Get(r.Spec.ID); err == nil && v.Leaving == r.LostHost {
		v, err := m.h.servers.Reclaim(ctx, r.Spec.ID, r.LostHost, 1)
		return recovery.Recovered{Server: v}, err
	}
	target := r.Target
	if target == "" {
		target = r.Spec.BackupPolicy.Target
	}
	list, err := m.h.copies.Backups().Catalog(ctx, target, r.Spec.ID)
	if err != nil {
		return recovery.Recovered{}, err
	}
	if len(list) == 0 {
		return recovery.Recovered{}, fault.New(fault.NotFound, "recover server %s: no backup of it at %s", r.Spec.Name, target)
	}
	last := list[len(list)-1]
	spec := r.Spec
	spec.RestoreFrom = ""
	v, err := m.h.servers.Create(ctx, spec)
	return recovery.Recovered{Server: v, Backup: last.Backup, At: last.Manifest.Snapshot.Created}, err
}

func (m mover) Import(ctx context.Context, r recovery.ImportRequest) (snapshot.View, error) {
	return m.h.copies.Backups().Import(ctx, r)
}
