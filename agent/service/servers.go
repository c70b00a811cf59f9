package service

import (
	"context"
	"time"

	"connectrpc.com/connect"

	reflejov1 "github.com/reflejo/terraform-provider-reflejo/agent/api/reflejo/v1"
	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
	"github.com/reflejo/terraform-provider-reflejo/agent/image"
	"github.com/reflejo/terraform-provider-reflejo/agent/vserver"
)

// Servers changes virtual servers (vserver.Manager). Each call answers once the change is
// durable and under way.
type Servers interface {
	Create(ctx context.Context, spec vserver.Spec) (vserver.View, error)
	Update(ctx context.Context, spec vserver.Spec) (vserver.View, error)
	SetPower(ctx context.Context, idOrName string, a vserver.PowerAction, timeout time.Duration) (vserver.View, error)
	Delete(ctx context.Context, idOrName string) error
}

// Views shows virtual servers and what they take (vserver.Manager).
type Views interface {
	Get(idOrName string) (vserver.View, error)
	// List is sorted by name.
	List() []vserver.View
	// Watch sends the view now and after each change, the newest only if the reader is slow.
	// The channel is closed after a view with Gone set, or when the watch can't go on.
	Watch(ctx context.Context, id string) (<-chan vserver.View, error)
	// Usage is fault.Precondition for a server that does not run.
	Usage(ctx context.Context, id string) (vserver.Usage, error)
	Resources() (capacity, promised, free vserver.Resources)
}

type serverHandler struct{ s *Service }

func (h *serverHandler) CreateServer(ctx context.Context, req *connect.Request[reflejov1.CreateServerRequest]) (*connect.Response[reflejov1.CreateServerResponse], error) {
	v, err := h.s.cfg.Servers.Create(ctx, specFromProto(req.Msg.GetSpec()))
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&reflejov1.CreateServerResponse{Server: h.server(v)}), nil
}

func (h *serverHandler) UpdateServer(ctx context.Context, req *connect.Request[reflejov1.UpdateServerRequest]) (*connect.Response[reflejov1.UpdateServerResponse], error) {
	v, err := h.s.cfg.Servers.Update(ctx, specFromProto(req.Msg.GetSpec()))
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&reflejov1.UpdateServerResponse{Server: h.server(v)}), nil
}

func (h *serverHandler) SetPower(ctx context.Context, req *connect.Request[reflejov1.SetPowerRequest]) (*connect.Response[reflejov1.SetPowerResponse], error) {
	action, err := actionFromProto(req.Msg.GetAction())
	if err != nil {
		return nil, err
	}
	v, err := h.s.cfg.Servers.SetPower(ctx, req.Msg.GetId(), action, req.Msg.GetTimeout().AsDuration())
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&reflejov1.SetPowerResponse{Server: h.server(v)}), nil
}

func (h *serverHandler) DeleteServer(ctx context.Context, req *connect.Request[reflejov1.DeleteServerRequest]) (*connect.Response[reflejov1.DeleteServerResponse], error) {
	if err := h.s.cfg.Servers.Delete(ctx, req.Msg.GetId()); err != nil {
		return nil, err
	}
	return connect.NewResponse(&reflejov1.DeleteServerResponse{}), nil
}

func (h *serverHandler) GetServer(ctx context.Context, req *connect.Request[reflejov1.GetServerRequest]) (*connect.Response[reflejov1.GetServerResponse], error) {
	v, err := h.s.cfg.Views.Get(req.Msg.GetId())
	if err != nil {
		return nil, err
	}
	server := h.server(v)
	if req.Msg.GetUsage() {
		if server.Usage, err = h.usage(ctx, v); err != nil {
			return nil, err
		}
	}
	return connect.NewResponse(&reflejov1.GetServerResponse{Server: server}), nil
}

func (h *serverHandler) ListServers(ctx context.Context, req *connect.Request[reflejov1.ListServersRequest]) (*connect.Response[reflejov1.ListServersResponse], error) {
	views := h.s.cfg.Views.List()
	names := h.imageNames()
	list := make([]*reflejov1.Server, len(views))
	for i, v := range views {
		list[i] = h.serverNamed(v, names[v.Spec.Image])
		if !req.Msg.GetUsage() {
			continue
		}
		usage, err := h.usage(ctx, v)
		if err != nil {
			return nil, err
		}
		list[i].Usage = usage
	}
	return connect.NewResponse(&reflejov1.ListServersResponse{Servers: list}), nil
}

func (h *serverHandler) WatchServer(ctx context.Context, req *connect.Request[reflejov1.WatchServerRequest], stream *connect.ServerStream[reflejov1.WatchServerResponse]) error {
	views, err := h.s.cfg.Views.Watch(ctx, req.Msg.GetId())
	if err != nil {
		return err
	}
	return follow(ctx, views,
		func(v vserver.View) error {
			return stream.Send(&reflejov1.WatchServerResponse{Server: h.server(v), Gone: v.Gone})
		},
		func(v vserver.View) bool { return v.Gone || (req.Msg.GetUntilSettled() && v.Operation.Settled()) })
}

// usage is nil for a server that does not run.
func (h *serverHandler) usage(ctx context.Context, v vserver.View) (*reflejov1.ServerUsage, error) {
	u, err := h.s.cfg.Views.Usage(ctx, v.Spec.ID)
	switch {
	case fault.Is(err, fault.Precondition) || fault.Is(err, fault.NotFound):
		return nil, nil
	case err != nil:
		return nil, err
	}
	return usageToProto(u), nil
}

func (h *serverHandler) server(v vserver.View) *reflejov1.Server {
	name := ""
	if i, err := h.s.cfg.Images.Get(v.Spec.Image); err == nil {
		name = i.Name
	}
	return h.serverNamed(v, name)
}

func (h *serverHandler) serverNamed(v vserver.View, image string) *reflejov1.Server {
	server := viewToProto(v)
	server.Host = h.s.cfg.Host.Facts().Name
	server.ImageName = image
	return server
}

// imageNames are the images' oldest names, as Images.Get gives one.
func (h *serverHandler) imageNames() map[string]string {
	oldest := map[string]image.Info{}
	for _, i := range h.s.cfg.Images.List() {
		if o, ok := oldest[i.ID]; !ok || i.Created.Before(o.Created) {
			oldest[i.ID] = i
		}
	}
	names := map[string]string{}
	for id, i := range oldest {
		names[id] = i.Name
	}
	return names
}
