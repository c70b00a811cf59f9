//go:build linux && root && crashpoints

package acceptance

import (
	"context"
	"slices"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/google/uuid"
	"google.golang.org/protobuf/proto"

	reflejov1 "github.com/reflejo/terraform-provider-reflejo/agent/api/reflejo/v1"
	"github.com/reflejo/terraform-provider-reflejo/agent/testbed/inventory"
	"github.com/reflejo/terraform-provider-reflejo/agent/vserver"
)

// operation is something a user asks for, and what has to be true when it is over.
type operation struct {
	kind  string
	from  func(*vserver.Record, *vserver.Have) // makes a running server into the plan's start
	setup func(*host, *reflejov1.ServerSpec)   // the same for real
	ask   func(context.Context, *host, *reflejov1.ServerSpec) error
	state string // afterwards; "" = gone
	check func(*testing.T, *host, *reflejov1.Server)
}

func power(a reflejov1.SetPowerRequest_Action) func(context.Context, *host, *reflejov1.ServerSpec) error {
	return func(ctx context.Context, h *host, s *reflejov1.ServerSpec) error {
		_, err := h.api.Servers.SetPower(ctx, connect.NewRequest(&reflejov1.SetPowerRequest{Id: s.GetId(), Action: a}))
		return err
	}
}

func suspend(h *host, s *reflejov1.ServerSpec) {
	if err := power(reflejov1.SetPowerRequest_ACTION_SUSPEND)(h.t.Context(), h, s); err != nil {
		h.t.Fatal(err)
	}
	h.settled(s.GetId())
}

func update(ctx context.Context, h *host, s *reflejov1.ServerSpec) error {
	s = changed(s)
	_, err := h.api.Servers.UpdateServer(ctx, connect.NewRequest(&reflejov1.UpdateServerRequest{Spec: s}))
	return err
}

// changed differs from s in all that an update of a running server can carry out on any
// host. (A mounted file system grows only where the agent has CAP_SYS_RESOURCE: see grow.)
func changed(s *reflejov1.ServerSpec) *reflejov1.ServerSpec {
	s = proto.Clone(s).(*reflejov1.ServerSpec)
	s.Cpu.MilliCores, s.Memory.Max, s.Hostname = 300, 96<<20, "renamed"
	s.Network = map[string]*reflejov1.Nic{"eth0": {Egress: 50_000_000}}
	return s
}

// grow enlarges the disk of a stopped server.
func grow(ctx context.Context, h *host, s *reflejov1.ServerSpec) error {
	s = proto.Clone(s).(*reflejov1.ServerSpec)
	s.Disk.Size, s.Power = 11<<30, "stopped"
	_, err := h.api.Servers.UpdateServer(ctx, connect.NewRequest(&reflejov1.UpdateServerRequest{Spec: s}))
	return err
}

func stop(h *host, s *reflejov1.ServerSpec) {
	if err := power(reflejov1.SetPowerRequest_ACTION_STOP)(h.t.Context(), h, s); err != nil {
		h.t.Fatal(err)
	}
	h.settled(s.GetId())
}

