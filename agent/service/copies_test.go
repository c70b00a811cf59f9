package service_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"connectrpc.com/connect"

	"github.com/reflejo/terraform-provider-reflejo/agent/api"
	reflejov1 "github.com/reflejo/terraform-provider-reflejo/agent/api/reflejo/v1"
	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
	"github.com/reflejo/terraform-provider-reflejo/agent/pki"
	"github.com/reflejo/terraform-provider-reflejo/agent/service/servicetest"
)

const (
	snapshotID = "22222222-2222-4222-8222-222222222222"
	backupID   = "33333333-3333-4333-8333-333333333333"
	safetyID   = "44444444-4444-4444-8444-444444444444"
	importedID = "55555555-5555-4555-8555-555555555555"
)

func TestSnapshots(t *testing.T) {
	t.Parallel()
	_, site := withWeb(t)
	c := site.Client(t, pki.RoleOperator)
	created, err := c.Snapshots.CreateSnapshot(t.Context(), connect.NewRequest(&reflejov1.CreateSnapshotRequest{Id: snapshotID, Server: "web", Name: "before", Labels: map[string]string{"a": "b"}}))
	if err != nil {
		t.Fatal(err)
	}
	if s := created.Msg.GetSnapshot(); s.GetHost() != "alpha" || s.GetServerName() != "web" || s.GetConsistency() != "filesystem" || s.GetOrigin() != "manual" || s.GetPause().AsDuration() == 0 {
		t.Errorf("got %v", s)
	}
	updated, err := c.Snapshots.UpdateSnapshot(t.Context(), connect.NewRequest(&reflejov1.UpdateSnapshotRequest{Id: snapshotID, Name: "after", Description: "text"}))
	if err != nil || updated.Msg.GetSnapshot().GetName() != "after" || len(updated.Msg.GetSnapshot().GetLabels()) != 0 {
		t.Errorf("got %v, %v", updated, err)
	}
	host, err := c.Hosts.GetHost(t.Context(), connect.NewRequest(&reflejov1.GetHostRequest{}))
	if err != nil || host.Msg.GetHost().GetSnapshots() != 1 || host.Msg.GetHost().GetEndpoint() != ":7444" {
		t.Errorf("got %v, %v", host, err)
	}
	if _, err := c.Snapshots.RestoreServer(t.Context(), connect.NewRequest(&reflejov1.RestoreServerRequest{Id: safetyID, Server: "web", Snapshot: snapshotID})); err != nil {
		t.Fatal(err)
	}
	list, err := c.Snapshots.ListSnapshots(t.Context(), connect.NewRequest(&reflejov1.ListSnapshotsRequest{Server: webID}))
	if err != nil || len(list.Msg.GetSnapshots()) != 2 || list.Msg.GetSnapshots()[1].GetOrigin() != "safety" {
		t.Errorf("got %v, %v", list, err)
	}
	watch, err := c.Snapshots.WatchSnapshot(t.Context(), connect.NewRequest(&reflejov1.WatchSnapshotRequest{Id: snapshotID}))
	if err != nil || !watch.Receive() || watch.Msg().GetGone() {
		t.Fatalf("got %v, %v", watch.Msg(), err)
	}
	if _, err := c.Snapshots.DeleteSnapshot(t.Context(), connect.NewRequest(&reflejov1.DeleteSnapshotRequest{Id: snapshotID})); err != nil {
		t.Fatal(err)
	}
	if !watch.Receive() || !watch.Msg().GetGone() || watch.Receive() || watch.Err() != nil {
		t.Errorf("the watch does not end with the snapshot: %v, %v", watch.Msg(), watch.Err())
	}
	_, err = c.Snapshots.GetSnapshot(t.Context(), connect.NewRequest(&reflejov1.GetSnapshotRequest{Id: snapshotID}))
	if !fault.Is(api.ErrorOf(err), fault.NotFound) {
		t.Errorf("got %v", err)
	}
}

// verify reads a verification to its end.
func verify(t *testing.T, c *api.Client, request *reflejov1.VerifyBackupRequest) (*reflejov1.VerifyBackupResponse, error) {
	t.Helper()
	stream, err := c.Backups.VerifyBackup(t.Context(), connect.NewRequest(request))
	if err != nil {
		return nil, api.ErrorOf(err)
	}
	defer stream.Close()
	var last *reflejov1.VerifyBackupResponse
	for stream.Receive() {
		last = stream.Msg()
	}
	return last, api.ErrorOf(stream.Err())
}

