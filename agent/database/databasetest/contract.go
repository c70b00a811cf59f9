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
	k := &contract{t, edge, c}
	k.makes()
	k.runs()
	k.changes("work_mem", "2MB", database.EffectReload)
	k.changes("shared_buffers", "20MB", database.EffectRestart)
	k.refuses()
	k.ends()
}

// contract is a cluster under the contract.
type contract struct {
	t    *testing.T
	edge Edge
	c    database.Cluster
}

func (k *contract) must(err error) {
	k.t.Helper()
	if err != nil {
		k.t.Fatal(err)
	}
}

func (k *contract) inspect() database.Condition {
	k.t.Helper()
	h, err := k.edge.Inspect(k.t.Context(), k.c)
	k.must(err)
	return h
}

func (k *contract) run() time.Time {
	k.t.Helper()
	started, err := k.edge.Run(k.t.Context(), k.c)
	k.must(err)
	return started
}

// makes: what is made twice is made once, and nothing runs before.
func (k *contract) makes() {
	t, ctx := k.t, k.t.Context()
	if h := k.inspect(); h.Made || h.Running {
		t.Errorf("before anything: %+v", h)
	}
	if versions, err := k.edge.Versions(ctx, k.c.Server); err != nil || len(versions) == 0 || versions[0] != k.c.Major {
		t.Errorf("versions %v %v", versions, err)
	}
	if _, err := k.edge.Run(ctx, k.c); !fault.Is(err, fault.NotFound) {
		t.Errorf("run what is not made: %v", err)
	}
	identity, err := k.edge.Create(ctx, k.c)
	k.must(err)
	if again, err := k.edge.Create(ctx, k.c); err != nil || again != identity || identity == "" {
		t.Errorf("created twice: %q, then %q: %v", identity, again, err)
	}
	k.c.Identity = identity
}

// runs: what is run twice goes on, and another cluster's files are not run.
func (k *contract) runs() {
	t, ctx := k.t, k.t.Context()
	started := k.run()
	k.must(k.edge.Grant(ctx, k.c))
	if again := k.run(); !again.Equal(started) {
		t.Errorf("run twice: since %s, then since %s", started, again)
	}
	k.must(k.edge.Grant(ctx, k.c))
	if h := k.inspect(); !h.Started.Equal(started) || !h.Made || !h.Running || h.Identity != k.c.Identity || h.Problem != "" || started.IsZero() {
		t.Errorf("it runs since %s: %+v", started, h)
	}
	other := k.c
	other.Identity = "1"
	if _, err := k.edge.Run(ctx, other); !fault.Is(err, fault.Precondition) {
		t.Errorf("run another identity: %v", err)
	}
}

// changes: a parameter needs what Check says, and gets it.
func (k *contract) changes(name, value string, want database.Effect) {
	k.t.Helper()
	p := maps.Clone(k.c.Parameters)
	p[name] = value
	if e, err := k.edge.Check(k.t.Context(), k.c.Server, k.c.Major, k.c.Parameters, p); err != nil || e != want {
		k.t.Errorf("%s = %s needs %q, want %q: %v", name, value, e, want, err)
	}
	before := k.inspect()
	k.c.Parameters = p
	k.run()
	after := k.inspect()
	if restarted := !after.Started.Equal(before.Started); restarted != (want == database.EffectRestart) || !after.Running || after.Problem != "" {
		k.t.Errorf("%s = %s: was %+v, is %+v", name, value, before, after)
	}
}

// refuses: what PostgreSQL does not take is blamed by name.
func (k *contract) refuses() {
	t, ctx := k.t, k.t.Context()
	if e, err := k.edge.Check(ctx, k.c.Server, k.c.Major, k.c.Parameters, k.c.Parameters); err != nil || e != database.EffectNone {
		t.Errorf("no change needs %q: %v", e, err)
	}
	for name, value := range map[string]string{"no_such_parameter": "1", "work_mem": "bogus"} {
		_, err := k.edge.Check(ctx, k.c.Server, k.c.Major, nil, map[string]string{name: value})
		if !fault.Is(err, fault.Invalid) || fault.FieldOf(err) != "parameters."+name {
			t.Errorf("%s = %s: %v, blames %q", name, value, err, fault.FieldOf(err))
		}
	}
}

// ends: a stop leaves the files, a removal nothing; both may be repeated.
func (k *contract) ends() {
	t, ctx := k.t, k.t.Context()
	ended := make(chan error, 1)
	go func() { ended <- k.edge.Wait(ctx, k.c.ID) }()
	k.must(k.edge.Stop(ctx, k.c.ID, time.Minute))
	k.must(k.edge.Stop(ctx, k.c.ID, time.Minute))
	k.must(<-ended)
	if h := k.inspect(); !h.Made || h.Running || h.Identity != k.c.Identity {
		t.Errorf("it is stopped: %+v", h)
	}
	k.must(k.edge.Wait(ctx, k.c.ID)) // no guard has ended
	k.run()
	k.must(k.edge.Remove(ctx, k.c))
	k.must(k.edge.Remove(ctx, k.c))
	if h := k.inspect(); h.Made || h.Running {
		t.Errorf("it is removed: %+v", h)
	}
}
