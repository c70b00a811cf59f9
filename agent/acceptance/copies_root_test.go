//go:build linux && root && crashpoints

package acceptance

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"connectrpc.com/connect"
	"github.com/google/uuid"

	reflejov1 "github.com/reflejo/terraform-provider-reflejo/agent/api/reflejo/v1"
	"github.com/reflejo/terraform-provider-reflejo/agent/testbed"
)

// records is the file that testdata/record writes in a server.
const records = "/root/records"

// buildRecord builds testdata/record.
func buildRecord(t *testing.T) []byte {
	t.Helper()
	file := filepath.Join(t.TempDir(), "record")
	build := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", file, "./testdata/record")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build testdata/record: %v\n%s", err, out)
	}
	program, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return program
}

// writer writes records in a server until it is ended, or its server is.
type writer struct {
	c     *command
	named atomic.Uint64 // the last record that is on stable storage
	done  sync.WaitGroup
}

// write begins to write records, and returns when there are new ones.
func (h *host) write(id string) *writer {
	h.t.Helper()
	w := &writer{c: h.start(id, "/bin/record", "write", records)}
	name := func(text string) {
		if n, err := strconv.ParseUint(strings.TrimSpace(text), 10, 64); err == nil {
			w.named.Store(n)
		}
	}
	for range 3 {
		name(w.c.line())
	}
	w.done.Go(func() {
		for {
			text, err := w.c.output.ReadString('\n')
			if err != nil {
				return
			}
			name(text)
		}
	})
	return w
}

// end ends the writing. What was named stays so.
func (w *writer) end() {
	w.c.cancel()
	w.done.Wait()
}

// checked is the last record in a running server; none before it may be missing or damaged.
func (h *host) checked(id string) uint64 {
	h.t.Helper()
	code, out := h.exec(id, "/bin/record", "check", records)
	n, err := strconv.ParseUint(strings.TrimSpace(out), 10, 64)
	if code != 0 || err != nil {
		h.t.Fatalf("records of %s: exit %d, %q", id, code, out)
	}
	return n
}

// recording makes a running server with the recorder in it.
func (h *host) recording(name, image string, program []byte) *reflejov1.ServerSpec {
	h.t.Helper()
	s := spec(name, image)
	s.Cpu.MilliCores, s.KeepSnapshots = 500, true
	h.create(s)
	h.put(s.GetId(), "/bin/record", program)
	return s
}

// snapshot takes one and waits until it is complete.
func (h *host) snapshot(server string) *reflejov1.Snapshot {
	h.t.Helper()
	return h.snapshotAs(server, "")
}

// snapshotAs is snapshot with a consistency.
func (h *host) snapshotAs(server, consistency string) *reflejov1.Snapshot {
	h.t.Helper()
	id := uuid.NewString()
	if _, err := h.api.Snapshots.CreateSnapshot(h.t.Context(), connect.NewRequest(&reflejov1.CreateSnapshotRequest{Id: id, Server: server, Consistency: consistency})); err != nil {
		h.t.Fatal(err)
	}
	s := h.snapshotSettled(id)
	if s.GetState() != "ready" || s.GetChecksum() == "" {
		h.t.Fatalf("snapshot %s: %s (%s)", id, s.GetState(), s.GetOperation().GetError())
	}
	return s
}

// snapshotSettled waits until nothing is under way; nil when the snapshot is gone.
func (h *host) snapshotSettled(id string) *reflejov1.Snapshot {
	h.t.Helper()
	ctx, cancel := context.WithTimeout(h.t.Context(), patience)
	defer cancel()
	stream, err := h.api.Snapshots.WatchSnapshot(ctx, connect.NewRequest(&reflejov1.WatchSnapshotRequest{Id: id, UntilSettled: true}))
	if err != nil {
		h.t.Fatal(err)
	}
	defer stream.Close()
	var last *reflejov1.WatchSnapshotResponse
	for stream.Receive() {
		last = stream.Msg()
	}
	if err := stream.Err(); connect.CodeOf(err) == connect.CodeNotFound {
		return nil
	} else if err != nil {
		h.t.Fatal(err)
	}
	if last.GetGone() {
		return nil
	}
	return last.GetSnapshot()
}

