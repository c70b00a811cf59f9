package vserver_test

import (
	"testing"
	"time"

	"github.com/reflejo/terraform-provider-reflejo/agent/vserver"
)

// The host goes down in order: every server is stopped, none for longer than its timeout, all
// at once; and what they should be is what they are when the host is back.
func TestHostGoesDown(t *testing.T) {
	inWorld(t, func(w *world) {
		run, stubborn, stopped, suspended := w.create(small("a")).Spec.ID, w.create(small("b")).Spec.ID, w.create(small("c")).Spec.ID, w.create(small("d")).Spec.ID
		w.power(stopped, vserver.ActionStop)
		w.power(suspended, vserver.ActionSuspend)
		w.host.Runtime.Stubborn(stubborn)
		w.m.Close()
		for range 2 { // the second finds nothing left to do
			began := time.Now()
			if err := w.m.Down(w.t.Context()); err != nil {
				t.Fatal(err)
			}
			if took := time.Since(began); took > vserver.DefaultShutdownTimeout {
				t.Errorf("took %s", took)
			}
		}
		if left, err := w.host.Runtime.List(w.t.Context()); err != nil || len(left) != 0 {
			t.Errorf("still there: %v (%v)", left, err)
		}
		w.host.PowerOff(w.t.Context())
		w.start()
		w.want(w.settle(run), vserver.StateRunning)
		w.want(w.settle(stubborn), vserver.StateRunning)
		w.want(w.settle(stopped), vserver.StateStopped)
		w.want(w.settle(suspended), vserver.StateSuspended)
	})
}
