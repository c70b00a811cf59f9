package bench

import (
	"encoding/json"
	"fmt"
	"math"
	"strconv"
	"strings"
	"unicode/utf8"
)

// Report is what a run found.
type Report struct {
	Machine Machine
	Rows    []Row
	Failed  []Failure
}

// Machine describes what the benchmarks ran on.
type Machine struct {
	Cores   int    `json:"cores"`
	Memory  int64  `json:"memory_bytes"`
	Kernel  string `json:"kernel"`
	Cgroups string `json:"cgroups"`
	Pool    string `json:"pool"`         // the file system of the disks
	Runtime string `json:"runtime"`      // "runc version 1.1.5"
	LXD     string `json:"lxd"`          // its version, "" if it is not there
	Load    string `json:"load_average"` // when the run began and when it ended
}

// Failure is a benchmark that could not be measured.
type Failure struct {
	ID  string
	Err error
}

func (m Machine) String() string {
	lxd := "not installed"
	if m.LXD != "" {
		lxd = m.LXD
	}
	return fmt.Sprintf("%d cores, %d GiB memory, Linux %s, cgroups %s, pool %s, %s, LXD %s; load average %s",
		m.Cores, (m.Memory+1<<29)>>30, m.Kernel, m.Cgroups, m.Pool, m.Runtime, lxd, m.Load)
}

// columns of the table.
var columns = []string{"", "figure", "min", "median", "max", "unit", "n", "target", ""}

// cells is a row as text.
func (r Row) cells() []string {
	return []string{r.ID, r.What, number(r.Min()), number(r.Median()), number(r.Max()), r.Unit, strconv.Itoa(len(r.Values)), r.Target.Text, string(r.Verdict())}
}

// rightAligned columns hold numbers.
var rightAligned = map[int]bool{2: true, 3: true, 4: true, 6: true}

// Text is the report for a terminal.
func (r Report) Text() string {
	widths := make([]int, len(columns))
	rows := [][]string{columns}
	for _, row := range r.Rows {
		rows = append(rows, row.cells())
	}
	for _, cells := range rows {
		for i, c := range cells {
			widths[i] = max(widths[i], utf8.RuneCountInString(c))
		}
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%s\n\n", r.Machine)
	for n, cells := range rows {
		if n > 1 && r.Rows[n-1].ID != r.Rows[n-2].ID {
			b.WriteByte('\n')
		}
		var line strings.Builder
		for i, c := range cells {
			pad := strings.Repeat(" ", widths[i]-utf8.RuneCountInString(c))
			if rightAligned[i] {
				line.WriteString(pad + c + "  ")
			} else {
				line.WriteString(c + pad + "  ")
			}
		}
		b.WriteString(strings.TrimRight(line.String(), " ") + "\n")
		if n > 0 && r.Rows[n-1].Note != "" {
			fmt.Fprintf(&b, "%s  (%s)\n", strings.Repeat(" ", widths[0]), r.Rows[n-1].Note)
		}
	}
	for _, f := range r.Failed {
		fmt.Fprintf(&b, "\n%s could not be measured: %v\n", f.ID, f.Err)
	}
	return b.String()
}

// Markdown is the report for docs/BENCHMARKS.md.
func (r Report) Markdown() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s.\n\n| # | Figure | min | median | max | unit | n | target | |\n|---|---|--:|--:|--:|---|--:|---|---|\n", r.Machine)
	for _, row := range r.Rows {
		cells := row.cells()
		if row.Note != "" {
			cells[1] += " (" + row.Note + ")"
		}
		for i, c := range cells {
			cells[i] = strings.ReplaceAll(c, "|", `\|`)
		}
		fmt.Fprintf(&b, "| %s |\n", strings.Join(cells, " | "))
	}
	for _, f := range r.Failed {
		fmt.Fprintf(&b, "\n%s could not be measured: %v\n", f.ID, f.Err)
	}
	return b.String()
}

// JSON is the report for programs.
func (r Report) JSON() ([]byte, error) {
	type row struct {
		ID      string    `json:"id"`
		What    string    `json:"figure"`
		Unit    string    `json:"unit,omitempty"`
		Min     float64   `json:"min"`
		Median  float64   `json:"median"`
		Max     float64   `json:"max"`
		Values  []float64 `json:"values"`
		Target  string    `json:"target,omitempty"`
		Verdict Verdict   `json:"verdict,omitempty"`
		Note    string    `json:"note,omitempty"`
	}
	type failure struct {
		ID    string `json:"id"`
		Error string `json:"error"`
	}
	out := struct {
		Machine Machine   `json:"machine"`
		Rows    []row     `json:"rows"`
		Failed  []failure `json:"failed,omitempty"`
	}{Machine: r.Machine, Rows: []row{}}
	for _, x := range r.Rows {
		if len(x.Values) == 0 {
			continue // JSON has no NaN
		}
		out.Rows = append(out.Rows, row{x.ID, x.What, x.Unit, x.Min(), x.Median(), x.Max(), x.Values, x.Target.Text, x.Verdict(), x.Note})
	}
	for _, f := range r.Failed {
		out.Failed = append(out.Failed, failure{f.ID, f.Err.Error()})
	}
	return json.MarshalIndent(out, "", "  ")
}

// number prints three significant digits, and no more zeros than are known.
func number(v float64) string {
	switch a := math.Abs(v); {
	case math.IsNaN(v):
		return "–"
	case v == math.Trunc(v) && a < 1e15:
		return strconv.FormatFloat(v, 'f', 0, 64)
	case a >= 100:
		return strconv.FormatFloat(v, 'f', 0, 64)
	case a >= 10:
		return strconv.FormatFloat(v, 'f', 1, 64)
	case a >= 1:
		return strconv.FormatFloat(v, 'f', 2, 64)
	default:
		return strconv.FormatFloat(v, 'f', 3, 64)
	}
}
