package backup

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
	"github.com/reflejo/terraform-provider-reflejo/agent/snapshot"
)

// Progress is told how many bytes of how many are done; it must not block.
type Progress func(done, total int64)

func (p Progress) tell(done, total int64) {
	if p != nil {
		p(done, total)
	}
}

// writeContent writes all that a full backup of a disk holds, or, with changed not nil, all
// that an increment does, from where the writer is.
//
// Of a full one the checksum is made on the way, of what the file held before too: a disk
// that does not read as it did when its checksum was made must not become a backup.
func writeContent(ctx context.Context, c snapshot.Content, changed []snapshot.Range, increment bool, w *Writer, progress Progress) error {
	if c.Size() != w.m.Snapshot.Size {
		return fmt.Errorf("read snapshot %s: it has %d bytes, not the %d that its record says", w.m.Snapshot.ID, c.Size(), w.m.Snapshot.Size)
	}
	data, err := c.Data(ctx)
	if err != nil {
		return fmt.Errorf("read snapshot %s: %w", w.m.Snapshot.ID, err)
	}
	r := &ranges{c: c, w: w, data: data, buf: make([]byte, snapshot.ChunkSize)}
	if increment {
		err = r.increment(ctx, merge(changed, c.Size()), progress)
	} else {
		err = r.full(ctx, progress)
	}
	return err
}

// ranges writes ranges of a disk to a file.
type ranges struct {
	c    snapshot.Content
	w    *Writer
	data []snapshot.Range // where the disk may hold other than zeros
	buf  []byte
	zero snapshot.Range // zeros that are not written yet, since more may follow
}

// full writes whole chunks, so that each is summed once.
func (r *ranges) full(ctx context.Context, progress Progress) error {
	wanted := whole(r.data, r.c.Size())
	total, done := length(wanted), int64(0)
	from := r.w.State().Next
	var digest snapshot.Digest
	for piece := range pieces(wanted) {
		if err := ctx.Err(); err != nil {
			return err
		}
		progress.tell(done, total)
		p := r.buf[:piece.Length]
		if err := snapshot.ReadFull(r.c, p, piece.Offset); err != nil {
			return fmt.Errorf("read snapshot: %w", err)
		}
		digest.Add(piece.Offset/snapshot.ChunkSize, p)
		if piece.Offset >= from && !allZero(p) {
			if err := r.w.Data(piece.Offset, p); err != nil {
				return err
			}
		}
		done += piece.Length
	}
	progress.tell(total, total)
	digest.End(r.c.Size())
	if got, want := digest.String(), r.w.m.Snapshot.Checksum; got != want {
		return fault.New(fault.Precondition, "read snapshot %s: what it holds now has checksum %s, its record says %s: it is damaged; take another one", r.w.m.Snapshot.ID, got, want)
	}
	return nil
}

// increment writes the changed ranges as they are.
func (r *ranges) increment(ctx context.Context, changed []snapshot.Range, progress Progress) error {
	total, done := length(changed), int64(0)
	for piece := range pieces(changed) {
		if err := ctx.Err(); err != nil {
			return err
		}
		progress.tell(done, total)
		done += piece.Length
		if end, from := piece.End(), r.w.State().Next; end <= from {
			continue
		} else if piece.Offset < from {
			piece = snapshot.Range{Offset: from, Length: end - from}
		}
		if err := r.piece(piece); err != nil {
			return err
		}
	}
	progress.tell(total, total)
	return r.flush()
}

func (r *ranges) piece(at snapshot.Range) error {
	p := r.buf[:at.Length]
	zero := !snapshot.Intersects(r.data, at)
	if !zero {
		if err := snapshot.ReadFull(r.c, p, at.Offset); err != nil {
			return fmt.Errorf("read snapshot: %w", err)
		}
		zero = allZero(p)
	}
	if zero && r.zero.Length > 0 && r.zero.End() == at.Offset {
		r.zero.Length += at.Length
		return nil
	}
	if err := r.flush(); err != nil {
		return err
	}
	if zero {
		r.zero = at
		return nil
	}
	return r.w.Data(at.Offset, p)
}

func (r *ranges) flush() error {
	if r.zero.Length == 0 {
		return nil
	}
	zero := r.zero
	r.zero = snapshot.Range{}
	return r.w.Zero(zero)
}

// merge sorts ranges and joins those that touch, within a disk.
func merge(all []snapshot.Range, size int64) []snapshot.Range {
	var merged []snapshot.Range
	for _, r := range slices.SortedFunc(slices.Values(all), func(a, b snapshot.Range) int { return int(min(1, max(-1, a.Offset-b.Offset))) }) {
		r.Offset, r.Length = max(r.Offset, 0), min(r.End(), size)-max(r.Offset, 0)
		if r.Length <= 0 {
			continue
		}
		if last := len(merged) - 1; last >= 0 && merged[last].End() >= r.Offset {
			merged[last].Length = max(merged[last].End(), r.End()) - merged[last].Offset
			continue
		}
		merged = append(merged, r)
	}
	return merged
}

// whole are ranges made larger to whole chunks.
func whole(all []snapshot.Range, size int64) []snapshot.Range {
	wide := slices.Clone(all)
	for i, r := range wide {
		first, end := r.Offset/snapshot.ChunkSize*snapshot.ChunkSize, (r.End()+snapshot.ChunkSize-1)/snapshot.ChunkSize*snapshot.ChunkSize
		wide[i] = snapshot.Range{Offset: first, Length: end - first}
	}
	return merge(wide, size)
}

