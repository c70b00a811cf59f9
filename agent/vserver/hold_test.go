package vserver_test

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/uuid"

	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
	"github.com/reflejo/terraform-provider-reflejo/agent/vserver"
	"github.com/reflejo/terraform-provider-reflejo/agent/vserver/vservertest"
)

// captures are the snapshots of a world, as far as the manager sees them.
type captures struct {
	w    *world
	all  map[string]vserver.Capture
	fail error
	gone map[string]bool // server → its snapshots were to go
}

func (w *world) withCaptures() *captures {
	c := &captures{w: w, all: map[string]vserver.Capture{}, gone: map[string]bool{}}
	w.captures = c
	w.m.Close()
	w.start()
	return c
}

func (c *captures) Find(id string) (vserver.Capture, error) {
	found, ok := c.all[id]
	if !ok {
		return found, fault.New(fault.NotFound, "snapshot %s: there is none", id)
	}
	return found, nil
}

func (c *captures) Keep(_ context.Context, id string, r vserver.Record) error {
	if c.fail == nil {
		c.all[id] = vserver.Capture{ID: id, Server: r.Spec.ID, Size: r.Spec.Disk.Size, Image: r.Image}
	}
	return c.fail
}

func (c *captures) Copy(ctx context.Context, id, server string, size int64) error {
	disks := c.w.host.Pool.Disks()
	return errors.Join(disks.Remove(ctx, server), disks.Create(ctx, server, c.all[id].Image.ID, size))
}

func (c *captures) Gone(_ context.Context, server string, remove bool) error {
	c.gone[server] = remove
	return nil
}

func (c *captures) Reserved() int64 { return int64(len(c.all)) << 30 }

// of puts a snapshot of a server there.
func (c *captures) of(server vserver.Spec) string {
	id := uuid.NewString()
	c.all[id] = vserver.Capture{ID: id, Server: server.ID, Size: server.Disk.Size, Image: vserver.Image{ID: vservertest.Image, Size: 1 << 30}}
	return id
}

func TestHoldKeepsOthersAway(t *testing.T) {
	inWorld(t, func(w *world) {
		s := small("web")
		w.create(s)
		release, held := make(chan struct{}), make(chan error, 1)
		go func() {
			held <- w.m.Hold(w.t.Context(), "web", "snapshot", func(ctx context.Context, h *vserver.Held) error {
				h.Progress("copy", 1, 2, 10, 20)
				<-release
				return nil
			})
		}()
		synctest.Wait()
		v, _ := w.m.Get(s.ID)
		if o := v.Operation; o.Kind != "snapshot" || o.Step != "copy" || o.BytesTotal != 20 || v.State != vserver.StateRunning {
			t.Errorf("while held: %+v", v)
		}
		stopped := make(chan error, 1)
		go func() {
			_, err := w.m.SetPower(w.t.Context(), s.ID, vserver.ActionStop, 0)
			stopped <- err
		}()
		synctest.Wait()
		if steps := w.steps(s.ID); steps != "" {
			t.Errorf("a held server was touched: %s", steps)
		}
		close(release)
		if err := errors.Join(<-held, <-stopped); err != nil {
			t.Fatal(err)
		}
		w.want(w.settle(s.ID), vserver.StateStopped)
	})
}

func TestHeldDownComesUpAgain(t *testing.T) {
	inWorld(t, func(w *world) {
		s := small("web")
		w.create(s)
		broken := errors.New("the link broke")
		err := w.m.Hold(w.t.Context(), s.ID, "migrate", func(ctx context.Context, h *vserver.Held) error {
			if err := h.Down(ctx); err != nil {
				return err
			}
			if h.State() != vserver.StateStopped || h.Have().Disk.Attached {
				t.Errorf("after Down: %s %+v", h.State(), h.Have())
			}
			return broken
		})
		if !errors.Is(err, broken) {
			t.Errorf("Hold: %v", err)
		}
		v := w.settle(s.ID)
		w.want(v, vserver.StateRunning)
		if !strings.Contains(v.Operation.Err, "the link broke") || !v.Operation.Settled() {
			t.Errorf("the operation shows no error: %+v", v.Operation)
		}
	})
}

