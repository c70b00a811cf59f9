package snapshottest

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/uuid"
	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
	"github.com/reflejo/terraform-provider-reflejo/agent/image"
	"github.com/reflejo/terraform-provider-reflejo/agent/snapshot"
	"github.com/reflejo/terraform-provider-reflejo/agent/vserver"
)

// Edges are a pool of the contract.
type Edges struct {
	Snapshots snapshot.Disks
	Arrivals  snapshot.Arrivals
	Disks     vserver.Disks
	Bases     image.Bases
}

const (
	contractImage = "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
	contractSize  = 64 << 20
)

var contractIDs = vserver.IDRange{First: 1<<20 + 7<<16, Size: 1 << 16}

// Contract holds what every snapshot.Disks and snapshot.Arrivals does. newPool returns an
// empty pool with room for 256 MiB.
func Contract(t *testing.T, newPool func(t *testing.T) Edges) {
	for name, test := range map[string]func(*testing.T, *fixture){
		"a disk in use is taken in quiet":            takeQuietly,
		"a disk in use is taken as it is":            takeLive,
		"a disk that nobody uses is taken":           takeDetached,
		"no quiet, no snapshot":                      quietFails,
		"what is not there":                          missing,
		"bad input is refused":                       badInput,
		"calls may be made twice":                    twice,
		"a copy takes the place of a disk":           copyReplaces,
		"a snapshot outlives its server":             outlives,
		"snapshots are deleted in any order":         anyOrder,
		"content is what is on the disk":             contents,
		"what has changed is found":                  changes,
		"an arrival takes up where it was":           arrivalResumes,
		"an arrival is written in bounds":            arrivalBounds,
		"an arrival is kept as a snapshot":           arrivalKept,
		"an arrival becomes a server's disk":         arrivalPlaced,
		"a disk is the same after it has come over":  comesOver,
		"an arrival's size is the disk's size":       arrivalSizes,
		"an arrival that is dropped leaves nothing":  arrivalDropped,
		"a snapshot of a copy is like any":           snapshotOfCopy,
		"nothing is called while nothing is written": quietOnce,
	} {
		t.Run(name, func(t *testing.T) {
			f := &fixture{Edges: newPool(t)}
			must(t, f.Bases.Build(t.Context(), contractImage, contractSize, func(root string) error {
				return os.WriteFile(filepath.Join(root, "hello"), []byte("from the image"), 0o644)
			}))
			test(t, f)
		})
	}
}

// fixture is a pool with helpers.
type fixture struct{ Edges }

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func wantKind(t *testing.T, err error, kind fault.Kind) {
	t.Helper()
	if !fault.Is(err, kind) {
		t.Errorf("error %v, want one of kind %v", err, kind)
	}
}

// server makes a disk, removed when the test ends.
func (f *fixture) server(t *testing.T) string {
	t.Helper()
	id := f.noServer(t)
	must(t, f.Disks.Create(t.Context(), id, contractImage, contractSize))
	return id
}

// noServer is the id of a server whose disk is removed when the test ends, if it has one then.
func (f *fixture) noServer(t *testing.T) string {
	id := uuid.NewString()
	t.Cleanup(func() {
		if err := f.Disks.Remove(context.Background(), id); err != nil {
			t.Error(err)
		}
	})
	return id
}

func (f *fixture) attach(t *testing.T, id string) string {
	t.Helper()
	at, err := f.Disks.Attach(t.Context(), id, contractIDs)
	must(t, err)
	return at.Root
}

// file reads a file of a server whose disk is not attached.
func (f *fixture) file(t *testing.T, server, name string) string {
	t.Helper()
	root := f.attach(t, server)
	b, err := os.ReadFile(filepath.Join(root, name))
	if err != nil {
		b = []byte(err.Error())
	}
	must(t, f.Disks.Detach(t.Context(), server))
	return string(b)
}

