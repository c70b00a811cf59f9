package backup

import (
	"context"

	"github.com/reflejo/terraform-provider-reflejo/agent/snapshot"
	"github.com/reflejo/terraform-provider-reflejo/agent/vserver"
)

// Snapshots are the host's snapshots (package snapshot).
type Snapshots interface {
	// Open opens a complete snapshot for reading and describes it; fault.NotFound where there
	// is none.
	Open(ctx context.Context, id string) (snapshot.Content, snapshot.Record, error)
	// Take takes a snapshot and returns when it is complete. One of this id that is there is kept.
	Take(ctx context.Context, req snapshot.Request) (snapshot.Record, error)
	// Drop deletes a snapshot.
	Drop(ctx context.Context, id string) error
}

// Servers are the host's servers, whose policies are run (package vserver).
type Servers interface {
	List() []vserver.View
}

// Stores are the targets that the host allows ([Targets]).
type Stores interface {
	// Allow checks a target without reaching for it: fault.Invalid, or fault.Precondition
	// where the host's configuration does not allow it.
	Allow(target string) error
	// Open reaches for it.
	Open(ctx context.Context, target string) (Target, error)
}

// Records is where records are kept (a bucket of package store). A Put is durable when it returns.
type Records interface {
	Put(key string, v any) error
	Delete(key string) error
	// ForEach calls f with every record's JSON.
	ForEach(f func(key string, value []byte) error) error
}