// forget deletes a snapshot and waits until it is gone.
func (h *host) forget(snapshot string) {
	h.t.Helper()
	_, err := h.api.Snapshots.DeleteSnapshot(h.t.Context(), connect.NewRequest(&reflejov1.DeleteSnapshotRequest{Id: snapshot}))
	if err != nil && connect.CodeOf(err) != connect.CodeNotFound {
		h.t.Fatal(err)
	}
	if s := h.snapshotSettled(snapshot); err == nil && s != nil {
		h.t.Fatalf("snapshot %s is still there: %s (%s)", snapshot, s.GetState(), s.GetOperation().GetError())
	}
}

// clone makes a running server of a snapshot.
func (h *host) clone(snapshot string) *reflejov1.Server {
	h.t.Helper()
	s := spec("clone-"+uuid.NewString()[:8], "")
	s.CloneOf = snapshot
	return h.create(s)
}

// restore puts a snapshot back in place, and waits until the server is what it was.
func (h *host) restore(server, snapshot string) (safety string) {
	h.t.Helper()
	safety = uuid.NewString()
	_, err := h.api.Snapshots.RestoreServer(h.t.Context(), connect.NewRequest(&reflejov1.RestoreServerRequest{Id: safety, Server: server, Snapshot: snapshot}))
	if err != nil {
		h.t.Fatal(err)
	}
	if s := h.settled(server); s.GetOperation().GetError() != "" {
		h.t.Fatalf("restore: %s", s.GetOperation().GetError())
	}
	return safety
}

// inPool is the path of a file in the host's pool, in its mount namespace.
func (h *host) inPool(parts ...string) string {
	return filepath.Join(append([]string{h.handle().Dir(), "pool", "pool"}, parts...)...)
}

// onHost runs a program in the host's namespaces.
func (h *host) onHost(argv ...string) (string, error) {
	handle := h.handle()
	args := append([]string{"--net=" + handle.Netns(), "--mount=" + handle.Mountns(), "--"}, argv...)
	out, err := exec.CommandContext(h.t.Context(), "nsenter", args...).CombinedOutput()
	return string(out), err
}

// clean checks that a snapshot's file system needs no repair.
func (h *host) clean(snapshot string) {
	h.t.Helper()
	if out, err := h.onHost("e2fsck", "-fn", h.inPool("snapshots", snapshot+".ext4")); err != nil {
		h.t.Errorf("snapshot %s is not clean: %v\n%s", snapshot, err, out)
	}
}

// dial connects to the host's agent anew.
func (h *host) dial() {
	h.t.Helper()
	client, err := bed(h.t, h.config).Client(h.name)
	if err != nil {
		h.t.Fatal(err)
	}
	h.api = client
}

// backupDir is the directory of backups that is the same on all hosts.
func (h *host) backupDir() string { return filepath.Join(h.config.Dir, "backups") }

// backup makes one and waits until it is complete.
func (h *host) backup(snapshot, target string, incremental bool) *reflejov1.Backup {
	h.t.Helper()
	id := uuid.NewString()
	request := &reflejov1.CreateBackupRequest{Id: id, Snapshot: snapshot, Target: target, Incremental: incremental}
	if _, err := h.api.Backups.CreateBackup(h.t.Context(), connect.NewRequest(request)); err != nil {
		h.t.Fatal(err)
	}
	b := h.backupSettled(id)
	if b.GetState() != "ready" {
		h.t.Fatalf("backup %s: %s (%s)", id, b.GetState(), b.GetOperation().GetError())
	}
	return b
}

