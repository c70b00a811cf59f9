package snapshot_test

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/uuid"

	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
	"github.com/reflejo/terraform-provider-reflejo/agent/snapshot"
	"github.com/reflejo/terraform-provider-reflejo/agent/vserver"
)

// story is what an agent does until it is killed: three snapshots, one restored with a
// safety snapshot, a clone, a deletion in the middle. What is asked for after the kill is refused.
func (w *world) story(server string, ids [3]string, safety string) {
	ask := func(err error) bool {
		synctest.Wait()
		_ = w.m.Settled(w.t.Context())
		_ = w.servers.Settled(w.t.Context())
		return err == nil && !w.pool.gate.killed()
	}
	for _, id := range ids {
		_, err := w.m.Create(w.t.Context(), snapshot.Request{ID: id, Server: server})
		if !ask(err) {
			return
		}
		w.pool.write(server, 3, 4)
		time.Sleep(time.Second)
	}
	_, err := w.servers.Restore(w.t.Context(), server, ids[0], safety)
	if ask(err) {
		ask(w.m.Delete(w.t.Context(), ids[1]))
	}
}

// An agent that is killed at any call to the pool or its store, before or after it was
// carried out, is followed by one that finishes or takes back what was under way.
func TestKilledAtEveryStep(t *testing.T) {
	for _, after := range []bool{false, true} {
		for at, done := 1, false; !done; at++ {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				w.start()
				server := w.server("web", vserver.PowerRunning)
				ids, safety := [3]string{uuid.NewString(), uuid.NewString(), uuid.NewString()}, uuid.NewString()
				w.pool.gate.kill(at, after)
				w.story(server, ids, safety)
				done = !w.pool.gate.killed()
				w.close()
				w.pool.gate.kill(0, false)

				w.start()
				defer w.close()
				synctest.Wait()
				must(t, w.servers.Settled(t.Context()))
				must(t, w.m.Settled(t.Context()))
				w.check()
				for _, v := range w.m.List(t.Context(), "") {
					if v.State != snapshot.PhaseReady {
						t.Errorf("snapshot %s (%s) is %s: %s", v.Name, v.Origin, v.State, v.Err)
					}
				}
				w.story(server, ids, safety) // the client asks again
				w.check()
				if s, err := w.servers.Get(server); err != nil || s.State != vserver.StateRunning || !s.Operation.Settled() {
					t.Errorf("the server is %+v, %v", s, err)
				}
				for _, id := range []string{ids[0], ids[2], safety} {
					if v, err := w.m.Get(t.Context(), id); err != nil || v.State != snapshot.PhaseReady {
						t.Errorf("snapshot %s: %+v, %v", id, v, err)
					}
				}
				if t.Failed() {
					t.Fatalf("killed at call %d, after it was carried out: %t", at, after)
				}
				if done {
					t.Logf("%d calls", at-1)
				}
			})
			if t.Failed() {
				return
			}
		}
	}
}

func TestRecoverWhatIsLost(t *testing.T) {
	inWorld(t, func(w *world) {
		id := w.server("web", vserver.PowerRunning)
		var views []snapshot.View
		for range 3 {
			views = append(views, w.take(request("web")))
			w.pool.write(id, 1)
			time.Sleep(time.Second)
		}
		w.close()
		strange := uuid.NewString()
		w.foreign = uuid.NewString() // somebody else looks after it
		for _, id := range []string{strange, w.foreign} {
			w.pool.snaps[id], w.pool.of[id] = blocks{1: 1}, uuid.NewString()
		}
		delete(w.pool.snaps, views[0].ID)
		for _, name := range []string{uuid.NewString() + ".sums", views[1].ID + ".sums.new", "not-ours"} {
			must(w.t, os.WriteFile(filepath.Join(w.sums, name), nil, 0o600))
		}
		w.start()
		if v := w.settled(views[0].ID); v.State != snapshot.PhaseFailed || v.ErrKind != "not found" || v.Reserved != 0 {
			t.Errorf("%+v", v)
		}
		if got := fmt.Sprint(w.m.Unknown()); got != "["+strange+"]" {
			t.Errorf("unknown: %s", got)
		}
		if w.pool.snaps[strange] == nil || w.pool.snaps[w.foreign] == nil {
			t.Error("what no record knows was removed")
		}
		must(w.t, os.Remove(filepath.Join(w.sums, "not-ours")))
		w.remove(views[0].ID)
		delete(w.pool.snaps, strange)
		delete(w.pool.snaps, w.foreign)
		w.check()
	})
}

