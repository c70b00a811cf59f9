package vserver

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// apply is what a step does to what is there, as the edges promise it.
func apply(t interface{ Fatalf(string, ...any) }, r *Record, h *Have, s Step) {
	need := func(ok bool, what string) {
		if !ok {
			t.Fatalf("step %s without %s: record %+v have %+v", s, what, *r, *h)
		}
	}
	switch s {
	case StepDiskCreate:
		h.Disk = &DiskInfo{Size: r.Spec.Disk.Size}
	case StepDiskGrow:
		need(h.Disk != nil, "a disk")
		h.Disk.Size = r.Spec.Disk.Size
	case StepDiskAttach:
		need(h.Disk != nil, "a disk")
		h.Disk.Attached = true
	case StepDiskDetach:
		need(h.Run == nil, "the runtime gone")
		h.Disk.Attached = false
	case StepDiskRemove:
		need(h.Run == nil, "the runtime gone")
		h.Disk = nil
	case StepLimits:
		if h.Group == nil {
			h.Group = &GroupInfo{}
		}
	case StepLimitsRemove:
		need(!h.running(), "an ended server")
		h.Group = nil
	case StepFreeze:
		need(h.running(), "a running server")
		h.Group.Frozen = true
	case StepThaw:
		h.Group.Frozen = false
	case StepPrepare:
		need(h.Disk != nil && h.Disk.Attached, "an attached disk")
	case StepRunCreate:
		need(h.Run == nil && h.Group != nil && h.Disk.Attached, "a group, a disk and no runtime")
		h.Run = &Running{Status: RunCreated}
	case StepNetwork:
		need(h.Run != nil, "a runtime")
		h.Links = true
	case StepNetworkRemove:
		h.Links = false
	case StepRunStart:
		need(h.Run != nil && h.Links && !h.frozen(), "a created, linked, thawed server")
		h.Run.Status = RunRunning
	case StepShutdown:
		need(h.running() && !h.frozen(), "a running, thawed server")
		h.Run.Status = RunStopped
	case StepKill:
		h.Run.Status = RunStopped
		h.Group.Frozen = false
	case StepRunDelete:
		h.Run = nil
	case StepRestart:
		r.Rebooting = false
	case StepSnapshotKeep:
		need(h.Run == nil && h.Disk != nil && !h.Disk.Attached, "a detached disk")
	case StepDiskRestore:
		need(h.Run == nil && (h.Disk == nil || !h.Disk.Attached), "no attached disk")
		h.Disk = &DiskInfo{Size: r.Spec.Disk.Size}
	case StepRestored:
		r.restored()
	case StepSnapshotsGone:
		need(h.Disk == nil, "the disk gone")
	case StepForget:
	default:
		t.Fatalf("step %s is not in this test", s)
	}
}

func copyHave(h Have) Have {
	if h.Disk != nil {
		d := *h.Disk
		h.Disk = &d
	}
	if h.Group != nil {
		g := *h.Group
		h.Group = &g
	}
	if h.Run != nil {
		r := *h.Run
		h.Run = &r
	}
	return h
}

