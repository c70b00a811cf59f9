package databasetest

import (
	"maps"
	"testing"
	"time"

	"github.com/reflejo/terraform-provider-reflejo/agent/database"
	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
)

// Edge is both sides of PostgreSQL that the manager asks.
type Edge interface {
	database.Clusters
	database.Inspector
}

// RunClusters checks what every Clusters and Inspector has to do. c is in a server that
// runs, is not made yet, and may be removed.
func RunClusters(t *testing.T, edge Edge, c database.Cluster) {
	ctx := t.Context()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	inspect := func() database.Condition {
		t.Helper()
		h, err := edge.Inspect(ctx, c)
		must(err)
		return h
	}
	if h := inspect(); h.Made || h.Running {
		t.Errorf("before anything: %+v", h)
	}
	if versions, err := edge.Versions(ctx, c.Server); err != nil || len(versions) == 0 || versions[0] != c.Major {
		t.Errorf("versions %v %v", versions, err)
	}
	if _, err := edge.Run(ctx, c); !fault.Is(err, fault.NotFound) {
		t.Errorf("run what is not made: %v", err)
	}
	identity, err := edge.Create(ctx, c)
	must(err)
	if again, err := edge.Create(ctx, c); err != nil || again != identity || identity == "" {
		t.Errorf("created twice: %q, then %q: %v", identity, again, err)
	}
	c.Identity = identity
	run := func() time.Time {
		t.Helper()
		started, err := edge.Run(ctx, c)
		must(err)
		return started
	}
	started := run()
	must(edge.Grant(ctx, c))
	if again := run(); !again.Equal(started) {
		t.Errorf("run twice: since %s, then since %s", started, again)
	}
	must(edge.Grant(ctx, c))
	first := inspect()
	if !first.Started.Equal(started) || !first.Made || !first.Running || first.Identity != identity || first.Problem != "" || first.Started.IsZero() {
		t.Errorf("it runs: %+v", first)
	}
	other := c
	other.Identity = "1"
	if _, err := edge.Run(ctx, other); !fault.Is(err, fault.Precondition) {
		t.Errorf("run another identity: %v", err)
	}
	change := func(name, value string, want database.Effect, restarts bool) {
		t.Helper()
		p := maps.Clone(c.Parameters)
		p[name] = value
		if e, err := edge.Check(ctx, c.Server, c.Major, c.Parameters, p); err != nil || e != want {
			t.Errorf("%s = %s needs %q, want %q: %v", name, value, e, want, err)
		}
		before := inspect()
		c.Parameters = p
		run()
		if after := inspect(); after.Started.Equal(before.Started) == restarts || !after.Running || after.Problem != "" {
			t.Errorf("%s = %s: was %+v, is %+v", name, value, before, after)
		}
	}
	change("work_mem", "2MB", database.EffectReload, false)
	change("shared_buffers", "20MB", database.EffectRestart, true)
	if e, err := edge.Check(ctx, c.Server, c.Major, c.Parameters, c.Parameters); err != nil || e != database.EffectNone {
		t.Errorf("no change needs %q: %v", e, err)
	}
	for _, bad := range []map[string]string{{"no_such_parameter": "1"}, {"work_mem": "bogus"}} {
		for name := range bad {
			if _, err := edge.Check(ctx, c.Server, c.Major, nil, bad); !fault.Is(err, fault.Invalid) || fault.FieldOf(err) != "parameters."+name {
				t.Errorf("%v: %v, blames %q", bad, err, fault.FieldOf(err))
			}
		}
	}
	ended := make(chan error, 1)
	go func() { ended <- edge.Wait(ctx, c.ID) }()
	must(edge.Stop(ctx, c.ID, time.Minute))
	must(edge.Stop(ctx, c.ID, time.Minute))
	must(<-ended)
	if h := inspect(); !h.Made || h.Running || h.Identity != identity {
		t.Errorf("it is stopped: %+v", h)
	}
	must(edge.Wait(ctx, c.ID)) // no guard has ended
	run()
	must(edge.Remove(ctx, c))
	must(edge.Remove(ctx, c))
	if h := inspect(); h.Made || h.Running {
		t.Errorf("it is removed: %+v", h)
	}
}
