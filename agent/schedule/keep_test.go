package schedule

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
)

func TestKeepValidate(t *testing.T) {
	if err := (Keep{1000, 1000, 1000, 1000, 1000}).Validate(); err != nil {
		t.Error(err)
	}
	for field, k := range map[string]Keep{"last": {Last: -1}, "hourly": {Hourly: 1001}, "daily": {Daily: -5}, "weekly": {Weekly: 9999}, "monthly": {Monthly: -1}} {
		if err := k.Validate(); !fault.Is(err, fault.Invalid) || fault.FieldOf(err) != field {
			t.Errorf("%+v: %v, want Invalid blaming %q", k, err, field)
		}
	}
}

func TestKeepRemove(t *testing.T) {
	now := "2026-03-20T12:00:00Z"
	for _, c := range []struct {
		why    string
		keep   Keep
		copies string // times; a copy's id is its time
		stays  string
	}{
		{"nothing there", Keep{Last: 1}, "", ""},
		{"all zero keeps all", Keep{}, "2020-01-01T00:00:00Z 2026-01-01T00:00:00Z", "2020-01-01T00:00:00Z 2026-01-01T00:00:00Z"},
		{"last two", Keep{Last: 2}, "2026-03-20T09:00:00Z 2026-03-20T10:00:00Z 2026-03-20T11:00:00Z", "2026-03-20T10:00:00Z 2026-03-20T11:00:00Z"},
		{"newest of an hour", Keep{Hourly: 2}, "2026-03-20T09:59:00Z 2026-03-20T10:00:00Z 2026-03-20T10:30:00Z 2026-03-20T11:00:00Z", "2026-03-20T10:30:00Z 2026-03-20T11:00:00Z"},
		{"days without one do not count", Keep{Daily: 3}, "2025-01-01T00:00:00Z 2026-01-01T00:00:00Z 2026-03-01T00:00:00Z 2026-03-19T00:00:00Z", "2026-01-01T00:00:00Z 2026-03-01T00:00:00Z 2026-03-19T00:00:00Z"},
		// ISO weeks: Monday 29 December 2025 is in week 1 of 2026 with 4 January 2026; 28 December is in week 52.
		{"weeks over a new year", Keep{Weekly: 2}, "2025-12-28T23:59:00Z 2025-12-29T00:00:00Z 2026-01-04T23:59:00Z", "2025-12-28T23:59:00Z 2026-01-04T23:59:00Z"},
		{"months", Keep{Monthly: 2}, "2026-01-31T00:00:00Z 2026-02-01T00:00:00Z 2026-02-28T00:00:00Z 2026-03-01T00:00:00Z", "2026-02-28T00:00:00Z 2026-03-01T00:00:00Z"},
		{"rules add up", Keep{Last: 1, Daily: 2}, "2026-03-18T10:00:00Z 2026-03-19T10:00:00Z 2026-03-20T10:00:00Z 2026-03-20T11:00:00Z", "2026-03-19T10:00:00Z 2026-03-20T11:00:00Z"},
		{"from the future: stays, does not count", Keep{Last: 1}, "2026-03-20T10:00:00Z 2026-03-20T11:00:00Z 2036-01-01T00:00:00Z", "2026-03-20T11:00:00Z 2036-01-01T00:00:00Z"},
		{"only from the future", Keep{Last: 1}, "2036-01-01T00:00:00Z 2037-01-01T00:00:00Z", "2036-01-01T00:00:00Z 2037-01-01T00:00:00Z"},
		{"spans are UTC's", Keep{Daily: 1}, "2026-03-19T23:30:00-02:00 2026-03-19T23:30:00Z", "2026-03-19T23:30:00-02:00"},
	} {
		var all []Copy
		for _, text := range strings.Fields(c.copies) {
			all = append(all, Copy{ID: text, At: at(t, text)})
		}
		gone := c.keep.Remove(all, at(t, now))
		all = slices.DeleteFunc(all, func(x Copy) bool { return slices.Contains(gone, x.ID) })
		var stays []string
		for _, x := range all {
			stays = append(stays, x.ID)
		}
		if got := strings.Join(stays, " "); got != c.stays {
			t.Errorf("%s: stays %s\nwant %s", c.why, got, c.stays)
		}
	}
}

