package service

import (
	"context"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/durationpb"

	reflejov1 "github.com/reflejo/terraform-provider-reflejo/agent/api/reflejo/v1"
	"github.com/reflejo/terraform-provider-reflejo/agent/snapshot"
	"github.com/reflejo/terraform-provider-reflejo/agent/vserver"
)

// Snapshots keeps copies of servers' disks (snapshot.Manager). Mutations answer once they
// are durable and under way.
type Snapshots interface {
	Create(ctx context.Context, r snapshot.Request) (snapshot.View, error)
	Get(ctx context.Context, id string) (snapshot.View, error)
	// List has the snapshots of a server (id; "" = all), oldest first.
	List(ctx context.Context, server string) []snapshot.View
	// Watch sends the view now and after each change, as Views.Watch does.
	Watch(ctx context.Context, id string) (<-chan snapshot.View, error)
	Update(id, name, description string, labels map[string]string) (snapshot.View, error)
	Delete(ctx context.Context, id string) error
}

// Restores puts snapshots back in place (vserver.Manager).
type Restores interface {
	// Restore: request is the id of the safety snapshot; the same again is the same request.
	Restore(ctx context.Context, idOrName, snapshot, request string) (vserver.View, error)
}

type snapshotHandler struct{ s *Service }

func (h *snapshotHandler) CreateSnapshot(ctx context.Context, req *connect.Request[reflejov1.CreateSnapshotRequest]) (*connect.Response[reflejov1.CreateSnapshotResponse], error) {
	m := req.Msg
	v, err := h.s.cfg.Snapshots.Create(ctx, snapshot.Request{
		ID: m.GetId(), Server: m.GetServer(), Name: m.GetName(), Description: m.GetDescription(), Labels: m.GetLabels(),
		Consistency: snapshot.Consistency(m.GetConsistency()), Origin: snapshot.OriginManual,
	})
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&reflejov1.CreateSnapshotResponse{Snapshot: h.s.snapshot(v)}), nil
}

func (h *snapshotHandler) UpdateSnapshot(_ context.Context, req *connect.Request[reflejov1.UpdateSnapshotRequest]) (*connect.Response[reflejov1.UpdateSnapshotResponse], error) {
	v, err := h.s.cfg.Snapshots.Update(req.Msg.GetId(), req.Msg.GetName(), req.Msg.GetDescription(), req.Msg.GetLabels())
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&reflejov1.UpdateSnapshotResponse{Snapshot: h.s.snapshot(v)}), nil
}

func (h *snapshotHandler) DeleteSnapshot(ctx context.Context, req *connect.Request[reflejov1.DeleteSnapshotRequest]) (*connect.Response[reflejov1.DeleteSnapshotResponse], error) {
	if err := h.s.cfg.Snapshots.Delete(ctx, req.Msg.GetId()); err != nil {
		return nil, err
	}
	return connect.NewResponse(&reflejov1.DeleteSnapshotResponse{}), nil
}

func (h *snapshotHandler) GetSnapshot(ctx context.Context, req *connect.Request[reflejov1.GetSnapshotRequest]) (*connect.Response[reflejov1.GetSnapshotResponse], error) {
	v, err := h.s.cfg.Snapshots.Get(ctx, req.Msg.GetId())
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&reflejov1.GetSnapshotResponse{Snapshot: h.s.snapshot(v)}), nil
}

func (h *snapshotHandler) ListSnapshots(ctx context.Context, req *connect.Request[reflejov1.ListSnapshotsRequest]) (*connect.Response[reflejov1.ListSnapshotsResponse], error) {
	list := convert(h.s.cfg.Snapshots.List(ctx, req.Msg.GetServer()), h.s.snapshot)
	return connect.NewResponse(&reflejov1.ListSnapshotsResponse{Snapshots: list}), nil
}

func (h *snapshotHandler) WatchSnapshot(ctx context.Context, req *connect.Request[reflejov1.WatchSnapshotRequest], stream *connect.ServerStream[reflejov1.WatchSnapshotResponse]) error {
	views, err := h.s.cfg.Snapshots.Watch(ctx, req.Msg.GetId())
	if err != nil {
		return err
	}
	return follow(ctx, views,
		func(v snapshot.View) error {
			return stream.Send(&reflejov1.WatchSnapshotResponse{Snapshot: h.s.snapshot(v), Gone: v.Gone})
		},
		func(v snapshot.View) bool { return v.Gone || (req.Msg.GetUntilSettled() && v.Operation.Settled()) })
}

func (h *snapshotHandler) RestoreServer(ctx context.Context, req *connect.Request[reflejov1.RestoreServerRequest]) (*connect.Response[reflejov1.RestoreServerResponse], error) {
	v, err := h.s.cfg.Restores.Restore(ctx, req.Msg.GetServer(), req.Msg.GetSnapshot(), req.Msg.GetId())
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&reflejov1.RestoreServerResponse{Server: (&serverHandler{h.s}).server(v)}), nil
}

// snapshot is a snapshot in an answer: where it is is this host, wherever it was taken.
func (s *Service) snapshot(v snapshot.View) *reflejov1.Snapshot {
	p := snapshotToProto(v)
	p.Host = s.cfg.Host.Facts().Name
	return p
}

// snapshotToProto makes all of a Snapshot but host.
func snapshotToProto(v snapshot.View) *reflejov1.Snapshot {
	return &reflejov1.Snapshot{
		Id:            v.ID,
		ServerId:      v.Server,
		ServerName:    v.ServerName,
		Name:          v.Name,
		Description:   v.Description,
		Labels:        v.Labels,
		Consistency:   string(v.Consistency),
		Origin:        string(v.Origin),
		State:         string(v.State),
		ServerState:   string(v.ServerState),
		Size:          v.Size,
		ExclusiveSize: v.Exclusive,
		ReservedSize:  v.Reserved,
		Checksum:      v.Checksum,
		Pause:         durationpb.New(v.Pause),
		CreatedAt:     timestamp(v.Created),
		Spec:          specToProto(v.Spec),
		Image:         v.Image.ID,
		Operation:     operationToProto(v.Operation),
	}
}
