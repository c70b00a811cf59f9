package migrate

import (
	"bytes"
	"context"
	"slices"
	"time"

	"github.com/google/uuid"

	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
	"github.com/reflejo/terraform-provider-reflejo/agent/snapshot"
	"github.com/reflejo/terraform-provider-reflejo/agent/vserver"
)

// The steps of a migration, as people see them.
const (
	stepSnapshots = 1
	stepWarm      = 2
	stepStop      = 3
	stepRest      = 4
	lastStep      = 5
)

const (
	// patience is for how long a link may be away while nobody waits: the server runs.
	patience = 2 * time.Minute
	// defaultMarkEvery is how much of a round is sent at most twice when the link breaks, bytes.
	defaultMarkEvery = 1 << 30
)

// copying brings everything of a server to the target. When it has succeeded the server is
// down and the target has its last state.
type copying struct {
	m      *Manager
	h      *vserver.Held
	server string
	l      Link
	has    state // what the target has
	pack   *packer
	down   bool

	began time.Time
	done  int64 // bytes of disks sent or skipped
	total int64 // of what is known to be sent
	shown time.Time
	rate  int64 // bits per second, 0 unlimited
	paced int64 // bytes on the wire since since
	since time.Time
}

func (c *copying) kept() []string { return c.has.Kept }

func (c *copying) rec() outgoing {
	r, _ := c.m.outgoingOf(c.server)
	return r
}

// run copies; while the server runs it outlasts a lost link.
func (c *copying) run(ctx context.Context) error {
	var err error
	if c.pack, err = newPacker(); err != nil {
		return err
	}
	defer c.pack.zstd.Close()
	c.began = time.Now()
	for delay := time.Second; ; delay = min(2*delay, 15*time.Second) {
		before := c.rec().Progressed
		err := c.try(ctx)
		if err == nil || !lost(err) || c.down || ctx.Err() != nil || time.Since(c.began) > patience {
			return err
		}
		if c.rec().Progressed.After(before) {
			c.began, delay = time.Now(), time.Second
		}
		c.m.cfg.Log.Warn("a migration goes on when the target is back", "server", c.rec().Name, "error", err)
		select {
		case <-time.After(delay):
		case <-ctx.Done():
			return err
		}
	}
}

// try copies over one link.
func (c *copying) try(ctx context.Context) (err error) {
	if err := c.open(ctx); err != nil {
		return err
	}
	stop := c.l.CloseWith(ctx)
	defer func() {
		if err != nil { // else the handover goes on with it
			_ = c.l.Close()
			c.l = nil
		}
		stop()
	}()
	rec := c.rec()
	c.rate, c.done, c.total = rec.Settings.Bandwidth, 0, 0
	if rec.Settings.Snapshots {
		if err := c.snapshots(ctx); err != nil {
			return err
		}
	}
	if rec.Settings.Mode == vserver.MigrateCold || c.h.State() != vserver.StateRunning {
		if err := c.stop(ctx); err != nil {
			return err
		}
	}
	if err := c.rounds(ctx); err != nil {
		return err
	}
	if err := c.stop(ctx); err != nil {
		return err
	}
	return c.rest(ctx)
}

func (c *copying) stop(ctx context.Context) error {
	c.down = true
	c.h.Progress("stop", stepStop, lastStep, c.done, c.total)
	return c.h.Down(ctx)
}

// open calls the target and agrees with it on what it has.
func (c *copying) open(ctx context.Context) error {
	rec := c.rec()
	l, err := c.m.cfg.Dial(ctx, rec.Target, rec.Endpoint, Purpose, rec.Secret)
	if err != nil {
		return err
	}
	stop := l.CloseWith(ctx)
	defer stop()
	record := c.h.Record()
	c.has, err = request(l, frameOpen, opening{Move: rec.Move, Architecture: architecture, Server: vserver.IncomingOf(record, c.m.cfg.Host)})
	if err == nil && sourceNext(SourceCopying, c.has.Phase) != stepCopy {
		err = fault.New(fault.Aborted, "migrate server %s: host %s does not know the move any more (%s)", rec.Name, rec.Target, c.has.Phase)
	}
	if err == nil {
		err = c.agree(ctx)
	}
	if err != nil {
		_ = l.Close()
		return err
	}
	c.l = l
	return nil
}