func operations() []operation {
	return []operation{
		{kind: "create", state: "running",
			from: func(r *vserver.Record, h *vserver.Have) { r.Phase, *h = vserver.PhaseCreate, vserver.Have{} },
			ask: func(ctx context.Context, h *host, s *reflejov1.ServerSpec) error {
				_, err := h.api.Servers.CreateServer(ctx, connect.NewRequest(&reflejov1.CreateServerRequest{Spec: s}))
				return err
			}},
		{kind: "update", state: "running", ask: update,
			from: func(r *vserver.Record, h *vserver.Have) {
				r.Spec.CPU.MilliCores, r.Spec.Hostname = 2, "renamed"
				r.Spec.Network = map[string]vserver.NIC{"eth0": {Egress: 1}}
			},
			check: func(t *testing.T, h *host, s *reflejov1.Server) {
				want := changed(s.GetSpec())
				if !proto.Equal(want.GetCpu(), s.GetSpec().GetCpu()) || !proto.Equal(want.GetMemory(), s.GetSpec().GetMemory()) || s.GetSpec().GetHostname() != "renamed" {
					t.Errorf("the update is half done: %v", s.GetSpec())
				}
				if _, name := h.exec(s.GetSpec().GetId(), "cat", "/etc/hostname"); name != "renamed\n" {
					t.Errorf("host name inside: %q", name)
				}
			}},
		{kind: "update", state: "stopped", setup: stop, ask: grow,
			from: func(r *vserver.Record, h *vserver.Have) {
				r.Want, r.Spec.Disk.Size, *h = vserver.PowerStopped, 20, vserver.Have{Disk: &vserver.DiskInfo{Size: 10}}
			},
			check: func(t *testing.T, h *host, s *reflejov1.Server) {
				if s.GetSpec().GetDisk().GetSize() != 11<<30 {
					t.Errorf("the disk has %d bytes", s.GetSpec().GetDisk().GetSize())
				}
			}},
		{kind: "suspend", state: "suspended", ask: power(reflejov1.SetPowerRequest_ACTION_SUSPEND),
			from: func(r *vserver.Record, h *vserver.Have) { r.Want = vserver.PowerSuspended }},
		{kind: "resume", state: "running", setup: suspend, ask: power(reflejov1.SetPowerRequest_ACTION_RESUME),
			from: func(r *vserver.Record, h *vserver.Have) { h.Group.Frozen = true }},
		{kind: "stop", state: "stopped", ask: power(reflejov1.SetPowerRequest_ACTION_STOP),
			from: func(r *vserver.Record, h *vserver.Have) { r.Want = vserver.PowerStopped }},
		{kind: "kill", state: "stopped", ask: power(reflejov1.SetPowerRequest_ACTION_KILL),
			from: func(r *vserver.Record, h *vserver.Have) { r.Want, r.Force = vserver.PowerStopped, true }},
		{kind: "reboot", state: "running", ask: power(reflejov1.SetPowerRequest_ACTION_REBOOT),
			from: func(r *vserver.Record, h *vserver.Have) { r.Rebooting = true }},
		{kind: "restore", state: "running",
			from: func(r *vserver.Record, h *vserver.Have) { r.Restore.Snapshot = "s" },
			setup: func(h *host, s *reflejov1.ServerSpec) {
				h.exec(s.GetId(), "sh", "-c", "echo old > /root/word && sync")
				h.snapshot(s.GetId())
				h.exec(s.GetId(), "sh", "-c", "echo new > /root/word && sync")
			},
			ask: func(ctx context.Context, h *host, s *reflejov1.ServerSpec) error {
				_, err := h.api.Snapshots.RestoreServer(ctx, connect.NewRequest(&reflejov1.RestoreServerRequest{
					Id: uuid.NewString(), Server: s.GetId(), Snapshot: h.snapshots(s.GetId())[0].GetId()}))
				return err
			},
			check: func(t *testing.T, h *host, s *reflejov1.Server) {
				if _, word := h.exec(s.GetSpec().GetId(), "cat", "/root/word"); word != "old\n" {
					t.Errorf("restored, the server has %q", word)
				}
				if kept := h.snapshots(s.GetSpec().GetId()); len(kept) != 2 || kept[1].GetOrigin() != "safety" {
					t.Errorf("snapshots afterwards: %v", kept)
				}
			}},
		{kind: "delete", state: "",
			from: func(r *vserver.Record, h *vserver.Have) { r.Phase = vserver.PhaseDelete },
			ask: func(ctx context.Context, h *host, s *reflejov1.ServerSpec) error {
				_, err := h.api.Servers.DeleteServer(ctx, connect.NewRequest(&reflejov1.DeleteServerRequest{Id: s.GetId()}))
				return err
			}},
	}
}

