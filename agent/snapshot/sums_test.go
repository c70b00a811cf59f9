package snapshot

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// memory is a disk in memory that tells what was read of it.
type memory struct {
	content []byte
	data    []Range
	read    []int64 // chunks
}

func (m *memory) ReadAt(p []byte, off int64) (int, error) {
	m.read = append(m.read, off/ChunkSize)
	return bytes.NewReader(m.content).ReadAt(p, off)
}
func (m *memory) Close() error                                     { return nil }
func (m *memory) Size() int64                                      { return int64(len(m.content)) }
func (m *memory) Data(context.Context) ([]Range, error)            { return m.data, nil }
func (m *memory) Changed(context.Context, string) ([]Range, error) { return nil, nil }

// plain is the checksum by the book.
func plain(content []byte) string {
	h := sha256.New()
	for c := range slices.Chunk(content, ChunkSize) {
		sum := sha256.Sum256(c)
		h.Write(sum[:])
	}
	return fmt.Sprintf("sha256:%x", h.Sum(nil))
}

func (m *memory) write(r *rand.Rand, at Range) {
	for i := at.Offset; i < at.End(); i++ {
		m.content[i] = byte(r.Uint32())
	}
	m.data = append(m.data, at)
	slices.SortFunc(m.data, func(a, b Range) int { return int(a.Offset - b.Offset) })
}

func TestSumContent(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	m := &memory{content: make([]byte, 5*ChunkSize+8192)}
	m.write(r, Range{4096, 4096})
	m.write(r, Range{2*ChunkSize - 4096, 8192})
	first, err := SumContent(t.Context(), m, nil, nil)
	if err != nil || first.Checksum() != plain(m.content) {
		t.Fatalf("checksum %s, want %s (%v)", first.Checksum(), plain(m.content), err)
	}
	if !slices.Equal(m.read, []int64{0, 1, 2}) {
		t.Fatalf("read chunks %v: holes must not be read", m.read)
	}
	m.read = nil
	m.write(r, Range{3*ChunkSize + 100*4096, 4096})
	second, err := SumContent(t.Context(), m, first, []Range{{3*ChunkSize + 100*4096, 4096}})
	if err != nil || second.Checksum() != plain(m.content) || !slices.Equal(m.read, []int64{3}) {
		t.Fatalf("after a change: %v, read %v", err, m.read)
	}
	// The disk grows: its last chunk was short and is not now.
	m.content = append(m.content, make([]byte, 2*ChunkSize)...)
	grown, err := SumContent(t.Context(), m, second, nil)
	if err != nil || grown.Checksum() != plain(m.content) {
		t.Fatalf("after growing: %s, want %s (%v)", grown.Checksum(), plain(m.content), err)
	}
	if same, err := SumContent(t.Context(), m, grown, nil); err != nil || same.Checksum() != grown.Checksum() {
		t.Fatal("unchanged content has another checksum")
	}
	m.content = m.content[:0]
	m.data = nil
	if none, err := SumContent(t.Context(), m, nil, nil); err != nil || none.Checksum() != plain(nil) {
		t.Fatal("an empty disk")
	}
}

func TestSumContentFails(t *testing.T) {
	m := &memory{content: make([]byte, ChunkSize), data: []Range{{0, 4096}}}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := SumContent(ctx, m, nil, nil); err == nil {
		t.Error("summed after its context had ended")
	}
	if err := ReadFull(bytes.NewReader(nil), make([]byte, 10), 0); err == nil || err == io.EOF {
		t.Errorf("a short read: %v", err)
	}
}

// A digest that is told only of chunks with data is the checksum of the whole.
func TestDigest(t *testing.T) {
	rapid.Check(t, func(r *rapid.T) {
		size := rapid.Int64Range(0, 4*ChunkSize+1).Draw(r, "size")
		content := make([]byte, size)
		var d Digest
		for i := range chunks(size) {
			if rapid.Bool().Draw(r, "written") {
				c := content[i*ChunkSize : min(size, (i+1)*ChunkSize)]
				c[len(c)-1] = byte(i + 1)
				d.Add(i, c)
			}
		}
		d.End(size)
		if d.String() != plain(content) {
			r.Fatalf("%d bytes: %s, want %s", size, d.String(), plain(content))
		}
	})
}
