package snapshottest

import (
	"bytes"
	"io"
	"testing"

	"github.com/google/uuid"
	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
	"github.com/reflejo/terraform-provider-reflejo/agent/snapshot"
)

func (f *fixture) receive(t *testing.T, id string) snapshot.Arrival {
	t.Helper()
	a, err := f.Arrivals.Receive(t.Context(), id, contractSize)
	must(t, err)
	return a
}

// pattern are bytes that say where they are.
func pattern(seed byte, n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = seed + byte(i/blockSize)*7 + byte(i)
	}
	return b
}

func wantBytes(t *testing.T, r io.ReaderAt, offset int64, want []byte) {
	t.Helper()
	have := make([]byte, len(want))
	if n, err := r.ReadAt(have, offset); n != len(want) {
		t.Fatalf("read %d bytes at %d: %v", n, offset, err)
	}
	if !bytes.Equal(have, want) {
		t.Errorf("%d bytes at %d are not what was written", len(want), offset)
	}
}

func arrivalResumes(t *testing.T, f *fixture) {
	id := uuid.NewString()
	a := f.receive(t, id)
	wantBytes(t, a, 0, make([]byte, 3*blockSize))
	b := pattern(1, 10*blockSize)
	_, err := a.WriteAt(b, 5*blockSize)
	must(t, err)
	wantBytes(t, a, 5*blockSize, b)
	must(t, a.Sync())
	must(t, a.Close())
	a = f.receive(t, id)
	wantBytes(t, a, 5*blockSize, b)
	must(t, a.Zero(snapshot.Range{Offset: 6 * blockSize, Length: 2 * blockSize}))
	clear(b[blockSize : 3*blockSize])
	wantBytes(t, a, 5*blockSize, b)
	must(t, a.Zero(snapshot.Range{Offset: contractSize - blockSize, Length: blockSize}))
	must(t, a.Zero(snapshot.Range{Offset: contractSize}))
	must(t, a.Sync())
	must(t, a.Close())
	if ids, err := f.Arrivals.Arriving(t.Context()); err != nil || len(ids) != 1 || ids[0] != id {
		t.Errorf("arrivals %v (%v), want %s", ids, err, id)
	}
}

func arrivalBounds(t *testing.T, f *fixture) {
	a := f.receive(t, uuid.NewString())
	defer a.Close()
	b := make([]byte, blockSize)
	for _, c := range []struct {
		offset int64
		length int64
	}{{-blockSize, blockSize}, {contractSize, blockSize}, {contractSize - blockSize, 2 * blockSize}, {100, blockSize}, {0, 100}, {1 << 62, blockSize}} {
		_, err := a.WriteAt(append(b, b...)[:c.length], c.offset)
		wantKind(t, err, fault.Invalid)
		wantKind(t, a.Zero(snapshot.Range{Offset: c.offset, Length: c.length}), fault.Invalid)
	}
	wantKind(t, a.Zero(snapshot.Range{Length: -blockSize}), fault.Invalid)
}

func arrivalSizes(t *testing.T, f *fixture) {
	ctx, id := t.Context(), uuid.NewString()
	must(t, f.receive(t, id).Close())
	_, err := f.Arrivals.Receive(ctx, id, contractSize-blockSize)
	wantKind(t, err, fault.Invalid)
	const odd = contractSize + blockSize + 100
	a, err := f.Arrivals.Receive(ctx, id, odd)
	must(t, err)
	b := pattern(3, blockSize+100)
	_, err = a.WriteAt(b, contractSize)
	must(t, err)
	must(t, a.Zero(snapshot.Range{Offset: contractSize + blockSize, Length: 100}))
	clear(b[blockSize:])
	wantBytes(t, a, contractSize, b)
	must(t, a.Sync())
	must(t, a.Close())
	kept := uuid.NewString()
	must(t, f.Arrivals.Keep(ctx, id, kept))
	c, err := f.Snapshots.Open(ctx, kept)
	must(t, err)
	defer c.Close()
	if c.Size() != odd {
		t.Errorf("size %d, want %d", c.Size(), odd)
	}
	wantBytes(t, c, contractSize, b)
	all(t, c)
}