// pieces are ranges cut where chunks end.
func pieces(all []snapshot.Range) func(yield func(snapshot.Range) bool) {
	return func(yield func(snapshot.Range) bool) {
		for _, r := range all {
			for r.Length > 0 {
				n := min(r.Length, snapshot.ChunkSize-r.Offset%snapshot.ChunkSize)
				if !yield(snapshot.Range{Offset: r.Offset, Length: n}) {
					return
				}
				r.Offset, r.Length = r.Offset+n, r.Length-n
			}
		}
	}
}

func length(all []snapshot.Range) int64 {
	var n int64
	for _, r := range all {
		n += r.Length
	}
	return n
}

var zeros = make([]byte, 4096)

func allZero(p []byte) bool {
	for len(p) > len(zeros) {
		if string(p[:len(zeros)]) != string(zeros) {
			return false
		}
		p = p[len(zeros):]
	}
	return string(p) == string(zeros[:len(p)])
}

// layer is one file of a chain: a full backup or an increment.
type layer struct {
	r     *Reader
	frame Frame // the next one, as far as it was not used yet
	ended bool
}

// chain reads a full backup and its increments at once, in the order of the disk: every
// chunk is put together from all of them before the next, so that a disk is written once,
// and its checksum made, without reading it.
type chain struct {
	layers []*layer // the full one first
	size   int64    // of the disk as the last one has it
	buf    []byte
}

// newChain checks that the files build on each other; the full one comes first.
func newChain(readers []*Reader) (*chain, error) {
	c := &chain{buf: make([]byte, snapshot.ChunkSize)}
	for i, r := range readers {
		m := r.Manifest()
		if m.Depth != i {
			return nil, fault.New(fault.Precondition, "backup %s says that it is increment %d, but builds on %d files", m.ID, m.Depth, i)
		}
		if i > 0 {
			p := readers[i-1].Manifest()
			if m.Parent != p.ID || m.ParentChecksum != p.Snapshot.Checksum || m.Snapshot.Server != p.Snapshot.Server {
				return nil, fault.New(fault.Precondition, "backup %s builds on backup %s of %s, but that is now one of %s", m.ID, m.Parent, m.ParentChecksum, p.Snapshot.Checksum)
			}
		}
		c.layers = append(c.layers, &layer{r: r})
		c.size = m.Snapshot.Size
	}
	return c, nil
}

// next is the next chunk that any of the files has something of, from memory that is good
// until the next call; io.EOF when all files were read to their ends.
func (c *chain) next() (chunk int64, content []byte, err error) {
	chunk = -1
	for _, l := range c.layers {
		if err := l.fill(); err != nil {
			return 0, nil, err
		}
		if at := l.frame.Range.Offset / snapshot.ChunkSize; !l.ended && (chunk < 0 || at < chunk) {
			chunk = at
		}
	}
	if chunk < 0 {
		return 0, nil, io.EOF
	}
	at := snapshot.Range{Offset: chunk * snapshot.ChunkSize, Length: snapshot.ChunkSize}
	clear(c.buf)
	for _, l := range c.layers {
		if err := l.apply(c.buf, at); err != nil {
			return 0, nil, err
		}
	}
	return chunk, c.buf[:max(0, min(at.Length, c.size-at.Offset))], nil
}

// fill makes sure that there is a frame, or that the file ended.
func (l *layer) fill() error {
	if l.ended || l.frame.Range.Length > 0 {
		return nil
	}
	f, err := l.r.Next()
	if errors.Is(err, io.EOF) {
		l.ended, l.frame = true, Frame{}
		return nil
	}
	if err != nil {
		return fmt.Errorf("backup %s: %w", l.r.m.ID, err)
	}
	l.frame = f
	return nil
}

// apply puts what the file has of a chunk over what older ones had.
func (l *layer) apply(buf []byte, at snapshot.Range) error {
	if size := l.r.m.Snapshot.Size; size < at.End() { // a disk that was shorter then held nothing there
		clear(buf[max(0, size-at.Offset):])
	}
	for {
		if err := l.fill(); err != nil {
			return err
		}
		f := l.frame
		if l.ended || f.Range.Offset >= at.End() {
			return nil
		}
		part := buf[f.Range.Offset-at.Offset : min(f.Range.End(), at.End())-at.Offset]
		if f.Data != nil {
			copy(part, f.Data)
		} else {
			clear(part)
		}
		n := int64(len(part))
		l.frame.Range = snapshot.Range{Offset: f.Range.Offset + n, Length: f.Range.Length - n}
	}
}

// done is how many bytes of the files were read.
func (c *chain) done() int64 {
	var n int64
	for _, l := range c.layers {
		n += l.r.State().Totals.Bytes
	}
	return n
}

func (c *chain) Close() {
	for _, l := range c.layers {
		l.r.Close()
	}
}

// readDisk reads a chain to its end, gives put every chunk that files speak of, and checks
// what the disk comes to hold against the newest file's manifest.
func (c *chain) readDisk(ctx context.Context, total int64, progress Progress, put func(offset int64, content []byte) error) error {
	var digest snapshot.Digest
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		chunk, content, err := c.next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		if len(content) > 0 {
			digest.Add(chunk, content)
			if err := put(chunk*snapshot.ChunkSize, content); err != nil {
				return err
			}
		}
		progress.tell(c.done(), total)
	}
	progress.tell(total, total)
	digest.End(c.size)
	m := c.layers[len(c.layers)-1].r.m
	if got := digest.String(); got != m.Snapshot.Checksum {
		return fault.New(fault.Precondition, "backup %s: the disk that its files make has checksum %s, not %s as the manifest says", m.ID, got, m.Snapshot.Checksum)
	}
	return nil
}