func (f *fixture) wantFile(t *testing.T, server, name, text string) {
	t.Helper()
	if have := f.file(t, server, name); have != text {
		t.Errorf("%s holds %q, want %q", name, have, text)
	}
}

func write(t *testing.T, root, name, text string) {
	t.Helper()
	path := filepath.Join(root, name)
	must(t, os.WriteFile(path, []byte(text), 0o644))
	file, err := os.OpenFile(path, os.O_RDWR, 0)
	must(t, err)
	must(t, errors.Join(file.Sync(), file.Close()))
}

// copyOf makes a server from a snapshot.
func (f *fixture) copyOf(t *testing.T, snapshot string) string {
	t.Helper()
	server := f.noServer(t)
	must(t, f.Snapshots.Copy(t.Context(), snapshot, server, contractSize))
	return server
}

func (f *fixture) take(t *testing.T, server string) string {
	t.Helper()
	id := uuid.NewString()
	taken, err := f.Snapshots.Take(t.Context(), id, server, nil)
	must(t, err)
	if taken.Size != contractSize {
		t.Errorf("taken %+v, want %d bytes", taken, contractSize)
	}
	return id
}

func takeQuietly(t *testing.T, f *fixture) {
	server, id := f.server(t), uuid.NewString()
	root := f.attach(t, server)
	write(t, root, "a", "before")
	var calls []string
	taken, err := f.Snapshots.Take(t.Context(), id, server, func(context.Context) (func() error, error) {
		write(t, root, "b", "just before")
		calls = append(calls, "quiet")
		return func() error { calls = append(calls, "loud"); return nil }, nil
	})
	must(t, err)
	if len(calls) != 2 || calls[0] != "quiet" || calls[1] != "loud" {
		t.Errorf("calls %v", calls)
	}
	if taken.Size != contractSize || taken.Pause <= 0 {
		t.Errorf("taken %+v", taken)
	}
	write(t, root, "a", "after")
	write(t, root, "c", "after")
	c := f.copyOf(t, id)
	f.wantFile(t, c, "a", "before")
	f.wantFile(t, c, "b", "just before")
	if have := f.file(t, c, "c"); have == "after" {
		t.Error("the snapshot has what was written after it")
	}
	f.wantFile(t, c, "hello", "from the image")
}

func takeLive(t *testing.T, f *fixture) {
	server := f.server(t)
	root := f.attach(t, server)
	write(t, root, "a", "before")
	id := f.take(t, server)
	write(t, root, "a", "after")
	f.wantFile(t, f.copyOf(t, id), "a", "before")
}

func takeDetached(t *testing.T, f *fixture) {
	server := f.server(t)
	write(t, f.attach(t, server), "a", "before")
	must(t, f.Disks.Detach(t.Context(), server))
	id := uuid.NewString()
	_, err := f.Snapshots.Take(t.Context(), id, server, func(context.Context) (func() error, error) {
		return nil, errors.New("nobody writes")
	})
	must(t, err)
	write(t, f.attach(t, server), "a", "after")
	f.wantFile(t, f.copyOf(t, id), "a", "before")
}

func quietFails(t *testing.T, f *fixture) {
	server, id := f.server(t), uuid.NewString()
	root := f.attach(t, server)
	broken := fault.New(fault.Unavailable, "broken")
	_, err := f.Snapshots.Take(t.Context(), id, server, func(context.Context) (func() error, error) { return nil, broken })
	wantKind(t, err, fault.Unavailable)
	_, err = f.Snapshots.Take(t.Context(), id, server, func(context.Context) (func() error, error) {
		return func() error { return broken }, nil
	})
	wantKind(t, err, fault.Unavailable)
	if all, err := f.Snapshots.List(t.Context()); err != nil || len(all) != 0 {
		t.Errorf("snapshots %+v (%v), want none", all, err)
	}
	write(t, root, "a", "goes on")
}

