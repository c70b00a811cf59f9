package backup

import (
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
	"github.com/reflejo/terraform-provider-reflejo/agent/schedule"
)

// Whatever is made, deleted, read and retired at the same time, what is left at the target
// is whole: nothing builds on what is gone. Two hosts share the target.
func TestTogether(t *testing.T) {
	seed := time.Now().UnixNano()
	synctest.Test(t, func(t *testing.T) { together(t, seed) }) // what waits for its target waits no time
}

func together(t *testing.T, seed int64) {
	h := newHost(t, uint64(seed), 1<<20)
	a := newAgent(t, h)
	defer a.Close()
	b := &agent{t: t, cfg: a.cfg, stores: a.stores, target: a.target, dir: a.dir}
	b.cfg.Records, b.cfg.Runs = newBucket(), newBucket()
	b.start()
	defer b.Close()
	var wg sync.WaitGroup
	for w := range 4 {
		r := rand.New(rand.NewPCG(uint64(seed), uint64(w)))
		wg.Go(func() {
			for range 15 {
				one := []*agent{a, a, a, b}[r.IntN(4)]
				switch all := one.List(""); {
				case len(all) == 0 || r.IntN(3) == 0:
					origin := []Origin{OriginManual, OriginPolicy}[r.IntN(2)]
					v := one.make(Request{ID: newID(), Snapshot: h.take(newID()).ID, Incremental: r.IntN(4) > 0, Origin: origin})
					if v.State == PhaseFailed && v.Operation.ErrKind != fault.Unavailable.String() {
						t.Errorf("seed %d: %+v", seed, v)
					}
				case r.IntN(3) == 0:
					err := one.Delete(t.Context(), []string{"", one.target}[r.IntN(2)], all[r.IntN(len(all))].ID)
					if err != nil && !fault.Is(err, fault.Precondition) && !fault.Is(err, fault.Aborted) && !fault.Is(err, fault.NotFound) {
						t.Errorf("seed %d: delete: %v", seed, err)
					}
				case one == a && r.IntN(2) == 0:
					one.Retain(t.Context(), h.server, one.target, schedule.Keep{Last: 2}, time.Now()) // what can't go now goes another time
				default:
					one.Verify(t.Context(), "", all[r.IntN(len(all))].ID, nil) // it may be deleted meanwhile
				}
			}
		})
	}
	wg.Wait()
	for _, one := range []*agent{a, b} {
		for _, v := range one.List("") {
			one.wait(v.ID)
		}
	}
	for _, f := range ready(t, a, h.server) {
		if r, err := a.Verify(t.Context(), a.target, f.Backup, nil); err != nil || !r.OK {
			t.Errorf("seed %d: backup %s: %+v, %v", seed, f.Backup, r, err)
		}
	}
}
