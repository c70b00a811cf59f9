package backup

import (
	"context"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
	"github.com/reflejo/terraform-provider-reflejo/agent/schedule"
	"github.com/reflejo/terraform-provider-reflejo/agent/vserver"
)

// policyHost is an agent of a host whose server has a policy, in a bubble, begun.
func policyHost(t *testing.T, policy vserver.BackupPolicy) (*host, *agent) {
	h := newHost(t, 11, 1<<20)
	a := newAgent(t, h)
	policy.Target = a.target
	h.policy = policy
	go a.RunPolicies(t.Context())
	return h, a
}

func ready(t *testing.T, a *agent, server string) []Found {
	t.Helper()
	all, err := a.Catalog(context.Background(), a.target, server)
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func TestPolicyRuns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, a := policyHost(t, vserver.BackupPolicy{Schedule: "0 * * * *", Incremental: true, Keep: schedule.Keep{Last: 3}})
		defer a.Close()
		time.Sleep(30 * time.Minute)
		if n := len(ready(t, a, h.server)); n != 0 {
			t.Fatalf("%d backups before the first was due", n)
		}
		time.Sleep(5 * time.Hour)
		all := ready(t, a, h.server)
		if len(all) != 5 { // what the last three build on stays
			t.Fatalf("%d backups, want 5: %+v", len(all), all)
		}
		for i, f := range all {
			if f.Manifest.Depth != i || f.Manifest.Origin != OriginPolicy {
				t.Errorf("backup %d: depth %d, origin %s", i, f.Manifest.Depth, f.Manifest.Origin)
			}
		}
		a.check(h, all[4].View())
		if run := a.Runs()[h.server]; run.Err != "" || run.Backup != "" || run.Base != all[4].Manifest.Snapshot.ID || time.Since(run.Last) > time.Hour {
			t.Errorf("run: %+v", run)
		}
		if n := h.count(); n != 1 {
			t.Errorf("%d snapshots are kept, want that for the next increment", n)
		}
	})
}

func TestPolicyKeepsByItsRules(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, a := policyHost(t, vserver.BackupPolicy{Schedule: "0 */6 * * *", Keep: schedule.Keep{Last: 1, Daily: 3}})
		defer a.Close()
		manual := a.make(Request{ID: newID(), Snapshot: h.take(newID()).ID})
		time.Sleep(10*24*time.Hour - time.Hour)
		var kept []string
		for _, f := range ready(t, a, h.server) {
			if f.Manifest.Origin == OriginPolicy {
				kept = append(kept, f.Manifest.Snapshot.Created.Format("02T15:04"))
			} else if f.Backup != manual.ID {
				t.Errorf("found %+v", f)
			}
		}
		if got := strings.Join(kept, " "); len(kept) != 3 || !strings.HasSuffix(kept[0], "18:00") {
			t.Errorf("kept %s, want three days' last", got)
		}
		if len(a.List(h.server)) != len(kept)+1 {
			t.Errorf("%d records for %d files", len(a.List(h.server)), len(kept)+1)
		}
		if n := h.count(); n != 1 { // that of the manual one
			t.Errorf("%d snapshots are left", n)
		}
	})
}

// What was missed while the agent was away is made up for once.
func TestPolicyMissedRuns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, a := policyHost(t, vserver.BackupPolicy{Schedule: "0 * * * *"})
		time.Sleep(90 * time.Minute)
		a.Close()
		if n := len(ready(t, a, h.server)); n != 1 {
			t.Fatalf("%d backups", n)
		}
		time.Sleep(10*time.Hour - 90*time.Minute + 30*time.Minute)
		a.start()
		go a.RunPolicies(t.Context())
		time.Sleep(5 * time.Minute)
		if n := len(ready(t, a, h.server)); n != 2 {
			t.Fatalf("%d backups after being away, want one more", n)
		}
		a.Close()
	})
}

// A run that an agent's end breaks off goes on with the same snapshot and backup.
func TestPolicyRunGoesOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, a := policyHost(t, vserver.BackupPolicy{Schedule: "0 * * * *"})
		a.stores.goAway(fault.New(fault.Unavailable, "it is away"))
		next := time.Now().Truncate(time.Hour).Add(time.Hour + tick + 2*time.Second)
		time.Sleep(time.Until(next))
		run := a.Runs()[h.server]
		if run.Backup == "" {
			t.Fatalf("no run is under way: %+v", run)
		}
		a.Close()
		a.stores.goAway(nil)
		a.start()
		go a.RunPolicies(t.Context())
		time.Sleep(time.Minute)
		all := ready(t, a, h.server)
		if len(all) != 1 || all[0].Backup != run.Backup || all[0].Manifest.Snapshot.ID != run.Snapshot {
			t.Fatalf("%+v, want that of the run %+v", all, run)
		}
		if after := a.Runs()[h.server]; after.Backup != "" || after.Err != "" {
			t.Errorf("%+v", after)
		}
		a.Close()
	})
}

