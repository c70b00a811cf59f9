package mirror

// drivePrincipal takes the steps that are due, in an order in which each makes room for the
// next: first what ends service, last what begins it.
func (c *core) drivePrincipal() {
	c.settleWitness()
	if c.Phase != Down && (!c.leased() || c.D.Undoing) {
		c.fence()
		if !c.leased() {
			c.report(QuorumLost)
			c.abortFailover(NoQuorum)
		}
	}
	if c.behind() && c.Phase != Down && c.D.Handed == NotHanded {
		c.fence()
	}
	c.expose()
	c.prove()
	c.grant()
	c.unburn()
	c.start()
	c.stream()
	c.handOver()
	c.acknowledge()
	if c.Phase == Closed && (c.alone() || c.Hard >= c.Gate && c.Ready) {
		c.Phase = Serving
		c.do(Action{Kind: Open})
	}
	c.confirm()
}

// behind reports whether the mirror has log of this timeline that is gone here: a disk lied, or
// somebody put an older file back. Whatever was acknowledged, the mirror may have it (A12).
func (c *core) behind() bool {
	return c.D.TLI == c.rec().TLI && (c.Ready && c.Hard > c.End || c.End < c.rec().Floor)
}

// fence ends all of the database, now. Whoever waits for a commit is cut off (M-118).
func (c *core) fence() {
	c.do(Action{Kind: Fence})
	c.Phase = Down
	c.Probe = NoProbe
}

// start brings the database up, if the role is this node's beyond doubt: not given away, its
// own log under it, a lease where one is needed, no death notice that could still be acted on.
func (c *core) start() {
	r := c.rec()
	if c.Phase != Down || c.D.Handed != NotHanded || c.D.Undoing || c.D.Owned != r.Base || !c.leased() || c.Sick {
		return
	}
	if c.burnt() || c.behind() {
		return
	}
	c.D.Burnt = 0
	if c.D.TLI != r.TLI {
		c.Phase = Promoting
		c.do(Action{Kind: Promote, TLI: r.TLI, LSN: r.Fork})
		return
	}
	c.Phase = Starting
	c.do(Action{Kind: Start})
}

// stream sends what the mirror lacks. Its Hello said where to begin.
func (c *core) stream() {
	m := c.mirrorPeer()
	if c.Phase < Closed || !m.Up || !m.Known || !c.Ready || c.rec().Suspended || c.Sent >= c.End {
		return
	}
	c.send(c.partner(), Message{Kind: Append, Seq: c.rec().Seq, TLI: c.rec().TLI, After: c.Sent, LSN: c.End})
	c.Sent = c.End
}

// acknowledge is the switch (ruling 1): walsender learns what was flushed here when the
// principal may be alone, and else what the mirror hardened. An acknowledgement cannot be
// taken back, so it never passes what was flushed here.
func (c *core) acknowledge() {
	if c.Phase < Closed { // while it stops, too: walsender waits for its last record
		return
	}
	to := min(c.Hard, c.End)
	if c.alone() {
		to = c.End
	} else if !c.Ready {
		return
	}
	if to > c.Acked {
		c.Acked = to
		c.do(Action{Kind: Acknowledge, LSN: to})
	}
}

// prove leads from catching up to SYNCHRONIZED: acknowledgements follow the mirror from the
// moment that a probe commit is sent; it must be seen to wait, and be hardened there; only
// then does the record say that the mirror has everything (A1).
func (c *core) prove() {
	r, m := c.rec(), c.mirrorPeer()
	wanted := r.Safety == Full && !r.Suspended && !r.Synced && m.Up && m.Known && c.Ready && c.Phase == Serving && m.Sure == r.Version()
	if !wanted {
		c.Probe = NoProbe
		return
	}
	switch {
	case c.Probe == NoProbe && c.Hard == c.End && c.Sent == c.End && c.D.Granted:
		c.Probe = Probing
		c.do(Action{Kind: ProbeCommit})
	case c.Probe == ProbeSeen && c.Hard >= c.ProbeAt:
		c.Probe = NoProbe
		c.D.Granted = false
		c.propose(func(r *Record) { r.Synced, r.Floor = true, c.Hard })
		if c.D.Arbiter != 0 {
			c.report(SyncedWithWitness)
		} else {
			c.report(SyncedWithoutWitness)
		}
	}
}

// propose writes the next record of this role sequence, and tells it to whom it concerns. It
// is never taken back: what was sent may have arrived.
func (c *core) propose(change func(*Record)) {
	change(c.rec())
	c.rec().Conf++
	c.tell(c.partner())
	c.tell(W)
}

// tell sends the own record.
func (c *core) tell(n Node) {
	if n == W && c.is(Principal) && c.D.Arbiter != c.rec().Witness {
		return // it learns of a change of the witness after the mirror
	}
	c.send(n, Message{Kind: Tell, Rec: c.D.Rec, Vouched: n == W && c.is(Principal) && c.vouched()})
}

