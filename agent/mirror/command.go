package mirror

// operate takes an operator's request. Whatever is refused has changed nothing (M-51: each
// with its own reason). What needs another's durable word is answered later, by confirm.
func (c *core) operate(q Command) {
	r := c.rec()
	switch q.Verb {
	case Await:
		if c.Role() != None && c.Role() != Former {
			c.answer(SessionExists)
			return
		}
		c.D = Durable{TLI: q.TLI}
		c.Expect, c.End, c.Writing = true, q.LSN, q.LSN
		c.answer(OK)
		return
	case Begin:
		c.begin(q)
		return
	}
	if role := c.Role(); role != Principal && role != Mirror {
		c.answer(NoSuchSession)
		return
	}
	switch q.Verb {
	case Force:
		c.force()
	case Remove:
		c.remove(q)
	case Suspend:
		c.suspendHere()
	default:
		switch {
		case !c.is(Principal):
			c.answer(NotPrincipal)
		case c.Command.Verb != NoVerb || c.D.Handed != NotHanded:
			c.answer(Busy)
		case c.behind():
			c.answer(LogLost)
		case q.Verb == Failover:
			c.failover()
		case !c.mirrorPeer().Up && !(q.Verb == Replace && c.D.Granted):
			c.answer(NotConnected)
		default:
			c.change(q, r)
		}
	}
}

// change proposes a change of the rules. It counts once the mirror or the witness has it (A4).
func (c *core) change(q Command, r *Record) {
	var f func(*Record)
	switch q.Verb {
	case SetSafety:
		f = func(r *Record) { r.Safety, r.Synced = q.Safety, r.Synced && q.Safety == Full }
	case SetTimeout:
		f = func(r *Record) { r.Timeout = q.Timeout }
		c.D.Lease = min(c.D.Lease, q.Timeout)
	case SetWitness:
		switch {
		case !q.On && r.Witness == 0:
			c.answer(NoWitness)
			return
		case q.On && (!c.Ready || c.Hard < c.End):
			c.answer(NotSynchronized)
			return
		}
		f = func(r *Record) {
			if r.Witness = 0; q.On {
				r.Witness = c.D.Arbiter + 1
				r.Start++ // a death notice from before was about a time without witness (A8)
			}
		}
	case Resume:
		if !r.Suspended {
			c.answer(OK)
			return
		}
		f = func(r *Record) { r.Suspended = false }
	case Replace:
		f = func(r *Record) { r.Copies[r.Mirror-A], r.Synced = max(r.Copies[0], r.Copies[1])+1, false }
		c.Ready = false
	case Hold:
		f = func(r *Record) { r.Hold = q.Timeout }
	default:
		c.answer(NoSuchSession)
		return
	}
	c.Command = q
	c.propose(f)
}

// suspend is the principal's: nothing is sent from now on.
func (c *core) suspend() {
	c.propose(func(r *Record) { r.Suspended, r.Synced = true, false })
	c.report(NowSuspended)
}

// suspendHere is SUSPEND on either partner. A mirror that cannot reach its principal keeps the
// wish: it does not take over, and says so when they meet.
func (c *core) suspendHere() {
	r := c.rec()
	switch {
	case r.Suspended:
		c.answer(OK)
	case c.is(Mirror):
		c.D.Paused = true
		c.send(c.partner(), Message{Kind: Want, Seq: r.Seq})
		c.answer(OK)
	case c.D.Handed != NotHanded || c.Command.Verb != NoVerb:
		c.answer(Busy)
	case c.behind():
		c.answer(LogLost)
	case !c.D.Granted && !c.mirrorPeer().Up && !c.Peers[W].Up:
		c.answer(Unconfirmed)
	default:
		c.Command = Command{Verb: Suspend}
		c.suspend()
		if c.D.Granted { // nobody takes over as it is, so nobody has to know first
			c.Command = Command{}
			c.answer(OK)
		}
	}
}

