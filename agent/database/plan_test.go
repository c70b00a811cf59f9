package database

import "testing"

// From whatever is there a plan leads to a state for which it is empty, also when it is
// broken off after any step; and the port is open only when all else is done.
func TestPlansEnd(t *testing.T) {
	states := 0
	for _, phase := range []Phase{PhaseCreate, PhaseLive, PhaseUndo, PhaseFailed, PhaseDelete} {
		for bits := range 1 << 7 {
			bit := func(n int) bool { return bits>>n&1 == 1 }
			r := Record{Phase: phase}
			h := Have{Server: bit(0), Frozen: bit(0) && bit(1), Open: bit(2), Verified: bit(3)}
			h.Cluster.Made, h.Cluster.Running = bit(4), bit(5) && bit(4)
			if bit(6) && h.Cluster.Made {
				r.Identity = "1"
			}
			states++
			for round := 0; ; round++ {
				steps := Plan(r, h)
				if len(steps) == 0 {
					break
				}
				if round > 20 {
					t.Fatalf("%s, %+v: no end: %v", r.Phase, h, steps)
				}
				if phase == PhaseLive && steps[len(steps)-1] == StepPortOpen && h.Server {
					for _, s := range steps[:len(steps)-1] {
						if s == StepPortOpen {
							t.Fatalf("%+v: the port is opened too early: %v", h, steps)
						}
					}
				}
				walk(t, &r, &h, steps[0]) // and broken off
				if len(steps) == 1 || round > 10 {
					for _, s := range steps[1:] {
						walk(t, &r, &h, s)
					}
					finish(&r, &h)
				}
			}
		}
	}
	t.Logf("%d states", states)
}

// walk is what a step does.
func walk(t *testing.T, r *Record, h *Have, s Step) {
	t.Helper()
	switch s {
	case StepPortClose, StepPortRemove:
		h.Open = false
	case StepPortOpen:
		h.Open = true
	case StepCreate:
		h.Cluster.Made, r.Identity = true, "1"
	case StepRun:
		if !h.Cluster.Made && r.Identity == "" {
			t.Fatal("run before it is made")
		}
		h.Cluster.Running = true
	case StepStop:
		h.Cluster.Running = false
	case StepRemove:
		h.Cluster = Condition{}
	case StepForget:
		r.Phase = PhaseFailed
	}
}

// finish is what the manager notes when a plan is done.
func finish(r *Record, h *Have) {
	switch {
	case r.Phase == PhaseUndo:
		r.Phase = PhaseFailed
	case h.Cluster.Running:
		r.Phase, h.Verified = PhaseLive, true
	}
}
