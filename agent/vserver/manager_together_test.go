package vserver_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/google/uuid"

	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
	"github.com/reflejo/terraform-provider-reflejo/agent/vserver"
	"github.com/reflejo/terraform-provider-reflejo/agent/vserver/vservertest"
)

// A deletion breaks off a creation that hangs; nothing is left.
func TestDeleteBreaksCreateOff(t *testing.T) {
	inWorld(t, func(w *world) {
		s := small("web")
		release := w.host.Hold(vserver.StepRunCreate)
		defer release()
		if _, err := w.m.Create(w.t.Context(), s); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if err := w.m.Delete(w.t.Context(), s.ID); err != nil {
			t.Fatal(err)
		}
		if v := w.settle(s.ID); v != nil {
			t.Errorf("still there: %+v", v)
		}
	})
}

// A refused interruption leaves the operation alone.
func TestRefusedDeleteLeavesTheOperationAlone(t *testing.T) {
	inWorld(t, func(w *world) {
		s := small("web")
		s.DeletionProtection = true
		s = w.create(s).Spec
		release := w.host.Hold(vserver.StepLimits)
		s.CPU.MilliCores = 800
		if _, err := w.m.Update(w.t.Context(), s); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if err := w.m.Delete(w.t.Context(), s.ID); !fault.Is(err, fault.Precondition) {
			t.Errorf("delete: %v", err)
		}
		release()
		if v := w.settle(s.ID); v.Spec.CPU.MilliCores != 800 || v.Operation.Err != "" {
			t.Errorf("the update was disturbed: %+v", v)
		}
	})
}

