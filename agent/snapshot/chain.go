package snapshot

import (
	"cmp"
	"slices"
)

// The snapshots of one server are a chain in the order in which they came into the pool.
// Each counts what it adds to those before it, found by comparing extent maps with the
// nearest of them, its base; the sum is what the pool has to keep for all of them, however
// much they share. So the ledger needs no walk over all snapshots, and deleting one changes
// the count of those that were compared with it and of no other.

// byOrder sorts records by the order in which they came into the pool.
func byOrder(all []Record) {
	slices.SortFunc(all, func(a, b Record) int { return cmp.Or(cmp.Compare(a.Order, b.Order), cmp.Compare(a.ID, b.ID)) })
}

// baseOf is the nearest complete snapshot that came before order, "" if there is none. all
// are of one server.
func baseOf(all []Record, order uint64) string {
	base, at := "", uint64(0)
	for _, r := range all {
		if r.Phase == PhaseReady && r.Order < order && r.Order > at {
			base, at = r.ID, r.Order
		}
	}
	return base
}

// nextOrder is the order of a snapshot that comes into the pool now.
func nextOrder(all []Record) uint64 {
	last := uint64(0)
	for _, r := range all {
		last = max(last, r.Order)
	}
	return last + 1
}

// basedOn are those whose count was found by comparing with a snapshot.
func basedOn(all []Record, id string) []Record {
	var based []Record
	for _, r := range all {
		if r.Base == id && r.ID != id {
			based = append(based, r)
		}
	}
	byOrder(based)
	return based
}

// total is the length of all ranges, bytes.
func total(ranges []Range) int64 {
	n := int64(0)
	for _, r := range ranges {
		n += r.Length
	}
	return n
}

// common is the length of what is in both lists of ranges, each ascending, bytes. What a
// snapshot differs in but does not hold, as it was given back, takes nothing.
func common(a, b []Range) int64 {
	n := int64(0)
	for len(a) > 0 && len(b) > 0 {
		n += max(0, min(a[0].End(), b[0].End())-max(a[0].Offset, b[0].Offset))
		if a[0].End() < b[0].End() {
			a = a[1:]
		} else {
			b = b[1:]
		}
	}
	return n
}