// quietOnce: a snapshot that is there is not taken again.
func quietOnce(t *testing.T, f *fixture) {
	server, id := f.server(t), uuid.NewString()
	root := f.attach(t, server)
	write(t, root, "a", "first")
	calls := 0
	quiet := func(context.Context) (func() error, error) {
		calls++
		return func() error { return nil }, nil
	}
	for range 2 {
		taken, err := f.Snapshots.Take(t.Context(), id, server, quiet)
		must(t, err)
		if taken.Size != contractSize {
			t.Errorf("taken %+v", taken)
		}
		write(t, root, "a", "second")
	}
	if calls != 1 {
		t.Errorf("quiet was called %d times", calls)
	}
	f.wantFile(t, f.copyOf(t, id), "a", "first")
}

func missing(t *testing.T, f *fixture) {
	ctx, none := t.Context(), uuid.NewString()
	_, err := f.Snapshots.Take(ctx, none, none, nil)
	wantKind(t, err, fault.NotFound)
	_, err = f.Snapshots.Open(ctx, none)
	wantKind(t, err, fault.NotFound)
	_, err = f.Snapshots.OpenDisk(ctx, none)
	wantKind(t, err, fault.NotFound)
	wantKind(t, f.Snapshots.Copy(ctx, none, none, contractSize), fault.NotFound)
	must(t, f.Snapshots.Remove(ctx, none))
	wantKind(t, f.Arrivals.Keep(ctx, none, none), fault.NotFound)
	wantKind(t, f.Arrivals.Place(ctx, none, none), fault.NotFound)
	must(t, f.Arrivals.Drop(ctx, none))
	server := f.server(t)
	c, err := f.Snapshots.Open(ctx, f.take(t, server))
	must(t, err)
	defer c.Close()
	_, err = c.Changed(ctx, none)
	wantKind(t, err, fault.NotFound)
	if all, err := f.Snapshots.List(ctx); err != nil || len(all) != 1 {
		t.Errorf("snapshots %+v (%v), want one", all, err)
	}
	if all, err := f.Arrivals.Arriving(ctx); err != nil || len(all) != 0 {
		t.Errorf("arrivals %v (%v), want none", all, err)
	}
}

func badInput(t *testing.T, f *fixture) {
	ctx, good := t.Context(), uuid.NewString()
	for _, bad := range []string{"", "..", "../" + good, good + "x", "0B3F9D52-7A6C-4E0F-9A51-3F1D6C7E8A90"} {
		_, err := f.Snapshots.Take(ctx, bad, good, nil)
		wantKind(t, err, fault.Invalid)
		_, err = f.Snapshots.Take(ctx, good, bad, nil)
		wantKind(t, err, fault.Invalid)
		_, err = f.Snapshots.Open(ctx, bad)
		wantKind(t, err, fault.Invalid)
		_, err = f.Snapshots.OpenDisk(ctx, bad)
		wantKind(t, err, fault.Invalid)
		wantKind(t, f.Snapshots.Remove(ctx, bad), fault.Invalid)
		wantKind(t, f.Snapshots.Copy(ctx, bad, good, contractSize), fault.Invalid)
		wantKind(t, f.Snapshots.Copy(ctx, good, bad, contractSize), fault.Invalid)
		_, err = f.Arrivals.Receive(ctx, bad, contractSize)
		wantKind(t, err, fault.Invalid)
		wantKind(t, f.Arrivals.Keep(ctx, bad, good), fault.Invalid)
		wantKind(t, f.Arrivals.Keep(ctx, good, bad), fault.Invalid)
		wantKind(t, f.Arrivals.Place(ctx, bad, good), fault.Invalid)
		wantKind(t, f.Arrivals.Place(ctx, good, bad), fault.Invalid)
		wantKind(t, f.Arrivals.Drop(ctx, bad), fault.Invalid)
	}
	for _, size := range []int64{-1, 0} {
		_, err := f.Arrivals.Receive(ctx, good, size)
		wantKind(t, err, fault.Invalid)
	}
}

