package disk

import (
	"cmp"
	"slices"

	"github.com/reflejo/terraform-provider-reflejo/agent/snapshot"
)

// mapping is an extent of a file: where a piece of it is in the pool's file system. Bytes.
type mapping struct {
	offset, length int64
	physical       int64 // meaningless unless sound
	shared         bool  // with another file, or another place of this one
	sound          bool  // the same place means the same data
}

func (m mapping) end() int64 { return m.offset + m.length }

// dataRanges are the ranges that a file's extents cover, below size.
func dataRanges(all []mapping, size int64) []snapshot.Range {
	var out []snapshot.Range
	for _, m := range all {
		out = addRange(out, m.offset, min(m.end(), size))
	}
	return out
}

// changedRanges are the ranges below size in which the file with the extents of now may
// differ from the one with those of before. Extents are in ascending order. A place in the
// pool that two files share is never written again while both have it (that is what
// sharing is), so the same place means the same data, and nothing else does.
func changedRanges(before, now []mapping, size int64) []snapshot.Range {
	var out []snapshot.Range
	for at := int64(0); at < size; {
		var a, b mapping
		var endA, endB int64
		before, a, endA = extentAt(before, at, size)
		now, b, endB = extentAt(now, at, size)
		end := min(endA, endB)
		same := a.length == 0 && b.length == 0 ||
			a.length > 0 && b.length > 0 && a.sound && b.sound && a.physical-a.offset == b.physical-b.offset
		if !same {
			out = addRange(out, at, end)
		}
		at = end
	}
	return out
}

// extentAt drops the extents before at and returns the one that holds at, or none, and where
// that, or the hole there, ends.
func extentAt(all []mapping, at, size int64) (rest []mapping, m mapping, end int64) {
	for len(all) > 0 && all[0].end() <= at {
		all = all[1:]
	}
	switch {
	case len(all) == 0:
		return all, mapping{}, size
	case all[0].offset > at:
		return all, mapping{}, min(all[0].offset, size)
	}
	return all, all[0], min(all[0].end(), size)
}

// addRange adds [from, to) to ranges that end before it or where it begins.
func addRange(all []snapshot.Range, from, to int64) []snapshot.Range {
	if from >= to {
		return all
	}
	if n := len(all); n > 0 && all[n-1].End() >= from {
		all[n-1].Length = max(all[n-1].End(), to) - all[n-1].Offset
		return all
	}
	return append(all, snapshot.Range{Offset: from, Length: to - from})
}

// mergeRanges sorts ranges in place, widens them to blocks, and joins those with less than
// gap bytes between them.
func mergeRanges(all []snapshot.Range, gap, size int64) []snapshot.Range {
	slices.SortFunc(all, func(a, b snapshot.Range) int { return cmp.Compare(a.Offset, b.Offset) })
	out := all[:0]
	for _, r := range all {
		from, to := r.Offset/blockSize*blockSize, min(roundUp(r.End(), blockSize), size)
		if n := len(out); n > 0 && from-out[n-1].End() < gap {
			from = out[n-1].End()
			out[n-1].Length = max(from, to) - out[n-1].Offset
			continue
		}
		out = addRange(out, from, to)
	}
	return out
}

// pieceEnd is where a piece that begins at from ends so that it has about as many extents
// as budget; all are the extents from there on, and those that are left are returned.
func pieceEnd(all []mapping, end int64, budget int) (to int64, extents int, rest []mapping) {
	if len(all) <= budget {
		return end, len(all), nil
	}
	return all[budget].offset, budget, all[budget:]
}
