package mirror

import (
	"encoding/binary"
	"fmt"
	"hash/maphash"
	"os"
	"reflect"
	"strconv"
	"strings"
	"testing"
	"unsafe"
)

// An explorer visits every order in which the moves of a small world can happen, the nearest
// first, so that the path to a violation is the shortest.
type explorer struct {
	rules *rules
	start *world
	limit int // states
	visit func(*world)
	every int // of how many states one is run to rest; 0: none

	seen  map[uint64]from
	cells map[cell]int
	moves int
	whole bool // nothing is left
}

// from is how a state was reached first.
type from struct {
	state uint64
	move  uint8
}

var seed = maphash.MakeSeed()

type frontier struct {
	key  uint64
	text []byte
}

// run explores. The text of a failure is its path.
func (x *explorer) run() (failure string) {
	x.seen, x.cells = map[uint64]from{}, map[cell]int{}
	first := pack(x.start)
	root := maphash.Bytes(seed, first)
	x.seen[root] = from{}
	queue := []frontier{{root, first}}
	var buf []move
	for n := 0; n < len(queue); n++ {
		at := queue[n]
		queue[n].text = nil
		w := unpack(at.text, x.rules)
		w.cells = x.cells
		if x.visit != nil {
			x.visit(w)
		}
		buf = w.moves(buf)
		for k, m := range buf {
			next := w.clone()
			x.moves++
			if bad := attempt(func() { next.do(m) }); bad != "" {
				return bad + "\n" + x.path(root, at.key) + fmt.Sprintf("%3d %v\n", 0, m)
			}
			if next.beyond() {
				continue
			}
			text := pack(next)
			key := maphash.Bytes(seed, text)
			if _, old := x.seen[key]; old {
				continue
			}
			x.seen[key] = from{at.key, uint8(k)}
			if x.every > 0 && len(x.seen)%x.every == 0 {
				rest, ok := next.clone(), false
				rest.cells = nil
				if bad := attempt(func() { ok = rest.rests() }); bad != "" || !ok {
					return "invariant 9: does not come to rest, " + bad + "\n" + x.path(root, key) + fmt.Sprintf("and then\n%v", rest)
				}
				if !next.survives() {
					return "invariant 10: does not survive its mirror\n" + x.path(root, key)
				}
			}
			if len(x.seen) >= x.limit {
				return ""
			}
			queue = append(queue, frontier{key, text})
		}
	}
	x.whole = true
	return ""
}

// beyond reports whether a world has gone round often enough: what comes after it is as
// before under higher numbers.
func (w *world) beyond() bool {
	for i := range 2 {
		if r := w.hosts[i].kept.Rec; r.Seq > 4 || r.Conf > 8 {
			return true
		}
	}
	return false
}

func attempt(f func()) (bad string) {
	defer func() {
		if v, is := recover().(violation); is {
			bad = string(v)
		}
	}()
	f()
	return ""
}

// path is how a state was reached, as text.
func (x *explorer) path(root, key uint64) string {
	var steps []uint8
	for ; key != root; key = x.seen[key].state {
		steps = append(steps, x.seen[key].move)
	}
	w := x.start.clone()
	var b strings.Builder
	for n := len(steps) - 1; n >= 0; n-- {
		m := w.moves(nil)[steps[n]]
		fmt.Fprintf(&b, "%3d %v", len(steps)-n, m)
		if m.kind == deliver {
			fmt.Fprintf(&b, ": %v", w.queues[queue(int(m.i), int(m.j))][0].m)
		}
		b.WriteString("\n")
		w.do(m)
	}
	fmt.Fprintf(&b, "%v", w)
	return b.String()
}

func (w *world) clone() *world {
	c := *w
	return &c
}

// pieces are where a type has values, without the gaps between fields.
type piece struct{ at, size uintptr }

func pieces(t reflect.Type, base uintptr, into []piece) []piece {
	switch t.Kind() {
	case reflect.Struct:
		for i := range t.NumField() {
			into = pieces(t.Field(i).Type, base+t.Field(i).Offset, into)
		}
	case reflect.Array:
		for i := range t.Len() {
			into = pieces(t.Elem(), base+uintptr(i)*t.Elem().Size(), into)
		}
	default:
		if n := len(into); n > 0 && into[n-1].at+into[n-1].size == base {
			into[n-1].size += t.Size()
			break
		}
		into = append(into, piece{base, t.Size()})
	}
	return into
}

var (
	fixedPieces = pieces(reflect.TypeFor[fixed](), 0, nil)
	itemPieces  = pieces(reflect.TypeFor[item](), 0, nil)
)

