package migrate

import (
	"slices"
	"sync"
	"testing"

	"github.com/google/uuid"

	"github.com/reflejo/terraform-provider-reflejo/agent/vserver/vservertest"
)

// model is both sides of one handover and the link between them, as a comparable value. The
// decisions in it are those of handover.go; around them are the writes that source.go and
// target.go make, one step each, so that an agent can die between any two.
type model struct {
	// Durable at the source.
	Phase    SourcePhase // "" is no record
	Leaving  bool
	Released bool // its vserver record is gone
	// What the source's agent is about to do; lost when it dies.
	Doing  string
	GaveUp bool

	// Durable at the target.
	Target   TargetPhase
	Placed   bool // the arrival is the server's disk
	Accepted bool // its vserver record is live
	Noted    bool // the record says so
	Rest     bool // something of the move is there (arrival, reservation)
	// The target's agent.
	Heard    Ask  // the question it works on, "" for none
	HeardOld bool // from a link that the source has left

	// In flight: the source's question on its newest link, what older links still hold, and
	// the answer on the newest.
	Asked  Ask
	Old    uint8       // set of asks
	Said   TargetPhase // with Spoken
	Spoken bool
	Faults int8 // that may still happen
}

var (
	asks = []Ask{AskStatus, AskCommit, AskAbort, AskKnown}
)

func bit[T comparable](all []T, x T) uint8 { return 1 << slices.Index(all, x) }

// mayRun are invariant 1's rights.
func (s model) sourceMayRun() bool { return !s.Released && !s.Leaving }
func (s model) targetMayRun() bool { return s.Accepted }

type edge struct {
	name string
	to   model
	bad  bool // a fault
}

// next are all steps that can happen.
func (s model) next() (all []edge) {
	add := func(name string, to model) { all = append(all, edge{name, to, false}) }
	s.sourceSteps(add)
	s.targetSteps(add)
	if s.Faults > 0 {
		for _, e := range s.faults() {
			e.to.Faults--
			all = append(all, edge{e.name, e.to, true})
		}
	}
	return all
}

// faults: a frame is lost, one arrives twice (as a new question on a new link can meet an
// old one's answer), an agent dies, the target's user gives up, the ticket ends.
func (s model) faults() (all []edge) {
	t := s
	if s.Asked != "" {
		t.Asked = ""
		all = append(all, edge{"lose " + string(s.Asked), t, true})
		t = s.newLink() // the link breaks, and what it holds still arrives, some time
		all = append(all, edge{"delay " + string(s.Asked), t, true})
	}
	if s.Spoken {
		t = s
		t.Said, t.Spoken = "", false
		all = append(all, edge{"lose answer " + string(s.Said), t, true})
	}
	t = s.newLink()
	t.Doing, t.GaveUp = "", false
	all = append(all, edge{"source dies", t, true})
	t = s
	t.Heard, t.HeardOld = "", false
	all = append(all, edge{"target dies", t, true})
	t = s
	t.GaveUp = true
	all = append(all, edge{"source is refused", t, true})
	if s.Target == TargetIncoming && s.Heard == "" {
		t = s
		t.Target = TargetForgetting
		all = append(all, edge{"ticket ends", t, true})
	}
	return all
}

// sourceSteps are what the source's agent can do next.
func (s model) sourceSteps(add func(string, model)) {
	t := s
	switch s.Doing {
	case "hand over": // the target has everything
		t.Leaving, t.Doing = true, "record handover"
		add("leave", t)
	case "record handover":
		t.Phase, t.Doing = SourceHandover, ""
		add("record handover", t)
	case "record copying":
		t.Phase, t.Doing = SourceCopying, "return"
		add("record copying", t)
	case "return":
		t.Leaving, t.Doing = false, "give up"
		add("return", t)
	case "give up":
		t = t.newLink()
		t.Phase, t.Doing = "", ""
		t.Old |= bit(asks, AskAbort) // nobody waits for the answer
		add("give up", t)
	case "record moved":
		t.Phase, t.Doing = SourceMoved, ""
		add("record moved", t)
	case "":
		s.sourceIdle(add)
	}
}

// sourceIdle begins something: what its record says is unfinished.
func (s model) sourceIdle(add func(string, model)) {
	t := s
	switch {
	case s.Phase == SourceCopying && s.Leaving: // invariant 6
		t.Doing = "return"
		add("find leaving", t)
		return
	case s.Phase == SourceMoved && !s.Released:
		t.Released, t.Leaving = true, false
		add("release", t)
		return
	case s.Phase == "" || s.Phase == SourceDone:
		return
	}
	if a := sourceAsks(s.Phase, s.GaveUp); s.Asked == "" && s.Heard == "" && !s.Spoken {
		t.Asked = a
		add("ask "+string(a), t)
	}
	if !s.Spoken {
		return
	}
	t.Said, t.Spoken = "", false
	switch sourceNext(s.Phase, s.Said) {
	case stepCopy:
		t.Doing = "hand over"
	case stepLost:
		t.Doing = "give up"
	case stepTakeBack:
		t.Doing = "record copying"
	case stepRelease:
		t.Doing = "record moved"
	case stepDone:
		t.Phase = SourceDone
	case stepBroken:
		t.Doing = "broken"
	}
	add("hear "+string(s.Said), t)
}

// newLink is the source's next link: what the last one holds may still arrive, and is not
// answered to anybody.
func (s model) newLink() model {
	if s.Asked != "" {
		s.Old |= bit(asks, s.Asked)
	}
	s.HeardOld = s.Heard != ""
	s.Asked, s.Said, s.Spoken = "", "", false
	return s
}

