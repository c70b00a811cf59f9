package database

import (
	"context"
	"net/netip"
	"time"

	"github.com/reflejo/terraform-provider-reflejo/agent/vserver"
)

// Rules for every edge, as in package vserver: a call takes the whole wanted state of one
// thing and may be made twice; what is already so stays untouched; removing what is not
// there succeeds. A server that does not run is fault.Precondition for all of them.

// Clusters keeps PostgreSQL clusters in running servers (package postgres).
type Clusters interface {
	// Inspect says what is there of a cluster.
	Inspect(ctx context.Context, c Cluster) (Condition, error)
	// Create makes the cluster's files, and the server's own service of it be none. What an
	// interrupted creation left is removed. It returns the cluster's system identifier.
	Create(ctx context.Context, c Cluster) (identity string, err error)
	// Run makes the cluster run under its guard with exactly these settings, by a start, a
	// reload, a restart or nothing, and returns when it takes connections. Files of another
	// identity are fault.Precondition, and are not started. It says since when it runs.
	Run(ctx context.Context, c Cluster) (started time.Time, err error)
	// Grant makes owner, password and SQL database be as wanted in a running cluster.
	Grant(ctx context.Context, c Cluster) error
	// Stop ends the cluster and its guard, by force after limit. It works, too, when the
	// server does not run.
	Stop(ctx context.Context, id string, limit time.Duration) error
	// Remove stops the cluster and removes everything of it. Where the server does not run,
	// or is gone, what is on the host is removed.
	Remove(ctx context.Context, c Cluster) error
}

// Inspector answers questions before anything is decided (package postgres too).
type Inspector interface {
	// Versions lists the majors that a running server has, newest first.
	Versions(ctx context.Context, server string) ([]int, error)
	// Check lets the PostgreSQL of a running server look at parameters. What it does not
	// take is fault.Invalid with the attribute. It says what a change from those that are
	// set needs.
	Check(ctx context.Context, server string, major int, was, want map[string]string) (Effect, error)
	// Wait returns when the guard of a cluster has ended, or was not there (nil), or ctx has
	// (its error). What ends under a guard that lives is the guard's to start again.
	Wait(ctx context.Context, id string) error
}

// Effect is what a change of a running cluster needs.
type Effect string

// The effects, the smaller first.
const (
	EffectNone    Effect = "none"
	EffectReload  Effect = "reload"
	EffectRestart Effect = "restart"
)

// Cluster is everything about one PostgreSQL cluster, decided.
type Cluster struct {
	ID         string
	Name       string
	Server     string
	Major      int
	Port       int
	Identity   string // system identifier; "" before it is made
	Owner      string
	Secret     string // what proves Owner's password, as PostgreSQL keeps it; "" for none
	Admin      string // password of the agent's own role
	Parameters map[string]string
	Clients    Clients
}

// Condition is what is there of a cluster.
type Condition struct {
	Made     bool // its files are complete
	Running  bool // under its guard
	Identity string
	Started  time.Time // of postgres
	Problem  string    // what was found changed behind the agent's back, or why it does not run; "" for nothing
}

// Records is where records are kept (a bucket of package store). A Put is durable when it returns.
type Records interface {
	Put(key string, v any) error
	Delete(key string) error
	// ForEach calls f with every record's JSON.
	ForEach(f func(key string, value []byte) error) error
}

// Secrets turns passwords into what proves them (package postgres).
type Secrets interface {
	// Secret is what proves a password without being it.
	Secret(password string) (string, error)
	// Proves reports whether a secret is of this password.
	Proves(secret, password string) bool
}

// Servers are the host's virtual servers (vserver.Manager).
type Servers interface {
	Get(idOrName string) (vserver.View, error)
}

// Ports opens databases to their clients (the network's filter).
type Ports interface {
	// Open lets these ranges, and nobody else, reach the port of the host and sends them to
	// the same port of the server.
	Open(ctx context.Context, p Port) error
	// Close rejects everybody, at once, also who is connected.
	Close(ctx context.Context, p Port) error
	// Remove forgets the port: it may be another's.
	Remove(ctx context.Context, id string) error
}

// Port is one database's.
type Port struct {
	ID     string // the database's
	Server string
	Number int
	From   []netip.Prefix
}
