package vserver_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/uuid"

	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
	"github.com/reflejo/terraform-provider-reflejo/agent/vserver"
	"github.com/reflejo/terraform-provider-reflejo/agent/vserver/vservertest"
)

// world is a host in memory with an agent on it.
type world struct {
	t    *testing.T
	host *vservertest.Host
	m    *vserver.Manager

	captures   vserver.Captures
	superseded func(context.Context, vserver.Record) (string, error)
}

// inWorld runs f in a bubble with its own time.
func inWorld(t *testing.T, f func(w *world)) {
	synctest.Test(t, func(t *testing.T) {
		w := &world{t: t, host: vservertest.NewHost(t.TempDir())}
		w.start()
		defer func() { w.m.Close() }()
		f(w)
	})
}

// start is an agent's start.
func (w *world) start() {
	w.t.Helper()
	config := w.host.Config()
	config.Captures, config.Superseded = w.captures, w.superseded
	m, err := vserver.NewManager(config)
	if err != nil {
		w.t.Fatal(err)
	}
	w.m = m
	if err := m.Recover(w.t.Context()); err != nil {
		w.t.Fatal(err)
	}
}

// settle waits until nothing is under way and returns the server, nil if it is gone.
func (w *world) settle(id string) *vserver.View {
	w.t.Helper()
	synctest.Wait()
	if err := w.m.Settled(w.t.Context()); err != nil {
		w.t.Fatal(err)
	}
	v, err := w.m.Get(id)
	if err != nil {
		return nil
	}
	return &v
}

func small(name string) vserver.Spec {
	return vserver.Spec{ID: uuid.NewString(), Name: name, Image: "tiny", Power: vserver.PowerRunning,
		CPU: vserver.CPU{MilliCores: 500}, Memory: vserver.Memory{Max: 256 << 20}, Disk: vserver.Disk{Size: 2 << 30}}
}

// create makes a running server.
func (w *world) create(s vserver.Spec) vserver.View {
	w.t.Helper()
	if _, err := w.m.Create(w.t.Context(), s); err != nil {
		w.t.Fatal(err)
	}
	v := w.settle(s.ID)
	w.want(v, vserver.StateRunning)
	w.host.Done()
	return *v
}

func (w *world) want(v *vserver.View, s vserver.State) {
	w.t.Helper()
	if v == nil || v.State != s {
		w.t.Fatalf("want state %s, have %+v", s, v)
	}
}

func (w *world) power(id string, a vserver.PowerAction) *vserver.View {
	w.t.Helper()
	if _, err := w.m.SetPower(w.t.Context(), id, a, 0); err != nil {
		w.t.Fatal(err)
	}
	return w.settle(id)
}

// steps are the steps of one server since the last call.
func (w *world) steps(id string) string {
	var s []string
	for _, d := range w.host.Done() {
		if step, of, _ := strings.Cut(d, " "); of == id {
			s = append(s, step)
		}
	}
	return strings.Join(s, " ")
}

func TestLifeOfAServer(t *testing.T) {
	inWorld(t, func(w *world) {
		s := small("web")
		if _, err := w.m.Create(w.t.Context(), s); err != nil {
			t.Fatal(err)
		}
		v := w.settle(s.ID)
		w.want(v, vserver.StateRunning)
		if want := "disk.create disk.attach limits.set prepare runtime.create network.set runtime.start"; w.steps(s.ID) != want {
			t.Errorf("create took other steps than %s", want)
		}
		if v.NICs["eth0"].Address != "10.0.0.2/24" || v.Spec.Image != vservertest.Image || v.Started.IsZero() {
			t.Errorf("view %+v", v)
		}
		w.want(w.power(s.ID, vserver.ActionSuspend), vserver.StateSuspended)
		w.want(w.power(s.ID, vserver.ActionResume), vserver.StateRunning)
		w.want(w.power(s.ID, vserver.ActionReboot), vserver.StateRunning)
		w.want(w.power("web", vserver.ActionStop), vserver.StateStopped) // by name too
		w.want(w.power(s.ID, vserver.ActionStart), vserver.StateRunning)
		if err := w.m.Delete(w.t.Context(), s.ID); err != nil {
			t.Fatal(err)
		}
		if v := w.settle(s.ID); v != nil {
			t.Errorf("still there: %+v", v)
		}
		if left := w.host.Pool.String() + w.host.Limits.String() + w.host.Runtime.String(); strings.Contains(left, s.ID) {
			t.Errorf("left behind:\n%s", left)
		}
	})
}

// The same request twice is one request; another one under the same id is refused.
func TestCreateIsIdempotent(t *testing.T) {
	inWorld(t, func(w *world) {
		s := small("web")
		w.create(s)
		if v, err := w.m.Create(w.t.Context(), s); err != nil || v.State != vserver.StateRunning || w.steps(s.ID) != "" {
			t.Errorf("again: %v %v", v, err)
		}
		s.Memory.Max *= 2
		if _, err := w.m.Create(w.t.Context(), s); !fault.Is(err, fault.Exists) {
			t.Errorf("another spec under the same id: %v", err)
		}
	})
}