// failover begins the manual failover (§2.1).
func (c *core) failover() {
	r, m := c.rec(), c.mirrorPeer()
	switch {
	case r.Safety == Off:
		c.answer(SafetyIsOff)
	case r.Suspended:
		c.answer(IsSuspended)
	case !m.Up || !m.Known:
		c.answer(NotConnected)
	case !r.Synced || !c.Ready || c.Phase != Serving:
		c.answer(NotSynchronized)
	default:
		c.Command = Command{Verb: Failover}
		c.Phase = Stopping
		c.do(Action{Kind: Stop})
	}
}

// force takes the role and accepts that log is lost (§2.3). With a witness it needs the
// witness's record, so that the old principal learns of it.
func (c *core) force() {
	r, p := c.rec(), &c.Peers[c.partner()]
	switch {
	case !c.is(Mirror):
		c.answer(NotMirror)
	case p.Up:
		c.answer(StillConnected)
	case c.D.Undoing || c.Rejoins || c.D.Copy != r.Copy(c.Self):
		c.answer(UndoUnfinished)
	case c.Sick:
		c.answer(RedoBroken)
	case c.D.Asked != 0 || c.Writing > c.End:
		c.answer(Busy)
	case r.Witness == 0:
		n := r.next(c.Self, c.D.TLI, c.End)
		n.Suspended = true
		c.D.Asked = n.Seq
		c.adopt(n)
		c.answer(OK)
	case !c.Peers[W].Up || !c.Peers[W].Known:
		c.answer(NoQuorum)
	case p.Echoed < c.limit():
		c.answer(LeaseRuns)
	default:
		c.ask(AskForced)
	}
}

// remove ends the session. A principal goes on alone, so the mirror must be kept from taking
// over first, or be known dead: that is never implied (A4 c).
func (c *core) remove(q Command) {
	r := c.rec()
	switch {
	case c.is(Mirror) && c.D.Undoing:
		c.answer(UndoUnfinished)
	case c.is(Mirror):
		c.D.Left, c.D.Asked, c.D.Asking = true, 0, NotAsking
		c.send(c.partner(), Message{Kind: Forget, Seq: r.Seq})
		c.answer(OK)
	case q.On || c.D.Granted && c.D.Handed == NotHanded:
		c.Command = Command{}
		c.D.Handed = NotHanded
		c.propose(func(r *Record) { r.Removed, r.Synced = true, false })
		c.leave(Principal)
		c.answer(OK)
	case c.D.Handed != NotHanded:
		c.answer(Busy)
	case !c.mirrorPeer().Up && !c.Peers[W].Up:
		c.answer(Unconfirmed)
	default:
		// First nobody takes over, then the session ends (confirm).
		c.Command = Command{Verb: Remove}
		c.propose(func(r *Record) { r.Synced = false })
	}
}

// leave makes this node one without a session. A principal's database goes on, unmirrored; a
// mirror's stays closed until an operator acts (M-66).
func (c *core) leave(was Role) {
	c.D.Handed, c.D.Asked, c.D.Asking, c.D.Burnt = NotHanded, 0, NotAsking, 0
	c.Probe, c.Ready = NoProbe, false
	if c.rec().Owner == c.Self {
		c.D.Arbiter, c.D.Granted = 0, true
		c.do(Action{Kind: Lease})
		return
	}
	if was == Principal {
		c.yield(was)
	}
}

// driveAlone keeps an unmirrored database up, and acknowledges all it has.
func (c *core) driveAlone() {
	if !c.D.Granted || c.D.Undoing {
		return
	}
	if c.Phase == Down && !c.Sick {
		c.Phase = Starting
		c.do(Action{Kind: Start})
	}
	if c.Phase == Closed {
		c.Phase = Serving
		c.do(Action{Kind: Open})
	}
	if c.End > c.Acked && c.Phase == Serving {
		c.Acked = c.End
		c.do(Action{Kind: Acknowledge, LSN: c.End})
	}
}
