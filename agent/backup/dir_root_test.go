//go:build linux && root

package backup

import (
	"crypto/rand"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
	"github.com/reflejo/terraform-provider-reflejo/agent/snapshot"
)

// A disk that is full says so; with more room the same request goes on.
func TestRootFullDisk(t *testing.T) {
	h := newHost(t, 1, 8<<20)
	if _, err := rand.Read(h.now.content); err != nil {
		t.Fatal(err)
	}
	h.now.data = []snapshot.Range{{Offset: 0, Length: 8 << 20}}
	a := newAgent(t, h)
	defer a.Close()
	if err := unix.Mount("backups", a.dir, "tmpfs", 0, "size=3m"); err != nil {
		t.Fatal(err)
	}
	defer unix.Unmount(a.dir, unix.MNT_DETACH)
	req := Request{ID: newID(), Snapshot: h.take(newID()).ID}
	if v := a.make(req); v.State != PhaseFailed || v.Operation.ErrKind != fault.Exhausted.String() {
		t.Fatalf("%+v", v)
	}
	if err := unix.Mount("backups", a.dir, "tmpfs", unix.MS_REMOUNT, "size=32m"); err != nil {
		t.Fatal(err)
	}
	v := a.make(req)
	if v.State != PhaseReady {
		t.Fatalf("%+v", v)
	}
	a.check(h, v)
}
