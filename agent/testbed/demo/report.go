package demo

import (
	"fmt"
	"io"
	"strings"
	"time"
)

// report prints the demo and remembers what failed.
type report struct {
	out     io.Writer
	chapter int
	started time.Time
	failed  []string
}

// measured is one figure of one limit.
type measured struct {
	what     string // "CPU of debian-alpha"
	unit     string // "cores"
	asked    float64
	got      float64
	low      float64 // bounds of got ÷ asked
	high     float64
	measured string // how: "agent's counter over 10 s"
}

// within reports whether the figure is inside its bounds.
func (m measured) within() bool {
	ratio := m.got / m.asked
	return ratio >= m.low && ratio <= m.high
}

// String is one line: what, asked, measured, share and bounds, verdict.
func (m measured) String() string {
	verdict := "ok"
	if !m.within() {
		verdict = "OUT OF BOUNDS"
	}
	return fmt.Sprintf("  %-34s asked %10s  measured %10s  = %6.2f %% (%s)  %-13s %s", m.what, amount(m.asked, m.unit), amount(m.got, m.unit),
		100*m.got/m.asked, bounds(m.low, m.high), verdict, m.measured)
}

func bounds(low, high float64) string {
	return fmt.Sprintf("%.4g … %.4g %%", 100*low, 100*high)
}

// amount is a number with at most two decimals and its unit.
func amount(v float64, unit string) string {
	text := strings.TrimRight(strings.TrimRight(fmt.Sprintf("%.2f", v), "0"), ".")
	if unit == "" {
		return text
	}
	return text + " " + unit
}

// title begins a chapter.
func (r *report) title(format string, args ...any) {
	r.chapter++
	fmt.Fprintf(r.out, "\n%d. %s   [%.0f s]\n", r.chapter, fmt.Sprintf(format, args...), time.Since(r.started).Seconds())
}

// say prints a line of the chapter.
func (r *report) say(format string, args ...any) {
	fmt.Fprintf(r.out, "  %s\n", fmt.Sprintf(format, args...))
}

// show prints a figure and remembers it if it is out of its bounds.
func (r *report) show(m measured) {
	fmt.Fprintln(r.out, m)
	if !m.within() {
		r.failed = append(r.failed, m.what)
	}
}

// check prints whether something that must be so is so.
func (r *report) check(ok bool, format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	if ok {
		r.say("%s: ok", text)
		return
	}
	r.say("%s: FAILED", text)
	r.failed = append(r.failed, text)
}

// end prints the verdict; the error names what failed.
func (r *report) end() error {
	fmt.Fprintf(r.out, "\n")
	if len(r.failed) > 0 {
		return fmt.Errorf("%d of the demo's checks failed: %s", len(r.failed), strings.Join(r.failed, "; "))
	}
	fmt.Fprintf(r.out, "All checks passed in %.0f s.\n", time.Since(r.started).Seconds())
	return nil
}