// steps are what the code plans for an operation on a running server.
func (o operation) steps() []vserver.Step {
	spec := vserver.Spec{CPU: vserver.CPU{MilliCores: 1}, Disk: vserver.Disk{Size: 10}}
	r := vserver.Record{Phase: vserver.PhaseLive, Want: vserver.PowerRunning, Spec: spec, Applied: spec}
	h := vserver.Have{Disk: &vserver.DiskInfo{Size: 10, Attached: true}, Group: &vserver.GroupInfo{},
		Run: &vserver.Running{Status: vserver.RunRunning}, Links: true, Verified: true}
	o.from(&r, &h)
	return vserver.Plan(r, h)
}

// The agent is killed before and after every step of every operation. Its next start
// finishes the operation, leaves nothing behind, and does not touch other servers.
func TestKilledAtEveryStep(t *testing.T) {
	h := newHosts(t, "alpha")[0]
	image := h.tinyImage()
	bystander := spec("bystander", image)
	bystander.Id = h.create(bystander).GetSpec().GetId()
	_, born := h.exec(bystander.GetId(), "stat", "-c", "%Y", "/proc/1")
	before := h.quiet()
	visited := map[vserver.Step]bool{}
	for _, o := range operations() {
		steps := o.steps()
		for _, step := range slices.Compact(slices.Sorted(slices.Values(steps))) {
			visited[step] = true
			for _, when := range []string{"before", "after"} {
				t.Run(o.kind+"/"+string(step)+"/"+when, func(t *testing.T) {
					h.t = t
					h.killedAt(o, o.kind+"/"+string(step)+"/"+when, image)
					if diff := before.Diff(h.quiet()); diff != "" {
						t.Errorf("the host is not as it was:\n%s", diff)
					}
				})
			}
		}
	}
	h.t = t
	for _, s := range vserver.Steps() {
		if !visited[s] {
			t.Errorf("no operation of this test takes step %s", s)
		}
	}
	if _, now := h.exec(bystander.GetId(), "stat", "-c", "%Y", "/proc/1"); now != born {
		t.Errorf("the bystander was restarted: process 1 began at %s, now %s", born, now)
	}
}

// killedAt carries out an operation with an agent that dies at a place, and checks what the
// next agent makes of it.
func (h *host) killedAt(o operation, place, image string) {
	t := h.t
	s := spec("subject-"+uuid.NewString()[:8], image)
	h.restart("REFLEJO_CRASH_AT=" + place)
	if o.kind != "create" {
		h.create(s)
		if o.setup != nil {
			o.setup(h, s)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	_ = o.ask(ctx, h, s) // it may die before it answers
	h.awaitDeath()
	h.restart()
	server := h.settled(s.GetId())
	switch {
	case server == nil && o.state != "":
		t.Errorf("the server is gone")
	case server != nil && server.GetState() != o.state:
		t.Errorf("the server is %s, want %s (%s)", server.GetState(), o.state, server.GetOperation().GetError())
	case server != nil && o.check != nil:
		o.check(t, h, server)
	}
	if server.GetState() == "running" {
		if code, out := h.exec(s.GetId(), "echo", "alive"); code != 0 || out != "alive\n" {
			t.Errorf("the server does not work: exit %d, %q", code, out)
		}
	}
	h.remove(s.GetId())
	for _, left := range h.snapshots(s.GetId()) { // they go with their server, a little later
		h.snapshotSettled(left.GetId())
	}
}

// awaitDeath returns when the agent has ended.
func (h *host) awaitDeath() {
	h.t.Helper()
	handle := h.handle()
	deadline := time.Now().Add(patience)
	for handle.AgentPID() != 0 {
		if time.Now().After(deadline) {
			h.t.Fatal("the agent did not come to the place where it was to die")
		}
		pause(10 * time.Millisecond)
	}
}

// quiet is the host's inventory less what an agent renews by itself.
func (h *host) quiet() inventory.Inventory {
	h.t.Helper()
	found, err := h.handle().Inventory()
	if err != nil {
		h.t.Fatal(err)
	}
	return found
}

// pause is one turn of a polling loop.
func pause(d time.Duration) { <-time.After(d) }
