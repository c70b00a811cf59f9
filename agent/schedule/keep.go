package schedule

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
)

// maxKeep bounds each number of a Keep: a thousand hours are six weeks, a thousand days
// nearly three years, and what is kept is listed and looked through again and again.
const maxKeep = 1000

// Keep says how many copies stay: the newest of each of the last so many hours, days, weeks
// (of ISO 8601) and months that have one, and the Last newest whatever their age. All zero:
// all stay. Spans are those of UTC.
type Keep struct {
	Last    int
	Hourly  int
	Daily   int
	Weekly  int
	Monthly int
}

// Copy is something that was made at a time and can be removed.
type Copy struct {
	ID string
	At time.Time
}

// span names the piece of the calendar that a time is in.
type span func(time.Time) string

// rule is one of a Keep's numbers.
type rule struct {
	name string
	n    int
	of   span // nil: every copy is a span of its own
}

func (k Keep) rules() [5]rule {
	return [5]rule{
		{"last", k.Last, nil},
		{"hourly", k.Hourly, func(t time.Time) string { return t.Format("2006-01-02T15") }},
		{"daily", k.Daily, func(t time.Time) string { return t.Format("2006-01-02") }},
		{"weekly", k.Weekly, func(t time.Time) string { y, w := t.ISOWeek(); return fmt.Sprint(y, w) }},
		{"monthly", k.Monthly, func(t time.Time) string { return t.Format("2006-01") }},
	}
}

// Validate checks the bounds. Its error is fault.Invalid and blames a field "last",
// "hourly", "daily", "weekly" or "monthly".
func (k Keep) Validate() error {
	for _, r := range k.rules() {
		if r.n < 0 || r.n > maxKeep {
			return fault.Field(r.name, "%s = %d: want 0 to %d", r.name, r.n, maxKeep)
		}
	}
	return nil
}

// All reports whether everything stays.
func (k Keep) All() bool { return k == Keep{} }

// Remove names the copies that do not stay, oldest first. Whatever the rules, the newest
// copy stays. A copy from after now comes from a clock that was wrong: it stays, and does
// not count, until its time has come; or else a day under a wrong clock would cost every
// copy made after it.
func (k Keep) Remove(all []Copy, now time.Time) []string {
	if k.All() {
		return nil
	}
	sorted := slices.Clone(all) // newest first; of the same moment the larger id, so that the answer is always the same
	slices.SortFunc(sorted, func(a, b Copy) int {
		return cmp.Or(b.At.Compare(a.At), cmp.Compare(b.ID, a.ID))
	})
	first := slices.IndexFunc(sorted, func(c Copy) bool { return !c.At.After(now) })
	if first < 0 {
		return nil
	}
	counted := sorted[first:]
	stays := make([]bool, len(counted))
	stays[0] = true
	for _, r := range k.rules() {
		r.mark(counted, stays)
	}
	var gone []string
	for i := len(counted) - 1; i >= 0; i-- {
		if !stays[i] {
			gone = append(gone, counted[i].ID)
		}
	}
	return gone
}

// mark marks what the rule keeps of copies, newest first.
func (r rule) mark(copies []Copy, stays []bool) {
	kept, was := 0, ""
	for i, c := range copies {
		if kept == r.n {
			return
		}
		if r.of != nil {
			in := r.of(c.At.UTC())
			if in == was {
				continue
			}
			was = in
		}
		stays[i] = true
		kept++
	}
}
