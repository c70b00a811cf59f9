package recovery

import (
	"context"
	"errors"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/reflejo/terraform-provider-reflejo/agent/backup"
	"github.com/reflejo/terraform-provider-reflejo/agent/backup/backuptest"
	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
	"github.com/reflejo/terraform-provider-reflejo/agent/snapshot"
	"github.com/reflejo/terraform-provider-reflejo/agent/vserver"
)

const (
	first  = "dir:/backups/first"
	second = "dir:/backups/second"
)

// world is what a manager on host beta works with: targets are folders, everything else is
// in memory. It is all of the manager's edges itself.
type world struct {
	m      *Manager
	dir    string
	silent map[string]error  // by target or host: nobody answers there
	before map[string]func() // by target: what happens between the look at a claim and the new one

	found  []backup.Found
	listed []backup.View

	here     map[string]vserver.Record
	capture  vserver.Capture
	imported []snapshot.Record
	from     snapshot.From
	fail     error // of the next import

	reclaimed map[string]uint64 // server → term
	awaits    string

	terms map[string]uint64 // by host
}

func newWorld(t *testing.T) *world {
	w := &world{dir: t.TempDir(), silent: map[string]error{}, before: map[string]func(){}, here: map[string]vserver.Record{}, terms: map[string]uint64{}, reclaimed: map[string]uint64{}}
	w.m = NewManager(Config{Host: "beta", Backups: w, Stores: w, Snapshots: w, Servers: w, Moves: w, Peers: peers{w}})
	return w
}

func (w *world) List(string) []backup.View { return w.listed }
func (w *world) Catalog(_ context.Context, target, _ string) ([]backup.Found, error) {
	return w.found, w.silent[target]
}

func (w *world) Open(_ context.Context, target string) (backup.Target, error) {
	if err := w.silent[target]; err != nil {
		return nil, err
	}
	return &place{backup.NewDir(w.dir, filepath.Base(target)), w.before[target]}, nil
}

// place is a target at which something happens just after it was first looked at.
type place struct {
	backup.Target
	then func()
}

func (p *place) Load(ctx context.Context, server string) ([]byte, error) {
	defer func() {
		if p.then != nil {
			p.then()
			p.then = nil
		}
	}()
	return p.Target.Load(ctx, server)
}

func (w *world) Import(_ context.Context, rec snapshot.Record, from snapshot.From) (snapshot.View, error) {
	if err := w.fail; err != nil {
		w.fail = nil
		return snapshot.View{}, err
	}
	w.imported, w.from = append(w.imported, rec), from
	return snapshot.View{Record: rec}, nil
}

func (w *world) Owned(id string) bool  { _, ok := w.here[id]; return ok }
func (w *world) Term(id string) uint64 { return w.here[id].Term }

func (w *world) Get(id string) (vserver.View, error) {
	rec, ok := w.here[id]
	if !ok {
		return vserver.View{}, fault.New(fault.NotFound, "it is not here")
	}
	return vserver.View{Spec: rec.Spec, Leaving: rec.Leaving}, nil
}

func (w *world) Awaits(string) string { return w.awaits }
func (w *world) Reclaim(_ context.Context, server, lost string, term uint64) error {
	rec := w.here[server]
	rec.Leaving, rec.Term = "", term
	w.here[server] = rec
	w.reclaimed[server+" "+lost] = term
	return nil
}

func (w *world) Revive(_ context.Context, spec vserver.Spec, c vserver.Capture, term uint64) (vserver.View, error) {
	if rec, ok := w.here[spec.ID]; ok && rec.Source != c.ID {
		return vserver.View{}, fault.New(fault.Exists, "it is here")
	} else if !ok {
		w.here[spec.ID] = vserver.Record{Spec: spec, Source: c.ID, Term: term}
		w.capture = c
	}
	return vserver.View{Spec: spec}, nil
}

// peers has the other hosts, whose Term would be the servers' one otherwise.
type peers struct{ w *world }

func (p peers) Hosts() (all []string) {
	for host := range p.w.terms {
		all = append(all, host)
	}
	slices.Sort(all)
	return all
}

func (p peers) Term(_ context.Context, host, _ string) (uint64, error) {
	return p.w.terms[host], p.w.silent[host]
}

