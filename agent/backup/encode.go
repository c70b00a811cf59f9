package backup

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"

	"github.com/klauspost/compress/zstd"

	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
	"github.com/reflejo/terraform-provider-reflejo/agent/snapshot"
)

// State is how far a file is: all that a writer needs to know to go on with it. The zero
// value is a file that has not begun. A target that holds an unfinished file tells its
// state (see [Survey]); it is small, so that it can come from another host.
type State struct {
	Manifest sum    // sum of the head: which file this is
	Last     sum    // sum of the last complete frame
	Next     int64  // the disk's bytes before it are in the file
	Totals   Totals // what is in it; Bytes is its length up to the last complete frame
	Ended    bool   // the end is there too
}

// Writer writes a file. It is used by one goroutine. After an error it is of no use; the
// target's unfinished file is.
type Writer struct {
	w     io.Writer
	m     Manifest
	s     State
	zstd  *zstd.Encoder
	frame []byte // head, payload and sum, so that a frame is one write
}

// NewWriter begins a file, or goes on with one of the same manifest in a state in which it
// was found. Another file's state is fault.Precondition. w is what follows State.Totals.Bytes.
func NewWriter(w io.Writer, m Manifest, s State) (*Writer, error) {
	if err := m.Validate(); err != nil {
		return nil, fmt.Errorf("begin backup file: %w", err)
	}
	head, err := encodeHead(m)
	if err != nil {
		return nil, err
	}
	z, err := newCompressor()
	if err != nil {
		return nil, fmt.Errorf("begin backup file: %w", err)
	}
	wr := &Writer{w: w, m: m, s: s, zstd: z}
	this := sum(head[len(head)-sumSize:])
	switch {
	case s == (State{}):
		wr.s = State{Manifest: this, Last: this, Totals: Totals{Bytes: int64(len(head))}}
		if err := wr.write(head); err != nil {
			return nil, fmt.Errorf("write backup's head: %w", err)
		}
	case s.Manifest != this:
		return nil, fault.New(fault.Precondition, "go on with backup file: what is there is another backup's")
	}
	return wr, nil
}

// encodeHead is everything before the first frame.
func encodeHead(m Manifest) ([]byte, error) {
	text, err := json.Marshal(m)
	if err != nil {
		return nil, fmt.Errorf("encode manifest: %w", err)
	}
	if len(text) > maxManifest {
		return nil, fault.New(fault.Invalid, "encode manifest: it has %d bytes, at most %d are allowed", len(text), maxManifest)
	}
	head := make([]byte, headSize, headSize+len(text)+sumSize)
	copy(head, magic)
	binary.BigEndian.PutUint32(head[8:], version)
	binary.BigEndian.PutUint32(head[12:], uint32(len(text)))
	head = append(head, text...)
	whole := sha256.Sum256(head)
	return append(head, whole[:]...), nil
}

// State is how far the file is.
func (w *Writer) State() State { return w.s }

// Data writes a range's content, which must lie after all that was written.
func (w *Writer) Data(offset int64, p []byte) error {
	h := frameHead{kind: kindData, r: snapshot.Range{Offset: offset, Length: int64(len(p))}}
	packed := w.zstd.EncodeAll(p, w.begin())
	h.payload = uint32(len(packed) - frameSize)
	return w.end(h, packed)
}

// Zero says that a range, which must lie after all that was written, is zeros.
func (w *Writer) Zero(r snapshot.Range) error {
	return w.end(frameHead{kind: kindZero, r: r}, w.begin())
}

// Close writes the end, if it is not there. It does not close what is written to.
func (w *Writer) Close() (Totals, error) {
	if w.s.Ended {
		return w.s.Totals, nil
	}
	frame := append(w.begin(), make([]byte, endPayload)...)
	w.s.Totals.put(frame[frameSize:])
	err := w.end(frameHead{kind: kindEnd, r: snapshot.Range{Offset: w.m.Snapshot.Size}, payload: endPayload}, frame)
	return w.s.Totals, err
}

// begin is a frame's buffer with room for its head.
func (w *Writer) begin() []byte {
	if cap(w.frame) == 0 {
		w.frame = make([]byte, frameSize, frameSize+maxPayload+sumSize)
	}
	return w.frame[:frameSize]
}

// end completes a frame, of which the payload is there, and writes it at once.
func (w *Writer) end(h frameHead, frame []byte) error {
	if err := h.check(); err != nil {
		return fmt.Errorf("write backup frame: %w", err)
	}
	if w.s.Ended || h.r.Offset < w.s.Next || h.r.End() > w.m.Snapshot.Size {
		return fmt.Errorf("write backup frame: range %s is not after %d within a disk of %d bytes", rangeText(h.r), w.s.Next, w.m.Snapshot.Size)
	}
	h.put(frame)
	next := w.s.Last.next(frame[:frameSize], frame[frameSize:])
	if err := w.write(append(frame, next[:]...)); err != nil {
		return fmt.Errorf("write backup at byte %d (disk range %s): %w", w.s.Totals.Bytes, rangeText(h.r), err)
	}
	w.s.after(h, next)
	return nil
}

// after is the state after a frame.
func (s *State) after(h frameHead, last sum) {
	s.Last, s.Next, s.Ended = last, h.r.End(), h.kind == kindEnd
	if s.Ended {
		s.Totals.Bytes += frameSize + endPayload + sumSize
		return
	}
	s.Totals.count(h)
}

func (w *Writer) write(p []byte) error {
	n, err := w.w.Write(p)
	if err == nil && n < len(p) {
		err = io.ErrShortWrite
	}
	return err
}