func drawKeep(r *rapid.T) Keep {
	n := func(name string) int { return rapid.IntRange(0, 5).Draw(r, name) }
	return Keep{n("last"), n("hourly"), n("daily"), n("weekly"), n("monthly")}
}

func drawCopies(r *rapid.T, now time.Time) []Copy {
	minutes := rapid.SliceOfN(rapid.IntRange(-3000, 200_000), 0, 60).Draw(r, "ages")
	var all []Copy
	for i, m := range minutes {
		all = append(all, Copy{ID: fmt.Sprintf("%03d", i), At: now.Add(-time.Duration(m) * time.Minute)})
	}
	return all
}

// The rules as they read, one copy at a time, against Remove.
func stays(k Keep, all []Copy, c Copy, now time.Time) bool {
	newer := func(a, b Copy) bool { return a.At.After(b.At) || a.At.Equal(b.At) && a.ID > b.ID }
	if k.All() || c.At.After(now) {
		return true
	}
	after := slices.DeleteFunc(slices.Clone(all), func(x Copy) bool { return x.At.After(now) || !newer(x, c) })
	if len(after) == 0 {
		return true
	}
	for _, r := range k.rules() {
		spans := map[string]bool{}
		for _, x := range after {
			if r.of == nil {
				spans[x.ID] = true
			} else {
				spans[r.of(x.At.UTC())] = true
			}
		}
		if mine := r.of != nil && spans[r.of(c.At.UTC())]; !mine && len(spans) < r.n {
			return true
		}
	}
	return false
}

func TestKeepProperties(t *testing.T) {
	now := at(t, "2026-03-20T12:34:56Z")
	rapid.Check(t, func(r *rapid.T) {
		k, all := drawKeep(r), drawCopies(r, now)
		gone := k.Remove(all, now)
		for _, c := range all {
			if want := stays(k, all, c, now); want == slices.Contains(gone, c.ID) {
				r.Fatalf("%+v: copy %s of %s stays %v, by the rules %v", k, c.ID, c.At, !want, want)
			}
		}
		if shuffled := k.Remove(rapid.Permutation(all).Draw(r, "order"), now); !slices.Equal(gone, shuffled) {
			r.Fatalf("%+v: another order of the same copies gives %v, not %v", k, shuffled, gone)
		}
		left := slices.DeleteFunc(slices.Clone(all), func(c Copy) bool { return slices.Contains(gone, c.ID) })
		if len(all) > 0 && len(left) == 0 {
			r.Fatalf("%+v: nothing stays of %d copies", k, len(all))
		}
		if more := k.Remove(left, now); len(more) != 0 {
			r.Fatalf("%+v: removing again removes %v: what stays must stay while nothing new comes", k, more)
		}
		// Larger numbers never keep less.
		wider := Keep{k.Last + 1, k.Hourly + 1, k.Daily + 1, k.Weekly + 1, k.Monthly + 1}
		for _, id := range wider.Remove(all, now) {
			if !k.All() && !slices.Contains(gone, id) {
				r.Fatalf("%+v removes %s, which the narrower %+v keeps", wider, id, k)
			}
		}
		// An older copy more never costs a newer one its place.
		if len(all) > 0 {
			oldest := slices.MinFunc(all, func(a, b Copy) int { return a.At.Compare(b.At) })
			older := Copy{ID: "older", At: oldest.At.Add(-time.Duration(rapid.IntRange(1, 100_000).Draw(r, "older")) * time.Minute)}
			for _, id := range k.Remove(append(slices.Clone(all), older), now) {
				if id != "older" && !slices.Contains(gone, id) {
					r.Fatalf("%+v: an older copy costs %s its place", k, id)
				}
			}
		}
	})
}
