package snapshot_test

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"maps"
	"slices"
	"sync"

	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
	"github.com/reflejo/terraform-provider-reflejo/agent/snapshot"
	"github.com/reflejo/terraform-provider-reflejo/agent/vserver/vservertest"
)

const (
	diskSize  = 2 << 30
	blockSize = 64 << 10
)

// blocks are a disk's extents: block number → what was written there. Two disks share a
// block if they have the same in it.
type blocks map[int64]uint64

// pool is a pool of snapshots in memory that shares extents as a real one does.
type pool struct {
	gate     *gate
	attached func(server string) bool

	mu      sync.Mutex
	disks   map[string]blocks
	snaps   map[string]blocks
	of      map[string]string // snapshot → server
	written uint64
	read    int64            // bytes
	fail    map[string]error // by call
	holding chan struct{}    // Take waits until it is closed
}

func newPool(attached func(string) bool) *pool {
	return &pool{gate: &gate{}, attached: attached, disks: map[string]blocks{}, snaps: map[string]blocks{}, of: map[string]string{}, fail: map[string]error{}}
}

// write writes blocks of a server's disk.
func (p *pool) write(server string, numbers ...int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.disks[server] == nil {
		p.disks[server] = blocks{}
	}
	for _, n := range numbers {
		p.written++
		p.disks[server][n] = p.written
	}
}

// union is what the pool has to keep for all snapshots of a server, bytes.
func (p *pool) union(server string) int64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	type extent struct {
		block int64
		is    uint64
	}
	all := map[extent]bool{}
	for id, b := range p.snaps {
		if p.of[id] == server {
			for n, is := range b {
				all[extent{n, is}] = true
			}
		}
	}
	return int64(len(all)) * blockSize
}

func (p *pool) ids() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Sorted(maps.Keys(p.snaps))
}

func (p *pool) failing(call string, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.fail[call] = err
}

