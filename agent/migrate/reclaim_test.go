package migrate

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
	"github.com/reflejo/terraform-provider-reflejo/agent/vserver"
)

// superseded is what package recovery asks of the other agent.
func (h *host) superseded(_ context.Context, r vserver.Record) (string, error) {
	from := h.m.Awaits(r.Spec.ID)
	if from == "" {
		return "", nil
	}
	h.w.mu.Lock()
	other := h.w.hosts[from]
	alive := other.alive
	h.w.mu.Unlock()
	switch {
	case !alive:
		return "", fault.New(fault.Unavailable, "nobody at %s", from)
	case other.servers.Term(r.Spec.ID) > r.Term:
		return from, nil
	}
	return "", nil
}

// rest lets time pass, starting alpha's agent again when it died.
func (w *world) rest() {
	for range 100 {
		synctest.Wait()
		select {
		case h := <-w.dead:
			h.stop()
			h.start()
		default:
		}
		time.Sleep(time.Second)
	}
	w.mu.Lock()
	w.check()
	w.mu.Unlock()
}

// lostMove moves the server to beta, which is lost on the way, as often as its agent on
// alpha dies.
func (w *world) lostMove(settings vserver.Migration) (begun bool) {
	a, b := w.hosts["alpha"], w.hosts["beta"]
	v, err := a.servers.Get(w.id)
	if err != nil {
		w.t.Fatal(err)
	}
	ticket, err := b.m.Prepare(w.t.Context(), Offer{Server: v, Source: "alpha"})
	if err == nil {
		_, err = a.m.Start(w.t.Context(), Move{Server: w.id, Target: "beta", Endpoint: "beta:7444", Ticket: ticket.Secret, Settings: &settings})
	}
	w.rest()
	b.stop()
	b.v.PowerOff(w.t.Context())
	return err == nil
}

// reclaim says that beta is lost for good until that is done; false where beta has had the
// time to say that the server is its own.
func (w *world) reclaim() bool {
	for range 5 {
		a := w.hosts["alpha"]
		if v, err := a.servers.Get(w.id); err != nil || v.State == vserver.StateDeleting {
			return false
		}
		err := a.m.Reclaim(w.t.Context(), w.id, "beta", 1)
		w.rest()
		if fault.Is(err, fault.Precondition) {
			return false
		}
		if err == nil {
			return true
		}
	}
	w.t.Error("it can't be taken back")
	return true
}

// tookBack holds that alpha has the server and nothing else of the move.
func (w *world) tookBack() {
	w.t.Helper()
	a := w.hosts["alpha"]
	v, err := a.servers.Get(w.id)
	if err != nil || v.State != vserver.StateRunning || v.Leaving != "" || a.servers.Term(w.id) != 1 {
		w.t.Errorf("on alpha it is %+v in term %d, %v", v, a.servers.Term(w.id), err)
	}
	if len(a.m.out) > 0 || len(a.pool.snapshots) > 0 {
		w.t.Errorf("alpha still has moves %+v and %d snapshots", a.m.out, len(a.pool.snapshots))
	}
}

// returns is the lost host's return, which the source outlives, or comes after.
func (w *world) returns(sourceFirst bool) {
	w.t.Helper()
	a, b := w.hosts["alpha"], w.hosts["beta"]
	if !sourceFirst {
		w.mu.Lock()
		a.alive = false
		w.mu.Unlock()
		a.stop()
	}
	b.start()
	w.rest()
	if !sourceFirst {
		a.start()
		w.rest()
	}
	if v, err := b.servers.Get(w.id); err == nil && v.State == vserver.StateRunning {
		w.t.Errorf("the lost host runs it: %+v", v)
	}
	if v, err := a.servers.Get(w.id); err != nil || v.State != vserver.StateRunning {
		w.t.Errorf("alpha does not run it: %+v, %v", v, err)
	}
}

// The target is lost for good at every event of a move, somebody says so, and it returns
// after all, before or after the source's agent: never do both have the server.
func TestTargetLostForGood(t *testing.T) {
	settings := cases["cold"].settings
	var events int
	inWorld(t, 1, func(w *world) {
		w.create(vserver.PowerRunning)
		from := w.events
		w.arrive(vserver.PowerRunning, settings)
		events = w.events - from
	})
	reclaimed, owned := 0, 0
	for i := 1; i <= events && !t.Failed(); i++ {
		inWorld(t, 1, func(w *world) {
			defer func() {
				if t.Failed() {
					t.Logf("beta lost at event %d of %d", i, events)
				}
			}()
			w.create(vserver.PowerRunning)
			w.lose = w.events + i
			if !w.lostMove(settings) {
				w.lose = 0
				return
			}
			v, err := w.hosts["alpha"].servers.Get(w.id)
			if err == nil && v.Leaving == "" && v.State == vserver.StateRunning {
				return // it never left
			}
			if !w.reclaim() {
				return // beta had said that it has it
			}
			reclaimed++
			w.tookBack()
			for _, r := range w.hosts["beta"].m.in {
				if r.Phase == TargetOwner {
					owned++
				}
			}
			w.returns(i%2 == 0)
		})
	}
	if reclaimed == 0 || owned == 0 {
		t.Errorf("taken back %d times, %d of them from one that had it: not what this test is for", reclaimed, owned)
	}
	t.Logf("%d events, taken back %d times, %d of them from one that had it", events, reclaimed, owned)
}

// The source's agent dies at every write of taking a server back.
func TestReclaimSurvivesFaults(t *testing.T) {
	settings := cases["cold"].settings
	events := 0
	at := func(w *world, lose int) bool {
		w.create(vserver.PowerRunning)
		w.lose = w.events + lose
		w.lostMove(settings)
		return w.hosts["alpha"].m.out[w.id].Phase == SourceHandover
	}
	lose := 1
	for found := false; !found; lose++ {
		inWorld(t, 1, func(w *world) {
			if found = at(w, lose); found {
				before := w.events
				w.reclaim()
				events = w.events - before
			}
		})
	}
	lose--
	if events < 4 {
		t.Fatalf("only %d events", events)
	}
	for i := 1; i <= events && !t.Failed(); i++ {
		for _, k := range []faultKind{faultBefore, faultAfter} {
			inWorld(t, 1, func(w *world) {
				at(w, lose)
				w.faults[w.events+i] = k
				w.reclaim()
				w.tookBack()
				w.returns(true)
				if t.Failed() {
					t.Logf("fault %d at event %d of %d", k, i, events)
				}
			})
		}
	}
}