// backup puts one of the server on the day of the month, and returns its id.
func (w *world) backup(server string, day int, change func(*backup.Found)) string {
	m := backuptest.Manifest(server, 1)
	m.Snapshot.Created = time.Date(2026, 3, day, 0, 0, 0, 0, time.UTC)
	f := backup.Found{File: backup.File{Ref: backup.Ref{Server: server, Backup: m.ID}, Complete: true}, Target: first, Manifest: m}
	if change != nil {
		change(&f)
	}
	w.found = append(w.found, f)
	return m.ID
}

func damage(f *backup.Found) { f.Manifest, f.Problem = backup.Manifest{}, "it is torn" }

func (w *world) claim(t *testing.T, target, server, host string, generation uint64) {
	t.Helper()
	err := backup.PutClaim(t.Context(), backup.NewDir(w.dir, filepath.Base(target)), backup.Claim{Server: server, Host: host, Generation: generation})
	if err != nil {
		t.Fatal(err)
	}
}

func (w *world) claimed(t *testing.T, target, server string) backup.Claim {
	t.Helper()
	c, err := backup.GetClaim(t.Context(), backup.NewDir(w.dir, filepath.Base(target)), server)
	if err != nil && !fault.Is(err, fault.NotFound) {
		t.Fatal(err)
	}
	return c
}

func web() vserver.Spec {
	return vserver.Spec{ID: uuid.NewString(), Name: "web", BackupPolicy: vserver.BackupPolicy{Target: first}}
}

var away = fault.New(fault.Unavailable, "nobody answers")

func TestRecoverChoosesABackup(t *testing.T) {
	for name, c := range map[string]struct {
		make func(w *world, server string) (want, ask string)
		kind fault.Kind
	}{
		"the newest": {make: func(w *world, s string) (string, string) { w.backup(s, 1, nil); return w.backup(s, 2, nil), "" }},
		"past damaged ones": {make: func(w *world, s string) (string, string) {
			id := w.backup(s, 1, nil)
			w.backup(s, 2, damage)
			return id, ""
		}},
		"a named one": {make: func(w *world, s string) (string, string) {
			id := w.backup(s, 1, nil)
			w.backup(s, 2, nil)
			return id, id
		}},
		"none":                 {make: func(*world, string) (string, string) { return "", "" }, kind: fault.NotFound},
		"only damaged ones":    {make: func(w *world, s string) (string, string) { w.backup(s, 1, damage); return "", "" }, kind: fault.NotFound},
		"a named, damaged one": {make: func(w *world, s string) (string, string) { w.backup(s, 1, nil); return "", w.backup(s, 2, damage) }, kind: fault.NotFound},
		"another's name":       {make: func(w *world, s string) (string, string) { w.backup(s, 1, nil); return "", uuid.NewString() }, kind: fault.NotFound},
	} {
		t.Run(name, func(t *testing.T) {
			w, spec := newWorld(t), web()
			want, ask := c.make(w, spec.ID)
			r, err := w.m.Recover(t.Context(), Request{Spec: spec, LostHost: "alpha", Backup: ask})
			if want == "" {
				if !fault.Is(err, c.kind) || w.claimed(t, first, spec.ID).Generation != 0 || len(w.imported)+len(w.here) > 0 {
					t.Fatalf("%v, want %s and nothing done", err, c.kind)
				}
				return
			}
			if err != nil || r.Backup != want || w.from != (snapshot.From{Target: first, Backup: want}) || r.Server.Spec.ID != spec.ID {
				t.Fatalf("%+v, %v, want %s of %+v", r, err, want, w.found)
			}
			if rec := w.imported[0]; w.capture.ID != rec.ID || !r.At.Equal(rec.Created) || rec.Server != spec.ID {
				t.Errorf("imported %+v, revived from %+v", rec, w.capture)
			}
		})
	}
}

