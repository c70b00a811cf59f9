package snapshot_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/uuid"

	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
	"github.com/reflejo/terraform-provider-reflejo/agent/snapshot"
	"github.com/reflejo/terraform-provider-reflejo/agent/vserver"
)

func TestTakeInEveryState(t *testing.T) {
	for _, c := range []struct {
		power       vserver.Power
		consistency snapshot.Consistency
		quiet       string
	}{
		{vserver.PowerRunning, "", "[tasks=true]"},
		{vserver.PowerRunning, snapshot.ConsistencyCrash, "[]"},
		{vserver.PowerSuspended, "", "[tasks=false]"},
		{vserver.PowerSuspended, snapshot.ConsistencyCrash, "[]"},
		{vserver.PowerStopped, "", "[]"},
		{vserver.PowerStopped, snapshot.ConsistencyCrash, "[]"},
	} {
		t.Run(fmt.Sprintf("%s %s", c.power, c.consistency), func(t *testing.T) {
			inWorld(t, func(w *world) {
				id := w.server("web", c.power, func(s *vserver.Spec) { s.FirstBoot.UserData = "#!/bin/sh" })
				req := request("web")
				req.Consistency = c.consistency
				w.take(req)
				v := w.ready(req.ID)
				if got := fmt.Sprint(w.quiets); got != c.quiet {
					t.Errorf("writers were stopped: %s, want %s", got, c.quiet)
				}
				if v.Pause != map[bool]time.Duration{true: 7 * time.Millisecond}[c.quiet != "[]"] {
					t.Errorf("pause: %s", v.Pause)
				}
				if string(v.ServerState) != string(c.power) || v.Server != id || v.ServerName != "web" || v.Host != "alpha" ||
					v.Spec.Disk.Size != diskSize || v.Spec.FirstBoot.UserData != "" || v.Image.ID == "" || v.Size != diskSize || v.Held != 4*blockSize {
					t.Errorf("%+v", v)
				}
				w.check()
				w.pool.write(id, 5, 6)
				w.check() // what was taken does not change
				if s, err := w.servers.Get(id); err != nil || string(s.State) != string(c.power) || !s.Operation.Settled() {
					t.Errorf("the server is %+v", s)
				}
			})
		})
	}
}

func TestSameRequest(t *testing.T) {
	inWorld(t, func(w *world) {
		id := w.server("web", vserver.PowerRunning)
		req := request("web")
		req.Labels = map[string]string{"a": "b"}
		first := w.take(req)
		req.Server = id // the same server by its id
		if again := w.take(req); again.Name != first.Name || !again.Created.Equal(first.Created) {
			t.Errorf("%+v, then %+v", first, again)
		}
		for _, change := range []func(*snapshot.Request){
			func(r *snapshot.Request) { r.Name = "other" },
			func(r *snapshot.Request) { r.Labels = nil },
			func(r *snapshot.Request) { r.Description = "other" },
			func(r *snapshot.Request) { r.Consistency = snapshot.ConsistencyCrash },
			func(r *snapshot.Request) { r.Server = "db" },
		} {
			other := req
			change(&other)
			_, err := w.m.Create(w.t.Context(), other)
			wantKind(t, err, fault.Exists, "")
		}
		w.check()
	})
}

func TestNames(t *testing.T) {
	inWorld(t, func(w *world) {
		long := strings.Repeat("a", 62) + "z"
		w.server(long, vserver.PowerStopped)
		a, b := w.take(request(long)), w.take(request(long))
		if len(a.Name) > 63 || b.Name != a.Name+"-2" || !strings.HasSuffix(a.Name, "-2000-01-01t00-00-00z") {
			t.Errorf("%q, %q", a.Name, b.Name)
		}
		req := request(long)
		req.Name = a.Name
		_, err := w.m.Create(w.t.Context(), req)
		wantKind(t, err, fault.Exists, "name")
		_, err = w.m.Update(b.ID, a.Name, "", nil)
		wantKind(t, err, fault.Exists, "name")
		_, err = w.m.Update(b.ID, "A", "", nil)
		wantKind(t, err, fault.Invalid, "name")
		v, err := w.m.Update(b.ID, "mine", "text", map[string]string{"k": "v"})
		must(t, err)
		if v.Name != "mine" || v.Description != "text" || v.Labels["k"] != "v" {
			t.Errorf("%+v", v)
		}
		w.close()
		w.start()
		if again := w.ready(b.ID); again.Name != "mine" || again.Checksum != b.Checksum {
			t.Errorf("%+v", again)
		}
		w.check()
	})
}

