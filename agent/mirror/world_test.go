package mirror

import (
	"fmt"
	"slices"
)

// The world around three cores, made of what they cannot see: hosts that die, links that break,
// a guard that obeys the clock alone, logs with real content, and clients who remember.

const (
	logMax = 6  // entries of a log
	noon   = 60 // the clock; time passes by moving everything else into the past
)

// journal is a log: entry n is who wrote it.
type journal [logMax]uint8

// opKind is what a node's host is busy with, between its begin and its event.
type opKind uint8

const (
	idle opKind = iota
	starting
	promoting
	stopping
	probing
	hardening
	rejoining
	copying
)

type op struct {
	kind opKind
	to   LSN
	seq  uint32
	data journal
}

// host is a node and what is on its machine.
type host struct {
	on     bool // the agent runs
	frozen bool // it gets neither messages nor ticks; its guard goes on
	due    bool // a tick is due
	ended  bool // the guard says that the database is gone
	s      State
	kept   Durable // on its disk
	log    journal // on its disk
	len    LSN
	up     bool   // database processes are there
	open   bool   // and clients reach it
	until  uint32 // the guard's lease, 0: without end
	op     op
}

// link is a pair of hosts, by the index of the one it leaves out.
type link struct {
	on    bool
	cut   bool     // cannot be made
	stall [2]bool  // what the lower and the higher one sends does not arrive for now
	down  [2]uint8 // the lower and the higher one is to learn that it broke; 2: with a death notice
}

type item struct {
	m    Message
	data journal // what an Append carries
}

// fixed is the part of a world without slices: it is compared and hashed as bytes.
type fixed struct {
	hosts  [3]host
	links  [3]link
	acked  uint16 // entries that a client was promised, or has read
	last   uint8  // last entry written
	newest uint32 // role sequence that began by force, or in which somebody served
	lossy  uint32 // role sequence that began by force
	forced bool   // service was forced: what the new principal lacks is given up
	owners [12]Node
	faults uint8
	lags   uint8
	verbs  uint8
	writes uint8
}

type world struct {
	fixed
	queues [6][]item // by sender and receiver, see queue
	rules  *rules
	cells  map[cell]int
}

// rules are those of a run: sizes, and what is broken on purpose.
type rules struct {
	alone bool // there is no witness
	eager bool // pings and echoes arrive at once where nothing is in their way
	step  func(State, Event) (State, []Action)
	only  []moveKind // faults there are; nil: all
	verbs []Verb     // operators' commands there are
	// Broken edges, for the tests that the explorer notices.
	guardSleeps bool
	ackEarly    bool
	tear        bool // rejoin leaves what was there
	cutRedo     bool // promotion stops before the journal's end (A2)
}

type cell struct {
	role  Role
	shown Shown
	phase Phase
	kind  EventKind
	msg   MessageKind
}

func index(n Node) int    { return int(n - A) }
func node(i int) Node     { return Node(i) + A }
func pairOf(i, j int) int { return 3 - i - j }

// queue is the index of what i sends to j.
func queue(i, j int) int { return i*2 + (j+2-i)%3%2 }

func side(i, j int) int {
	if i < j {
		return 0
	}
	return 1
}

func (w *world) push(i, j int, it item) {
	q := queue(i, j)
	w.queues[q] = append(slices.Clip(w.queues[q]), it)
}

func (w *world) pop(i, j int) item {
	q := queue(i, j)
	it := w.queues[q][0]
	w.queues[q] = w.queues[q][1:]
	return it
}

// violation is what an invariant says when it does not hold.
type violation string

func broken(number int, format string, args ...any) {
	panic(violation(fmt.Sprintf("invariant %d: ", number) + fmt.Sprintf(format, args...)))
}

// step gives a host an event, and does what it says, up to limit actions if that is not
// negative: then the host dies.
func (w *world) step(i int, e Event, data journal, limit int) {
	h := &w.hosts[i]
	before := h.s
	if w.cells != nil {
		w.cells[cell{before.Role(), before.Shown(), before.Phase, e.Kind, e.Msg.Kind}]++
	}
	e.Now = noon
	next, actions := w.rules.step(before, e)
	h.s = next
	w.checkStep(i, before, next, actions)
	for k, a := range actions {
		if k == limit {
			w.crash(i, false)
			return
		}
		w.perform(i, a, data)
	}
	if limit < 0 && h.kept != h.s.D {
		broken(7, "%v acts on what it did not keep", node(i))
	}
}