// confirm answers a command once mirror or witness has what it changed.
func (c *core) confirm() {
	if c.Command.Verb == NoVerb || c.Command.Verb == Failover || c.Command.Verb == Begin {
		return
	}
	r, m, w := c.rec(), c.mirrorPeer().Sure, c.Peers[W].Sure
	v := r.Version()
	done := m == v || c.D.Arbiter != 0 && w == v || c.D.Arbiter == 0 && c.D.Granted
	switch c.Command.Verb {
	case SetWitness:
		done = m == v // the mirror alone asks, so the mirror has to know whom (A4 a)
	case Hold:
		done = m == v && (c.D.Arbiter == 0 || w == v) // either could count the lease as over
	}
	if !done {
		return
	}
	if c.Command.Verb == Remove {
		c.propose(func(r *Record) { r.Removed = true })
		c.leave(Principal)
	}
	if c.Command.Verb == Hold && c.D.Arbiter != 0 {
		c.Until = max(c.Until, c.Now+uint32(r.Hold))
		c.do(Action{Kind: Lease, Until: c.Until})
	}
	c.Command = Command{}
	c.answer(OK)
}

// tickPrincipal renews leases, repeats what was not confirmed, and gives up on who is silent.
func (c *core) tickPrincipal() {
	c.hang(c.partner())
	c.hang(W)
	r := c.rec()
	if v := r.Version(); c.mirrorPeer().Sure == v && (c.D.Arbiter == 0 || c.Peers[W].Sure == v) {
		c.D.Lease = r.Timeout
	}
	c.ping()
	for _, n := range []Node{c.partner(), W} {
		p := &c.Peers[n]
		if p.Known && p.Sure.Less(r.Version()) {
			c.tell(n)
		}
	}
	if r.Synced && c.D.Arbiter != 0 && c.Hard > r.Floor && c.Now%4 == 0 {
		c.send(W, Message{Kind: Raise, Seq: r.Seq, LSN: c.Hard})
	}
	if c.D.Handed == ViaWitness && !c.mirrorPeer().Up {
		c.takeBack()
	}
}

// ping asks for leases, unless the database is not fit to be kept up: a hung one is a lost
// principal (ruling 3), and after a death notice the mirror goes first.
func (c *core) ping() {
	if c.Sick || c.D.Burnt != 0 && c.D.Burnt >= c.rec().Start && c.Backoff > 0 {
		return
	}
	c.send(c.partner(), Message{Kind: Ping, Seq: c.rec().Seq, Stamp: c.Now})
	if c.D.Arbiter != 0 {
		c.send(W, Message{Kind: Ping, Seq: c.rec().Seq, Stamp: c.Now})
	}
}

// loseMirror notes that the link to the mirror is gone.
func (c *core) loseMirror() {
	c.Ready, c.Probe = false, NoProbe
	c.report(LostMirror)
	if c.Phase == Stopping || c.Phase == Stopped && c.D.Handed == NotHanded {
		c.abortFailover(NotConnected) // nothing was given away yet
	}
	if c.D.Handed == ViaWitness {
		c.takeBack()
	}
}

// database takes what the principal's database did.
func (c *core) database(e Event) {
	switch e.Kind {
	case Flushed:
		if c.Phase != Down && e.LSN > c.End {
			c.End = e.LSN
		}
	case Started:
		if c.Phase == Starting {
			c.Phase, c.End, c.Gate, c.Acked = Closed, e.LSN, e.LSN, 0
			c.Sent = min(c.Sent, c.End)
		}
	case Promoted:
		c.promoted(e.LSN)
	case Ended:
		c.ended()
	case Probed:
		if c.Probe == Probing {
			c.Probe, c.ProbeAt = ProbeSeen, e.LSN
		}
	case LogEnded:
		if c.Phase == Stopping {
			c.Phase, c.End = Stopped, max(c.End, e.LSN)
		}
	}
}

// promoted checks that the new timeline begins where the journal ended, before anybody may
// see it (A2, ruling 10).
func (c *core) promoted(fork LSN) {
	if c.Phase != Promoting {
		return
	}
	if fork != c.rec().Fork {
		c.D.Undoing = true
		c.report(ForkMismatch)
		return
	}
	c.D.TLI = c.rec().TLI
	c.Phase, c.End, c.Gate, c.Acked, c.Sent = Closed, fork, fork, 0, 0
}

// ended takes that the database ended by itself. With a witness, and the mirror in step, the
// guard's notice lets the mirror take over, and this start is burnt; else it starts again
// behind a closed port (ruling 4).
func (c *core) ended() {
	if c.Phase == Down {
		return
	}
	if c.Phase == Stopping || c.Phase == Stopped {
		c.abortFailover(Busy)
	}
	c.Phase, c.Probe = Down, NoProbe
	r := c.rec()
	if !c.is(Principal) || c.D.Arbiter == 0 || !r.Synced {
		return
	}
	c.D.Burnt = r.Start
	c.Backoff = r.Timeout // the mirror goes first
	for _, n := range []Node{c.partner(), W} {
		c.send(n, Message{Kind: Notice, Seq: r.Seq, Start: r.Start})
	}
}

// unburn makes a death notice void by a record with a later start, when nobody has taken the
// role over: only once mirror or witness has that record may the database start again in this
// role sequence (A8).
func (c *core) unburn() {
	if c.D.Burnt != 0 && c.D.Burnt >= c.rec().Start && c.Phase == Down && c.Backoff == 0 && c.leased() {
		c.propose(func(r *Record) { r.Start = c.D.Burnt + 1 })
	}
}

// burnt reports whether a death notice could still be acted on.
func (c *core) burnt() bool {
	r := c.rec()
	if c.D.Arbiter == 0 || c.D.Burnt == 0 {
		return false
	}
	v := r.Version()
	return r.Start <= c.D.Burnt || c.mirrorPeer().Sure != v && c.Peers[W].Sure != v
}