// reachable draws what can be there: a runtime needs a group and an attached disk.
func reachable(t *rapid.T) (Record, Have) {
	r := Record{
		Phase:     rapid.SampledFrom([]Phase{PhaseCreate, PhaseLive, PhaseUndo, PhaseDelete, PhaseMoved}).Draw(t, "phase"),
		Want:      rapid.SampledFrom([]Power{PowerRunning, PowerStopped, PowerSuspended}).Draw(t, "want"),
		Force:     rapid.Bool().Draw(t, "force"),
		Rebooting: rapid.Bool().Draw(t, "rebooting"),
		Spec:      Spec{Disk: Disk{Size: rapid.SampledFrom([]int64{10, 20}).Draw(t, "size")}, CPU: CPU{MilliCores: rapid.Int64Range(1, 2).Draw(t, "cpu")}},
		Applied:   Spec{Disk: Disk{Size: 10}, CPU: CPU{MilliCores: 1}},
	}
	if r.Rebooting {
		r.Want = PowerRunning
	}
	if r.Phase == PhaseLive && rapid.Bool().Draw(t, "restore") {
		r.Restore = Restore{Snapshot: "s", Safety: "t"}
	}
	if r.Phase == PhaseLive && rapid.Bool().Draw(t, "leaving") {
		r.Leaving = "beta"
	}
	var h Have
	h.Verified = rapid.Bool().Draw(t, "verified")
	if rapid.Bool().Draw(t, "disk") {
		h.Disk = &DiskInfo{Size: 10, Attached: rapid.Bool().Draw(t, "attached")}
	}
	if rapid.Bool().Draw(t, "group") {
		h.Group = &GroupInfo{}
		if h.Disk != nil && h.Disk.Attached && rapid.Bool().Draw(t, "run") {
			h.Run = &Running{Status: rapid.SampledFrom([]RunStatus{RunCreated, RunRunning, RunStopped}).Draw(t, "status")}
			h.Group.Frozen = h.Run.Status == RunRunning && rapid.Bool().Draw(t, "frozen")
		}
	}
	h.Links = rapid.Bool().Draw(t, "links")
	return r, h
}

// From wherever a killed agent left a server, plans that may be broken off after any step
// lead to what the record wants, and every step finds what it needs.
func TestPlanConvergesFromAnywhere(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		r, h := reachable(t)
		h = copyHave(h)
		for range 3 { // broken off twice
			steps := Plan(r, h)
			cut := rapid.IntRange(0, len(steps)).Draw(t, "cut")
			for _, s := range steps[:cut] {
				apply(t, &r, &h, s)
			}
		}
		for _, s := range Plan(r, h) {
			apply(t, &r, &h, s)
		}
		h.Verified, r.Applied = true, r.Spec
		steps := Plan(r, h)
		switch r.Phase { // what ends in StepForget has no state for which nothing is left to do
		case PhaseDelete:
			steps = steps[:len(steps)-2]
		case PhaseMoved:
			steps = steps[:len(steps)-1]
		}
		if len(steps) != 0 {
			t.Fatalf("still to do after a whole plan: %v; record %+v have %+v", steps, r, h)
		}
		checkReached(t, r, h)
	})
}

func checkReached(t *rapid.T, r Record, h Have) {
	nothing := h.Run == nil && h.Group == nil && !h.Links
	switch {
	case r.Phase == PhaseDelete || r.Phase == PhaseUndo || r.Phase == PhaseMoved:
		if !nothing || h.Disk != nil {
			t.Fatalf("not all gone: %+v", h)
		}
	case r.Want == PowerStopped || r.Leaving != "":
		if !nothing || h.Disk == nil || h.Disk.Attached || h.Disk.Size < r.Spec.Disk.Size {
			t.Fatalf("not stopped: %+v", h)
		}
	default:
		if !h.running() || h.frozen() != (r.Want == PowerSuspended) || !h.Links || h.Disk.Size < r.Spec.Disk.Size {
			t.Fatalf("not %s: %+v", r.Want, h)
		}
	}
}

// Every step is planned in some situation, so a test that walks Steps meets no dead one.
func TestEveryStepIsPlanned(t *testing.T) {
	seen := map[Step]bool{}
	situations := rapid.Custom(func(t *rapid.T) []Step { return Plan(reachable(t)) })
	for i := range 5000 {
		for _, s := range situations.Example(i) {
			seen[s] = true
		}
	}
	for _, s := range Steps() {
		if !seen[s] {
			t.Errorf("step %s is never planned", s)
		}
	}
}

