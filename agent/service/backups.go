package service

import (
	"context"
	"time"

	"connectrpc.com/connect"

	reflejov1 "github.com/reflejo/terraform-provider-reflejo/agent/api/reflejo/v1"
	"github.com/reflejo/terraform-provider-reflejo/agent/backup"
	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
	"github.com/reflejo/terraform-provider-reflejo/agent/recovery"
	"github.com/reflejo/terraform-provider-reflejo/agent/snapshot"
)

// Backups keeps snapshots as files off the pool (backup.Manager). Mutations answer once
// they are durable and under way.
type Backups interface {
	Create(ctx context.Context, r backup.Request) (backup.View, error)
	Get(id string) (backup.View, error)
	// List has the backups of a server (id; "" = all) that this host knows, oldest first.
	List(server string) []backup.View
	// Watch sends the view now and after each change, as Views.Watch does.
	Watch(ctx context.Context, id string) (<-chan backup.View, error)
	// Delete deletes the file too; fault.Precondition while another backup builds on it. target
	// is where it is; "" is one that this host knows.
	Delete(ctx context.Context, target, id string) error
}

// Targets reads what targets of backups hold, whoever put it there (backup.Manager).
type Targets interface {
	// Verify reads a backup ("" as target: one that this host knows) and what it builds on.
	// What is wrong with it is in the report; an error says that it could not look. Progress
	// is called from the calling goroutine.
	Verify(ctx context.Context, target, id string, progress backup.Progress) (backup.Report, error)
	// Catalog is what a target holds of a server (id; "" = of all), oldest first.
	Catalog(ctx context.Context, target, server string) ([]backup.Found, error)
}

// Recoveries makes snapshots and servers of backups (recovery.Manager).
type Recoveries interface {
	Import(ctx context.Context, r recovery.ImportRequest) (snapshot.View, error)
	// Recover takes a server over from a host that is lost for good.
	Recover(ctx context.Context, r recovery.Request) (recovery.Recovered, error)
}

type backupHandler struct{ s *Service }

func (h *backupHandler) CreateBackup(ctx context.Context, req *connect.Request[reflejov1.CreateBackupRequest]) (*connect.Response[reflejov1.CreateBackupResponse], error) {
	m := req.Msg
	v, err := h.s.cfg.Backups.Create(ctx, backup.Request{
		ID: m.GetId(), Snapshot: m.GetSnapshot(), Target: m.GetTarget(), Name: m.GetName(), Incremental: m.GetIncremental(), Origin: backup.OriginManual,
	})
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
		func(v backup.View) error {
			return stream.Send(&reflejov1.WatchBackupResponse{Backup: backupToProto(v), Gone: v.Gone})
		},
		func(v backup.View) bool { return v.Gone || (req.Msg.GetUntilSettled() && v.Operation.Settled()) })
}

func (h *backupHandler) DeleteBackup(ctx context.Context, req *connect.Request[reflejov1.DeleteBackupRequest]) (*connect.Response[reflejov1.DeleteBackupResponse], error) {
	if err := h.s.cfg.Backups.Delete(ctx, req.Msg.GetTarget(), req.Msg.GetId()); err != nil {
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
	report, err := h.s.cfg.Targets.Verify(ctx, req.Msg.GetTarget(), req.Msg.GetId(), func(done, total int64) {
		last.Done, last.Total = done, total
		if time.Since(sent) < progressEvery {
			return
		}
		sent = time.Now()
		if err := stream.Send(&reflejov1.VerifyBackupResponse{Done: done, Total: total}); err != nil {
			cancel(err)
		}
	})
	if err != nil {
		return err
	}
	last.Ok, last.Problem = report.OK, report.Problem
	return stream.Send(last)
}

func (h *backupHandler) ListTarget(ctx context.Context, req *connect.Request[reflejov1.ListTargetRequest]) (*connect.Response[reflejov1.ListTargetResponse], error) {
	list, err := h.s.cfg.Targets.Catalog(ctx, req.Msg.GetTarget(), req.Msg.GetServer())
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&reflejov1.ListTargetResponse{Backups: convert(list, foundToProto)}), nil
}

func (h *backupHandler) ImportBackup(ctx context.Context, req *connect.Request[reflejov1.ImportBackupRequest]) (*connect.Response[reflejov1.ImportBackupResponse], error) {
	m := req.Msg
	v, err := h.s.cfg.Recoveries.Import(ctx, recovery.ImportRequest{Snapshot: m.GetId(), Target: m.GetTarget(), Backup: m.GetBackup(), Name: m.GetName()})
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&reflejov1.ImportBackupResponse{Snapshot: h.s.snapshot(v)}), nil
}

// foundToProto shows why a backup can't be read as the failure of a verification.
func foundToProto(f backup.Found) *reflejov1.Backup {
	p := backupToProto(f.View())
	if f.Problem != "" {
		p.Operation = &reflejov1.Operation{Kind: "verify", Error: f.Problem, ErrorKind: fault.Precondition.String(), Done: true}
	}
	return p
}

func backupToProto(v backup.View) *reflejov1.Backup {
	p := &reflejov1.Backup{
		Id:         v.ID,
		Name:       v.Name,
		ServerId:   v.Server,
		ServerName: v.ServerName,
		SnapshotId: v.Snapshot,
		Host:       v.Host,
		Target:     v.Target,
		ParentId:   v.Parent,
		State:      string(v.State),
		Size:       v.Size,
		DiskSize:   v.DiskSize,
		Checksum:   v.Checksum,
		CreatedAt:  timestamp(v.Created),
		Origin:     string(v.Origin),
		Operation:  operationToProto(v.Operation),
	}
	if v.Spec.ID != "" {
		p.Spec = specToProto(v.Spec)
	}
	return p
}