// A run that fails says so, leaves nothing, and the next one is made.
func TestPolicyRunFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, a := policyHost(t, vserver.BackupPolicy{Schedule: "0 * * * *"})
		defer a.Close()
		a.stores.set(100, fault.New(fault.Exhausted, "it is full"))
		time.Sleep(time.Until(time.Now().Truncate(time.Hour).Add(90 * time.Minute)))
		if run := a.Runs()[h.server]; !strings.Contains(run.Err, "full") || run.Backup != "" || run.Tried.IsZero() || !run.Succeeded.IsZero() {
			t.Errorf("%+v", run)
		}
		if left, err := os.ReadDir(a.dir); err != nil || len(left) != 0 || len(a.List("")) != 0 || h.count() != 0 {
			t.Errorf("left: %v, %v, %v, %d snapshots", left, err, a.List(""), h.count())
		}
		a.stores.set(-1, nil)
		time.Sleep(time.Hour)
		if run := a.Runs()[h.server]; run.Err != "" || len(ready(t, a, h.server)) != 1 || run.Tried.IsZero() || !run.Succeeded.Equal(run.Tried) {
			t.Errorf("%+v", run)
		}
	})
}

func TestPolicyThatIsTakenAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, a := policyHost(t, vserver.BackupPolicy{Schedule: "0 * * * *", Incremental: true})
		defer a.Close()
		time.Sleep(2*time.Hour + time.Minute)
		h.mu.Lock()
		h.none = true
		h.mu.Unlock()
		time.Sleep(2 * time.Hour)
		if n := len(ready(t, a, h.server)); n != 2 || len(a.Runs()) != 0 || h.count() != 0 {
			t.Errorf("%d backups, runs %v, %d snapshots", n, a.Runs(), h.count())
		}
	})
}

func TestRetainIsCareful(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, a := policyHost(t, vserver.BackupPolicy{Schedule: "0 * * * *"})
		defer a.Close()
		time.Sleep(4*time.Hour + time.Minute)
		all := ready(t, a, h.server)
		if err := os.WriteFile(a.file(all[3].View()), []byte("no backup"), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := a.Retain(t.Context(), h.server, a.target, schedule.Keep{Last: 1}, time.Now()); !fault.Is(err, fault.Precondition) {
			t.Errorf("with a file that can't be read: %v", err)
		}
		if n := len(ready(t, a, h.server)); n != 4 {
			t.Errorf("%d files are left of 4", n)
		}
	})
}

func TestObsolete(t *testing.T) {
	now := time.Date(2026, 3, 20, 12, 0, 0, 0, time.UTC)
	var there []Found
	add := func(id, parent string, origin Origin) {
		f := Found{File: File{Ref: Ref{Backup: id}}, Manifest: Manifest{ID: id, Parent: parent, Origin: origin}}
		for _, p := range there {
			if p.Backup == parent {
				f.Manifest.Depth = p.Manifest.Depth + 1
			}
		}
		f.Manifest.Snapshot.Created = now.Add(-time.Hour).Add(time.Duration(len(there)) * time.Minute)
		there = append(there, f)
	}
	add("a", "", OriginPolicy)
	add("b", "a", OriginPolicy)
	add("c", "b", OriginPolicy)
	add("d", "", OriginPolicy)
	add("e", "d", OriginManual)
	add("f", "d", OriginPolicy)
	add("g", "", OriginPolicy)
	for _, c := range []struct {
		keep   int
		needed []string
		want   string
	}{
		{1, nil, "c b f a"}, // e is manual and needs d
		{2, nil, "c b a"},
		{4, nil, ""}, // c stays, and needs both
		{1, []string{"b"}, "c f"},
	} {
		var got []string
		for _, f := range obsolete(there, schedule.Keep{Last: c.keep}, c.needed, now) {
			got = append(got, f.Backup)
		}
		if strings.Join(got, " ") != c.want {
			t.Errorf("keep %d, needed %v: removes %v, want %q", c.keep, c.needed, got, c.want)
		}
	}
}
