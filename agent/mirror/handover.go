package mirror

// A manual failover, on the principal: Stopping until the log has ended, Stopped until the
// mirror has all of it, then Handed, which is durable before it is said. From then on the role
// comes back only by the word of who decides (B5).

// handOver gives the role away once the mirror has everything.
func (c *core) handOver() {
	short := c.Phase == Down && c.Ready && c.behind() && c.rec().Synced && c.Backoff == 0
	if c.D.Handed != NotHanded || !short && (c.Phase != Stopped || c.Hard < c.End) {
		return
	}
	if short {
		c.report(BehindMirror) // log is gone here that was acknowledged: the mirror has it (A12)
	}
	c.D.Handed = ViaMirror
	if w := c.Peers[W]; c.D.Arbiter != 0 && w.Up && w.Known && w.Sure == c.rec().Version() && c.mirrorPeer().Linked {
		c.D.Handed = ViaWitness
	}
	c.offer()
}

// offer tells the mirror, once on each link: so a refusal is of the newest offer, and no older
// one is still under way when the principal acts on it.
func (c *core) offer() {
	r := c.rec()
	c.send(c.partner(), Message{Kind: Handover, Seq: r.Seq, Via: c.D.Handed, Rec: r.next(r.Mirror, r.TLI, max(c.End, c.Hard))})
}

// abortFailover resumes service, unless the role was given away: that is not this node's to
// take back.
func (c *core) abortFailover(why Reason) {
	if c.D.Handed != NotHanded {
		return
	}
	if c.Command.Verb == Failover {
		c.Command = Command{}
		c.answer(why)
	}
	if c.Phase != Down {
		c.fence()
	}
}

// handedOver is the mirror's side. Where the witness decides it is asked, and if it cannot be
// asked the answer is no: the principal then leaves the decision to this node.
func (c *core) handedOver(m Message) {
	r, n := c.rec(), m.Rec
	if !c.is(Mirror) || !c.current(m.Seq) || c.D.Asked != 0 {
		return
	}
	whole := c.fits() && c.Writing <= c.End && c.End == n.Fork && !c.Sick
	w := &c.Peers[W]
	switch {
	case !whole || m.Via == ViaWitness && (r.Witness == 0 || !w.Up || !w.Known):
		c.send(m.From, Message{Kind: Refuse, Seq: m.Seq})
	case m.Via == ViaWitness:
		c.ask(AskGiven)
	default:
		c.D.Asked = n.Seq
		c.report(ManualFailover)
		c.adopt(n)
		c.tell(c.partner())
		c.tell(W)
	}
}

// refusedHandover is the principal's: both go on two role sequences later, so that nothing
// said about the next one counts any more.
func (c *core) refusedHandover() {
	if c.D.Handed != NotHanded {
		c.send(c.partner(), Message{Kind: Abandon, Seq: c.rec().Seq, Rec: c.rec().again(c.rec().Seq + 2)})
	}
}

// takeBack asks the witness to make the handover void, when the mirror cannot be reached. What
// the witness then records is what the mirror would by abandon.
func (c *core) takeBack() {
	c.send(W, Message{Kind: Ask, Seq: c.rec().Seq + 2, Rec: c.D.Rec, LSN: c.End, Copy: c.D.Copy, TLI: c.D.TLI})
}

// abandon is the mirror's side of giving a promotion up together with the principal: both go
// on two role sequences later, so that a late yes of the witness is about the past (A5).
func (c *core) abandon(m Message) {
	if c.is(Mirror) && c.current(m.Seq) && m.Rec.Seq == m.Seq+2 {
		c.adopt(m.Rec)
		c.hello(m.From) // log that came meanwhile was not taken
	}
}