func (p *pool) Take(ctx context.Context, id, server string, quiet snapshot.Quiet) (taken snapshot.Taken, err error) {
	err = p.gate.pass(func() error {
		p.mu.Lock()
		err, hold := p.fail["take"], p.holding
		p.mu.Unlock()
		if err != nil {
			return err
		}
		if hold != nil {
			select {
			case <-hold:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		if quiet != nil {
			loud, err := quiet(ctx)
			if err != nil {
				return err
			}
			defer func() { _ = loud() }()
		}
		p.mu.Lock()
		defer p.mu.Unlock()
		taken.Size = diskSize
		if p.snaps[id] == nil {
			p.snaps[id], p.of[id] = blocks{}, server
			maps.Copy(p.snaps[id], p.disks[server])
		}
		return ctx.Err()
	})
	return taken, err
}

func (p *pool) Remove(_ context.Context, id string) error {
	return p.gate.pass(func() error {
		p.mu.Lock()
		defer p.mu.Unlock()
		if err := p.fail["remove"]; err != nil {
			return err
		}
		delete(p.snaps, id)
		delete(p.of, id)
		return nil
	})
}

func (p *pool) List(context.Context) (all []snapshot.DiskInfo, err error) {
	err = p.gate.pass(func() error {
		p.mu.Lock()
		defer p.mu.Unlock()
		for id, b := range p.snaps {
			all = append(all, snapshot.DiskInfo{ID: id, Size: diskSize, Allocated: int64(len(b)) * blockSize, Exclusive: p.exclusive(id)})
		}
		return nil
	})
	return all, err
}

func (p *pool) exclusive(id string) int64 {
	n := int64(0)
	for block, is := range p.snaps[id] {
		shared := false
		for other, b := range p.snaps {
			shared = shared || other != id && b[block] == is
		}
		for _, b := range p.disks {
			shared = shared || b[block] == is
		}
		if !shared {
			n += blockSize
		}
	}
	return n
}

func (p *pool) Open(_ context.Context, id string) (c snapshot.Content, err error) {
	err = p.gate.pass(func() error {
		p.mu.Lock()
		defer p.mu.Unlock()
		if err := p.fail["open"]; err != nil {
			return err
		}
		b := p.snaps[id]
		if b == nil {
			return fault.New(fault.NotFound, "open snapshot %s: there is none", id)
		}
		c = &content{p, maps.Clone(b)}
		return nil
	})
	return c, err
}

func (p *pool) OpenDisk(_ context.Context, server string) (snapshot.Content, error) {
	if p.attached(server) {
		return nil, fault.New(fault.Precondition, "open disk of server %s: it is attached", server)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return &content{p, maps.Clone(p.disks[server])}, nil
}

func (p *pool) Copy(_ context.Context, id, server string, _ int64) error {
	return p.gate.pass(func() error {
		if p.attached(server) {
			return fault.New(fault.Precondition, "copy over disk of server %s: it is attached", server)
		}
		p.mu.Lock()
		defer p.mu.Unlock()
		if p.snaps[id] == nil {
			return fault.New(fault.NotFound, "copy snapshot %s: there is none", id)
		}
		p.disks[server] = maps.Clone(p.snaps[id])
		return nil
	})
}

type content struct {
	p *pool
	b blocks
}

func (c *content) Close() error { return nil }
func (c *content) Size() int64  { return diskSize }

func (c *content) Data(context.Context) ([]snapshot.Range, error) {
	return rangesOf(slices.Sorted(maps.Keys(c.b))), nil
}

func (c *content) Changed(_ context.Context, since string) ([]snapshot.Range, error) {
	c.p.mu.Lock()
	defer c.p.mu.Unlock()
	older := c.p.snaps[since]
	if older == nil {
		return nil, fault.New(fault.NotFound, "compare with snapshot %s: there is none", since)
	}
	differ := map[int64]bool{}
	for n, is := range c.b {
		if older[n] != is {
			differ[n] = true
		}
	}
	for n := range older {
		if c.b[n] == 0 {
			differ[n] = true
		}
	}
	return rangesOf(slices.Sorted(maps.Keys(differ))), nil
}

func rangesOf(numbers []int64) []snapshot.Range {
	var ranges []snapshot.Range
	for _, n := range numbers {
		if last := len(ranges) - 1; last >= 0 && ranges[last].End() == n*blockSize {
			ranges[last].Length += blockSize
		} else {
			ranges = append(ranges, snapshot.Range{Offset: n * blockSize, Length: blockSize})
		}
	}
	return ranges
}

// ReadAt reads whole blocks: the number of what was written, at their beginnings.
func (c *content) ReadAt(b []byte, offset int64) (int, error) {
	if offset%blockSize != 0 || len(b)%blockSize != 0 {
		return 0, errors.New("not whole blocks")
	}
	c.p.mu.Lock()
	c.p.read += int64(len(b))
	err := c.p.fail["read"]
	c.p.mu.Unlock()
	if err != nil {
		return 0, err
	}
	clear(b)
	for i := 0; i < len(b); i += blockSize {
		binary.LittleEndian.PutUint64(b[i:], c.b[(offset+int64(i))/blockSize])
	}
	if offset+int64(len(b)) > diskSize {
		return 0, io.EOF
	}
	return len(b), nil
}

// gate lets calls pass until the agent is killed: at call number at, before or after it was
// carried out. From then on nothing is done any more.
type gate struct {
	mu    sync.Mutex
	n, at int
	after bool
	dead  bool
}

var errKilled = errors.New("the agent was killed")

func (g *gate) pass(f func() error) error {
	g.mu.Lock()
	g.n++
	mine := g.at > 0 && g.n == g.at
	dead := g.dead || mine && !g.after
	g.dead = g.dead || mine
	g.mu.Unlock()
	if dead {
		return errKilled
	}
	if err := f(); err != nil {
		return err
	}
	if mine {
		return errKilled
	}
	return nil
}

// kill makes call number at from now the last one; 0 makes a new agent possible.
func (g *gate) kill(at int, after bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.n, g.at, g.after, g.dead = 0, at, after, false
}

func (g *gate) killed() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.dead
}

// gatedRecords is a bucket of an agent that can be killed.
type gatedRecords struct {
	*vservertest.Records
	gate *gate
}

func (r gatedRecords) Put(key string, v any) error {
	return r.gate.pass(func() error { return r.Records.Put(key, v) })
}

func (r gatedRecords) Delete(key string) error {
	return r.gate.pass(func() error { return r.Records.Delete(key) })
}