// targetSteps are what the target's agent can do next.
func (s model) targetSteps(add func(string, model)) {
	t := s
	switch {
	case s.Target == TargetForgetting && s.Rest:
		t.Rest, t.Placed = false, false
		add("undo", t)
	case s.Target == TargetForgetting:
		t.Target = TargetUnknown
		add("drop", t)
	case s.Target == TargetOwner && !s.Accepted:
		t.Accepted, t.Rest = true, false
		add("accept", t)
	case s.Target == TargetOwner && !s.Noted:
		t.Noted = true
		add("note", t)
	}
	if s.Heard == "" {
		if s.Asked != "" {
			t := s
			t.Asked, t.Heard, t.HeardOld = "", s.Asked, false
			add("get "+string(s.Asked), t)
		}
		for _, a := range asks {
			if s.Old&bit(asks, a) != 0 {
				t := s
				t.Old, t.Heard, t.HeardOld = t.Old&^bit(asks, a), a, true
				add("get an old "+string(a), t)
			}
		}
		return
	}
	t = s
	switch next := targetNext(s.Target, true, s.Heard); {
	case next == TargetOwner && s.Target != TargetOwner && !s.Placed:
		t.Placed = true
		add("place", t)
		return
	case next == TargetUnknown && s.Target == TargetOwner && !s.Noted:
		return // answered when it lives here
	default:
		t.Target = next
	}
	if !s.HeardOld {
		t.Said, t.Spoken = answered(t.Target), true
	}
	t.Heard, t.HeardOld = "", false
	add("answer "+string(answered(t.Target)), t)
}

// wrong says which invariant does not hold.
func (s model) wrong() string {
	switch {
	case s.sourceMayRun() && s.targetMayRun():
		return "both may run it"
	case s.sourceMayRun() && s.Target == TargetOwner:
		return "the target owns it and the source may run it"
	case s.Doing == "broken":
		return "the source heard what can't be"
	case s.Accepted && !s.Placed:
		return "it lives without a disk"
	case s.Released && !s.Accepted && s.Target != TargetOwner:
		return "nobody has it"
	}
	return ""
}

// rested says what is wrong with a state in which nothing is left to do.
func (s model) rested() string {
	switch {
	case s.sourceMayRun() == s.targetMayRun():
		return "not exactly one may run it"
	case s.targetMayRun() && (s.Target != TargetUnknown || s.Phase != SourceDone || !s.Released):
		return "it moved, and the sides do not both know"
	case s.sourceMayRun() && (s.Phase != "" || s.Placed):
		return "it stays, and something is left of the move"
	case s.Rest && s.Target != TargetIncoming: // an unfinished move waits for its ticket's end
		return "something is left at the target"
	}
	return ""
}

// Every order in which frames and writes can happen, with every combination of up to six
// faults: never two owners, and from every state that can be reached, without further
// faults, all ways lead to exactly one owner and nothing left over.
func TestEveryInterleaving(t *testing.T) {
	start := model{Phase: SourceCopying, Target: TargetIncoming, Rest: true, Faults: 6}
	type origin struct {
		from model
		name string
	}
	seen := map[model]origin{start: {}}
	queue := []model{start}
	explain := func(s model) (path []string) {
		for s != start {
			o := seen[s]
			path = append(path, o.name)
			s = o.from
		}
		slices.Reverse(path)
		return path
	}
	rests, steps := 0, 0
	good := map[model][]model{} // without faults: where each state can go
	for len(queue) > 0 {
		s := queue[0]
		queue = queue[1:]
		if w := s.wrong(); w != "" {
			t.Fatalf("%s: %+v after %q", w, s, explain(s))
		}
		for _, e := range s.next() {
			steps++
			if _, ok := seen[e.to]; !ok {
				seen[e.to] = origin{s, e.name}
				queue = append(queue, e.to)
			}
			if !e.bad {
				good[s] = append(good[s], e.to)
			}
		}
		if len(good[s]) == 0 {
			rests++
			if w := s.rested(); w != "" {
				t.Fatalf("%s: %+v after %q", w, s, explain(s))
			}
		}
	}
	// Each state can come to rest: walk back from those that rest.
	back, done := map[model][]model{}, map[model]bool{}
	for s, to := range good {
		for _, n := range to {
			back[n] = append(back[n], s)
		}
	}
	for s := range seen {
		if len(good[s]) == 0 {
			done[s] = true
			queue = append(queue, s)
		}
	}
	for len(queue) > 0 {
		s := queue[0]
		queue = queue[1:]
		for _, p := range back[s] {
			if !done[p] {
				done[p] = true
				queue = append(queue, p)
			}
		}
	}
	for s := range seen {
		if !done[s] {
			t.Fatalf("it never comes to rest: %+v after %q", s, explain(s))
		}
	}
	t.Logf("%d states, %d steps, %d at rest", len(seen), steps, rests)
}

// A request changes a record while an attempt does: neither undoes what the other recorded.
func TestChangesOfOneRecord(t *testing.T) {
	m := &Manager{cfg: Config{Outgoing: vservertest.NewRecords()}, out: map[string]outgoing{}}
	const each = 200
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() {
			for range each {
				_, err := m.changeOutgoing("s", func(r *outgoing, _ bool) error {
					r.Server, r.Mine = "s", append(r.Mine, uuid.NewString())
					return nil
				})
				if err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if r, _ := m.outgoingOf("s"); len(r.Mine) != 2*each {
		t.Errorf("%d of %d changes are there", len(r.Mine), 2*each)
	}
}