// perform does one action.
func (w *world) perform(i int, a Action, data journal) {
	h := &w.hosts[i]
	switch a.Kind {
	case Persist:
		h.kept = a.Durable
	case Send:
		w.sent(i, a.Msg)
	case Lease:
		h.until = a.Until
	case Start:
		h.op = op{kind: starting}
	case Promote:
		h.op = op{kind: promoting}
	case Open:
		w.opened(i)
	case Fence:
		w.fence(i)
	case Stop:
		h.open = false
		h.op = op{kind: stopping}
	case Acknowledge:
		w.acknowledged(i, a.LSN)
	case ProbeCommit:
		h.op = op{kind: probing}
	case Harden:
		h.op = op{kind: hardening, to: a.LSN, data: data}
		if w.rules.ackEarly {
			w.push(i, 1-i, item{m: Message{Kind: Ack, From: node(i), To: node(1 - i), Seq: h.s.D.Rec.Seq, LSN: a.LSN}})
		}
	case Rejoin:
		h.op = op{kind: rejoining, seq: a.Seq}
	case CopyAll:
		h.op = op{kind: copying, seq: a.Seq}
	case Close:
		w.cutOff(i, index(a.Peer))
	}
}

func (w *world) sent(i int, m Message) {
	j := index(m.To)
	if !w.links[pairOf(i, j)].on {
		return
	}
	q := w.queues[queue(i, j)]
	for _, it := range q {
		if (m.Kind == Ping || m.Kind == Raise) && it.m.Kind == m.Kind {
			return // the older one stands for both: it says less
		}
	}
	it := item{m: m}
	if m.Kind == Append {
		it.data = w.hosts[i].log
	}
	w.push(i, j, it)
}

// opened lets clients in: what they find, they may have read.
func (w *world) opened(i int) {
	h := &w.hosts[i]
	if !h.up {
		return // the guard was faster
	}
	h.open = true
	if h.s.D.Rec.Base == w.lossy && w.forced {
		w.acked &= h.entries() // forced service gives up what is not here
	}
	w.newest = max(w.newest, h.kept.Rec.Seq)
	w.promise(i, h.len)
}

func (h *host) entries() uint16 {
	var set uint16
	for _, e := range h.log[:h.len] {
		set |= 1 << e
	}
	return set
}

func (w *world) acknowledged(i int, to LSN) {
	h := &w.hosts[i]
	if to > h.len {
		broken(1, "%v acknowledges %d of %d", node(i), to, h.len)
	}
	if h.up && h.open {
		w.promise(i, to)
	}
}

// promise notes that clients know of the first entries of a log. What they hear from a
// principal that service was forced away from is lost, and was said to be (mirroring.md §2.3).
func (w *world) promise(i int, to LSN) {
	h := &w.hosts[i]
	if h.kept.Rec.Seq < w.newest && w.forced {
		return
	}
	for _, e := range h.log[:to] {
		w.acked |= 1 << e
	}
}

func (w *world) fence(i int) {
	h := &w.hosts[i]
	h.up, h.open, h.ended, h.until = false, false, false, 0
	if h.op.kind != hardening && h.op.kind != rejoining && h.op.kind != copying {
		h.op = op{}
	}
}

// cutOff is a link closed by i: j learns of it later.
func (w *world) cutOff(i, j int) {
	l := &w.links[pairOf(i, j)]
	if !l.on {
		return
	}
	l.on = false
	w.queues[queue(i, j)], w.queues[queue(j, i)] = nil, nil
	if w.hosts[j].on {
		l.down[side(j, i)] = 1
	}
}

// crash ends a host's agent and database; with notice, the guard's words arrive.
func (w *world) crash(i int, notice bool) {
	h := &w.hosts[i]
	seen := h.up && notice
	w.fence(i)
	h.on, h.frozen, h.due, h.ended, h.op = false, false, false, false, op{}
	h.s = State{Self: h.s.Self, Grace: h.s.Grace}
	for j := range 3 {
		if j == i {
			continue
		}
		l := &w.links[pairOf(i, j)]
		l.down[side(i, j)] = 0
		was := l.on
		w.cutOff(i, j)
		if was && seen && l.down[side(j, i)] == 1 {
			l.down[side(j, i)] = 2
		}
	}
}

