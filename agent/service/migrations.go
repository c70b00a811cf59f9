package service

import (
	"context"
	"net/netip"

	"connectrpc.com/connect"

	reflejov1 "github.com/reflejo/terraform-provider-reflejo/agent/api/reflejo/v1"
	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
	"github.com/reflejo/terraform-provider-reflejo/agent/migrate"
	"github.com/reflejo/terraform-provider-reflejo/agent/recovery"
	"github.com/reflejo/terraform-provider-reflejo/agent/vserver"
)

// Migrations moves servers between hosts (migrate.Manager).
type Migrations interface {
	// Prepare reserves room for a server that is to come here. The same offer again is
	// answered with a new ticket for the same reservation.
	Prepare(ctx context.Context, o migrate.Offer) (migrate.Ticket, error)
	// Start begins to move a server away, or goes on with it.
	Start(ctx context.Context, m migrate.Move) (vserver.View, error)
}

func (h *serverHandler) PrepareMigration(ctx context.Context, req *connect.Request[reflejov1.PrepareMigrationRequest]) (*connect.Response[reflejov1.PrepareMigrationResponse], error) {
	view, err := viewFromProto(req.Msg.GetServer())
	if err != nil {
		return nil, err
	}
	ticket, err := h.s.cfg.Migrations.Prepare(ctx, migrate.Offer{Server: view, Source: req.Msg.GetSource(), SnapshotBytes: req.Msg.GetSnapshotBytes()})
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&reflejov1.PrepareMigrationResponse{
		Ticket: ticket.Secret, Endpoint: h.s.cfg.Host.Facts().Endpoint, ExpiresAt: timestamp(ticket.Expires),
	}), nil
}

func (h *serverHandler) MigrateServer(ctx context.Context, req *connect.Request[reflejov1.MigrateServerRequest]) (*connect.Response[reflejov1.MigrateServerResponse], error) {
	m := req.Msg
	move := migrate.Move{Server: m.GetId(), Target: m.GetTarget(), Endpoint: m.GetEndpoint(), Ticket: m.GetTicket()}
	if m.Settings != nil {
		settings := migrationFromProto(m.GetSettings())
		if err := settings.Validate(); err != nil {
			return nil, err
		}
		move.Settings = &settings
	}
	v, err := h.s.cfg.Migrations.Start(ctx, move)
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&reflejov1.MigrateServerResponse{Server: h.server(v)}), nil
}

func (h *serverHandler) RecoverServer(ctx context.Context, req *connect.Request[reflejov1.RecoverServerRequest]) (*connect.Response[reflejov1.RecoverServerResponse], error) {
	m := req.Msg
	r, err := h.s.cfg.Recoveries.Recover(ctx, recovery.Request{Spec: specFromProto(m.GetSpec()), LostHost: m.GetLostHost(), Target: m.GetTarget(), Backup: m.GetBackup()})
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&reflejov1.RecoverServerResponse{Server: h.server(r.Server), Backup: r.Backup, BackupAt: timestamp(r.At)}), nil
}

// viewFromProto reads what another host shows of a server, as far as it says how the
// server is to be here.
func viewFromProto(p *reflejov1.Server) (vserver.View, error) {
	v := vserver.View{
		Spec:       specFromProto(p.GetSpec()),
		State:      vserver.State(p.GetState()),
		Created:    p.GetCreatedAt().AsTime(),
		DiskUsed:   p.GetDiskUsed(),
		Generation: p.GetGeneration(),
		NICs:       map[string]vserver.NICView{},
	}
	for name, nic := range p.GetNics() {
		if _, err := netip.ParsePrefix(nic.GetAddress()); err != nil {
			return v, fault.Field("network", "address %q of interface %s: want one with a prefix length", nic.GetAddress(), name)
		}
		v.NICs[name] = vserver.NICView{Address: nic.GetAddress(), MAC: nic.GetMac(), NetworkID: nic.GetNetwork()}
	}
	return v, nil
}
