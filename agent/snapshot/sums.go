package snapshot

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"sort"
)

// ChunkSize is the piece of a disk, bytes, that has a sum of its own.
const ChunkSize = 1 << 20

// Sums are the sha256 of each chunk of a disk; the last chunk ends with the disk.
type Sums [][sha256.Size]byte

// zeroSum is the sum of a whole chunk of zeros, so that holes need not be read.
var zeroSum = sha256.Sum256(make([]byte, ChunkSize))

// Checksum is "sha256:…" over the sums: equal for equal content of equal size, however it
// is laid out.
func (s Sums) Checksum() string {
	var d Digest
	for _, sum := range s {
		d.add(sum)
	}
	return d.String()
}

// SumContent sums what a disk holds. Of chunks in which it does not differ from an older
// state the sum is taken from older, whose Sums these are (nil: none are known), and
// changed are the ranges that may differ; so the cost is what changed, and holes cost nothing.
func SumContent(ctx context.Context, c Content, older Sums, changed []Range) (Sums, error) {
	data, err := c.Data(ctx)
	if err != nil {
		return nil, fmt.Errorf("sum disk: %w", err)
	}
	size := c.Size()
	sums := make(Sums, chunks(size))
	// The last chunk is not what it was if the disk has grown.
	known := older[:max(0, min(len(older), len(sums))-1)]
	stale := make([]bool, len(sums))
	mark(stale, changed)
	written := make([]bool, len(sums))
	mark(written, data)
	buf := make([]byte, ChunkSize)
	for i := range sums {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		n := min(ChunkSize, size-int64(i)*ChunkSize)
		switch {
		case i < len(known) && !stale[i]:
			sums[i] = known[i]
		case !written[i]:
			sums[i] = SumZeros(n)
		default:
			if err := ReadFull(c, buf[:n], int64(i)*ChunkSize); err != nil {
				return nil, fmt.Errorf("sum disk: %w", err)
			}
			sums[i] = sha256.Sum256(buf[:n])
		}
	}
	return sums, nil
}

// SumZeros is the sum of a chunk of n zeros.
func SumZeros(n int64) [sha256.Size]byte {
	if n == ChunkSize {
		return zeroSum
	}
	return sha256.Sum256(make([]byte, n))
}

// ReadFull reads all of p at an offset. Content that ends before is an error.
func ReadFull(r io.ReaderAt, p []byte, offset int64) error {
	n, err := r.ReadAt(p, offset)
	if n == len(p) {
		return nil
	}
	if err == nil || errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return fmt.Errorf("read bytes %d to %d: %w", offset, offset+int64(len(p)), err)
}

// chunks is how many chunks a disk has.
func chunks(size int64) int64 { return (size + ChunkSize - 1) / ChunkSize }

// mark marks the chunks that ranges touch; what lies outside is left out.
func mark(touched []bool, ranges []Range) {
	for _, r := range ranges {
		if r.Length <= 0 {
			continue
		}
		first, last := max(r.Offset, 0)/ChunkSize, min((r.End()-1)/ChunkSize, int64(len(touched))-1)
		for i := first; i <= last; i++ {
			touched[i] = true
		}
	}
}

// Digest makes a disk's checksum chunk by chunk, in order, without keeping the sums. The
// zero value is ready.
type Digest struct {
	h    hash.Hash
	next int64 // chunk
}

func (d *Digest) add(sum [sha256.Size]byte) {
	if d.h == nil {
		d.h = sha256.New()
	}
	d.h.Write(sum[:])
	d.next++
}

// Add adds the chunk's content; chunks before it that were not added held zeros.
func (d *Digest) Add(chunk int64, content []byte) {
	d.zeros(chunk)
	d.add(sha256.Sum256(content))
}

// End adds the zeros up to the disk's size.
func (d *Digest) End(size int64) {
	if full := size / ChunkSize; d.next <= full {
		d.zeros(full)
		if rest := size % ChunkSize; rest > 0 {
			d.add(SumZeros(rest))
		}
	}
}

func (d *Digest) zeros(until int64) {
	for d.next < until {
		d.add(zeroSum)
	}
}

// String is the checksum of what was added.
func (d *Digest) String() string {
	h := d.h
	if h == nil {
		h = sha256.New()
	}
	return "sha256:" + hex.EncodeToString(h.Sum(nil))
}

// Intersects reports whether ranges, ascending, hold any byte of r.
func Intersects(ranges []Range, r Range) bool {
	i := sort.Search(len(ranges), func(i int) bool { return ranges[i].End() > r.Offset })
	return i < len(ranges) && ranges[i].Offset < r.End()
}
