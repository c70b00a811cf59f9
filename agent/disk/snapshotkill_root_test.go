//go:build linux && root

package disk

import (
	"context"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
	"github.com/reflejo/terraform-provider-reflejo/agent/quiesce"
)

// quietly is a quiet as the agent's.
func quietly(root string) func(context.Context) (func() error, error) {
	return func(ctx context.Context) (func() error, error) {
		return quiesce.Quiet(ctx, quiesce.Target{Root: root}, time.Minute)
	}
}

// childSnapshots takes a snapshot of the attached disk, makes it another server's disk, and a
// third one's by way of an arrival.
func childSnapshots(p *Pool, _ int64) error {
	p.fewExtents = 8
	ctx, s := context.Background(), p.Snapshots()
	all, err := p.List(ctx)
	if err != nil {
		return err
	}
	copied, placed := uuid.NewString(), uuid.NewString()
	for _, d := range all {
		if !d.Attached {
			copied = d.ID // replaced again and again
			continue
		}
		id := uuid.NewString()
		if _, err := s.Take(ctx, id, d.ID, quietly(d.Attachment.Root)); err != nil {
			return err
		}
		if err := s.Copy(ctx, id, copied, d.Size+rand.Int64N(8)<<20); err != nil {
			return err
		}
		if err := childPlaces(ctx, p, placed); err != nil {
			return err
		}
		if err := s.Remove(ctx, id); err != nil {
			return err
		}
	}
	return p.Remove(ctx, placed)
}

func childPlaces(ctx context.Context, p *Pool, server string) error {
	s, arrival, kept := p.Snapshots(), uuid.NewString(), uuid.NewString()
	a, err := s.Receive(ctx, arrival, testBase)
	if err != nil {
		return err
	}
	defer a.Close()
	if _, err := a.WriteAt(make([]byte, mebibyte), 0); err != nil {
		return err
	}
	if err := s.Keep(ctx, arrival, kept); err != nil {
		return err
	}
	if err := s.Place(ctx, arrival, server); err != nil {
		return err
	}
	return s.Remove(ctx, kept)
}

// An agent is killed while it takes, copies, keeps and places. The server writes on, and
// what is there is whole.
func TestKilledSnapshots(t *testing.T) {
	cfg := testConfig(t)
	p := open(t, cfg)
	buildBase(t, p)
	server := newDisk(t, p)
	at, err := p.Attach(t.Context(), server, testIDs)
	must(t, err)
	j := newJournalist(t, at.Root, 1000)
	j.start()
	for round := range 12 {
		p.Close()
		killDoing(t, "snapshots", filepath.Dir(cfg.Path), time.Duration(round)*15*time.Millisecond)
		before := j.durable.Load()
		for j.durable.Load() == before {
			time.Sleep(time.Millisecond)
		}
		p = openSoon(t, cfg)
		for dir, pattern := range map[*os.File]func(string) bool{
			p.disks: isDisk, p.snapshots: isDisk, p.arrivals: isDisk,
		} {
			entries, err := readDir(dir)
			must(t, err)
			for _, e := range entries {
				if !pattern(e.name) {
					t.Errorf("%s/%s is left", dir.Name(), e.name)
				}
			}
		}
		clearAway(t, p, server)
	}
	j.end(t)
}

