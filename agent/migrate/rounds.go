package migrate

import (
	"slices"
	"time"

	"github.com/reflejo/terraform-provider-reflejo/agent/snapshot"
)

// Bounds of copying while the server runs.
const (
	maxRounds = 6
	// DefaultMaxDowntime is how long the rest may take where a server's settings say nothing.
	DefaultMaxDowntime = 5 * time.Second
	maxDirty           = 1024 // ranges in a record
)

// sentRound is how a round went.
type sentRound struct {
	Bytes int64 // of the disk
	Took  time.Duration
}

// enough reports whether another round would not make the rest smaller: the last one took
// so little time that what was written meanwhile takes about as little, or rounds do not
// shrink any more, or there were many.
func enough(rounds []sentRound, maxDowntime time.Duration) bool {
	if len(rounds) == 0 {
		return false
	}
	last := rounds[len(rounds)-1]
	if last.Took <= maxDowntime || len(rounds) >= maxRounds {
		return true
	}
	return len(rounds) > 1 && last.Bytes > rounds[len(rounds)-2].Bytes*4/5
}

// union is the ranges of both, ascending, not adjoining, cut at size.
func union(a, b []snapshot.Range, size int64) []snapshot.Range {
	all := slices.SortedFunc(slices.Values(slices.Concat(a, b)), func(x, y snapshot.Range) int {
		switch {
		case x.Offset < y.Offset:
			return -1
		case x.Offset > y.Offset:
			return 1
		}
		return 0
	})
	var merged []snapshot.Range
	for _, r := range all {
		r.Length = min(r.End(), size) - r.Offset
		if r.Length <= 0 {
			continue
		}
		if n := len(merged); n > 0 && r.Offset <= merged[n-1].End() {
			merged[n-1].Length = max(merged[n-1].End(), r.End()) - merged[n-1].Offset
			continue
		}
		merged = append(merged, r)
	}
	return merged
}

// coalesce covers ascending ranges with at most n, closing the smallest gaps.
func coalesce(ranges []snapshot.Range, n int) []snapshot.Range {
	if len(ranges) <= n {
		return ranges
	}
	gaps := make([]int64, 0, len(ranges)-1)
	for i := 1; i < len(ranges); i++ {
		gaps = append(gaps, ranges[i].Offset-ranges[i-1].End())
	}
	slices.Sort(gaps)
	limit, equal := gaps[len(ranges)-n-1], 0 // so many gaps are closed, of the last size only as many as are needed
	for _, g := range gaps[:len(ranges)-n] {
		if g == limit {
			equal++
		}
	}
	out := []snapshot.Range{ranges[0]}
	for _, r := range ranges[1:] {
		last := &out[len(out)-1]
		gap := r.Offset - last.End()
		if gap < limit || gap == limit && equal > 0 {
			if gap == limit {
				equal--
			}
			last.Length = r.End() - last.Offset
			continue
		}
		out = append(out, r)
	}
	return out
}

// after is what of ascending ranges lies at or beyond an offset.
func after(ranges []snapshot.Range, offset int64) []snapshot.Range {
	var rest []snapshot.Range
	for _, r := range ranges {
		if r.Offset < offset {
			r = snapshot.Range{Offset: offset, Length: r.End() - offset}
		}
		if r.Length > 0 {
			rest = append(rest, r)
		}
	}
	return rest
}

func total(ranges []snapshot.Range) (n int64) {
	for _, r := range ranges {
		n += r.Length
	}
	return n
}

// pause is how long to wait so that bytes sent in this time stay below a rate (bits per
// second, 0 unlimited).
func pause(sent int64, elapsed time.Duration, rate int64) time.Duration {
	if rate <= 0 {
		return 0
	}
	return max(0, time.Duration(float64(sent)*8/float64(rate)*float64(time.Second))-elapsed)
}
