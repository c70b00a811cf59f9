//go:build linux && root

package disk

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/reflejo/terraform-provider-reflejo/agent/snapshot"
	"github.com/reflejo/terraform-provider-reflejo/agent/snapshot/snapshottest"
	"golang.org/x/sys/unix"
)

const (
	fiFreeze = 0xc0045877 // FIFREEZE _IOWR('X', 119, int)
	fiThaw   = 0xc0045878 // FITHAW _IOWR('X', 120, int)
)

// recordSize is the size of one numbered, checksummed record.
const recordSize = 4096

// journalist writes records to places all over a file, each durable before the next: record
// n is at place n of a fixed permutation. What is durable is told of.
type journalist struct {
	f       *os.File
	places  []int
	durable atomic.Int64 // records
	stop    atomic.Bool
	ended   chan error
	gap     time.Duration // longest for one record
}

func newJournalist(t *testing.T, root string, places int) *journalist {
	t.Helper()
	f, err := os.Create(filepath.Join(root, "records"))
	must(t, err)
	must(t, f.Truncate(int64(places)*recordSize))
	j := &journalist{f: f, places: rand.New(rand.NewPCG(1, 2)).Perm(places), ended: make(chan error, 1)}
	return j
}

func (j *journalist) start() { go func() { j.ended <- j.write() }() }

func (j *journalist) write() error {
	b := make([]byte, recordSize)
	for n := int64(0); !j.stop.Load(); n++ {
		began := time.Now()
		writeRecord(b, n)
		if _, err := j.f.WriteAt(b, int64(j.places[int(n)%len(j.places)])*recordSize); err != nil {
			return err
		}
		if err := unix.Fdatasync(int(j.f.Fd())); err != nil {
			return err
		}
		j.durable.Store(n + 1)
		j.gap = max(j.gap, time.Since(began))
	}
	return nil
}

// writeRecord fills b with a checksum (4 bytes), 4 zeros and the number n+1 again and again.
func writeRecord(b []byte, n int64) {
	for i := 8; i < len(b); i += 8 {
		binary.LittleEndian.PutUint64(b[i:], uint64(n+1))
	}
	binary.LittleEndian.PutUint32(b, crc32.ChecksumIEEE(b[8:]))
}

func (j *journalist) end(t *testing.T) {
	t.Helper()
	j.stop.Store(true)
	must(t, <-j.ended)
	must(t, j.f.Close())
}

// check reads the records below root: exactly those before some moment between least and
// most are there. A place holds the last record before the moment that went there.
func (j *journalist) check(t *testing.T, root string, least, most int64) {
	t.Helper()
	f, err := os.Open(filepath.Join(root, "records"))
	must(t, err)
	defer f.Close()
	b := make([]byte, recordSize)
	have := map[int]int64{}
	last := int64(0)
	for place := range j.places {
		if _, err := f.ReadAt(b, int64(place)*recordSize); err != nil {
			t.Fatal(err)
		}
		n := int64(binary.LittleEndian.Uint64(b[8:]))
		if n != 0 && binary.LittleEndian.Uint32(b) != crc32.ChecksumIEEE(b[8:]) {
			t.Errorf("place %d: record %d is torn", place, n-1)
		}
		have[place] = n
		last = max(last, n)
	}
	if last < least || last > most {
		t.Errorf("%d records, want %d to %d", last, least, most)
	}
	missing := 0
	for n := max(0, last-int64(len(j.places))); n < last; n++ {
		if place := j.places[int(n)%len(j.places)]; have[place] != n+1 {
			missing++
		}
	}
	if missing > 0 {
		t.Errorf("%d of %d records are missing", missing, last)
	}
}

