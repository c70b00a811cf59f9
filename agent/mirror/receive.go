package mirror

// hello says who this node is, first on every link. Both sides say it.
func (c *core) hello(n Node) {
	c.send(n, Message{
		Kind: Hello, Seq: c.rec().Seq, Rec: c.D.Rec, Asked: c.D.Asked, Asking: c.D.Asking,
		LSN: c.End, TLI: c.D.TLI, Copy: c.D.Copy, Undoing: c.D.Undoing || !c.fits(), Paused: c.D.Paused,
		Linked: c.Peers[W].Up && c.Peers[W].Known,
	})
}

// receive takes a message. Each says in which role sequence it was meant; in another it is
// answered with the record and else ignored.
func (c *core) receive(m Message) {
	p := &c.Peers[m.From]
	if !p.Up {
		return
	}
	p.Heard = 0
	if c.Self == W {
		c.witness(m)
		return
	}
	switch m.Kind {
	case Hello:
		p.Known = true
		p.Sure = m.Rec.Version()
		c.meet(m)
	case Tell:
		c.told(m)
	case Ping:
		c.pinged(m)
	case Echo:
		if c.current(m.Seq) {
			c.echoed(m)
		}
	case Append:
		c.append(m)
	case Ack:
		c.acked(m)
	case Handover:
		c.handedOver(m)
	case Refuse:
		if c.is(Principal) && c.current(m.Seq) {
			c.refusedHandover()
		}
	case Abandon:
		c.abandon(m)
	case Invite:
		c.invited(m)
	case Want:
		if r := c.rec(); c.is(Principal) && c.current(m.Seq) && !r.Suspended && c.D.Handed == NotHanded && !c.behind() {
			c.suspend()
		}
	case Forget:
		c.forgotten(m)
	case Notice:
		if r := c.rec(); c.is(Mirror) && c.current(m.Seq) && m.Start == r.Start {
			p.Dead = true
			c.losePrincipal()
		}
	}
}

// meet takes the other's first words on a link. The younger record wins; after that a
// principal knows from where to send.
func (c *core) meet(m Message) {
	if m.From == W {
		c.told(m)
		if c.is(Principal) && m.Rec.Version().Less(c.rec().Version()) {
			c.tell(W)
		}
		return
	}
	asked := m.Asked
	if m.Rec.Seq == 0 && c.is(Principal) && !c.rec().Synced && c.D.Handed == NotHanded {
		c.send(m.From, Message{Kind: Invite, Seq: c.rec().Seq, Rec: c.D.Rec}) // a new host in the mirror's place
		return
	}
	c.told(m)
	if !c.is(Principal) {
		return
	}
	r, was := c.rec(), c.Ready
	c.Ready = m.Rec.Seq == r.Seq && !m.Undoing && m.Copy == r.Copy(m.From)
	if c.Ready {
		c.Hard, c.Sent = m.LSN, m.LSN
		if !was && !r.Synced {
			c.report(SynchronizingMirror)
		}
	}
	c.ping()
	switch {
	case m.Rec.Seq != r.Seq:
	case asked == r.Seq+1 && (!m.Linked || !c.Peers[W].Up): // else the witness decides
		c.send(m.From, Message{Kind: Abandon, Seq: r.Seq, Rec: r.again(r.Seq + 2)})
	case c.D.Handed != NotHanded:
		c.offer()
	case m.Paused && !r.Suspended && !c.behind():
		c.suspend()
	}
}

// told takes another's durable record: it is confirmation, news, or out of date. The
// witness's answer to an ask is its record, too: if it does not name this node, that is a no.
func (c *core) told(m Message) {
	from, r, mine := m.From, m.Rec, c.rec().Version()
	c.Peers[from].Sure = r.Version()
	switch v := r.Version(); {
	case r.Seq == 0:
		if m.Kind == Tell {
			c.untold(from)
		}
	case c.D.Left && !r.Removed:
		c.send(from, Message{Kind: Forget, Seq: c.rec().Seq})
	case mine.Less(v):
		c.news(from, r)
	case v.Less(mine) && from != W:
		c.tell(from)
	}
	if from == W && m.Kind == Tell && m.Asked != 0 && m.Asked == c.D.Asked {
		c.refused()
	}
}

// untold takes that the other has no session.
func (c *core) untold(from Node) {
	if from == c.partner() && c.Inviting.Seq != 0 {
		c.Inviting, c.Command = Record{}, Command{}
		c.answer(NotWaiting)
	}
}