func twice(t *testing.T, f *fixture) {
	ctx, server := t.Context(), f.server(t)
	id := f.take(t, server)
	if f.take(t, server) == id {
		t.Error("two snapshots with one id")
	}
	for range 2 {
		must(t, f.Snapshots.Copy(ctx, id, server, contractSize))
		must(t, f.Snapshots.Remove(ctx, uuid.NewString()))
	}
	for range 2 {
		must(t, f.Snapshots.Remove(ctx, id))
	}
	all, err := f.Snapshots.List(ctx)
	must(t, err)
	if len(all) != 1 || all[0].Size != contractSize || all[0].Allocated <= 0 || all[0].Exclusive < 0 || all[0].Exclusive > all[0].Allocated {
		t.Errorf("snapshots %+v, want one", all)
	}
}

func copyReplaces(t *testing.T, f *fixture) {
	ctx, server := t.Context(), f.server(t)
	write(t, f.attach(t, server), "a", "old")
	id := f.take(t, server)
	write(t, f.attach(t, server), "a", "new")
	write(t, f.attach(t, server), "b", "new")
	wantKind(t, f.Snapshots.Copy(ctx, id, server, contractSize), fault.Precondition)
	must(t, f.Disks.Detach(ctx, server))
	f.wantFile(t, server, "a", "new")
	must(t, f.Snapshots.Copy(ctx, id, server, contractSize+8<<20))
	f.wantFile(t, server, "a", "old")
	if have := f.file(t, server, "b"); have == "new" {
		t.Error("a file of the older disk is there")
	}
	if size := f.size(t, server); size != contractSize+8<<20 {
		t.Errorf("size %d after a copy to a larger disk", size)
	}
	must(t, f.Snapshots.Copy(ctx, id, server, contractSize-4096))
	if size := f.size(t, server); size != contractSize {
		t.Errorf("size %d, want the snapshot's: a copy does not shrink", size)
	}
	write(t, f.attach(t, server), "a", "newer") // a copy is writable, and the snapshot is not its copy's
	f.wantFile(t, f.copyOf(t, id), "a", "old")
}

func (f *fixture) size(t *testing.T, server string) int64 {
	t.Helper()
	all, err := f.Disks.List(t.Context())
	must(t, err)
	for _, d := range all {
		if d.ID == server {
			return d.Size
		}
	}
	t.Fatalf("disks %+v, want %s among them", all, server)
	return 0
}

func outlives(t *testing.T, f *fixture) {
	server := f.server(t)
	write(t, f.attach(t, server), "a", "kept")
	id := f.take(t, server)
	must(t, f.Disks.Remove(t.Context(), server))
	must(t, f.Bases.Remove(t.Context(), contractImage))
	must(t, f.Snapshots.Copy(t.Context(), id, server, contractSize))
	f.wantFile(t, server, "a", "kept")
}

func anyOrder(t *testing.T, f *fixture) {
	server := f.server(t)
	root := f.attach(t, server)
	var ids []string
	for _, text := range []string{"one", "two", "three"} {
		write(t, root, "a", text)
		ids = append(ids, f.take(t, server))
	}
	must(t, f.Snapshots.Remove(t.Context(), ids[1]))
	f.wantFile(t, f.copyOf(t, ids[0]), "a", "one")
	must(t, f.Snapshots.Remove(t.Context(), ids[0]))
	f.wantFile(t, f.copyOf(t, ids[2]), "a", "three")
	must(t, f.Snapshots.Remove(t.Context(), ids[2]))
	write(t, root, "a", "goes on")
}

func snapshotOfCopy(t *testing.T, f *fixture) {
	server := f.server(t)
	write(t, f.attach(t, server), "a", "first")
	c := f.copyOf(t, f.take(t, server))
	root := f.attach(t, c)
	write(t, root, "a", "second")
	id := f.take(t, c)
	write(t, root, "a", "third")
	f.wantFile(t, f.copyOf(t, id), "a", "second")
}

