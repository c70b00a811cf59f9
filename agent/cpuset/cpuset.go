// Package cpuset is sets of processors, and who of a host's servers may use which.
//
// A server with pinned cores has them alone. All others share what is left:
//
//	host, _ := cpuset.Parse("0-7")
//	sets, err := cpuset.Share(host, map[string]string{"db": "2-3", "web": "", "ci": ""})
//	// db: 2-3, web and ci: 0-1,4-7
//
// The result goes into every server's LimitSet.CPU.Pin, whether or not that server
// itself changed: pinning one moves all others. Set the limits of those that lose
// cores before those that gain them (see [Order]).
package cpuset

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
)

// MaxCPU bounds processor numbers: the kernel's own limit is 8192.
const MaxCPU = 8191

// Set is processor numbers in ascending order, each once.
type Set []int

// Parse reads the kernel's list format: "0-3,8". White space around it and an empty
// list are fine. What is wrong otherwise is fault.Invalid.
func Parse(list string) (Set, error) {
	list = strings.TrimSpace(list)
	if list == "" {
		return nil, nil
	}
	var s Set
	for part := range strings.SplitSeq(list, ",") {
		first, last, isRange := strings.Cut(strings.TrimSpace(part), "-")
		lo, err := number(first)
		if err != nil {
			return nil, fault.New(fault.Invalid, "parse CPU list %q: %w", list, err)
		}
		hi := lo
		if isRange {
			if hi, err = number(last); err != nil {
				return nil, fault.New(fault.Invalid, "parse CPU list %q: %w", list, err)
			}
		}
		if hi < lo {
			return nil, fault.New(fault.Invalid, "parse CPU list %q: range %q runs backwards", list, part)
		}
		for cpu := lo; cpu <= hi; cpu++ {
			s = append(s, cpu)
		}
	}
	slices.Sort(s)
	return slices.Compact(s), nil
}

func number(s string) (int, error) {
	n, err := strconv.ParseUint(s, 10, 16)
	if err != nil || n > MaxCPU || (len(s) > 1 && s[0] == '0') {
		return 0, fmt.Errorf("%q is no CPU number (0 to %d)", s, MaxCPU)
	}
	return int(n), nil
}

// String is the set as the kernel prints it: "0-3,8".
func (s Set) String() string {
	var b strings.Builder
	for i := 0; i < len(s); {
		j := i
		for j+1 < len(s) && s[j+1] == s[j]+1 {
			j++
		}
		if b.Len() > 0 {
			b.WriteByte(',')
		}
		b.WriteString(strconv.Itoa(s[i]))
		if j > i {
			b.WriteByte('-')
			b.WriteString(strconv.Itoa(s[j]))
		}
		i = j + 1
	}
	return b.String()
}

// Minus is what is in s and not in o.
func (s Set) Minus(o Set) Set {
	var out Set
	for _, cpu := range s {
		if !o.Has(cpu) {
			out = append(out, cpu)
		}
	}
	return out
}

// And is what is in both.
func (s Set) And(o Set) Set {
	var out Set
	for _, cpu := range s {
		if o.Has(cpu) {
			out = append(out, cpu)
		}
	}
	return out
}

// Or is what is in either.
func (s Set) Or(o Set) Set {
	out := slices.Concat(s, o)
	slices.Sort(out)
	return slices.Compact(out)
}

// Has reports whether the processor is in the set.
func (s Set) Has(cpu int) bool {
	_, ok := slices.BinarySearch(s, cpu)
	return ok
}

// Share gives every server its processors. pins holds every server of the host: what it
// asked for, or "" for no matter where. A pinned server gets exactly its cores, all
// others get the host's remaining ones. While nobody is pinned the result is "" for
// everyone (the kernel's "all", which follows hot-plugged processors).
//
// It fails with fault.Invalid where a pin is malformed or names a core that the host
// does not have, and with fault.Exhausted where two servers pin the same core or no
// core is left for those that pin none; the field is cpu.pin.
func Share(host Set, pins map[string]string) (map[string]string, error) {
	out := make(map[string]string, len(pins))
	owner := map[int]string{}
	var taken Set
	unpinned := 0
	for _, id := range slices.Sorted(maps.Keys(pins)) {
		pin, err := Parse(pins[id])
		if err != nil {
			return nil, fieldError(fault.Invalid, "pin server %s: %w", id, err)
		}
		if len(pin) == 0 {
			unpinned++
			continue
		}
		if missing := pin.Minus(host); len(missing) > 0 {
			return nil, fieldError(fault.Invalid, "pin server %s to cores %s: the host has no core %s, only %s", id, pin, missing, host)
		}
		for _, cpu := range pin {
			if other, ok := owner[cpu]; ok {
				return nil, fieldError(fault.Exhausted, "pin server %s to cores %s: core %d belongs to server %s, free are %s", id, pin, cpu, other, free(host, pins))
			}
			owner[cpu] = id
		}
		taken = taken.Or(pin)
		out[id] = pin.String()
	}
	rest := host.Minus(taken)
	if unpinned > 0 && len(rest) == 0 {
		return nil, fieldError(fault.Exhausted, "pin cores %s: that is all of the host's, and %d servers without pinned cores need at least one", taken, unpinned)
	}
	shared := ""
	if len(taken) > 0 {
		shared = rest.String()
	}
	for id, pin := range pins {
		if strings.TrimSpace(pin) == "" {
			out[id] = shared
		}
	}
	return out, nil
}

// Order lists the servers whose set changes from have to want, the result of Share for
// pins, in the order to apply: first the unpinned ones that lose cores, so that a newly
// pinned core is empty before its owner moves in, then the pinned ones, then the unpinned
// ones that gain. Only servers that trade pinned cores with each other share them for
// the moment between two steps. "" in have or want means all of the host.
func Order(host Set, have, want, pins map[string]string) []string {
	var lose, pinned, gain []string
	for _, id := range slices.Sorted(maps.Keys(want)) {
		before, after := resolve(host, have[id]), resolve(host, want[id])
		switch {
		case have[id] == want[id]:
		case strings.TrimSpace(pins[id]) != "":
			pinned = append(pinned, id)
		case len(before.Minus(after)) > 0:
			lose = append(lose, id)
		default:
			gain = append(gain, id)
		}
	}
	return slices.Concat(lose, pinned, gain)
}

func resolve(host Set, list string) Set {
	s, err := Parse(list)
	if err != nil || len(s) == 0 {
		return host
	}
	return s
}

func free(host Set, pins map[string]string) string {
	for _, list := range pins {
		if pin, err := Parse(list); err == nil {
			host = host.Minus(pin)
		}
	}
	if len(host) == 0 {
		return "none"
	}
	return host.String()
}

func fieldError(kind fault.Kind, format string, args ...any) error {
	return &fault.Error{Kind: kind, Field: "cpu.pin", Err: fmt.Errorf(format, args...)}
}
