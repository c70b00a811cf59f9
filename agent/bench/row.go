package bench

import (
	"math"
	"slices"
)

// Row is one measured figure.
type Row struct {
	ID     string    // of the target: "V1"
	What   string    // "create → first output"
	Unit   string    // "ms", "×", "servers/s"; may be ""
	Values []float64 // one per round
	Target Target
	Note   string // what a reader has to know to judge it
}

// Target is what a figure is to be. The zero value means that the figure is for
// comparison only.
type Target struct {
	Text string // "≤ 3"; "" means none
	Low  float64
	High float64
}

// AtMost is the target of values up to high.
func AtMost(high float64) Target {
	return Target{Text: "≤ " + number(high), Low: math.Inf(-1), High: high}
}

// AtLeast is the target of values from low.
func AtLeast(low float64) Target {
	return Target{Text: "≥ " + number(low), Low: low, High: math.Inf(1)}
}

// Between is the target of values from low to high.
func Between(low, high float64) Target {
	if low == high {
		return Target{Text: number(low), Low: low, High: high}
	}
	return Target{Text: number(low) + " – " + number(high), Low: low, High: high}
}

// Verdict says what became of a target.
type Verdict string

// The verdicts. A figure without a target has none.
const (
	Met    Verdict = "met"
	NotMet Verdict = "not met"
	None   Verdict = ""
)

// Verdict compares the median with the target.
func (r Row) Verdict() Verdict {
	if r.Target.Text == "" || len(r.Values) == 0 {
		return None
	}
	if m := r.Median(); m >= r.Target.Low && m <= r.Target.High {
		return Met
	}
	return NotMet
}

// Min is the smallest value; NaN if there is none.
func (r Row) Min() float64 {
	if len(r.Values) == 0 {
		return math.NaN()
	}
	return slices.Min(r.Values)
}

// Max is the largest value; NaN if there is none.
func (r Row) Max() float64 {
	if len(r.Values) == 0 {
		return math.NaN()
	}
	return slices.Max(r.Values)
}

// Median is the middle value, or the mean of the two in the middle; NaN if there is none.
func (r Row) Median() float64 { return median(r.Values) }

func median(values []float64) float64 {
	n := len(values)
	if n == 0 {
		return math.NaN()
	}
	sorted := slices.Sorted(slices.Values(values))
	return (sorted[(n-1)/2] + sorted[n/2]) / 2
}

// ratios divides round by round: a round that the machine's other work slowed down slowed
// both. Rounds that only one of them has are left out.
func ratios(of, by []float64) []float64 {
	var all []float64
	for i := range min(len(of), len(by)) {
		if by[i] != 0 {
			all = append(all, of[i]/by[i])
		}
	}
	return all
}
