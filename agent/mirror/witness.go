package mirror

// The witness is one durable record that answers only compare-and-set, always with the whole
// record (ruling 5), and a promise: it grants nothing while a lease that it gave may run.

// witness takes a message at the witness.
func (c *core) witness(m Message) {
	p := &c.Peers[m.From]
	c.D.Seen = max(c.D.Seen, m.Rec.Seq)
	if m.Kind == Ping {
		c.D.Seen = max(c.D.Seen, m.Seq)
	}
	switch m.Kind {
	case Hello:
		p.Known, p.Sure = true, m.Rec.Version()
	case Tell:
		c.learn(m)
		c.tell(m.From)
	case Ping:
		c.witnessPinged(m)
	case Raise:
		if r := c.rec(); m.From == r.Owner && c.current(m.Seq) && r.Synced && m.LSN > r.Floor {
			r.Floor = m.LSN
		}
	case Ask:
		c.asked(m)
		c.send(m.From, Message{Kind: Tell, Rec: c.D.Rec, Asked: m.Seq})
	case Notice:
		if r := c.rec(); m.From == r.Owner && c.current(m.Seq) && m.Start == r.Start {
			p.Dead = true
		}
	case Forget:
		if r := c.rec(); m.From == r.Owner && m.Seq >= r.Seq {
			r.Removed = true
		}
	}
}

// witnessPinged echoes the owner, in the role sequence of the record alone. Anybody else gets
// the record, except a mirror, who asks only whether somebody is there.
func (c *core) witnessPinged(m Message) {
	r, p := c.rec(), &c.Peers[m.From]
	switch {
	case !c.knows() || !c.current(m.Seq):
		c.tell(m.From)
	case m.From == r.Owner:
		p.Echoed = 0
		fallthrough
	default:
		c.send(m.From, Message{Kind: Echo, Seq: m.Seq, Stamp: m.Stamp})
	}
}

// learn takes a record from the principal: the next of this role sequence from its owner, or
// one of a later role sequence that the mirror stands by now: a principal that returns after
// it missed a switch teaches nothing (A13).
func (c *core) learn(m Message) {
	r, n := c.rec(), m.Rec
	switch {
	case n.Owner != m.From || !r.Version().Less(n.Version()):
	case r.Seq == n.Seq && r.Owner == n.Owner:
		floor := r.Floor
		if r.Start != n.Start {
			c.Peers[n.Owner].Dead = false
		}
		same := r.Copies == n.Copies
		*r = n
		if same {
			r.Floor = max(floor, n.Floor)
		}
	case m.Vouched:
		*r = n
		c.promiseAll()
	}
}

// knows reports whether the record here counts: not one of which a later role sequence has
// been heard, which was restored from an old copy, or missed what the partners did together.
func (c *core) knows() bool {
	r := c.rec()
	return r.Seq != 0 && r.Seq >= c.D.Seen && !r.Removed && r.Witness != 0
}

// promiseAll begins the wait anew towards both partners.
func (c *core) promiseAll() {
	for n := range c.Peers {
		c.Peers[n].Echoed, c.Peers[n].Dead = 0, false
	}
}

// asked decides who is principal. Asking again gets the same answer.
func (c *core) asked(m Message) {
	r := c.rec()
	if !c.knows() {
		return
	}
	back := m.From == r.Owner && m.Seq == r.Seq+2 && m.Rec.Seq == r.Seq
	if back {
		*r = r.again(m.Seq)
		c.promiseAll()
		return
	}
	if m.From != r.Mirror || m.Seq != r.Seq+1 || m.Rec.Seq != r.Seq || m.Copy != r.Copy(m.From) {
		return
	}
	if !c.grants(m) {
		return
	}
	latest := *r
	if r.Version().Less(m.Rec.Version()) {
		latest = m.Rec // of the same owner, and told to the mirror alone
	}
	next := latest.next(m.From, m.TLI, m.LSN)
	next.Suspended = m.Asking == AskForced
	*r = next
	c.promiseAll()
}

// grants checks what only the witness knows: whether its own promise to the principal is over,
// and what the record says (ruling 7, A11 c).
func (c *core) grants(m Message) bool {
	r, p := c.rec(), &c.Peers[c.rec().Owner]
	over := p.Echoed >= c.limit()
	switch m.Asking {
	case AskGiven:
		return true // the principal's own wish, and its database is closed
	case AskForced:
		return over
	case AskLost:
		return (over || p.Dead || m.Start == r.Start) && r.Synced && r.Safety == Full && !r.Suspended && m.LSN >= r.Floor
	}
	return false
}