func TestRecoverRefuses(t *testing.T) {
	w, spec := newWorld(t), web()
	w.backup(spec.ID, 1, nil)
	bare := spec
	bare.BackupPolicy = vserver.BackupPolicy{}
	for field, r := range map[string]Request{
		"host":                 {Spec: spec, LostHost: "beta"},
		"backup_policy.target": {Spec: bare, LostHost: "alpha"},
	} {
		if _, err := w.m.Recover(t.Context(), r); fault.FieldOf(err) != field {
			t.Errorf("%+v: %v, want to blame %s", r, err, field)
		}
	}
	if _, err := w.m.Recover(t.Context(), Request{Spec: spec}); fault.FieldOf(err) != "host" {
		t.Errorf("no lost host: %v", err)
	}
	w.here[spec.ID] = vserver.Record{Term: 3, Source: "something else"}
	if _, err := w.m.Recover(t.Context(), Request{Spec: spec, LostHost: "alpha"}); !fault.Is(err, fault.Exists) {
		t.Errorf("a server that is here: %v", err)
	}
	if c := w.claimed(t, first, spec.ID); c.Generation != 0 {
		t.Errorf("refused, and claimed: %+v", c)
	}
	delete(w.here, spec.ID)
	w.silent[first] = away
	if _, err := w.m.Recover(t.Context(), Request{Spec: spec, LostHost: "alpha"}); !fault.Is(err, fault.Unavailable) {
		t.Errorf("the target is away: %v", err)
	}
}

// The term is higher than any that anybody has, or had, the server in.
func TestRecoverRaisesTheTerm(t *testing.T) {
	for name, c := range map[string]struct {
		prepare func(w *world, server string)
		want    uint64
	}{
		"nobody ever took it over":  {func(*world, string) {}, 1},
		"another did":               {func(w *world, s string) { w.claim(t, first, s, "alpha", 4) }, 5},
		"this one did, and lost it": {func(w *world, s string) { w.claim(t, first, s, "beta", 4) }, 5},
		"a backup tells of a later one": {func(w *world, s string) {
			w.claim(t, first, s, "alpha", 4)
			w.backup(s, 2, func(f *backup.Found) { f.Manifest.Snapshot.Term = 7 })
		}, 8},
		"the policy's target does": {func(w *world, s string) { w.claim(t, second, s, "alpha", 6) }, 7},
		"the policy's is lost too": {func(w *world, s string) { w.claim(t, second, s, "alpha", 6); w.silent[second] = away }, 1},
	} {
		t.Run(name, func(t *testing.T) {
			w, spec := newWorld(t), web()
			spec.BackupPolicy.Target = second
			w.backup(spec.ID, 1, nil)
			c.prepare(w, spec.ID)
			if _, err := w.m.Recover(t.Context(), Request{Spec: spec, LostHost: "alpha", Target: first}); err != nil {
				t.Fatal(err)
			}
			for _, target := range []string{first, second} {
				if got := w.claimed(t, target, spec.ID); w.silent[target] == nil && (got.Generation != c.want || got.Host != "beta") {
					t.Errorf("claim at %s: %+v, want generation %d", target, got, c.want)
				}
			}
			if got := w.here[spec.ID].Term; got != c.want {
				t.Errorf("term %d, want %d", got, c.want)
			}
		})
	}
}

func TestRecoverAgainIsTheSameRequest(t *testing.T) {
	w, spec := newWorld(t), web()
	id := w.backup(spec.ID, 1, nil)
	r := Request{Spec: spec, LostHost: "alpha"}
	w.fail = errors.New("the agent is killed")
	if _, err := w.m.Recover(t.Context(), r); err == nil {
		t.Fatal("no error")
	}
	for range 2 {
		if got, err := w.m.Recover(t.Context(), r); err != nil || got.Backup != id {
			t.Fatalf("%+v, %v", got, err)
		}
		if n, c := w.here[spec.ID].Term, w.claimed(t, first, spec.ID).Generation; n != 2 || c != n { // the first attempt had claimed 1
			t.Errorf("term %d, claimed %d", n, c)
		}
	}
	for _, rec := range w.imported {
		if rec.ID != w.capture.ID {
			t.Errorf("imported %s and %s", rec.ID, w.capture.ID)
		}
	}
}

func TestRecoverLosesARace(t *testing.T) {
	w, spec := newWorld(t), web()
	w.backup(spec.ID, 1, nil)
	w.claim(t, first, spec.ID, "alpha", 2)
	w.before[first] = func() { w.claim(t, first, spec.ID, "gamma", 3) }
	if _, err := w.m.Recover(t.Context(), Request{Spec: spec, LostHost: "alpha"}); !fault.Is(err, fault.Aborted) || !strings.Contains(err.Error(), "gamma") {
		t.Errorf("%v, want Aborted that names gamma", err)
	}
	if len(w.here)+len(w.imported) > 0 {
		t.Error("it was taken over all the same")
	}
}

