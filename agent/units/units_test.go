package units

import (
	"math"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"
)

func TestParse(t *testing.T) {
	t.Parallel()
	bytes := func(s string) (int64, error) { return ParseBytes(s) }
	for _, c := range []struct {
		parse func(string) (int64, error)
		in    string
		want  int64
		bad   string // part of the error, "" means none
	}{
		{bytes, "0", 0, ""},
		{bytes, "4096", 4096, ""},
		{bytes, "1B", 1, ""},
		{bytes, "2GiB", 2 << 30, ""},
		{bytes, "1.5GiB", 3 << 29, ""},
		{bytes, "0.5KiB", 512, ""},
		{bytes, "10GB", 10e9, ""},
		{bytes, "1KB", 1000, ""},
		{bytes, "1kB", 1000, ""},
		{bytes, "8191PiB", 8191 << 50, ""},
		{bytes, "9223372036854775807", math.MaxInt64, ""},
		{bytes, "9223372036854775808", 0, "larger than"},
		{bytes, "8192PiB", 0, "larger than"},
		{bytes, "0.3KiB", 0, "too many decimals"},
		{bytes, "2 GiB", 0, "unit"},
		{bytes, "2gb", 0, "unit"},
		{bytes, "2Gb", 0, "unit"},
		{bytes, "2G", 0, "unit"},
		{bytes, "", 0, "number"},
		{bytes, "GiB", 0, "number"},
		{bytes, "-1GiB", 0, "number"},
		{bytes, "+1GiB", 0, "number"},
		{bytes, ".5GiB", 0, "number"},
		{bytes, "5.GiB", 0, "number"},
		{bytes, "1.2.3GiB", 0, "number"},
		{bytes, "1e9", 0, "unit"},
		{bytes, "0x10", 0, "unit"},
		{bytes, "1/2GiB", 0, "unit"},
		{bytes, strings.Repeat("1", 40), 0, "longer than"},
		{ParseBitrate, "100mbit", 100e6, ""},
		{ParseBitrate, "1.5gbit", 15e8, ""},
		{ParseBitrate, "0", 0, ""},
		{ParseBitrate, "1.5bit", 0, "too many decimals"},
		{ParseBitrate, "100Mbit", 0, "unit"},
		{ParseBitrate, "1GiB", 0, "unit"},
		{ParseByteRate, "200MiB", 200 << 20, ""},
		{ParseByteRate, "200MiB/s", 200 << 20, ""},
		{ParseByteRate, "200mbit", 0, "unit"},
		{ParseByteRate, "/s", 0, "number"},
		{ParseCores, "1.5", 1500, ""},
		{ParseCores, "2", 2000, ""},
		{ParseCores, "0.001", 1, ""},
		{ParseCores, "0.0001", 0, "too many decimals"},
		{ParseCores, "2c", 0, "unit"},
		{ParsePercent, "10%", 1000, ""},
		{ParsePercent, "2.5%", 250, ""},
		{ParsePercent, "100%", 10000, ""},
		{ParsePercent, "101%", 0, "more than 100"},
		{ParsePercent, "10", 0, "missing"},
		{ParsePercent, "%", 0, "number"},
	} {
		got, err := c.parse(c.in)
		if c.bad == "" && (err != nil || got != c.want) {
			t.Errorf("parse %q: got %d, %v; want %d", c.in, got, err, c.want)
		}
		if c.bad != "" && (err == nil || !strings.Contains(err.Error(), c.bad)) {
			t.Errorf("parse %q: got %d, %v; want an error with %q", c.in, got, err, c.bad)
		}
	}
}

func TestFormat(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ got, want string }{
		{FormatBytes(0), "0"},
		{FormatBytes(1), "1B"},
		{FormatBytes(2 << 30), "2GiB"},
		{FormatBytes(3 << 29), "1536MiB"},
		{FormatBytes(1000), "1kB"},
		{FormatBytes(1e12), "1TB"},
		{FormatBytes(1025), "1025B"},
		{FormatBitrate(15e8), "1500mbit"},
		{FormatBitrate(1), "1bit"},
		{FormatByteRate(200 << 20), "200MiB/s"},
		{FormatByteRate(0), "0"},
		{FormatCores(1500), "1.5"},
		{FormatCores(2000), "2"},
		{FormatCores(1), "0.001"},
		{FormatPercent(250), "2.5%"},
		{FormatPercent(1000), "10%"},
		{FormatDuration(0), "0s"},
		{FormatDuration(10 * time.Second), "10s"},
		{FormatDuration(20 * time.Minute), "20m"},
		{FormatDuration(10 * time.Hour), "10h"},
		{FormatDuration(90 * time.Second), "1m30s"},
		{FormatDuration(time.Hour + time.Second), "1h0m1s"},
	} {
		if c.got != c.want {
			t.Errorf("got %q, want %q", c.got, c.want)
		}
	}
}

func TestDuration(t *testing.T) {
	t.Parallel()
	if d, err := ParseDuration("1h30m"); err != nil || d != 90*time.Minute {
		t.Errorf("got %v, %v", d, err)
	}
	for _, bad := range []string{"", "10", "-1s", "1 s", "1d", "x"} {
		if d, err := ParseDuration(bad); err == nil {
			t.Errorf("ParseDuration(%q) = %v, want an error", bad, d)
		}
	}
}

// What is formatted parses back to the same amount, for every amount and unit family.
func TestRoundTrip(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.Int64Range(0, math.MaxInt64).Draw(t, "n")
		for name, f := range map[string]struct {
			format func(int64) string
			parse  func(string) (int64, error)
		}{
			"bytes":     {FormatBytes, ParseBytes},
			"bit rate":  {FormatBitrate, ParseBitrate},
			"byte rate": {FormatByteRate, ParseByteRate},
			"cores":     {FormatCores, ParseCores},
		} {
			text := f.format(n)
			if back, err := f.parse(text); err != nil || back != n {
				t.Fatalf("%s %d → %q → %d, %v", name, n, text, back, err)
			}
		}
	})
}
