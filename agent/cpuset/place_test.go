package cpuset

import (
	"fmt"
	"maps"
	"testing"

	"pgregory.net/rapid"
)

func TestPlace(t *testing.T) {
	host := Set{0, 1, 2, 3}
	for _, c := range []struct {
		name    string
		have    map[string]string
		demands map[string]Demand
		want    map[string]string
	}{
		{"alone", nil, map[string]Demand{"a": {Milli: 1000}}, map[string]string{"a": "0"}},
		{"a part of a core counts as one", nil, map[string]Demand{"a": {Milli: 500}, "b": {Milli: 1500}}, map[string]string{"b": "0-1", "a": "2"}},
		{"the whole host", nil, map[string]Demand{"a": {Milli: 4000}}, map[string]string{"a": ""}},
		{"who is well placed stays", map[string]string{"a": "3"}, map[string]Demand{"a": {Milli: 1000}, "b": {Milli: 1000}}, map[string]string{"a": "3", "b": "0"}},
		{"a pin moves others away", map[string]string{"a": "0"}, map[string]Demand{"a": {Milli: 1000}, "b": {Milli: 1000, Pin: "0"}}, map[string]string{"a": "1", "b": "0"}},
		{"no core is promised twice", nil, map[string]Demand{"a": {Milli: 700}, "b": {Milli: 700}, "c": {Milli: 700}, "d": {Milli: 700}, "e": {Milli: 700}},
			map[string]string{"a": "0", "b": "1", "c": "2", "d": "3", "e": ""}},
		{"a grown server gets more", map[string]string{"a": "0", "b": "1"}, map[string]Demand{"a": {Milli: 2000}, "b": {Milli: 1000}}, map[string]string{"a": "0,2", "b": "1"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := Place(host, c.have, c.demands)
			if err != nil || !maps.Equal(got, c.want) {
				t.Errorf("Place: %v, %v; want %v", got, err, c.want)
			}
		})
	}
}

// Whatever is asked for and wherever servers were: everybody has at least the cores of its
// demand, nobody has another's pinned core, and nothing moves the second time.
func TestPlaceKeepsPromises(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(1, 8).Draw(t, "cores")
		var host Set
		for c := range n {
			host = append(host, c)
		}
		demands, have, left := map[string]Demand{}, map[string]string{}, int64(n)*1000
		for i := range rapid.IntRange(1, 10).Draw(t, "servers") {
			m := rapid.Int64Range(50, 3000).Draw(t, "milli")
			if m > left {
				break
			}
			left -= m
			id := fmt.Sprint(i)
			demands[id] = Demand{Milli: m}
			have[id] = fmt.Sprint(rapid.IntRange(0, n-1).Draw(t, "have"))
		}
		first, err := Place(host, have, demands)
		if err != nil {
			t.Fatal(err)
		}
		load := map[int]int64{}
		for id, d := range demands {
			set := resolve(host, first[id])
			if len(set) < min(n, cores(d.Milli)) {
				t.Fatalf("%s asked for %d and may run on %s only", id, d.Milli, set)
			}
			if len(set) < n {
				for _, c := range set {
					load[c] += d.Milli / int64(len(set))
				}
			}
		}
		for c, l := range load {
			if l > 1000 {
				t.Fatalf("core %d is promised %d times over: %v", c, l, first)
			}
		}
		if again, err := Place(host, first, demands); err != nil || !maps.Equal(first, again) {
			t.Fatalf("placed again: %v, %v; before %v", again, err, first)
		}
	})
}