// agree holds what the target has against what this side remembers. What it has is one of:
// Base; Taken, whose acknowledgement was lost; the last round from the disk itself, which
// differs from Base only within Dirty; or something of which nothing is known any more, and
// then everything is sent again.
func (c *copying) agree(ctx context.Context) error {
	rec := c.rec()
	known := []string{rec.Base, rec.Taken, rec.Final}
	known = append(known, c.has.Kept...) // their disks may be gone here: then Changed says so
	switch has := c.has; {
	case has.Base == "" || !slices.Contains(known, has.Base):
		c.has.Base = ""
	case has.Base == rec.Taken:
		return c.acknowledged(ctx, rec.Taken)
	case has.Base != rec.Base && has.Base != rec.Final:
		_, err := c.m.saveOutgoing(c.server, func(r *outgoing) { r.Base, r.Dirty = has.Base, nil })
		return err
	}
	// A round that was begun has to be ended with the same content before another: what it
	// wrote so far is in the way. Only the last one's is covered by Dirty.
	if c.has.Round != "" && c.has.Round != rec.Taken && c.has.Round != rec.Final && !c.exported(c.has.Round) {
		c.has.Base = ""
	}
	if c.has.Base == "" && rec.Base != "" {
		_, err := c.m.saveOutgoing(c.server, func(r *outgoing) { r.Base, r.Dirty, r.Final = "", nil, "" })
		return err
	}
	return nil
}

func (c *copying) exported(id string) bool {
	return slices.ContainsFunc(c.m.cfg.Snapshots.Export(c.server), func(r snapshot.Record) bool { return r.ID == id })
}

// acknowledged records that the target has a migration snapshot; older ones have done their
// part.
func (c *copying) acknowledged(ctx context.Context, id string) error {
	rec, err := c.m.saveOutgoing(c.server, func(r *outgoing) {
		r.Base, r.Dirty, r.Final, r.Progressed = id, nil, "", time.Now().UTC()
		if r.Taken == id {
			r.Taken = ""
		}
	})
	if err != nil {
		return err
	}
	return c.m.removeMine(ctx, rec, rec.Base, rec.Taken)
}

// snapshots sends the server's snapshots, in the order in which each differs least from the
// one before.
func (c *copying) snapshots(ctx context.Context) error {
	for _, s := range c.m.cfg.Snapshots.Export(c.server) {
		if c.has.keptAlready(s.ID) {
			continue
		}
		if c.has.Base != s.ID {
			if err := c.sendSnapshot(ctx, s.ID, "copy snapshots", stepSnapshots); err != nil {
				return err
			}
			if err := c.acknowledged(ctx, s.ID); err != nil {
				return err
			}
		}
		var err error
		if c.has, err = request(c.l, frameKeep, keeping{ID: s.ID, Record: s}); err != nil {
			return err
		}
	}
	return nil
}

// rounds sends migration snapshots until another would not make the rest smaller. Of a
// stopped server one is sent: it lets a move that is broken off go on where it was.
func (c *copying) rounds(ctx context.Context) error {
	limit := c.rec().Settings.MaxDowntime
	if limit == 0 {
		limit = DefaultMaxDowntime
	}
	var sent []sentRound
	for !enough(sent, limit) {
		rec := c.rec()
		if rec.Taken == "" {
			id := uuid.NewString()
			var err error
			if rec, err = c.m.saveOutgoing(c.server, func(r *outgoing) { r.Taken, r.Mine = id, append(r.Mine, id) }); err != nil {
				return err
			}
		}
		// Nobody is held up for it: what is in between two of them travels with the second.
		if _, err := c.m.cfg.Disks.Take(ctx, rec.Taken, c.server, nil); err != nil {
			return err
		}
		began, before := time.Now(), c.done
		if err := c.sendSnapshot(ctx, rec.Taken, "copy", stepWarm); err != nil {
			return err
		}
		if err := c.acknowledged(ctx, rec.Taken); err != nil {
			return err
		}
		sent = append(sent, sentRound{Bytes: c.done - before, Took: time.Since(began)})
		if c.down {
			return nil
		}
	}
	return nil
}

// sendSnapshot sends a snapshot as a round.
func (c *copying) sendSnapshot(ctx context.Context, id, step string, index int) error {
	content, err := c.m.cfg.Disks.Open(ctx, id)
	if err != nil {
		return err
	}
	defer content.Close()
	ranges, err := c.changed(ctx, content)
	if err != nil {
		return err
	}
	return c.send(ctx, id, content, ranges, step, index)
}

// rest sends what the disk itself holds beyond the last snapshot.
func (c *copying) rest(ctx context.Context) error {
	content, err := c.m.cfg.Disks.OpenDisk(ctx, c.server)
	if err != nil {
		return err
	}
	defer content.Close()
	ranges, err := c.changed(ctx, content)
	if err != nil {
		return err
	}
	round := uuid.NewString()
	if _, err := c.m.saveOutgoing(c.server, func(r *outgoing) { r.Final, r.Dirty = round, coalesce(ranges, maxDirty) }); err != nil {
		return err
	}
	if err := c.send(ctx, round, content, ranges, "copy the rest", stepRest); err != nil {
		return err
	}
	_, err = c.m.saveOutgoing(c.server, func(r *outgoing) { r.Progressed = time.Now().UTC() })
	return err
}

