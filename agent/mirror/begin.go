package mirror

// A session begins on the mirror, which then waits, and after that on the principal, which
// invites it: nothing exists on the principal before the mirror has it durably (M-01).

// begin is the principal's side. Its database is up and unmirrored.
func (c *core) begin(q Command) {
	switch role := c.Role(); {
	case role != None && role != Former || c.Inviting.Seq != 0:
		c.answer(SessionExists)
		return
	case !c.mirrorPeer().Up:
		c.answer(NotConnected)
		return
	}
	c.Command = q
	old := c.D.Rec
	c.Inviting = Record{
		Seq: 1, Conf: 1, Owner: c.Self, Mirror: c.partner(), Copies: [2]uint32{1, 1},
		TLI: q.TLI, Parent: q.TLI, Top: q.TLI, Base: 1, Start: 1, Timeout: q.Timeout,
	}
	if old.Seq != 0 { // a later session of the same two: above what either remembers (A4 c)
		c.Inviting.Seq, c.Inviting.Conf, c.Inviting.Base = old.Seq+1, old.Conf+1, old.Seq+1
	}
	c.send(c.partner(), Message{Kind: Invite, Seq: c.Inviting.Seq, Rec: c.Inviting})
}

// invited is the mirror's side.
func (c *core) invited(m Message) {
	if c.Expect && m.Rec.Mirror == c.Self {
		c.Expect = false
		c.D.Rec = m.Rec
		if c.D.TLI != 0 { // else it has no copy yet, and makes one
			c.D.Copy = m.Rec.Copy(c.Self)
		}
		c.Lost, c.Broken = true, true
		c.hello(m.From)
	}
	c.tell(m.From)
}

// begun takes that the mirror has the session.
func (c *core) begun() {
	r := c.Inviting
	c.Inviting, c.Command = Record{}, Command{}
	c.D = Durable{Rec: r, Granted: true, Owned: r.Base, Copy: r.Copy(c.Self), TLI: r.TLI, Lease: r.Timeout}
	c.answer(OK)
	c.report(SynchronizingMirror)
}

// forgotten takes that the other has left the session, or never was in this one.
func (c *core) forgotten(m Message) {
	r := c.rec()
	switch {
	case m.Seq < r.Seq: // an older session's end is not this one's (A4 c)
	case c.is(Principal):
		c.propose(func(r *Record) { r.Removed, r.Synced = true, false })
		c.leave(Principal)
	case c.is(Mirror) && !c.D.Undoing:
		c.D.Left, c.D.Asked, c.D.Asking = true, 0, NotAsking
	}
}
