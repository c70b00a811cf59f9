package disk

import (
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/reflejo/terraform-provider-reflejo/agent/snapshot"
	"pgregory.net/rapid"
)

func at(offset, length, physical int64) mapping {
	return mapping{offset: offset, length: length, physical: physical, sound: true}
}

func TestChangedRanges(t *testing.T) {
	unsound := mapping{offset: 0, length: 100, physical: 500}
	for _, c := range []struct {
		name        string
		before, now []mapping
		want        []snapshot.Range
	}{
		{"nothing", nil, nil, nil},
		{"the same", []mapping{at(0, 50, 500)}, []mapping{at(0, 50, 500)}, nil},
		{"the same in other pieces", []mapping{at(0, 50, 500)}, []mapping{at(0, 20, 500), at(20, 30, 520)}, nil},
		{"written anew", nil, []mapping{at(10, 20, 500)}, []snapshot.Range{{Offset: 10, Length: 20}}},
		{"given back", []mapping{at(10, 20, 500)}, nil, []snapshot.Range{{Offset: 10, Length: 20}}},
		{"moved", []mapping{at(0, 50, 500)}, []mapping{at(0, 10, 500), at(10, 5, 700), at(15, 35, 515)}, []snapshot.Range{{Offset: 10, Length: 5}}},
		{"the same place for another piece", []mapping{at(0, 10, 500)}, []mapping{at(10, 10, 500)}, []snapshot.Range{{Offset: 0, Length: 20}}},
		{"no place of its own", []mapping{unsound}, []mapping{unsound}, []snapshot.Range{{Offset: 0, Length: 100}}},
		{"beyond the end", []mapping{at(90, 50, 500)}, []mapping{at(90, 50, 700)}, []snapshot.Range{{Offset: 90, Length: 10}}},
		{"grown", []mapping{at(0, 10, 500)}, []mapping{at(0, 10, 500), at(50, 10, 600)}, []snapshot.Range{{Offset: 50, Length: 10}}},
	} {
		if diff := cmp.Diff(c.want, changedRanges(c.before, c.now, 100)); diff != "" {
			t.Errorf("%s:\n%s", c.name, diff)
		}
	}
}

// extentsOf are the extents of a file whose byte n is at place places[n], where 0 is a hole,
// cut at random.
func extentsOf(places []int64, cut *rand.Rand) []mapping {
	var all []mapping
	for n, place := range places {
		last := len(all) - 1
		switch {
		case place == 0:
		case last >= 0 && all[last].end() == int64(n) && all[last].physical+all[last].length == place && cut.IntN(4) > 0:
			all[last].length++
		default:
			all = append(all, at(int64(n), 1, place))
		}
	}
	return all
}

// Byte by byte, without any cleverness.
func TestChangedRangesProperty(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		places := rapid.SliceOfN(rapid.Int64Range(0, 6), 40, 40)
		before, now := places.Draw(t, "before"), places.Draw(t, "now")
		for i := range now { // mostly the same, so that there is something to find
			if rapid.IntRange(0, 3).Draw(t, "keep") > 0 {
				now[i] = before[i]
			}
		}
		size := rapid.Int64Range(0, 40).Draw(t, "size")
		cut := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "cut"), 0))
		have := changedRanges(extentsOf(before, cut), extentsOf(now, cut), size)
		for n := range size {
			in := slices.ContainsFunc(have, func(r snapshot.Range) bool { return r.Offset <= n && n < r.End() })
			if in != (before[n] != now[n]) {
				t.Fatalf("byte %d: changed %v, in %v %v", n, before[n] != now[n], have, in)
			}
		}
		wantSeparate(t, have, size)
		data := dataRanges(extentsOf(now, cut), size)
		for n := range size {
			in := slices.ContainsFunc(data, func(r snapshot.Range) bool { return r.Offset <= n && n < r.End() })
			if in != (now[n] != 0) {
				t.Fatalf("byte %d: data %v, in %v %v", n, now[n] != 0, data, in)
			}
		}
		wantSeparate(t, data, size)
	})
}

// wantSeparate checks that ranges are ascending, not empty, not adjoining, and within size.
func wantSeparate(t rapid.TB, all []snapshot.Range, size int64) {
	end := int64(-1)
	for _, r := range all {
		if r.Offset <= end || r.Length <= 0 || r.End() > size {
			t.Errorf("ranges %v of %d", all, size)
		}
		end = r.End()
	}
}

func TestMergeRangesProperty(t *testing.T) {
	const size = 20*blockSize + 100
	rapid.Check(t, func(t *rapid.T) {
		var all []snapshot.Range
		for range rapid.IntRange(0, 10).Draw(t, "n") {
			from := rapid.Int64Range(0, size-1).Draw(t, "from")
			all = append(all, snapshot.Range{Offset: from, Length: rapid.Int64Range(1, 3*blockSize).Draw(t, "length")})
		}
		gap := rapid.Int64Range(1, 3*blockSize).Draw(t, "gap")
		have := mergeRanges(slices.Clone(all), gap, size)
		wantSeparate(t, have, size)
		for i, r := range have {
			if r.Offset%blockSize != 0 || r.Length%blockSize != 0 && r.End() != size {
				t.Errorf("range %v is not whole blocks", r)
			}
			if i > 0 && r.Offset-have[i-1].End() < gap {
				t.Errorf("ranges %v: gap below %d", have, gap)
			}
		}
		for _, r := range all {
			if !slices.ContainsFunc(have, func(h snapshot.Range) bool { return h.Offset <= r.Offset && min(r.End(), size) <= h.End() }) {
				t.Errorf("range %v is not in %v", r, have)
			}
		}
	})
}

func TestPieceEnd(t *testing.T) {
	all := []mapping{at(0, 10, 1), at(20, 10, 1), at(40, 10, 1), at(60, 10, 1)}
	for _, c := range []struct {
		budget, n, left int
		end             int64
	}{{1, 1, 3, 20}, {3, 3, 1, 60}, {4, 4, 0, 100}, {9, 4, 0, 100}} {
		if end, n, rest := pieceEnd(all, 100, c.budget); end != c.end || n != c.n || len(rest) != c.left {
			t.Errorf("budget %d: end %d after %d, %d left; want %+v", c.budget, end, n, len(rest), c)
		}
	}
}
