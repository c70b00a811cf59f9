package migrate

import (
	"bytes"
	"context"
	"errors"
	"maps"
	"slices"

	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
	"github.com/reflejo/terraform-provider-reflejo/agent/snapshot"
	"github.com/reflejo/terraform-provider-reflejo/agent/vserver"
	"github.com/reflejo/terraform-provider-reflejo/agent/vserver/vservertest"
)

// The disks.

const (
	blockSize = 4096
	blocks    = 160 // more than one piece, and not a whole number of them
)

// block is one block of a disk: tag tells its versions apart, as an extent's place does; 0
// is a hole.
type block struct {
	tag  int
	fill byte
}

type content [blocks]block

func (c content) render(p []byte, off int64) {
	for i := range p {
		b := c[(off+int64(i))/blockSize]
		p[i] = 0
		if b.tag != 0 && b.fill != 0 {
			p[i] = b.fill + byte(b.tag) | 1
		}
	}
}

func (c content) bytes() []byte {
	p := make([]byte, blocks*blockSize)
	c.render(p, 0)
	return p
}

// pool is one host's pool.
type pool struct {
	h         *host
	disks     map[string]*content
	snapshots map[string]content
	arrivals  map[string]*arriving
	known     map[string]snapshot.Record
	full      bool
}

// handle is the pool as one life of an agent has it.
type handle struct {
	*pool
	life *life
}

// arriving is an arrival: what was not synced is lost with the agent.
type arriving struct{ data, synced []byte }

// opened is an arrival as one life of an agent has it.
type opened struct {
	*arriving
	p handle
}

func (p *pool) crash() {
	for _, a := range p.arrivals {
		copy(a.data, a.synced)
	}
}

// do runs f unless the agent is dead.
func (p handle) do(f func() error) error {
	p.h.w.mu.Lock()
	defer p.h.w.mu.Unlock()
	if !p.life.alive {
		return errDead
	}
	return f()
}

func (p handle) Take(_ context.Context, id, server string, _ snapshot.Quiet) (snapshot.Taken, error) {
	return snapshot.Taken{Size: blocks * blockSize}, p.do(func() error {
		d, ok := p.disks[server]
		if !ok {
			return fault.New(fault.NotFound, "no disk")
		}
		if _, ok := p.snapshots[id]; !ok {
			p.snapshots[id] = *d
		}
		return nil
	})
}

func (p handle) Remove(_ context.Context, id string) error {
	return p.do(func() error {
		delete(p.snapshots, id)
		return nil
	})
}

type reading struct {
	p handle
	c content
}

func (p handle) Open(_ context.Context, id string) (r snapshot.Content, err error) {
	err = p.do(func() error {
		c, ok := p.snapshots[id]
		if !ok {
			return fault.New(fault.NotFound, "no snapshot %s", id)
		}
		r = &reading{p, c}
		return nil
	})
	return r, err
}

func (p handle) OpenDisk(_ context.Context, server string) (r snapshot.Content, err error) {
	err = p.do(func() error {
		d, ok := p.disks[server]
		if !ok {
			return fault.New(fault.NotFound, "no disk")
		}
		r = &reading{p, *d}
		return nil
	})
	return r, err
}

func (r *reading) ReadAt(b []byte, off int64) (int, error) { r.c.render(b, off); return len(b), nil }
func (r *reading) Close() error                            { return nil }
func (r *reading) Size() int64                             { return blocks * blockSize }
func (r *reading) Data(context.Context) ([]snapshot.Range, error) {
	return r.where(func(i int) bool { return r.c[i].tag != 0 }), nil
}
func (r *reading) Changed(_ context.Context, since string) (ranges []snapshot.Range, err error) {
	err = r.p.do(func() error {
		old, ok := r.p.snapshots[since]
		if !ok {
			return fault.New(fault.NotFound, "no snapshot %s", since)
		}
		ranges = r.where(func(i int) bool { return r.c[i].tag != old[i].tag })
		return nil
	})
	return ranges, err
}

func (r *reading) where(is func(int) bool) (ranges []snapshot.Range) {
	for i := range blocks {
		if is(i) {
			ranges = append(ranges, snapshot.Range{Offset: int64(i) * blockSize, Length: blockSize})
		}
	}
	return union(ranges, nil, blocks*blockSize)
}

