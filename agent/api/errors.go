package api

import (
	"context"
	"errors"
	"net"

	"connectrpc.com/connect"

	reflejov1 "github.com/reflejo/terraform-provider-reflejo/agent/api/reflejo/v1"
	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
	"github.com/reflejo/terraform-provider-reflejo/agent/pki"
)

// kindOfCode is used where an error has no detail of ours: a proxy made it, or the client
// itself because it got no answer. agent/service/errors.go has the way there.
var kindOfCode = map[connect.Code]fault.Kind{
	connect.CodeInvalidArgument:    fault.Invalid,
	connect.CodeOutOfRange:         fault.Invalid,
	connect.CodeUnimplemented:      fault.Invalid,
	connect.CodeNotFound:           fault.NotFound,
	connect.CodeAlreadyExists:      fault.Exists,
	connect.CodeResourceExhausted:  fault.Exhausted,
	connect.CodeFailedPrecondition: fault.Precondition,
	connect.CodePermissionDenied:   fault.Denied,
	connect.CodeUnauthenticated:    fault.Denied,
	connect.CodeUnavailable:        fault.Unavailable,
	connect.CodeDeadlineExceeded:   fault.Unavailable,
	connect.CodeCanceled:           fault.Unavailable,
	connect.CodeAborted:            fault.Aborted,
}

// ErrorOf turns an error of a call into a fault error: kind, blamed attribute and the
// agent's words without the wire's. The original stays in the chain (context.Canceled can
// still be found). nil, an error that is no answer of a call, and one that was turned already
// are returned as they are.
//
// A host that does not answer is fault.Unavailable; one whose certificate is not the
// expected agent's, or that does not accept ours, is fault.Denied.
func ErrorOf(err error) error {
	var wire *connect.Error
	var done *answer
	if errors.As(err, &done) || !errors.As(err, &wire) {
		return err // turned already, or nothing to turn
	}
	f := &fault.Error{Kind: kindOfCode[wire.Code()], Err: &answer{text: wire.Message(), err: err}}
	var peer *pki.PeerError
	var network *net.OpError
	// crypto/tls reports so what the other end said about our certificate.
	refused := errors.As(err, &network) && network.Op == "remote error"
	if errors.As(err, &peer) || refused {
		f.Kind = fault.Denied
	}
	if wire.Code() == connect.CodeDeadlineExceeded && errors.Is(err, context.DeadlineExceeded) {
		f.Err = &answer{text: "no answer in time", err: err}
	}
	for _, d := range wire.Details() {
		value, err := d.Value()
		if err != nil {
			continue // of another kind, or newer than we are
		}
		if detail, ok := value.(*reflejov1.ErrorDetail); ok {
			f.Field = detail.GetField()
			if kind, ok := parseKind(detail.GetKind()); ok {
				f.Kind = kind
			}
		}
	}
	return f
}

// answer shows the agent's words and keeps the error they came in.
type answer struct {
	text string
	err  error
}

func (a *answer) Error() string { return a.text }
func (a *answer) Unwrap() error { return a.err }

func parseKind(text string) (fault.Kind, bool) {
	for k := fault.Internal; k <= fault.Aborted; k++ {
		if k.String() == text {
			return k, true
		}
	}
	return fault.Internal, false
}