// What was begun for a server that is gone comes to an end too.
func TestRecoverWithoutServer(t *testing.T) {
	inWorld(t, func(w *world) {
		id := w.server("web", vserver.PowerStopped, func(s *vserver.Spec) { s.KeepSnapshots = true })
		w.pool.holding = make(chan struct{})
		req := request("web")
		_, err := w.m.Create(w.t.Context(), req)
		must(w.t, err)
		synctest.Wait()
		w.m.Close()
		must(w.t, w.servers.Delete(w.t.Context(), id))
		must(w.t, w.servers.Settled(w.t.Context()))
		w.servers.Close()
		w.start()
		if v := w.settled(req.ID); v.State != snapshot.PhaseFailed || v.ErrKind != "not found" {
			t.Errorf("%+v", v)
		}
		w.check()
		w.remove(req.ID)
	})
}

func TestAdopt(t *testing.T) {
	source := newExport(t)
	inWorld(t, func(w *world) {
		for i, rec := range source.records {
			_, err := w.m.Adopt(w.t.Context(), rec)
			wantKind(w.t, err, fault.NotFound, "")
			w.pool.snaps[rec.ID], w.pool.of[rec.ID] = maps.Clone(source.snaps[rec.ID]), rec.Server
			if i == 1 {
				rec.Checksum = ""
			}
			for range 2 {
				v, err := w.m.Adopt(w.t.Context(), rec)
				must(w.t, err)
				if v.Name != rec.Name || v.Host != "alpha" || !v.Created.Equal(rec.Created) {
					t.Errorf("%+v", v)
				}
			}
			if v := w.ready(rec.ID); v.Held != rec.Held || v.Checksum != source.records[i].Checksum {
				t.Errorf("held %d of %d, checksum %s of %s", v.Held, rec.Held, v.Checksum, source.records[i].Checksum)
			}
		}
		rec := source.records[0]
		rec.Size *= 2
		_, err := w.m.Adopt(w.t.Context(), rec)
		wantKind(w.t, err, fault.Exists, "")
		rec = source.records[0]
		rec.ID = uuid.NewString()
		w.pool.snaps[rec.ID], w.pool.of[rec.ID] = blocks{7: 1 << 40}, rec.Server
		v, err := w.m.Adopt(w.t.Context(), rec)
		must(w.t, err)
		if v.Name != source.records[0].Name+"-2" {
			t.Errorf("named %s", v.Name)
		}
		rec.ServerState = "none"
		_, err = w.m.Adopt(w.t.Context(), rec)
		wantKind(w.t, err, fault.Invalid, "server_state")
		if w.m.Reserved() != w.pool.union(rec.Server) {
			t.Errorf("reserved %d", w.m.Reserved())
		}
	})
}

// export is what another host has of a server.
type export struct {
	records []snapshot.Record
	snaps   map[string]blocks
}

func newExport(t *testing.T) (e export) {
	inWorld(t, func(w *world) {
		id := w.server("web", vserver.PowerRunning)
		for range 3 {
			w.take(request("web"))
			w.pool.write(id, 1, 9)
			time.Sleep(time.Second)
		}
		e.records, e.snaps = w.m.Export(id), w.pool.snaps
	})
	return e
}