func (h *host) backupSettled(id string) *reflejov1.Backup {
	h.t.Helper()
	ctx, cancel := context.WithTimeout(h.t.Context(), patience)
	defer cancel()
	stream, err := h.api.Backups.WatchBackup(ctx, connect.NewRequest(&reflejov1.WatchBackupRequest{Id: id, UntilSettled: true}))
	if err != nil {
		h.t.Fatal(err)
	}
	defer stream.Close()
	var last *reflejov1.Backup
	for stream.Receive() {
		last = stream.Msg().GetBackup()
	}
	if err := stream.Err(); err != nil {
		h.t.Fatal(err)
	}
	return last
}

// verify reads a backup back and returns what is wrong with it, "" if nothing is.
func (h *host) verify(backup, target string) string {
	h.t.Helper()
	ctx, cancel := context.WithTimeout(h.t.Context(), patience)
	defer cancel()
	stream, err := h.api.Backups.VerifyBackup(ctx, connect.NewRequest(&reflejov1.VerifyBackupRequest{Id: backup, Target: target}))
	if err != nil {
		h.t.Fatal(err)
	}
	defer stream.Close()
	var last *reflejov1.VerifyBackupResponse
	for stream.Receive() {
		last = stream.Msg()
	}
	if err := stream.Err(); err != nil {
		h.t.Fatal(err)
	}
	if !last.GetOk() && last.GetProblem() == "" {
		h.t.Fatal("the verification ended without a word")
	}
	return last.GetProblem()
}

// bring imports a backup as a snapshot.
func (h *host) bring(backup, target string) *reflejov1.Snapshot {
	h.t.Helper()
	id := uuid.NewString()
	if _, err := h.api.Backups.ImportBackup(h.t.Context(), connect.NewRequest(&reflejov1.ImportBackupRequest{Id: id, Target: target, Backup: backup})); err != nil {
		h.t.Fatal(err)
	}
	return h.snapshotSettled(id)
}

// move moves a server to another host as the provider does, and returns how it is there.
func (h *host) move(to *host, id string, settings *reflejov1.MigrationSettings) (*reflejov1.Server, error) {
	h.t.Helper()
	if err := h.beginMove(to, id, settings); err != nil {
		return nil, err
	}
	if s := h.settled(id); s != nil {
		return s, connect.NewError(connect.CodeAborted, &moveError{s.GetOperation().GetError()})
	}
	return to.settled(id), nil
}

type moveError struct{ text string }

func (e *moveError) Error() string { return e.text }

func (h *host) beginMove(to *host, id string, settings *reflejov1.MigrationSettings) error {
	got, err := h.api.Servers.GetServer(h.t.Context(), connect.NewRequest(&reflejov1.GetServerRequest{Id: id}))
	if err != nil {
		return err
	}
	right, err := to.api.Servers.PrepareMigration(h.t.Context(), connect.NewRequest(&reflejov1.PrepareMigrationRequest{Server: got.Msg.GetServer(), Source: h.name}))
	if err != nil {
		return err
	}
	_, err = h.api.Servers.MigrateServer(h.t.Context(), connect.NewRequest(&reflejov1.MigrateServerRequest{
		Id: id, Target: to.name, Endpoint: right.Msg.GetEndpoint(), Ticket: right.Msg.GetTicket(), Settings: settings}))
	return err
}

// span makes a network on all of the hosts.
func span(hosts []*host, cidr string) string {
	t := hosts[0].t
	t.Helper()
	n := &reflejov1.NetworkSpec{Id: uuid.NewString(), Name: "span", Cidr: cidr, Nat: true}
	for i, h := range hosts {
		n.Members = append(n.Members, &reflejov1.NetworkMember{Host: h.name, Address: testbed.Address(h.name).String(), Slot: uint32(i)})
	}
	for _, h := range hosts {
		if _, err := h.api.Networks.PutNetwork(t.Context(), connect.NewRequest(&reflejov1.PutNetworkRequest{Spec: n})); err != nil {
			t.Fatal(err)
		}
	}
	return n.GetId()
}
