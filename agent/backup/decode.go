package backup

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/klauspost/compress/zstd"

	"github.com/reflejo/terraform-provider-reflejo/agent/snapshot"
)

// Frame is a range of the disk as a file has it.
type Frame struct {
	Range snapshot.Range
	Data  []byte // nil: zeros. Valid until the next call
	At    int64  // where in the file the frame begins
}

// Reader reads a file front to back. Everything it returns has been checked against its
// sum. Errors that say something of the file are *Damage; others are the source's.
type Reader struct {
	r     io.Reader
	m     Manifest
	s     State
	zstd  *zstd.Decoder
	frame []byte
	data  []byte
}

// NewReader reads the head.
func NewReader(r io.Reader) (*Reader, error) {
	m, size, this, err := readHead(r)
	if err != nil {
		return nil, err
	}
	return &Reader{r: r, m: m, s: State{Manifest: this, Last: this, Totals: Totals{Bytes: size}}}, nil
}

// ReadManifest reads no more than the head.
func ReadManifest(r io.Reader) (Manifest, error) {
	m, _, _, err := readHead(r)
	return m, err
}

func readHead(r io.Reader) (Manifest, int64, sum, error) {
	fail := func(at, n int64, format string, args ...any) (Manifest, int64, sum, error) {
		return Manifest{}, 0, sum{}, &Damage{At: at, Len: n, Cause: fmt.Errorf(format, args...)}
	}
	head := make([]byte, headSize, headSize+4096)
	if err := readAll(r, head, 0, snapshot.Range{}); err != nil {
		return Manifest{}, 0, sum{}, err
	}
	if string(head[:8]) != magic {
		return fail(0, 8, "this is not the beginning of a backup file")
	}
	if v := binary.BigEndian.Uint32(head[8:]); v != version {
		return fail(8, 4, "format version %d: this program reads version %d", v, version)
	}
	n := int64(binary.BigEndian.Uint32(head[12:]))
	if n < 1 || n > maxManifest {
		return fail(12, 4, "a manifest of %d bytes: at most %d are allowed", n, maxManifest)
	}
	rest := make([]byte, n+sumSize)
	if err := readAll(r, rest, headSize, snapshot.Range{}); err != nil {
		var damage *Damage
		if errors.As(err, &damage) { // of the head as a whole: its length may be what is damaged
			damage.At, damage.Len = 0, headSize+n+sumSize
		}
		return Manifest{}, 0, sum{}, err
	}
	this := sum(rest[n:])
	if sha256.Sum256(append(head, rest[:n]...)) != this {
		return fail(0, headSize+n+sumSize, "the head does not match its sum")
	}
	m, err := decodeManifest(rest[:n])
	if err != nil {
		return fail(headSize, n, "%w", err)
	}
	return m, headSize + n + sumSize, this, nil
}

// Manifest is what the file says of itself.
func (r *Reader) Manifest() Manifest { return r.m }

// State is how far the file was read, and found good.
func (r *Reader) State() State { return r.s }

// Close gives memory back.
func (r *Reader) Close() {
	if r.zstd != nil {
		r.zstd.Close()
	}
}

// Next is the next frame; io.EOF after the end, which then was there, was good, and was
// the last of the file.
func (r *Reader) Next() (Frame, error) {
	h, frame, err := r.next()
	if err != nil {
		return Frame{}, err
	}
	f := Frame{Range: h.r, At: r.s.Totals.Bytes}
	switch h.kind {
	case kindEnd:
		if err := r.ended(h, frame); err != nil {
			return Frame{}, err
		}
		return Frame{}, io.EOF
	case kindData:
		if f.Data, err = r.unpack(h, frame); err != nil {
			return Frame{}, err
		}
	}
	r.s.after(h, sum(frame[len(frame)-sumSize:]))
	return f, nil
}

