package migrate

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/reflejo/terraform-provider-reflejo/agent/snapshot"
	"github.com/reflejo/terraform-provider-reflejo/agent/vserver"
)

// cases are the ways in which a server is moved.
var cases = map[string]struct {
	power    vserver.Power
	settings vserver.Migration
}{
	"warm":      {vserver.PowerRunning, vserver.Migration{MaxDowntime: time.Nanosecond}}, // rounds until they do not shrink
	"cold":      {vserver.PowerRunning, vserver.Migration{Mode: vserver.MigrateCold}},
	"stopped":   {vserver.PowerStopped, vserver.Migration{}},
	"snapshots": {vserver.PowerRunning, vserver.Migration{Snapshots: true}},
}

// snapshots takes some of the server, as somebody did who is long gone.
func (w *world) snapshots(n int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	p := w.hosts["alpha"].pool
	for i := range n {
		id := uuid.NewString()
		p.snapshots[id] = *p.disks[w.id]
		p.known[id] = snapshot.Record{ID: id, Server: w.id, Name: fmt.Sprint(i), Created: time.Unix(int64(i), 0)}
		for range 20 {
			w.guest(p)
		}
	}
}

func TestMoveThereAndBack(t *testing.T) {
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			inWorld(t, 1, func(w *world) {
				w.create(c.power)
				if c.settings.Snapshots {
					w.snapshots(3)
				}
				kept := len(w.hosts["alpha"].pool.known)
				running := c.power == vserver.PowerRunning
				for range 2 {
					if err := w.move("alpha", "beta", c.settings); err != nil {
						t.Fatal(err)
					}
					w.finished("beta", running)
					if err := w.move("beta", "alpha", c.settings); err != nil {
						t.Fatal(err)
					}
					w.finished("alpha", running)
				}
				if n := len(w.hosts["alpha"].pool.known); n != kept {
					t.Errorf("%d snapshots of %d came back", n, kept)
				}
			})
		})
	}
}

// arrive moves the server to beta whatever happens on the way, and holds that it is there
// and nothing is left.
func (w *world) arrive(power vserver.Power, settings vserver.Migration) {
	w.t.Helper()
	for try := 0; ; try++ {
		err := w.move("alpha", "beta", settings)
		if v, gone := w.hosts["beta"].servers.Get(w.id); gone == nil && v.State != vserver.StateIncoming && v.State != vserver.StateDeleting {
			break
		}
		if try == 5 {
			w.t.Fatalf("after %d attempts: %v", try, err)
		}
	}
	w.finished("beta", power == vserver.PowerRunning)
}

// Every write of a record, on either side, and every frame: the agent dies or the link
// breaks before it or after it, or both agents die; one of these for every sixth frame of the disk.
func TestEveryFault(t *testing.T) {
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			prepare := func(w *world) int {
				w.create(c.power)
				if c.settings.Snapshots {
					w.snapshots(2)
				}
				return w.events
			}
			var events int
			var log []string
			inWorld(t, 1, func(w *world) {
				from := prepare(w)
				w.arrive(c.power, c.settings)
				events, log = w.events-from, w.log[from:]
			})
			t.Logf("%d events", events)
			for i := 1; i <= events && !t.Failed(); i++ {
				data := strings.Contains(log[i-1], " sends 18 ") || strings.Contains(log[i-1], " sends 19 ")
				for k := range faultKinds {
					if data && (i%6 != 0 || int(k) != i/6%int(faultKinds)) {
						continue // there are many, and one is as good as the next
					}
					inWorld(t, 1, func(w *world) {
						w.faults[prepare(w)+i] = k
						defer func() {
							if t.Failed() {
								t.Logf("fault %d at event %d", k, i)
							}
						}()
						w.arrive(c.power, c.settings)
					})
				}
			}
		})
	}
}

// Several faults, at random.
func TestManyFaults(t *testing.T) {
	for seed := uint64(1); seed <= 60 && !t.Failed(); seed++ {
		inWorld(t, seed, func(w *world) {
			r := rand.New(rand.NewPCG(seed, 2))
			names := []string{"warm", "cold", "stopped", "snapshots"}
			c := cases[names[r.IntN(len(names))]]
			w.create(c.power)
			if c.settings.Snapshots {
				w.snapshots(2)
			}
			at := w.events
			for range 2 + r.IntN(4) {
				at += 1 + r.IntN(40)
				w.faults[at] = faultKind(r.IntN(int(faultKinds)))
			}
			w.arrive(c.power, c.settings)
			if t.Failed() {
				t.Logf("seed %d", seed)
			}
		})
	}
}
