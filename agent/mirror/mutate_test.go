package mirror

import (
	"strings"
	"testing"
)

// keep makes a state that a broken core changed durable, as Step does.
func keep(s State, out []Action) (State, []Action) {
	if len(out) > 0 && out[0].Kind == Persist {
		out = out[1:]
	}
	return s, append([]Action{{Kind: Persist, Durable: s.D}}, out...)
}

// sabotage breaks the core, or the edges that it trusts, in one place. The explorer has to
// find each: so the rule that was taken out is needed, and the explorer can see.
var sabotage = []struct {
	name      string // the hazard of safety.md, and what is taken out
	invariant string // that is found not to hold
	witness   bool
	set       func(*world)
	rules     rules
	step      func(State, Event) (State, []Action)
}{
	{name: "A1: acknowledges what the mirror does not have, alone or not", invariant: "1", witness: true,
		set: func(w *world) { w.faults, w.writes = 1, 1 },
		step: func(s State, e Event) (State, []Action) {
			n, out := Step(s, e)
			if n.Role() == Principal && n.Phase == Serving && n.Acked < n.End {
				n.Acked = n.End
				out = append(out, Action{Kind: Acknowledge, LSN: n.End})
			}
			return n, out
		}},
	{name: "A2: opens although promotion stopped early", invariant: "1", witness: true,
		set:   func(w *world) { w.faults, w.writes = 1, 1 },
		rules: rules{cutRedo: true},
		step: func(s State, e Event) (State, []Action) {
			if e.Kind == Promoted {
				e.LSN = s.D.Rec.Fork
			}
			n, out := Step(s, e)
			return n, out
		}},
	{name: "A4: alone before witness or mirror has recorded it", invariant: "1", witness: true,
		set:   func(w *world) { w.faults, w.writes = 2, 1 },
		rules: rules{only: []moveKind{cuts}},
		step: func(s State, e Event) (State, []Action) {
			n, out := Step(s, e)
			if n.Role() == Principal && !n.D.Rec.Synced && !n.D.Granted && n.D.Handed == NotHanded && n.Phase == Serving {
				n.D.Granted = true
				n.Acked = n.End
				n, out = keep(n, out)
				out = append(out, Action{Kind: Acknowledge, LSN: n.End})
			}
			return n, out
		}},
	{name: "A5: supports the principal after it has asked for its role", invariant: "6", witness: true,
		set: func(w *world) { w.faults = 2 },
		step: func(s State, e Event) (State, []Action) {
			n, out := Step(s, e)
			if m := e.Msg; e.Kind == Receive && m.Kind == Ping && s.D.Asked != 0 && s.Role() == Mirror && s.Peers[m.From].Up {
				out = append(out, Action{Kind: Send, Msg: Message{Kind: Echo, From: s.Self, To: m.From, Seq: m.Seq, Stamp: m.Stamp}})
			}
			return n, out
		}},
	{name: "A5: the witness gives an answer once", invariant: "9", witness: true,
		set: func(w *world) { w.faults = 2 },
		step: func(s State, e Event) (State, []Action) {
			n, out := Step(s, e)
			if e.Kind == Receive && s.Self == W && s.D.Rec.Owner == e.Msg.From && s.D.Rec.Seq > e.Msg.Rec.Seq {
				return n, nil
			}
			if s.Self == W && (e.Kind == LinkUp || e.Kind == Receive && e.Msg.Kind == Ping && e.Msg.Seq < s.D.Rec.Seq) {
				return n, nil
			}
			return n, out
		}},
	{name: "A6: the lease counts from when the echo came", invariant: "2", witness: true,
		set:   func(w *world) { w.faults = 2 },
		rules: rules{only: []moveKind{stalls, freezes}},
		step: func(s State, e Event) (State, []Action) {
			if e.Kind == Receive && e.Msg.Kind == Echo {
				e.Msg.Stamp = noon + 3
			}
			return Step(s, e)
		}},
	{name: "A7: mirror and witness count ticks that they did not see pass", invariant: "2", witness: true,
		set:   func(w *world) { w.faults = 2 },
		rules: rules{only: []moveKind{cuts, freezes}},
		step: func(s State, e Event) (State, []Action) {
			if e.Kind == Tick && s.Role() != Principal {
				for n := range s.Peers {
					s.Peers[n].Echoed += 4
				}
			}
			return Step(s, e)
		}},
	{name: "A8: starts again although a death notice was given", invariant: "2", witness: true,
		set: func(w *world) { w.faults = 1 },
		step: func(s State, e Event) (State, []Action) {
			n, out := Step(s, e)
			if n.D.Burnt != 0 {
				n.D.Burnt, n.Backoff = 0, 0
				n, out = keep(n, out)
			}
			return n, out
		}},
	{name: "A9: the guard does not end the database when the lease is over", invariant: "2", witness: true,
		set:   func(w *world) { w.faults = 1 },
		rules: rules{guardSleeps: true, only: []moveKind{freezes}}, step: Step},
	{name: "A11: acknowledged before it is hardened", invariant: "5", witness: true,
		set:   func(w *world) { w.writes = 1 },
		rules: rules{ackEarly: true}, step: Step},
	{name: "A14: opens after recovery before the mirror has its end", invariant: "1", witness: false,
		set:   func(w *world) { w.faults, w.writes, w.verbs = 2, 1, 1 },
		rules: rules{only: []moveKind{dbDies, crashes}},
		step: func(s State, e Event) (State, []Action) {
			n, out := Step(s, e)
			if n.Phase == Closed && n.Role() == Principal {
				n.Phase = Serving
				out = append(out, Action{Kind: Open})
			}
			return n, out
		}},
	{name: "B2: a rejoin leaves what should be undone", invariant: "5", witness: true,
		set:   func(w *world) { w.faults, w.writes = 1, 2 },
		rules: rules{tear: true, only: []moveKind{dies, dbDies}}, step: Step},
	{name: "B5: serves again after it gave its role away", invariant: "2", witness: false,
		set:   func(w *world) { w.faults, w.verbs = 1, 1 },
		rules: rules{only: []moveKind{cuts}},
		step: func(s State, e Event) (State, []Action) {
			n, out := Step(s, e)
			if e.Kind == LinkDown && n.D.Handed != NotHanded {
				n.D.Handed, n.Phase = NotHanded, Down
				n, out = keep(n, out)
			}
			return n, out
		}},
	{name: "ruling 9: never alone by its own word", invariant: "10", witness: false,
		set: func(w *world) { w.faults, w.writes = 1, 1 },
		step: func(s State, e Event) (State, []Action) {
			if p := &s.Peers[s.Self.other()]; s.Role() == Principal && !p.Up {
				p.Heard = 0
			}
			return Step(s, e)
		}},
	{name: "ruling 5: two owners of one role sequence", invariant: "3", witness: true,
		set:   func(w *world) { w.faults = 1 },
		rules: rules{only: []moveKind{cuts, crashes}},
		step: func(s State, e Event) (State, []Action) {
			if p := s.Peers[A]; s.Self == B && s.Role() == Mirror && e.Kind == Tick && !p.Up && p.Echoed > 2 {
				s.D.Rec.Owner, s.D.Rec.Mirror = B, A
				s.D.Rec.Conf += 5
				s.D.Rec.Synced, s.D.Granted, s.D.Owned = false, true, s.D.Rec.Base
				s.Until = noon + 9
				n, out := Step(s, e)
				return keep(n, out)
			}
			return Step(s, e)
		}},
	{name: "ruling 5: the witness takes any record", invariant: "4", witness: true,
		set: func(w *world) { w.faults = 2 },
		step: func(s State, e Event) (State, []Action) {
			n, out := Step(s, e)
			if m := e.Msg; e.Kind == Receive && s.Self == W && m.Rec.Seq != 0 && (m.Kind == Tell || m.Kind == Hello) {
				n.D.Rec = m.Rec
				n, out = keep(n, out)
			}
			return n, out
		}},
	{name: "order: acts before it persists", invariant: "7", witness: true,
		set: func(w *world) { w.faults = 1 },
		step: func(s State, e Event) (State, []Action) {
			n, out := Step(s, e)
			if len(out) > 1 && out[0].Kind == Persist {
				out = append(append([]Action{}, out[1:]...), out[0])
			}
			return n, out
		}},
	{name: "B6: forces a copy that is being undone", invariant: "8", witness: false,
		set: func(w *world) {
			w.faults, w.verbs = 0, 1
			w.links[2].on, w.links[2].cut = false, true
			w.queues = [6][]item{}
			for i := range 2 {
				w.hosts[i].s.Peers = [4]Peer{}
			}
			b := &w.hosts[1]
			b.s.D.Undoing = true
			b.kept = b.s.D
		},
		step: func(s State, e Event) (State, []Action) {
			undoing := s.D.Undoing && s.Self == B
			s.D.Undoing = false
			n, out := Step(s, e)
			n.D.Undoing = undoing
			return keep(n, out)
		}},
}

func TestExplorerFindsWhatIsBroken(t *testing.T) {
	for _, c := range sabotage {
		t.Run(c.name, func(t *testing.T) {
			r := c.rules
			r.eager, r.alone, r.verbs = true, !c.witness, often
			whole := rules{eager: true, alone: !c.witness, step: Step}
			w := synchronized(t, c.witness, &whole)
			w.run(t, w.quiet)
			c.set(w)
			r.step = c.step
			w.rules = &r
			x := explorer{rules: &r, start: w, limit: budget(t, 150_000), every: 0}
			if c.invariant == "9" || c.invariant == "10" {
				x.every = 10
			}
			bad := x.run()
			if !strings.HasPrefix(bad, "invariant "+c.invariant+":") {
				t.Fatalf("found %.300q in %d states, want a violation of invariant %s", bad, len(x.seen), c.invariant)
			}
			line, path, _ := strings.Cut(bad, "\n")
			t.Logf("%s: after %d states, in %d steps", line, len(x.seen), strings.Count(path, "\n"))
		})
	}
}
