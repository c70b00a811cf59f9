package vserver_test

import (
	"context"
	"testing"
	"time"

	"github.com/reflejo/terraform-provider-reflejo/agent/vserver"
)

// Whoever has something in a server hears of its end before it, and of its start after it,
// also where the server only ends to be started again.
func TestHooksOfEndsAndStarts(t *testing.T) {
	inWorld(t, func(w *world) {
		var heard []string
		config := w.host.Config()
		config.Stopping = func(_ context.Context, id string, limit time.Duration) {
			v, err := w.m.Get(id)
			if err != nil || v.State != vserver.StateRunning || limit == 0 {
				w.t.Errorf("stopping: it is %s, within %s: %v", v.State, limit, err)
			}
			heard = append(heard, "stopping")
		}
		config.Started = func(id string) {
			if v, err := w.m.Get(id); err != nil || v.State == vserver.StateStopped {
				w.t.Errorf("started: it is %s: %v", v.State, err)
			}
			heard = append(heard, "started")
		}
		w.m.Close()
		m, err := vserver.NewManager(config)
		if err != nil {
			w.t.Fatal(err)
		}
		w.m = m
		id := w.create(small("web")).Spec.ID
		expect := func(what string, want ...string) {
			w.t.Helper()
			if len(heard) != len(want) {
				w.t.Errorf("%s: heard %v", what, heard)
			}
			for i := range min(len(heard), len(want)) {
				if heard[i] != want[i] {
					w.t.Errorf("%s: heard %v", what, heard)
				}
			}
			heard = nil
		}
		expect("create", "started")
		w.power(id, vserver.ActionReboot)
		expect("reboot", "stopping", "started")
		w.power(id, vserver.ActionKill)
		expect("kill")
		w.power(id, vserver.ActionStart)
		expect("start", "started")
		err = w.m.Hold(w.t.Context(), id, "restore", func(ctx context.Context, h *vserver.Held) error { return h.Down(ctx) })
		if err != nil {
			w.t.Fatal(err)
		}
		w.settle(id)
		expect("down and up", "stopping", "started")
	})
}