func (p handle) Receive(_ context.Context, id string, size int64) (a snapshot.Arrival, err error) {
	err = p.do(func() error {
		if p.full {
			return fault.New(fault.Exhausted, "the pool is full")
		}
		if p.arrivals[id] == nil {
			p.arrivals[id] = &arriving{make([]byte, size), make([]byte, size)}
		}
		a = opened{p.arrivals[id], p}
		return nil
	})
	return a, err
}

func (a opened) WriteAt(b []byte, off int64) (int, error) {
	return len(b), a.p.do(func() error { copy(a.data[off:], b); return nil })
}
func (a opened) ReadAt(b []byte, off int64) (int, error) { return copy(b, a.data[off:]), nil }
func (a opened) Zero(r snapshot.Range) error {
	return a.p.do(func() error { clear(a.data[r.Offset:r.End()]); return nil })
}
func (a opened) Sync() error {
	return a.p.do(func() error { copy(a.synced, a.data); return nil })
}
func (a opened) Close() error { return nil }

// parse is the content that these bytes are, as far as tags can be known: what reads the
// same as the truth is the truth.
func (a *arriving) parse(like content) content {
	c := like
	for i := range blocks {
		want := make([]byte, blockSize)
		like.render(want, int64(i)*blockSize)
		if !bytes.Equal(want, a.data[i*blockSize:(i+1)*blockSize]) {
			c[i] = block{tag: -1 - i, fill: 77}
		}
	}
	return c
}

func (p handle) Keep(_ context.Context, from, id string) error {
	return p.do(func() error {
		a := p.arrivals[from]
		if a == nil {
			return fault.New(fault.NotFound, "no arrival %s", from)
		}
		if _, ok := p.snapshots[id]; !ok {
			p.snapshots[id] = a.parse(p.h.w.other(p.h.name).pool.snapshots[id])
		}
		return nil
	})
}

func (p handle) Place(ctx context.Context, from, server string) error {
	return p.do(func() error {
		if _, ok := p.disks[server]; ok {
			return nil
		}
		a := p.arrivals[from]
		if a == nil {
			return fault.New(fault.NotFound, "no arrival %s", from)
		}
		c := a.parse(p.h.w.truth)
		delete(p.arrivals, from)
		p.disks[server] = &c
		return p.h.v.Pool.Disks().Create(context.WithoutCancel(ctx), server, vservertest.Image, 2<<30)
	})
}

func (p handle) Drop(_ context.Context, id string) error {
	return p.do(func() error { delete(p.arrivals, id); return nil })
}

func (p handle) Arriving(context.Context) ([]string, error) {
	return slices.Collect(maps.Keys(p.arrivals)), nil
}

// The snapshots that people see.

func (p handle) Export(server string) []snapshot.Record {
	p.h.w.mu.Lock()
	defer p.h.w.mu.Unlock()
	return slices.SortedFunc(maps.Values(p.known), func(a, b snapshot.Record) int { return a.Created.Compare(b.Created) })
}

func (p handle) Adopt(_ context.Context, rec snapshot.Record) (snapshot.View, error) {
	return snapshot.View{}, p.do(func() error {
		if _, ok := p.snapshots[rec.ID]; !ok {
			return fault.New(fault.NotFound, "no disk of snapshot %s", rec.ID)
		}
		p.known[rec.ID] = rec
		return nil
	})
}

func (p handle) Delete(_ context.Context, id string) error {
	return p.do(func() error {
		if _, ok := p.known[id]; !ok {
			return fault.New(fault.NotFound, "no snapshot %s", id)
		}
		delete(p.known, id)
		delete(p.snapshots, id)
		return nil
	})
}

// serverDisks keeps the contents in step with the fake host's disks.
type serverDisks struct {
	vserver.Disks
	p handle
}

func (d serverDisks) Create(ctx context.Context, id, image string, size int64) error {
	err := d.Disks.Create(ctx, id, image, size)
	return errors.Join(err, d.p.do(func() error {
		if d.p.disks[id] == nil {
			d.p.disks[id] = &content{}
		}
		return nil
	}))
}

func (d serverDisks) Remove(ctx context.Context, id string) error {
	if err := d.p.do(func() error { delete(d.p.disks, id); return nil }); err != nil {
		return err
	}
	return d.Disks.Remove(ctx, id)
}
