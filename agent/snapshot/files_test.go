package snapshot_test

import (
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"

	"github.com/google/uuid"

	"github.com/reflejo/terraform-provider-reflejo/agent/snapshot"
	"github.com/reflejo/terraform-provider-reflejo/agent/snapshot/snapshottest"
	"github.com/reflejo/terraform-provider-reflejo/agent/vserver"
)

// newFiles is a host whose disks hold real files.
func newFiles(t *testing.T) (*world, *snapshottest.Pool) {
	w := newWorld(t)
	pool := snapshottest.NewPool(w.host.Pool)
	w.disks = pool.Disks()
	w.start()
	return w, pool
}

// file is where a running server's file is.
func (w *world) file(server, name string) string {
	w.t.Helper()
	disks, err := w.host.Pool.Disks().List(w.t.Context())
	must(w.t, err)
	for _, d := range disks {
		if d.ID == server && d.Attached {
			return filepath.Join(d.Attachment.Root, name)
		}
	}
	w.t.Fatalf("server %s has no attached disk", server)
	return ""
}

func (w *world) put(server, name, text string) {
	w.t.Helper()
	must(w.t, os.WriteFile(w.file(server, name), []byte(text), 0o600))
}

func (w *world) wantFile(server, name, text string) {
	w.t.Helper()
	if got, err := os.ReadFile(w.file(server, name)); err != nil || string(got) != text {
		w.t.Errorf("file %s: %q, %v; want %q", name, got, err, text)
	}
}

// send carries a snapshot to another host's pool, as a backup or a migration does.
func send(t *testing.T, w *world, to *snapshottest.Pool, rec snapshot.Record) {
	t.Helper()
	c, err := w.disks.Open(t.Context(), rec.ID)
	must(t, err)
	defer c.Close()
	arriving := uuid.NewString()
	a, err := to.Arrivals().Receive(t.Context(), arriving, c.Size())
	must(t, err)
	data, err := c.Data(t.Context())
	must(t, err)
	for _, r := range data {
		b := make([]byte, r.Length)
		must(t, snapshot.ReadFull(c, b, r.Offset))
		_, err := a.WriteAt(b, r.Offset)
		must(t, err)
	}
	must(t, a.Sync())
	must(t, a.Close())
	must(t, to.Arrivals().Keep(t.Context(), arriving, rec.ID))
	must(t, to.Arrivals().Drop(t.Context(), arriving))
}

// What is in a server's files is what a snapshot puts back, what a clone starts from and
// what comes out on another host.
func TestFilesAreThere(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		alpha, _ := newFiles(t)
		defer alpha.close()
		gamma, there := newFiles(t)
		defer gamma.close()
		web := alpha.server("web", vserver.PowerRunning)
		alpha.put(web, "data", "old")
		first := request(web)
		alpha.take(first)
		alpha.ready(first.ID)
		alpha.put(web, "data", "new")

		safety := uuid.NewString()
		_, err := alpha.servers.Restore(t.Context(), web, first.ID, safety)
		must(t, err)
		must(t, alpha.servers.Settled(t.Context()))
		alpha.wantFile(web, "data", "old")
		alpha.ready(safety)

		for _, rec := range alpha.m.Export(web) {
			send(t, alpha, there, rec)
			sum := rec.Checksum
			rec.Checksum = "" // so that gamma finds it by itself
			_, err := gamma.m.Adopt(t.Context(), rec)
			must(t, err)
			if v := gamma.ready(rec.ID); v.Checksum != sum {
				t.Errorf("snapshot %s: %s on gamma, %s on alpha", rec.Name, v.Checksum, sum)
			}
		}
		clone := vserver.Spec{ID: uuid.NewString(), Name: "copy", CloneOf: safety, Power: vserver.PowerRunning, Disk: vserver.Disk{Size: diskSize}}
		_, err = gamma.servers.Create(t.Context(), clone)
		must(t, err)
		must(t, gamma.servers.Settled(t.Context()))
		gamma.wantFile(clone.ID, "data", "new")
	})
}
