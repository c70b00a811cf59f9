package mirror

// EventKind is what happened.
type EventKind uint8

const (
	Boot     EventKind = iota // the agent started: LSN = end of the log here, Running: the guard kept the database up until clock Until, OK: and its port open
	Tick                      // time has passed. Sockets are drained before (A7)
	LinkUp                    // Peer; nothing of an older link to it arrives any more
	LinkDown                  // Peer
	Receive                   // Msg
	Started                   // the database is up, port closed; LSN = end of recovery
	Promoted                  // as Started; LSN = where the new timeline forked
	Ended                     // all of the database is gone
	Flushed                   // LSN is on the principal's disk
	Hardened                  // LSN is on the mirror's disk
	Probed                    // the probe commit that ends at LSN waits
	LogEnded                  // the log ended at LSN, clients are gone
	Rejoined                  // Seq: for which role sequence; LSN = where to follow from
	Failed                    // what was begun last (start, promotion, probe, rejoin) did not work; Seq as in Rejoined
	Health                    // OK: the principal's database answers, the mirror's redo moves
	Operator                  // Command
)

// Event is one thing that happened, with the fields that its kind names.
type Event struct {
	Kind    EventKind
	Peer    Node
	Msg     Message
	Now     uint32 // this host's boot clock, in ticks, at each event
	Until   uint32
	LSN     LSN
	Seq     uint32
	OK      bool
	Running bool
	Command Command
}

// Verb is what an operator asks for.
type Verb uint8

const (
	NoVerb     Verb = iota
	Await           // become mirror when invited; LSN, TLI: the copy
	Begin           // start a session as principal; LSN, TLI: the log; Timeout
	SetSafety       // Safety
	SetTimeout      // Timeout
	SetWitness      // On: add or replace, else remove
	Suspend
	Resume
	Failover
	Force
	Remove  // On: the other side is known dead (A4)
	Replace // the mirror gets a new copy, maybe on another host
	Hold    // the agent is about to restart; Timeout = ticks
)

// Command is an operator's request.
type Command struct {
	Verb    Verb
	Safety  Safety
	On      bool
	Timeout uint16
	LSN     LSN
	TLI     uint32
}

// MessageKind is what one node says to another.
type MessageKind uint8

const (
	Hello    MessageKind = iota // first on each link: Rec, Asked, LSN, TLI, Copy, flags
	Tell                        // the sender's durable record
	Ping                        // Seq, Stamp; from a principal only while its database is healthy
	Echo                        // Seq, Stamp
	Append                      // Seq, TLI, log from From to LSN
	Ack                         // Seq, LSN is hardened
	Raise                       // to the witness: Floor is LSN
	Ask                         // to the witness: the role sequence Seq, Asking; Start: a death notice was for that start
	Handover                    // Rec, Via: the mirror is to be principal
	Refuse                      // of a Handover
	Abandon                     // Rec: the mirror is to give its ask up
	Invite                      // Rec: become mirror
	Want                        // the mirror wants the session suspended
	Forget                      // Seq: the sender has left the session
	Notice                      // Seq, Start: nothing of the sender's database is left
)

// Message is what is sent, with the fields that its kind names.
type Message struct {
	Kind     MessageKind
	From, To Node
	Seq      uint32
	Rec      Record
	Stamp    uint32
	After    LSN // Append: where the log before it ends
	LSN      LSN
	TLI      uint32
	Copy     uint32
	Asked    uint32
	Start    uint32
	Asking   Asking
	Via      Handing
	Vouched  bool // Tell to the witness: the mirror has the record and a lease from it runs (A13)
	Linked   bool // Hello and Echo of the mirror: it has a link to the witness
	Undoing  bool
	Paused   bool
}

// ActionKind is what is to be done.
type ActionKind uint8

const (
	Persist     ActionKind = iota // make Durable durable; first of its step
	Send                          // Msg
	Lease                         // the guard may keep the database until clock Until; 0: for ever
	Start                         // start the database, port closed → Started or Failed
	Promote                       // redo up to LSN, fork TLI there → Promoted or Failed
	Open                          // open the port
	Fence                         // the guard exits: nothing of the database is left when this returns
	Stop                          // cut clients, end the log → LogEnded
	Acknowledge                   // tell walsender LSN
	ProbeCommit                   // → Probed or Failed
	Harden                        // journal up to LSN → Hardened
	Rejoin                        // undo beyond LSN, follow TLI → Rejoined or Failed
	CopyAll                       // as Rejoin, by a new base copy of generation Copy
	Close                         // the link to Peer
	Answer                        // Reason, to the operator
	Report                        // Code
)

// Action is one thing to do. The caller does them in order.
type Action struct {
	Kind    ActionKind
	Durable Durable
	Msg     Message
	Peer    Node
	LSN     LSN
	TLI     uint32
	Seq     uint32
	Copy    uint32
	Until   uint32
	Reason  Reason
	Code    Code
}

// Reason answers an operator.
type Reason uint8

const (
	OK Reason = iota
	NotPrincipal
	NotMirror
	NoSuchSession
	SessionExists
	NotWaiting
	SafetyIsOff
	NotSynchronized
	IsSuspended
	NotConnected
	StillConnected
	NoQuorum
	LeaseRuns
	UndoUnfinished
	NoWitness
	Unconfirmed
	Busy
	RedoBroken
	LogLost
)

// Code is a state change worth an alert (mirroring.md §8), under its number there.
type Code uint8

const (
	SyncedWithWitness    Code = 1
	SyncedWithoutWitness Code = 2
	LostPrincipal        Code = 5
	LostMirror           Code = 6
	ManualFailover       Code = 7
	AutomaticFailover    Code = 8
	NowSuspended         Code = 9
	QuorumLost           Code = 10
	SynchronizingMirror  Code = 11
	RunningExposed       Code = 12
	ForkMismatch         Code = 13 // ours: promotion stopped before the journal's end (A2)
	BehindMirror         Code = 14 // ours: the principal has less log than its mirror (A12)
)