// Whatever step of a creation fails, nothing is left but a failed record with the reason,
// which a deletion removes and a new request with the same id replaces.
func TestFailedCreateLeavesNothing(t *testing.T) {
	for _, step := range []vserver.Step{vserver.StepDiskCreate, vserver.StepDiskAttach, vserver.StepLimits, vserver.StepPrepare,
		vserver.StepRunCreate, vserver.StepNetwork, vserver.StepRunStart} {
		t.Run(string(step), func(t *testing.T) {
			inWorld(t, func(w *world) {
				s := small("web")
				w.host.Fail(step, errors.New("disk on fire"))
				if _, err := w.m.Create(w.t.Context(), s); err != nil {
					t.Fatal(err)
				}
				v := w.settle(s.ID)
				w.want(v, vserver.StateFailed)
				if !strings.Contains(v.Operation.Err, "disk on fire") || !v.Operation.Done {
					t.Errorf("operation %+v", v.Operation)
				}
				if left := w.host.Pool.String() + w.host.Limits.String() + w.host.Runtime.String(); strings.Contains(left, s.ID) {
					t.Errorf("left behind:\n%s", left)
				}
				if _, promised, _ := w.m.Resources(); promised.Memory != 0 {
					t.Errorf("a failed server holds %+v", promised)
				}
				w.host.Fail(step, nil)
				w.create(s)
			})
		})
	}
}

// A change that fails leaves the server as it was, running.
func TestFailedUpdateFallsBack(t *testing.T) {
	inWorld(t, func(w *world) {
		s := w.create(small("web")).Spec
		changed := s
		changed.CPU.MilliCores, changed.Disk.Size = 700, 4<<30
		w.host.Fail(vserver.StepDiskGrow, fault.New(fault.Exhausted, "pool is full"))
		if _, err := w.m.Update(w.t.Context(), changed); err != nil {
			t.Fatal(err)
		}
		v := w.settle(s.ID)
		w.want(v, vserver.StateRunning)
		if v.Spec.CPU != s.CPU || v.Spec.Disk != s.Disk || v.Operation.ErrKind != "exhausted" {
			t.Errorf("after a failed update: %+v %+v", v.Spec, v.Operation)
		}
		if got := w.steps(s.ID); got != "limits.set disk.grow limits.set" && got != "limits.set disk.grow limits.set network.set" {
			t.Errorf("steps %s", got)
		}
		w.host.Fail(vserver.StepDiskGrow, nil)
		if _, err := w.m.Update(w.t.Context(), changed); err != nil {
			t.Fatal(err)
		}
		if v := w.settle(s.ID); v.Spec.Disk.Size != 4<<30 || v.Operation.Kind != "" || v.Generation != 3 {
			t.Errorf("after a good one: %+v", v)
		}
	})
}

// A change touches what it changes and nothing else.
func TestUpdatesAreLive(t *testing.T) {
	inWorld(t, func(w *world) {
		s := w.create(small("web")).Spec
		for _, c := range []struct {
			set  func(*vserver.Spec)
			want string
		}{
			{func(s *vserver.Spec) { s.CPU.MilliCores = 600 }, "limits.set"},
			{func(s *vserver.Spec) { s.Disk.WriteBPS = 1 << 20 }, "limits.set"},
			{func(s *vserver.Spec) { s.Disk.Size = 3 << 30 }, "disk.grow"},
			{func(s *vserver.Spec) { s.Network = map[string]vserver.NIC{"eth0": {Egress: 1e6}} }, "network.set"},
			{func(s *vserver.Spec) { s.Name = "www" }, "prepare"},
			{func(s *vserver.Spec) { s.DeletionProtection = true }, ""},
			{func(s *vserver.Spec) { s.Power = vserver.PowerSuspended }, "freeze"},
		} {
			c.set(&s)
			if _, err := w.m.Update(w.t.Context(), s); err != nil {
				t.Fatal(err)
			}
			w.settle(s.ID)
			if got := w.steps(s.ID); got != c.want {
				t.Errorf("steps %q, want %q", got, c.want)
			}
		}
	})
}

