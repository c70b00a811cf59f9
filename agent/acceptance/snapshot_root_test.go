//go:build linux && root && crashpoints

package acceptance

import (
	"fmt"
	"os"
	"strconv"
	"testing"

	"connectrpc.com/connect"

	reflejov1 "github.com/reflejo/terraform-provider-reflejo/agent/api/reflejo/v1"
)

// Snapshots of a server that writes, is suspended or stopped: each is clean, holds every
// record that was on stable storage before, and none from after. REFLEJO_SNAPSHOTS says how
// many are taken.
func TestSnapshotsHoldOneMoment(t *testing.T) {
	h := newHosts(t, "alpha")[0]
	before := h.quiet()
	image, program := h.tinyImage(), buildRecord(t)
	s := h.recording("subject", image, program)
	count := 6
	if n, err := strconv.Atoi(os.Getenv("REFLEJO_SNAPSHOTS")); err == nil {
		count = n
	}
	for i := range count {
		state := []string{"running", "suspended", "stopped"}[i%3]
		t.Run(fmt.Sprintf("%d %s", i+1, state), func(t *testing.T) {
			h.t = t
			h.oneMoment(s, state, i%2 == 0)
		})
	}
	h.t = t
	h.remove(s.GetId())
	for _, left := range h.snapshots("") {
		h.forget(left.GetId())
	}
	if _, err := h.api.Images.DeleteImage(t.Context(), connect.NewRequest(&reflejov1.DeleteImageRequest{Id: image})); err != nil {
		t.Fatal(err)
	}
	if diff := before.Diff(h.quiet()); diff != "" {
		t.Errorf("the host is not as it was:\n%s", diff)
	}
}

// oneMoment takes one snapshot in a state, and looks at it in a clone and, with restore, in
// place.
func (h *host) oneMoment(s *reflejov1.ServerSpec, state string, restore bool) {
	t, id := h.t, s.GetId()
	w := h.write(id)
	switch state {
	case "suspended":
		suspend(h, s)
	case "stopped":
		stop(h, s)
		w.end()
	}
	low := w.named.Load()
	snapshot := h.snapshot(id)
	high := w.named.Load() + 1 // that was written, perhaps, and not yet named
	if snapshot.GetServerState() != state {
		t.Errorf("the snapshot says that the server was %s", snapshot.GetServerState())
	}
	h.clean(snapshot.GetId())
	clone := h.clone(snapshot.GetId())
	if n := h.checked(clone.GetSpec().GetId()); n < low || n > high {
		t.Errorf("the clone has %d records: %d were there before, %d after", n, low, high)
	}
	if clone.GetNics()["eth0"].GetMac() == "" || h.machineID(clone.GetSpec().GetId()) == "" {
		t.Error("the clone has no identity")
	}
	if state == "suspended" {
		h.power(s, reflejov1.SetPowerRequest_ACTION_RESUME)
	}
	if restore {
		nic := h.settled(id).GetNics()["eth0"]
		safety := h.restore(id, snapshot.GetId())
		w.end()
		h.power(s, reflejov1.SetPowerRequest_ACTION_START)
		if now := h.settled(id).GetNics()["eth0"]; now.GetMac() != nic.GetMac() || now.GetAddress() != nic.GetAddress() {
			t.Errorf("the server was %v, is %v", nic, now)
		}
		if n := h.checked(id); n < low || n > high {
			t.Errorf("restored, it has %d records: %d were there before, %d after", n, low, high)
		}
		h.clean(safety)
		h.forget(safety)
	} else {
		w.end()
		h.power(s, reflejov1.SetPowerRequest_ACTION_START)
	}
	if n := h.checked(clone.GetSpec().GetId()); n > high {
		t.Errorf("the clone has got %d records from its source", n)
	}
	h.remove(clone.GetSpec().GetId())
}

func (h *host) power(s *reflejov1.ServerSpec, a reflejov1.SetPowerRequest_Action) {
	h.t.Helper()
	if err := power(a)(h.t.Context(), h, s); err != nil {
		h.t.Fatal(err)
	}
	h.settled(s.GetId())
}

func (h *host) machineID(id string) string {
	_, out := h.exec(id, "cat", "/etc/machine-id")
	return out
}

// snapshots are those of a server, or all.
func (h *host) snapshots(server string) []*reflejov1.Snapshot {
	h.t.Helper()
	got, err := h.api.Snapshots.ListSnapshots(h.t.Context(), connect.NewRequest(&reflejov1.ListSnapshotsRequest{Server: server}))
	if err != nil {
		h.t.Fatal(err)
	}
	return got.Msg.GetSnapshots()
}

// A power cut of the pool right after a snapshot is complete takes nothing from it.
func TestSnapshotsSurvivePowerCuts(t *testing.T) {
	h := newHosts(t, "alpha")[0]
	image, program := h.tinyImage(), buildRecord(t)
	s := h.recording("subject", image, program)
	for range 3 {
		w := h.write(s.GetId())
		low := w.named.Load()
		snapshot := h.snapshot(s.GetId())
		high := w.named.Load() + 1
		h.cutPower()
		w.end()
		if got := h.settled(s.GetId()); got.GetState() != "running" {
			t.Fatalf("after the power cut the server is %s (%s)", got.GetState(), got.GetOperation().GetError())
		}
		if n := h.checked(s.GetId()); n < w.named.Load() {
			t.Errorf("the server has %d records, %d were on stable storage", n, w.named.Load())
		}
		h.clean(snapshot.GetId())
		clone := h.clone(snapshot.GetId())
		if n := h.checked(clone.GetSpec().GetId()); n < low || n > high {
			t.Errorf("the snapshot has %d records: %d were there before, %d after", n, low, high)
		}
		h.remove(clone.GetSpec().GetId())
		h.forget(snapshot.GetId())
	}
	h.remove(s.GetId())
}

// cutPower stops the pool's file system as a power cut does, without what it has not
// written, ends everything on the host, and boots it again.
func (h *host) cutPower() {
	h.t.Helper()
	if out, err := h.onHost("xfs_io", "-x", "-c", "shutdown", h.inPool()); err != nil {
		h.t.Fatalf("shut down the pool's file system: %v\n%s", err, out)
	}
	if err := h.handle().Kill(h.t.Context()); err != nil {
		h.t.Fatal(err)
	}
	if err := h.handle().Start(h.t.Context()); err != nil {
		h.t.Fatal(err)
	}
}
