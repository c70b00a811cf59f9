package disk

import (
	"context"
	"fmt"
	"os"
	"unsafe"
)

// FIEMAP of linux/fiemap.h, which package unix does not have.
const (
	fsFiemap = 0xc020660b // FS_IOC_FIEMAP _IOWR('f', 11, struct fiemap)

	fiemapSync = 0x1

	fiemapLast      = 0x1
	fiemapUnwritten = 0x800
	fiemapShared    = 0x2000
	// Unknown, delayed, encoded, encrypted, not aligned, inline, tail: not a place of its own.
	fiemapUnsound = 0x2 | 0x4 | 0x8 | 0x80 | 0x100 | 0x200 | 0x400
)

// fiemapBatch is how many extents are asked for in one call.
const fiemapBatch = 2048

type fiemapExtent struct {
	logical, physical, length uint64
	_                         [2]uint64
	flags                     uint32
	_                         [3]uint32
}

type fiemapRequest struct {
	start, length           uint64
	flags, mapped, count, _ uint32
	extents                 [fiemapBatch]fiemapExtent
}

// readExtents reads the extents of f that are written and overlap [from, to), in ascending
// order. Writers do not wait meanwhile.
func readExtents(ctx context.Context, f *os.File, from, to int64) ([]mapping, error) {
	var all []mapping
	err := eachExtent(ctx, f, from, to, func(x fiemapExtent) {
		if x.flags&fiemapUnwritten == 0 {
			all = append(all, mapping{
				offset: int64(x.logical), length: int64(x.length), physical: int64(x.physical),
				shared: x.flags&fiemapShared != 0,
				sound:  x.flags&fiemapUnsound == 0,
			})
		}
	})
	return all, err
}

// eachExtent goes through the extents of f that overlap [from, to), the unwritten ones too.
func eachExtent(ctx context.Context, f *os.File, from, to int64, do func(fiemapExtent)) error {
	m := new(fiemapRequest)
	for at := from; at < to; {
		if err := ctx.Err(); err != nil {
			return err
		}
		m.start, m.length, m.count, m.flags, m.mapped = uint64(at), uint64(to-at), fiemapBatch, 0, 0
		if at == from {
			m.flags = fiemapSync
		}
		if err := ioctlPointer(f, fsFiemap, unsafe.Pointer(m)); err != nil {
			return fmt.Errorf("read extents of %s: %w", f.Name(), err)
		}
		if m.mapped == 0 {
			return nil
		}
		for _, x := range m.extents[:min(m.mapped, fiemapBatch)] {
			if x.length == 0 {
				return fmt.Errorf("read extents of %s: one at %d is empty", f.Name(), x.logical)
			}
			do(x)
			if x.flags&fiemapLast != 0 {
				return nil
			}
			at = int64(x.logical + x.length)
		}
	}
	return nil
}
