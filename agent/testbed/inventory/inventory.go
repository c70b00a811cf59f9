package inventory

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// Inventory is a list of things; the same line may be there several times.
type Inventory []string

// String is one thing per line.
func (i Inventory) String() string {
	if len(i) == 0 {
		return ""
	}
	return strings.Join(i, "\n") + "\n"
}

// Diff lists what is gone in after ("- mount …") and what is new in it ("+ mount …"); it is
// empty if nothing changed.
func (i Inventory) Diff(after Inventory) string {
	count := map[string]int{}
	for _, line := range after {
		count[line]++
	}
	for _, line := range i {
		count[line]--
	}
	var b strings.Builder
	for _, line := range slices.Sorted(maps.Keys(count)) {
		sign := "+"
		if count[line] < 0 {
			sign = "-"
		}
		for range max(count[line], -count[line]) {
			fmt.Fprintf(&b, "%s %s\n", sign, line)
		}
	}
	return b.String()
}

// Only is the inventory's lines that contain one of the texts.
func (i Inventory) Only(texts ...string) Inventory {
	return slices.DeleteFunc(slices.Clone(i), func(line string) bool {
		return !slices.ContainsFunc(texts, func(t string) bool { return strings.Contains(line, t) })
	})
}

// Without is the inventory without the lines that contain one of the texts: what a test
// expects to change.
func (i Inventory) Without(texts ...string) Inventory {
	return slices.DeleteFunc(slices.Clone(i), func(line string) bool {
		return slices.ContainsFunc(texts, func(t string) bool { return strings.Contains(line, t) })
	})
}
