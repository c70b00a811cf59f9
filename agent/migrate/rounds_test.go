package migrate

import (
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/reflejo/terraform-provider-reflejo/agent/snapshot"
)

func TestEnough(t *testing.T) {
	t.Parallel()
	const limit = 5 * time.Second
	r := func(bytes int64, took time.Duration) sentRound { return sentRound{bytes, took} }
	for _, c := range []struct {
		name  string
		sent  []sentRound
		ready bool
	}{
		{"nothing sent", nil, false},
		{"a small disk", []sentRound{r(100, time.Second)}, true},
		{"the first is long", []sentRound{r(1000, 10*time.Second)}, false},
		{"it shrinks", []sentRound{r(1000, 100*time.Second), r(200, 20*time.Second)}, false},
		{"it is short", []sentRound{r(1000, 100*time.Second), r(50, limit)}, true},
		{"it does not shrink", []sentRound{r(1000, 100*time.Second), r(900, 90*time.Second)}, true},
		{"it shrinks slowly", []sentRound{r(9000, 900*time.Second), r(7000, 700*time.Second), r(5500, 550*time.Second), r(4000, 400*time.Second), r(3000, 300*time.Second), r(2000, 200*time.Second)}, true},
	} {
		if got := enough(c.sent, limit); got != c.ready {
			t.Errorf("%s: %v", c.name, got)
		}
	}
}

func TestPause(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		sent    int64
		elapsed time.Duration
		rate    int64
		want    time.Duration
	}{{1 << 30, 0, 0, 0}, {125_000, 0, 1_000_000, time.Second}, {125_000, 400 * time.Millisecond, 1_000_000, 600 * time.Millisecond}, {125_000, 2 * time.Second, 1_000_000, 0}} {
		if got := pause(c.sent, c.elapsed, c.rate); got != c.want {
			t.Errorf("%+v: %s", c, got)
		}
	}
}

// ranges draws ascending ranges that do not touch.
func ranges(t *rapid.T, name string) (all []snapshot.Range) {
	at := int64(0)
	for range rapid.IntRange(0, 20).Draw(t, name) {
		r := snapshot.Range{Offset: at + int64(rapid.IntRange(1, 9).Draw(t, "gap")), Length: int64(rapid.IntRange(1, 9).Draw(t, "length"))}
		all, at = append(all, r), r.End()
	}
	return all
}

func covers(all []snapshot.Range, at int64) bool {
	for _, r := range all {
		if r.Offset <= at && at < r.End() {
			return true
		}
	}
	return false
}

func TestRanges(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		a, b := ranges(t, "a"), ranges(t, "b")
		size, n, from := int64(rapid.IntRange(1, 200).Draw(t, "size")), rapid.IntRange(1, 10).Draw(t, "n"), int64(rapid.IntRange(0, 200).Draw(t, "from"))
		both, few, rest := union(a, b, size), coalesce(a, n), after(a, from)
		if len(few) > n {
			t.Fatalf("%d ranges, at most %d", len(few), n)
		}
		for _, all := range [][]snapshot.Range{both, few, rest} {
			for i, r := range all {
				if r.Length <= 0 || i > 0 && r.Offset <= all[i-1].End() {
					t.Fatalf("not in order: %v", all)
				}
			}
		}
		for at := range int64(400) {
			if covers(both, at) != (at < size && (covers(a, at) || covers(b, at))) {
				t.Fatalf("union of %v and %v below %d is %v", a, b, size, both)
			}
			if covers(a, at) && !covers(few, at) {
				t.Fatalf("%v became %v", a, few)
			}
			if covers(rest, at) != (at >= from && covers(a, at)) {
				t.Fatalf("%v from %d is %v", a, from, rest)
			}
		}
	})
}
