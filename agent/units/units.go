// Package units reads and writes amounts the way people write them in HCL:
// "2GiB", "100mbit", "200MiB/s", "1.5" cores, "10%", "90s".
//
// Every parser is exact (no floating point): a text either is a whole number of the
// base unit or an error that shows a right one. Every formatter is canonical: equal
// amounts give equal texts, and parsing a formatted amount gives the amount back.
// No parser takes a sign, white space, an exponent or more than 32 characters.
package units

import (
	"fmt"
	"math"
	"math/big"
	"strconv"
	"strings"
	"time"
)

// maxText bounds what a parser looks at.
const maxText = 32

type unit struct {
	name string
	size int64
}

// Sizes, larger ones first. Binary and decimal units live together: "10GiB" and "10GB"
// are both what they say.
var byteUnits = []unit{
	{"PiB", 1 << 50}, {"PB", 1e15}, {"TiB", 1 << 40}, {"TB", 1e12}, {"GiB", 1 << 30}, {"GB", 1e9},
	{"MiB", 1 << 20}, {"MB", 1e6}, {"KiB", 1 << 10}, {"kB", 1e3}, {"B", 1},
}

var bitUnits = []unit{{"tbit", 1e12}, {"gbit", 1e9}, {"mbit", 1e6}, {"kbit", 1e3}, {"bit", 1}}

// ParseBytes reads a size in bytes: "2GiB", "1.5GiB", "500MB", "4096B" or a plain number of bytes.
func ParseBytes(s string) (int64, error) {
	n, err := parse(s, byteUnits, 1)
	if err != nil {
		return 0, fmt.Errorf("%q is not a size: %w; write a number and B, KiB, MiB, GiB or TiB, such as \"2GiB\"", clip(s), err)
	}
	return n, nil
}

// FormatBytes writes a size with the largest unit that divides it: 2147483648 is "2GiB". Zero is "0".
func FormatBytes(n int64) string { return format(n, byteUnits) }

// ParseBitrate reads bits per second: "100mbit", "1.5gbit" (decimal units) or a plain number.
func ParseBitrate(s string) (int64, error) {
	n, err := parse(s, bitUnits, 1)
	if err != nil {
		return 0, fmt.Errorf("%q is not a bit rate: %w; write a number and bit, kbit, mbit or gbit, such as \"100mbit\"", clip(s), err)
	}
	return n, nil
}

// FormatBitrate writes bits per second with the largest unit that divides it: "1500mbit". Zero is "0".
func FormatBitrate(n int64) string { return format(n, bitUnits) }

// ParseByteRate reads bytes per second: "200MiB" or "200MiB/s".
func ParseByteRate(s string) (int64, error) {
	n, err := parse(strings.TrimSuffix(s, "/s"), byteUnits, 1)
	if err != nil {
		return 0, fmt.Errorf("%q is not a byte rate: %w; write a number and B, KiB, MiB or GiB, such as \"200MiB\" or \"200MiB/s\"", clip(s), err)
	}
	return n, nil
}

// FormatByteRate writes bytes per second as FormatBytes does, with "/s". Zero is "0".
func FormatByteRate(n int64) string {
	if n == 0 {
		return "0"
	}
	return FormatBytes(n) + "/s"
}

// ParseCores reads processor cores, "2" or "1.5", as thousandths of a core: 1500.
func ParseCores(s string) (int64, error) {
	n, err := parse(s, nil, 1000)
	if err != nil {
		return 0, fmt.Errorf("%q is not a number of cores: %w; write a number with at most three decimals, such as \"1.5\"", clip(s), err)
	}
	return n, nil
}

// FormatCores writes thousandths of a core as cores: 1500 is "1.5".
func FormatCores(milli int64) string { return decimal(milli, 1000) }

// ParsePercent reads "10%" or "2.5%" as hundredths of a percent: 1000, 250.
// More than 100 % is an error.
func ParsePercent(s string) (int64, error) {
	number, found := strings.CutSuffix(s, "%")
	n, err := parse(number, nil, 100)
	switch {
	case err == nil && !found:
		err = fmt.Errorf("the %% sign is missing")
	case err == nil && n > 100*100:
		err = fmt.Errorf("it is more than 100%%")
	}
	if err != nil {
		return 0, fmt.Errorf("%q is not a percentage: %w; write a number from 0 to 100 and %%, such as \"10%%\"", clip(s), err)
	}
	return n, nil
}

// FormatPercent writes hundredths of a percent: 250 is "2.5%".
func FormatPercent(n int64) string { return decimal(n, 100) + "%" }

// ParseDuration reads "10s", "1h30m", "500ms"; a negative duration is an error.
func ParseDuration(s string) (time.Duration, error) {
	d, err := time.ParseDuration(s)
	if err != nil || d < 0 || len(s) > maxText {
		return 0, fmt.Errorf("%q is not a duration; write numbers and ms, s, m or h, such as \"90s\" or \"1h30m\"", clip(s))
	}
	return d, nil
}

// FormatDuration writes a duration without parts that are zero: "1h", "1m30s". Zero is "0s".
func FormatDuration(d time.Duration) string {
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}

// parse reads digits, at most one point, and a unit's name, and returns the amount times scale.
func parse(s string, units []unit, scale int64) (int64, error) {
	if len(s) > maxText {
		return 0, fmt.Errorf("it is longer than %d characters", maxText)
	}
	end := strings.IndexFunc(s, func(r rune) bool { return (r < '0' || r > '9') && r != '.' })
	number, name := s, ""
	if end >= 0 {
		number, name = s[:end], s[end:]
	}
	if number == "" || strings.HasPrefix(number, ".") || strings.HasSuffix(number, ".") || strings.Count(number, ".") > 1 {
		return 0, fmt.Errorf("it does not start with a number")
	}
	size, ok := sizeOf(name, units)
	if !ok {
		return 0, fmt.Errorf("unit %q is unknown", name)
	}
	v, ok := new(big.Rat).SetString(number)
	if !ok { // can't happen: digits and one point between digits
		return 0, fmt.Errorf("it does not start with a number")
	}
	v.Mul(v, new(big.Rat).SetInt(new(big.Int).Mul(big.NewInt(size), big.NewInt(scale))))
	if !v.IsInt() {
		return 0, fmt.Errorf("it has too many decimals")
	}
	if !v.Num().IsInt64() {
		return 0, fmt.Errorf("it is larger than %d", int64(math.MaxInt64)/scale)
	}
	return v.Num().Int64(), nil
}

func sizeOf(name string, units []unit) (int64, bool) {
	if name == "" {
		return 1, true
	}
	if name == "KB" { // often written so
		name = "kB"
	}
	for _, u := range units {
		if u.name == name {
			return u.size, true
		}
	}
	return 0, false
}

func format(n int64, units []unit) string {
	if n == 0 {
		return "0"
	}
	for _, u := range units {
		if n%u.size == 0 {
			return strconv.FormatInt(n/u.size, 10) + u.name
		}
	}
	return strconv.FormatInt(n, 10)
}

// decimal writes n/scale, scale a power of ten, without trailing zeros. n ≥ 0.
func decimal(n, scale int64) string {
	s := strconv.FormatInt(n/scale, 10)
	rest := n % scale
	if rest == 0 {
		return s
	}
	fraction := strconv.FormatInt(scale+rest, 10)[1:] // leading zeros kept
	return s + "." + strings.TrimRight(fraction, "0")
}

func clip(s string) string {
	if len(s) > maxText {
		return s[:maxText] + "…"
	}
	return s
}
