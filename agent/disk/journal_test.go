package disk

import (
	"encoding/binary"
	"errors"
	"slices"
	"testing"
)

// journalSuperblock is a superblock of a disk of 1 GiB with this block map of its journal.
func journalSuperblock(depth uint16, count int, extents ...[2]uint64) []byte {
	b, le := make([]byte, superblockSize), binary.LittleEndian
	le.PutUint16(b[0x38:], ext4Magic)
	le.PutUint32(b[0x04:], 1<<18)
	le.PutUint32(b[0x18:], 2)
	le.PutUint32(b[0x20:], 32768)
	m := b[journalMapOffset:]
	le.PutUint16(m, extentMagic)
	le.PutUint16(m[2:], uint16(count))
	le.PutUint16(m[6:], depth)
	for i, e := range extents {
		x := m[(i+1)*extentSize:]
		le.PutUint16(x[4:], uint16(e[1]))
		le.PutUint16(x[6:], uint16(e[0]>>32))
		le.PutUint32(x[8:], uint32(e[0]))
	}
	return b
}

func TestJournalExtents(t *testing.T) {
	damaged := journalSuperblock(0, 1, [2]uint64{100, 10})
	damaged[journalMapOffset] = 0
	for name, c := range map[string]struct {
		superblock []byte
		want       []extent
		err        error
	}{
		"one":            {journalSuperblock(0, 1, [2]uint64{100, 4096}), []extent{{100 * 4096, 16 << 20}}, nil},
		"four, the last": {journalSuperblock(0, 4, [2]uint64{1, 1}, [2]uint64{2, 1}, [2]uint64{9, 1}, [2]uint64{1<<18 - 7, 7}), []extent{{4096, 4096}, {8192, 4096}, {9 * 4096, 4096}, {(1<<18 - 7) * 4096, 7 * 4096}}, nil},
		"none":           {journalSuperblock(0, 0), nil, errNoJournal},
		"a tree":         {journalSuperblock(1, 1, [2]uint64{100, 10}), nil, errNoJournal},
		"too many":       {journalSuperblock(0, 5, [2]uint64{100, 10}), nil, errNoJournal},
		"empty extent":   {journalSuperblock(0, 1, [2]uint64{100, 0}), nil, errNoJournal},
		"unwritten":      {journalSuperblock(0, 1, [2]uint64{100, 1<<15 + 1}), nil, errNoJournal},
		"over the end":   {journalSuperblock(0, 1, [2]uint64{1<<18 - 7, 8}), nil, errNoJournal},
		"far away":       {journalSuperblock(0, 1, [2]uint64{1 << 47, 8}), nil, errNoJournal},
		"the first":      {journalSuperblock(0, 1, [2]uint64{0, 8}), nil, errNoJournal},
		"no magic":       {damaged, nil, errNoJournal},
		"no superblock":  {make([]byte, superblockSize), nil, errNotExt4},
	} {
		have, err := journalExtents(c.superblock)
		if !slices.Equal(have, c.want) || !errors.Is(err, c.err) {
			t.Errorf("%s: %v, %v; want %v, %v", name, have, err, c.want, c.err)
		}
	}
}

func FuzzJournalExtents(f *testing.F) {
	f.Add(journalSuperblock(0, 1, [2]uint64{100, 4096}))
	f.Fuzz(func(t *testing.T, b []byte) {
		all, err := journalExtents(b)
		for _, e := range all {
			if err != nil || e.offset <= 0 || e.length <= 0 || e.offset+e.length < 0 {
				t.Errorf("%+v, %v", all, err)
			}
		}
	})
}
