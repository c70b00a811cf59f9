//go:build linux && root

package disk

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// BenchmarkSyncedWrites compares 4 KiB writes, each followed by fsync, on a server's disk with
// the same on the pool's own file system, in turns. "fresh" appends to a new file on a new disk.
func BenchmarkSyncedWrites(b *testing.B) {
	const writes = 100
	cfg := testConfig(b)
	cfg.PoolSize = 2 << 30
	p := open(b, cfg)
	buildDefault(b, p)
	for _, fresh := range []bool{false, true} {
		name := map[bool]string{false: "overwrite", true: "fresh"}[fresh]
		b.Run(name, func(b *testing.B) {
			id := newDiskOf(b, p, DefaultBaseSize)
			at, err := p.Attach(b.Context(), id, testIDs)
			must(b, err)
			disk, err := p.openDisk(id)
			must(b, err)
			must(b, unshareJournal(disk)) // as it is a second after the start
			must(b, disk.Close())
			b.Cleanup(func() { must(b, p.Remove(context.Background(), id)) })
			inner, outer := newSyncer(b, filepath.Join(at.Root, "x"), fresh), newSyncer(b, filepath.Join(p.Root(), name), fresh)
			if !fresh { // twice around the journal
				inner.write(b, 3000)
				outer.write(b, writes)
			}
			var ratios, is, os []float64
			for b.Loop() {
				i, o := inner.write(b, writes), outer.write(b, writes)
				ratios, is, os = append(ratios, o/i), append(is, i), append(os, o)
			}
			slices.Sort(ratios)
			slices.Sort(is)
			slices.Sort(os)
			b.ReportMetric(ratios[len(ratios)/2], "ratio")
			b.ReportMetric(is[len(is)/2]*1e6, "µs/disk")
			b.ReportMetric(os[len(os)/2]*1e6, "µs/pool")
		})
	}
}

// A disk in use gets a journal of its own, in written blocks, whatever its size; what is
// written meanwhile is not lost.
func TestOwnJournal(t *testing.T) {
	p := open(t, testConfig(t))
	buildDefault(t, p)
	for _, size := range []int64{192 << 20, 64 << 30} {
		id := newDiskOf(t, p, size)
		at, err := p.Attach(t.Context(), id, testIDs)
		must(t, err)
		f, err := p.openDisk(id)
		must(t, err)
		defer f.Close()
		stop, wrote := make(chan struct{}), make(chan int)
		go func() {
			n := 0
			for ; ; n++ {
				select {
				case <-stop:
					wrote <- n
					return
				default:
				}
				if err := syncedFile(filepath.Join(at.Root, "n"), n); err != nil {
					t.Error(err)
					<-stop
					wrote <- n
					return
				}
			}
		}()
		deadline := time.Now().Add(time.Minute)
		for ; journalFlags(t, f)&(sharedFlag|unwrittenFlag) != 0; time.Sleep(10 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("the journal of a disk of %d bytes is still not written, or shared", size)
			}
		}
		close(stop)
		last := <-wrote - 1
		shutDown(t, at.Root) // so that the journal has to be read
		at, err = p.Attach(t.Context(), id, testIDs)
		must(t, err)
		if b, err := os.ReadFile(filepath.Join(at.Root, "n")); err != nil || string(b) != fmt.Sprint(last) {
			t.Errorf("the file holds %q (%v), want %d", b, err, last)
		}
		wantContent(t, at.Root)
		must(t, p.Detach(t.Context(), id))
		wantWhole(t, filepath.Join(p.disks.Name(), diskName(id)))
		must(t, p.Remove(t.Context(), id))
	}
}

// syncedFile replaces a file by one that holds n, durably.
func syncedFile(path string, n int) error {
	f, err := os.Create(path + "~")
	if err != nil {
		return err
	}
	_, err = fmt.Fprint(f, n)
	err = errors.Join(err, f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(path+"~", path)
	}
	dir, openErr := os.Open(filepath.Dir(path))
	if err = errors.Join(err, openErr); err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}

// Flags of FIEMAP.
const (
	unwrittenFlag = 0x800
	sharedFlag    = 0x2000 // FIEMAP_EXTENT_SHARED
	fiemap        = 0xc020660b
)

// journalFlags are the flags of all of the pool's extents that hold the disk's journal. A
// hole counts as unwritten.
func journalFlags(t *testing.T, disk *os.File) (flags uint32) {
	t.Helper()
	extents, err := readJournalExtents(disk)
	must(t, err)
	for _, e := range extents {
		var m struct {
			start, length           uint64
			flags, mapped, count, _ uint32
			extents                 [512]struct {
				logical, physical, length uint64
				_                         [2]uint64
				flags                     uint32
				_                         [3]uint32
			}
		}
		m.start, m.length, m.count = uint64(e.offset), uint64(e.length), uint32(len(m.extents))
		must(t, ioctlPointer(disk, fiemap, unsafe.Pointer(&m)))
		at := m.start
		for _, x := range m.extents[:m.mapped] {
			if x.logical > at {
				flags |= unwrittenFlag
			}
			flags |= x.flags
			at = x.logical + x.length
		}
		if at < m.start+m.length {
			flags |= unwrittenFlag
		}
	}
	return flags
}

// syncer writes to a file in a circle of 16 MiB, or at its end.
type syncer struct {
	f    *os.File
	next int64
	loop int64
}

func newSyncer(b *testing.B, path string, fresh bool) *syncer {
	f, err := os.Create(path)
	must(b, err)
	b.Cleanup(func() { f.Close(); os.Remove(path) })
	if fresh {
		return &syncer{f: f, loop: 1 << 40}
	}
	_, err = f.Write(make([]byte, 16<<20))
	must(b, err)
	must(b, f.Sync())
	return &syncer{f: f, loop: 16 << 20}
}

// write returns the median seconds per write.
func (s *syncer) write(b *testing.B, n int) float64 {
	buf := make([]byte, 4096)
	var all []time.Duration
	for range n {
		began := time.Now()
		_, err := s.f.WriteAt(buf, s.next)
		must(b, err)
		must(b, unix.Fsync(int(s.f.Fd())))
		s.next = (s.next + 4096) % s.loop
		all = append(all, time.Since(began))
	}
	slices.Sort(all)
	return all[n/2].Seconds()
}