// next reads a frame with its sum and checks both.
func (r *Reader) next() (frameHead, []byte, error) {
	if r.s.Ended {
		return frameHead{}, nil, io.EOF
	}
	at, unknown := r.s.Totals.Bytes, snapshot.Range{Offset: r.s.Next}
	r.frame = slices.Grow(r.frame[:0], frameSize)[:frameSize]
	if err := readAll(r.r, r.frame, at, unknown); err != nil {
		return frameHead{}, nil, err
	}
	h, err := parseFrameHead(r.frame)
	if err != nil {
		return frameHead{}, nil, &Damage{At: at, Len: frameSize, Disk: unknown, Cause: err}
	}
	r.frame = slices.Grow(r.frame, int(h.payload)+sumSize)
	frame := r.frame[:frameSize+int(h.payload)+sumSize]
	if err := readAll(r.r, frame[frameSize:], at+frameSize, h.r); err != nil {
		return frameHead{}, nil, err
	}
	body := frame[:len(frame)-sumSize]
	if r.s.Last.next(body[:frameSize], body[frameSize:]) != sum(frame[len(body):]) {
		return frameHead{}, nil, r.damage(h, frame, "the frame does not match its sum")
	}
	if h.r.Offset < r.s.Next || h.r.End() > r.m.Snapshot.Size {
		return frameHead{}, nil, r.damage(h, frame, "its range is not after %d within a disk of %d bytes", r.s.Next, r.m.Snapshot.Size)
	}
	return h, frame, nil
}

// unpack is a data frame's content.
func (r *Reader) unpack(h frameHead, frame []byte) ([]byte, error) {
	if r.zstd == nil {
		z, err := newDecompressor()
		if err != nil {
			return nil, fmt.Errorf("read backup file: %w", err)
		}
		r.zstd = z
	}
	r.data = slices.Grow(r.data[:0], int(h.r.Length))
	data, err := r.zstd.DecodeAll(frame[frameSize:len(frame)-sumSize], r.data[:0:h.r.Length])
	if err != nil {
		return nil, r.damage(h, frame, "its data can't be unpacked: %w", err)
	}
	if int64(len(data)) != h.r.Length {
		return nil, r.damage(h, frame, "it holds %d bytes of data, not %d", len(data), h.r.Length)
	}
	return data, nil
}

// ended checks the end, and that nothing follows it.
func (r *Reader) ended(h frameHead, frame []byte) error {
	if h.r.Offset != r.m.Snapshot.Size || !r.s.Totals.matches(frame[frameSize:len(frame)-sumSize]) {
		return r.damage(h, frame, "the end says other totals than were read")
	}
	r.s.after(h, sum(frame[len(frame)-sumSize:]))
	switch n, err := io.ReadFull(r.r, make([]byte, 1)); {
	case n > 0:
		return &Damage{At: r.s.Totals.Bytes, Disk: snapshot.Range{Offset: r.m.Snapshot.Size}, Cause: errors.New("something follows the end")}
	case !errors.Is(err, io.EOF):
		return fmt.Errorf("read backup file after its end: %w", err)
	}
	return nil
}

func (r *Reader) damage(h frameHead, frame []byte, format string, args ...any) error {
	return &Damage{At: r.s.Totals.Bytes, Len: int64(len(frame)), Disk: h.r, Cause: fmt.Errorf(format, args...)}
}

// readAll fills p; a file that ends before is damaged.
func readAll(r io.Reader, p []byte, at int64, disk snapshot.Range) error {
	n, err := io.ReadFull(r, p)
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return &Damage{At: at, Len: int64(len(p)), Disk: disk, Cause: fmt.Errorf("the file ends at byte %d", at+int64(n))}
	}
	if err != nil {
		return fmt.Errorf("read backup file at byte %d: %w", at+int64(n), err)
	}
	return nil
}

// Survey reads an unfinished file as far as it is good and tells its state. What lies
// beyond State.Totals.Bytes is torn, or was damaged since, and is to be cut off. An error is
// the source's.
func Survey(r io.Reader) (State, error) {
	var damage *Damage
	reader, err := NewReader(r)
	if errors.As(err, &damage) {
		return State{}, nil
	}
	if err != nil {
		return State{}, err
	}
	defer reader.Close()
	for {
		switch _, err := reader.Next(); {
		case errors.As(err, &damage), errors.Is(err, io.EOF):
			return reader.State(), nil
		case err != nil:
			return State{}, err
		}
	}
}
