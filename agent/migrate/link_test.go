package migrate

import (
	"context"
	"fmt"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/reflejo/terraform-provider-reflejo/agent/endpoint"
	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
)

// The links.

// pipe is one direction of a link: what has been sent arrives, unless the link breaks.
type pipe struct {
	frames chan endpoint.Frame
	broken chan struct{}
}

type end struct {
	w         *world
	me, peer  string
	right     []byte
	send, get *pipe
	cut       func()
}

func (h *host) dial(ctx context.Context, target, address, purpose string, right []byte) (Link, error) {
	w := h.w
	w.mu.Lock()
	defer w.mu.Unlock()
	other := w.hosts[target]
	if !h.alive || !other.alive || address != target+":7444" {
		return nil, fault.New(fault.Unavailable, "nobody at %s", address)
	}
	broken := make(chan struct{})
	cut := sync.OnceFunc(func() { close(broken) })
	w.cuts = append(w.cuts, cut)
	a, b := &pipe{make(chan endpoint.Frame, 1000), broken}, &pipe{make(chan endpoint.Frame, 1000), broken}
	mine, theirs := &end{w, h.name, target, right, a, b, cut}, &end{w, target, h.name, right, b, a, cut}
	m := other.m
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		defer cancel()
		err := map[string]func(context.Context, Link) error{Purpose: m.Serve, LoanPurpose: m.ServeLoans}[purpose](ctx, theirs)
		theirs.finish(err)
	}()
	go func() { <-broken; cancel() }()
	return mine, nil
}

func (e *end) Peer() string  { return e.peer }
func (e *end) Right() []byte { return e.right }
func (e *end) CloseWith(ctx context.Context) func() bool {
	return context.AfterFunc(ctx, e.cut)
}
func (e *end) Close() error { e.cut(); return nil }

var errBroken = fault.New(fault.Unavailable, "the link broke: %w", net.ErrClosed)

func (e *end) Send(kind byte, parts ...[]byte) error {
	payload := slices.Concat(parts...)
	e.w.mu.Lock()
	defer e.w.mu.Unlock()
	select {
	case <-e.send.broken:
		return errBroken
	default:
	}
	text := ""
	if kind != frameData && kind != frameZero && kind != frameOpen && kind != frameKeep {
		text = string(payload)
	}
	k, failing := e.w.event(fmt.Sprintf("%s sends %d %.120s", e.me, kind, text))
	if failing && k == faultBefore {
		e.cut()
		return errBroken
	}
	if kind == frameData {
		e.w.moved += int64(len(payload))
	}
	e.send.frames <- endpoint.Frame{Type: kind, Payload: payload}
	if failing { // it arrives, and nothing after it
		time.AfterFunc(time.Millisecond, e.cut)
		if k == faultBoth {
			e.w.hosts[e.me].die()
		}
	}
	return nil
}

// finish tells the other side how it ended.
func (e *end) finish(err error) {
	var text []byte
	if err != nil {
		text = []byte(err.Error())
	}
	select {
	case e.send.frames <- endpoint.Frame{Type: 3, Payload: append([]byte{byte(fault.KindOf(err))}, text...)}:
	default:
	}
}

func (e *end) Receive() (endpoint.Frame, error) {
	select {
	case f := <-e.get.frames:
		if f.Type == 3 {
			return f, &fault.Error{Kind: fault.Kind(f.Payload[0]), Err: &endpoint.RemoteError{Host: e.peer, Text: string(f.Payload[1:])}}
		}
		return f, nil
	case <-e.get.broken:
		select { // what had arrived
		case f := <-e.get.frames:
			if f.Type != 3 {
				return f, nil
			}
		default:
		}
		return endpoint.Frame{}, errBroken
	}
}
