package main

import (
	"context"
	"fmt"
	"net"
	"os"

	"github.com/reflejo/terraform-provider-reflejo/agent/endpoint"
	"github.com/reflejo/terraform-provider-reflejo/agent/migrate"
	"github.com/reflejo/terraform-provider-reflejo/agent/peers"
)

// openMigrations wires what moves servers.
func (ag *agent) openMigrations() error {
	var err error
	ag.moves, err = migrate.NewManager(migrate.Config{
		Host:      ag.config.Name,
		Outgoing:  ag.db.Bucket("moves-out"),
		Incoming:  ag.db.Bucket("moves-in"),
		Servers:   ag.servers,
		Disks:     ag.pool.Snapshots(),
		Arrivals:  ag.pool.Snapshots(),
		Snapshots: ag.snapshots,
		Loans:     ag.networks,
		Dial:      ag.call,
		Log:       ag.log.Named("migrate"),
	})
	return err
}

// call is migrate.Dial.
func (ag *agent) call(ctx context.Context, host, address, purpose string, right []byte) (migrate.Link, error) {
	return endpoint.Dial(ctx, endpoint.Config{Host: host, Address: address, Credentials: ag.source.Get, Purpose: purpose, Right: right})
}

// openEndpoint answers other agents. It comes last: what they ask for must be there.
func (ag *agent) openEndpoint(context.Context) error {
	s := endpoint.NewServer(endpoint.ServerConfig{Credentials: ag.source.Get, Log: ag.log.Named("endpoint")})
	if store := ag.config.Backup.Store; store != "" {
		if err := os.MkdirAll(store, 0o700); err != nil {
			return fmt.Errorf("make directory of other hosts' backups: %w", err)
		}
	}
	s.Handle(migrate.Purpose, ag.moves.Handle)
	s.Handle(migrate.LoanPurpose, ag.moves.HandleLoans)
	s.Handle(peers.PurposeBackup, peers.Handler(ag.config.Backup.Store))
	s.Handle(peers.PurposeTerm, peers.TermHandler(ag.servers.Term))
	listener, err := net.Listen("tcp", ag.config.Endpoint.Listen)
	if err != nil {
		return fmt.Errorf("listen for other agents: %w", err)
	}
	served := make(chan struct{})
	go func() {
		defer close(served)
		ag.logged("serve other agents", s.Serve(listener))
	}()
	ag.onClose(func() {
		ctx, cancel := context.WithTimeout(context.Background(), answersLimit)
		defer cancel()
		if err := s.Shutdown(ctx); err != nil {
			ag.log.Warn("some agents were cut off", "error", err)
		}
		<-served
	})
	return nil
}
