//go:build linux && root && crashpoints

package acceptance

import (
	"context"
	"slices"
	"testing"

	"connectrpc.com/connect"
	"github.com/google/uuid"

	reflejov1 "github.com/reflejo/terraform-provider-reflejo/agent/api/reflejo/v1"
	"github.com/reflejo/terraform-provider-reflejo/agent/snapshot"
)

// The agent is killed at every place of taking and deleting snapshots of a running server,
// also while its writers are stopped. The server goes on, and the next agent finishes what
// was asked for.
func TestSnapshotKilledAtEveryPlace(t *testing.T) {
	h := newHosts(t, "alpha")[0]
	s := spec("subject", h.tinyImage())
	s.Id = h.create(s).GetSpec().GetId()
	_, born := h.exec(s.GetId(), "stat", "-c", "%Y", "/proc/1")
	before := h.quiet()
	for _, place := range snapshot.Places() {
		t.Run(place, func(t *testing.T) {
			h.t = t
			older := h.snapshot(s.GetId())
			h.exec(s.GetId(), "sh", "-c", "date > /root/word && sync")
			newer := h.snapshot(s.GetId())
			h.exec(s.GetId(), "sh", "-c", "date > /root/other && sync")
			h.restart("REFLEJO_CRASH_AT=" + place)

			id, deletes := uuid.NewString(), slices.Contains([]string{"snapshot/deleting", "snapshot/counted", "snapshot/removed"}, place)
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			if deletes { // it may die before it answers
				_, _ = h.api.Snapshots.DeleteSnapshot(ctx, connect.NewRequest(&reflejov1.DeleteSnapshotRequest{Id: older.GetId()}))
			} else {
				_, _ = h.api.Snapshots.CreateSnapshot(ctx, connect.NewRequest(&reflejov1.CreateSnapshotRequest{Id: id, Server: s.GetId()}))
			}
			h.awaitDeath()
			h.restart()

			if deletes {
				if left := h.snapshotSettled(older.GetId()); left != nil {
					t.Errorf("the deleted snapshot is %s", left.GetState())
				}
			} else if got := h.snapshotSettled(id); got.GetState() != "ready" || got.GetChecksum() == "" || got.GetServerState() != "running" {
				t.Errorf("the snapshot is %v", got)
			}
			if got := h.snapshotSettled(newer.GetId()); got.GetState() != "ready" || got.GetChecksum() != newer.GetChecksum() {
				t.Errorf("the one before is %v", got)
			}
			if got := h.settled(s.GetId()); got.GetState() != "running" {
				t.Errorf("the server is %s", got.GetState())
			}
			if code, out := h.exec(s.GetId(), "sh", "-c", "echo on > /root/word && sync && cat /root/word"); code != 0 || out != "on\n" {
				t.Errorf("the server does not write: exit %d, %q", code, out)
			}
			for _, left := range h.snapshots(s.GetId()) {
				if _, err := h.api.Snapshots.DeleteSnapshot(t.Context(), connect.NewRequest(&reflejov1.DeleteSnapshotRequest{Id: left.GetId()})); err != nil {
					t.Error(err)
				}
				h.snapshotSettled(left.GetId())
			}
			if diff := before.Diff(h.quiet()); diff != "" {
				t.Errorf("the host is not as it was:\n%s", diff)
			}
		})
	}
	h.t = t
	if _, now := h.exec(s.GetId(), "stat", "-c", "%Y", "/proc/1"); now != born {
		t.Errorf("the server was restarted: process 1 began at %s, now %s", born, now)
	}
}
