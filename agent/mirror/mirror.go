package mirror

// driveMirror takes the steps that are due on a mirror.
func (c *core) driveMirror() {
	if c.Phase != Down {
		c.Phase = Down
		c.do(Action{Kind: Fence})
	}
	c.rejoin()
	switch {
	case c.D.Asked == 0 && c.mayAsk():
		c.ask(AskLost)
	case c.D.Asked != 0 && c.Peers[W].Up && c.Peers[W].Known && !c.Waiting:
		c.repeatAsk()
	}
}

// fits reports whether the log here is a beginning of the principal's: of its timeline, or of
// the one that this forked from and not past the fork.
func (c *core) fits() bool {
	r := c.rec()
	return !c.D.Undoing && c.D.Copy == r.Copy(c.Self) && (c.D.TLI == r.TLI || c.D.TLI == r.Parent && c.End <= r.Fork)
}

// rejoin brings back a copy that went another way: by undoing what the principal does not
// have, and if that failed twice by a new copy. Not before RESUME after a forced service:
// until then the operator may want to look at it (M-61). The promise that this log was a
// principal's ends here.
func (c *core) rejoin() {
	r, p := c.rec(), &c.Peers[c.partner()]
	if c.fits() || c.Rejoins || c.Backoff > 0 || c.Writing > c.End || r.Suspended || !p.Up || !p.Known || p.Sure.Seq != r.Seq {
		return
	}
	c.Rejoins = true
	c.D.Undoing, c.D.Owned = true, 0
	a := Action{Kind: Rejoin, Seq: r.Seq, TLI: r.TLI, LSN: r.Fork}
	if c.D.Tries >= 2 || c.D.Copy != r.Copy(c.Self) {
		a.Kind, a.Copy = CopyAll, r.Copy(c.Self)
	}
	c.do(a)
}

// rejoined takes that the copy is a beginning of the log of role sequence seq.
func (c *core) rejoined(seq uint32, at LSN) {
	c.Rejoins = false
	if !c.is(Mirror) || !c.current(seq) {
		return // the principal is another by now: undoing goes on with that one
	}
	c.D.Undoing, c.D.Tries = false, 0
	c.D.TLI, c.D.Copy = c.rec().TLI, c.rec().Copy(c.Self)
	c.End, c.Writing = at, at
	c.hello(c.partner())
}

// failed takes that the last thing begun did not work.
func (c *core) failed(seq uint32) {
	switch {
	case c.Rejoins:
		c.Rejoins, c.Backoff = false, c.rec().Timeout
		c.D.Tries = min(c.D.Tries+1, 2)
	case c.Probe == Probing:
		c.Probe = NoProbe // commits do not wait: it is tried again, and nothing was recorded
	case c.Phase == Starting || c.Phase == Promoting:
		c.fence()
		c.Sick = true // until it is healthy the role is not kept: no pings (ruling 3)
	}
}

// append takes log that continues what is here. Older log never replaces newer: what was
// acknowledged stays (A11, A12), and a gap is answered with where this copy ends.
func (c *core) append(m Message) {
	if !c.is(Mirror) || !c.current(m.Seq) || m.TLI != c.rec().TLI || !c.fits() || c.D.Asked != 0 || c.rec().Suspended {
		return
	}
	at := max(c.Writing, c.End)
	switch {
	case m.LSN <= at:
	case m.After > at:
		c.hello(c.partner())
	default:
		c.D.TLI = m.TLI
		c.D.Owned = 0
		c.Writing = m.LSN
		c.do(Action{Kind: Harden, LSN: m.LSN})
	}
}

// hardened takes that the log is on the disk here, and says so, unless the role was asked for
// meanwhile: a promise (A5).
func (c *core) hardened(to LSN) {
	if c.Role() != Mirror || to <= c.End {
		return
	}
	c.End = to
	if c.D.Asked == 0 && c.fits() {
		c.send(c.partner(), Message{Kind: Ack, Seq: c.rec().Seq, LSN: to})
	}
}