// fsFreeze is a quiet that freezes the attached file system.
func fsFreeze(root string, inside func()) snapshot.Quiet {
	return func(context.Context) (func() error, error) {
		f, err := openDir(root)
		if err != nil {
			return nil, err
		}
		if err := unix.IoctlSetInt(int(f.Fd()), fiFreeze, 0); err != nil {
			f.Close()
			return nil, fmt.Errorf("freeze %s: %w", root, err)
		}
		if inside != nil {
			inside()
		}
		return func() error {
			defer f.Close()
			return unix.IoctlSetInt(int(f.Fd()), fiThaw, 0)
		}, nil
	}
}

// loseAfter is a watch that loses events at a drain.
type loseAfter struct {
	watch
	drains int
}

func (w *loseAfter) drain() ([]snapshot.Range, error) {
	if w.drains--; w.drains < 0 {
		return nil, errLost
	}
	return w.watch.drain()
}

// takePaths are the ways in which a disk in use is taken.
var takePaths = map[string]func(p *Pool){
	"watched": func(p *Pool) {
		p.watch = func(l *loopDevice) (watch, error) {
			w, err := watchWrites(l)
			if err != nil {
				panic(err) // the test would be one of another path
			}
			return loseNothing{w}, nil
		}
	},
	"not watched": func(p *Pool) {
		p.watch = func(*loopDevice) (watch, error) { return nil, errors.New("no tracing here") }
	},
	"events lost before": func(p *Pool) {
		p.watch = func(l *loopDevice) (watch, error) { w, err := watchWrites(l); return &loseAfter{w, 0}, err }
	},
	"events lost at the end": func(p *Pool) {
		p.watch = func(l *loopDevice) (watch, error) { w, err := watchWrites(l); return &loseLast{watch: w}, err }
	},
	"whole": func(p *Pool) { p.fewExtents = 1 << 30 },
}

// loseNothing does not stand for lost events.
type loseNothing struct{ watch }

func (w loseNothing) drain() ([]snapshot.Range, error) {
	r, err := w.watch.drain()
	if err != nil {
		panic(err)
	}
	return r, nil
}

// loseLast loses events once the rest is drained.
type loseLast struct {
	watch
	quiet bool
}

func (w *loseLast) drain() ([]snapshot.Range, error) {
	if w.quiet {
		return nil, errLost
	}
	r, err := w.watch.drain()
	w.quiet = len(mergeRanges(append([]snapshot.Range{}, r...), mergeGap, MaxSize)) <= enough
	return r, err
}

func TestTakeWhileWritten(t *testing.T) {
	for fsType, cfg := range poolConfigs {
		t.Run(fsType, func(t *testing.T) {
			p := open(t, cfg(t))
			buildBase(t, p)
			for name, set := range takePaths {
				t.Run(name, func(t *testing.T) {
					p.watch, p.fewExtents = watchWrites, 8
					set(p)
					takeWhileWritten(t, p, true)
				})
			}
			t.Run("crash consistent", func(t *testing.T) {
				p.fewExtents = 8
				takeWhileWritten(t, p, false)
			})
		})
	}
}

// poolConfigs are pools of each kind.
var poolConfigs = map[string]func(t *testing.T) Config{
	"embedded": func(t *testing.T) Config { return testConfig(t) },
	"btrfs": func(t *testing.T) Config {
		cfg := testConfig(t)
		cfg.Path = mountNew(t, "btrfs", []string{"mkfs.btrfs", "-q"})
		return cfg
	},
}

