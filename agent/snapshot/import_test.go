package snapshot_test

import (
	"context"
	"errors"
	"maps"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/google/uuid"

	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
	"github.com/reflejo/terraform-provider-reflejo/agent/snapshot"
)

// bringing is what brings imported snapshots into a world: from an export, once release is
// closed, or err.
type bringing struct {
	w       *world
	source  export
	release chan struct{}
	err     error
	calls   int
}

func (b *bringing) bring(ctx context.Context, rec snapshot.Record, progress func(done, total int64)) error {
	b.calls++
	progress(1, 2)
	select {
	case <-b.release:
	case <-ctx.Done():
		return ctx.Err()
	}
	if b.err == nil {
		b.w.pool.mu.Lock()
		defer b.w.pool.mu.Unlock()
		b.w.pool.snaps[rec.ID], b.w.pool.of[rec.ID] = maps.Clone(b.source.snaps[rec.From.Backup]), rec.Server
	}
	return b.err
}

// inImport runs f in a world that imports the first snapshot of an export as rec.
func inImport(t *testing.T, f func(w *world, b *bringing, rec snapshot.Record, from snapshot.From)) {
	source := newExport(t)
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		b := &bringing{w: w, source: source, release: make(chan struct{})}
		w.bring = b.bring
		w.start()
		defer func() { w.close() }()
		rec := source.records[0]
		from := snapshot.From{Target: "dir:/backups", Backup: rec.ID}
		rec.ID = uuid.NewString()
		f(w, b, rec, from)
	})
}

func TestImport(t *testing.T) {
	inImport(t, func(w *world, b *bringing, rec snapshot.Record, from snapshot.From) {
		for range 2 { // a retry is the same request
			v, err := w.m.Import(w.t.Context(), rec, from)
			must(w.t, err)
			if v.State != snapshot.PhaseCreating || v.Origin != snapshot.OriginBackup || v.Reserved != rec.Size {
				t.Errorf("%+v", v)
			}
		}
		synctest.Wait()
		if !w.m.Importing(rec.ID) || w.m.Importing(uuid.NewString()) {
			t.Error("not the import that is under way")
		}
		if v, _ := w.m.Get(w.t.Context(), rec.ID); v.Operation.BytesTotal != 2 || v.Operation.Kind != "import" {
			t.Errorf("under way: %+v", v.Operation)
		}
		other := from
		other.Target = "dir:/elsewhere"
		_, err := w.m.Import(w.t.Context(), rec, other)
		wantKind(w.t, err, fault.Exists, "")
		close(b.release)
		if v := w.ready(rec.ID); v.Checksum != rec.Checksum || v.Reserved >= rec.Size || b.calls != 1 {
			t.Errorf("%+v after %d calls", v, b.calls)
		}
	})
}

// What a stopped agent was bringing is brought by the next one.
func TestImportAfterARestart(t *testing.T) {
	inImport(t, func(w *world, b *bringing, rec snapshot.Record, from snapshot.From) {
		rec.Checksum = ""
		_, err := w.m.Import(w.t.Context(), rec, from)
		must(w.t, err)
		synctest.Wait()
		w.close()
		w.start()
		close(b.release)
		if v := w.ready(rec.ID); v.Checksum != b.source.records[0].Checksum || b.calls != 2 {
			t.Errorf("%+v after %d calls", v, b.calls)
		}
	})
}

func TestImportThatFails(t *testing.T) {
	inImport(t, func(w *world, b *bringing, rec snapshot.Record, from snapshot.From) {
		b.err = errors.New("byte 7 is damaged")
		close(b.release)
		_, err := w.m.Import(w.t.Context(), rec, from)
		must(w.t, err)
		must(w.t, w.m.Settled(w.t.Context()))
		v, err := w.m.Get(w.t.Context(), rec.ID)
		must(w.t, err)
		if v.State != snapshot.PhaseFailed || !strings.Contains(v.Operation.Err, "byte 7") || v.Reserved != 0 {
			t.Errorf("%+v", v)
		}
		b.err = nil
		_, err = w.m.Import(w.t.Context(), rec, from)
		must(w.t, err)
		w.ready(rec.ID)
	})
}

// Who copies a snapshot that is on its way waits for it.
func TestCopyWaitsForAnImport(t *testing.T) {
	inImport(t, func(w *world, b *bringing, rec snapshot.Record, from snapshot.From) {
		_, err := w.m.Import(w.t.Context(), rec, from)
		must(w.t, err)
		copied := make(chan error, 1)
		go func() { copied <- w.m.Copy(w.t.Context(), rec.ID, rec.Server, rec.Size) }()
		synctest.Wait()
		select {
		case err := <-copied:
			t.Fatal("it was copied before it was there:", err)
		default:
		}
		close(b.release)
		must(w.t, <-copied)
	})
}
