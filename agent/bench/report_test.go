package bench

import (
	"encoding/json"
	"errors"
	"math"
	"slices"
	"testing"
)

func TestMedian(t *testing.T) {
	for _, tt := range []struct {
		values []float64
		want   float64
	}{
		{[]float64{3}, 3},
		{[]float64{3, 1, 2}, 2},
		{[]float64{4, 1, 2, 3}, 2.5},
	} {
		given := slices.Clone(tt.values)
		if got := median(tt.values); got != tt.want || !slices.Equal(given, tt.values) {
			t.Errorf("median of %v is %v, values then %v, want %v and unchanged values", given, got, tt.values, tt.want)
		}
	}
	if got := median(nil); !math.IsNaN(got) {
		t.Errorf("median of nothing is %v, want NaN", got)
	}
}

func TestVerdict(t *testing.T) {
	for _, tt := range []struct {
		target Target
		values []float64
		want   Verdict
	}{
		{Target{}, []float64{1}, None},
		{AtMost(3), nil, None},
		{AtMost(3), []float64{1, 3, 100}, Met}, // the median decides
		{AtMost(3), []float64{1, 3.01, 100}, NotMet},
		{AtLeast(10), []float64{10}, Met},
		{AtLeast(10), []float64{9.99}, NotMet},
		{Between(0.94, 0.96), []float64{0.93}, NotMet},
		{Between(0.94, 0.96), []float64{0.97}, NotMet},
		{Between(0, 0), []float64{0}, Met},
	} {
		if got := (Row{Values: tt.values, Target: tt.target}).Verdict(); got != tt.want {
			t.Errorf("%v against %q: %q, want %q", tt.values, tt.target.Text, got, tt.want)
		}
	}
}

func TestRatiosAreOfTheSameRound(t *testing.T) {
	if got := ratios([]float64{10, 30, 50}, []float64{5, 10}); !slices.Equal(got, []float64{2, 3}) {
		t.Errorf("ratios are %v, want [2 3]", got)
	}
	if got := ratios([]float64{10, 30}, []float64{0, 10}); !slices.Equal(got, []float64{3}) {
		t.Errorf("ratios are %v: nothing is divided by zero", got)
	}
}

var example = Report{
	Machine: Machine{Cores: 2, Memory: 24 << 30, Kernel: "6.1", Cgroups: "hybrid", Pool: "xfs", Runtime: "runc 1.1.5", Load: "1.00"},
	Rows: []Row{
		{ID: "V1", What: "create → first output", Unit: "ms", Values: []float64{90, 120.4, 88}, Target: AtMost(100)},
		{ID: "V1", What: "÷ floor", Unit: "×", Values: []float64{3.25}, Target: AtMost(3), Note: "a|b"},
		{ID: "V3", What: "failures", Values: []float64{0}, Target: Between(0, 0)},
	},
	Failed: []Failure{{"V2", errors.New("no image")}},
}

func TestText(t *testing.T) {
	const want = `2 cores, 24 GiB memory, Linux 6.1, cgroups hybrid, pool xfs, runc 1.1.5, LXD not installed; load average 1.00

    figure                  min  median   max  unit  n  target
V1  create → first output    88      90   120  ms    3  ≤ 100   met
V1  ÷ floor                3.25    3.25  3.25  ×     1  ≤ 3     not met
    (a|b)

V3  failures                  0       0     0        1  0       met

V2 could not be measured: no image
`
	if got := example.Text(); got != want {
		t.Errorf("text is\n%s\nwant\n%s", got, want)
	}
}

func TestMarkdown(t *testing.T) {
	const want = `2 cores, 24 GiB memory, Linux 6.1, cgroups hybrid, pool xfs, runc 1.1.5, LXD not installed; load average 1.00.

| # | Figure | min | median | max | unit | n | target | |
|---|---|--:|--:|--:|---|--:|---|---|
| V1 | create → first output | 88 | 90 | 120 | ms | 3 | ≤ 100 | met |
| V1 | ÷ floor (a\|b) | 3.25 | 3.25 | 3.25 | × | 1 | ≤ 3 | not met |
| V3 | failures | 0 | 0 | 0 |  | 1 | 0 | met |

V2 could not be measured: no image
`
	if got := example.Markdown(); got != want {
		t.Errorf("markdown is\n%s\nwant\n%s", got, want)
	}
}

func TestJSON(t *testing.T) {
	text, err := example.JSON()
	if err != nil {
		t.Fatal(err)
	}
	var got struct {
		Rows []struct {
			ID      string
			Median  float64
			Verdict string
		}
		Failed []struct{ ID, Error string }
	}
	if err := json.Unmarshal(text, &got); err != nil {
		t.Fatal(err)
	}
	if len(got.Rows) != 3 || got.Rows[0].Median != 90 || got.Rows[1].Verdict != "not met" || len(got.Failed) != 1 || got.Failed[0].Error != "no image" {
		t.Errorf("JSON says %+v", got)
	}
}

func TestNumber(t *testing.T) {
	for v, want := range map[float64]string{0: "0", 0.0305: "0.030", 1.234: "1.23", 12.34: "12.3", 123.4: "123", 1000: "1000", 100000.4: "100000"} {
		if got := number(v); got != want {
			t.Errorf("number(%v) = %q, want %q", v, got, want)
		}
	}
}