func arrivalKept(t *testing.T, f *fixture) {
	ctx, id, kept := t.Context(), uuid.NewString(), uuid.NewString()
	a := f.receive(t, id)
	defer a.Close()
	_, err := a.WriteAt(pattern(1, blockSize), 0)
	must(t, err)
	must(t, a.Sync())
	must(t, f.Arrivals.Keep(ctx, id, kept))
	_, err = a.WriteAt(pattern(2, blockSize), 0)
	must(t, err)
	must(t, f.Arrivals.Keep(ctx, id, kept)) // that one is there
	wantBytes(t, f.content(t, kept), 0, pattern(1, blockSize))
	other := uuid.NewString()
	must(t, f.Arrivals.Keep(ctx, id, other))
	wantBytes(t, f.content(t, other), 0, pattern(2, blockSize))
	ranges, err := f.content(t, other).Changed(ctx, kept)
	must(t, err)
	if len(ranges) != 1 || ranges[0].Offset != 0 {
		t.Errorf("changed %v, want the first block", ranges)
	}
	must(t, f.Arrivals.Drop(ctx, id))
	wantBytes(t, f.content(t, kept), 0, pattern(1, blockSize))
}

func arrivalPlaced(t *testing.T, f *fixture) {
	ctx, id := t.Context(), uuid.NewString()
	a := f.receive(t, id)
	_, err := a.WriteAt(pattern(1, blockSize), blockSize)
	must(t, err)
	must(t, a.Close())
	there, server := f.server(t), f.noServer(t)
	wantKind(t, f.Arrivals.Place(ctx, id, there), fault.Exists)
	for range 2 {
		must(t, f.Arrivals.Place(ctx, id, server))
	}
	c, err := f.Snapshots.OpenDisk(ctx, server)
	must(t, err)
	defer c.Close()
	if c.Size() != contractSize {
		t.Errorf("size %d", c.Size())
	}
	wantBytes(t, c, blockSize, pattern(1, blockSize))
	if ids, err := f.Arrivals.Arriving(ctx); err != nil || len(ids) != 0 {
		t.Errorf("arrivals %v (%v), want none", ids, err)
	}
	must(t, f.receive(t, id).Close()) // another one of that id is another one
	must(t, f.Arrivals.Drop(ctx, id))
	f.wantFile(t, there, "hello", "from the image")
}

func arrivalDropped(t *testing.T, f *fixture) {
	ctx, id := t.Context(), uuid.NewString()
	a := f.receive(t, id)
	_, err := a.WriteAt(pattern(1, blockSize), 0)
	must(t, err)
	must(t, a.Sync())
	must(t, a.Close())
	for range 2 {
		must(t, f.Arrivals.Drop(ctx, id))
	}
	a = f.receive(t, id)
	defer a.Close()
	wantBytes(t, a, 0, make([]byte, blockSize))
}

// comesOver sends a disk as a migration does: a snapshot first, what has changed then.
func comesOver(t *testing.T, f *fixture) {
	ctx, from, to, id := t.Context(), f.server(t), f.noServer(t), uuid.NewString()
	root := f.attach(t, from)
	write(t, root, "a", "one")
	first := f.take(t, from)
	send := func(c snapshot.Content, ranges []snapshot.Range) {
		t.Helper()
		a := f.receive(t, id)
		for _, r := range ranges {
			b := make([]byte, r.Length)
			if n, err := c.ReadAt(b, r.Offset); n != len(b) {
				t.Fatal(err)
			}
			_, err := a.WriteAt(b, r.Offset)
			must(t, err)
		}
		must(t, a.Sync())
		must(t, a.Close())
	}
	c := f.content(t, first)
	ranges, err := c.Data(ctx)
	must(t, err)
	send(c, ranges)
	write(t, root, "a", "two")
	must(t, f.Disks.Detach(ctx, from))
	last, err := f.Snapshots.OpenDisk(ctx, from)
	must(t, err)
	defer last.Close()
	ranges, err = last.Changed(ctx, first)
	must(t, err)
	send(last, ranges)
	must(t, f.Arrivals.Place(ctx, id, to))
	have, err := f.Snapshots.OpenDisk(ctx, to)
	must(t, err)
	defer have.Close()
	if !bytes.Equal(all(t, have), all(t, last)) {
		t.Error("the disks differ")
	}
	f.wantFile(t, to, "a", "two")
}