func TestPlans(t *testing.T) {
	disk := &DiskInfo{Size: 10, Attached: true}
	running := Have{Disk: disk, Group: &GroupInfo{}, Run: &Running{Status: RunRunning}, Links: true, Verified: true}
	spec := Spec{Disk: Disk{Size: 10}, CPU: CPU{MilliCores: 1}}
	live := Record{Phase: PhaseLive, Want: PowerRunning, Spec: spec, Applied: spec}
	with := func(f func(*Record, *Have)) string {
		r, h := live.clone(), copyHave(running)
		f(&r, &h)
		var words []string
		for _, s := range Plan(r, h) {
			words = append(words, string(s))
		}
		return strings.Join(words, " ")
	}
	for _, c := range []struct {
		name string
		set  func(*Record, *Have)
		want string
	}{
		{"nothing to do", func(*Record, *Have) {}, ""},
		{"create", func(r *Record, h *Have) { r.Phase, *h = PhaseCreate, Have{} },
			"disk.create disk.attach limits.set prepare runtime.create network.set runtime.start"},
		{"more cpu touches only limits", func(r *Record, h *Have) { r.Spec.CPU.MilliCores = 2 }, "limits.set"},
		{"larger disk is grown live", func(r *Record, h *Have) { r.Spec.Disk.Size = 20 }, "disk.grow"},
		{"new host name", func(r *Record, h *Have) { r.Spec.Hostname = "x" }, "prepare"},
		{"stop", func(r *Record, h *Have) { r.Want = PowerStopped }, "shutdown network.remove runtime.delete limits.remove disk.detach"},
		{"kill", func(r *Record, h *Have) { r.Want, r.Force = PowerStopped, true }, "kill network.remove runtime.delete limits.remove disk.detach"},
		{"suspend", func(r *Record, h *Have) { r.Want = PowerSuspended }, "freeze"},
		{"resume", func(r *Record, h *Have) { h.Group.Frozen = true }, "thaw"},
		{"stop what is suspended", func(r *Record, h *Have) { r.Want, h.Group.Frozen = PowerStopped, true },
			"thaw shutdown network.remove runtime.delete limits.remove disk.detach"},
		{"adopt after an agent's start", func(r *Record, h *Have) { h.Verified = false }, "limits.set network.set"},
		{"host came back", func(r *Record, h *Have) { *h = Have{Disk: &DiskInfo{Size: 10}} },
			"disk.attach limits.set prepare runtime.create network.set runtime.start"},
		{"delete", func(r *Record, h *Have) { r.Phase = PhaseDelete },
			"shutdown network.remove runtime.delete limits.remove disk.remove snapshots.gone forget"},
		{"moved", func(r *Record, h *Have) { r.Phase, *h = PhaseMoved, Have{Disk: &DiskInfo{Size: 10}} }, "disk.remove forget"},
		{"on its way here", func(r *Record, h *Have) { r.Phase, *h = PhaseIncoming, Have{} }, ""},
		{"handed over: it stays down, whatever is wanted", func(r *Record, h *Have) { r.Leaving, *h = "beta", Have{Disk: &DiskInfo{Size: 10}} }, ""},
		{"restore", func(r *Record, h *Have) { r.Restore.Snapshot = "s" },
			"shutdown network.remove runtime.delete limits.remove disk.detach snapshot.keep disk.restore restored disk.attach limits.set prepare runtime.create network.set runtime.start"},
		{"restore what is stopped", func(r *Record, h *Have) {
			r.Restore.Snapshot, r.Want, *h = "s", PowerStopped, Have{Disk: &DiskInfo{Size: 10}}
		}, "snapshot.keep disk.restore restored"},
		{"restore a lost disk", func(r *Record, h *Have) { r.Restore.Snapshot, r.Want, *h = "s", PowerStopped, Have{} }, "disk.restore restored"},
		{"reboot", func(r *Record, h *Have) { r.Rebooting = true },
			"shutdown network.remove runtime.delete limits.remove disk.detach restart disk.attach limits.set prepare runtime.create network.set runtime.start"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := with(c.set); got != c.want {
				t.Errorf("plan:\n got %s\nwant %s", got, c.want)
			}
		})
	}
	if slices.Contains(Steps(), "") || fmt.Sprint(Steps()) == "" {
		t.Error("empty step")
	}
}