// all reads all bytes, by the ranges that hold data, and checks those.
func all(t *testing.T, c snapshot.Content) []byte {
	t.Helper()
	ranges, err := c.Data(t.Context())
	must(t, err)
	wantRanges(t, ranges, c.Size())
	sparse := make([]byte, c.Size())
	for _, r := range ranges {
		if n, err := c.ReadAt(sparse[r.Offset:r.End()], r.Offset); n != int(r.Length) || err != nil && !errors.Is(err, io.EOF) {
			t.Fatalf("read %d of %d bytes: %v", n, r.Length, err)
		}
	}
	whole := make([]byte, c.Size())
	if n, err := c.ReadAt(whole, 0); n != len(whole) || err != nil && !errors.Is(err, io.EOF) {
		t.Fatalf("read %d of %d bytes: %v", n, len(whole), err)
	}
	if !bytes.Equal(sparse, whole) {
		t.Error("there is data outside of the ranges that hold it")
	}
	return whole
}

func wantRanges(t *testing.T, ranges []snapshot.Range, size int64) {
	t.Helper()
	at := int64(-1)
	for _, r := range ranges {
		if r.Offset <= at || r.Length <= 0 || r.End() > size || r.Offset%blockSize != 0 || r.Length%blockSize != 0 && r.End() != size {
			t.Errorf("range %+v after %d of %d", r, at, size)
		}
		at = r.End()
	}
}

func (f *fixture) content(t *testing.T, id string) snapshot.Content {
	t.Helper()
	c, err := f.Snapshots.Open(t.Context(), id)
	must(t, err)
	t.Cleanup(func() { must(t, c.Close()) })
	if c.Size() != contractSize {
		t.Errorf("size %d", c.Size())
	}
	return c
}

func contents(t *testing.T, f *fixture) {
	server := f.server(t)
	_, err := func() (snapshot.Content, error) {
		f.attach(t, server)
		return f.Snapshots.OpenDisk(t.Context(), server)
	}()
	wantKind(t, err, fault.Precondition)
	must(t, f.Disks.Detach(t.Context(), server))
	disk, err := f.Snapshots.OpenDisk(t.Context(), server)
	must(t, err)
	defer disk.Close()
	c := f.content(t, f.take(t, server))
	if !bytes.Equal(all(t, c), all(t, disk)) {
		t.Error("disk and snapshot differ")
	}
	if n, err := c.ReadAt(make([]byte, 10), c.Size()-4); n != 4 || !errors.Is(err, io.EOF) {
		t.Errorf("read %d bytes at the end, error %v", n, err)
	}
}

func changes(t *testing.T, f *fixture) {
	server := f.server(t)
	root := f.attach(t, server)
	write(t, root, "a", "one")
	first := f.take(t, server)
	same := f.take(t, server)
	write(t, root, "a", "two")
	write(t, root, "b", string(bytes.Repeat([]byte("b"), 1<<20)))
	second := f.take(t, server)
	must(t, os.Remove(filepath.Join(root, "b")))
	write(t, root, "c", "three")
	third := f.take(t, server)
	for _, c := range []struct {
		since, of string
		none      bool
	}{{first, same, false}, {first, first, true}, {first, second, false}, {second, third, false}, {first, third, false}, {third, first, false}} {
		older, newer := f.content(t, c.since), f.content(t, c.of)
		ranges, err := newer.Changed(t.Context(), c.since)
		must(t, err)
		wantRanges(t, ranges, newer.Size())
		was, is := all(t, older), all(t, newer)
		sum := int64(0)
		for _, r := range ranges {
			copy(was[r.Offset:r.End()], is[r.Offset:r.End()])
			sum += r.Length
		}
		if !bytes.Equal(was, is) {
			t.Errorf("%s since %s: something else has changed too", c.of, c.since)
		}
		if c.none && sum > 0 || sum > contractSize/4 {
			t.Errorf("%d bytes have changed", sum)
		}
	}
}
