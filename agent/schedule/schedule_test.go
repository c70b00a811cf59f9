package schedule

import (
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
)

func at(t testing.TB, text string) time.Time {
	t.Helper()
	got, err := time.Parse(time.RFC3339, text)
	if err != nil {
		t.Fatal(err)
	}
	return got
}

func must(t testing.TB, text string) Schedule {
	t.Helper()
	s, err := Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestParseRefuses(t *testing.T) {
	for text, want := range map[string]string{
		"":                              "0 fields",
		"* * *":                         "3 fields",
		"* * * * * *":                   "6 fields",
		"@daily":                        "1 fields",
		"TZ=Asia/Tokyo 0 1 * * *":       "6 fields",
		"TZ=Asia/Tokyo 1 * * *":         "UTC",
		"61 3 * * *":                    `minute "61"`,
		"0 24 * * *":                    `hour "24"`,
		"0 0 0 * *":                     `day of month "0"`,
		"0 0 32 * *":                    `day of month "32"`,
		"0 0 * 13 *":                    `month "13"`,
		"0 0 * * 8":                     `day of week "8"`,
		"*/0 * * * *":                   `minute "*/0"`,
		"0 x * * *":                     `hour "x"`,
		"-1 * * * *":                    `minute "-1"`,
		"0 0 30 2 *":                    "no such day",
		"0 0 31 4,6,9,11 *":             "no such day",
		"0 0 L * *":                     "day of month",
		"0 0 * * 1#2":                   "day of week",
		strings.Repeat("1,", 200) + "1": "characters",
	} {
		_, err := Parse(text)
		if !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), want) {
			t.Errorf("Parse(%q): %v, want an Invalid error with %q", text, err, want)
		}
	}
}

func TestNext(t *testing.T) {
	for _, c := range []struct{ text, after, want string }{
		{"* * * * *", "2026-01-01T00:00:00Z", "2026-01-01T00:01:00Z"},
		{"* * * * *", "2026-01-01T00:00:59.999Z", "2026-01-01T00:01:00Z"},
		{"30 2 * * *", "2026-01-01T02:30:00Z", "2026-01-02T02:30:00Z"},
		{"30 2 * * *", "2026-01-01T04:29:00+02:00", "2026-01-01T02:30:00Z"},
		{"  0   3 *  * 7", "2026-01-01T00:00:00Z", "2026-01-04T03:00:00Z"},
		{"0 0 * * MON-FRI", "2026-01-02T00:00:00Z", "2026-01-05T00:00:00Z"},
		{"*/15 8-10 * * *", "2026-01-01T10:45:00Z", "2026-01-02T08:00:00Z"},
		{"0 0 1 * MON", "2026-01-01T00:00:00Z", "2026-01-05T00:00:00Z"}, // either day
		{"0 0 29 2 *", "2096-02-29T00:00:00Z", "2104-02-29T00:00:00Z"},
		{"0 0 1 jan *", "2026-01-01T00:00:00Z", "2027-01-01T00:00:00Z"},
	} {
		if got := must(t, c.text).Next(at(t, c.after)); !got.Equal(at(t, c.want)) || got.Location() != time.UTC {
			t.Errorf("%q after %s: %s, want %s in UTC", c.text, c.after, got, c.want)
		}
	}
	if next := (Schedule{}).Next(at(t, "2026-01-01T00:00:00Z")); !next.IsZero() {
		t.Errorf("the zero schedule comes at %s", next)
	}
	if got := must(t, " 0  3 * * 7 ").String(); got != "0 3 * * 7" {
		t.Errorf("String: %q", got)
	}
}

func TestDue(t *testing.T) {
	for _, c := range []struct {
		why, text, last, now string
		want                 bool
	}{
		{"before", "0 3 * * *", "2026-01-01T03:00:05Z", "2026-01-02T02:59:59Z", false},
		{"at the moment", "0 3 * * *", "2026-01-01T03:00:05Z", "2026-01-02T03:00:00Z", true},
		{"missed for a week", "0 3 * * *", "2026-01-01T03:00:05Z", "2026-01-08T17:00:00Z", true},
		{"just made up for", "0 3 * * *", "2026-01-08T17:00:00Z", "2026-01-08T17:00:01Z", false},
		{"clock a little back, over the moment", "0 3 * * *", "2026-01-02T03:00:05Z", "2026-01-02T02:59:58Z", false},
		{"and at the moment again", "0 3 * * *", "2026-01-02T03:00:05Z", "2026-01-02T03:00:02Z", false},
		{"last run ten years ahead, at the moment", "0 3 * * *", "2036-01-02T03:00:05Z", "2026-01-02T03:00:02Z", true},
		{"last run ten years ahead, not at the moment", "0 3 * * *", "2036-01-02T03:00:05Z", "2026-01-02T12:00:00Z", false},
		{"clock began in 1970", "0 3 * * *", "1970-01-01T00:00:00Z", "2026-01-02T12:00:00Z", true},
	} {
		if got := Due(must(t, c.text), at(t, c.last), at(t, c.now)); got != c.want {
			t.Errorf("%s: due %v, want %v", c.why, got, c.want)
		}
	}
	if Due(must(t, "* * * * *"), time.Time{}, at(t, "2026-01-01T00:00:00Z")) || Due(Schedule{}, at(t, "2026-01-01T00:00:00Z"), at(t, "2036-01-01T00:00:00Z")) {
		t.Error("due without a beginning, or without a schedule")
	}
}

// However the clock jumps, two runs at one clock reading are never due, and a schedule runs
// again within its period and the drift once the clock goes steadily.
func TestDueUnderJumps(t *testing.T) {
	rapid.Check(t, func(r *rapid.T) {
		period := rapid.SampledFrom([]int{1, 7, 60}).Draw(r, "period")
		text := map[int]string{1: "* * * * *", 7: "*/7 * * * *", 60: "0 * * * *"}[period]
		s := must(t, text)
		now := at(t, "2026-01-01T00:00:30Z")
		last := now
		for range rapid.IntRange(0, 30).Draw(r, "jumps") {
			now = now.Add(time.Duration(rapid.IntRange(-3*86400, 3*86400).Draw(r, "jump")) * time.Second)
			if Due(s, last, now) {
				last = now
				if Due(s, last, now) {
					r.Fatalf("%s: due twice at %s", text, now)
				}
			}
		}
		ran := false
		for end := now.Add(drift + time.Duration(period)*time.Minute + time.Minute); now.Before(end); now = now.Add(10 * time.Second) {
			if Due(s, last, now) {
				last, ran = now, true
			}
		}
		if !ran {
			r.Fatalf("%s: no run within its period and the drift: last %s, now %s", text, last, now)
		}
	})
}

func FuzzParse(f *testing.F) {
	for _, seed := range []string{"30 2 * * *", "*/5 0-23/2 1,15 jan-mar MON", "0 0 29 2 *", "TZ=x 1 1 1 1", "? ? ? ? ?", "22-2 * * * *"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		s, err := Parse(text)
		if err != nil {
			if !fault.Is(err, fault.Invalid) {
				t.Fatalf("%q: %v is not Invalid", text, err)
			}
			return
		}
		now := time.Date(2026, 1, 1, 0, 0, 30, 0, time.UTC)
		if next := s.Next(now); !next.After(now) || next.Second() != 0 {
			t.Fatalf("%q: next after %s is %s", text, now, next)
		}
		if again, err := Parse(s.String()); err != nil || !again.Next(now).Equal(s.Next(now)) {
			t.Fatalf("%q: its own text %q is another schedule: %v", text, s, err)
		}
	})
}
