package provider

import (
	"context"
	"errors"
	"fmt"

	"connectrpc.com/connect"
	"github.com/hashicorp/terraform-plugin-framework/diag"
	"github.com/hashicorp/terraform-plugin-log/tflog"

	"github.com/reflejo/terraform-provider-reflejo/agent/api"
	reflejov1 "github.com/reflejo/terraform-provider-reflejo/agent/api/reflejo/v1"
	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
)

// follow reads a watch until enough has been seen, and joins again when the host or the
// agent was away. The error is fault.NotFound if there is nothing to watch, ctx's if that ended.
func follow[Req, Resp any](ctx context.Context, h *host, watch func(context.Context, *connect.Request[Req]) (*connect.ServerStreamForClient[Resp], error), req *Req, enough func(*Resp) bool) error {
	for pause := firstPause; ; pause = min(2*pause, longPause) {
		done, err := followOnce(ctx, h, watch, req, enough)
		if done {
			return nil
		}
		if err != nil && !fault.Is(err, fault.Unavailable) && ctx.Err() == nil {
			return err
		}
		if !sleep(ctx, pause) {
			return context.Cause(ctx)
		}
	}
}

func followOnce[Req, Resp any](ctx context.Context, h *host, watch func(context.Context, *connect.Request[Req]) (*connect.ServerStreamForClient[Resp], error), req *Req, enough func(*Resp) bool) (done bool, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := watch(ctx, connect.NewRequest(req))
	if err != nil {
		return false, api.ErrorOf(err)
	}
	defer stream.Close()
	for stream.Receive() {
		tflog.Debug(ctx, "watch", map[string]any{"host": h.name, "message": fmt.Sprint(stream.Msg())})
		if enough(stream.Msg()) {
			return true, nil
		}
	}
	return false, api.ErrorOf(stream.Err())
}

func operationEnded(op *reflejov1.Operation) bool { return op.GetKind() == "" || op.GetDone() }

// operationFault is why an operation failed, with the attribute to blame.
func operationFault(op *reflejov1.Operation) error {
	failed := fault.Error{Field: op.GetErrorField(), Err: errors.New(orText(op.GetError(), op.GetKind()+" failed"))}
	for k := fault.Internal; k <= fault.Aborted; k++ {
		if k.String() == op.GetErrorKind() {
			failed.Kind = k
		}
	}
	return &failed
}

// destroyed says how a deletion on a host went. What was not there any more is gone, and so
// is what was on a host that is lost, or silent where the provider block lets it be forgotten.
func (h *hosts) destroyed(ctx context.Context, what, host string, err error) (diags diag.Diagnostics) {
	switch {
	case err == nil || fault.Is(err, fault.NotFound):
	case errors.Is(err, errLost):
		diags.AddWarning(what+" was forgotten", sentence(err.Error())+"\n\nIt is out of the state.")
	case unreachable(err) && h.forget && ctx.Err() == nil:
		diags.AddWarning(what+" was forgotten", sentence(err.Error())+"\n\nThe provider's forget_unreachable is set, so it is out of the state. If host "+host+" comes back it is still there.")
	case ctx.Err() != nil:
		diags.AddError(what+" is not gone yet", "The wait is over or was interrupted. It was being deleted; the host carries on. Apply again to see it gone.")
	default:
		diags.Append(failed(what+" could not be destroyed", err))
	}
	return diags
}