func TestRoom(t *testing.T) {
	inWorld(t, func(w *world) {
		w.server("web", vserver.PowerStopped)
		w.room.Store(diskSize + 1<<30)
		_, err := w.m.Create(w.t.Context(), request("web"))
		wantKind(t, err, fault.Exhausted, "")
		if !strings.Contains(err.Error(), "2GiB") || !strings.Contains(err.Error(), "1GiB free") {
			t.Errorf("%v: want it to name what is asked and what is free", err)
		}
		if w.m.Reserved() != 0 || len(w.m.List(w.t.Context(), "")) != 0 {
			t.Errorf("%d reserved", w.m.Reserved())
		}
		w.room.Store(2 * diskSize)
		w.take(request("web"))
		w.room.Store(diskSize + 4*blockSize + 1)
		_, _, free := w.servers.Resources()
		if free.Disk != 1 {
			t.Errorf("free: %d", free.Disk)
		}
		release, err := w.m.Reserve("import", 1)
		must(t, err)
		_, err = w.m.Reserve("import", 1)
		wantKind(t, err, fault.Exhausted, "")
		release()
		release()
		w.check()
	})
}

func TestFailedIsBegunAnew(t *testing.T) {
	inWorld(t, func(w *world) {
		w.server("web", vserver.PowerRunning)
		w.pool.failing("take", fault.New(fault.Exhausted, "the pool is full"))
		req := request("web")
		v := w.take(req)
		if v.State != snapshot.PhaseFailed || v.ErrKind != "exhausted" || v.Operation.Err == "" || v.Reserved != 0 {
			t.Fatalf("%+v", v)
		}
		w.check()
		_, err := w.m.Find(req.ID)
		wantKind(t, err, fault.Precondition, "")
		w.close()
		w.start()
		if v := w.settled(req.ID); v.State != snapshot.PhaseFailed {
			t.Fatalf("%+v", v)
		}
		w.pool.failing("take", nil)
		w.take(req)
		w.ready(req.ID)
		w.check()
		w.remove(req.ID)
	})
}

func TestRefused(t *testing.T) {
	inWorld(t, func(w *world) {
		w.server("web", vserver.PowerStopped)
		for field, change := range map[string]func(*snapshot.Request){
			"id":          func(r *snapshot.Request) { r.ID = "../x" },
			"server_id":   func(r *snapshot.Request) { r.Server = "No" },
			"name":        func(r *snapshot.Request) { r.Name = "-" },
			"description": func(r *snapshot.Request) { r.Description = strings.Repeat("x", 1025) },
			"labels":      func(r *snapshot.Request) { r.Labels = map[string]string{"": "x"} },
			"consistency": func(r *snapshot.Request) { r.Consistency = "none" },
			"origin":      func(r *snapshot.Request) { r.Origin = "none" },
		} {
			req := request("web")
			change(&req)
			_, err := w.m.Create(w.t.Context(), req)
			wantKind(t, err, fault.Invalid, field)
		}
		_, err := w.m.Create(w.t.Context(), request("nobody"))
		wantKind(t, err, fault.NotFound, "server_id")
		wantKind(t, w.m.Delete(w.t.Context(), uuid.NewString()), fault.NotFound, "")
		_, err = w.m.Watch(w.t.Context(), uuid.NewString())
		wantKind(t, err, fault.NotFound, "")
	})
}