func TestSuperseded(t *testing.T) {
	for name, c := range map[string]struct {
		targets []string // none, or which
		prepare func(w *world, t *testing.T, server string)
		want    string
		wait    bool
	}{
		"the target knows nobody":            {[]string{first}, nil, "", false},
		"the target names another":           {[]string{first}, func(w *world, t *testing.T, s string) { w.claim(t, first, s, "gamma", 3) }, "gamma", false},
		"the target names another of old":    {[]string{first}, func(w *world, t *testing.T, s string) { w.claim(t, first, s, "gamma", 2) }, "", false},
		"the target names this one":          {[]string{first}, func(w *world, t *testing.T, s string) { w.claim(t, first, s, "beta", 3) }, "", false},
		"the target answers, peers need not": {[]string{first}, func(w *world, _ *testing.T, _ string) { w.terms["alpha"], w.silent["alpha"] = 0, away }, "", false},
		"the second target names another":    {[]string{first, second}, func(w *world, t *testing.T, s string) { w.claim(t, second, s, "gamma", 3) }, "gamma", false},
		"one of two is silent, and no peers": {[]string{first, second}, func(w *world, _ *testing.T, _ string) { w.silent[second] = away }, "", true},
		"silent, the other names another":    {[]string{first, second}, func(w *world, t *testing.T, s string) { w.silent[first] = away; w.claim(t, second, s, "gamma", 3) }, "gamma", false},
		"silent, peers know nobody": {[]string{first}, func(w *world, _ *testing.T, _ string) {
			w.silent[first] = away
			w.terms["alpha"], w.terms["gamma"] = 0, 2
		}, "", false},
		"silent, a peer has it": {[]string{first}, func(w *world, _ *testing.T, _ string) {
			w.silent[first] = away
			w.terms["alpha"], w.terms["gamma"] = 0, 3
		}, "gamma", false},
		"silent, and so is a peer": {[]string{first}, func(w *world, _ *testing.T, _ string) {
			w.silent[first], w.silent["alpha"] = away, away
			w.terms["alpha"] = 0
		}, "", true},
		"silent, a peer has it, one is so": {[]string{first}, func(w *world, _ *testing.T, _ string) {
			w.silent[first], w.silent["alpha"] = away, away
			w.terms["alpha"], w.terms["gamma"] = 0, 3
		}, "gamma", false},
		"silent, no peers":                 {[]string{first}, func(w *world, _ *testing.T, _ string) { w.silent[first] = away }, "", true},
		"the claim can't be read":          {[]string{first}, func(w *world, t *testing.T, s string) { w.scribble(t, first, s) }, "", true},
		"its source knows nobody":          {[]string{first}, func(w *world, _ *testing.T, _ string) { w.awaits, w.terms["alpha"] = "alpha", 2 }, "", false},
		"its source took it back":          {[]string{first}, func(w *world, _ *testing.T, _ string) { w.awaits, w.terms["alpha"] = "alpha", 3 }, "alpha", false},
		"its source is silent":             {[]string{first}, func(w *world, _ *testing.T, _ string) { w.awaits, w.silent["alpha"] = "alpha", away }, "", true},
		"its source is silent, no targets": {nil, func(w *world, _ *testing.T, _ string) { w.awaits, w.silent["alpha"] = "alpha", away }, "", true},
		"no targets":                       {nil, func(w *world, _ *testing.T, _ string) { w.terms["alpha"], w.silent["alpha"] = 0, away }, "", false},
		"no targets, a peer has it":        {nil, func(w *world, _ *testing.T, _ string) { w.terms["gamma"] = 3 }, "gamma", false},
	} {
		t.Run(name, func(t *testing.T) {
			w, spec := newWorld(t), web()
			spec.BackupPolicy.Target = ""
			for i, target := range c.targets {
				if i == 0 {
					spec.BackupPolicy.Target = target
				}
				w.listed = append(w.listed, backup.View{Target: target})
			}
			if c.prepare != nil {
				c.prepare(w, t, spec.ID)
			}
			host, err := w.m.Superseded(t.Context(), vserver.Record{Spec: spec, Term: 2})
			if host != c.want || (err != nil) != c.wait {
				t.Errorf("%q, %v, want %q, to wait: %t", host, err, c.want, c.wait)
			}
		})
	}
}

