package provider

import (
	"context"
	"net"
	"time"

	"github.com/reflejo/terraform-provider-reflejo/agent/endpoint"
	"github.com/reflejo/terraform-provider-reflejo/agent/migrate"
	"github.com/reflejo/terraform-provider-reflejo/agent/pki"
	"github.com/reflejo/terraform-provider-reflejo/agent/service"
	"github.com/reflejo/terraform-provider-reflejo/agent/snapshot"
	"github.com/reflejo/terraform-provider-reflejo/agent/snapshot/snapshottest"
	"github.com/reflejo/terraform-provider-reflejo/agent/vserver"
	"github.com/reflejo/terraform-provider-reflejo/agent/vserver/vservertest"
)

// genuine is what a host of a genuine world has instead of fakes.
type genuine struct {
	pool      *snapshottest.Pool
	snapshots *snapshot.Manager
	moves     *migrate.Manager
	listener  net.Listener
}

// keepSnapshots makes the manager of snapshots, which the servers' asks.
func (h *testHost) keepSnapshots(config *vserver.Config) *genuine {
	t := h.world.t
	g := &genuine{pool: snapshottest.NewPool(h.kernel.Pool)}
	var err error
	g.snapshots, err = snapshot.NewManager(snapshot.Config{Host: h.name, Records: vservertest.NewRecords(), Disks: g.pool.Disks(), SumsDir: t.TempDir(), Quiet: quickly})
	must(t, err)
	config.Captures = g.snapshots
	return g
}

// quickly holds writers up for no time.
func quickly(_, _ string, _ bool, held func(time.Duration)) snapshot.Quiet {
	return func(context.Context) (func() error, error) {
		return func() error { held(time.Millisecond); return nil }, nil
	}
}

// join binds the managers to each other and answers other hosts.
func (g *genuine) join(h *testHost) {
	t := h.world.t
	g.snapshots.Bind(h.servers)
	credentials, err := pki.NewCredentials(h.world.ca.Pair().Cert, h.world.issue(pki.RoleAgent, h.name, []string{"127.0.0.1"}))
	must(t, err)
	get := func() pki.Credentials { return credentials }
	g.moves, err = migrate.NewManager(migrate.Config{
		Host: h.name, Outgoing: vservertest.NewRecords(), Incoming: vservertest.NewRecords(), Servers: h.servers,
		Disks: g.pool.Disks(), Arrivals: g.pool.Arrivals(), Snapshots: g.snapshots, Loans: h.nets,
		Dial: func(ctx context.Context, host, address, purpose string, right []byte) (migrate.Link, error) {
			return endpoint.Dial(ctx, endpoint.Config{Host: host, Address: address, Credentials: get, Purpose: purpose, Right: right})
		},
	})
	must(t, err)
	must(t, g.snapshots.Recover(t.Context()))
	must(t, g.moves.Recover(t.Context()))
	t.Cleanup(g.snapshots.Close)
	t.Cleanup(g.moves.Close)
	server := endpoint.NewServer(endpoint.ServerConfig{Credentials: get})
	server.Handle(migrate.Purpose, g.moves.Handle)
	server.Handle(migrate.LoanPurpose, g.moves.HandleLoans)
	g.listener, err = net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	go func() { _ = server.Serve(g.listener) }()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		_ = server.Shutdown(ctx)
	})
}

// serves lets the service speak to what the host really has.
func (h *testHost) serves(c service.Config) service.Config {
	if h.genuine != nil {
		c.Snapshots, c.Migrations = h.genuine.snapshots, h.genuine.moves
	}
	return c
}

func (h *testHost) endpoint() string {
	if h.genuine == nil {
		return ""
	}
	return h.genuine.listener.Addr().String()
}
