package service

import (
	"context"
	"errors"

	"connectrpc.com/connect"

	reflejov1 "github.com/reflejo/terraform-provider-reflejo/agent/api/reflejo/v1"
	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
)

// codes is the one mapping of fault kinds to the wire. agent/api/errors.go is the way back.
var codes = map[fault.Kind]connect.Code{
	fault.Internal:     connect.CodeInternal,
	fault.Invalid:      connect.CodeInvalidArgument,
	fault.NotFound:     connect.CodeNotFound,
	fault.Exists:       connect.CodeAlreadyExists,
	fault.Exhausted:    connect.CodeResourceExhausted,
	fault.Precondition: connect.CodeFailedPrecondition,
	fault.Denied:       connect.CodePermissionDenied,
	fault.Unavailable:  connect.CodeUnavailable,
	fault.Aborted:      connect.CodeAborted,
}

// wireError makes the answer of an error: a code for everybody, and a detail with the kind
// and the blamed attribute for our own clients. What Connect itself found wrong with a
// request, and that the caller went away or ran out of time, pass as they are.
func wireError(err error) *connect.Error {
	if err == nil {
		return nil
	}
	var done *connect.Error
	if errors.As(err, &done) {
		return done
	}
	kind := fault.KindOf(err)
	code := codes[kind]
	switch {
	case kind != fault.Internal:
	case errors.Is(err, context.Canceled):
		return connect.NewError(connect.CodeCanceled, err)
	case errors.Is(err, context.DeadlineExceeded):
		kind, code = fault.Unavailable, connect.CodeDeadlineExceeded
	}
	wire := connect.NewError(code, err)
	if detail, derr := connect.NewErrorDetail(&reflejov1.ErrorDetail{Kind: kind.String(), Field: fault.FieldOf(err)}); derr == nil {
		wire.AddDetail(detail)
	}
	return wire
}

// codeOf is an outcome's word in metrics and the audit log.
func codeOf(err error) string {
	if err == nil {
		return "ok"
	}
	return wireError(err).Code().String()
}
