package provider

import (
	"context"
	"errors"
	"fmt"
	"time"

	"connectrpc.com/connect"
	"github.com/hashicorp/terraform-plugin-framework/diag"
	"github.com/hashicorp/terraform-plugin-log/tflog"

	"github.com/reflejo/terraform-provider-reflejo/agent/api"
	reflejov1 "github.com/reflejo/terraform-provider-reflejo/agent/api/reflejo/v1"
	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
)

// Pauses before asking a host again that did not answer.
const (
	firstPause = 200 * time.Millisecond
	longPause  = 5 * time.Second
)

// persist repeats a request that may be repeated while the host does not answer, until
// ctx ends. The last error is returned with ambiguous set if the host may have acted on it.
func persist[Req, Resp any](ctx context.Context, h *host, call func(context.Context, *connect.Request[Req]) (*connect.Response[Resp], error), req *Req, attempts int) (resp *Resp, ambiguous bool, err error) {
	for pause, attempt := firstPause, 1; ; pause, attempt = min(2*pause, longPause), attempt+1 {
		resp, err = askAnyway(ctx, h, call, req)
		if err == nil || !(fault.Is(err, fault.Unavailable) || fault.Is(err, fault.Aborted)) {
			return resp, false, err
		}
		if attempt == attempts || !sleep(ctx, pause) {
			return resp, fault.Is(err, fault.Unavailable), err
		}
	}
}

// sleep waits; false means that ctx ended first.
func sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// create sends the definition. The id is in it, so sending it again is the same request.
// A host beside an error means that nobody knows whether the host took it.
func (h *host) create(ctx context.Context, spec *reflejov1.ServerSpec) (*host, *reflejov1.Server, error) {
	if err := h.known(); err != nil { // nothing was sent: there is nothing to keep track of
		return nil, nil, err
	}
	if _, err := h.describe(ctx); err != nil {
		return nil, nil, err
	}
	resp, ambiguous, err := persist(ctx, h, h.Servers.CreateServer, &reflejov1.CreateServerRequest{Spec: spec}, 6)
	if err != nil && !ambiguous {
		return nil, nil, err
	}
	return h, resp.GetServer(), err
}

func (h *host) update(ctx context.Context, spec *reflejov1.ServerSpec) (*reflejov1.Server, error) {
	resp, _, err := persist(ctx, h, h.Servers.UpdateServer, &reflejov1.UpdateServerRequest{Spec: spec}, 6)
	return resp.GetServer(), err
}

// remove deletes the server and waits until it is gone.
func (h *host) remove(ctx context.Context, s *reflejov1.Server) error {
	id := s.GetSpec().GetId()
	_, _, err := persist(ctx, h, h.Servers.DeleteServer, &reflejov1.DeleteServerRequest{Id: id}, 6)
	if fault.Is(err, fault.NotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	last, err := h.watch(ctx, s, func(seen *reflejov1.WatchServerResponse) bool {
		op := seen.GetServer().GetOperation()
		return seen.GetGone() || (op.GetKind() == "delete" && op.GetDone() && op.GetError() != "")
	})
	switch {
	case fault.Is(err, fault.NotFound):
		return nil
	case err != nil:
		return err
	case last.GetGone():
		return nil
	}
	return operationError(last.GetServer())
}

// settle waits until nothing is under way on the server and returns how it was last seen.
// The error is fault.NotFound if it has gone, ctx's if that ended first.
func (h *host) settle(ctx context.Context, s *reflejov1.Server) (*reflejov1.Server, error) {
	last, err := h.watch(ctx, s, func(seen *reflejov1.WatchServerResponse) bool {
		return seen.GetGone() || settled(seen.GetServer())
	})
	if err == nil && last.GetGone() {
		err = fault.New(fault.NotFound, "server %s was deleted by someone else", s.GetSpec().GetName())
	}
	return last.GetServer(), err
}

func settled(s *reflejov1.Server) bool {
	return operationEnded(s.GetOperation())
}

// watch follows the server until enough has been seen, and joins again when the host or
// the agent was away. It returns what was seen last.
func (h *host) watch(ctx context.Context, s *reflejov1.Server, enough func(*reflejov1.WatchServerResponse) bool) (*reflejov1.WatchServerResponse, error) {
	last := &reflejov1.WatchServerResponse{Server: s}
	for pause := firstPause; ; pause = min(2*pause, longPause) {
		seen, err := h.watchOnce(ctx, last, enough)
		if seen {
			pause = firstPause
		}
		if err == nil && enough(last) {
			return last, nil
		}
		if err != nil && !fault.Is(err, fault.Unavailable) && ctx.Err() == nil {
			return last, err
		}
		if !sleep(ctx, pause) {
			if err == nil || ctx.Err() != nil {
				err = context.Cause(ctx)
			}
			return last, err
		}
	}
}

// watchOnce reads one stream; seen tells whether it said anything.
func (h *host) watchOnce(ctx context.Context, last *reflejov1.WatchServerResponse, enough func(*reflejov1.WatchServerResponse) bool) (seen bool, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := h.Servers.WatchServer(ctx, connect.NewRequest(&reflejov1.WatchServerRequest{Id: last.GetServer().GetSpec().GetId()}))
	if err != nil {
		return false, api.ErrorOf(err)
	}
	defer stream.Close()
	for stream.Receive() {
		seen = true
		message := stream.Msg()
		last.Gone = message.GetGone()
		if message.GetServer() != nil {
			last.Server = message.GetServer()
		}
		op := last.GetServer().GetOperation()
		tflog.Info(ctx, "server", map[string]any{
			"name": last.GetServer().GetSpec().GetName(), "host": h.name, "state": last.GetServer().GetState(),
			"operation": op.GetKind(), "step": op.GetStep(), "index": op.GetStepIndex(), "steps": op.GetSteps(),
		})
		if enough(last) {
			return true, nil
		}
	}
	return seen, api.ErrorOf(stream.Err())
}

// operationError is why the server's last operation failed, with the attribute to blame.
func operationError(s *reflejov1.Server) error { return operationFault(s.GetOperation()) }

// notSettled is the warning at the end of a wait: what was awaited, what was seen last,
// what happens next.
func notSettled(err error, timeout time.Duration, s *reflejov1.Server, what, next string) diag.Diagnostic {
	why := waited(err, timeout)
	seen := "Last seen: " + s.GetState()
	if op := s.GetOperation(); op.GetKind() != "" {
		seen += fmt.Sprintf(", %s at step %d of %d (%s)", op.GetKind(), op.GetStepIndex(), op.GetSteps(), op.GetStep())
	}
	return diag.NewWarningDiagnostic("Server "+s.GetSpec().GetName()+" "+what, why+" "+seen+".\n\n"+next)
}

// waited says why a wait has ended.
func waited(err error, timeout time.Duration) string {
	switch {
	case errors.Is(err, context.Canceled):
		return "The wait was interrupted."
	case errors.Is(err, context.DeadlineExceeded):
		return fmt.Sprintf("Waited %s for it to settle.", timeout)
	}
	return sentence(err.Error())
}
