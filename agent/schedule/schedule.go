// Package schedule decides when something is due and which copies of it are kept. It is
// pure: times come in, decisions go out.
//
//	s, err := schedule.Parse("30 2 * * *")       // half past two every night, UTC
//	if schedule.Due(s, lastRun, now) { … }       // asked at least every few minutes
//	for _, id := range keep.Remove(copies, now) { … }
package schedule

import (
	"fmt"
	"strings"
	"time"

	cron "github.com/netresearch/go-cron"

	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
)

const (
	// maxText bounds what a parser looks at: every minute of an hour, written out, fits.
	maxText = 256
	// drift is how far behind the last run a clock may be that was merely put right. A
	// schedule waits that long for it; a clock further back makes the last run's time worthless.
	drift = time.Hour
	// searchYears is how far ahead a moment is looked for: the 29th of February is eight
	// years away around 2100.
	searchYears = 8
)

// Schedule is a cron schedule in UTC, to the minute. The zero value never comes.
type Schedule struct {
	text string
	spec cron.Schedule
}

// If both the day of the month and that of the week are restricted, either will do, as
// cron has it in its manual.
var parser = cron.MustNewParser(cron.Minute | cron.Hour | cron.Dom | cron.Month | cron.Dow | cron.DowOrDom).WithMaxSearchYears(searchYears)

// fields are the five fields in their order.
var fields = [...]string{"minute", "hour", "day of month", "month", "day of week"}

// Parse reads a schedule of five fields: minute, hour, day of month, month, day of week,
// each with *, lists, ranges and steps, months and days also by name. An error is
// fault.Invalid and names the field that is wrong; so is a schedule that never comes.
func Parse(text string) (Schedule, error) {
	if len(text) > maxText {
		return Schedule{}, fault.New(fault.Invalid, "schedule of %d characters: at most %d are allowed", len(text), maxText)
	}
	parts := strings.Fields(text)
	if len(parts) != len(fields) {
		return Schedule{}, fault.New(fault.Invalid, "schedule %q has %d fields, want 5: minute, hour, day of month, month, day of week, such as \"30 2 * * *\" (times are UTC)", text, len(parts))
	}
	for i, part := range parts {
		if err := checkField(i, part); err != nil {
			return Schedule{}, fault.New(fault.Invalid, "schedule %q: %s %q: %w", text, fields[i], part, err)
		}
	}
	spec, err := parser.Parse(strings.Join(parts, " "))
	if err != nil {
		return Schedule{}, fault.New(fault.Invalid, "schedule %q: %w", text, err)
	}
	s := Schedule{text: strings.Join(parts, " "), spec: spec}
	// Any year will do for the question whether it ever comes: eight years hold every date.
	if s.Next(time.Date(2024, 1, 1, 0, 0, 0, 0, time.UTC)).IsZero() {
		return Schedule{}, fault.New(fault.Invalid, "schedule %q: there is no such day in any year", text)
	}
	return s, nil
}

// checkField parses a field as if the others were *, so that an error is about this one.
func checkField(i int, part string) error {
	if strings.Contains(part, "=") { // the parser takes a time zone in front
		return fmt.Errorf("a time zone can't be set, times are UTC")
	}
	alone := [...]string{"*", "*", "*", "*", "*"}
	alone[i] = part
	_, err := parser.Parse(strings.Join(alone[:], " "))
	return err
}

// String is the schedule as it was written, spaces made single.
func (s Schedule) String() string { return s.text }

// Next is the first moment of the schedule after a time, in UTC; zero for the zero Schedule.
func (s Schedule) Next(after time.Time) time.Time {
	if s.spec == nil {
		return time.Time{}
	}
	return s.spec.Next(after.UTC())
}

// Due reports whether a run is due now. last is when the last one began or, if there was
// none, when the schedule was set; a zero last is never due. After a run last is to be now:
// whatever was missed before counts as one run.
//
// Clocks jump. One that went forward makes one run, as being away does. One that is at most
// an hour behind last is waited for. One further back says that last came from a wrong
// clock: then a run is due if one was due within the last hour by the clock as it is.
func Due(s Schedule, last, now time.Time) bool {
	if last.IsZero() {
		return false
	}
	if last.After(now.Add(drift)) {
		last = now.Add(-drift)
	}
	next := s.Next(last)
	return !next.IsZero() && !next.After(now)
}
