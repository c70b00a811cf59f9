package mirror

// Handing is how a principal gave its role away (B5).
type Handing uint8

const (
	NotHanded  Handing = iota
	ViaMirror          // the mirror's word decides
	ViaWitness         // the witness's record decides, so the role can be taken back there
)

// Asking is why a mirror asked for the role.
type Asking uint8

const (
	NotAsking Asking = iota
	AskLost          // the principal is lost: automatic failover
	AskGiven         // the principal gave it: manual failover
	AskForced        // the operator takes it
)

// Durable is what a node must find again after any crash. A change of it is written by the
// Persist action, which comes before every other action of the same step.
type Durable struct {
	Rec Record

	Asked  uint32 // mirror: role sequence it asked for, a promise (A5); 0: none
	Asking Asking
	Paused bool // mirror: suspends the session as soon as the principal hears of it
	Left   bool // mirror: it was told OFF while the principal was away

	Granted bool    // principal: witness or mirror recorded that the mirror must not take over (A4)
	Arbiter uint32  // principal: generation of the witness that counts (A4)
	Lease   uint16  // principal: T as all who give leases know it
	Handed  Handing // principal: it gave Rec.Seq+1 away
	Burnt   uint32  // principal: number of the start for which a death notice was given, or may have been (A8)

	Seen uint32 // witness: highest role sequence heard of: a record below it is out of date (A13)

	Owned   uint32 // Base of the last role sequence owned here whose log is here untouched
	Copy    uint32 // generation of the copy here
	TLI     uint32 // timeline of the log here
	Undoing bool   // a rejoin began and did not end: the copy is good for nothing else (B2)
	Tries   uint8  // rejoins that failed in a row
}

// Phase is what a principal's database does, in the order of a life: from Closed on there is a
// log to send. All others have Down.
type Phase uint8

const (
	Down      Phase = iota // no process of it is left
	Starting               // recovery
	Promoting              // redo of the queue, then a new timeline
	Closed                 // up, port closed
	Serving                // port open
	Stopping               // manual failover: clients are cut, the log's end is being written
	Stopped                // manual failover: the log has ended
)

// Probe is the proof that commits wait before the session counts as synchronised (A1).
type Probe uint8

const (
	NoProbe   Probe = iota
	Probing         // acknowledgements follow the mirror; the probe's LSN is not known yet
	ProbeSeen       // it was seen to wait; the mirror has to harden it
)

// Peer is what a node knows of another since they are linked.
type Peer struct {
	Up     bool
	Known  bool    // its Hello has arrived
	Heard  uint16  // ticks since anything came from it; goes on while the link is down
	Echoed uint16  // ticks seen running since this node last echoed it: the promise it still has
	Linked bool    // principal, of its mirror: it has a link to the witness; mirror, of the witness: it echoes
	Dead   bool    // its database ended for good in this start (death notice)
	Until  uint32  // principal: end of the lease that it gave, on the own clock
	Sure   Version // the record it has durably
}

// State is a node of one session.
type State struct {
	Self  Node
	Grace uint16 // k, in ticks
	D     Durable

	Now    uint32 // this host's boot clock at this event, in ticks
	Ticked uint32 // and at the last tick
	Until  uint32 // principal: end of the lease on that clock
	Phase  Phase
	Sick   bool // principal: the database does not answer; mirror: redo is broken
	Burnt  bool // principal: a death notice was given for this start
	Peers  [4]Peer

	End     LSN  // principal: flushed here; mirror: hardened here
	Gate    LSN  // principal: end of recovery, which nobody may see before the mirror has it (A14)
	Sent    LSN  // principal: sent to the mirror on this link
	Hard    LSN  // principal: what the mirror said it hardened
	Acked   LSN  // principal: what walsender was told
	Ready   bool // principal: the mirror's copy continues this log
	Probe   Probe
	ProbeAt LSN

	Writing  LSN    // mirror: end of what the journal is writing
	Lost     bool   // mirror: the principal is lost
	Broken   bool   // mirror: the witness was lost too meanwhile (ruling 7)
	Waiting  bool   // mirror: an ask is unanswered on this link
	Backoff  uint16 // ticks before a mirror asks again, a principal whose database died starts again
	Rejoins  bool   // mirror: a rejoin runs
	Expect   bool   // waits to be invited as mirror
	Inviting Record // invites a mirror
	Command  Command
}

// Role is what a node is in its session.
type Role uint8

const (
	None Role = iota // no session
	Principal
	Mirror
	Witness
	Former // the session was removed
)

// Role follows from the record alone.
func (s State) Role() Role {
	switch {
	case s.D.Rec.Seq == 0:
		return None
	case s.Self == W && (s.D.Rec.Removed || s.D.Rec.Witness == 0):
		return Former
	case s.Self == W:
		return Witness
	case s.D.Rec.Removed || s.D.Left:
		return Former
	case s.D.Rec.Owner == s.Self:
		return Principal
	}
	return Mirror
}

// Shown is the session's state as users see it (mirroring.md §3.1).
type Shown uint8

const (
	NoSession Shown = iota
	Suspended
	Disconnected
	Synchronizing
	PendingFailover
	Synchronized
)

// Shown is the state as this partner shows it: three facts kept apart, and one order.
func (s State) Shown() Shown {
	r := s.D.Rec
	partner := s.Peers[s.Self.other()]
	switch role := s.Role(); {
	case role != Principal && role != Mirror:
		return NoSession
	case s.D.Handed != NotHanded || s.Phase == Stopping || s.Phase == Stopped:
		return PendingFailover
	case r.Suspended || s.D.Paused:
		return Suspended
	case !partner.Up || !partner.Known:
		return Disconnected
	case r.Safety == Full && r.Synced:
		return Synchronized
	case r.Safety == Off && role == Principal && s.Ready && s.Hard == s.End, r.Safety == Off && role == Mirror && s.Writing <= s.End:
		return Synchronized
	}
	return Synchronizing
}

// Exposed reports whether commits are acknowledged that only this node has.
func (s State) Exposed() bool {
	return s.Role() == Principal && s.alone() && (s.Phase == Closed || s.Phase == Serving)
}

// WitnessShown is the witness as a partner sees it (mirroring.md §3.2).
func (s State) WitnessShown() string {
	switch p := s.Peers[W]; {
	case s.D.Rec.Witness == 0:
		return "none"
	case p.Up && p.Known && (p.Linked || p.Sure.Seq == s.D.Rec.Seq):
		return "CONNECTED"
	case p.Up && !p.Known:
		return "UNKNOWN"
	}
	return "DISCONNECTED"
}

// New is a node of which nothing is known but what it kept. Its first event is Boot.
func New(self Node, grace uint16, kept Durable) State {
	return State{Self: self, Grace: grace, D: kept}
}
