package mirror

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

var rewrite = flag.Bool("rewrite", false, "write the transcripts in testdata anew")

// A transcript is a story in the world of world_test.go: after "> " what happens, below it what
// the nodes do, until nothing but time is under way. Comments say which line of mirroring.md
// §12 it shows; a diff after -rewrite is to be read.
func TestTranscripts(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatal("no transcripts", err)
	}
	for _, f := range files {
		t.Run(strings.TrimSuffix(filepath.Base(f), ".txt"), func(t *testing.T) {
			old, err := os.ReadFile(f)
			if err != nil {
				t.Fatal(err)
			}
			got := play(t, string(old))
			if *rewrite {
				if err := os.WriteFile(f, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			} else if got != string(old) {
				t.Errorf("%s is now\n%s", f, got)
			}
		})
	}
}

// play runs the lines of a transcript, and returns it as it should be.
func play(t *testing.T, text string) string {
	t.Helper()
	s := story{t: t}
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		switch {
		case strings.HasPrefix(line, "#"):
			s.out.WriteString(line + "\n")
		case strings.HasPrefix(line, "> "):
			s.out.WriteString(line + "\n")
			s.line(strings.Fields(line[2:]))
		}
	}
	return s.out.String()
}

type story struct {
	t   *testing.T
	w   *world
	out strings.Builder

	slow [3]bool // what the host is busy with does not end
}

// told are the actions that a reader wants to see.
func (s *story) step(st State, e Event) (State, []Action) {
	n, actions := Step(st, e)
	for _, a := range actions {
		switch a.Kind {
		case Start, Open, Fence, Stop, ProbeCommit, Harden:
			fmt.Fprintf(&s.out, "  %v: %v\n", st.Self, a.Kind)
		case Promote:
			fmt.Fprintf(&s.out, "  %v: promote to timeline %d at %d\n", st.Self, a.TLI, a.LSN)
		case Rejoin, CopyAll:
			fmt.Fprintf(&s.out, "  %v: %v\n", st.Self, a.Kind)
		case Acknowledge:
			fmt.Fprintf(&s.out, "  %v: acknowledge %d\n", st.Self, a.LSN)
		case Answer:
			fmt.Fprintf(&s.out, "  %v: answer: %v\n", st.Self, a.Reason)
		case Report:
			fmt.Fprintf(&s.out, "  %v: report: %v\n", st.Self, a.Code)
		}
	}
	return n, actions
}

func (s *story) node(name string) int {
	i := strings.Index("ABW", name)
	if i < 0 || len(name) != 1 {
		s.t.Fatalf("no node %q", name)
	}
	return i
}

// settle lets all that is under way happen, but no time pass.
func (s *story) settle() {
	for range 1000 {
		all := slices.DeleteFunc(s.w.moves(nil), func(m move) bool {
			switch m.kind {
			case completes:
				return s.slow[m.i]
			case deliver, tickOf, endedAt, downAt, connects:
				return m.n >= 0
			}
			return true
		})
		if len(all) == 0 {
			return
		}
		s.w.do(all[0])
	}
	s.t.Fatal("it does not settle")
}

func (s *story) line(words []string) {
	verb, args := words[0], words[1:]
	number := func(k, otherwise int) int {
		if k >= len(args) {
			return otherwise
		}
		n, err := strconv.Atoi(args[k])
		if err != nil {
			s.t.Fatal(err)
		}
		return n
	}
	if verb == "world" {
		s.begin(args)
		return
	}
	w := s.w
	one := func() move { return move{i: int8(s.node(args[0])), n: -1} }
	two := func() move { return move{i: int8(s.node(args[0])), j: int8(s.node(args[1])), n: -1} }
	var m move
	switch verb {
	case "show":
		s.show()
		return
	case "tick":
		for range number(0, 1) {
			w.do(move{kind: passes, n: -1})
			s.settle()
		}
		return
	case "write":
		m = one()
		if h := &w.hosts[m.i]; !h.open {
			s.out.WriteString("  refused: the port is closed\n")
			return
		}
		m.kind, w.writes = writes, 1
	case "crash", "kill", "dbkill", "restart", "freeze", "thaw":
		m = one()
		m.kind = map[string]moveKind{"crash": crashes, "kill": dies, "dbkill": dbDies, "restart": restarts, "freeze": freezes, "thaw": thaws}[verb]
	case "cut", "heal":
		m = two()
		m.kind = map[string]moveKind{"cut": cuts, "heal": heals}[verb]
	case "stall", "flow":
		m = two()
		m.kind, m.n = stalls, 0
		if verb == "stall" {
			m.n = 1
		}
	case "slow", "fast":
		s.slow[s.node(args[0])] = verb == "slow"
		s.settle()
		return
	case "lose": // the last entry on the disk of a host that is off
		h := &w.hosts[s.node(args[0])]
		h.len--
		h.log[h.len] = 0
		return
	case "fail": // what the host is busy with does not work
		i := s.node(args[0])
		seq := w.hosts[i].op.seq
		w.hosts[i].op = op{}
		w.step(i, Event{Kind: Failed, Seq: seq}, journal{}, -1)
		s.settle()
		return
	case "agent": // a planned restart: the guard keeps the database
		w.replaceAgent(s.node(args[0]))
		s.settle()
		return
	case "health":
		w.step(s.node(args[0]), Event{Kind: Health, OK: args[1] == "good"}, journal{}, -1)
		s.settle()
		return
	case "operator":
		s.operator(args, number)
		return
	default:
		s.t.Fatalf("no command %q", verb)
	}
	w.faults = 9
	w.do(m)
	w.faults = 0
	s.settle()
}