func TestDeleteBreaksHoldOff(t *testing.T) {
	inWorld(t, func(w *world) {
		s := small("web")
		w.create(s)
		held := make(chan error, 1)
		go func() {
			held <- w.m.Hold(w.t.Context(), s.ID, "snapshot", func(ctx context.Context, h *vserver.Held) error {
				<-ctx.Done()
				return context.Cause(ctx)
			})
		}()
		synctest.Wait()
		if err := w.m.Delete(w.t.Context(), s.ID); err != nil {
			t.Fatal(err)
		}
		if <-held == nil {
			t.Error("the held function was not told")
		}
		if w.settle(s.ID) != nil {
			t.Error("the server is still there")
		}
		if err := w.m.Hold(w.t.Context(), s.ID, "snapshot", nil); !fault.Is(err, fault.NotFound) {
			t.Errorf("hold what is gone: %v", err)
		}
	})
}

func TestRestoreInPlace(t *testing.T) {
	inWorld(t, func(w *world) {
		c := w.withCaptures()
		s := small("web")
		before := w.create(s)
		snapshot, request := c.of(s), uuid.NewString()
		for range 2 { // a retry is the same request
			if _, err := w.m.Restore(w.t.Context(), "web", snapshot, request); err != nil {
				t.Fatal(err)
			}
			w.settle(s.ID)
		}
		v := w.settle(s.ID)
		w.want(v, vserver.StateRunning)
		if v.NICs["eth0"] != before.NICs["eth0"] || v.Spec.ID != s.ID {
			t.Errorf("it is another server now: %+v", v)
		}
		if steps := w.steps(s.ID); strings.Count(steps, "shutdown") != 1 {
			t.Errorf("steps: %s", steps)
		}
		if c.all[request].Server != s.ID {
			t.Error("no safety snapshot was taken")
		}
	})
}

func TestRestoreBySpecAndItsRefusals(t *testing.T) {
	inWorld(t, func(w *world) {
		c := w.withCaptures()
		s := small("web")
		w.create(s)
		other := small("other")
		large := s
		large.Disk.Size = 8 << 30
		for name, id := range map[string]string{"another server": c.of(other), "grow it first": c.of(large), "there is none": uuid.NewString()} {
			bad := s
			bad.RestoreFrom = id
			if _, err := w.m.Update(w.t.Context(), bad); fault.FieldOf(err) != "restore_from" || !strings.Contains(err.Error(), name) {
				t.Errorf("%s: %v", name, err)
			}
		}
		s.RestoreFrom = c.of(s)
		if _, err := w.m.Update(w.t.Context(), s); err != nil {
			t.Fatal(err)
		}
		w.want(w.settle(s.ID), vserver.StateRunning)
		w.steps(s.ID)
		s.CPU.MilliCores = 600 // what is restored stays restored
		if _, err := w.m.Update(w.t.Context(), s); err != nil {
			t.Fatal(err)
		}
		w.settle(s.ID)
		if steps := w.steps(s.ID); steps != "limits.set" {
			t.Errorf("a later change took: %s", steps)
		}
		c.fail = fault.New(fault.Exhausted, "pool is full")
		s.RestoreFrom = c.of(s)
		if _, err := w.m.Update(w.t.Context(), s); err != nil {
			t.Fatal(err)
		}
		v := w.settle(s.ID)
		w.want(v, vserver.StateRunning)
		if v.Operation.ErrKind != "exhausted" || v.Spec.RestoreFrom == s.RestoreFrom {
			t.Errorf("a restore without room for the safety snapshot: %+v", v)
		}
	})
}

func TestCloneOfASnapshot(t *testing.T) {
	inWorld(t, func(w *world) {
		c := w.withCaptures()
		source := small("source")
		source.Disk.Size = 4 << 30
		s := small("clone")
		s.Image, s.Disk.Size, s.CloneOf = "", 0, c.of(source)
		v := w.create(s)
		if v.Spec.Image != vservertest.Image || v.Spec.Disk.Size != 4<<30 {
			t.Errorf("the clone took nothing over: %+v", v.Spec)
		}
		if _, err := w.m.Create(w.t.Context(), s); err != nil {
			t.Errorf("the same request again: %v", err)
		}
		bad := small("bad")
		bad.CloneOf = s.CloneOf
		if _, err := w.m.Create(w.t.Context(), bad); fault.FieldOf(err) != "disk.size" {
			t.Errorf("a smaller disk: %v", err)
		}
		bad.CloneOf, bad.RestoreFrom = "", s.CloneOf
		if _, err := w.m.Create(w.t.Context(), bad); fault.FieldOf(err) != "restore_from" {
			t.Errorf("nothing to restore over: %v", err)
		}
		if err := w.m.Delete(w.t.Context(), s.ID); err != nil {
			t.Fatal(err)
		}
		if w.settle(s.ID); !c.gone[s.ID] {
			t.Error("its snapshots were not told")
		}
	})
}

