package mirror

import (
	"fmt"
	"slices"
)

type moveKind uint8

const (
	deliver   moveKind = iota // the first of what i sent to j; limit
	tickOf                    // of i; limit
	completes                 // what i is busy with; limit
	endedAt                   // i's guard reports
	passes                    // time
	downAt                    // i learns that its link to j broke
	connects                  // i and j
	restarts                  // i
	swaps                     // i's agent is replaced, as was announced
	heals                     // i and j
	thaws                     // i
	writes                    // a client at i
	crashes                   // i, its host
	loses                     // i, which is off: the last entry on its disk
	dies                      // i's agent; the guard gives notice
	dbDies                    // i's database
	cuts                      // i and j
	stalls                    // what i sends to j
	freezes                   // i
	verb                      // limit = Verb at i; j: safety
)

type move struct {
	kind moveKind
	i, j int8
	n    int8 // actions before a crash, -1: no crash; the verb
}

func (m move) String() string {
	name := [...]string{"deliver", "tick", "complete", "guard reports", "time passes", "down", "connect", "restart", "replace agent", "heal", "thaw", "write", "crash", "lose", "agent dies", "database dies", "cut", "stall", "freeze", "operator"}[m.kind]
	text := fmt.Sprintf("%s %v", name, node(int(m.i)))
	switch m.kind {
	case passes:
		return name
	case deliver, downAt, connects, heals, cuts, stalls:
		text += fmt.Sprintf(" %v", node(int(m.j)))
	}
	if m.kind == verb {
		return text + fmt.Sprintf(" %v", Verb(m.n))
	}
	if m.n >= 0 && (m.kind == deliver || m.kind == tickOf || m.kind == completes) {
		text += fmt.Sprintf(", killed after %d actions", m.n)
	}
	return text
}

// open reports whether the first of what i sent to j can arrive now.
func (w *world) arrives(i, j int) bool {
	l := &w.links[pairOf(i, j)]
	h := &w.hosts[j]
	return len(w.queues[queue(i, j)]) > 0 && !l.stall[side(i, j)] && h.on && !h.frozen
}

// quiet reports whether nothing is under way but time.
func (w *world) quiet() bool {
	for i := range 3 {
		h := &w.hosts[i]
		if h.due && !h.frozen || h.op.kind != idle && h.on && !h.frozen || h.ended && !h.frozen {
			return false
		}
		for j := range 3 {
			if i != j && (w.arrives(i, j) || w.learns(i, j) || w.linkable(i, j)) {
				return false
			}
		}
	}
	return true
}

// learns reports whether i is to hear that its link to j broke.
func (w *world) learns(i, j int) bool {
	h := &w.hosts[i]
	return w.links[pairOf(i, j)].down[side(i, j)] != 0 && h.on && !h.frozen
}

// linkable reports whether i and j can make a link now.
func (w *world) linkable(i, j int) bool {
	l, a, b := &w.links[pairOf(i, j)], &w.hosts[i], &w.hosts[j]
	return !l.on && !l.cut && l.down == [2]uint8{} && a.on && b.on && !a.frozen && !b.frozen
}

