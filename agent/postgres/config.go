package postgres

import (
	"context"

	"github.com/hashicorp/go-hclog"

	"github.com/reflejo/terraform-provider-reflejo/agent/database"
	"github.com/reflejo/terraform-provider-reflejo/agent/vserver"
)

// Servers are the running servers, from the inside (package oci).
type Servers interface {
	// Exec runs a program in a server; see vserver.Commands.
	Exec(ctx context.Context, id string, cmd vserver.Command) (int, error)
	// Account finds a user of the server. fault.Invalid: there is none.
	Account(id, user string) (vserver.Account, error)
	// Share shows a directory of the host to the server, at a directory of its.
	Share(id, dir, path string) error
	// Entrance is the command line by which a process of the host has a child in the server.
	Entrance(id, dir string, argv []string, files int) ([]string, error)
}

// Config is what the edge of one agent needs. Directories are made, 0700.
type Config struct {
	RunDir   string // guards and shared directories; on a tmpfs
	StateDir string // certificates and logs; survives a boot
	Servers  Servers
	Guard    []string // starts a guard: the program, then arguments that make it call guard.Run
	Groups   []string // control groups that guards join, as directories
	// Certificate gives a database its certificate; nil, or a zero one, lets the edge make one
	// that nobody has signed.
	Certificate func(ctx context.Context, c database.Cluster) (Certificate, error)
	Addresses   []string // of the host, for certificates
	Log         hclog.Logger
}
