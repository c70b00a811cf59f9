package backup

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
	"github.com/reflejo/terraform-provider-reflejo/agent/snapshot"
)

// disks reads files (the full one first) back to what the disk holds.
func disks(t testing.TB, files ...[]byte) ([]byte, error) {
	t.Helper()
	var readers []*Reader
	for _, f := range files {
		r, err := NewReader(bytes.NewReader(f))
		if err != nil {
			return nil, err
		}
		readers = append(readers, r)
	}
	c, err := newChain(readers)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	content := make([]byte, c.size)
	err = c.readDisk(t.Context(), 0, nil, func(offset int64, p []byte) error {
		copy(content[offset:], p)
		return nil
	})
	return content, err
}

func TestFileRoundTrip(t *testing.T) {
	for _, size := range []int64{4096 + 8192, 1 << 20, 5<<20 + 4096, 8 << 20} {
		d := newDisk(uint64(size), size)
		f, m := file(t, d, newID(), newID(), nil)
		got, err := disks(t, f)
		if err != nil || !bytes.Equal(got, d.content) {
			t.Fatalf("%d bytes: %v, same %v", size, err, bytes.Equal(got, d.content))
		}
		if bytes.Contains(f, []byte("#!secret")) {
			t.Fatal("the file has the first boot's user data")
		}
		read, err := ReadManifest(bytes.NewReader(f))
		if err != nil || read.ID != m.ID || read.Snapshot.Spec.Name != "web" || read.Snapshot.Image.Init[0] != "/sbin/init" || !read.Snapshot.Created.Equal(m.Snapshot.Created) {
			t.Fatalf("manifest %+v, %v", read, err)
		}
	}
}

func TestEmptyDiskIsASmallFile(t *testing.T) {
	d := &disk{content: make([]byte, 64<<20)}
	f, _ := file(t, d, newID(), newID(), nil)
	if got, err := disks(t, f); err != nil || !bytes.Equal(got, d.content) || len(f) > 4096 {
		t.Fatalf("an empty disk's file has %d bytes: %v", len(f), err)
	}
}

// Chains of random changes come back as the newest disk was.
func TestChainRoundTrip(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		r := rand.New(rand.NewPCG(rapid.Uint64().Draw(rt, "seed"), 2))
		server, d := newID(), newDisk(r.Uint64(), 4<<20+8192)
		f, m := file(t, d, newID(), server, nil)
		files := [][]byte{f}
		for range rapid.IntRange(1, 4).Draw(rt, "increments") {
			d = d.changes(r, m.Snapshot.ID, rapid.IntRange(0, 6).Draw(rt, "changes"))
			f, m = file(t, d, newID(), server, &m)
			files = append(files, f)
		}
		got, err := disks(t, files...)
		if err != nil || !bytes.Equal(got, d.content) {
			rt.Fatalf("%d files: %v, same %v", len(files), err, bytes.Equal(got, d.content))
		}
	})
}

func TestChainRefusesOthers(t *testing.T) {
	server, d := newID(), newDisk(1, 1<<20)
	full, m := file(t, d, newID(), server, nil)
	next := d.changes(rand.New(rand.NewPCG(1, 1)), m.Snapshot.ID, 2)
	inc, _ := file(t, next, newID(), server, &m)
	other, _ := file(t, d, newID(), server, nil)
	for why, files := range map[string][][]byte{"without parent": {inc}, "another's parent": {other, inc}, "twice": {full, full}, "order": {inc, full}} {
		if _, err := disks(t, files...); !fault.Is(err, fault.Precondition) {
			t.Errorf("%s: %v, want Precondition", why, err)
		}
	}
	m.Snapshot.Checksum = "sha256:" + strings.Repeat("0", 64)
	lying := m.onto(m)
	lying.ID, lying.Parent = newID(), m.ID
	var out bytes.Buffer
	w, err := NewWriter(&out, manifestOf(m.ID, "", OriginManual, m.Snapshot), State{})
	if err != nil {
		t.Fatal(err)
	}
	if err := writeContent(t.Context(), d, nil, false, w, nil); !fault.Is(err, fault.Precondition) {
		t.Errorf("a disk that does not have its checksum: %v, want Precondition", err)
	}
	if _, err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := disks(t, out.Bytes()); !fault.Is(err, fault.Precondition) {
		t.Errorf("a file whose disk does not have the manifest's checksum: %v, want Precondition", err)
	}
}

