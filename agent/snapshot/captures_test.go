package snapshot_test

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/uuid"

	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
	"github.com/reflejo/terraform-provider-reflejo/agent/snapshot"
	"github.com/reflejo/terraform-provider-reflejo/agent/vserver"
)

func TestRestoreInPlace(t *testing.T) {
	for _, power := range []vserver.Power{vserver.PowerRunning, vserver.PowerStopped, vserver.PowerSuspended} {
		t.Run(string(power), func(t *testing.T) {
			inWorld(t, func(w *world) {
				id := w.server("web", power)
				v := w.take(request("web"))
				was := w.pool.disks[id][1]
				w.pool.write(id, 1)
				lost, safety := w.pool.disks[id][1], uuid.NewString()
				for range 2 {
					_, err := w.servers.Restore(w.t.Context(), id, v.ID, safety)
					must(w.t, err)
					must(w.t, w.servers.Settled(w.t.Context()))
				}
				if got := w.pool.disks[id][1]; got != was {
					t.Errorf("the disk holds %d, want %d", got, was)
				}
				s := w.ready(safety)
				if s.Origin != snapshot.OriginSafety || w.pool.snaps[safety][1] != lost || s.Held != blockSize || s.ServerState != vserver.StateStopped || s.Spec.Name != "web" {
					t.Errorf("safety: %+v", s)
				}
				if got, _ := w.servers.Get(id); string(got.State) != string(power) {
					t.Errorf("the server is %s", got.State)
				}
				w.check()
				_, err := w.servers.Restore(w.t.Context(), id, safety, uuid.NewString())
				must(w.t, err)
				must(w.t, w.servers.Settled(w.t.Context()))
				if got := w.pool.disks[id][1]; got != lost {
					t.Errorf("put back again the disk holds %d, want %d", got, lost)
				}
			})
		})
	}
}

// Without room for what it would replace nothing is restored.
func TestRestoreWithoutRoom(t *testing.T) {
	inWorld(t, func(w *world) {
		id := w.server("web", vserver.PowerRunning)
		v := w.take(request("web"))
		w.pool.write(id, 1)
		was := w.pool.disks[id][1]
		w.room.Store(diskSize + w.m.Reserved())
		_, err := w.servers.Restore(w.t.Context(), id, v.ID, uuid.NewString())
		must(w.t, err)
		must(w.t, w.servers.Settled(w.t.Context()))
		s, _ := w.servers.Get(id)
		if s.Operation.ErrKind != "exhausted" || s.State != vserver.StateRunning || w.pool.disks[id][1] != was {
			t.Errorf("%+v", s)
		}
		w.check()
	})
}

func TestKeepRefuses(t *testing.T) {
	inWorld(t, func(w *world) {
		w.server("web", vserver.PowerStopped)
		v := w.take(request("web"))
		var rec vserver.Record
		must(w.t, w.servers.Hold(w.t.Context(), "web", "test", func(_ context.Context, h *vserver.Held) error {
			rec = h.Record()
			return nil
		}))
		wantKind(w.t, w.m.Keep(w.t.Context(), v.ID, rec), fault.Exists, "")
		id := uuid.NewString()
		w.pool.failing("take", fault.New(fault.Exhausted, "the pool is full"))
		wantKind(w.t, w.m.Keep(w.t.Context(), id, rec), fault.Exhausted, "")
		w.check()
		w.pool.failing("take", nil)
		for range 2 {
			must(w.t, w.m.Keep(w.t.Context(), id, rec))
		}
		w.ready(id)
		w.check()
		w.m.Close()
		wantKind(w.t, w.m.Keep(w.t.Context(), uuid.NewString(), rec), fault.Aborted, "")
	})
}

func TestClone(t *testing.T) {
	inWorld(t, func(w *world) {
		w.server("web", vserver.PowerRunning)
		v := w.take(request("web"))
		clone := uuid.NewString()
		_, err := w.servers.Create(w.t.Context(), vserver.Spec{ID: clone, Name: "copy", CloneOf: v.ID, Power: vserver.PowerStopped, Disk: vserver.Disk{Size: diskSize}})
		must(w.t, err)
		must(w.t, w.servers.Settled(w.t.Context()))
		if got := w.pool.disks[clone][1]; got == 0 || got != w.pool.snaps[v.ID][1] {
			t.Errorf("the clone's disk holds %d", got)
		}
		w.remove(v.ID)
		w.check()
	})
}

// What is being put back, or what a new server is being made from, stays.
func TestDeleteWhileRestoringOrCloning(t *testing.T) {
	inWorld(t, func(w *world) {
		w.server("web", vserver.PowerRunning)
		v := w.take(request("web"))
		release := w.host.Hold(vserver.StepShutdown)
		_, err := w.servers.Restore(w.t.Context(), "web", v.ID, uuid.NewString())
		must(w.t, err)
		synctest.Wait()
		wantKind(w.t, w.m.Delete(w.t.Context(), v.ID), fault.Precondition, "")
		release()
		must(w.t, w.servers.Settled(w.t.Context()))
		release = w.host.Hold(vserver.StepDiskAttach)
		_, err = w.servers.Create(w.t.Context(), vserver.Spec{ID: uuid.NewString(), Name: "copy", CloneOf: v.ID, Power: vserver.PowerRunning, Disk: vserver.Disk{Size: diskSize}})
		must(w.t, err)
		synctest.Wait()
		wantKind(w.t, w.m.Delete(w.t.Context(), v.ID), fault.Precondition, "")
		release()
		must(w.t, w.servers.Settled(w.t.Context()))
		w.remove(v.ID)
	})
}

func TestServerGoes(t *testing.T) {
	for _, keep := range []bool{false, true} {
		inWorld(t, func(w *world) {
			id := w.server("web", vserver.PowerRunning, func(s *vserver.Spec) { s.KeepSnapshots = keep })
			v := w.take(request("web"))
			w.pool.write(id, 1)
			time.Sleep(time.Second)
			w.take(request("web"))
			w.server("db", vserver.PowerStopped)
			w.take(request("db"))
			w.pool.holding = make(chan struct{}) // and one that is under way
			under := request("web")
			_, err := w.m.Create(w.t.Context(), under)
			must(w.t, err)
			synctest.Wait()
			must(w.t, w.servers.Delete(w.t.Context(), id))
			must(w.t, w.servers.Settled(w.t.Context()))
			must(w.t, w.m.Settled(w.t.Context()))
			w.check()
			left := len(w.m.List(w.t.Context(), id))
			if !keep && left != 0 {
				t.Errorf("%d snapshots are left", left)
			}
			if !keep {
				return
			}
			if u := w.settled(under.ID); left != 3 || u.State != snapshot.PhaseFailed {
				t.Errorf("%d snapshots are left, the one under way is %s", left, u.State)
			}
			if c, err := w.m.Find(v.ID); err != nil || c.Server != id || c.Size != diskSize || c.Image.ID == "" {
				t.Errorf("%+v, %v", c, err)
			}
		})
	}
}
