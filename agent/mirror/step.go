package mirror

// core is a step under way: the state so far, and what is to be done.
type core struct {
	State
	out []Action
}

// Step is the whole of a session's node: what happened goes in, the new state and what is to
// be done in this order come out. It changes nothing else, and asks nothing of anybody.
func Step(s State, e Event) (State, []Action) {
	c := &core{State: s}
	c.take(e)
	c.drive()
	if c.D != s.D {
		// Before all else, so that no send, acknowledgement or opening can be ahead of it.
		c.out = append([]Action{{Kind: Persist, Durable: c.D}}, c.out...)
	}
	return c.State, c.out
}

func (c *core) do(a Action) { c.out = append(c.out, a) }

// send sends to a node, if there is a link.
func (c *core) send(to Node, m Message) {
	if to == Nobody || to == c.Self || !c.Peers[to].Up {
		return
	}
	m.From, m.To = c.Self, to
	c.do(Action{Kind: Send, Msg: m})
}

func (c *core) report(code Code)      { c.do(Action{Kind: Report, Code: code}) }
func (c *core) answer(r Reason)       { c.do(Action{Kind: Answer, Reason: r}) }
func (c *core) partner() Node         { return c.Self.other() }
func (c *core) rec() *Record          { return &c.D.Rec }
func (c *core) mirrorPeer() *Peer     { return &c.Peers[c.partner()] }
func (c *core) is(r Role) bool        { return c.Role() == r }
func (c *core) current(q uint32) bool { return q == c.D.Rec.Seq }

// take changes the facts that the event is about. What follows from them is drive's.
func (c *core) take(e Event) {
	c.Now = e.Now // before each use of a lease the clock is looked at (A7)
	switch e.Kind {
	case Boot:
		c.boot(e)
	case Tick:
		c.tick(e.Now)
	case LinkUp:
		p := &c.Peers[e.Peer]
		p.Up, p.Known, p.Heard = true, false, 0
		c.hello(e.Peer)
	case LinkDown:
		c.linkDown(e.Peer)
	case Receive:
		c.receive(e.Msg)
	case Operator:
		c.operate(e.Command)
	case Health:
		c.health(e.OK)
	case Hardened:
		c.hardened(e.LSN)
	case Rejoined:
		c.rejoined(e.Seq, e.LSN)
	case Failed:
		c.failed(e.Seq)
	default:
		c.database(e)
	}
}

// drive does what is due in this state, whatever led to it: so a lost message or a restart
// needs no case of its own.
func (c *core) drive() {
	switch c.Role() {
	case Principal:
		c.drivePrincipal()
	case Mirror:
		c.driveMirror()
	case None, Former:
		c.driveAlone()
	}
}

// boot begins after a start of the agent. The guard may have kept the database: without a
// witness always, with one as long as a lease that was made for it runs (ruling 8).
func (c *core) boot(e Event) {
	c.Ticked, c.Until, c.End = e.Now, e.Until, e.LSN
	c.Lost, c.Broken = true, true
	c.Backoff = 0
	for n := range c.Peers {
		c.Peers[n].Echoed = 0 // nobody knows what was promised before: a whole wait (A7, A13)
	}
	r := c.rec()
	mine := c.is(Principal) || r.Removed && r.Owner == c.Self || r.Seq == 0
	keeps := mine && c.D.Handed == NotHanded && !c.D.Undoing && (c.is(None) || c.D.TLI == r.TLI) && (c.D.Arbiter == 0 || e.Now < e.Until)
	switch {
	case e.Running && keeps && e.OK:
		c.Phase = Serving
	case e.Running && keeps:
		c.Phase, c.Gate = Closed, e.LSN
	case e.Running:
		c.do(Action{Kind: Fence})
	}
	if c.is(Principal) && r.Hold != 0 {
		c.propose(func(r *Record) { r.Hold = 0 })
	}
	if c.is(Principal) && c.D.Arbiter != 0 && c.Phase == Down {
		c.D.Burnt = r.Start // the guard may have given notice
	}
}

// tick lets time pass. A node that was not running for a while begins its wait anew: what it
// did not see, it cannot count (A7).
func (c *core) tick(now uint32) {
	gap := now > c.Ticked+2
	c.Ticked = now
	limit := c.limit()
	for n := range c.Peers {
		p := &c.Peers[n]
		if gap {
			p.Echoed, p.Heard = 0, 0
			continue
		}
		p.Echoed = min(p.Echoed+1, limit)
		p.Heard = min(p.Heard+1, limit)
	}
	if c.Backoff > 0 {
		c.Backoff--
	}
	switch c.Role() {
	case Principal:
		c.tickPrincipal()
	case Mirror:
		c.tickMirror()
	}
}

// linkDown forgets what was only true on that link.
func (c *core) linkDown(n Node) {
	p := &c.Peers[n]
	if !p.Up {
		return
	}
	p.Up, p.Known, p.Linked = false, false, false
	switch role := c.Role(); {
	case role == Mirror && n == W:
		c.Waiting = false
		c.Broken = c.Broken || c.Lost
		if c.D.Asked != 0 {
			c.hello(c.partner()) // who may have to go on without the witness's answer
		}
	case role == Mirror:
		c.losePrincipal()
	case role == Principal && n == c.partner():
		c.loseMirror()
	}
}

// hang ends a link from which nothing comes any more: a soft error (M-26).
func (c *core) hang(n Node) {
	if p := &c.Peers[n]; p.Up && p.Heard > c.rec().Timeout {
		c.do(Action{Kind: Close, Peer: n})
		c.linkDown(n)
	}
}

// limit is how long the promise of an echo lasts for who gave it: longer than the principal's
// lease by drift, the time a fence needs, and what a planned restart was given (A6, ruling 3).
func (c *core) limit() uint16 {
	t := c.rec().Timeout
	return t + (t+99)/100 + c.Grace + c.rec().Hold
}