func TestBackups(t *testing.T) {
	t.Parallel()
	h, site := withWeb(t)
	c := site.Client(t, pki.RoleOperator)
	if _, err := c.Snapshots.CreateSnapshot(t.Context(), connect.NewRequest(&reflejov1.CreateSnapshotRequest{Id: snapshotID, Server: "web"})); err != nil {
		t.Fatal(err)
	}
	created, err := c.Backups.CreateBackup(t.Context(), connect.NewRequest(&reflejov1.CreateBackupRequest{Id: backupID, Snapshot: snapshotID, Target: "host:beta", Name: "weekly"}))
	if err != nil || created.Msg.GetBackup().GetServerName() != "web" || created.Msg.GetBackup().GetName() != "weekly" {
		t.Fatalf("got %v, %v", created, err)
	}
	there, err := c.Backups.ListTarget(t.Context(), connect.NewRequest(&reflejov1.ListTargetRequest{Target: "host:beta", Server: webID}))
	if err != nil || len(there.Msg.GetBackups()) != 1 {
		t.Errorf("got %v, %v", there, err)
	}
	if last, err := verify(t, c, &reflejov1.VerifyBackupRequest{Id: backupID}); err != nil || !last.GetOk() || last.GetDone() != last.GetTotal() {
		t.Errorf("got %v, %v", last, err)
	}
	h.Shelf().Damage(backupID, "chunk 3")
	if last, err := verify(t, c, &reflejov1.VerifyBackupRequest{Id: backupID}); err != nil || last.GetOk() || last.GetProblem() != "chunk 3" {
		t.Errorf("got %v, %v", last, err)
	}
	if _, err := verify(t, c, &reflejov1.VerifyBackupRequest{Id: snapshotID}); !fault.Is(err, fault.NotFound) {
		t.Errorf("got %v", err)
	}
	imported, err := c.Backups.ImportBackup(t.Context(), connect.NewRequest(&reflejov1.ImportBackupRequest{Id: importedID, Target: "host:beta", Backup: backupID}))
	if err != nil || imported.Msg.GetSnapshot().GetOrigin() != "backup" || imported.Msg.GetSnapshot().GetChecksum() != created.Msg.GetBackup().GetChecksum() {
		t.Errorf("got %v, %v", imported, err)
	}
	if _, err := c.Backups.DeleteBackup(t.Context(), connect.NewRequest(&reflejov1.DeleteBackupRequest{Id: backupID})); err != nil {
		t.Fatal(err)
	}
	known, err := c.Backups.ListBackups(t.Context(), connect.NewRequest(&reflejov1.ListBackupsRequest{}))
	if err != nil || len(known.Msg.GetBackups()) != 0 {
		t.Errorf("got %v, %v", known, err)
	}
}

func TestMigration(t *testing.T) {
	t.Parallel()
	ca, err := pki.NewCA("test", 0)
	if err != nil {
		t.Fatal(err)
	}
	alpha, beta := servicetest.NewHost("alpha"), servicetest.NewHost("beta")
	alpha.AddImage("debian")
	servicetest.Join(alpha, beta)
	here, there := servicetest.StartWith(t, alpha, ca), servicetest.StartWith(t, beta, ca)
	from, to := here.Client(t, pki.RoleOperator), there.Client(t, pki.RoleOperator)
	server := create(t, from)
	ticket, err := to.Servers.PrepareMigration(t.Context(), connect.NewRequest(&reflejov1.PrepareMigrationRequest{Server: server, Source: "alpha"}))
	if err != nil {
		t.Fatal(err)
	}
	move := &reflejov1.MigrateServerRequest{Id: webID, Target: "beta", Ticket: ticket.Msg.GetTicket(), Settings: &reflejov1.MigrationSettings{Mode: "hot"}}
	if _, err := from.Servers.MigrateServer(t.Context(), connect.NewRequest(move)); fault.FieldOf(api.ErrorOf(err)) != "migration.mode" {
		t.Errorf("got %v", err)
	}
	alpha.Hold()
	move.Settings = nil
	if _, err := from.Servers.MigrateServer(t.Context(), connect.NewRequest(move)); err != nil {
		t.Fatal(err)
	}
	watch, err := from.Servers.WatchServer(t.Context(), connect.NewRequest(&reflejov1.WatchServerRequest{Id: webID}))
	if err != nil || !watch.Receive() {
		t.Fatal(err, watch.Err())
	}
	alpha.Release()
	for watch.Receive() && !watch.Msg().GetGone() {
		continue
	}
	if watch.Msg().GetServer().GetMovedTo() != "beta" {
		t.Errorf("got %v, %v", watch.Msg(), watch.Err())
	}
	if s, err := getServer(t.Context(), to, webID); err != nil || s.GetHost() != "beta" {
		t.Errorf("got %v, %v", s, err)
	}
	log, err := os.ReadFile(filepath.Join(there.Dir, "audit.log"))
	if err != nil || !strings.Contains(string(log), "from host alpha") || strings.Contains(string(log), ticket.Msg.GetTicket()) {
		t.Errorf("audit log: %s, %v", log, err)
	}
}
