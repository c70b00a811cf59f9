package backup

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"hash/crc32"

	"github.com/klauspost/compress/zstd"

	"github.com/reflejo/terraform-provider-reflejo/agent/snapshot"
)

// The layout; doc.go has the table.
const (
	magic       = "\x89RBK\r\n\x1a\n"
	version     = 1
	headSize    = 16 // before the manifest
	frameSize   = 28 // before the payload
	sumSize     = sha256.Size
	endPayload  = 24
	maxData     = snapshot.ChunkSize
	maxPayload  = maxData + 4096 // zstd adds a few bytes to what can't be compressed
	maxDiskSize = 64 << 40
)

// kind is what a frame says of its range.
type kind uint8

const (
	kindData kind = 1
	kindZero kind = 2
	kindEnd  kind = 3
)

type sum [sumSize]byte

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// frameHead is a frame before its payload.
type frameHead struct {
	kind    kind
	r       snapshot.Range
	payload uint32
}

// put lays the head out in p, frameSize bytes.
func (h frameHead) put(p []byte) {
	clear(p[:4])
	p[0] = byte(h.kind)
	binary.BigEndian.PutUint64(p[4:], uint64(h.r.Offset))
	binary.BigEndian.PutUint64(p[12:], uint64(h.r.Length))
	binary.BigEndian.PutUint32(p[20:], h.payload)
	binary.BigEndian.PutUint32(p[24:], crc32.Checksum(p[:24], castagnoli))
}

// parseFrameHead is put's mirror image. It checks everything that can be checked without
// knowing what was before.
func parseFrameHead(p []byte) (frameHead, error) {
	if binary.BigEndian.Uint32(p[24:]) != crc32.Checksum(p[:24], castagnoli) {
		return frameHead{}, fmt.Errorf("the frame's head is damaged")
	}
	h := frameHead{kind: kind(p[0]), payload: binary.BigEndian.Uint32(p[20:])}
	offset, length := binary.BigEndian.Uint64(p[4:]), binary.BigEndian.Uint64(p[12:])
	if p[1]|p[2]|p[3] != 0 || offset > maxDiskSize || length > maxDiskSize {
		return frameHead{}, fmt.Errorf("the frame's head is outside all bounds")
	}
	h.r = snapshot.Range{Offset: int64(offset), Length: int64(length)}
	if err := h.check(); err != nil {
		return frameHead{}, err
	}
	return h, nil
}

// check is what must hold for a frame by itself.
func (h frameHead) check() error {
	switch h.kind {
	case kindData:
		if h.r.Length < 1 || h.r.Offset/maxData != (h.r.End()-1)/maxData {
			return fmt.Errorf("a data frame's range %s is not within one chunk", rangeText(h.r))
		}
		if h.payload < 1 || h.payload > maxPayload {
			return fmt.Errorf("a data frame has %d bytes of payload", h.payload)
		}
	case kindZero:
		if h.r.Length < 1 || h.payload != 0 {
			return fmt.Errorf("a frame of zeros has length %d and payload %d", h.r.Length, h.payload)
		}
	case kindEnd:
		if h.r.Length != 0 || h.payload != endPayload {
			return fmt.Errorf("the end has length %d and payload %d", h.r.Length, h.payload)
		}
	default:
		return fmt.Errorf("a frame has kind %d", h.kind)
	}
	return nil
}

// next is the sum after a frame, of its head and payload.
func (s sum) next(head, payload []byte) sum {
	h := sha256.New()
	h.Write(s[:])
	h.Write(head)
	h.Write(payload)
	return sum(h.Sum(nil))
}

// Totals are what a file's end says, and what reading it found.
type Totals struct {
	Frames int64
	Data   int64 // bytes of the disk in data frames
	Zeros  int64 // bytes of the disk in frames of zeros
	Bytes  int64 // of the file
}

func (t Totals) put(p []byte) {
	binary.BigEndian.PutUint64(p, uint64(t.Frames))
	binary.BigEndian.PutUint64(p[8:], uint64(t.Data))
	binary.BigEndian.PutUint64(p[16:], uint64(t.Zeros))
}

// matches reports whether an end's payload says the same.
func (t Totals) matches(p []byte) bool {
	var want [endPayload]byte
	t.put(want[:])
	return [endPayload]byte(p) == want
}

// count adds a frame.
func (t *Totals) count(h frameHead) {
	t.Frames++
	switch h.kind {
	case kindData:
		t.Data += h.r.Length
	case kindZero:
		t.Zeros += h.r.Length
	}
	t.Bytes += frameSize + int64(h.payload) + sumSize
}

// Damage is a place in a file that is not as it was written.
type Damage struct {
	At  int64 // byte in the file at which the damaged head, frame or end begins
	Len int64 // its length as far as it can be known
	// Disk is the range that the damaged frame holds; without length where that can't be
	// known, which is then after Offset.
	Disk  snapshot.Range
	Cause error
}

func (d *Damage) Error() string {
	disk := "disk range " + rangeText(d.Disk)
	if d.Disk.Length == 0 {
		disk = fmt.Sprintf("disk after byte %d", d.Disk.Offset)
	}
	return fmt.Sprintf("damaged at bytes %d to %d of the file (%s): %v", d.At, d.At+d.Len, disk, d.Cause)
}

func (d *Damage) Unwrap() error { return d.Cause }

func rangeText(r snapshot.Range) string { return fmt.Sprintf("%d to %d", r.Offset, r.End()) }

// newCompressor and newDecompressor make the two halves of zstd, which only work on whole
// frames in memory here, so that they can neither keep state between frames nor be made to
// take more memory than one.
func newCompressor() (*zstd.Encoder, error) {
	return zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1), zstd.WithEncoderLevel(zstd.SpeedDefault), zstd.WithEncoderCRC(false), zstd.WithLowerEncoderMem(true))
}

func newDecompressor() (*zstd.Decoder, error) {
	return zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(maxData), zstd.WithDecodeAllCapLimit(true), zstd.WithDecoderLowmem(true))
}
