package service

import (
	"context"

	"connectrpc.com/connect"

	reflejov1 "github.com/reflejo/terraform-provider-reflejo/agent/api/reflejo/v1"
	"github.com/reflejo/terraform-provider-reflejo/agent/network"
)

// Networks keeps the host's networks (network.Manager).
type Networks interface {
	Put(ctx context.Context, d network.Definition) (network.View, error)
	Get(idOrName string) (network.View, error)
	// List is sorted by name.
	List() []network.View
	Delete(ctx context.Context, idOrName string) error
}

type networkHandler struct{ s *Service }

func (h *networkHandler) PutNetwork(ctx context.Context, req *connect.Request[reflejov1.PutNetworkRequest]) (*connect.Response[reflejov1.PutNetworkResponse], error) {
	d, err := networkFromProto(req.Msg.GetSpec())
	if err != nil {
		return nil, err
	}
	v, err := h.s.cfg.Networks.Put(ctx, d)
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&reflejov1.PutNetworkResponse{Network: networkToProto(v)}), nil
}

func (h *networkHandler) GetNetwork(_ context.Context, req *connect.Request[reflejov1.GetNetworkRequest]) (*connect.Response[reflejov1.GetNetworkResponse], error) {
	v, err := h.s.cfg.Networks.Get(req.Msg.GetId())
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&reflejov1.GetNetworkResponse{Network: networkToProto(v)}), nil
}

func (h *networkHandler) ListNetworks(context.Context, *connect.Request[reflejov1.ListNetworksRequest]) (*connect.Response[reflejov1.ListNetworksResponse], error) {
	return connect.NewResponse(&reflejov1.ListNetworksResponse{Networks: convert(h.s.cfg.Networks.List(), networkToProto)}), nil
}

func (h *networkHandler) DeleteNetwork(ctx context.Context, req *connect.Request[reflejov1.DeleteNetworkRequest]) (*connect.Response[reflejov1.DeleteNetworkResponse], error) {
	if err := h.s.cfg.Networks.Delete(ctx, req.Msg.GetId()); err != nil {
		return nil, err
	}
	return connect.NewResponse(&reflejov1.DeleteNetworkResponse{}), nil
}