// openSoon opens the pool of an agent that was killed. What that was about to start, its
// watchdog, may hold the lock for the moment until it begins.
func openSoon(t *testing.T, cfg Config) *Pool {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(time.Millisecond) {
		p, err := Open(t.Context(), cfg)
		if err == nil {
			t.Cleanup(func() { p.Close() })
			return p
		}
		if !fault.Is(err, fault.Unavailable) || time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
}

func isDisk(name string) bool { _, ok := serverOf(name); return ok }

// clearAway checks and removes all snapshots, arrivals and disks but the server's.
func clearAway(t *testing.T, p *Pool, server string) {
	t.Helper()
	ctx, s := t.Context(), p.Snapshots()
	infos, err := s.List(ctx)
	must(t, err)
	for _, i := range infos {
		f, err := p.openSnapshot(i.ID)
		must(t, err)
		if _, err := readSuperblock(f); err == nil { // else it is an arrival that was kept
			wantSnapshot(t, p, i.ID, true, func(string) {})
		}
		must(t, f.Close())
		must(t, s.Remove(ctx, i.ID))
	}
	arrivals, err := s.Arriving(ctx)
	must(t, err)
	for _, id := range arrivals {
		must(t, s.Drop(ctx, id))
	}
	disks, err := p.List(ctx)
	must(t, err)
	for _, d := range disks {
		if d.ID != server {
			must(t, p.Remove(ctx, d.ID))
		}
	}
}

// A pool without room for a snapshot's bookkeeping refuses, keeps nothing, and the server
// goes on where it has room of its own.
func TestSnapshotOnFullPool(t *testing.T) {
	p := open(t, testConfig(t))
	buildBase(t, p)
	server := newDisk(t, p)
	at, err := p.Attach(t.Context(), server, testIDs)
	must(t, err)
	fragmentDisk(t, p, server, at.Root, 4000)
	p.fewExtents = 8
	filler, err := os.Create(filepath.Join(p.Root(), "filler"))
	must(t, err)
	defer filler.Close()
	fillUp(t, filler)
	id := uuid.NewString()
	for _, quiet := range []func(context.Context) (func() error, error){nil, quietly(at.Root)} {
		_, err = p.Snapshots().Take(t.Context(), id, server, quiet)
		if err == nil { // it has found room in what XFS keeps for itself
			must(t, p.Snapshots().Remove(t.Context(), id))
			continue
		}
		if !fault.Is(err, fault.Exhausted) {
			t.Errorf("error %v, want Exhausted", err)
		}
		if all, err := p.Snapshots().List(t.Context()); err != nil || len(all) != 0 {
			t.Errorf("snapshots %v (%v), want none", all, err)
		}
	}
	a, err := p.Snapshots().Receive(t.Context(), uuid.NewString(), testBase)
	if err == nil {
		_, err = a.WriteAt(make([]byte, 32<<20), 0)
		if err == nil {
			err = a.Sync()
		}
		must(t, a.Close())
	}
	if !fault.Is(err, fault.Exhausted) {
		t.Errorf("an arrival on a full pool: %v, want Exhausted", err)
	}
	must(t, filler.Truncate(0))
	must(t, filler.Sync())
	must(t, syncedFile(filepath.Join(at.Root, "x"), 1))
	must(t, os.Remove(filler.Name()))
	_, err = p.Snapshots().Take(t.Context(), id, server, quietly(at.Root))
	must(t, err)
	wantSnapshot(t, p, id, true, func(string) {})
}

// fragmentDisk puts a disk into at least as many extents: what a snapshot shares moves when
// it is written.
func fragmentDisk(t testing.TB, p *Pool, server, root string, extents int) {
	t.Helper()
	ctx, s := context.Background(), p.Snapshots()
	f, err := os.Create(filepath.Join(root, "fragmented"))
	must(t, err)
	defer f.Close()
	b := make([]byte, blockSize)
	for i := range int64(extents) {
		_, err := f.WriteAt(b, i*blockSize)
		must(t, err)
	}
	must(t, f.Sync())
	id := uuid.NewString()
	_, err = s.Take(ctx, id, server, nil)
	must(t, err)
	for i := range int64(extents / 2) {
		_, err := f.WriteAt(b, i*2*blockSize)
		must(t, err)
	}
	must(t, f.Sync())
	must(t, s.Remove(ctx, id))
	disk, err := p.openDisk(server)
	must(t, err)
	defer disk.Close()
	all, err := readExtents(ctx, disk, 0, testBase)
	must(t, err)
	if len(all) < extents/2 {
		t.Errorf("%d extents, want %d", len(all), extents)
	}
}