func TestSnapshotsCountInTheLedger(t *testing.T) {
	inWorld(t, func(w *world) {
		c := w.withCaptures()
		_, _, before := w.m.Resources()
		c.of(small("x"))
		_, promised, free := w.m.Resources()
		if before.Disk-free.Disk != 1<<30 || promised.Disk != 1<<30 {
			t.Errorf("promised %d, free %d before, %d after", promised.Disk, before.Disk, free.Disk)
		}
	})
}

func TestMoveIn(t *testing.T) {
	inWorld(t, func(w *world) {
		s := small("web")
		in := vserver.Incoming{Spec: s, Image: vserver.Image{ID: vservertest.Image, Size: 1 << 30}, Want: vserver.PowerRunning, Booted: true, Source: "beta"}
		for range 2 {
			if err := w.m.Reserve(w.t.Context(), in); err != nil {
				t.Fatal(err)
			}
		}
		w.want(w.settle(s.ID), vserver.StateIncoming)
		if w.m.Owned(s.ID) {
			t.Error("it is here already")
		}
		if _, err := w.m.SetPower(w.t.Context(), s.ID, vserver.ActionStart, 0); !fault.Is(err, fault.Precondition) {
			t.Errorf("start what is on its way: %v", err)
		}
		if err := w.m.Delete(w.t.Context(), s.ID); !fault.Is(err, fault.Precondition) {
			t.Errorf("delete what is on its way: %v", err)
		}
		if err := w.m.Abandon(w.t.Context(), s.ID); err != nil {
			t.Fatal(err)
		}
		if w.settle(s.ID) != nil {
			t.Error("what was abandoned is still there")
		}
		if err := w.m.Reserve(w.t.Context(), in); err != nil {
			t.Fatal(err)
		}
		if err := w.host.Pool.Disks().Create(w.t.Context(), s.ID, vservertest.Image, s.Disk.Size); err != nil { // it has arrived
			t.Fatal(err)
		}
		for range 2 {
			if err := w.m.Accept(w.t.Context(), s.ID, false); err != nil {
				t.Fatal(err)
			}
			w.want(w.settle(s.ID), vserver.StateRunning)
		}
		if err := w.m.Abandon(w.t.Context(), s.ID); !fault.Is(err, fault.Precondition) {
			t.Errorf("abandon what is here: %v", err)
		}
		if err := w.m.Reserve(w.t.Context(), in); !fault.Is(err, fault.Exists) {
			t.Errorf("reserve what is here: %v", err)
		}
	})
}

func TestMoveOut(t *testing.T) {
	inWorld(t, func(w *world) {
		s := small("web")
		w.create(s)
		if err := w.m.Release(w.t.Context(), s.ID, "beta"); !fault.Is(err, fault.Precondition) {
			t.Errorf("release what is not handed over: %v", err)
		}
		err := w.m.Hold(w.t.Context(), s.ID, "migrate", func(ctx context.Context, h *vserver.Held) error {
			return errors.Join(h.Down(ctx), h.Leave("beta"))
		})
		if err != nil {
			t.Fatal(err)
		}
		w.m.Close() // an agent that was killed in between leaves it down too
		w.start()
		w.want(w.settle(s.ID), vserver.StateStopped)
		for what, err := range map[string]error{
			"delete": w.m.Delete(w.t.Context(), s.ID),
			"start":  second(w.m.SetPower(w.t.Context(), s.ID, vserver.ActionStart, 0)),
			"update": second(w.m.Update(w.t.Context(), s)),
		} {
			if !fault.Is(err, fault.Precondition) || !strings.Contains(err.Error(), "beta") {
				t.Errorf("%s what is being handed over: %v", what, err)
			}
		}
		views, err := w.m.Watch(w.t.Context(), s.ID)
		if err != nil {
			t.Fatal(err)
		}
		for range 2 {
			if err := w.m.Release(w.t.Context(), s.ID, "beta"); err != nil {
				t.Fatal(err)
			}
			w.settle(s.ID)
		}
		var last vserver.View
		for last = range views {
		}
		if !last.Gone || last.MovedTo != "beta" {
			t.Errorf("last view %+v", last)
		}
		if disks, _ := w.host.Pool.Disks().List(w.t.Context()); len(disks) != 0 {
			t.Errorf("left here: %v", disks)
		}
	})
}

