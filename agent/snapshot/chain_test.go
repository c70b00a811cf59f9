package snapshot

import (
	"testing"

	"pgregory.net/rapid"

	"github.com/reflejo/terraform-provider-reflejo/agent/vserver"
)

func TestCommon(t *testing.T) {
	lists := func(set []bool) (ranges []Range) {
		for i, in := range set {
			if last := len(ranges) - 1; in && last >= 0 && ranges[last].End() == int64(i) {
				ranges[last].Length++
			} else if in {
				ranges = append(ranges, Range{int64(i), 1})
			}
		}
		return ranges
	}
	rapid.Check(t, func(t *rapid.T) {
		a, b := rapid.SliceOfN(rapid.Bool(), 20, 20).Draw(t, "a"), rapid.SliceOfN(rapid.Bool(), 20, 20).Draw(t, "b")
		want := int64(0)
		for i := range a {
			if a[i] && b[i] {
				want++
			}
		}
		if got := common(lists(a), lists(b)); got != want {
			t.Fatalf("%v and %v have %d in common, want %d", lists(a), lists(b), got, want)
		}
	})
}

func TestAtMost(t *testing.T) {
	for used, want := range map[int64]int64{0: 100, 30: 30, 100: 100, 130: 100} {
		v := vserver.View{Spec: vserver.Spec{Disk: vserver.Disk{Size: 100}}, DiskUsed: used}
		if got := atMost(v); got != want {
			t.Errorf("a disk of 100 bytes with %d allocated may come to take %d, want %d", used, got, want)
		}
	}
}

func TestBase(t *testing.T) {
	all := []Record{{ID: "a", Order: 1, Phase: PhaseReady}, {ID: "b", Order: 3, Phase: PhaseReady, Base: "a"},
		{ID: "c", Order: 4, Phase: PhaseDeleting, Base: "b"}, {ID: "d", Phase: PhaseCreating}, {ID: "e", Order: 5, Phase: PhaseReady, Base: "c"}}
	for order, want := range map[uint64]string{1: "", 2: "a", 3: "a", 4: "b", 5: "b", 6: "e"} {
		if got := baseOf(all, order); got != want {
			t.Errorf("base of order %d: %q, want %q", order, got, want)
		}
	}
	if nextOrder(all) != 6 || nextOrder(nil) != 1 {
		t.Error("order of the next")
	}
	if based := basedOn(all, "c"); len(based) != 1 || based[0].ID != "e" {
		t.Errorf("based on c: %+v", based)
	}
}
