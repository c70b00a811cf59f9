package service

import (
	"context"
	"time"

	"connectrpc.com/connect"

	reflejov1 "github.com/reflejo/terraform-provider-reflejo/agent/api/reflejo/v1"
	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
	"github.com/reflejo/terraform-provider-reflejo/agent/snapshot"
	"github.com/reflejo/terraform-provider-reflejo/agent/vserver"
)

// Backups keeps snapshots as files off the pool (backup.Manager). Mutations answer once
// they are durable and under way.
type Backups interface {
	Create(ctx context.Context, r BackupRequest) (BackupView, error)
	Get(id string) (BackupView, error)
	// List has the backups of a server (id; "" = all) that this host knows, oldest first.
	List(server string) []BackupView
	// Watch sends the view now and after each change, as Views.Watch does.
	Watch(ctx context.Context, id string) (<-chan BackupView, error)
	// Delete deletes the file too; fault.Precondition while another backup builds on it.
	Delete(ctx context.Context, id string) error
}

// Targets reads what targets of backups hold, whoever put it there (backup.Manager).
type Targets interface {
	// Verify reads a backup ("" as target: one that this host knows) and what it builds on.
	// What is wrong with it is fault.Precondition and says where; progress is called from
	// the calling goroutine.
	Verify(ctx context.Context, target, id string, progress func(done, total int64)) error
	Catalog(ctx context.Context, target, server string) ([]BackupView, error)
	Import(ctx context.Context, r ImportRequest) (snapshot.View, error)
}

// BackupRequest asks for a backup of a snapshot.
type BackupRequest struct {
	ID          string // UUID made by the client before it asks
	Snapshot    string // id
	Target      string
	Name        string
	Incremental bool
}

// BackupView is a backup as callers see it.
type BackupView struct {
	ID         string
	Name       string
	Server     string // id
	ServerName string
	Snapshot   string // id
	Host       string // whose agent made it
	Target     string
	Parent     string // id of the backup that it builds on, "" for a full one
	State      string // writing, ready, failed or deleting
	Size       int64  // of the file, bytes
	DiskSize   int64
	Checksum   string
	Created    time.Time
	Origin     string // manual or policy
	Operation  vserver.Operation
	Gone       bool
}

// ImportRequest asks for a snapshot made of a backup.
type ImportRequest struct {
	Snapshot string // id of the new snapshot
	Target   string
	Backup   string // id
	Name     string // of the snapshot; "" = the backup's
}

type backupHandler struct{ s *Service }

func (h *backupHandler) CreateBackup(ctx context.Context, req *connect.Request[reflejov1.CreateBackupRequest]) (*connect.Response[reflejov1.CreateBackupResponse], error) {
	m := req.Msg
	v, err := h.s.cfg.Backups.Create(ctx, BackupRequest{ID: m.GetId(), Snapshot: m.GetSnapshot(), Target: m.GetTarget(), Name: m.GetName(), Incremental: m.GetIncremental()})
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&reflejov1.CreateBackupResponse{Backup: backupToProto(v)}), nil
}

func (h *backupHandler) GetBackup(_ context.Context, req *connect.Request[reflejov1.GetBackupRequest]) (*connect.Response[reflejov1.GetBackupResponse], error) {
	v, err := h.s.cfg.Backups.Get(req.Msg.GetId())
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&reflejov1.GetBackupResponse{Backup: backupToProto(v)}), nil
}

func (h *backupHandler) ListBackups(_ context.Context, req *connect.Request[reflejov1.ListBackupsRequest]) (*connect.Response[reflejov1.ListBackupsResponse], error) {
	return connect.NewResponse(&reflejov1.ListBackupsResponse{Backups: convert(h.s.cfg.Backups.List(req.Msg.GetServer()), backupToProto)}), nil
}

func (h *backupHandler) WatchBackup(ctx context.Context, req *connect.Request[reflejov1.WatchBackupRequest], stream *connect.ServerStream[reflejov1.WatchBackupResponse]) error {
	views, err := h.s.cfg.Backups.Watch(ctx, req.Msg.GetId())
	if err != nil {
		return err
	}
	return follow(ctx, views,
		func(v BackupView) error {
			return stream.Send(&reflejov1.WatchBackupResponse{Backup: backupToProto(v), Gone: v.Gone})
		},
		func(v BackupView) bool { return v.Gone || (req.Msg.GetUntilSettled() && v.Operation.Settled()) })
}

func (h *backupHandler) DeleteBackup(ctx context.Context, req *connect.Request[reflejov1.DeleteBackupRequest]) (*connect.Response[reflejov1.DeleteBackupResponse], error) {
	if err := h.s.cfg.Backups.Delete(ctx, req.Msg.GetId()); err != nil {
		return nil, err
	}
	return connect.NewResponse(&reflejov1.DeleteBackupResponse{}), nil
}

// VerifyBackup answers with what is wrong; an error means that it could not be looked at.
func (h *backupHandler) VerifyBackup(ctx context.Context, req *connect.Request[reflejov1.VerifyBackupRequest], stream *connect.ServerStream[reflejov1.VerifyBackupResponse]) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	last := &reflejov1.VerifyBackupResponse{}
	var sent time.Time
	err := h.s.cfg.Targets.Verify(ctx, req.Msg.GetTarget(), req.Msg.GetId(), func(done, total int64) {
		last.Done, last.Total = done, total
		if time.Since(sent) < progressEvery {
			return
		}
		sent = time.Now()
		if err := stream.Send(&reflejov1.VerifyBackupResponse{Done: done, Total: total}); err != nil {
			cancel(err)
		}
	})
	switch {
	case fault.Is(err, fault.Precondition):
		last.Problem = err.Error()
	case err != nil:
		return err
	default:
		last.Ok = true
	}
	return stream.Send(last)
}

func (h *backupHandler) ListTarget(ctx context.Context, req *connect.Request[reflejov1.ListTargetRequest]) (*connect.Response[reflejov1.ListTargetResponse], error) {
	list, err := h.s.cfg.Targets.Catalog(ctx, req.Msg.GetTarget(), req.Msg.GetServer())
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&reflejov1.ListTargetResponse{Backups: convert(list, backupToProto)}), nil
}

func (h *backupHandler) ImportBackup(ctx context.Context, req *connect.Request[reflejov1.ImportBackupRequest]) (*connect.Response[reflejov1.ImportBackupResponse], error) {
	m := req.Msg
	v, err := h.s.cfg.Targets.Import(ctx, ImportRequest{Snapshot: m.GetId(), Target: m.GetTarget(), Backup: m.GetBackup(), Name: m.GetName()})
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&reflejov1.ImportBackupResponse{Snapshot: h.s.snapshot(v)}), nil
}

func backupToProto(v BackupView) *reflejov1.Backup {
	return &reflejov1.Backup{
		Id:         v.ID,
		Name:       v.Name,
		ServerId:   v.Server,
		ServerName: v.ServerName,
		SnapshotId: v.Snapshot,
		Host:       v.Host,
		Target:     v.Target,
		ParentId:   v.Parent,
		State:      v.State,
		Size:       v.Size,
		DiskSize:   v.DiskSize,
		Checksum:   v.Checksum,
		CreatedAt:  timestamp(v.Created),
		Origin:     v.Origin,
		Operation:  operationToProto(v.Operation),
	}
}
