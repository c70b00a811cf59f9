package backup

import (
	"os"
	"strings"
	"testing"
	"time"

	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
)

// Backups of a host that is lost are verified and deleted by any host that reaches them.
func TestDeleteAnothersBackup(t *testing.T) {
	h := newHost(t, 1, 1<<20)
	lost := newAgent(t, h)
	full := lost.make(Request{ID: newID(), Snapshot: h.take(newID()).ID})
	inc := lost.make(Request{ID: newID(), Snapshot: h.take(newID()).ID, Incremental: true})
	torn := lost.make(Request{ID: newID(), Snapshot: h.take(newID()).ID})
	lost.stores.set(6000, fault.New(fault.Unavailable, "the host is lost"))
	half, err := lost.Create(t.Context(), Request{ID: newID(), Snapshot: h.take(newID()).ID, Target: lost.target})
	if err != nil {
		t.Fatal(err)
	}
	for { // until it has written what it can
		v, err := lost.Get(half.ID)
		if err != nil {
			t.Fatal(err)
		}
		if strings.HasPrefix(v.Operation.Step, "wait for target") {
			break
		}
		time.Sleep(time.Millisecond)
	}
	lost.Close()
	lost.stores.set(-1, nil)
	if err := os.WriteFile(lost.file(torn), []byte("no backup"), 0o600); err != nil {
		t.Fatal(err)
	}
	a := &agent{t: t, cfg: lost.cfg, stores: lost.stores, target: lost.target, dir: lost.dir}
	a.cfg.Records, a.cfg.Runs = newBucket(), newBucket()
	a.start()
	defer a.Close()
	if r, err := a.Verify(t.Context(), a.target, inc.ID, nil); err != nil || !r.OK {
		t.Errorf("verify another host's: %+v, %v", r, err)
	}
	for name, c := range map[string]struct {
		target, id string
		kind       fault.Kind
	}{
		"without a target":  {"", full.ID, fault.NotFound},
		"built on":          {a.target, full.ID, fault.Precondition},
		"not there":         {a.target, newID(), fault.NotFound},
		"no id":             {a.target, "../x", fault.NotFound},
		"no such target":    {"ftp:x", full.ID, fault.Invalid},
		"not allowed there": {"dir:/etc", full.ID, fault.Precondition},
	} {
		if err := a.Delete(t.Context(), c.target, c.id); !fault.Is(err, c.kind) {
			t.Errorf("%s: %v, want %s", name, err, c.kind)
		}
	}
	mine := a.make(Request{ID: newID(), Snapshot: h.take(newID()).ID, Incremental: true})
	if mine.Parent != "" {
		if err := a.Delete(t.Context(), a.target, mine.Parent); !fault.Is(err, fault.Precondition) || !strings.Contains(err.Error(), mine.ID) {
			t.Errorf("what this host's builds on: %v", err)
		}
	}
	for _, v := range []View{mine, inc, full, torn, half} {
		if err := a.Delete(t.Context(), a.target, v.ID); err != nil {
			t.Errorf("delete %s: %v", v.ID, err)
		}
		if v.ID == mine.ID {
			for len(a.List("")) > 0 {
				time.Sleep(time.Millisecond)
			}
		}
	}
	if left, err := os.ReadDir(a.dir); err != nil || len(left) != 0 {
		t.Errorf("left at the target: %v, %v", left, err)
	}
	if _, err := a.Get(full.ID); !fault.Is(err, fault.NotFound) {
		t.Errorf("%v", err)
	}
}
