package disk

import (
	"encoding/binary"
	"errors"
)

// A superblock keeps a copy of where the journal is, for e2fsck: the block map of the
// journal's inode, which is the root of its extent tree. All little-endian.
//
//	offset  size  field
//	0x10C   60    block map
//
// A block map begins with a header and has 12 bytes per extent after it:
//
//	0x0     2     magic 0xF30A
//	0x2     2     extents
//	0x6     2     depth of the tree; 0: extents follow, not further nodes
//	0xC     …     extents: first block of the file (4 bytes), blocks (2), disk block, bits 32–47 (2) and 0–31 (4)
const (
	journalMapOffset = 0x10C
	journalMapSize   = 60
	extentMagic      = 0xF30A
	extentSize       = 12
	maxExtentBlocks  = 1 << 15 // more means that it is not written yet, which no journal has
)

// extent is a piece of a disk, in bytes.
type extent struct{ offset, length int64 }

var errNoJournal = errors.New("read where the journal is: not one short list of extents")

// journalExtents says where the journal of the file system is whose superblock is b.
func journalExtents(b []byte) ([]extent, error) {
	s, err := parseSuperblock(b)
	if err != nil {
		return nil, err
	}
	m, le := b[journalMapOffset:journalMapOffset+journalMapSize], binary.LittleEndian
	count := int(le.Uint16(m[2:]))
	if le.Uint16(m) != extentMagic || le.Uint16(m[6:]) != 0 || count == 0 || (count+1)*extentSize > len(m) {
		return nil, errNoJournal
	}
	var all []extent
	for i := range count {
		e := m[(i+1)*extentSize:]
		blocks := uint64(le.Uint16(e[4:]))
		start := uint64(le.Uint16(e[6:]))<<32 | uint64(le.Uint32(e[8:]))
		if blocks == 0 || blocks > maxExtentBlocks || start == 0 || start+blocks > s.Blocks {
			return nil, errNoJournal
		}
		all = append(all, extent{int64(start) * s.BlockSize, int64(blocks) * s.BlockSize})
	}
	return all, nil
}
