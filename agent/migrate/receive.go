package migrate

import (
	"context"
	"errors"
	"io"
	"slices"
	"time"

	"github.com/reflejo/terraform-provider-reflejo/agent/endpoint"
	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
	"github.com/reflejo/terraform-provider-reflejo/agent/snapshot"
)

// reception is one link of a source, from its first frame to its end.
type reception struct {
	m       *Manager
	l       Link
	leave   func()
	move    string // that the link is at, "" before its first frame
	opened  bool   // frames of a disk are accepted
	arrival snapshot.Arrival
	round   roundBegin
	frames  int64
	sum     uint32
	unpack  *unpacker
}

// Serve answers a source until its link ends.
func (m *Manager) Serve(ctx context.Context, l Link) error {
	r := &reception{m: m, l: l}
	defer r.end()
	for {
		f, err := l.Receive()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err == nil {
			err = r.frame(ctx, f)
		}
		if err != nil {
			return err
		}
	}
}

func (r *reception) end() {
	r.closeArrival()
	if r.unpack != nil {
		r.unpack.zstd.Close()
	}
	if r.leave != nil {
		r.leave()
	}
}

func (r *reception) closeArrival() {
	if r.arrival != nil {
		if err := r.arrival.Close(); err != nil { // what counts was synced
			r.m.cfg.Log.Warn("close an arrival", "error", err)
		}
		r.arrival = nil
	}
}

// frame does what one frame says.
func (r *reception) frame(ctx context.Context, f endpoint.Frame) error {
	switch f.Type {
	case frameAsk:
		var a asking
		if err := errors.Join(decodeJSON(f, &a), r.at(ctx, a.Move)); err != nil {
			return err
		}
		r.closeArrival() // a commit renames it
		r.opened = r.opened && a.Ask == AskStatus
		s, err := r.m.asked(ctx, r.l.Peer(), a)
		if err != nil {
			return err
		}
		return sendJSON(r.l, frameState, s)
	case frameOpen:
		var o opening
		if err := errors.Join(decodeJSON(f, &o), r.at(ctx, o.Move)); err != nil {
			return err
		}
		return r.open(ctx, o)
	}
	if !r.opened {
		return fault.New(fault.Invalid, "a frame of type %d before a move is opened", f.Type)
	}
	switch f.Type {
	case frameRound:
		return r.begin(ctx, f)
	case frameKeep:
		return r.keep(ctx, f)
	}
	if r.arrival == nil {
		return fault.New(fault.Invalid, "a frame of type %d before a round has begun", f.Type)
	}
	switch f.Type {
	case frameData:
		return r.data(f)
	case frameZero:
		return r.zero(f)
	case frameMark:
		return r.mark(f)
	case frameEnd:
		return r.complete(f)
	}
	return fault.New(fault.Invalid, "a frame of type %d is not known here", f.Type)
}

// at makes the link the one that is at a move; it stays at that one.
func (r *reception) at(ctx context.Context, move string) (err error) {
	if r.leave == nil {
		r.move = move
		r.leave, err = r.m.enter(ctx, move, r.l, true)
		return err
	}
	if move != r.move {
		return fault.New(fault.Invalid, "a link that is at move %s asks for %s", r.move, move)
	}
	return nil
}

// open checks the source's right, and reserves for the server as the source has it.
func (r *reception) open(ctx context.Context, o opening) error {
	rec, ok := r.m.incomingOf(o.Move)
	switch {
	case !ok || rec.Phase != TargetIncoming:
		s := state{Phase: TargetUnknown}
		if ok && rec.Source == r.l.Peer() {
			s = rec.state()
		}
		return sendJSON(r.l, frameState, s)
	case rec.Source != r.l.Peer() || !rec.accepts(r.l.Right()):
		return fault.New(fault.Denied, "take server %s from host %s: the ticket is not good for that; ask for a new one", rec.Name, r.l.Peer())
	case time.Now().After(rec.Expires):
		return fault.New(fault.Denied, "take server %s from host %s: the ticket ended at %s; ask for a new one", rec.Name, r.l.Peer(), rec.Expires.Format(time.RFC3339))
	case o.Server.Spec.ID != rec.Server:
		return fault.New(fault.Denied, "take server %s: the ticket is for server %s", o.Server.Spec.ID, rec.Server)
	case o.Architecture != architecture:
		return fault.New(fault.Precondition, "take server %s: it is of architecture %s, this host is %s", rec.Name, o.Architecture, architecture)
	}
	o.Server.Source, o.Server.Reserved = rec.Source, rec.SnapshotBytes
	if err := r.m.cfg.Servers.Reserve(ctx, o.Server); err != nil {
		return err
	}
	rec, err := r.m.saveIncoming(rec.Move, func(i *incoming) { i.Opened, i.Expires = true, time.Now().UTC().Add(ticketLife) })
	if err != nil {
		return err
	}
	if r.unpack, err = newUnpacker(); err != nil {
		return err
	}
	r.opened = true
	return sendJSON(r.l, frameState, rec.state())
}

