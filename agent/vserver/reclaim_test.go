package vserver_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"

	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
	"github.com/reflejo/terraform-provider-reflejo/agent/vserver"
	"github.com/reflejo/terraform-provider-reflejo/agent/vserver/vservertest"
)

// handedOver makes a server that is being handed over to beta.
func (w *world) handedOver(name string) vserver.Spec {
	w.t.Helper()
	s := small(name)
	w.create(s)
	err := w.m.Hold(w.t.Context(), s.ID, "migrate", func(ctx context.Context, h *vserver.Held) error {
		return errors.Join(h.Down(ctx), h.Leave("beta"))
	})
	if err != nil {
		w.t.Fatal(err)
	}
	return s
}

func TestReclaim(t *testing.T) {
	inWorld(t, func(w *world) {
		s := w.handedOver("web")
		if v := w.settle(s.ID); v.Leaving != "beta" {
			t.Errorf("it does not show where it goes: %+v", v)
		}
		if _, err := w.m.Reclaim(w.t.Context(), s.ID, "gamma", 3); !fault.Is(err, fault.Precondition) {
			t.Errorf("back from another host: %v", err)
		}
		for range 2 {
			if _, err := w.m.Reclaim(w.t.Context(), s.ID, "beta", 3); err != nil {
				t.Fatal(err)
			}
			v := w.settle(s.ID)
			w.want(v, vserver.StateRunning)
			if v.Leaving != "" || w.m.Term(s.ID) != 3 {
				t.Errorf("leaving %q, term %d", v.Leaving, w.m.Term(s.ID))
			}
		}
		w.m.Close() // it is durable
		w.start()
		if w.want(w.settle(s.ID), vserver.StateRunning); w.m.Term(s.ID) != 3 {
			t.Errorf("term %d after a restart", w.m.Term(s.ID))
		}
		if err := w.m.Delete(w.t.Context(), s.ID); err != nil {
			t.Errorf("delete what was taken back: %v", err)
		}
	})
}

// A host that was lost between the decision that a server is its own and the server's start
// asks before that start, whatever it was at.
func TestLateArrivalAsks(t *testing.T) {
	for name, late := range map[string]bool{"accepted late": true, "killed once accepted": false} {
		t.Run(name, func(t *testing.T) {
			inWorld(t, func(w *world) {
				s := small("web")
				w.superseded = func(context.Context, vserver.Record) (string, error) { return "alpha", nil }
				w.m.Close()
				w.start()
				in := vserver.Incoming{Spec: s, Image: vserver.Image{ID: vservertest.Image, Size: 1 << 30}, Want: vserver.PowerRunning, Booted: true, Source: "alpha"}
				if err := w.m.Reserve(w.t.Context(), in); err != nil {
					t.Fatal(err)
				}
				if err := w.host.Pool.Disks().Create(w.t.Context(), s.ID, vservertest.Image, 2<<30); err != nil {
					t.Fatal(err)
				}
				release := func() {}
				if !late {
					release = w.host.Hold(vserver.StepDiskAttach)
				}
				if err := w.m.Accept(w.t.Context(), s.ID, late); err != nil {
					t.Fatal(err)
				}
				if !late {
					synctest.Wait()
					w.m.Close() // in the middle of its first start
					release()
					w.host.PowerOff(w.t.Context())
					w.start()
				}
				w.want(w.settle(s.ID), vserver.StateClosed)
			})
		})
	}
}