func TestRefusals(t *testing.T) {
	inWorld(t, func(w *world) {
		a := w.create(small("a")).Spec
		b := w.create(small("b")).Spec
		refused := func(what string, kind fault.Kind, field string, err error) {
			t.Helper()
			if !fault.Is(err, kind) || fault.FieldOf(err) != field {
				t.Errorf("%s: want %s blaming %q, have %q: %v", what, kind, field, fault.FieldOf(err), err)
			}
		}
		update := func(s vserver.Spec, set func(*vserver.Spec)) error {
			set(&s)
			_, err := w.m.Update(w.t.Context(), s)
			return err
		}
		refused("shrink", fault.Invalid, "disk.size", update(a, func(s *vserver.Spec) { s.Disk.Size = 1 << 30 }))
		refused("other image", fault.Invalid, "image", update(a, func(s *vserver.Spec) { s.Image = "other" }))
		refused("taken name", fault.Exists, "name", update(a, func(s *vserver.Spec) { s.Name = "b" }))
		refused("too much", fault.Exhausted, "memory.max", update(a, func(s *vserver.Spec) { s.Memory.Max = 9 << 30 }))
		refused("taken address", fault.Exists, "network.eth0.address", update(a, func(s *vserver.Spec) {
			s.Network = map[string]vserver.NIC{"eth0": {Address: "10.0.0.3"}}
		}))
		refused("unknown network", fault.NotFound, "network.eth0.network", update(b, func(s *vserver.Spec) {
			s.Network = map[string]vserver.NIC{"eth0": {Network: "nowhere"}}
		}))
		_, err := w.m.Create(w.t.Context(), vserver.Spec{ID: uuid.NewString(), Name: "c", Image: "nothing"})
		refused("unknown image", fault.NotFound, "image", err)
		_, err = w.m.Create(w.t.Context(), vserver.Spec{ID: uuid.NewString(), Name: "c", Image: "tiny", Disk: vserver.Disk{Size: 1 << 29}})
		refused("smaller than the image", fault.Invalid, "disk.size", err)
		refused("unknown server", fault.NotFound, "", w.m.Delete(w.t.Context(), "nobody"))
		w.power(a.ID, vserver.ActionStop)
		w.host.Done()
		_, err = w.m.SetPower(w.t.Context(), a.ID, vserver.ActionSuspend, 0)
		refused("suspend what is stopped", fault.Precondition, "", err)
		if err := update(b, func(s *vserver.Spec) { s.DeletionProtection = true }); err != nil {
			t.Fatal(err)
		}
		w.settle(b.ID)
		refused("delete what is protected", fault.Precondition, "deletion_protection", w.m.Delete(w.t.Context(), b.ID))
		if got := w.steps(a.ID) + w.steps(b.ID); got != "" {
			t.Errorf("refusals took steps: %s", got)
		}
	})
}

// A guest that does not end in time is killed; one that ends by itself is found stopped.
func TestEnds(t *testing.T) {
	inWorld(t, func(w *world) {
		s := small("web")
		s.Power = vserver.PowerUnmanaged
		w.create(s)
		w.host.Runtime.Stubborn(s.ID)
		began := time.Now()
		w.want(w.power(s.ID, vserver.ActionStop), vserver.StateStopped)
		if took := time.Since(began); took != vserver.DefaultShutdownTimeout {
			t.Errorf("a stubborn guest was given %s", took)
		}
		w.want(w.power(s.ID, vserver.ActionStart), vserver.StateRunning)
		w.host.Runtime.End(s.ID)
		synctest.Wait()
		v := w.settle(s.ID)
		w.want(v, vserver.StateStopped)
		if len(v.Messages) == 0 || v.Operation.Err != "" {
			t.Errorf("a server that ended by itself says nothing: %+v", v)
		}
		w.want(w.power(s.ID, vserver.ActionStart), vserver.StateRunning)
	})
}

// A server that reboots itself runs again, with everything prepared and linked anew.
func TestRebootsItself(t *testing.T) {
	inWorld(t, func(w *world) {
		id := w.create(small("web")).Spec.ID
		w.host.Runtime.Reboot(id)
		synctest.Wait()
		v := w.settle(id)
		w.want(v, vserver.StateRunning)
		if got := w.steps(id); got != "runtime.delete limits.set prepare runtime.create network.set runtime.start" {
			t.Errorf("steps %s", got)
		}
		if len(v.Messages) != 1 || v.Operation.Kind != "" {
			t.Errorf("%+v", v)
		}
	})
}

// The host goes down and comes back: what ran runs again, what was stopped stays stopped,
// what was suspended is suspended again.
func TestHostComesBack(t *testing.T) {
	inWorld(t, func(w *world) {
		run, stopped, suspended := w.create(small("a")).Spec.ID, w.create(small("b")).Spec.ID, w.create(small("c")).Spec.ID
		w.power(stopped, vserver.ActionStop)
		w.power(suspended, vserver.ActionSuspend)
		w.m.Close()
		w.host.PowerOff(w.t.Context())
		w.start()
		w.want(w.settle(run), vserver.StateRunning)
		w.want(w.settle(stopped), vserver.StateStopped)
		w.want(w.settle(suspended), vserver.StateSuspended)
	})
}

// The agent restarts: nothing of a running server is touched but limits and links set
// again to what they are.
func TestAgentComesBack(t *testing.T) {
	inWorld(t, func(w *world) {
		id := w.create(small("a")).Spec.ID
		w.m.Close()
		w.start()
		v := w.settle(id)
		w.want(v, vserver.StateRunning)
		if got := w.steps(id); got != "limits.set network.set" {
			t.Errorf("adoption took steps %s", got)
		}
		if len(v.Messages) != 0 {
			t.Errorf("messages %v", v.Messages)
		}
	})
}