// moves are all that can happen next. The order is fixed: a path is named by indices.
func (w *world) moves(buf []move) []move {
	all := buf[:0]
	for i := range int8(3) {
		if i == 2 && w.rules.alone {
			break
		}
		h := &w.hosts[i]
		runs := h.on && !h.frozen
		if runs && h.due {
			all = append(all, move{tickOf, i, 0, -1})
		}
		if runs && h.op.kind != idle {
			all = append(all, move{completes, i, 0, -1})
		}
		if runs && h.ended {
			all = append(all, move{endedAt, i, 0, -1})
		}
		if !h.on {
			all = append(all, move{restarts, i, 0, -1})
		}
		if runs && i < 2 && h.s.D.Rec.Hold != 0 && h.s.Command.Verb == NoVerb && h.s.Role() == Principal {
			all = append(all, move{swaps, i, 0, -1})
		}
		if h.frozen {
			all = append(all, move{thaws, i, 0, -1})
		}
		if runs && h.open && w.writes > 0 && h.len < logMax {
			all = append(all, move{writes, i, 0, -1})
		}
		for j := range int8(3) {
			if i != j && (j < 2 || !w.rules.alone) {
				all = w.linkMoves(all, i, j)
			}
		}
		if w.faults > 0 {
			all = w.faultsAt(all, i)
		}
		if w.verbs > 0 && runs && i < 2 && h.s.D.Rec.Seq != 0 {
			for _, v := range w.rules.verbs {
				all = append(all, move{verb, i, 0, int8(v)})
			}
		}
	}
	if w.quiet() || w.lags > 0 && !w.anyDue() {
		all = append(all, move{passes, 0, 0, -1})
	}
	if w.rules.only != nil {
		all = slices.DeleteFunc(all, func(m move) bool {
			fault := m.kind >= crashes && m.kind != verb && !(m.kind == stalls && m.n == 0) || m.kind < crashes && m.n > 0
			return fault && !slices.Contains(w.rules.only, m.kind)
		})
	}
	return all
}

func (w *world) anyDue() bool {
	for i := range w.hosts {
		if w.hosts[i].due && !w.hosts[i].frozen {
			return true
		}
	}
	return false
}

func (w *world) linkMoves(all []move, i, j int8) []move {
	l := &w.links[pairOf(int(i), int(j))]
	if w.arrives(int(i), int(j)) {
		all = append(all, move{deliver, i, j, -1})
	}
	if w.learns(int(i), int(j)) {
		all = append(all, move{downAt, i, j, -1})
	}
	if i < j {
		if w.linkable(int(i), int(j)) {
			all = append(all, move{connects, i, j, -1})
		}
		if l.cut {
			all = append(all, move{heals, i, j, -1})
		} else if w.faults > 0 && l.on {
			all = append(all, move{cuts, i, j, -1})
		}
	}
	if s := l.stall[side(int(i), int(j))]; s {
		all = append(all, move{stalls, i, j, 0})
	} else if w.faults > 0 && l.on {
		all = append(all, move{stalls, i, j, 1})
	}
	return all
}

// faultsAt are the faults of one host, and its death between any two actions of a step.
func (w *world) faultsAt(all []move, i int8) []move {
	h := &w.hosts[i]
	if !h.on {
		// A disk that lied, while the other has all that was promised.
		if r := h.kept.Rec; i < 2 && h.len > 1 && r.Synced && r.Owner == node(int(i)) && w.hosts[1-i].len >= h.len && w.hosts[1-i].kept.Rec.Seq == r.Seq && h.len <= r.Floor && h.kept.TLI == r.TLI {
			all = append(all, move{loses, i, 0, -1})
		}
		return all
	}
	all = append(all, move{crashes, i, 0, -1})
	if h.up {
		all = append(all, move{dies, i, 0, -1}, move{dbDies, i, 0, -1})
	}
	if !h.frozen {
		all = append(all, move{freezes, i, 0, -1})
		if h.due {
			all = w.torn(all, move{tickOf, i, 0, 0}, Event{Kind: Tick})
		}
		for j := range int8(3) {
			if i != j && w.arrives(int(j), int(i)) {
				all = w.torn(all, move{deliver, j, i, 0}, Event{Kind: Receive, Msg: w.queues[queue(int(j), int(i))][0].m})
			}
		}
	}
	return all
}

func (w *world) torn(all []move, m move, e Event) []move {
	at := m.i
	if m.kind == deliver {
		at = m.j
	}
	e.Now = noon
	_, actions := w.rules.step(w.hosts[at].s, e)
	for k := 1; k < len(actions); k++ {
		m.n = int8(k)
		all = append(all, m)
	}
	return all
}

