package cpuset

import (
	"maps"
	"slices"
	"testing"

	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
	"pgregory.net/rapid"
)

func TestParse(t *testing.T) {
	for _, tt := range []struct{ in, want string }{
		{"", ""}, {" \n", ""}, {"0", "0"}, {"0-3", "0-3"}, {"0,1,2,3", "0-3"},
		{"8,0-1", "0-1,8"}, {"1-2,2-3", "1-3"}, {"0-1, 3\n", "0-1,3"}, {"8191", "8191"},
	} {
		s, err := Parse(tt.in)
		if err != nil || s.String() != tt.want {
			t.Errorf("Parse(%q) = %q, %v; want %q", tt.in, s, err, tt.want)
		}
	}
	for _, in := range []string{"a", "-1", "1-", "3-1", "0,,1", ",", "8192", "99999999999", "01", "+1", "1-2-3", "0-8192"} {
		if s, err := Parse(in); !fault.Is(err, fault.Invalid) {
			t.Errorf("Parse(%q) = %v, %v; want fault.Invalid", in, s, err)
		}
	}
}

func TestShare(t *testing.T) {
	host, _ := Parse("0-3")
	for _, tt := range []struct {
		name string
		pins map[string]string
		want map[string]string
		kind fault.Kind
	}{
		{"nobody", nil, map[string]string{}, 0},
		{"unpinned only", map[string]string{"a": "", "b": ""}, map[string]string{"a": "", "b": ""}, 0},
		{"one pinned", map[string]string{"a": "1", "b": "", "c": ""}, map[string]string{"a": "1", "b": "0,2-3", "c": "0,2-3"}, 0},
		{"canonical", map[string]string{"a": "3,2"}, map[string]string{"a": "2-3"}, 0},
		{"all pinned", map[string]string{"a": "0-1", "b": "2-3"}, map[string]string{"a": "0-1", "b": "2-3"}, 0},
		{"overlap", map[string]string{"a": "0-1", "b": "1"}, nil, fault.Exhausted},
		{"nothing left", map[string]string{"a": "0-3", "b": ""}, nil, fault.Exhausted},
		{"no such core", map[string]string{"a": "4"}, nil, fault.Invalid},
		{"malformed", map[string]string{"a": "x"}, nil, fault.Invalid},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := Share(host, tt.pins)
			if tt.want == nil {
				if err == nil || fault.KindOf(err) != tt.kind || fault.FieldOf(err) != "cpu.pin" {
					t.Fatalf("got %v, %v; want kind %v about cpu.pin", got, err, tt.kind)
				}
				return
			}
			if err != nil || !maps.Equal(got, tt.want) {
				t.Fatalf("got %v, %v; want %v", got, err, tt.want)
			}
		})
	}
}

// Whatever changes, applying Order's list ends as wanted with no pinned core shared; and
// when one server gets pinned, its cores are empty before it moves.
func TestOrderAppliesEverything(t *testing.T) {
	host, _ := Parse("0-5")
	ids := []string{"a", "b", "c", "d"}
	exclusive := func(t *rapid.T, id string, pins, now map[string]string) {
		pin, _ := Parse(pins[id])
		for _, other := range ids {
			if other != id && len(resolve(host, now[other]).And(pin)) > 0 {
				t.Fatalf("core of %s (%s) is used by %s (%s)", id, pin, other, now[other])
			}
		}
	}
	rapid.Check(t, func(t *rapid.T) {
		before := map[string]string{}
		left := slices.Clone(host)
		for _, id := range ids {
			n := rapid.IntRange(0, 1).Draw(t, "pinned cores of "+id)
			before[id] = left[:n].String()
			left = left[n:]
		}
		after := maps.Clone(before)
		changed := rapid.SampledFrom(ids).Draw(t, "changed")
		after[changed] = left[:rapid.IntRange(0, 2).Draw(t, "cores")].String()
		have, err1 := Share(host, before)
		want, err2 := Share(host, after)
		if err1 != nil || err2 != nil {
			t.Fatal(err1, err2)
		}
		now := maps.Clone(have)
		for _, id := range Order(host, have, want, after) {
			if id == changed {
				exclusive(t, id, after, now)
			}
			now[id] = want[id]
		}
		if !maps.Equal(now, want) {
			t.Fatalf("order leaves %v, want %v", now, want)
		}
		for _, id := range ids {
			exclusive(t, id, after, now)
		}
	})
}

func FuzzParse(f *testing.F) {
	f.Add("0-3,8")
	f.Fuzz(func(t *testing.T, in string) {
		s, err := Parse(in)
		if err != nil {
			return
		}
		again, err := Parse(s.String())
		if err != nil || !slices.Equal(s, again) {
			t.Fatalf("%q → %v → %v, %v", in, s, again, err)
		}
	})
}
