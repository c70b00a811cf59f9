package snapshot

import (
	"context"
	"io"
	"time"

	"github.com/reflejo/terraform-provider-reflejo/agent/vserver"
)

// The rules for edges are those of package vserver: a call may be made twice, removing what
// is not there succeeds, ids are UUIDs in lower case, errors carry a fault kind where a
// caller can act on it.

// Servers are the host's servers, as far as snapshots need them (vserver.Manager).
type Servers interface {
	Get(idOrName string) (vserver.View, error)
	List() []vserver.View
	// Hold runs f while nobody else operates on the server.
	Hold(ctx context.Context, idOrName, kind string, f func(context.Context, *vserver.Held) error) error
	// Resources is what the host can promise, has promised (snapshots included), and has left.
	Resources() (capacity, promised, free vserver.Resources)
}

// Disks keeps snapshots of servers' disks in the pool (package disk).
type Disks interface {
	// Take makes snapshot id of the server's disk: a complete, read-only copy of it as it
	// is at one moment between the call and its return, durable when it returns. A
	// snapshot of this id that is complete is kept and described.
	//
	// An attached disk is copied mostly before that moment, while it is written to. quiet,
	// if not nil, is then called once; when it has returned nobody writes, the rest is
	// copied, and loud is called, whatever happened. What a writer waits does not depend on
	// the disk's size or fragmentation. Without quiet (a crash-consistent snapshot, a disk
	// that is not attached) the moment is that of one atomic clone.
	// A full pool is fault.Exhausted, a server without disk fault.NotFound.
	Take(ctx context.Context, id, server string, quiet Quiet) (Taken, error)
	// Remove deletes snapshot id.
	Remove(ctx context.Context, id string) error
	// List describes all complete snapshots of the pool.
	List(ctx context.Context) ([]DiskInfo, error)
	// Open opens snapshot id for reading; fault.NotFound if there is none.
	Open(ctx context.Context, id string) (Content, error)
	// OpenDisk opens a server's own disk for reading, which must not be attached
	// (fault.Precondition).
	OpenDisk(ctx context.Context, server string) (Content, error)
	// Copy makes the server's disk, which must not be attached, a writable copy of snapshot
	// id with at least size bytes. It replaces an older disk at once and durably: after a
	// crash the disk is the older or the new one.
	Copy(ctx context.Context, id, server string, size int64) error
}

// Quiet stops everything that writes to a server's disk, and its file system, in a state
// that needs no repair. The function it returns undoes that; so does a watchdog, after a
// limit or when this process ends.
type Quiet func(ctx context.Context) (loud func() error, err error)

// Taken says how a snapshot was taken.
type Taken struct {
	Size  int64         // what the server sees, bytes
	Pause time.Duration // for how long writers were held up at once, at most
}

// DiskInfo describes a snapshot in the pool. Sizes are bytes.
type DiskInfo struct {
	ID        string
	Size      int64 // what the server sees
	Allocated int64 // in the pool, shared extents included
	Exclusive int64 // of those, what nothing else in the pool shares: what deleting it frees
}

// Content is what a disk or snapshot holds. Offsets and sizes are bytes and multiples of 4 KiB
// but for the end of a disk whose size is none.
type Content interface {
	io.ReaderAt
	io.Closer
	Size() int64
	// Data are the ranges that were ever written, in ascending order, not adjoining; all
	// else reads as zeros.
	Data(ctx context.Context) ([]Range, error)
	// Changed are the ranges in which this may differ from an older snapshot of the same
	// disk, found from extent maps without reading data. fault.NotFound if there is no such
	// snapshot.
	Changed(ctx context.Context, since string) ([]Range, error)
}

// Range is a piece of a disk.
type Range struct{ Offset, Length int64 }

// End is the offset after the range.
func (r Range) End() int64 { return r.Offset + r.Length }

// Arrivals keeps disks that come in from elsewhere, until they are complete (package disk).
type Arrivals interface {
	// Receive opens arrival id for writing, making it (sparse, all zeros) if it is not
	// there; what an earlier opening made durable is still in it. A larger size than it has
	// makes it larger, a smaller one is fault.Invalid.
	Receive(ctx context.Context, id string, size int64) (Arrival, error)
	// Keep makes snapshot id of what arrival from holds now; complete and durable when it
	// returns. A snapshot of this id that is there is kept.
	Keep(ctx context.Context, from, id string) error
	// Place makes arrival from the server's disk, which must not be there yet, or be
	// from itself by an earlier call; durable when it returns.
	Place(ctx context.Context, from, server string) error
	// Drop deletes arrival id.
	Drop(ctx context.Context, id string) error
	// Arriving lists the arrivals there are.
	Arriving(ctx context.Context) ([]string, error)
}

// Arrival is a disk that is being received. One goroutine at a time may use it.
type Arrival interface {
	io.WriterAt
	io.ReaderAt
	// Zero makes a range read as zeros and gives its space back.
	Zero(r Range) error
	// Sync makes everything written so far durable.
	Sync() error
	// Close keeps the arrival as it is; what was not synced may be lost.
	Close() error
}
