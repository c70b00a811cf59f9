package mirror

// The checkers know nothing of how the core decides. Numbers are those of the package comment.

// checkStep looks at one step of one node.
func (w *world) checkStep(i int, before, next State, actions []Action) {
	for k, a := range actions {
		if a.Kind == Persist && k != 0 {
			broken(7, "%v keeps after it acts", node(i))
		}
		if a.Kind == Open && next.D.Undoing {
			broken(8, "%v opens a copy that is not whole", node(i))
		}
		promised := before.D.Asked != 0 && next.D.Asked != 0 && next.Role() == Mirror
		if a.Kind == Send && promised && (a.Msg.Kind == Echo && i < 2 || a.Msg.Kind == Ack) {
			broken(6, "%v has asked for %d and still supports %d", node(i), next.D.Asked, next.D.Rec.Seq)
		}
	}
	b, n := before.D.Rec, next.D.Rec
	if b.Seq != n.Seq && n.Owner == node(i) && n.Base == n.Seq && n.Suspended {
		w.newest = max(w.newest, n.Seq) // what the other promises from here on is lost
		if p := w.hosts[1-i].kept.Rec; !p.Synced || p.Seq != b.Seq {
			w.lossy = n.Seq // else the mirror has all that was promised, and force loses nothing
		}
	}
	if n.Version().Less(b.Version()) {
		broken(4, "%v: record goes back from %v to %v", node(i), b.Version(), n.Version())
	}
	if before.Role() == Mirror && next.Role() == Mirror && before.D.Copy == next.D.Copy && next.End < before.End && !before.D.Undoing {
		broken(5, "%v rolls back from %d to %d", node(i), before.End, next.End)
	}
}

// check looks at the whole.
func (w *world) check() {
	open := 0
	for i := range 2 {
		h := &w.hosts[i]
		if !h.open {
			continue
		}
		open++
		if missing := w.acked &^ h.entries(); missing != 0 && (h.kept.Rec.Seq >= w.newest || !w.forced) {
			broken(1, "%v serves without entries %b that clients know", node(i), missing)
		}
		r := h.kept.Rec
		if r.Seq >= uint32(len(w.owners)) {
			continue
		}
		if o := &w.owners[r.Seq]; *o == Nobody {
			*o = node(i)
		} else if *o != node(i) {
			broken(3, "%v and %v served in role sequence %d", *o, node(i), r.Seq)
		}
	}
	if open > 1 && (!w.forced || w.hosts[0].kept.Rec.Witness != 0 && w.hosts[1].kept.Rec.Witness != 0) {
		broken(2, "both partners serve")
	}
	for i := range 2 {
		w.checkCopy(i)
	}
	for i := range 3 {
		for j := range i {
			a, b := w.hosts[i].kept.Rec, w.hosts[j].kept.Rec
			a.Floor, b.Floor = 0, 0
			if a.Seq != 0 && a.Version() == b.Version() && a != b {
				broken(4, "%v and %v have two records %v", node(i), node(j), a.Version())
			}
		}
	}
}

// checkCopy compares what a principal believes of its mirror with what is there.
func (w *world) checkCopy(i int) {
	p, m := &w.hosts[i], &w.hosts[1-i]
	if !p.on || p.s.Role() != Principal || !p.s.Ready || m.kept.Rec.Seq != p.s.D.Rec.Seq {
		return
	}
	if p.s.Hard > m.len {
		broken(5, "%v believes that %v has %d, it has %d", node(i), node(1-i), p.s.Hard, m.len)
	}
	for k := range min(p.s.Hard, p.len) {
		if p.log[k] != m.log[k] {
			broken(5, "%v and its mirror differ at %d", node(i), k)
		}
	}
}

// rests makes everything whole again, lets it run in one order, and reports whether the
// session comes to rest with one principal and its mirror in step (invariant 9).
func (w *world) rests() bool {
	w.repair()
	return w.goes(w.atRest, Nobody)
}

// survives kills the mirror for good, makes all else whole, and reports whether the principal
// serves on and acknowledges (invariant 10). It is not asked of one that gave its role away,
// or that witness and mirror know better than.
func (w *world) survives() bool {
	for i := range 2 {
		h := &w.hosts[i]
		r := h.kept.Rec
		knows := r.Witness == 0 && h.kept.Arbiter == 0 || w.hosts[2].kept.Rec.Version() == r.Version() && w.hosts[2].kept.Seen <= r.Seq && h.kept.Arbiter == r.Witness
		if r.Owner != node(i) || r.Removed || h.kept.Handed != NotHanded || h.kept.Undoing || h.kept.Owned != r.Base || h.len < r.Floor || !knows {
			continue
		}
		c := w.clone()
		c.cells = nil
		c.repair()
		if c.hosts[1-i].on {
			c.crash(1-i, false)
		}
		h = &c.hosts[i]
		if !c.goes(func() bool {
			return h.open && h.s.Acked == h.len || h.kept.Handed != NotHanded || h.kept.Rec.Seq > r.Seq
		}, node(1-i)) {
			return false
		}
	}
	return true
}

func (w *world) repair() {
	for q := range w.links {
		w.links[q].cut, w.links[q].stall = false, [2]bool{}
	}
	w.faults, w.verbs, w.writes = 0, 0, 0
}

// goes runs a world without faults until it is as wanted. Who is dead stays so.
func (w *world) goes(there func() bool, dead Node) bool {
	var buf []move
	for range 4000 {
		if there() {
			return true
		}
		buf = w.moves(buf)
		best := -1
		for k, m := range buf {
			switch m.kind {
			case stalls, writes, verb:
				continue
			case restarts:
				if node(int(m.i)) == dead {
					continue
				}
			case passes:
				if w.quiet() && best < 0 {
					best = k
				}
				continue
			}
			if best < 0 || buf[best].kind == passes {
				best = k
			}
		}
		if best < 0 {
			return false
		}
		if buf[best].kind == passes {
			w.resume()
		}
		w.do(buf[best])
	}
	return false
}

// resume is the operator, who resumes what is suspended.
func (w *world) resume() {
	for i := range 2 {
		h := &w.hosts[i]
		if h.s.Role() == Principal && h.s.D.Rec.Suspended && h.s.Command.Verb == NoVerb && h.s.Peers[h.s.Self.other()].Up {
			w.step(i, Event{Kind: Operator, Command: Command{Verb: Resume}}, journal{}, -1)
		}
	}
}

func (w *world) atRest() bool {
	for i := range 2 {
		p, m := &w.hosts[i], &w.hosts[1-i]
		r := p.s.D.Rec
		if p.open && p.s.Role() == Principal && m.s.Role() == Mirror && p.s.Shown() == Synchronized && m.s.D.Rec.Version() == r.Version() && m.len == p.len && m.log == p.log &&
			(r.Witness == 0 || w.hosts[2].s.D.Rec.Version() == r.Version()) {
			return true
		}
	}
	return false
}