// changed are the ranges in which the target may lack something of a content.
func (c *copying) changed(ctx context.Context, content snapshot.Content) ([]snapshot.Range, error) {
	rec := c.rec()
	if c.has.Base != "" && rec.Base != "" {
		ranges, err := content.Changed(ctx, rec.Base)
		if !fault.Is(err, fault.NotFound) {
			return union(ranges, rec.Dirty, content.Size()), err
		}
	}
	c.has.Base, c.has.Round = "", "" // begin with zeros
	return content.Data(ctx)
}

// send sends one round, from where the target has it.
func (c *copying) send(ctx context.Context, round string, content snapshot.Content, ranges []snapshot.Range, step string, index int) error {
	if err := sendJSON(c.l, frameRound, roundBegin{Round: round, Since: c.has.Base, Size: content.Size()}); err != nil {
		return err
	}
	c.total += total(ranges)
	if c.has.Round == round {
		rest := after(ranges, c.has.Through)
		c.done += total(ranges) - total(rest)
		ranges = rest
	}
	w := &roundWriter{c: c, content: content, buf: make([]byte, pieceSize), step: step, index: index}
	for _, r := range ranges {
		for r.Length > 0 {
			n := min(r.Length, pieceSize-r.Offset%pieceSize)
			if err := w.piece(ctx, snapshot.Range{Offset: r.Offset, Length: n}); err != nil {
				return err
			}
			r.Offset, r.Length = r.Offset+n, r.Length-n
		}
	}
	var err error
	c.has, err = request(c.l, frameEnd, roundEnd{Round: round, Frames: w.frames, Sum: w.sum})
	if err == nil && c.has.Base != round {
		err = fault.New(fault.Internal, "host %s has round %q after %s was sent", c.l.Peer(), c.has.Base, round)
	}
	return err
}

// roundWriter sends the pieces of one round.
type roundWriter struct {
	c       *copying
	content snapshot.Content
	buf     []byte
	frames  int64
	sum     uint32
	marked  int64 // bytes since the last mark
	step    string
	index   int
}

// zeroUnit is what is looked at when zeros are looked for, bytes.
const zeroUnit = 64 << 10

// piece reads and sends at most pieceSize bytes; what is zero there is sent as such.
func (w *roundWriter) piece(ctx context.Context, r snapshot.Range) error {
	b := w.buf[:r.Length]
	if err := snapshot.ReadFull(w.content, b, r.Offset); err != nil {
		return err
	}
	for at := 0; at < len(b); {
		end, zero := at, isZero(b[at:min(at+zeroUnit, len(b))])
		for end < len(b) && isZero(b[end:min(end+zeroUnit, len(b))]) == zero {
			end = min(end+zeroUnit, len(b))
		}
		if err := w.frame(r.Offset+int64(at), b[at:end], zero); err != nil {
			return err
		}
		at = end
	}
	c := w.c
	c.done += r.Length
	w.marked += r.Length
	if w.marked >= c.m.markEvery {
		w.marked = 0
		var err error
		if c.has, err = request(c.l, frameMark, roundMark{Offset: r.End()}); err != nil {
			return err
		}
		if _, err := c.m.saveOutgoing(c.server, func(r *outgoing) { r.Progressed = time.Now().UTC() }); err != nil {
			return err
		}
	}
	if time.Since(c.shown) >= 200*time.Millisecond {
		c.shown = time.Now()
		c.h.Progress(w.step, w.index, lastStep, c.done, c.total)
	}
	return nil
}

// frame sends one frame and keeps to the bandwidth.
func (w *roundWriter) frame(offset int64, content []byte, zero bool) error {
	c := w.c
	r := snapshot.Range{Offset: offset, Length: int64(len(content))}
	n := int64(zeroFrame)
	if zero {
		if err := c.l.Send(frameZero, encodeZero(r)); err != nil {
			return err
		}
		w.sum = summed(w.sum, r, 0)
	} else {
		header, packed, sum := c.pack.pack(offset, content)
		if err := c.l.Send(frameData, header, packed); err != nil {
			return err
		}
		w.sum = summed(w.sum, r, sum)
		n = int64(len(header) + len(packed))
	}
	w.frames++
	if now := time.Now(); now.Sub(c.since) > time.Second { // a second's worth at most is caught up
		c.since, c.paced = now, 0
	}
	c.paced += n
	if d := pause(c.paced, time.Since(c.since), c.rate); d > 0 {
		time.Sleep(d)
	}
	return nil
}

var zeros [zeroUnit]byte

func isZero(b []byte) bool { return bytes.Equal(b, zeros[:len(b)]) }