func flat(p unsafe.Pointer, of []piece, into []byte) []byte {
	for _, s := range of {
		into = append(into, unsafe.Slice((*byte)(unsafe.Add(p, s.at)), s.size)...)
	}
	return into
}

func unflat(p unsafe.Pointer, of []piece, text []byte) []byte {
	for _, s := range of {
		copy(unsafe.Slice((*byte)(unsafe.Add(p, s.at)), s.size), text[:s.size])
		text = text[s.size:]
	}
	return text
}

var scratch []byte

// pack is a world as text: most of it is zero, so each eight bytes begin with which are not.
func pack(w *world) []byte {
	f := flat(unsafe.Pointer(&w.fixed), fixedPieces, scratch[:0])
	for q := range w.queues {
		f = append(f, uint8(len(w.queues[q])))
		for k := range w.queues[q] {
			f = flat(unsafe.Pointer(&w.queues[q][k]), itemPieces, f)
		}
	}
	for len(f)%8 != 0 {
		f = append(f, 0)
	}
	scratch = f
	text := make([]byte, 0, 512)
	for n := 0; n < len(f); n += 8 {
		at := len(text)
		text = append(text, 0)
		if binary.LittleEndian.Uint64(f[n:]) == 0 {
			continue
		}
		for b := range 8 {
			if f[n+b] != 0 {
				text[at] |= 1 << b
				text = append(text, f[n+b])
			}
		}
	}
	return text
}

func unpack(text []byte, r *rules) *world {
	f := scratch[:0]
	for len(text) > 0 {
		mask := text[0]
		text = text[1:]
		for b := range 8 {
			if mask&(1<<b) == 0 {
				f = append(f, 0)
				continue
			}
			f = append(f, text[0])
			text = text[1:]
		}
	}
	scratch = f
	w := &world{rules: r}
	f = unflat(unsafe.Pointer(&w.fixed), fixedPieces, f)
	for q := range w.queues {
		n := int(f[0])
		f = f[1:]
		if n > 0 {
			w.queues[q] = make([]item, n)
		}
		for k := range n {
			f = unflat(unsafe.Pointer(&w.queues[q][k]), itemPieces, f)
		}
	}
	return w
}

func (w *world) String() string {
	var b strings.Builder
	for i := range w.hosts {
		h := &w.hosts[i]
		fmt.Fprintf(&b, "  %v on %v frozen %v up %v open %v guard %d op %d log %v %v %v ready %v hard %d end %d acked %d lease %d now %d asked %d granted %v owned %d tli %d undoing %v\n    rec %+v\n", node(i), h.on, h.frozen, h.up, h.open, h.until, h.op.kind, h.log[:h.len],
			h.s.Role(), h.s.Phase, h.s.Ready, h.s.Hard, h.s.End, h.s.Acked, h.s.Until, h.s.Now, h.kept.Asked, h.kept.Granted, h.kept.Owned, h.kept.TLI, h.kept.Undoing, h.kept.Rec)
		for n, p := range h.s.Peers {
			if p != (Peer{}) {
				fmt.Fprintf(&b, "    %v %+v\n", Node(n), p)
			}
		}
	}
	fmt.Fprintf(&b, "  links %+v acked %b\n", w.links, w.acked)
	for q, items := range w.queues {
		for _, it := range items {
			fmt.Fprintf(&b, "  queue %d: %v\n", q, it.m)
		}
	}
	return b.String()
}

// synchronized is a world at rest: A principal, B mirror, with or without witness.
func synchronized(t *testing.T, witness bool, r *rules) *world {
	t.Helper()
	w := &world{rules: r}
	for i := range w.hosts {
		h := &w.hosts[i]
		h.on, h.s = true, New(node(i), 1, Durable{})
	}
	a, b := &w.hosts[0], &w.hosts[1]
	a.up, a.open = true, true
	a.log[0], a.len, w.last = 1, 1, 1
	b.log[0], b.len = 1, 1
	for i := range w.hosts {
		w.step(i, Event{Kind: Boot, LSN: w.hosts[i].len, Running: i == 0, OK: true}, journal{}, -1)
	}
	if !witness {
		w.links[0].cut, w.links[1].cut = true, true
		w.hosts[2].on = false
	} else {
		w.connect(0, 2)
		w.connect(1, 2)
	}
	w.connect(0, 1)
	w.step(1, Event{Kind: Operator, Command: Command{Verb: Await, LSN: 1, TLI: 1}}, journal{}, -1)
	w.step(0, Event{Kind: Operator, Command: Command{Verb: Begin, TLI: 1, Timeout: 2}}, journal{}, -1)
	w.run(t, func() bool { return a.s.Shown() == Synchronized })
	if witness {
		w.step(0, Event{Kind: Operator, Command: Command{Verb: SetWitness, On: true}}, journal{}, -1)
		w.run(t, func() bool {
			return a.s.D.Arbiter == 1 && a.s.Shown() == Synchronized && w.hosts[2].s.D.Rec.Version() == a.s.D.Rec.Version() && w.quiet()
		})
	}
	w.owners = [12]Node{}
	return w
}