func (s *story) begin(args []string) {
	r := &rules{eager: true, step: Step, alone: !slices.Contains(args, "witness")}
	timeout := 4
	s.w = &world{rules: r}
	for i := range s.w.hosts {
		h := &s.w.hosts[i]
		h.on, h.s = true, New(node(i), 2, Durable{})
	}
	s.w.hosts[0].up, s.w.hosts[0].open = true, true
	for i := range 2 {
		s.w.hosts[i].log[0], s.w.hosts[i].len = 1, 1
	}
	s.w.last = 1
	r.step = s.step
	for i := range s.w.hosts {
		s.w.step(i, Event{Kind: Boot, LSN: s.w.hosts[i].len, Running: i == 0, OK: true}, journal{}, -1)
	}
	s.settle()
	if slices.Contains(args, "new") {
		return
	}
	at := s.out.Len()
	s.operator([]string{"B", "await"}, nil)
	s.operator([]string{"A", "begin"}, func(int, int) int { return timeout })
	if !r.alone {
		s.operator([]string{"A", "witness", "on"}, nil)
	}
	kept := s.out.String()[:at]
	s.out.Reset()
	s.out.WriteString(kept)
}

func (s *story) operator(args []string, number func(int, int) int) {
	i := s.node(args[0])
	q := Command{LSN: s.w.hosts[i].len, TLI: 1}
	for v := Await; v <= Hold; v++ {
		if v.String() == args[1] {
			q.Verb = v
		}
	}
	rest := strings.Join(args[2:], " ")
	switch q.Verb {
	case NoVerb:
		s.t.Fatalf("no verb %q", args[1])
	case Begin, SetTimeout, Hold:
		q.Timeout = uint16(number(2, 4))
	case Force:
		s.w.forced = true
	}
	q.On = rest == "on" || rest == "dead"
	if rest == "OFF" {
		q.Safety = Off
	}
	s.w.step(i, Event{Kind: Operator, Command: q}, journal{}, -1)
	s.settle()
	s.w.check()
}

func (s *story) show() {
	for i := range s.w.hosts {
		h := &s.w.hosts[i]
		if i == 2 && s.w.rules.alone {
			break
		}
		if !h.on {
			fmt.Fprintf(&s.out, "  %v off, log %v\n", node(i), h.log[:h.len])
			continue
		}
		r := h.s.D.Rec
		fmt.Fprintf(&s.out, "  %v %v", node(i), h.s.Role())
		if i < 2 {
			fmt.Fprintf(&s.out, " %v %v, witness %v, log %v, timeline %d", h.s.Shown(), h.s.Phase, h.s.WitnessShown(), h.log[:h.len], h.s.D.TLI)
			if h.open {
				s.out.WriteString(", open")
			}
			if h.frozen {
				s.out.WriteString(", frozen")
			}
			if h.s.Exposed() {
				s.out.WriteString(", exposed")
			}
		}
		fmt.Fprintf(&s.out, "; record %v owner %v", r.Version(), r.Owner)
		if r.Synced {
			s.out.WriteString(" synced")
		}
		if r.Safety == Off {
			s.out.WriteString(" OFF")
		}
		s.out.WriteString("\n")
	}
}