// A server whose disk has vanished is not started on an empty one.
func TestLostDiskIsNotMadeAnew(t *testing.T) {
	inWorld(t, func(w *world) {
		s := small("web")
		w.create(s)
		w.m.Close()
		w.host.PowerOff(w.t.Context())
		if err := w.host.Pool.Disks().Remove(w.t.Context(), s.ID); err != nil {
			t.Fatal(err)
		}
		w.start()
		v := w.settle(s.ID)
		w.want(v, vserver.StateStopped)
		if !strings.Contains(v.Operation.Err, "not in the pool any more") {
			t.Errorf("operation %+v", v.Operation)
		}
	})
}

func second[T any](_ T, err error) error { return err }

// A host that was lost and comes back does not start what another host has taken over, nor
// anything before somebody has said that nobody has.
func TestLostHostComesBack(t *testing.T) {
	inWorld(t, func(w *world) {
		mine, taken := small("mine"), small("taken")
		w.create(mine)
		w.create(taken)
		w.m.Close()
		w.host.PowerOff(w.t.Context())
		var answers atomic.Bool
		w.superseded = func(_ context.Context, r vserver.Record) (string, error) {
			switch {
			case !answers.Load():
				return "", fault.New(fault.Unavailable, "nobody answers")
			case r.Spec.ID == taken.ID:
				return "gamma", nil
			}
			return "", nil
		}
		w.start()
		time.Sleep(time.Hour)
		for _, s := range []vserver.Spec{mine, taken} {
			if v, _ := w.m.Get(s.ID); v.State != vserver.StateStopped || v.Operation.Settled() {
				t.Errorf("before anybody answered: %+v", v)
			}
		}
		answers.Store(true)
		w.want(w.settle(mine.ID), vserver.StateRunning)
		v := w.settle(taken.ID)
		w.want(v, vserver.StateClosed)
		if _, err := w.m.SetPower(w.t.Context(), taken.ID, vserver.ActionStart, 0); !fault.Is(err, fault.Precondition) || !strings.Contains(err.Error(), "gamma") {
			t.Errorf("start what is closed: %v", err)
		}
		w.m.Close() // it stays so, whoever can be asked
		answers.Store(false)
		w.start()
		w.want(w.settle(taken.ID), vserver.StateClosed)
		if err := w.m.Delete(w.t.Context(), taken.ID); err != nil {
			t.Fatal(err)
		}
		if w.settle(taken.ID) != nil {
			t.Error("a closed server can't be deleted")
		}
	})
}

func TestStartOverridesTheQuestion(t *testing.T) {
	inWorld(t, func(w *world) {
		s := small("web")
		w.create(s)
		w.m.Close()
		w.host.PowerOff(w.t.Context())
		w.superseded = func(context.Context, vserver.Record) (string, error) {
			return "", fault.New(fault.Unavailable, "nobody answers")
		}
		w.start()
		synctest.Wait()
		w.want(w.power(s.ID, vserver.ActionStart), vserver.StateRunning)
	})
}

func TestRevive(t *testing.T) {
	inWorld(t, func(w *world) {
		c := w.withCaptures()
		s := small("web")
		snapshot := c.of(s)
		for range 2 {
			if _, err := w.m.Revive(w.t.Context(), s, c.all[snapshot], 2); err != nil {
				t.Fatal(err)
			}
			w.want(w.settle(s.ID), vserver.StateRunning)
		}
		if v, _ := w.m.Get(s.ID); v.Spec.CloneOf != "" || v.Spec.RestoreFrom != "" {
			t.Errorf("it shows where it comes from: %+v", v.Spec)
		}
		if _, err := w.m.Revive(w.t.Context(), s, c.all[c.of(s)], 3); !fault.Is(err, fault.Exists) {
			t.Errorf("revive what is here: %v", err)
		}
	})
}

// A server that another host has taken over is removed before anybody else has a turn.
func TestHeldRelease(t *testing.T) {
	inWorld(t, func(w *world) {
		s := small("web")
		w.create(s)
		views, err := w.m.Watch(w.t.Context(), s.ID)
		if err != nil {
			t.Fatal(err)
		}
		err = w.m.Hold(w.t.Context(), s.ID, "migrate", func(ctx context.Context, h *vserver.Held) error {
			if err := h.Release("beta"); !fault.Is(err, fault.Precondition) {
				t.Errorf("released without leaving: %v", err)
			}
			return errors.Join(h.Down(ctx), h.Leave("beta"), h.Release("beta"))
		})
		if err != nil {
			t.Fatal(err)
		}
		var last vserver.View
		for v := range views {
			last = v
		}
		if !last.Gone || last.MovedTo != "beta" {
			t.Errorf("the last view: %+v", last)
		}
		if _, err := w.m.Get(s.ID); !fault.Is(err, fault.NotFound) {
			t.Errorf("it is still here: %v", err)
		}
	})
}