// echo answers a principal's ping. It is a promise not to take over until limit has passed,
// so there is none while the role is asked for (A5).
func (c *core) echo(m Message) {
	if c.is(Mirror) && c.D.Asked != 0 {
		return
	}
	p := &c.Peers[m.From]
	p.Echoed = 0
	c.Lost, c.Broken = false, false
	c.send(m.From, Message{Kind: Echo, Seq: m.Seq, Stamp: m.Stamp, Linked: c.Peers[W].Up && c.Peers[W].Known})
}

// losePrincipal notes that the principal is lost, and whether the witness is, too.
func (c *core) losePrincipal() {
	if !c.Lost {
		c.report(LostPrincipal)
		c.Lost = true
		c.Broken = !c.Peers[W].Up
	}
}

// mayAsk reports whether the principal's role is to be asked for: everything that this node
// can know of §2.2's conditions. The rest the witness knows.
func (c *core) mayAsk() bool {
	r, p, w := c.rec(), &c.Peers[c.partner()], &c.Peers[W]
	armed := r.Witness != 0 && r.Synced && r.Safety == Full && !r.Suspended && !c.D.Paused
	whole := c.fits() && c.Writing <= c.End && !c.Sick && !c.Rejoins
	lost := c.Lost && p.Echoed >= c.limit() || p.Dead
	return armed && whole && lost && !c.Broken && w.Up && w.Known && c.Backoff == 0
}

// ask begins the promise.
func (c *core) ask(why Asking) {
	c.D.Asked, c.D.Asking = c.rec().Seq+1, why
	if p := c.partner(); c.Peers[p].Up && why != AskGiven && !c.Peers[p].Dead {
		c.do(Action{Kind: Close, Peer: p})
		c.linkDown(p)
	}
	c.repeatAsk()
}

// repeatAsk puts the question to the witness, on each link once.
func (c *core) repeatAsk() {
	c.Waiting = true
	m := Message{Kind: Ask, Seq: c.D.Asked, Asking: c.D.Asking, Rec: c.D.Rec, LSN: c.End, Copy: c.D.Copy, TLI: c.D.TLI}
	if c.Peers[c.partner()].Dead {
		m.Start = c.rec().Start // the notice may come this way sooner
	}
	c.send(W, m)
}

// refused ends the promise: the witness's answer did not name this node.
func (c *core) refused() {
	given := c.D.Asking == AskGiven
	if c.D.Asking == AskForced {
		c.answer(LeaseRuns)
	}
	c.D.Asked, c.D.Asking = 0, NotAsking
	c.Waiting = false
	c.Backoff = 1 // the witness's count may be behind by a tick
	if given {
		c.send(c.partner(), Message{Kind: Refuse, Seq: c.rec().Seq})
	}
	c.hello(c.partner()) // log that came meanwhile was not taken
}

// health takes whether a principal's database answers, or a mirror's redo works. An error of
// redo suspends the session (M-77): the copy stands still, so it is no longer in step.
func (c *core) health(ok bool) {
	c.Sick = !ok
	if c.Sick && c.is(Mirror) && !c.rec().Suspended {
		c.D.Paused = true
		c.send(c.partner(), Message{Kind: Want, Seq: c.rec().Seq})
	}
}

// tickMirror counts the principal's silence.
func (c *core) tickMirror() {
	c.hang(W)
	p := &c.Peers[c.partner()]
	if p.Up && p.Echoed > c.rec().Timeout {
		if p.Heard > c.rec().Timeout {
			c.hang(c.partner())
		} else {
			c.losePrincipal() // it talks, but its database does not live
		}
	}
	if c.rec().Witness != 0 {
		c.send(W, Message{Kind: Ping, Seq: c.rec().Seq, Stamp: c.Now})
	}
	if c.D.Paused {
		c.send(c.partner(), Message{Kind: Want, Seq: c.rec().Seq})
	}
}