func takeWhileWritten(t *testing.T, p *Pool, freeze bool) {
	ctx, s := t.Context(), p.Snapshots()
	server := newDisk(t, p)
	t.Cleanup(func() { must(t, p.Remove(context.Background(), server)) })
	at, err := p.Attach(ctx, server, testIDs)
	must(t, err)
	fragmentDisk(t, p, server, at.Root, 2000)
	j := newJournalist(t, at.Root, 4000)
	j.start()
	for j.durable.Load() < 200 {
		time.Sleep(time.Millisecond)
	}
	type taken struct {
		id          string
		least, most int64
	}
	var all []taken
	for range 4 {
		x := taken{id: uuid.NewString(), least: j.durable.Load()}
		var quiet snapshot.Quiet
		if freeze {
			quiet = fsFreeze(at.Root, func() { x.least = j.durable.Load() })
		}
		info, err := s.Take(ctx, x.id, server, quiet)
		must(t, err)
		x.most = j.durable.Load() + 1
		if freeze {
			x.most = x.least + 1 // the one that was being written may be there
		}
		all = append(all, x)
		if info.Size != testBase {
			t.Errorf("size %d", info.Size)
		}
		t.Logf("pause %v", info.Pause)
	}
	j.end(t)
	t.Logf("longest gap %v, %d records", j.gap, j.durable.Load())
	for _, x := range all {
		wantSnapshot(t, p, x.id, freeze, func(root string) { j.check(t, root, x.least, x.most) })
		must(t, s.Remove(ctx, x.id))
	}
}

// wantSnapshot checks a snapshot's file system and what a copy of it holds. A clean one needs
// no repair as it is, others once their journal is read.
func wantSnapshot(t *testing.T, p *Pool, id string, clean bool, check func(root string)) {
	t.Helper()
	server := uuid.NewString()
	must(t, p.Snapshots().Copy(t.Context(), id, server, testBase))
	defer func() { must(t, p.Remove(context.Background(), server)) }()
	if clean {
		wantWhole(t, filepath.Join(p.disks.Name(), diskName(server)))
	}
	at, err := p.Attach(t.Context(), server, testIDs) // reads the journal where that is needed
	must(t, err)
	check(at.Root)
	must(t, p.Detach(t.Context(), server))
	wantWhole(t, filepath.Join(p.disks.Name(), diskName(server)))
}

func TestSnapshotContract(t *testing.T) {
	for fsType, cfg := range poolConfigs {
		t.Run(fsType, func(t *testing.T) {
			snapshottest.Contract(t, func(t *testing.T) snapshottest.Edges {
				p := open(t, cfg(t))
				return snapshottest.Edges{Snapshots: p.Snapshots(), Arrivals: p.Snapshots(), Disks: p, Bases: p.Bases()}
			})
		})
	}
}

// What snapshots take is not taken off the capacity, as it is promised; what others take is.
func TestCapacityWithSnapshots(t *testing.T) {
	for name, sub := range map[string]string{"file system of its own": "", "beside others": "pool"} {
		t.Run(name, func(t *testing.T) {
			cfg := testConfig(t)
			mnt := mountNew(t, "xfs", []string{"mkfs.xfs", "-q", "-s", "size=4096"})
			cfg.Path = filepath.Join(mnt, sub)
			p := open(t, cfg)
			if p.alone != (sub == "") {
				t.Errorf("alone is %v", p.alone)
			}
			usage := func() int64 {
				t.Helper()
				p.others.at = time.Time{}
				u, err := p.Usage()
				must(t, err)
				return u.Capacity
			}
			buildBase(t, p)
			server := newDisk(t, p)
			before := usage()
			at, err := p.Attach(t.Context(), server, testIDs)
			must(t, err)
			for n := range 4 {
				b := make([]byte, 8<<20)
				for i := range b {
					b[i] = byte(n + i)
				}
				must(t, os.WriteFile(filepath.Join(at.Root, "a"), b, 0o644))
				_, err = p.Snapshots().Take(t.Context(), uuid.NewString(), server, fsFreeze(at.Root, nil))
				must(t, err)
			}
			const fixed = 32 << 20 // what XFS takes for itself is known for sure only as long as little is shared
			if now := usage(); now > before+fixed || now < before-8<<20 {
				t.Errorf("capacity %d, before the snapshots %d", now, before)
			}
			if sub == "" {
				return
			}
			must(t, os.WriteFile(filepath.Join(mnt, "other"), make([]byte, 50<<20), 0o644))
			unix.Sync()
			if now := usage(); now > before-45<<20 {
				t.Errorf("capacity %d, %d before somebody else took 50 MiB", now, before)
			}
		})
	}
}