// begin opens the arrival for a round.
func (r *reception) begin(ctx context.Context, f endpoint.Frame) error {
	var b roundBegin
	if err := decodeJSON(f, &b); err != nil {
		return err
	}
	rec, ok := r.m.incomingOf(r.move)
	switch {
	case !ok:
		return fault.New(fault.Aborted, "move %s has been forgotten", r.move)
	case b.Round == "" || len(b.Round) > 64 || b.Size <= 0 || b.Size > maxDisk:
		return fault.New(fault.Invalid, "round %q of a disk of %d bytes", b.Round, b.Size)
	case b.Since != "" && b.Since != rec.Base:
		return fault.New(fault.Precondition, "take round %s: it builds on %s, and here is %q", b.Round, b.Since, rec.Base)
	}
	r.closeArrival()
	if rec.Round != b.Round {
		var err error
		if rec, err = r.m.saveIncoming(r.move, func(i *incoming) {
			i.Round, i.Through = b.Round, 0
			if b.Since == "" {
				i.Base = ""
			}
		}); err != nil {
			return err
		}
	}
	if b.Since == "" && rec.Through == 0 { // whatever is there, also after a crash right here
		if err := r.m.cfg.Arrivals.Drop(ctx, r.move); err != nil {
			return err
		}
	}
	a, err := r.m.cfg.Arrivals.Receive(ctx, r.move, b.Size)
	if err != nil {
		return err
	}
	r.arrival, r.round, r.frames, r.sum = a, b, 0, 0
	if rec.Size != b.Size {
		_, err = r.m.saveIncoming(r.move, func(i *incoming) { i.Size = b.Size })
	}
	return err
}

func (r *reception) data(f endpoint.Frame) error {
	p, err := decodePiece(f.Payload)
	var content []byte
	if err == nil && p.Range.End() <= r.round.Size {
		content, err = r.unpack.content(p)
	} else if err == nil {
		err = errors.New("data beyond the end of the disk")
	}
	if err != nil {
		return fault.New(fault.Invalid, "take round %s: %w", r.round.Round, err)
	}
	r.frames, r.sum = r.frames+1, summed(r.sum, p.Range, p.Sum)
	_, err = r.arrival.WriteAt(content, p.Range.Offset)
	return err
}

func (r *reception) zero(f endpoint.Frame) error {
	z, err := decodeZero(f.Payload)
	if err == nil && z.End() > r.round.Size {
		err = errors.New("zeros beyond the end of the disk")
	}
	if err != nil {
		return fault.New(fault.Invalid, "take round %s: %w", r.round.Round, err)
	}
	r.frames, r.sum = r.frames+1, summed(r.sum, z, 0)
	return r.arrival.Zero(z)
}

// mark makes durable what has come so far.
func (r *reception) mark(f endpoint.Frame) error {
	var k roundMark
	if err := decodeJSON(f, &k); err != nil {
		return err
	}
	if k.Offset <= 0 || k.Offset > r.round.Size {
		return fault.New(fault.Invalid, "take round %s: a mark at %d", r.round.Round, k.Offset)
	}
	return r.durable(func(i *incoming) { i.Through = k.Offset })
}

// complete checks a round and makes it the arrival's.
func (r *reception) complete(f endpoint.Frame) error {
	var e roundEnd
	if err := decodeJSON(f, &e); err != nil {
		return err
	}
	if e.Round != r.round.Round || e.Frames != r.frames || e.Sum != r.sum {
		return fault.New(fault.Internal, "take round %s: %d frames with sum %08x came, %d of round %s with sum %08x were sent", r.round.Round, r.frames, r.sum, e.Frames, e.Round, e.Sum)
	}
	err := r.durable(func(i *incoming) { i.Base, i.Round, i.Through = e.Round, "", 0 })
	r.closeArrival()
	return err
}

// durable syncs the arrival, then records what that means, then tells.
func (r *reception) durable(change func(*incoming)) error {
	if err := r.arrival.Sync(); err != nil {
		return err
	}
	rec, err := r.m.saveIncoming(r.move, func(i *incoming) {
		change(i)
		i.Expires = time.Now().UTC().Add(ticketLife)
	})
	if err != nil {
		return err
	}
	return sendJSON(r.l, frameState, rec.state())
}

// keep makes a snapshot of what has come.
func (r *reception) keep(ctx context.Context, f endpoint.Frame) error {
	var k keeping
	if err := decodeJSON(f, &k); err != nil {
		return err
	}
	rec, ok := r.m.incomingOf(r.move)
	if !ok || k.ID != k.Record.ID || k.Record.Server != rec.Server || !rec.complete(k.ID) {
		return fault.New(fault.Invalid, "keep snapshot %s: it is not what came last, or not of the server", k.ID)
	}
	if !slices.Contains(rec.Kept, k.ID) {
		var err error
		if rec, err = r.m.saveIncoming(r.move, func(i *incoming) { i.Kept = append(i.Kept, k.ID) }); err != nil {
			return err
		}
	}
	if err := r.m.cfg.Arrivals.Keep(ctx, r.move, k.ID); err != nil {
		return err
	}
	if _, err := r.m.cfg.Snapshots.Adopt(ctx, k.Record); err != nil {
		return err
	}
	return sendJSON(r.l, frameState, rec.state())
}
