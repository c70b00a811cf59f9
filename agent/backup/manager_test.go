package backup

import (
	"context"
	"errors"
	"io"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
	"github.com/reflejo/terraform-provider-reflejo/agent/snapshot"
)

func TestBackupAndImport(t *testing.T) {
	h := newHost(t, 1, 5<<20+4096)
	a := newAgent(t, h)
	defer a.Close()
	id := newID()
	first := h.take(newID())
	v := a.make(Request{ID: id, Snapshot: first.ID})
	if v.State != PhaseReady || v.Size == 0 || v.Parent != "" || v.Name != "nightly" || v.Origin != OriginManual || v.Checksum != first.Checksum || v.Operation.Kind != "" {
		t.Fatalf("%+v", v)
	}
	a.check(h, v)
	second := h.take(newID())
	inc := a.make(Request{ID: newID(), Snapshot: second.ID, Incremental: true})
	if inc.State != PhaseReady || inc.Parent != id {
		t.Fatalf("%+v", inc)
	}
	a.check(h, inc)
	// The same request again is the same backup; another one under its id is refused.
	if again, err := a.Create(t.Context(), Request{ID: id, Snapshot: first.ID, Target: a.target}); err != nil || again.State != PhaseReady {
		t.Errorf("%+v, %v", again, err)
	}
	if _, err := a.Create(t.Context(), Request{ID: id, Snapshot: second.ID, Target: a.target}); !fault.Is(err, fault.Exists) {
		t.Errorf("another request of the id: %v", err)
	}
	// What builds on it keeps it.
	if err := a.Delete(t.Context(), "", id); !fault.Is(err, fault.Precondition) || !strings.Contains(err.Error(), inc.ID) {
		t.Errorf("delete a parent: %v, want Precondition naming %s", err, inc.ID)
	}
	all, err := a.Catalog(t.Context(), a.target, h.server)
	if err != nil || len(all) != 2 || all[0].View().ID != id || all[1].View().Parent != id || all[1].View().Checksum != second.Checksum {
		t.Fatalf("catalog: %+v, %v", all, err)
	}
	a.restart()
	if got := a.List(h.server); len(got) != 2 || got[0].State != PhaseReady || got[1].Size != inc.Size {
		t.Errorf("after a restart: %+v", got)
	}
	for _, id := range []string{inc.ID, id} {
		if err := a.Delete(t.Context(), "", id); err != nil {
			t.Fatal(err)
		}
		for len(a.List("")) > 0 && a.List("")[len(a.List(""))-1].ID == id {
			time.Sleep(time.Millisecond)
		}
	}
	if left, err := os.ReadDir(a.dir); err != nil || len(left) != 0 {
		t.Errorf("left at the target: %v, %v", left, err)
	}
}

func TestCreateRefuses(t *testing.T) {
	h := newHost(t, 1, 1<<20)
	a := newAgent(t, h)
	defer a.Close()
	s := h.take(newID())
	good := Request{ID: newID(), Snapshot: s.ID, Target: a.target}
	for kind, change := range map[fault.Kind][]func(*Request){
		fault.Invalid: {func(r *Request) { r.ID = "x" }, func(r *Request) { r.Snapshot = "../x" }, func(r *Request) { r.Target = "ftp:x" },
			func(r *Request) { r.Name = "No Name" }, func(r *Request) { r.Origin = "else" }},
		fault.Precondition: {func(r *Request) { r.Target = "dir:/etc" }, func(r *Request) { r.Target = "host:beta" }},
		fault.NotFound:     {func(r *Request) { r.Snapshot = newID() }},
	} {
		for _, f := range change {
			req := good
			f(&req)
			if _, err := a.Create(t.Context(), req); !fault.Is(err, kind) {
				t.Errorf("%+v: %v, want %s", req, err, kind)
			}
		}
	}
	if len(a.List("")) != 0 {
		t.Error("refused requests are recorded")
	}
}

