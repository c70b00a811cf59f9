package service

import (
	"context"
	"errors"
	"io"
	"testing"
	"testing/synctest"
	"time"

	reflejov1 "github.com/reflejo/terraform-provider-reflejo/agent/api/reflejo/v1"
	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
)

// silence is a client that sends nothing until done is closed.
func silence[M any](done chan struct{}) func() (*M, error) {
	return func() (*M, error) { <-done; return nil, io.ErrUnexpectedEOF }
}

func TestSilentClientIsNotWaitedFor(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		done := make(chan struct{})
		defer close(done)
		begun := time.Now()
		_, err := receiveFirst(t.Context(), silence[reflejov1.ExecRequest](done))
		if !fault.Is(err, fault.Invalid) || time.Since(begun) != firstWithin {
			t.Errorf("got %v after %s", err, time.Since(begun))
		}
	})
}

func TestFirstMessage(t *testing.T) {
	t.Parallel()
	want := &reflejov1.ExecRequest{}
	if got, err := receiveFirst(t.Context(), func() (*reflejov1.ExecRequest, error) { return want, nil }); got != want || err != nil {
		t.Errorf("got %v, %v", got, err)
	}
	if _, err := receiveFirst(t.Context(), func() (*reflejov1.ExecRequest, error) { return nil, io.EOF }); !fault.Is(err, fault.Invalid) {
		t.Errorf("got %v", err)
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(errDraining)
	done := make(chan struct{})
	defer close(done)
	if _, err := receiveFirst(ctx, silence[reflejov1.ExecRequest](done)); !errors.Is(err, errDraining) {
		t.Errorf("got %v", err)
	}
}

func data(text string) *reflejov1.UploadImageRequest {
	return &reflejov1.UploadImageRequest{Part: &reflejov1.UploadImageRequest_Data{Data: []byte(text)}}
}

// upload is a client that sends parts with pauses in between, then ends with err.
func upload(pause time.Duration, err error, parts ...*reflejov1.UploadImageRequest) func() (*reflejov1.UploadImageRequest, error) {
	return func() (*reflejov1.UploadImageRequest, error) {
		time.Sleep(pause)
		if len(parts) == 0 {
			return nil, err
		}
		part := parts[0]
		parts = parts[1:]
		return part, nil
	}
}

func TestUploadReader(t *testing.T) {
	t.Parallel()
	header := &reflejov1.UploadImageRequest{Part: &reflejov1.UploadImageRequest_Header{Header: &reflejov1.UploadImageHeader{}}}
	broken := errors.New("connection lost")
	for name, c := range map[string]struct {
		receive func() (*reflejov1.UploadImageRequest, error)
		size    int64
		want    string
		bad     fault.Kind // Internal: broken, or none
		err     error
	}{
		"whole":         {receive: upload(0, io.EOF, data("ab"), data("c")), size: 3, want: "abc"},
		"size unknown":  {receive: upload(0, io.EOF, data("abc")), want: "abc"},
		"slow":          {receive: upload(uploadIdle-time.Second, io.EOF, data("a"), data("b"), data("c")), want: "abc"},
		"too short":     {receive: upload(0, io.EOF, data("ab")), size: 3, want: "ab", bad: fault.Invalid},
		"too long":      {receive: upload(0, io.EOF, data("abcd")), size: 3, bad: fault.Invalid},
		"second header": {receive: upload(0, io.EOF, data("ab"), header), want: "ab", bad: fault.Invalid},
		"broken":        {receive: upload(0, broken, data("ab")), want: "ab", err: broken},
		"stands still":  {receive: upload(uploadIdle+time.Second, io.EOF, data("ab")), bad: fault.Aborted},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				r, done := uploadReader(t.Context(), c.receive, c.size)
				got, err := io.ReadAll(r)
				done()
				if string(got) != c.want || fault.KindOf(err) != c.bad || (c.err != nil && !errors.Is(err, c.err)) {
					t.Errorf("got %q, %v", got, err)
				}
				time.Sleep(time.Hour) // the receiver has ended: no goroutine is left in the bubble
			})
		})
	}
}

// A manager that is slow to read must not make the client look idle.
func TestUploadWaitsForTheReader(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r, done := uploadReader(t.Context(), upload(0, io.EOF, data("ab"), data("c")), 3)
		defer done()
		time.Sleep(10 * uploadIdle)
		if got, err := io.ReadAll(r); string(got) != "abc" || err != nil {
			t.Errorf("got %q, %v", got, err)
		}
	})
}

func TestUploadEndsWithItsContext(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancelCause(t.Context())
		done := make(chan struct{})
		r, end := uploadReader(ctx, silence[reflejov1.UploadImageRequest](done), 0)
		cancel(errDraining)
		if _, err := io.ReadAll(r); !errors.Is(err, errDraining) {
			t.Errorf("got %v", err)
		}
		end()
		close(done)
	})
}