func TestDeleteInUse(t *testing.T) {
	inWorld(t, func(w *world) {
		id := w.server("web", vserver.PowerStopped)
		v := w.take(request("web"))
		a, err := w.m.Pin(v.ID)
		must(t, err)
		b, err := w.m.Pin(v.ID)
		must(t, err)
		wantKind(t, w.m.Delete(w.t.Context(), v.ID), fault.Precondition, "")
		a()
		a()
		wantKind(t, w.m.Delete(w.t.Context(), v.ID), fault.Precondition, "")
		must(t, w.m.Gone(w.t.Context(), id, true)) // its server goes: it follows
		synctest.Wait()
		if v, err := w.m.Get(w.t.Context(), v.ID); err != nil || v.State != snapshot.PhaseDeleting || len(w.pool.ids()) != 1 {
			t.Errorf("%+v, %v", v, err)
		}
		_, err = w.m.Pin(v.ID)
		wantKind(t, err, fault.Precondition, "")
		b()
		must(t, w.m.Settled(w.t.Context()))
		if _, err := w.m.Get(w.t.Context(), v.ID); !fault.Is(err, fault.NotFound) {
			t.Error(err)
		}
		w.check()
	})
}

func TestDeleteWhileTaking(t *testing.T) {
	inWorld(t, func(w *world) {
		w.server("web", vserver.PowerRunning)
		w.pool.holding = make(chan struct{})
		req := request("web")
		_, err := w.m.Create(w.t.Context(), req)
		must(t, err)
		synctest.Wait()
		watch, err := w.m.Watch(w.t.Context(), req.ID)
		must(t, err)
		if v := <-watch; v.State != snapshot.PhaseCreating || v.Operation.Step != "take" || v.Reserved == 0 {
			t.Fatalf("%+v", v)
		}
		w.remove(req.ID)
		var last snapshot.View
		for v := range watch {
			last = v
		}
		if !last.Gone {
			t.Errorf("last seen: %+v", last)
		}
		w.check()
		if s, _ := w.servers.Get("web"); s.State != vserver.StateRunning {
			t.Errorf("the server is %s", s.State)
		}
	})
}

func TestDeletionThatFails(t *testing.T) {
	inWorld(t, func(w *world) {
		id := w.server("web", vserver.PowerRunning)
		first := w.take(request("web"))
		w.pool.write(id, 1)
		w.take(request("web"))
		w.pool.failing("remove", errors.New("I/O error"))
		must(t, w.m.Delete(w.t.Context(), first.ID))
		if v := w.settled(first.ID); v.State != snapshot.PhaseDeleting || v.Operation.Err == "" || v.Operation.Kind != "delete" {
			t.Fatalf("%+v", v)
		}
		w.pool.failing("remove", nil)
		w.remove(first.ID)
		w.check()
	})
}

// The sums of the last snapshot save reading what did not change.
func TestChecksumReadsWhatChanged(t *testing.T) {
	inWorld(t, func(w *world) {
		id := w.server("web", vserver.PowerRunning)
		for n := range int64(64) {
			w.pool.write(id, n*100)
		}
		w.take(request("web"))
		w.pool.read = 0
		w.pool.write(id, 100, 101)
		v := w.take(request("web"))
		if w.pool.read != snapshot.ChunkSize {
			t.Errorf("%d bytes were read for one chunk that changed", w.pool.read)
		}
		w.check()
		if v.Held != 2*blockSize {
			t.Errorf("held: %d", v.Held)
		}
	})
}

