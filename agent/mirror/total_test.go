package mirror

import (
	"fmt"
	"testing"
)

// place is where a node can be when something happens.
type place struct {
	role  Role
	shown Shown
	phase Phase
}

// TestEveryEventEverywhere gives every event and every message, sensible or not, to nodes in
// every place that the explorer reaches: a cell of this table that is not defined would panic,
// act before it persists, or let a record go back.
func TestEveryEventEverywhere(t *testing.T) {
	places := map[place][]State{}
	for _, witness := range []bool{false, true} {
		r := &rules{eager: true, step: Step, alone: !witness, verbs: []Verb{Failover, Force, Suspend, SetSafety, Remove}}
		w := synchronized(t, witness, r)
		w.run(t, w.quiet)
		w.faults, w.verbs = 1, 1
		x := explorer{rules: r, start: w, limit: 60_000, visit: func(w *world) {
			for i := range w.hosts {
				if h := &w.hosts[i]; h.on {
					at := place{h.s.Role(), h.s.Shown(), h.s.Phase}
					if n := len(places[at]); n < 4 {
						places[at] = append(places[at], h.s)
					}
				}
			}
		}}
		if bad := x.run(); bad != "" {
			t.Fatal(bad)
		}
	}
	cells := 0
	for at, states := range places {
		for _, s := range states {
			for _, e := range everyEvent(s) {
				cells++
				if bad := attempt(func() { define(s, e) }); bad != "" {
					t.Fatalf("%v at %+v: %s\n%+v", e, at, bad, s)
				}
			}
		}
	}
	t.Logf("%d places (role, state, phase), %d states and events in them", len(places), cells)
}

func define(s State, e Event) {
	n, out := Step(s, e)
	again, _ := Step(s, e)
	if n != again {
		broken(0, "not a function")
	}
	w := world{rules: &rules{}}
	if e.Kind != Operator || e.Command.Verb != Await { // which begins with nothing
		w.checkStep(index(s.Self), s, n, out)
	}
	if n.D != s.D && (len(out) == 0 || out[0].Kind != Persist || out[0].Durable != n.D) {
		broken(7, "not kept")
	}
}

// everyEvent is each kind of event and message, from everybody, about this role sequence and
// those around it.
func everyEvent(s State) []Event {
	var all []Event
	for k := Boot; k <= Health; k++ {
		for _, ok := range []bool{false, true} {
			all = append(all, Event{Kind: k, Now: s.Now, LSN: s.End, Seq: s.D.Rec.Seq, OK: ok, Running: ok, Peer: B},
				Event{Kind: k, Now: s.Now + 9, LSN: s.End + 1, Seq: s.D.Rec.Seq + 1, OK: ok, Peer: W})
		}
	}
	for v := Await; v <= Hold; v++ {
		all = append(all, Event{Kind: Operator, Now: s.Now, Command: Command{Verb: v}}, Event{Kind: Operator, Now: s.Now, Command: Command{Verb: v, On: true, Safety: Off, Timeout: 7}})
	}
	for k := Hello; k <= Notice; k++ {
		for _, from := range []Node{A, B, W} {
			for _, by := range []uint32{0, 1, 2, 3} {
				if from == s.Self {
					continue
				}
				m := Message{Kind: k, From: from, To: s.Self, Seq: s.D.Rec.Seq + by - 1, LSN: s.End + LSN(by), TLI: s.D.TLI, Copy: 1, Start: 1, Rec: s.D.Rec, After: s.End, Stamp: s.Now, Asked: by}
				m.Rec.Seq += by - 1
				m.Rec.Conf += by - 1
				all = append(all, Event{Kind: Receive, Now: s.Now, Msg: m})
				m.Rec.Owner, m.Rec.Mirror = m.Rec.Mirror, m.Rec.Owner
				m.Vouched = true
				all = append(all, Event{Kind: Receive, Now: s.Now, Msg: m})
			}
		}
	}
	return all
}

func (e Event) String() string {
	return fmt.Sprintf("%v of %v %+v %+v", e.Kind, e.Peer, e.Command, e.Msg)
}