// The target fails at every byte; the same request once more gives the same file.
func TestInterruptedAtEveryByteGoesOn(t *testing.T) {
	h := newHost(t, 7, 16384)
	h.now = &disk{content: make([]byte, 16384), data: []snapshot.Range{{Offset: 4096, Length: 4096}}}
	copy(h.now.content[5000:], "what this disk holds")
	s := h.take(newID())
	whole := newAgent(t, h)
	defer whole.Close()
	id := newID()
	v := whole.make(Request{ID: id, Snapshot: s.ID})
	want, err := os.ReadFile(whole.file(v))
	if err != nil {
		t.Fatal(err)
	}
	head, err := encodeHead(*whole.record(whole.backups[id]).Manifest)
	if err != nil {
		t.Fatal(err)
	}
	for n := int64(0); n <= int64(len(want)); n++ {
		if at := int64(len(head)); n > 0 && n < at-50 {
			n = min(n+at/20, at-50) // of the head nothing is of use before it is whole
		}
		a := newAgent(t, h)
		a.stores.set(n, syscall.ENOSPC)
		v := a.make(Request{ID: id, Snapshot: s.ID})
		if v.State != PhaseFailed || v.Operation.ErrKind != fault.Exhausted.String() {
			if n < int64(len(want)) {
				t.Fatalf("full after byte %d: %+v", n, v)
			}
		}
		a.restart()
		a.stores.set(-1, nil)
		v = a.make(Request{ID: id, Snapshot: s.ID})
		got, err := os.ReadFile(a.file(v))
		if err != nil || v.State != PhaseReady || !slices.Equal(got, want) {
			t.Fatalf("interrupted at byte %d, then gone on with: %s, %v, same %v", n, v.State, err, slices.Equal(got, want))
		}
		a.Close()
	}
}

// An agent that is killed while it writes goes on by itself, also after the file is complete
// and before that is recorded.
func TestKilledAgentGoesOn(t *testing.T) {
	h := newHost(t, 3, 5<<20)
	s := h.take(newID())
	a := newAgent(t, h)
	defer func() { a.Close() }()
	a.stores.set(100_000, fault.New(fault.Unavailable, "the link is cut"))
	id := newID()
	if _, err := a.Create(t.Context(), Request{ID: id, Snapshot: s.ID, Target: a.target}); err != nil {
		t.Fatal(err)
	}
	for { // until it waits for its target
		v, err := a.Get(id)
		if err != nil {
			t.Fatal(err)
		}
		if strings.HasPrefix(v.Operation.Step, "wait for target") {
			break
		}
		time.Sleep(time.Millisecond)
	}
	a.Close()
	a.stores.set(-1, nil)
	a.start()
	v := a.wait(id)
	if v.State != PhaseReady {
		t.Fatalf("%+v", v)
	}
	a.check(h, v)
	rec := a.record(a.backups[id])
	a.Close()
	rec.Phase, rec.Size = PhaseWriting, 0
	if err := a.cfg.Records.Put(id, rec); err != nil {
		t.Fatal(err)
	}
	a.start()
	if again := a.wait(id); again.State != PhaseReady || again.Size != v.Size {
		t.Fatalf("complete, not recorded: %+v", again)
	}
}

func TestTargetThatIsAwayIsWaitedFor(t *testing.T) {
	h := newHost(t, 3, 2<<20)
	s := h.take(newID())
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		a := newAgent(t, h)
		defer a.Close()
		a.dir = dir
		a.stores.goAway(fault.New(fault.Unavailable, "it is away"))
		began := time.Now()
		v := a.make(Request{ID: newID(), Snapshot: s.ID})
		if took := time.Since(began); v.State != PhaseFailed || v.Operation.ErrKind != fault.Unavailable.String() || took != 61*time.Second {
			t.Fatalf("after %s: %+v", took, v)
		}
		req := Request{ID: v.ID, Snapshot: s.ID, Target: a.target}
		if _, err := a.Create(t.Context(), req); err != nil {
			t.Fatal(err)
		}
		time.Sleep(30 * time.Second)
		a.stores.goAway(nil)
		if v := a.wait(v.ID); v.State != PhaseReady {
			t.Fatalf("%+v", v)
		}
	})
}

