package service

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"runtime/debug"
	"strings"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"

	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
)

// unaryLimit is how long one answer may take. Mutations answer when they are recorded, so
// this is a bound for a host in trouble, not a pace.
const unaryLimit = time.Minute

// gate is what every call passes between authorisation and its handler. It bounds the
// request and its time, turns a panic into an error, and reports the outcome: to the audit
// log if it is a mutation, to the metrics always.
type gate struct{ s *Service }

// call is one call on its way through the gate.
type call struct {
	s         *Service
	who       string
	from      string
	procedure string
	begun     time.Time
	mutation  bool
	object    Entry // ID, Name and Detail of the first message
}

func (g gate) begin(ctx context.Context, procedure string, peer connect.Peer) *call {
	return &call{
		s:         g.s,
		who:       callerOf(ctx).String(),
		from:      peer.Addr,
		procedure: procedure,
		begun:     time.Now(),
		mutation:  authz[procedure].mutation,
	}
}

// check looks at a message as it comes in.
func (c *call) check(m any) error {
	message, ok := m.(proto.Message)
	if !ok {
		return fault.New(fault.Invalid, "read request: %T is not a message", m)
	}
	if c.object == (Entry{}) {
		c.object = objectOf(message)
	}
	return checkBounds(message)
}

// end reports the outcome and returns the answer's error. panicked is what recover returned.
func (c *call) end(err error, panicked any) error {
	if panicked != nil {
		c.s.log.Error("a request panicked", "procedure", c.procedure, "who", c.who, "panic", panicked, "stack", string(debug.Stack()))
		err = fault.New(fault.Internal, "%s failed inside the agent; its log has the reason", shortName(c.procedure))
	}
	took := time.Since(c.begun)
	c.s.observe(c.procedure, codeOf(err), took)
	if c.mutation {
		c.audit(codeOf(err), err, took)
	}
	if err == nil {
		return nil
	}
	wire := wireError(err)
	if wire.Code() == connect.CodeInternal {
		c.s.log.Error("request failed", "procedure", c.procedure, "who", c.who, "id", c.object.ID, "name", c.object.Name, "error", err)
	}
	return wire
}

func (c *call) audit(outcome string, err error, took time.Duration) {
	e := c.object
	e.Time, e.Who, e.From, e.What, e.Outcome, e.Millis = c.begun.UTC(), c.who, c.from, shortName(c.procedure), outcome, took.Milliseconds()
	if err != nil {
		e.Error = wireError(err).Message()
	}
	c.s.audited(e)
}

// WrapUnary implements connect.Interceptor.
func (g gate) WrapUnary(next connect.UnaryFunc) connect.UnaryFunc {
	return func(ctx context.Context, req connect.AnyRequest) (res connect.AnyResponse, err error) {
		c := g.begin(ctx, req.Spec().Procedure, req.Peer())
		defer func() { err = c.end(err, recover()) }()
		if err := c.check(req.Any()); err != nil {
			return nil, err
		}
		ctx, cancel := context.WithTimeout(ctx, unaryLimit)
		defer cancel()
		return next(ctx, req)
	}
}

// WrapStreamingClient implements connect.Interceptor; the agent's handlers call nobody.
func (g gate) WrapStreamingClient(next connect.StreamingClientFunc) connect.StreamingClientFunc {
	return next
}

// errDraining ends streams when the agent stops; clients watch again.
var errDraining = fault.New(fault.Unavailable, "the agent is stopping; servers go on, ask again when it is back")

// WrapStreamingHandler implements connect.Interceptor. Streams have no time limit of their
// own: they end with the client, with their object, or when the agent stops.
func (g gate) WrapStreamingHandler(next connect.StreamingHandlerFunc) connect.StreamingHandlerFunc {
	return func(ctx context.Context, conn connect.StreamingHandlerConn) (err error) {
		c := g.begin(ctx, conn.Spec().Procedure, conn.Peer())
		defer func() { err = c.end(err, recover()) }()
		ctx, cancel := context.WithCancelCause(ctx)
		defer cancel(nil)
		defer context.AfterFunc(g.s.draining, func() { cancel(errDraining) })()
		err = next(ctx, &checkedConn{StreamingHandlerConn: conn, call: c})
		if cause := context.Cause(ctx); errors.Is(cause, errDraining) && err != nil {
			return errDraining
		}
		return err
	}
}

// checkedConn checks each message of a stream.
type checkedConn struct {
	connect.StreamingHandlerConn
	call *call
	seen bool
}

func (c *checkedConn) Receive(m any) error {
	if err := c.StreamingHandlerConn.Receive(m); err != nil {
		return err
	}
	if err := c.call.check(m); err != nil {
		return wireError(err)
	}
	if !c.seen && c.call.mutation {
		c.call.audit("begun", nil, 0)
	}
	c.seen = true
	return nil
}

// shortName is a procedure without the package: "ServerService/CreateServer".
func shortName(procedure string) string {
	return strings.TrimPrefix(procedure, "/reflejo.v1.")
}

// observe and audited tolerate a service without metrics or audit log.

func (s *Service) observe(procedure, code string, took time.Duration) {
	if s.cfg.Observer != nil {
		s.cfg.Observer.Request(shortName(procedure), code, took)
	}
}

func (s *Service) audited(e Entry) {
	s.log.Info("audit", "who", e.Who, "what", e.What, "id", e.ID, "name", e.Name, "detail", e.Detail, "outcome", e.Outcome)
	if s.cfg.Audit == nil {
		return
	}
	if err := s.cfg.Audit.Write(e); err != nil {
		s.log.Error("audit log can't be written", "error", err)
	}
}

// deny answers a caller who has no right to a path, in the protocol that it speaks.
func (s *Service) deny(w http.ResponseWriter, r *http.Request, err error) {
	wire := wireError(err)
	procedure := r.URL.Path
	if _, known := authz[procedure]; !known { // whatever somebody typed must not become a metric's label
		procedure = "unknown"
	}
	s.observe(procedure, wire.Code().String(), 0)
	if !s.errors.IsSupported(r) {
		http.Error(w, wire.Message(), http.StatusForbidden)
		return
	}
	if werr := s.errors.Write(w, r, wire); werr != nil {
		s.log.Debug("denial could not be sent", "error", fmt.Errorf("answer %s: %w", r.RemoteAddr, werr))
	}
}