func TestChecksumThatFails(t *testing.T) {
	inWorld(t, func(w *world) {
		w.server("web", vserver.PowerRunning)
		w.pool.failing("read", errors.New("I/O error"))
		v := w.take(request("web"))
		if v.State != snapshot.PhaseReady || v.Operation.Kind != "checksum" || v.Operation.Err == "" {
			t.Fatalf("%+v", v)
		}
		w.pool.failing("read", nil)
		w.close()
		w.start()
		w.ready(v.ID)
		w.sums += "/none" // sums that can't be kept cost time, nothing else
		w.close()
		w.start()
		w.take(request("web"))
		w.sums = strings.TrimSuffix(w.sums, "/none")
		w.remove(w.m.List(w.t.Context(), "")[1].ID)
		w.check()
	})
}

func TestDeleteInAnyOrder(t *testing.T) {
	for seed := range uint64(12) {
		inWorld(t, func(w *world) {
			random := rand.New(rand.NewPCG(seed, 1))
			id := w.server("web", vserver.PowerRunning)
			var there []string
			for range 40 {
				if len(there) > 0 && random.IntN(3) == 0 {
					i := random.IntN(len(there))
					w.remove(there[i])
					there = append(there[:i], there[i+1:]...)
				} else {
					for range random.IntN(10) {
						w.pool.write(id, random.Int64N(30))
					}
					there = append(there, w.take(request("web")).ID)
				}
				w.check()
				if t.Failed() {
					t.Fatalf("seed %d", seed)
				}
			}
		})
	}
}

// 50 at once, on three servers that are written to, with agents that come and go.
func TestTogether(t *testing.T) {
	inWorld(t, func(w *world) {
		ids := []string{w.server("a", vserver.PowerRunning), w.server("b", vserver.PowerStopped), w.server("c", vserver.PowerSuspended)}
		for round := range 4 {
			var wg sync.WaitGroup
			for i := range 50 {
				wg.Go(func() {
					random := rand.New(rand.NewPCG(uint64(round), uint64(i)))
					server := ids[random.IntN(len(ids))]
					w.pool.write(server, random.Int64N(100), random.Int64N(100))
					if i%2 == 0 {
						if _, err := w.m.Create(w.t.Context(), request(server)); err != nil {
							t.Error(err)
						}
						return
					}
					all := w.m.List(w.t.Context(), server)
					for range min(2, len(all)) {
						if err := w.m.Delete(w.t.Context(), all[random.IntN(len(all))].ID); err != nil && !fault.Is(err, fault.NotFound) {
							t.Error(err)
						}
					}
				})
			}
			wg.Wait()
			if round%2 == 0 { // it is stopped with all of it under way
				w.close()
				w.start()
			}
			must(t, w.m.Settled(w.t.Context()))
			synctest.Wait()
			w.check()
		}
		for _, v := range w.m.List(w.t.Context(), "") {
			must(t, w.m.Delete(w.t.Context(), v.ID))
		}
		must(t, w.m.Settled(w.t.Context()))
		w.check()
		if w.m.Reserved() != 0 {
			t.Errorf("%d reserved", w.m.Reserved())
		}
	})
}

func TestList(t *testing.T) {
	inWorld(t, func(w *world) {
		id := w.server("web", vserver.PowerRunning)
		w.server("db", vserver.PowerStopped)
		var want []string
		for range 3 {
			time.Sleep(time.Hour)
			want = append(want, w.take(request("web")).Name)
			w.pool.write(id, 1)
		}
		w.take(request("db"))
		var got []string
		for _, v := range w.m.List(w.t.Context(), id) {
			got = append(got, v.Name)
		}
		if fmt.Sprint(got) != fmt.Sprint(want) || len(w.m.List(w.t.Context(), "")) != 4 {
			t.Errorf("%v, want %v", got, want)
		}
		time.Sleep(time.Hour)
		stats := w.m.Stats(w.t.Context())
		if len(stats) != 2 {
			t.Fatal(stats)
		}
		for _, s := range stats {
			want := snapshot.Stats{Server: id, Name: "web", Snapshots: 3, Exclusive: 3 * blockSize, Reserved: 6 * blockSize}
			if s.Server == id && s != want {
				t.Errorf("%+v, want %+v", s, want)
			}
		}
	})
}
