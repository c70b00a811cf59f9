package service

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"connectrpc.com/connect"

	"github.com/reflejo/terraform-provider-reflejo/agent/api"
	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
)

// Every kind and field goes over the wire and back.
func TestErrorsRoundTrip(t *testing.T) {
	t.Parallel()
	for kind := fault.Internal; kind <= fault.Aborted; kind++ {
		sent := fmt.Errorf("create server web: %w", &fault.Error{Kind: kind, Field: "memory.max", Err: errors.New("2GiB asked, 1GiB free")})
		wire := wireError(sent)
		if (kind == fault.Internal) != (wire.Code() == connect.CodeInternal) {
			t.Errorf("%s travels as %s", kind, wire.Code())
		}
		got := api.ErrorOf(fmt.Errorf("call: %w", wire))
		if fault.KindOf(got) != kind || fault.FieldOf(got) != "memory.max" || got.Error() != sent.Error() {
			t.Errorf("%s came back as %s, %q, %q", kind, fault.KindOf(got), fault.FieldOf(got), got)
		}
	}
}

func TestErrorsOfTheCall(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		err  error
		code connect.Code
		kind fault.Kind
	}{
		{fmt.Errorf("wait: %w", context.Canceled), connect.CodeCanceled, fault.Unavailable},
		{fmt.Errorf("wait: %w", context.DeadlineExceeded), connect.CodeDeadlineExceeded, fault.Unavailable},
		{connect.NewError(connect.CodeUnimplemented, errors.New("what?")), connect.CodeUnimplemented, fault.Invalid},
		{errors.New("disk on fire"), connect.CodeInternal, fault.Internal},
	} {
		wire := wireError(c.err)
		if wire.Code() != c.code || fault.KindOf(api.ErrorOf(wire)) != c.kind {
			t.Errorf("%v: got %s and %s", c.err, wire.Code(), fault.KindOf(api.ErrorOf(wire)))
		}
	}
	if wireError(nil) != nil || api.ErrorOf(nil) != nil {
		t.Error("nil is an error")
	}
	if err := errors.New("not of a call"); api.ErrorOf(err) != err {
		t.Error("an error that is no answer was changed")
	}
}