// news takes a younger record. While the role is asked for, nothing of the principal's in the
// old role sequence is: what was confirmed to it could no longer be kept (A5).
func (c *core) news(from Node, r Record) {
	if c.Inviting.Seq != 0 && r == c.Inviting {
		c.begun()
		return
	}
	if c.rec().Seq == 0 {
		if r.Owner == c.Self && from == r.Mirror && r.Conf == 1 {
			c.send(from, Message{Kind: Forget, Seq: r.Seq}) // its yes to an invitation came too late
		}
		return
	}
	if c.is(Mirror) && c.D.Asked != 0 && r.Seq < c.D.Asked && from != W {
		return
	}
	won := r.Owner == c.Self && r.Seq == c.D.Asked
	why := c.D.Asking
	c.adopt(r)
	switch {
	case won && why == AskLost:
		c.report(AutomaticFailover)
	case won && why == AskGiven:
		c.report(ManualFailover)
	case won && why == AskForced:
		c.answer(OK)
	}
	if !c.is(Principal) {
		c.hello(c.partner()) // confirmation, and where a new principal has to send from
		return
	}
	c.tell(c.partner())
	c.tell(W)
	c.ping()
}

// adopt makes a younger record this node's, and its role what the record says.
func (c *core) adopt(r Record) {
	was, asked := c.Role(), c.D.Asked
	before := c.D.Rec
	c.D.Rec = r
	if r.Suspended || r.Removed {
		c.D.Paused = false
	}
	if asked != 0 && r.Seq >= asked {
		c.D.Asked, c.D.Asking, c.Waiting = 0, NotAsking, false
	}
	if r.Start != before.Start || r.Seq != before.Seq {
		for n := range c.Peers {
			c.Peers[n].Dead = false
		}
	}
	if r.Seq != before.Seq {
		for n := range c.Peers {
			c.Peers[n].Echoed = 0 // another principal, or the same one anew: a whole wait
		}
	}
	if r.Removed {
		c.leave(was)
		return
	}
	switch {
	case r.Owner != c.Self:
		if r.Synced && c.fits() {
			c.D.TLI = r.TLI // all of the principal's log is here, so its timeline is, too
		}
		c.D.Handed, c.D.Granted, c.D.Burnt = NotHanded, false, 0
		c.yield(was)
	case r.Seq == asked:
		c.own(r)
		c.D.Granted = true
	case c.D.Owned == r.Base && c.D.Owned != 0:
		if c.Command.Verb == Failover {
			c.Command = Command{}
			c.answer(NotConnected)
		}
		c.D.Handed = NotHanded
		c.Backoff = r.Timeout // before it is tried again
		c.D.Granted = !r.Synced
		c.D.Arbiter = r.Witness
		if c.Phase == Stopped || c.Phase == Stopping {
			c.fence()
		}
		if was == Mirror {
			c.Ready, c.Sent, c.Hard = false, 0, 0
		}
		c.keepPause()
	default:
		c.D.Undoing = true // the role is here, its log is not: an operator has to look (M-66)
	}
}

// own makes this node principal by a record that names it.
func (c *core) own(r Record) {
	c.D.Owned, c.D.Arbiter, c.D.Burnt, c.D.Lease = r.Base, r.Witness, 0, r.Timeout
	c.Phase, c.Probe = Down, NoProbe
	c.Ready, c.Sent, c.Hard, c.Acked = false, 0, 0, 0
	c.Lost, c.Broken = false, false
	c.Until = 0 // leases of an older role sequence were about another promise
	for n := range c.Peers {
		c.Peers[n].Until = 0
	}
	c.Command = Command{}
	c.keepPause()
}

// keepPause suspends what a mirror was told to suspend before it became principal.
func (c *core) keepPause() {
	if c.D.Paused {
		c.D.Paused = false
		c.suspend()
	}
}

// yield ends the principal's role here.
func (c *core) yield(was Role) {
	if was != Principal && c.Phase == Down {
		return
	}
	if c.Command.Verb == Failover {
		c.answer(OK)
	}
	c.Command = Command{}
	c.Ready, c.Writing = false, c.End
	if c.Phase != Down {
		c.fence()
	}
	c.Lost, c.Broken = true, true // until the new principal is heard
}

// pinged takes a ping. Only the owner of the current role sequence gets an echo.
func (c *core) pinged(m Message) {
	r := c.rec()
	switch {
	case c.is(Mirror) && m.From == r.Owner && c.current(m.Seq):
		c.echo(m)
	case r.Seq != 0 && m.Seq < r.Seq:
		c.tell(m.From)
	}
}

// echoed takes an echo: a lease for a principal; for a mirror the witness is there.
func (c *core) echoed(m Message) {
	if c.is(Mirror) {
		c.Peers[m.From].Linked = true
	}
	if c.is(Principal) {
		c.Peers[m.From].Linked = m.Linked
		c.renew(m.From, m.Stamp)
	}
}

// acked takes what the mirror hardened. Its answers come in order, yet a lower one proves
// nothing and changes nothing.
func (c *core) acked(m Message) {
	if c.is(Principal) && c.current(m.Seq) && c.Ready && m.LSN > c.Hard {
		c.Hard = m.LSN
	}
}
