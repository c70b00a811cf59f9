package backup

import (
	"bytes"
	"io"
	"math/rand/v2"
	"testing"

	"github.com/reflejo/terraform-provider-reflejo/agent/snapshot"
)

// full is a disk of which all is written, about half of it bytes that can be packed.
func fullDisk(size int64) *disk {
	d := &disk{content: make([]byte, size), data: []snapshot.Range{{Offset: 0, Length: size}}}
	r := rand.NewChaCha8([32]byte{1})
	for i := int64(0); i < size; i += 8192 {
		r.Read(d.content[i : i+4096])
		copy(d.content[i+4096:], bytes.Repeat([]byte("a line of a log file, as they are\n"), 120))
	}
	return d
}

func BenchmarkWrite(b *testing.B) {
	d := fullDisk(256 << 20)
	m := manifestOf(newID(), "", OriginManual, recordOf(b, newID(), newID(), d))
	b.SetBytes(d.Size())
	for b.Loop() {
		w, err := NewWriter(io.Discard, m, State{})
		if err != nil {
			b.Fatal(err)
		}
		if err := writeContent(b.Context(), d, nil, false, w, nil); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkRead(b *testing.B) {
	d := fullDisk(256 << 20)
	f, _ := file(b, d, newID(), newID(), nil)
	b.SetBytes(d.Size())
	for b.Loop() {
		r, err := NewReader(bytes.NewReader(f))
		if err != nil {
			b.Fatal(err)
		}
		c, err := newChain([]*Reader{r})
		if err != nil {
			b.Fatal(err)
		}
		if err := c.readDisk(b.Context(), 0, nil, func(int64, []byte) error { return nil }); err != nil {
			b.Fatal(err)
		}
		c.Close()
	}
}
