package snapshottest

import (
	"context"
	"maps"
	"slices"

	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
	"github.com/reflejo/terraform-provider-reflejo/agent/snapshot"
)

// Receive implements snapshot.Arrivals.
func (a *Arrivals) Receive(ctx context.Context, id string, size int64) (snapshot.Arrival, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if err := a.begin(ctx, "receive", id); err != nil {
		return nil, err
	}
	have := a.arrivals[id]
	switch {
	case size <= 0:
		return nil, fault.Field("size", "size %d is none", size)
	case have == nil:
		have = &arriving{now: newBlob(size), durable: newBlob(size)}
		a.arrivals[id] = have
	case have.now.size > size:
		return nil, fault.Field("size", "arrival %s has %d bytes and cannot shrink to %d", id, have.now.size, size)
	case have.open: // its process was killed
		have.now = have.durable.clone()
	}
	have.now.size, have.durable.size, have.open = size, size, true
	return &arrival{have, a.Pool}, nil
}

func (p *Pool) findArrival(id string) (*arriving, error) {
	a := p.arrivals[id]
	if a == nil {
		return nil, fault.New(fault.NotFound, "open arrival %s: there is none", id)
	}
	return a, nil
}

// Keep implements snapshot.Arrivals.
func (a *Arrivals) Keep(ctx context.Context, from, id string) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if err := a.begin(ctx, "keep", from, id); err != nil || a.snapshots[id] != nil {
		return err
	}
	have, err := a.findArrival(from)
	if err != nil {
		return err
	}
	a.snapshots[id] = have.now.clone()
	return nil
}

// Place implements snapshot.Arrivals.
func (a *Arrivals) Place(ctx context.Context, from, server string) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if err := a.begin(ctx, "place", from, server); err != nil {
		return err
	}
	if a.disks.View(server, func(string, int64, bool) error { return nil }) == nil {
		if a.placed[server] == from {
			return nil
		}
		return fault.New(fault.Exists, "server %s has a disk already", server)
	}
	have, err := a.findArrival(from)
	if err != nil {
		return err
	}
	if err := a.disks.Replace(server, have.now.size, have.now.unpack); err != nil {
		return err
	}
	a.placed[server] = from
	delete(a.arrivals, from)
	return nil
}

// Drop implements snapshot.Arrivals.
func (a *Arrivals) Drop(ctx context.Context, id string) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if err := a.begin(ctx, "drop", id); err != nil {
		return err
	}
	delete(a.arrivals, id)
	return nil
}

// Arriving implements snapshot.Arrivals.
func (a *Arrivals) Arriving(ctx context.Context) ([]string, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.Sorted(maps.Keys(a.arrivals)), a.begin(ctx, "arriving")
}

// arrival is an open arrival.
type arrival struct {
	*arriving
	pool *Pool
}

func (a *arrival) check(operation string, offset, length int64) error {
	if err := a.pool.fail[operation]; err != nil {
		return err
	}
	size := a.now.size
	if offset < 0 || length < 0 || offset > size || length > size-offset {
		return fault.Field("range", "%d bytes at %d are not within %d", length, offset, size)
	}
	if offset%blockSize != 0 || length%blockSize != 0 && offset+length != size {
		return fault.Field("range", "%d bytes at %d are not whole blocks", length, offset)
	}
	return nil
}

func (a *arrival) ReadAt(p []byte, offset int64) (int, error) {
	a.pool.mu.Lock()
	defer a.pool.mu.Unlock()
	return a.now.ReadAt(p, offset)
}

func (a *arrival) WriteAt(p []byte, offset int64) (int, error) {
	a.pool.mu.Lock()
	defer a.pool.mu.Unlock()
	if err := a.check("write", offset, int64(len(p))); err != nil {
		return 0, err
	}
	a.now.writeAt(p, offset)
	return len(p), nil
}

// Zero implements snapshot.Arrival.
func (a *arrival) Zero(r snapshot.Range) error {
	a.pool.mu.Lock()
	defer a.pool.mu.Unlock()
	if err := a.check("write", r.Offset, r.Length); err != nil {
		return err
	}
	a.now.zero(r)
	return nil
}

// Sync implements snapshot.Arrival.
func (a *arrival) Sync() error {
	a.pool.mu.Lock()
	defer a.pool.mu.Unlock()
	if err := a.pool.fail["sync"]; err != nil {
		return err
	}
	a.durable = a.now.clone()
	return nil
}

// Close implements snapshot.Arrival.
func (a *arrival) Close() error {
	a.pool.mu.Lock()
	defer a.pool.mu.Unlock()
	a.open = false
	return nil
}