// Operations on one server queue; nobody has to serialise requests.
func TestOperationsQueue(t *testing.T) {
	inWorld(t, func(w *world) {
		s := w.create(small("web")).Spec
		var wg sync.WaitGroup
		for i := range 8 {
			wg.Go(func() {
				c := s
				c.CPU.MilliCores = int64(100 + i)
				if _, err := w.m.Update(w.t.Context(), c); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if v := w.settle(s.ID); v.Generation != 9 || v.Operation.Err != "" {
			t.Errorf("%+v", v)
		}
	})
}

// Thirty-two creations at once: all succeed, none shares an address, id range or name.
func TestManyCreatesAtOnce(t *testing.T) {
	inWorld(t, func(w *world) {
		var wg sync.WaitGroup
		for i := range 16 { // as many as the id range has room for
			wg.Go(func() {
				s := small(fmt.Sprintf("s%d", i))
				s.CPU.MilliCores = 100
				if _, err := w.m.Create(w.t.Context(), s); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if err := w.m.Settled(w.t.Context()); err != nil {
			t.Fatal(err)
		}
		seen := map[string]bool{}
		for _, v := range w.m.List() {
			if v.State != vserver.StateRunning || seen[v.NICs["eth0"].Address] {
				t.Errorf("%s: %s %v %s", v.Spec.Name, v.State, v.NICs, v.Operation.Err)
			}
			seen[v.NICs["eth0"].Address] = true
		}
		if len(seen) != 16 {
			t.Errorf("%d servers", len(seen))
		}
		_, err := w.m.Create(w.t.Context(), small("onemore"))
		if !fault.Is(err, fault.Exhausted) {
			t.Errorf("beyond the id range: %v", err)
		}
	})
}

// A watcher sees the newest state, and the end.
func TestWatch(t *testing.T) {
	inWorld(t, func(w *world) {
		s := small("web")
		if _, err := w.m.Create(w.t.Context(), s); err != nil {
			t.Fatal(err)
		}
		views, err := w.m.Watch(w.t.Context(), s.ID)
		if err != nil {
			t.Fatal(err)
		}
		w.settle(s.ID)
		if v := <-views; v.State != vserver.StateRunning || !v.Operation.Settled() {
			t.Errorf("a slow watcher finds %+v", v)
		}
		if err := w.m.Delete(w.t.Context(), s.ID); err != nil {
			t.Fatal(err)
		}
		w.settle(s.ID)
		var last vserver.View
		for v := range views {
			last = v
		}
		if !last.Gone {
			t.Errorf("the last view is %+v", last)
		}
		ctx, cancel := context.WithCancel(w.t.Context())
		other := w.create(small("other"))
		views, _ = w.m.Watch(ctx, other.Spec.ID)
		cancel()
		synctest.Wait()
		for range views { // closed
		}
	})
}

// First-boot data is handed over once and kept nowhere.
func TestFirstBootIsASecret(t *testing.T) {
	inWorld(t, func(w *world) {
		s := small("web")
		s.FirstBoot = vserver.FirstBoot{UserData: "#!/bin/sh\necho hunter2\n", Version: "1"}
		v := w.create(s)
		if v.Spec.FirstBoot.UserData != "" || v.Spec.FirstBoot.Version != "1" {
			t.Errorf("shown: %+v", v.Spec.FirstBoot)
		}
		_ = w.host.Records.ForEach(func(_ string, value []byte) error {
			if strings.Contains(string(value), "hunter2") {
				t.Error("kept in the record")
			}
			return nil
		})
		w.power(s.ID, vserver.ActionReboot)
	})
}

// A server sees as many cores as it was promised, and pinning a core moves others off it, live.
func TestPinsAreExclusive(t *testing.T) {
	inWorld(t, func(w *world) {
		other := w.create(small("other")).Spec.ID
		if got := w.host.Limits.String(); !strings.Contains(got, `pin "0"`) {
			t.Errorf("half a core was not given one core:\n%s", got)
		}
		s := small("pinned")
		s.CPU.Pin = "0"
		w.create(s)
		synctest.Wait()
		if got := w.host.Limits.String(); !strings.Contains(got, `pin "1"`) {
			t.Errorf("the other may still use core 0:\n%s", got)
		}
		w.host.Done()
		if err := w.m.Delete(w.t.Context(), s.ID); err != nil {
			t.Fatal(err)
		}
		w.settle(s.ID)
		synctest.Wait()
		if got := w.steps(other); got != "" {
			t.Errorf("the other was disturbed when the pin went: %s", got)
		}
	})
}

// A state file that can't be written refuses changes and breaks nothing.
func TestFullStateDisk(t *testing.T) {
	inWorld(t, func(w *world) {
		s := w.create(small("web")).Spec
		w.host.Records.Fail(errors.New("no space left on device"))
		s.CPU.MilliCores = 800
		if _, err := w.m.Update(w.t.Context(), s); err == nil {
			t.Error("an update was accepted that is recorded nowhere")
		}
		if _, err := w.m.Create(w.t.Context(), small("x")); err == nil {
			t.Error("a server was accepted that is recorded nowhere")
		}
		w.host.Records.Fail(nil)
		if v := w.settle(s.ID); v.State != vserver.StateRunning || v.Spec.CPU.MilliCores != 500 {
			t.Errorf("%+v", v)
		}
		if names := w.m.List(); len(names) != 1 {
			t.Errorf("%d servers", len(names))
		}
	})
}

// What no record knows is left alone if it could hold data or runs, removed if it can't.
func TestStrangers(t *testing.T) {
	inWorld(t, func(w *world) {
		w.m.Close()
		data, empty := uuid.NewString(), uuid.NewString()
		if err := w.host.Pool.Disks().Create(w.t.Context(), data, vservertest.Image, 1<<30); err != nil {
			t.Fatal(err)
		}
		if err := w.host.Limits.Set(w.t.Context(), empty, vserver.LimitSet{CPU: vserver.CPU{MilliCores: 1000, Weight: 100},
			Memory: vserver.Memory{Max: 1 << 30}, Processes: 100, IDs: vserver.IDRange{First: 1 << 20, Size: 65536}}); err != nil {
			t.Fatal(err)
		}
		w.start()
		if got := w.m.Unknown(); !slices.Equal(got, []string{data}) {
			t.Errorf("unknown: %v", got)
		}
		if !strings.Contains(w.host.Pool.String(), data) || strings.Contains(w.host.Limits.String(), empty) {
			t.Errorf("pool %s groups %s", w.host.Pool, w.host.Limits)
		}
	})
}