// run lets a world without faults run until it is as wanted.
func (w *world) run(t *testing.T, until func() bool) {
	t.Helper()
	for range 300 {
		if until() {
			return
		}
		all := w.moves(nil)
		if len(all) == 0 {
			break
		}
		best := -1
		for k, m := range all {
			if best < 0 && m.kind != stalls && m.kind != writes && m.kind != restarts && m.kind != heals {
				best = k
			}
		}
		w.do(all[best])
	}
	t.Fatalf("the world does not get there:\n%v", w)
}

// budget reads how many states the explorer may visit, a thousand to the unit.
func budget(t *testing.T, usual int) int {
	t.Helper()
	if v := os.Getenv("REFLEJO_EXPLORE"); v != "" {
		n, err := strconv.Atoi(v)
		if err != nil {
			t.Fatalf("REFLEJO_EXPLORE=%q: want thousands of states", v)
		}
		return n * 1000
	}
	return usual
}

// sizes of worlds. The first column of limits is for every test run, REFLEJO_EXPLORE=n asks
// for n thousand states each.
var sizes = []struct {
	name    string
	witness bool
	eager   bool
	limit   int
	set     func(*world)
}{
	{"2 nodes, 1 fault, 2 writes", false, true, 20_000, func(w *world) { w.faults, w.writes = 1, 2 }},
	{"2 nodes, 1 fault, 2 verbs, 1 write", false, true, 30_000, func(w *world) { w.faults, w.writes, w.verbs = 1, 1, 2 }},
	{"2 nodes, 3 verbs, 1 write", false, true, 20_000, func(w *world) { w.writes, w.verbs = 1, 3 }},
	{"3 nodes, 1 fault, 1 write", true, true, 100_000, func(w *world) { w.faults, w.writes = 1, 1 }},
	{"3 nodes, 1 fault, 1 verb", true, true, 100_000, func(w *world) { w.faults, w.verbs = 1, 1 }},
	{"3 nodes, 2 faults, 1 write", true, true, 100_000, func(w *world) { w.faults, w.writes = 2, 1 }},
	{"3 nodes, 2 faults, 1 verb", true, true, 60_000, func(w *world) { w.faults, w.verbs = 2, 1 }},
	{"3 nodes, 1 fault, 1 rare verb", true, true, 60_000, func(w *world) {
		w.faults, w.verbs, w.rules.verbs = 1, 1, []Verb{SetWitness, SetTimeout, Replace, Hold}
	}},
	{"3 nodes, 1 fault, pings in any order, 1 lag", true, false, 60_000, func(w *world) { w.faults, w.lags = 1, 1 }},
}

// often are the commands that sessions live with.
var often = []Verb{Failover, Force, Suspend, Resume, SetSafety}

func TestExplore(t *testing.T) {
	total, cells := 0, map[cell]int{}
	for _, c := range sizes {
		t.Run(c.name, func(t *testing.T) {
			r := &rules{eager: c.eager, step: Step, alone: !c.witness, verbs: often}
			w := synchronized(t, c.witness, r)
			w.run(t, w.quiet)
			c.set(w)
			x := explorer{rules: r, start: w, limit: budget(t, c.limit), every: 50}
			if bad := x.run(); bad != "" {
				t.Fatal(bad)
			}
			t.Logf("%d states, %d moves, %d cells, all visited: %v", len(x.seen), x.moves, len(x.cells), x.whole)
			total += len(x.seen)
			for k, n := range x.cells {
				cells[k] += n
			}
		})
	}
	t.Logf("%d states, %d (role, state, phase, event) cells", total, len(cells))
}

func (m Message) String() string {
	return fmt.Sprintf("kind %d %d>%d seq %d v %d.%d owner %d sync %v stamp %d after %d lsn %d tli %d asked %d vouched %v", m.Kind, m.From, m.To, m.Seq, m.Rec.Seq, m.Rec.Conf, m.Rec.Owner, m.Rec.Synced, m.Stamp, m.After, m.LSN, m.TLI, m.Asked, m.Vouched)
}
