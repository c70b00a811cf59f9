package mirror

import (
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"testing"
)

// TestRandom walks worlds for long, with many faults and every command, and then lets them come
// to rest. REFLEJO_SEED=n walks only that one, REFLEJO_WALKS=n so many.
func TestRandom(t *testing.T) {
	first, walks := uint64(1), uint64(300)
	if v := os.Getenv("REFLEJO_WALKS"); v != "" {
		n, err := strconv.ParseUint(v, 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		walks = n
	}
	if v := os.Getenv("REFLEJO_SEED"); v != "" {
		n, err := strconv.ParseUint(v, 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		first, walks = n, 1
	}
	var steps, failovers int
	for seed := first; seed < first+walks; seed++ {
		n, seq := walk(t, seed)
		steps += n
		failovers += seq - 1
	}
	t.Logf("%d walks, %d moves, %d changes of the role sequence", walks, steps, failovers)
}

func walk(t *testing.T, seed uint64) (steps, seq int) {
	t.Helper()
	rng := rand.New(rand.NewPCG(seed, 0))
	r := &rules{eager: rng.IntN(2) == 0, alone: rng.IntN(4) == 0, step: Step}
	r.verbs = []Verb{Failover, Force, Suspend, Resume, SetSafety, SetWitness, SetTimeout, Replace, Hold}
	if r.alone {
		r.verbs = []Verb{Failover, Force, Suspend, Resume, SetSafety, SetTimeout, Replace, Hold}
	}
	w := synchronized(t, !r.alone, r)
	w.run(t, w.quiet)
	var path strings.Builder
	bad := attempt(func() {
		for range 400 {
			w.faults, w.verbs, w.lags = 0, 0, 0
			w.writes = 0
			switch rng.IntN(12) {
			case 0:
				w.faults = 1
			case 1:
				w.verbs = uint8(rng.IntN(3) / 2)
			case 2:
				w.writes = uint8(rng.IntN(3) / 2)
			case 3:
				w.lags = 1
			}
			all := w.moves(nil)
			if len(all) == 0 {
				break
			}
			m := all[rng.IntN(len(all))]
			fmt.Fprintf(&path, "%v\n", m)
			if m.kind == deliver {
				fmt.Fprintf(&path, "   %v\n", w.queues[queue(int(m.i), int(m.j))][0].m)
			}
			w.do(m)
			steps++
		}
		if !w.survives() {
			broken(10, "does not survive its mirror")
		}
		if !w.rests() {
			broken(9, "does not come to rest")
		}
	})
	if bad != "" {
		t.Fatalf("REFLEJO_SEED=%d: %s\n%s%v", seed, bad, path.String(), w)
	}
	return steps, int(max(w.hosts[0].kept.Rec.Seq, w.hosts[1].kept.Rec.Seq))
}
