package disk

import (
	"encoding/binary"
	"errors"
	"strconv"
)

// The part of an ext4 superblock that is of interest here. All little-endian.
//
//	offset  size  field
//	0x004   4     blocks, low half
//	0x018   4     log2(block size) - 10
//	0x020   4     blocks per group
//	0x028   4     inodes per group
//	0x038   2     magic 0xEF53
//	0x03A   2     state: 1 cleanly unmounted, 2 errors seen
//	0x058   2     size of an inode
//	0x060   4     incompatible features: 0x80 has 64-bit block numbers
//	0x0CE   2     blocks per copy of the superblock that are kept for more group descriptors
//	0x0FE   2     size of a group descriptor, with 64-bit block numbers
//	0x10C   60    where the journal is, see journalExtents
//	0x150   4     blocks, high half
const (
	superblockOffset = 1024 // from the start of the disk
	superblockSize   = 1024
	ext4Magic        = 0xEF53
	ext4StateErrors  = 2
	ext4Incompat64   = 0x80
)

var errNotExt4 = errors.New("no ext4 superblock")

// superblock is what Attach decides by.
type superblock struct {
	Blocks    uint64
	BlockSize int64
	Errors    bool // the kernel saw damage: check before the next mount

	perGroup    uint64 // blocks
	tables      uint64 // blocks of a group's inode table
	reserved    uint64 // blocks kept for group descriptors
	descriptors uint64 // per block
}

// parseSuperblock reads superblockSize bytes from superblockOffset of a disk.
func parseSuperblock(b []byte) (superblock, error) {
	if len(b) < superblockSize || binary.LittleEndian.Uint16(b[0x38:]) != ext4Magic {
		return superblock{}, errNotExt4
	}
	shift := binary.LittleEndian.Uint32(b[0x18:])
	if shift > 6 { // 64 KiB, ext4's largest
		return superblock{}, errNotExt4
	}
	s := superblock{
		Blocks:    uint64(binary.LittleEndian.Uint32(b[0x04:])),
		BlockSize: 1024 << shift,
		Errors:    binary.LittleEndian.Uint16(b[0x3A:])&ext4StateErrors != 0,
	}
	descriptor := uint64(32)
	if binary.LittleEndian.Uint32(b[0x60:])&ext4Incompat64 != 0 {
		s.Blocks |= uint64(binary.LittleEndian.Uint32(b[0x150:])) << 32
		if n := uint64(binary.LittleEndian.Uint16(b[0xFE:])); n > descriptor {
			descriptor = n
		}
	}
	s.perGroup = uint64(binary.LittleEndian.Uint32(b[0x20:]))
	s.tables = uint64(binary.LittleEndian.Uint32(b[0x28:])) * uint64(binary.LittleEndian.Uint16(b[0x58:])) / uint64(s.BlockSize)
	s.reserved = uint64(binary.LittleEndian.Uint16(b[0xCE:]))
	s.descriptors = uint64(s.BlockSize) / min(descriptor, uint64(s.BlockSize))
	if s.perGroup == 0 {
		return superblock{}, errNotExt4
	}
	return s, nil
}

// wantBlocks is the number of blocks the file system should have on a disk of size bytes:
// all, but a last group that has no room for its own tables and some data is left off, as
// the tools do. (They know whether it also has copies of superblock and descriptors; here
// it always counts as having them, so what is wanted can always be had.)
func (s superblock) wantBlocks(size int64) uint64 {
	const someData = 50
	blocks := uint64(size / s.BlockSize)
	last, groups := blocks%s.perGroup, blocks/s.perGroup
	descriptors := groups/s.descriptors + 1
	if groups > 0 && last < 2+s.tables+1+descriptors+s.reserved+someData {
		return blocks - last
	}
	return blocks
}

// journalSize is the journal of a disk, in MiB. Every clone writes its journal's blocks for
// the first time once, which costs the pool an allocation each (a third of the speed of
// small synchronous writes), so that time is kept short.
const journalSize = 16

// inodeRatio is the bytes of disk per inode: the tool's own choice for disks from 512 MiB
// to 4 TiB, which would otherwise depend on the size that the base disk happens to have.
const inodeRatio = 16384

// resizeLimit is the size, in bytes, for whose group descriptors blocks are kept. Beyond it
// the kernel puts them elsewhere (meta_bg). It is not the tool's own choice, 1024 times the
// size: to grow a mounted file system the kernel wants all these blocks in one transaction,
// so they have to be far fewer than a quarter of the journal's. 2 TiB take 256 of 4096.
const resizeLimit = 2 << 40

// mkfsExt4 are the arguments that make a disk's file system in file, an empty file of size
// bytes. No reserved blocks: they are for the host's root, which never writes there. The
// tables are not written, as an empty file reads as zeros.
func mkfsExt4(file string, size int64) []string {
	argv := []string{"mkfs.ext4", "-q", "-F", "-b", "4096", "-m", "0", "-i", strconv.Itoa(inodeRatio)}
	extended := "lazy_itable_init=0,assume_storage_prezeroed=1,nodiscard"
	if size >= 1<<30 { // a smaller one gets less of both by itself
		argv = append(argv, "-J", "size="+strconv.Itoa(journalSize))
		if size < resizeLimit {
			extended += ",resize=" + strconv.Itoa(resizeLimit/blockSize)
		}
	}
	return append(argv, "-E", extended, file)
}
