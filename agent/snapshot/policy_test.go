package snapshot_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
	"github.com/reflejo/terraform-provider-reflejo/agent/schedule"
	"github.com/reflejo/terraform-provider-reflejo/agent/snapshot"
	"github.com/reflejo/terraform-provider-reflejo/agent/vserver"
)

// withPolicies runs f while the policies run; restart stops the agent for a while.
func withPolicies(t *testing.T, f func(w *world, restart func(time.Duration))) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		var stop func()
		start := func() {
			w.start()
			ctx, cancel := context.WithCancel(t.Context())
			done := make(chan struct{})
			go func() {
				defer close(done)
				w.policies.Run(ctx)
			}()
			stop = func() {
				cancel()
				<-done
				w.close()
			}
		}
		start()
		defer func() { stop() }()
		f(w, func(away time.Duration) {
			stop()
			time.Sleep(away)
			start()
		})
	})
}

func policy(p vserver.SnapshotPolicy) func(*vserver.Spec) {
	return func(s *vserver.Spec) { s.SnapshotPolicy = p }
}

// taken are the times of a policy's snapshots, each by its label.
func (w *world) taken(server string) (names []string) {
	w.t.Helper()
	synctest.Wait()
	must(w.t, w.m.Settled(w.t.Context()))
	for _, v := range w.m.List(w.t.Context(), server) {
		if v.Origin == snapshot.OriginPolicy {
			if v.State != snapshot.PhaseReady || !strings.HasPrefix(v.Name, "policy-2000-") {
				w.t.Errorf("%s is %s: %s", v.Name, v.State, v.Err)
			}
			names = append(names, v.Created.Format("01-02T15:04 ")+v.Labels[snapshot.LabelPolicy])
		}
	}
	return names
}

func (w *world) wantTaken(server string, want ...string) {
	w.t.Helper()
	if got := w.taken(server); !slices.Equal(got, want) {
		w.t.Fatalf("at %s the policy has taken\n\t%s\nwant\n\t%s", w.now().UTC().Format(time.DateTime), strings.Join(got, "\n\t"), strings.Join(want, "\n\t"))
	}
}

// Time begins at midnight of Saturday, 1 January 2000.
func TestPolicyKeepsGenerations(t *testing.T) {
	withPolicies(t, func(w *world, _ func(time.Duration)) {
		id := w.server("web", vserver.PowerRunning, policy(vserver.SnapshotPolicy{
			Schedule: "0 */6 * * *", Keep: schedule.Keep{Last: 2, Daily: 3, Weekly: 2, Monthly: 2}}))
		hand := w.take(request("web"))
		for range 9 * 7 { // nine weeks
			time.Sleep(24 * time.Hour)
			w.pool.write(id, 1, 2)
		}
		time.Sleep(2 * time.Minute)
		// It is 4 March, a Saturday, 00:02: two newest, three days, two weeks, two months.
		w.wantTaken(id, "02-27T18:00 schedule", "02-29T18:00 schedule", "03-02T18:00 schedule", "03-03T18:00 schedule", "03-04T00:00 schedule")
		w.ready(hand.ID) // what somebody took by hand is nobody's business
		w.check()
		runs := w.policies.Runs()
		if want := time.Date(2000, 3, 4, 0, 0, 0, 0, time.UTC); len(runs) != 1 || !runs[0].Succeeded.Equal(want) || !runs[0].Tried.Equal(want) || runs[0].Err != "" || runs[0].Server != id {
			t.Errorf("%+v", runs)
		}
	})
}

func TestPolicyMissedRunsOnce(t *testing.T) {
	withPolicies(t, func(w *world, restart func(time.Duration)) {
		id := w.server("web", vserver.PowerRunning, policy(vserver.SnapshotPolicy{Schedule: "0 * * * *"}))
		time.Sleep(61 * time.Minute)
		w.wantTaken(id, "01-01T01:00 schedule")
		restart(5*time.Hour + 10*time.Minute)
		time.Sleep(2 * time.Minute)
		w.wantTaken(id, "01-01T01:00 schedule", "01-01T06:11 schedule")
		restart(0) // and a start alone makes no run
		time.Sleep(30 * time.Minute)
		w.wantTaken(id, "01-01T01:00 schedule", "01-01T06:11 schedule")
		time.Sleep(time.Hour)
		w.wantTaken(id, "01-01T01:00 schedule", "01-01T06:11 schedule", "01-01T07:00 schedule")
	})
}