func TestDeleteWhileWriting(t *testing.T) {
	h := newHost(t, 3, 2<<20)
	s := h.take(newID())
	a := newAgent(t, h)
	defer a.Close()
	a.stores.set(6000, fault.New(fault.Unavailable, "the link is cut"))
	id := newID()
	if _, err := a.Create(t.Context(), Request{ID: id, Snapshot: s.ID, Target: a.target}); err != nil {
		t.Fatal(err)
	}
	ch, err := a.Watch(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	if !a.Uses(s.ID) {
		t.Error("the snapshot is not in use while it is written")
	}
	if err := a.Delete(t.Context(), "", id); err != nil {
		t.Fatal(err)
	}
	var last View
	for last = range ch {
	}
	if _, err := a.Get(id); !last.Gone || !fault.Is(err, fault.NotFound) || a.Uses(s.ID) {
		t.Errorf("last view %+v; %v", last, err)
	}
	if left, err := os.ReadDir(a.dir); err != nil || len(left) != 0 {
		t.Errorf("left at the target: %v, %v", left, err)
	}
}

func TestChainsEnd(t *testing.T) {
	h := newHost(t, 5, 1<<20)
	a := newAgent(t, h)
	defer a.Close()
	synced := map[string]int{}
	for i := range maxDepth + 3 {
		v := a.make(Request{ID: newID(), Snapshot: h.take(newID()).ID, Incremental: true})
		if wantFull := i == 0 || i == maxDepth+1; v.State != PhaseReady || (v.Parent == "") != wantFull {
			t.Fatalf("backup %d: %+v", i, v)
		}
		synced[v.ID] = i
		if i == maxDepth {
			a.check(h, v)
		}
	}
}

// Without the parent's snapshot on this host there is nothing to find the changes against.
func TestIncrementWithoutBaseIsFull(t *testing.T) {
	h := newHost(t, 5, 2<<20)
	a := newAgent(t, h)
	defer a.Close()
	base := h.take(newID())
	a.make(Request{ID: newID(), Snapshot: base.ID})
	if err := h.Drop(t.Context(), base.ID); err != nil {
		t.Fatal(err)
	}
	v := a.make(Request{ID: newID(), Snapshot: h.take(newID()).ID, Incremental: true})
	if v.State != PhaseReady || v.Parent != "" {
		t.Fatalf("%+v", v)
	}
	// One that has begun as an increment and loses its base on the way begins anew.
	next := h.take(newID())
	a.stores.set(6000, syscall.ENOSPC)
	half := a.make(Request{ID: newID(), Snapshot: next.ID, Incremental: true})
	if half.State != PhaseFailed || half.Parent != v.ID {
		t.Fatalf("%+v", half)
	}
	if err := h.Drop(t.Context(), v.Snapshot); err != nil {
		t.Fatal(err)
	}
	a.stores.set(-1, nil)
	full := a.make(Request{ID: half.ID, Snapshot: next.ID, Incremental: true})
	if full.State != PhaseReady || full.Parent != "" {
		t.Fatalf("%+v", full)
	}
	a.check(h, full)
}

// A snapshot whose checksum is not known yet gets one for its backup.
func TestBackupOfSnapshotWithoutChecksum(t *testing.T) {
	h := newHost(t, 5, 2<<20)
	a := newAgent(t, h)
	defer a.Close()
	s := h.take(newID())
	want := s.Checksum
	s.Checksum = ""
	h.records[s.ID] = s
	if v := a.make(Request{ID: newID(), Snapshot: s.ID}); v.State != PhaseReady || v.Checksum != want {
		t.Fatalf("%+v", v)
	}
}

func TestVerifyAndImportFindDamage(t *testing.T) {
	h := newHost(t, 5, 5<<20)
	a := newAgent(t, h)
	defer a.Close()
	full := a.make(Request{ID: newID(), Snapshot: h.take(newID()).ID})
	inc := a.make(Request{ID: newID(), Snapshot: h.take(newID()).ID, Incremental: true})
	whole, err := os.ReadFile(a.file(full))
	if err != nil {
		t.Fatal(err)
	}
	for _, at := range []int{0, 100, len(whole) / 2, len(whole) - 1} {
		bad := slices.Clone(whole)
		bad[at] ^= 4
		if err := os.WriteFile(a.file(full), bad, 0o600); err != nil {
			t.Fatal(err)
		}
		for _, id := range []string{full.ID, inc.ID} {
			r, err := a.Verify(t.Context(), a.target, id, nil)
			if err != nil || r.OK || !strings.Contains(r.Problem, full.ID) || !strings.Contains(r.Problem, "bytes") {
				t.Errorf("byte %d, verify: %+v, %v", at, r, err)
			}
			p := newPool()
			if _, err := a.Import(t.Context(), a.target, id, newID(), p, nil); !fault.Is(err, fault.Precondition) || len(p.snapshots)+len(p.arrivals) != 0 {
				t.Errorf("byte %d, import: %v; %d snapshots", at, err, len(p.snapshots))
			}
		}
	}
	if err := os.Remove(a.file(full)); err != nil {
		t.Fatal(err)
	}
	if r, err := a.Verify(t.Context(), a.target, inc.ID, nil); err != nil || r.OK || !strings.Contains(r.Problem, full.ID) {
		t.Errorf("parent is missing: %+v, %v", r, err)
	}
	if _, err := a.Verify(t.Context(), a.target, full.ID, nil); !fault.Is(err, fault.NotFound) {
		t.Errorf("file is missing: %v", err)
	}
	// A file under another's name is none of it.
	if err := os.WriteFile(a.file(full), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(a.file(inc), a.file(full)); err != nil {
		t.Fatal(err)
	}
	if all, err := a.Catalog(t.Context(), a.target, ""); err != nil || len(all) != 1 || all[0].Problem == "" {
		t.Errorf("catalog: %+v, %v", all, err)
	}
}

// A link that breaks again and again is opened again where reading stopped.
func TestReadingGoesOn(t *testing.T) {
	h := newHost(t, 5, 3<<20)
	a := newAgent(t, h)
	defer a.Close()
	v := a.make(Request{ID: newID(), Snapshot: h.take(newID()).ID})
	inner, err := a.stores.Targets.Open(t.Context(), a.target)
	if err != nil {
		t.Fatal(err)
	}
	body := &reopening{ctx: t.Context(), target: &breaking{Target: inner}, file: Ref{v.Server, v.ID}}
	got, err := io.ReadAll(body)
	want, werr := os.ReadFile(a.file(v))
	if err != nil || werr != nil || !slices.Equal(got, want) {
		t.Errorf("%v, %v, same %v", err, werr, slices.Equal(got, want))
	}
	dead := &reopening{ctx: t.Context(), target: &breaking{Target: inner, dead: true}, file: Ref{v.Server, v.ID}}
	if _, err := io.ReadAll(dead); !fault.Is(err, fault.Unavailable) {
		t.Errorf("a link that brings nothing: %v", err)
	}
}

// breaking is a target whose connections break after some bytes.
type breaking struct {
	Target
	dead bool
}

func (b *breaking) Open(ctx context.Context, f Ref, offset int64) (io.ReadCloser, error) {
	body, err := b.Target.Open(ctx, f, offset)
	if err != nil {
		return nil, err
	}
	n := int64(50_000)
	if b.dead {
		n = 0
	}
	return struct {
		io.Reader
		io.Closer
	}{&broken{body, n}, body}, nil
}

// broken is a link that breaks after n bytes.
type broken struct {
	r io.Reader
	n int64
}

func (b *broken) Read(p []byte) (int, error) {
	if b.n == 0 {
		return 0, fault.Wrap(fault.Unavailable, errors.New("the link broke"))
	}
	n, err := b.r.Read(p[:min(int64(len(p)), b.n)])
	b.n -= int64(n)
	return n, err
}