// replaceAgent ends the agent and starts another, while the guard keeps the database.
func (w *world) replaceAgent(i int) {
	h := &w.hosts[i]
	up, open, until := h.up, h.open, h.until
	w.crash(i, false)
	h.up, h.open, h.until, h.on = up, open, until, true
	h.s = New(node(i), h.s.Grace, h.kept)
	w.step(i, Event{Kind: Boot, LSN: h.len, Running: up, OK: open, Until: until}, journal{}, -1)
}

// restart starts the agent of a host again.
func (w *world) restart(i int) {
	h := &w.hosts[i]
	h.on = true
	h.s = New(node(i), h.s.Grace, h.kept)
	w.step(i, Event{Kind: Boot, LSN: h.len}, journal{}, -1)
}

// connect makes a link.
func (w *world) connect(i, j int) {
	w.links[pairOf(i, j)].on = true
	w.step(i, Event{Kind: LinkUp, Peer: node(j)}, journal{}, -1)
	if w.links[pairOf(i, j)].on {
		w.step(j, Event{Kind: LinkUp, Peer: node(i)}, journal{}, -1)
	}
}

// complete ends what a host is busy with.
func (w *world) complete(i, limit int) {
	h := &w.hosts[i]
	o := h.op
	h.op = op{}
	e := Event{LSN: h.len, Seq: o.seq}
	switch o.kind {
	case starting:
		h.up = true
		e.Kind = Started
	case promoting:
		h.up = true
		if w.rules.cutRedo && h.len > 1 {
			h.len--
			h.log[h.len] = 0
		}
		e.Kind, e.LSN = Promoted, h.len
	case stopping:
		e.Kind = LogEnded
	case probing:
		e.Kind = Probed
	case hardening:
		e.Kind, e.LSN = Hardened, o.to
		for k := range min(h.len, o.to) {
			if h.log[k] != o.data[k] {
				broken(5, "%v appends to a log that went another way", node(i))
			}
		}
		for k := h.len; k < o.to; k++ {
			h.log[k] = o.data[k]
		}
		h.len = max(h.len, o.to)
	default:
		e = w.rejoined(i, o)
	}
	if h.up && h.until != 0 && h.until <= noon && !w.rules.guardSleeps {
		w.fence(i) // the guard does not begin what is over
		e = Event{Kind: Ended}
	}
	w.step(i, e, journal{}, limit)
}

// rejoined makes a copy a beginning of the principal's, if that can be reached.
func (w *world) rejoined(i int, o op) Event {
	h, p := &w.hosts[i], &w.hosts[1-i]
	if !w.links[pairOf(i, 1-i)].on || p.s.D.Rec.Seq != o.seq || p.s.D.TLI != p.s.D.Rec.TLI {
		return Event{Kind: Failed, Seq: o.seq}
	}
	if !w.rules.tear {
		n := LSN(0)
		for n < min(h.len, p.len) && h.log[n] == p.log[n] {
			n++
		}
		if o.kind == copying {
			n = p.len
		}
		h.log, h.len = p.log, n
		for k := n; k < logMax; k++ {
			h.log[k] = 0
		}
	}
	return Event{Kind: Rejoined, Seq: o.seq, LSN: h.len}
}

// pass lets one tick of time pass for everybody: all that is dated moves into the past.
func (w *world) pass() {
	past := func(t *uint32) {
		if *t != 0 {
			*t = max(*t-1, noon-20)
		}
	}
	for i := range w.hosts {
		h := &w.hosts[i]
		past(&h.until)
		past(&h.s.Now)
		past(&h.s.Ticked)
		past(&h.s.Until)
		for n := range h.s.Peers {
			past(&h.s.Peers[n].Until)
		}
		if h.on && !h.frozen {
			h.due = true
		}
		if h.up && h.until != 0 && h.until <= noon && !w.rules.guardSleeps {
			until := h.until
			w.fence(i)
			h.until, h.ended = until, h.on
		}
	}
	for q := range w.queues {
		w.queues[q] = slices.Clone(w.queues[q])
		for k := range w.queues[q] {
			past(&w.queues[q][k].m.Stamp)
		}
	}
}
