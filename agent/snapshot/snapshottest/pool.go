package snapshottest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
	"github.com/reflejo/terraform-provider-reflejo/agent/snapshot"
	"github.com/reflejo/terraform-provider-reflejo/agent/vserver/vservertest"
)

var (
	_ snapshot.Disks    = (*Disks)(nil)
	_ snapshot.Arrivals = (*Arrivals)(nil)
)

// Pool is an in-memory pool of snapshots and arrivals, whose servers' disks are those of a
// vservertest.Pool.
type Pool struct {
	disks *vservertest.Pool

	mu        sync.Mutex
	snapshots map[string]*blob
	arrivals  map[string]*arriving
	placed    map[string]string // server → arrival
	fail      map[string]error
}

// arriving is an arrival; what is not in durable is lost if it is opened again without
// having been closed.
type arriving struct {
	now, durable *blob
	open         bool
}

// Disks is the pool as snapshot.Disks.
type Disks struct{ *Pool }

// Arrivals is the pool as snapshot.Arrivals.
type Arrivals struct{ *Pool }

// NewPool makes a pool without snapshots.
func NewPool(disks *vservertest.Pool) *Pool {
	return &Pool{disks: disks, snapshots: map[string]*blob{}, arrivals: map[string]*arriving{}, placed: map[string]string{}, fail: map[string]error{}}
}

// Disks returns the pool's snapshots.
func (p *Pool) Disks() *Disks { return &Disks{p} }

// Arrivals returns the pool's arrivals.
func (p *Pool) Arrivals() *Arrivals { return &Arrivals{p} }

// Fail makes the named operation ("take", "remove", "list", "open", "copy", "receive",
// "write", "sync", "keep", "place", "drop", "arriving") return err until it is called again
// with nil.
func (p *Pool) Fail(operation string, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err == nil {
		delete(p.fail, operation)
		return
	}
	p.fail[operation] = err
}

// String lists snapshots and arrivals as an operator would see them.
func (p *Pool) String() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	var b strings.Builder
	for _, id := range slices.Sorted(maps.Keys(p.snapshots)) {
		fmt.Fprintf(&b, "snapshot %s size %d\n", id, p.snapshots[id].size)
	}
	for _, id := range slices.Sorted(maps.Keys(p.arrivals)) {
		fmt.Fprintf(&b, "arrival %s size %d\n", id, p.arrivals[id].now.size)
	}
	return b.String()
}

func (p *Pool) begin(ctx context.Context, operation string, ids ...string) error {
	for _, id := range ids {
		if len(id) != 36 || strings.Trim(id, "0123456789abcdef-") != "" {
			return fault.Field("id", "id %q is not a UUID in lower case", id)
		}
	}
	return errors.Join(ctx.Err(), p.fail[operation])
}

// Take implements snapshot.Disks.
func (d *Disks) Take(ctx context.Context, id, server string, quiet snapshot.Quiet) (snapshot.Taken, error) {
	d.mu.Lock()
	err := d.begin(ctx, "take", id, server)
	have := d.snapshots[id]
	d.mu.Unlock()
	if err != nil {
		return snapshot.Taken{}, err
	}
	if have != nil {
		return snapshot.Taken{Size: have.size}, nil
	}
	attached := false
	if err := d.disks.View(server, func(_ string, _ int64, is bool) error { attached = is; return nil }); err != nil {
		return snapshot.Taken{}, err
	}
	taken, loud := snapshot.Taken{}, func() error { return nil }
	if attached && quiet != nil {
		taken.Pause = time.Millisecond
		if loud, err = quiet(ctx); err != nil {
			return snapshot.Taken{}, err
		}
	}
	var b *blob
	err = d.disks.View(server, func(root string, size int64, _ bool) error {
		b, err = pack(root, size)
		return err
	})
	if err = errors.Join(err, loud()); err != nil {
		return snapshot.Taken{}, fmt.Errorf("take snapshot %s: %w", id, err)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.snapshots[id], taken.Size = b, b.size
	return taken, nil
}

// Remove implements snapshot.Disks.
func (d *Disks) Remove(ctx context.Context, id string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.begin(ctx, "remove", id); err != nil {
		return err
	}
	delete(d.snapshots, id)
	return nil
}

// List implements snapshot.Disks.
func (d *Disks) List(ctx context.Context) ([]snapshot.DiskInfo, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.begin(ctx, "list"); err != nil {
		return nil, err
	}
	var all []snapshot.DiskInfo
	for _, id := range slices.Sorted(maps.Keys(d.snapshots)) {
		b := d.snapshots[id]
		info := snapshot.DiskInfo{ID: id, Size: b.size}
		for n, block := range b.blocks {
			info.Allocated += blockSize
			alone := true
			for other, o := range d.snapshots {
				alone = alone && (other == id || !bytes.Equal(o.blocks[n], block))
			}
			if alone {
				info.Exclusive += blockSize
			}
		}
		all = append(all, info)
	}
	return all, nil
}

// Open implements snapshot.Disks.
func (d *Disks) Open(ctx context.Context, id string) (snapshot.Content, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.begin(ctx, "open", id); err != nil {
		return nil, err
	}
	b, err := d.find(id)
	if err != nil {
		return nil, err
	}
	return &content{b, d.Pool}, nil
}

func (p *Pool) find(id string) (*blob, error) {
	b := p.snapshots[id]
	if b == nil {
		return nil, fault.New(fault.NotFound, "open snapshot %s: there is none", id)
	}
	return b, nil
}

// OpenDisk implements snapshot.Disks.
func (d *Disks) OpenDisk(ctx context.Context, server string) (snapshot.Content, error) {
	d.mu.Lock()
	err := d.begin(ctx, "open", server)
	d.mu.Unlock()
	if err != nil {
		return nil, err
	}
	var b *blob
	err = d.disks.View(server, func(root string, size int64, attached bool) (err error) {
		if attached {
			return fault.New(fault.Precondition, "disk %s is attached", server)
		}
		b, err = pack(root, size)
		return err
	})
	if err != nil {
		return nil, err
	}
	return &content{b, d.Pool}, nil
}

// Copy implements snapshot.Disks.
func (d *Disks) Copy(ctx context.Context, id, server string, size int64) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.begin(ctx, "copy", id, server); err != nil {
		return err
	}
	b, err := d.find(id)
	if err != nil {
		return err
	}
	if err := d.disks.Replace(server, max(size, b.size), b.unpack); err != nil {
		return err
	}
	delete(d.placed, server)
	return nil
}

// content is an open disk or snapshot.
type content struct {
	*blob
	pool *Pool
}

func (c *content) Close() error { return nil }
func (c *content) Size() int64  { return c.size }

// Data implements snapshot.Content.
func (c *content) Data(ctx context.Context) ([]snapshot.Range, error) {
	return c.ranges(c.blocks, func(int64) bool { return true }), ctx.Err()
}

// Changed implements snapshot.Content.
func (c *content) Changed(ctx context.Context, since string) ([]snapshot.Range, error) {
	c.pool.mu.Lock()
	defer c.pool.mu.Unlock()
	if err := c.pool.begin(ctx, "open", since); err != nil {
		return nil, err
	}
	older, err := c.pool.find(since)
	if err != nil {
		return nil, err
	}
	both := maps.Clone(older.blocks)
	maps.Copy(both, c.blocks)
	return c.ranges(both, func(n int64) bool { return !bytes.Equal(c.blocks[n], older.blocks[n]) }), nil
}
