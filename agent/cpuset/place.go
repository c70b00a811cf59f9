package cpuset

import (
	"cmp"
	"maps"
	"slices"
)

// Demand is what a server asks of the processors.
type Demand struct {
	Milli int64  // thousandths of a core
	Pin   string // its own cores alone, "" for no matter which
}

// Place gives every server its processors, so that a server sees about as many as it was
// promised: a pinned one has its own alone (see [Share]); any other gets as many as its
// demand, rounded up, chosen so that no core is promised more than it has. Where that does
// not come out even, a server gets all that nobody pinned, so that a promise is never
// broken for the sake of a number. have is what servers run on now: who is well placed stays.
//
// "" means all of the host, and errors are those of Share.
func Place(host Set, have map[string]string, demands map[string]Demand) (map[string]string, error) {
	pins := make(map[string]string, len(demands))
	for id, d := range demands {
		pins[id] = d.Pin
	}
	out, err := Share(host, pins)
	if err != nil {
		return nil, err
	}
	p := placement{rest: host, load: map[int]int64{}}
	var open []string
	var total int64
	for _, id := range slices.Sorted(maps.Keys(demands)) {
		if demands[id].Pin == "" {
			open = append(open, id)
			total += demands[id].Milli
		} else if pin, err := Parse(demands[id].Pin); err == nil {
			p.rest = p.rest.Minus(pin)
		}
	}
	if len(open) == 0 || len(p.rest) == 0 {
		return out, nil
	}
	p.limit = max(1000, (total+int64(len(p.rest))-1)/int64(len(p.rest)))
	var homeless []string
	for _, id := range open {
		now, err := Parse(have[id])
		if err == nil && len(now) == cores(demands[id].Milli) && len(now.Minus(p.rest)) == 0 && p.take(now, demands[id].Milli) {
			out[id] = now.String()
		} else {
			homeless = append(homeless, id)
		}
	}
	// The largest first: they are the hardest to place.
	slices.SortStableFunc(homeless, func(a, b string) int { return cmp.Compare(demands[b].Milli, demands[a].Milli) })
	for _, id := range homeless {
		n := cores(demands[id].Milli)
		if n >= len(p.rest) {
			continue // all of the rest, as Share says
		}
		if set := p.lightest(n); p.take(set, demands[id].Milli) {
			out[id] = set.String()
		}
	}
	return out, nil
}

// cores is a demand in whole cores.
func cores(milli int64) int { return int((milli + 999) / 1000) }

// placement is what is promised of each core.
type placement struct {
	rest  Set
	load  map[int]int64
	limit int64
}

// take promises an even share of milli on each core of set, unless one has not enough left.
func (p *placement) take(set Set, milli int64) bool {
	if len(set) == 0 {
		return false
	}
	share := (milli + int64(len(set)) - 1) / int64(len(set))
	for _, c := range set {
		if p.load[c]+share > p.limit {
			return false
		}
	}
	for _, c := range set {
		p.load[c] += share
	}
	return true
}

// lightest are the n cores with the most left.
func (p *placement) lightest(n int) Set {
	all := slices.Clone(p.rest)
	slices.SortStableFunc(all, func(a, b int) int { return cmp.Compare(p.load[a], p.load[b]) })
	set := all[:n]
	slices.Sort(set)
	return set
}
