package migrate

import (
	"bytes"
	"math/rand/v2"
	"testing"

	"github.com/reflejo/terraform-provider-reflejo/agent/snapshot"
)

func TestPiecesKeepTheirContent(t *testing.T) {
	t.Parallel()
	p, err := newPacker()
	if err != nil {
		t.Fatal(err)
	}
	u, err := newUnpacker()
	if err != nil {
		t.Fatal(err)
	}
	defer u.zstd.Close()
	r := rand.New(rand.NewPCG(1, 2))
	for i := range 60 {
		content := bytes.Repeat([]byte{byte(i + 1)}, 1+r.IntN(pieceSize))
		if i%2 == 0 {
			for j := range content {
				content[j] = byte(r.Uint32())
			}
		}
		header, packed, sum := p.pack(int64(i)*4096, content)
		frame := append(bytes.Clone(header), packed...)
		d, err := decodePiece(frame)
		if err != nil || d.Range != (snapshot.Range{Offset: int64(i) * 4096, Length: int64(len(content))}) || d.Sum != sum {
			t.Fatalf("%+v, %v", d.Range, err)
		}
		if got, err := u.content(d); err != nil || !bytes.Equal(got, content) {
			t.Fatalf("piece %d: %v", i, err)
		}
		frame[len(frame)-1] ^= 1
		if d, err = decodePiece(frame); err == nil {
			if got, err := u.content(d); err == nil && !bytes.Equal(got, content) {
				t.Fatalf("piece %d: a flipped bit was not seen", i)
			}
		}
		for _, n := range []int{0, dataHeader - 1, len(header)} {
			if d, err := decodePiece(frame[:n]); err == nil {
				if _, err = u.content(d); err == nil {
					t.Errorf("a frame cut at %d was read", n)
				}
			}
		}
	}
}

// What does not shrink is not tried for a while, and then again.
func TestPackerGivesUpForAWhile(t *testing.T) {
	t.Parallel()
	p, err := newPacker()
	if err != nil {
		t.Fatal(err)
	}
	noise, text := make([]byte, pieceSize), make([]byte, pieceSize)
	r := rand.New(rand.NewPCG(1, 2))
	for i := range noise {
		noise[i] = byte(r.Uint32())
	}
	p.pack(0, noise)
	packed := 0
	for range 40 {
		if header, _, _ := p.pack(0, text); header[16] == 1 {
			packed++
		}
	}
	if packed != 40-16 {
		t.Errorf("%d of 40 were compressed", packed)
	}
}

func FuzzFrames(f *testing.F) {
	p, err := newPacker()
	if err != nil {
		f.Fatal(err)
	}
	header, packed, _ := p.pack(8192, bytes.Repeat([]byte("reflejo"), 1000))
	f.Add(append(header, packed...))
	f.Add(encodeZero(snapshot.Range{Offset: 4096, Length: 65536}))
	u, err := newUnpacker()
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if d, err := decodePiece(b); err == nil {
			if d.Range.Offset < 0 || d.Range.Length <= 0 || d.Range.Length > pieceSize {
				t.Errorf("range %+v", d.Range)
			}
			if content, err := u.content(d); err == nil && int64(len(content)) != d.Range.Length {
				t.Errorf("%d bytes for %+v", len(content), d.Range)
			}
		}
		if z, err := decodeZero(b); err == nil && (z.Offset < 0 || z.Length <= 0 || z.End() < 0 || !bytes.Equal(encodeZero(z), b)) {
			t.Errorf("range %+v", z)
		}
		if move, secret, err := decodeTicket(string(b)); err == nil && encodeTicket(move, secret) != string(b) {
			t.Errorf("ticket %q is not what was read", b)
		}
	})
}
