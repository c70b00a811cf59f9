package mirror

// leased reports whether the principal may have its database up: with a witness only while a
// lease runs that mirror or witness gave, so that losing both ends it (mirroring.md §3.3),
// without one always (§3.4).
func (c *core) leased() bool {
	return c.D.Arbiter == 0 || c.Now < c.Until
}

// renew takes an echo. The lease counts from when the ping was sent: what the echo proves
// about the other's promise is true from its arrival there, which was later (A6).
func (c *core) renew(from Node, stamp uint32) {
	until := stamp + uint32(c.D.Lease)
	c.Peers[from].Until = max(c.Peers[from].Until, until)
	if until > c.Until {
		c.Until = until
		if c.D.Arbiter != 0 {
			c.do(Action{Kind: Lease, Until: until})
		}
	}
}

// alone reports whether the principal may acknowledge what only it has: the mirror was durably
// kept from taking over (ruling 9), and no proof of waiting is under way (A1).
func (s State) alone() bool {
	return s.D.Granted && s.Probe == NoProbe
}

// grant notes that the mirror must not take over, once witness or mirror has it durably. One
// of them is enough: taking over needs the wish of the one and the record of the other (A4).
// Without a witness, when the mirror failed, the principal's own word does after the timeout:
// the mirror then takes over only by force (ruling 9).
func (c *core) grant() {
	r := c.rec()
	if c.D.Granted || r.Synced || c.D.Handed != NotHanded {
		return
	}
	v, m := r.Version(), c.mirrorPeer()
	word := m.Sure == v || c.D.Arbiter != 0 && c.Peers[W].Sure == v
	own := c.D.Arbiter == 0 && !m.Up && m.Heard >= r.Timeout
	if word || own {
		c.D.Granted = true
		c.report(RunningExposed)
	}
}

// expose ends the promise that the mirror has everything, when it can be kept no longer. With
// a witness at once: nothing is acknowledged before the record says so. Without one after the
// timeout.
func (c *core) expose() {
	r, m := c.rec(), c.mirrorPeer()
	lost := !m.Up || m.Known && !c.Ready
	if !r.Synced || !lost || c.D.Handed != NotHanded || c.behind() {
		return
	}
	if !m.Up && m.Heard < r.Timeout && c.Phase != Serving {
		return // nobody waits, and the mirror may know better what this node's log should be (A12)
	}
	if c.D.Arbiter != 0 || m.Up || m.Heard >= r.Timeout {
		c.propose(func(r *Record) { r.Synced = false })
	}
}

// settleWitness lets a change of the witness count once the mirror has it: until then the
// mirror may still ask the old one, so the old one's rules hold (A4 a).
func (c *core) settleWitness() {
	r := c.rec()
	if c.D.Arbiter == r.Witness || c.mirrorPeer().Sure != r.Version() {
		return
	}
	c.D.Arbiter = r.Witness
	c.Peers[W].Sure = Version{} // another witness knows nothing yet
	if r.Witness == 0 {
		c.do(Action{Kind: Lease}) // without end
		c.tell(W)
		return
	}
	c.do(Action{Kind: Lease, Until: c.Until})
	c.tell(W)
}

// vouched reports whether the mirror stands by the principal's record now, so that a witness
// without one, or with one of an older role sequence, may take it (A13).
func (c *core) vouched() bool {
	m := c.mirrorPeer()
	return m.Up && m.Known && m.Sure == c.rec().Version() && c.Now < m.Until
}