// A disk that was made shorter and longer again holds zeros where it was not.
func TestChainOfShorterDisk(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 3))
	server, d := newID(), newDisk(3, 4<<20)
	d.write(r, snapshot.Range{Offset: 2 << 20, Length: 2 << 20})
	f0, m := file(t, d, newID(), server, nil)
	short := &disk{content: d.content[: 2<<20+8192 : 2<<20+8192], data: []snapshot.Range{{Offset: 0, Length: 2<<20 + 8192}}, changed: map[string][]snapshot.Range{"": {}}}
	f1, m := file(t, short, newID(), server, &m)
	long := &disk{content: append(append([]byte{}, short.content...), make([]byte, 3<<20)...), data: short.data, changed: map[string][]snapshot.Range{"": {}}}
	f2, _ := file(t, long, newID(), server, &m)
	if got, err := disks(t, f0, f1, f2); err != nil || !bytes.Equal(got, long.content) {
		t.Fatalf("%v, same %v", err, bytes.Equal(got, long.content))
	}
}

// tiny is a file with every kind of frame, small enough to walk.
func tiny(t testing.TB) (full, inc []byte) {
	server, d := newID(), newDisk(7, 16384)
	full, m := file(t, d, newID(), server, nil)
	next := &disk{content: bytes.Clone(d.content), data: d.data, changed: map[string][]snapshot.Range{"": {{Offset: 0, Length: 16384}}}}
	clear(next.content[4096:8192])
	next.content[0] = 5
	inc, _ = file(t, next, newID(), server, &m)
	return full, inc
}

func readWhole(f []byte) error {
	r, err := NewReader(bytes.NewReader(f))
	if err != nil {
		return err
	}
	defer r.Close()
	for {
		if _, err := r.Next(); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
	}
}

func TestCutAnywhereIsFound(t *testing.T) {
	full, inc := tiny(t)
	for _, f := range [][]byte{full, inc} {
		for n := range f {
			var damage *Damage
			if err := readWhole(f[:n]); !errors.As(err, &damage) || damage.At > int64(n) || damage.At+damage.Len < int64(n) {
				t.Fatalf("cut at byte %d of %d: %v", n, len(f), err)
			}
			if s, err := Survey(bytes.NewReader(f[:n])); err != nil || s.Totals.Bytes > int64(n) || s.Ended {
				t.Fatalf("survey of %d bytes: %+v, %v", n, s, err)
			}
			// A power cut may leave zeros where the end was not written.
			have := append(bytes.Clone(f[:n]), make([]byte, 100)...)
			if s, err := Survey(bytes.NewReader(have)); err != nil || !bytes.Equal(have[:s.Totals.Bytes], f[:min(int64(len(f)), s.Totals.Bytes)]) {
				t.Fatalf("survey of %d bytes and zeros: %+v, %v", n, s, err)
			}
		}
		var damage *Damage
		if err := readWhole(append(bytes.Clone(f), 0)); !errors.As(err, &damage) || damage.At != int64(len(f)) {
			t.Fatalf("a byte more: %v", err)
		}
	}
}

func TestFlippedBitAnywhereIsFoundAndNamed(t *testing.T) {
	full, inc := tiny(t)
	for _, f := range [][]byte{full, inc} {
		for n := range f {
			for bit := range 8 {
				bad := bytes.Clone(f)
				bad[n] ^= 1 << bit
				var damage *Damage
				if err := readWhole(bad); !errors.As(err, &damage) || int64(n) < damage.At || int64(n) >= damage.At+damage.Len {
					t.Fatalf("bit %d of byte %d of %d flipped: %v", bit, n, len(f), err)
				}
			}
		}
	}
}

func TestDamageNamesTheDiskRange(t *testing.T) {
	d := newDisk(1, 5<<20)
	f, _ := file(t, d, newID(), newID(), nil)
	r, err := NewReader(bytes.NewReader(f))
	if err != nil {
		t.Fatal(err)
	}
	first, err := r.Next()
	if err != nil {
		t.Fatal(err)
	}
	second, err := r.Next()
	if err != nil {
		t.Fatal(err)
	}
	var damage *Damage
	bad := bytes.Clone(f)
	bad[second.At+100] ^= 1
	if err := readWhole(bad); !errors.As(err, &damage) || damage.Disk != second.Range || damage.At != second.At {
		t.Errorf("data of %v at byte %d: %v", second.Range, second.At, err)
	}
	bad = bytes.Clone(f)
	bad[second.At+5] ^= 1
	if err := readWhole(bad); !errors.As(err, &damage) || damage.Disk != (snapshot.Range{Offset: first.Range.End()}) {
		t.Errorf("a frame's head: %v", err)
	}
	// A frame that is missing, or there twice, is damage too, though each is good by itself.
	for why, bad := range map[string][]byte{
		"missing":  append(bytes.Clone(f[:first.At]), f[second.At:]...),
		"repeated": append(bytes.Clone(f[:second.At]), f[first.At:]...),
	} {
		if err := readWhole(bad); !errors.As(err, &damage) {
			t.Errorf("a frame is %s: %v", why, err)
		}
	}
}

