package mirror

// Node is a place in a session. Which host stands behind it the session's caller knows; a
// host that replaces another takes its place with a new generation (Record.Copy, Record.Witness).
type Node uint8

// The partners are A and B: either may be principal. W is the witness.
const (
	Nobody Node = iota
	A
	B
	W
)

// other is the partner of a partner.
func (n Node) other() Node {
	switch n {
	case A:
		return B
	case B:
		return A
	}
	return Nobody
}

// LSN is a byte address in the log: the end of what is meant.
type LSN uint64

// Safety says whether commits wait for the mirror.
type Safety uint8

const (
	Full Safety = iota
	Off
)

// Record is what a session's nodes have to agree upon. Each keeps a durable copy; that of the
// witness decides (safety.md, ruling 5). In one role sequence only the owner writes records,
// each with the next configuration sequence; a record of the next role sequence comes to be by
// compare-and-set at the witness, or by both partners together, or without a witness by force.
// So (Seq, Conf) is a total order and one pair never names two records (invariant 4).
type Record struct {
	Seq  uint32 // role sequence; 0: there is no session
	Conf uint32 // configuration sequence, rises over role switches too

	Owner  Node      // the principal
	Mirror Node      // the other
	Copies [2]uint32 // generations of A's and B's copy: an older one is no mirror (A4 d)
	Synced bool      // every acknowledged commit is on that copy; only with Safety Full

	TLI    uint32 // the owner's timeline
	Parent uint32 // the one it forked from
	Top    uint32 // highest timeline the session ever gave away: the next is above it (A3)
	Fork   LSN    // where it forked
	Floor  LSN    // a mirror with less has lost something (A11 c)
	Base   uint32 // role sequence in which the owner's log became the principal's

	Start     uint32 // number of the owner's database start that death notices are about (A8)
	Witness   uint32 // generation of the witness, 0: none
	Timeout   uint16 // T, in ticks
	Hold      uint16 // ticks that the lease outlives a planned restart of the owner's agent (ruling 8)
	Safety    Safety
	Suspended bool
	Removed   bool // the session is over; the record stays as its tombstone (M-66)
}

// Version orders records.
type Version struct{ Seq, Conf uint32 }

// Version is the record's place in the order.
func (r Record) Version() Version { return Version{r.Seq, r.Conf} }

// Less reports whether v is older than o.
func (v Version) Less(o Version) bool {
	return v.Seq < o.Seq || v.Seq == o.Seq && v.Conf < o.Conf
}

// Copy is the generation of a partner's copy.
func (r Record) Copy(of Node) uint32 {
	if of != A && of != B {
		return 0
	}
	return r.Copies[of-A]
}

// next is the record that makes owner the principal in the next role sequence, with a timeline
// of its own that forks from parent at fork.
func (r Record) next(owner Node, parent uint32, fork LSN) Record {
	n := r
	n.Seq, n.Conf = r.Seq+1, r.Conf+1
	n.Owner, n.Mirror = owner, owner.other()
	n.Synced = false
	n.Parent, n.Fork, n.Floor = parent, fork, fork
	n.Top = max(r.Top, r.TLI) + 1
	n.TLI = n.Top
	n.Base = n.Seq
	n.Start, n.Hold = 1, 0
	return n
}

// again is the record in which the owner of r stays principal under a later role sequence,
// after a promotion was asked for that both partners, or the witness, made void (A5, B5).
func (r Record) again(seq uint32) Record {
	r.Seq, r.Conf = seq, r.Conf+1
	r.Top++ // who was to take over may have made a timeline
	return r
}