// do makes a move.
func (w *world) do(m move) {
	i, j := int(m.i), int(m.j)
	h := &w.hosts[i]
	if m.n > 0 && m.kind != stalls && m.kind != verb {
		w.faults--
	}
	switch m.kind {
	case deliver:
		it := w.pop(i, j)
		w.step(j, Event{Kind: Receive, Msg: it.m}, it.data, int(m.n))
	case tickOf:
		h.due = false
		w.step(i, Event{Kind: Tick}, journal{}, int(m.n))
	case completes:
		w.complete(i, -1)
	case endedAt:
		h.ended = false
		w.step(i, Event{Kind: Ended}, journal{}, -1)
	case passes:
		if !w.quiet() {
			w.lags--
		}
		w.pass()
		if w.rules.eager {
			w.ticks()
		}
	case downAt:
		w.learnDown(i, j)
	case connects:
		w.connect(i, j)
	case restarts:
		w.restart(i)
	case swaps:
		w.replaceAgent(i)
	case heals:
		w.links[pairOf(i, j)].cut = false
	case thaws:
		h.frozen = false
	case writes:
		w.writes--
		w.write(i)
	case verb:
		w.verbs--
		w.operate(i, Verb(m.n))
	default:
		w.fault(m)
	}
	if w.rules.eager {
		w.settle()
	}
	w.check()
}

// ticks lets everybody see the time that passed, in one order: what skew can do is seen where
// pings come in any order.
func (w *world) ticks() {
	for i := range 3 {
		if h := &w.hosts[i]; h.due && !h.frozen {
			h.due = false
			w.step(i, Event{Kind: Tick}, journal{}, -1)
		}
	}
}

func (w *world) learnDown(i, j int) {
	l := &w.links[pairOf(i, j)]
	how := l.down[side(i, j)]
	l.down[side(i, j)] = 0
	if how == 2 {
		r := w.hosts[j].kept.Rec
		w.step(i, Event{Kind: Receive, Msg: Message{Kind: Notice, From: node(j), To: node(i), Seq: r.Seq, Start: r.Start}}, journal{}, -1)
	}
	w.step(i, Event{Kind: LinkDown, Peer: node(j)}, journal{}, -1)
}

func (w *world) fault(m move) {
	i, j := int(m.i), int(m.j)
	h := &w.hosts[i]
	if m.kind == stalls {
		if m.n > 0 {
			w.faults--
		}
		w.links[pairOf(i, j)].stall[side(i, j)] = m.n > 0
		return
	}
	w.faults--
	switch m.kind {
	case crashes:
		w.crash(i, false)
	case loses:
		h.len--
		h.log[h.len] = 0
	case dies:
		w.crash(i, true)
	case dbDies:
		until := h.until
		w.fence(i)
		h.until, h.ended = until, true
	case cuts:
		w.cutOff(i, j)
		l := &w.links[pairOf(i, j)]
		l.cut = true
		if h.on {
			l.down[side(i, j)] = 1
		}
	case freezes:
		h.frozen = true
	}
}

func (w *world) write(i int) {
	h := &w.hosts[i]
	w.last++
	h.log[h.len] = w.last
	h.len++
	w.step(i, Event{Kind: Flushed, LSN: h.len}, journal{}, -1)
}

func (w *world) operate(i int, v Verb) {
	q := Command{Verb: v}
	if v == SetSafety && w.hosts[i].s.D.Rec.Safety == Full {
		q.Safety = Off
	}
	switch v {
	case SetWitness:
		q.On = w.hosts[i].s.D.Rec.Witness == 0
	case SetTimeout:
		q.Timeout = 5 - w.hosts[i].s.D.Rec.Timeout // two, three
	case Hold:
		q.Timeout = 3
	case Force:
		w.forced = true
	}
	w.step(i, Event{Kind: Operator, Command: q}, journal{}, -1)
}

// settle lets pings and echoes arrive where nothing is in their way.
func (w *world) settle() {
	for again := true; again; {
		again = false
		for i := range 3 {
			for j := range 3 {
				if i == j || !w.arrives(i, j) {
					continue
				}
				if k := w.queues[queue(i, j)][0].m.Kind; k == Ping || k == Echo {
					it := w.pop(i, j)
					w.step(j, Event{Kind: Receive, Msg: it.m}, it.data, -1)
					again = true
				}
			}
		}
	}
}