func TestWriterGoesOnAnywhere(t *testing.T) {
	server, d := newID(), newDisk(7, 3<<20)
	want, m := file(t, d, newID(), server, nil)
	for n := 0; n <= len(want); n += 1 + len(want)/199 {
		have := bytes.Clone(want[:n])
		s, err := Survey(bytes.NewReader(have))
		if err != nil {
			t.Fatal(err)
		}
		out := bytes.NewBuffer(have[:s.Totals.Bytes])
		w, err := NewWriter(out, m, s)
		if err != nil {
			t.Fatal(err)
		}
		if !s.Ended {
			if err := writeContent(t.Context(), d, nil, false, w, nil); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := w.Close(); err != nil || !bytes.Equal(out.Bytes(), want) {
			t.Fatalf("cut at byte %d and gone on with: %v, same %v", n, err, bytes.Equal(out.Bytes(), want))
		}
	}
	s, err := Survey(bytes.NewReader(want[:len(want)/2]))
	if err != nil {
		t.Fatal(err)
	}
	other := m
	other.ID = newID()
	if _, err := NewWriter(io.Discard, other, s); !fault.Is(err, fault.Precondition) {
		t.Errorf("going on with another's file: %v", err)
	}
}

func TestWriterRefuses(t *testing.T) {
	_, m := file(t, newDisk(1, 2<<20), newID(), newID(), nil)
	w, err := NewWriter(io.Discard, m, State{})
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Data(1<<20, make([]byte, 4096)); err != nil {
		t.Fatal(err)
	}
	for why, err := range map[string]error{
		"before the last":  w.Data(0, make([]byte, 4096)),
		"beyond the disk":  w.Data(2<<20, make([]byte, 4096)),
		"over two chunks":  w.Data(2<<20-4096, make([]byte, 8192)),
		"nothing":          w.Data(1<<20+4096, nil),
		"negative zeros":   w.Zero(snapshot.Range{Offset: 1 << 20, Length: -1}),
		"zeros beyond":     w.Zero(snapshot.Range{Offset: 2<<20 - 4096, Length: 8192}),
		"zeros over data":  w.Zero(snapshot.Range{Offset: 1 << 20, Length: 4096}),
		"too much at once": w.Data(1<<20+4096, make([]byte, 1<<20)),
	} {
		if err == nil {
			t.Errorf("%s: accepted", why)
		}
	}
}

// What reads as a backup must keep its own promises; what does not must say where.
func FuzzReader(f *testing.F) {
	full, inc := tiny(f)
	f.Add(full)
	f.Add(inc)
	f.Add(full[:len(full)/2])
	f.Add([]byte(magic))
	f.Fuzz(func(t *testing.T, file []byte) {
		r, err := NewReader(bytes.NewReader(file))
		var damage *Damage
		for next := int64(0); err == nil; {
			var frame Frame
			if frame, err = r.Next(); err == nil {
				if frame.Range.Offset < next || frame.Range.End() > r.Manifest().Snapshot.Size || frame.Data != nil && int64(len(frame.Data)) != frame.Range.Length {
					t.Fatalf("frame %v of a disk of %d bytes after %d", frame.Range, r.Manifest().Snapshot.Size, next)
				}
				next = frame.Range.End()
			}
		}
		if !errors.Is(err, io.EOF) && !errors.As(err, &damage) {
			t.Fatalf("%v says no place", err)
		}
	})
}

// The fuzzer can't make sums, so it is given a file whose sums are made for it.
func FuzzFrames(f *testing.F) {
	f.Add([]byte{1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 16, 0, 0, 0, 0, 4}, []byte("data"))
	f.Add([]byte{2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 16, 0}, []byte{})
	f.Add([]byte{3}, make([]byte, endPayload))
	_, m := file(f, newDisk(1, 16384), newID(), newID(), nil)
	head, err := encodeHead(m)
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, frame, payload []byte) {
		h := make([]byte, frameSize)
		copy(h[:24], frame)
		p := frameHead{kind: kind(h[0]), payload: uint32(len(payload))}
		for _, b := range h[4:12] {
			p.r.Offset = p.r.Offset<<8 | int64(b)
		}
		for _, b := range h[12:20] {
			p.r.Length = p.r.Length<<8 | int64(b)
		}
		p.put(h)
		last := sum(head[len(head)-sumSize:]).next(h, payload)
		whole := append(append(append(bytes.Clone(head), h...), payload...), last[:]...)
		var damage *Damage
		if err := readWhole(whole); !errors.As(err, &damage) && err != nil {
			t.Fatalf("%v says no place", err)
		}
	})
}