func TestPolicyWhenTheClockJumps(t *testing.T) {
	withPolicies(t, func(w *world, _ func(time.Duration)) {
		id := w.server("web", vserver.PowerRunning, policy(vserver.SnapshotPolicy{Schedule: "0 * * * *", Keep: schedule.Keep{Last: 3}}))
		time.Sleep(2*time.Hour + time.Minute)
		w.wantTaken(id, "01-01T01:00 schedule", "01-01T02:00 schedule")
		w.jump.Add(int64(-30 * time.Minute)) // put right: it is 01:31 again
		time.Sleep(time.Hour)
		w.wantTaken(id, "01-01T01:00 schedule", "01-01T02:00 schedule")
		time.Sleep(time.Hour)
		w.wantTaken(id, "01-01T01:00 schedule", "01-01T02:00 schedule", "01-01T03:00 schedule")
		w.jump.Add(int64(10 * 24 * time.Hour)) // wrong by days: one run
		time.Sleep(10 * time.Minute)
		w.wantTaken(id, "01-01T02:00 schedule", "01-01T03:00 schedule", "01-11T03:32 schedule")
		w.jump.Add(int64(-10 * 24 * time.Hour)) // and right again: whatever the last hour missed, and it goes on
		time.Sleep(2 * time.Hour)
		w.wantTaken(id, "01-01T03:42 schedule", "01-01T04:00 schedule", "01-01T05:00 schedule", "01-11T03:32 schedule")
	})
}

func TestPolicyOnPower(t *testing.T) {
	withPolicies(t, func(w *world, restart func(time.Duration)) {
		id := w.server("web", vserver.PowerRunning, policy(vserver.SnapshotPolicy{On: []string{"start", "stop", "suspend"}}))
		other := w.server("db", vserver.PowerRunning, policy(vserver.SnapshotPolicy{On: []string{"stop"}}))
		want := []string{"01-01T00:00 start"}
		for i, c := range []struct {
			action vserver.PowerAction
			reason string
		}{{vserver.ActionStop, "stop"}, {vserver.ActionStart, "start"}, {vserver.ActionSuspend, "suspend"}, {vserver.ActionResume, ""},
			{vserver.ActionReboot, ""}, {vserver.ActionSuspend, "suspend"}, {vserver.ActionStop, "stop"}} {
			time.Sleep(time.Hour)
			w.power(id, c.action)
			if c.reason != "" {
				want = append(want, fmt.Sprintf("01-01T%02d:00 %s", i+1, c.reason))
			}
			w.wantTaken(id, want...)
		}
		for _, v := range w.m.List(w.t.Context(), id) {
			state := map[string]vserver.State{"start": vserver.StateRunning, "stop": vserver.StateStopped, "suspend": vserver.StateSuspended}[v.Labels[snapshot.LabelPolicy]]
			if v.ServerState != state {
				t.Errorf("%s shows a server that is %s", v.Name, v.ServerState)
			}
		}
		w.wantTaken(other)
		if v := w.m.List(w.t.Context(), id)[0]; v.Name != "policy-2000-01-01t00-00-00z" {
			t.Errorf("named %s", v.Name)
		}
		w.host.PowerOff(w.t.Context()) // while the agent is away, db goes down with the host
		restart(time.Hour)
		time.Sleep(2 * time.Minute)
		w.wantTaken(id, want...)
	})
}

// A change that the agent was killed over before it took note of it is not forgotten.
func TestPolicyMissedPower(t *testing.T) {
	inWorld(t, func(w *world) {
		id := w.server("web", vserver.PowerRunning, policy(vserver.SnapshotPolicy{On: []string{"start"}}))
		must(w.t, w.runs.Put(id, map[string]string{"Server": id, "Seen": "stopped"}))
		w.close()
		w.start()
		ctx, cancel := context.WithTimeout(w.t.Context(), 2*time.Minute)
		defer cancel()
		w.policies.Run(ctx)
		w.wantTaken(id, "01-01T00:00 start")
	})
}

func TestPolicyThatFails(t *testing.T) {
	withPolicies(t, func(w *world, restart func(time.Duration)) {
		id := w.server("web", vserver.PowerRunning, policy(vserver.SnapshotPolicy{Schedule: "0 0 * * *"}))
		w.room.Store(diskSize) // refused
		time.Sleep(24*time.Hour + 10*time.Minute)
		w.wantTaken(id)
		if said := w.said(); len(said) != 1 || !strings.Contains(said[0], "free") {
			t.Errorf("said %q: want one reason, once", said)
		}
		if r := w.policies.Runs(); len(r) != 1 || r[0].Err == "" || !r[0].Succeeded.IsZero() {
			t.Errorf("%+v", r)
		}
		w.room.Store(10 * diskSize)
		w.pool.failing("take", errors.New("I/O error")) // accepted, but not made
		time.Sleep(5 * time.Minute)
		if said := w.said(); len(said) != 2 || !strings.Contains(said[1], "I/O error") {
			t.Errorf("said %q", said)
		}
		if n := len(w.m.List(w.t.Context(), "")); n != 1 {
			t.Errorf("%d snapshots for one moment", n)
		}
		restart(time.Minute)
		w.pool.failing("take", nil)
		time.Sleep(2 * time.Minute)
		if got := w.taken(id); len(got) != 1 {
			t.Errorf("taken: %q", got)
		}
		if r := w.policies.Runs(); r[0].Err != "" || r[0].Succeeded.IsZero() {
			t.Errorf("%+v", r)
		}
		time.Sleep(23 * time.Hour)
		w.check()
	})
}

