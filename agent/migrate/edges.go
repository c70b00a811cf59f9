package migrate

import (
	"context"

	"github.com/reflejo/terraform-provider-reflejo/agent/endpoint"
	"github.com/reflejo/terraform-provider-reflejo/agent/network"
	"github.com/reflejo/terraform-provider-reflejo/agent/snapshot"
	"github.com/reflejo/terraform-provider-reflejo/agent/vserver"
)

// Records is where moves are kept (a bucket of package store). A Put is durable when it returns.
type Records interface {
	Put(key string, v any) error
	Delete(key string) error
	ForEach(f func(key string, value []byte) error) error
}

// Servers are the servers of this host (*vserver.Manager).
type Servers interface {
	Get(idOrName string) (vserver.View, error)
	Hold(ctx context.Context, idOrName, kind string, f func(context.Context, *vserver.Held) error) error
	Release(ctx context.Context, id, to string) error
	Reclaim(ctx context.Context, id, lost string, term uint64) (vserver.View, error)
	Guests
}

// Guests are servers that are on their way here (*vserver.Manager).
type Guests interface {
	Reserve(ctx context.Context, in vserver.Incoming) error
	Accept(ctx context.Context, id string, late bool) error
	Abandon(ctx context.Context, id string) error
}

// Disks are the disks and snapshots of this host's pool; see snapshot.Disks.
type Disks interface {
	Take(ctx context.Context, id, server string, quiet snapshot.Quiet) (snapshot.Taken, error)
	Remove(ctx context.Context, id string) error
	Open(ctx context.Context, id string) (snapshot.Content, error)
	OpenDisk(ctx context.Context, server string) (snapshot.Content, error)
}

// Snapshots are the snapshots that people see (*snapshot.Manager).
type Snapshots interface {
	Export(server string) []snapshot.Record
	Adopt(ctx context.Context, rec snapshot.Record) (snapshot.View, error)
	Delete(ctx context.Context, id string) error
}

// Loans are the addresses that servers took along to other hosts (*network.Manager).
type Loans interface {
	// Lend makes durable that the server has these addresses at another host.
	Lend(server, host, endpoint string, links map[string]vserver.Assigned) error
	// Returned forgets what was lent to the server: this host has it again.
	Returned(server string) error
	Loans() []network.Loan
	// Settle records that a lent address is at another host now, or with host "" with none.
	Settle(was network.Loan, host, endpoint string) error
}

// Link is a connection to the other agent (*endpoint.Conn).
type Link interface {
	Peer() string
	Right() []byte
	Send(kind byte, parts ...[]byte) error
	Receive() (endpoint.Frame, error)
	CloseWith(ctx context.Context) (stop func() bool)
	Close() error
}

// Dial calls the agent of a host for a purpose.
type Dial func(ctx context.Context, host, address, purpose string, right []byte) (Link, error)