// scribble makes a claim that nobody can read.
func (w *world) scribble(t *testing.T, target, server string) {
	t.Helper()
	if err := backup.NewDir(w.dir, filepath.Base(target)).Swap(t.Context(), server, nil, []byte("{")); err != nil {
		t.Fatal(err)
	}
}

func TestImport(t *testing.T) {
	w, server, id := newWorld(t), uuid.NewString(), uuid.NewString()
	good, bad := w.backup(server, 1, nil), w.backup(server, 2, damage)
	for range 2 {
		v, err := w.m.Import(t.Context(), ImportRequest{Snapshot: id, Target: first, Backup: good, Name: "old"})
		if err != nil || v.ID != id || v.Name != "old" || v.Server != server || w.from != (snapshot.From{Target: first, Backup: good}) {
			t.Fatalf("%+v, %v", v, err)
		}
	}
	if v, err := w.m.Import(t.Context(), ImportRequest{Snapshot: id, Target: first, Backup: good}); err != nil || v.Name != "nightly" {
		t.Errorf("without a name: %+v, %v", v, err)
	}
	for backup, kind := range map[string]fault.Kind{bad: fault.Precondition, uuid.NewString(): fault.NotFound} {
		if _, err := w.m.Import(t.Context(), ImportRequest{Snapshot: id, Target: first, Backup: backup}); !fault.Is(err, kind) {
			t.Errorf("%v, want %s", err, kind)
		}
	}
	w.silent[first] = away
	if _, err := w.m.Import(t.Context(), ImportRequest{Snapshot: id, Target: first, Backup: good}); !fault.Is(err, fault.Unavailable) {
		t.Errorf("the target is away: %v", err)
	}
}

// A server that was being handed over to the lost host is taken back as it is, without a
// backup, in a higher term, which is claimed wherever that is possible.
func TestRecoverTakesBack(t *testing.T) {
	for name, c := range map[string]struct {
		prepare func(w *world, t *testing.T, server string)
		want    uint64 // 0: another host has it
	}{
		"nobody ever took it over":     {nil, 3},
		"a claim of its own is higher": {func(w *world, t *testing.T, s string) { w.claim(t, first, s, "beta", 5) }, 6},
		"an old claim of another":      {func(w *world, t *testing.T, s string) { w.claim(t, first, s, "gamma", 2) }, 3},
		"another has it":               {func(w *world, t *testing.T, s string) { w.claim(t, first, s, "gamma", 3) }, 0},
		"its target is lost too":       {func(w *world, _ *testing.T, _ string) { w.silent[first] = away }, 3},
	} {
		t.Run(name, func(t *testing.T) {
			w, spec := newWorld(t), web()
			w.here[spec.ID] = vserver.Record{Spec: spec, Term: 2, Leaving: "alpha"}
			if c.prepare != nil {
				c.prepare(w, t, spec.ID)
			}
			if _, err := w.m.Recover(t.Context(), Request{Spec: spec, LostHost: "gamma"}); !fault.Is(err, fault.Precondition) {
				t.Errorf("another host is lost: %v", err)
			}
			r, err := w.m.Recover(t.Context(), Request{Spec: spec, LostHost: "alpha"})
			if c.want == 0 {
				if !fault.Is(err, fault.Aborted) || len(w.reclaimed) > 0 {
					t.Errorf("%v, want Aborted", err)
				}
				return
			}
			if err != nil || r.Backup != "" || !r.At.IsZero() || r.Server.Leaving != "" || w.reclaimed[spec.ID+" alpha"] != c.want {
				t.Fatalf("%+v, %v, %v", r, err, w.reclaimed)
			}
			if got := w.claimed(t, first, spec.ID); w.silent[first] == nil && (got.Host != "beta" || got.Generation != c.want) {
				t.Errorf("claimed %+v", got)
			}
		})
	}
}