// Many servers whose policies come at the same moment take turns where the room is not
// enough for what all of them may come to take.
func TestPoliciesTogether(t *testing.T) {
	withPolicies(t, func(w *world, _ func(time.Duration)) {
		for i := range 10 {
			w.server(fmt.Sprintf("web%d", i), vserver.PowerRunning, policy(vserver.SnapshotPolicy{Schedule: "0 * * * *"}))
		}
		w.room.Store(10*diskSize + diskSize + 1<<30)
		time.Sleep(time.Hour + 12*time.Minute)
		if n := len(w.taken("")); n != 10 || len(w.said()) != 0 {
			t.Errorf("%d snapshots, said %q", n, w.said())
		}
		w.check()
	})
}

// What can't be recorded is not done, and done when it can be.
func TestPolicyWithoutStore(t *testing.T) {
	withPolicies(t, func(w *world, _ func(time.Duration)) {
		id := w.server("web", vserver.PowerRunning, policy(vserver.SnapshotPolicy{Schedule: "0 * * * *", On: []string{"stop"}}))
		time.Sleep(30 * time.Minute)
		w.runs.Fail(errors.New("disk full"))
		time.Sleep(45 * time.Minute)
		w.power(id, vserver.ActionStop)
		time.Sleep(time.Minute)
		w.wantTaken(id)
		w.runs.Fail(nil)
		time.Sleep(2 * time.Minute)
		if got := w.taken2(id); !slices.Equal(got, []string{"schedule", "stop"}) {
			t.Errorf("taken: %q", got)
		}
	})
}

// taken2 are the reasons of a policy's snapshots, sorted.
func (w *world) taken2(server string) (reasons []string) {
	w.t.Helper()
	must(w.t, w.m.Settled(w.t.Context()))
	for _, v := range w.m.List(w.t.Context(), server) {
		reasons = append(reasons, v.Labels[snapshot.LabelPolicy])
	}
	slices.Sort(reasons)
	return reasons
}

// Snapshots that are in use go later.
func TestPolicyPrunesWhatWasInUse(t *testing.T) {
	withPolicies(t, func(w *world, _ func(time.Duration)) {
		id := w.server("web", vserver.PowerRunning, policy(vserver.SnapshotPolicy{Schedule: "0 * * * *", Keep: schedule.Keep{Last: 1}}))
		time.Sleep(time.Hour + time.Minute)
		release, err := w.m.Pin(w.m.List(w.t.Context(), id)[0].ID)
		must(w.t, err)
		time.Sleep(time.Hour)
		w.wantTaken(id, "01-01T01:00 schedule", "01-01T02:00 schedule")
		release()
		time.Sleep(time.Minute)
		w.wantTaken(id, "01-01T02:00 schedule")
	})
}

func TestPolicyChangesAndGoes(t *testing.T) {
	withPolicies(t, func(w *world, _ func(time.Duration)) {
		id := w.server("web", vserver.PowerRunning, policy(vserver.SnapshotPolicy{Schedule: "0 * * * *"}))
		time.Sleep(30 * time.Minute)
		change := func(s string) {
			v, err := w.servers.Get(id)
			must(w.t, err)
			v.Spec.SnapshotPolicy.Schedule = s
			_, err = w.servers.Update(w.t.Context(), v.Spec)
			must(w.t, err)
		}
		change("15 * * * *") // it was a quarter past before, but the schedule is new
		time.Sleep(30 * time.Minute)
		w.wantTaken(id)
		time.Sleep(30 * time.Minute)
		w.wantTaken(id, "01-01T01:15 schedule")
		w.pool.failing("take", fault.New(fault.Exhausted, "the pool is full"))
		time.Sleep(time.Hour)
		if n := len(w.m.List(w.t.Context(), id)); n != 2 {
			t.Errorf("%d snapshots, want one and one that failed", n)
		}
		change("")
		time.Sleep(24 * time.Hour)
		w.wantTaken(id, "01-01T01:15 schedule")
		must(w.t, w.servers.Delete(w.t.Context(), id))
		time.Sleep(2 * time.Minute)
		w.wantTaken(id)
		if r := w.policies.Runs(); len(r) != 0 {
			t.Errorf("%+v", r)
		}
	})
}
