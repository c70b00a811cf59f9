package snapshottest

import (
	"archive/tar"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"

	"github.com/reflejo/terraform-provider-reflejo/agent/snapshot"
)

const (
	blockSize = 4096

	// A fake disk is a folder. Its bytes are: this word, the length of an archive (8 bytes,
	// little-endian), zeros to the end of the block, the archive. Bytes that do not begin so
	// are kept in one file of a folder that has nothing else.
	magic   = "fakedisk"
	rawFile = ".bytes-of-the-disk"
)

// blob is the bytes of a disk. Blocks that are not there are zeros.
type blob struct {
	size   int64
	blocks map[int64][]byte // by number, each blockSize long; never changed, only replaced
}

func newBlob(size int64) *blob { return &blob{size: size, blocks: map[int64][]byte{}} }

func (b *blob) clone() *blob { return &blob{size: b.size, blocks: maps.Clone(b.blocks)} }

// ReadAt implements io.ReaderAt.
func (b *blob) ReadAt(p []byte, offset int64) (n int, err error) {
	if offset < 0 {
		return 0, errors.New("read: negative offset")
	}
	for n < len(p) && offset < b.size {
		block, at := b.blocks[offset/blockSize], offset%blockSize
		piece := p[n:min(len(p), n+int(min(blockSize-at, b.size-offset)))]
		clear(piece)
		if block != nil {
			copy(piece, block[at:])
		}
		n, offset = n+len(piece), offset+int64(len(piece))
	}
	if n < len(p) {
		err = io.EOF
	}
	return n, err
}

// writeAt writes whole blocks; the last one of a disk may be shorter.
func (b *blob) writeAt(p []byte, offset int64) {
	for len(p) > 0 {
		block := make([]byte, blockSize)
		n := copy(block, p)
		b.blocks[offset/blockSize] = block
		p, offset = p[n:], offset+int64(n)
	}
}

func (b *blob) zero(r snapshot.Range) {
	for n := r.Offset / blockSize; n*blockSize < r.End(); n++ {
		delete(b.blocks, n)
	}
}

// ranges are the blocks for which keep holds, as ranges.
func (b *blob) ranges(blocks map[int64][]byte, keep func(n int64) bool) []snapshot.Range {
	var out []snapshot.Range
	for _, n := range slices.Sorted(maps.Keys(blocks)) {
		from, to := n*blockSize, min((n+1)*blockSize, b.size)
		switch last := len(out) - 1; {
		case from >= to || !keep(n):
		case last >= 0 && out[last].End() == from:
			out[last].Length = to - out[last].Offset
		default:
			out = append(out, snapshot.Range{Offset: from, Length: to - from})
		}
	}
	return out
}

// pack makes the bytes of a folder.
func pack(root string, size int64) (*blob, error) {
	b := newBlob(size)
	if raw, err := os.ReadFile(filepath.Join(root, rawFile)); err == nil {
		b.write(raw)
		return b, nil
	}
	var archive bytes.Buffer
	w := tar.NewWriter(&archive)
	err := filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
		name, relErr := filepath.Rel(root, path)
		if err := errors.Join(err, relErr); err != nil || name == "." {
			return err
		}
		return packOne(w, path, filepath.ToSlash(name), e)
	})
	if err = errors.Join(err, w.Close()); err != nil {
		return nil, fmt.Errorf("pack %s: %w", root, err)
	}
	head := binary.LittleEndian.AppendUint64([]byte(magic), uint64(archive.Len()))
	all := append(append(head, make([]byte, blockSize-len(head))...), archive.Bytes()...)
	if int64(len(all)) > size {
		return nil, fmt.Errorf("pack %s: %d bytes do not fit into %d", root, len(all), size)
	}
	b.write(all)
	return b, nil
}

// write writes all of the disk from its beginning; blocks of zeros are left out.
func (b *blob) write(all []byte) {
	zeros := make([]byte, blockSize)
	for offset := int64(0); offset < min(int64(len(all)), b.size); offset += blockSize {
		block := all[offset:min(offset+blockSize, int64(len(all)))]
		if !bytes.Equal(block, zeros[:len(block)]) {
			b.writeAt(block, offset)
		}
	}
}

func packOne(w *tar.Writer, path, name string, e fs.DirEntry) error {
	info, err := e.Info()
	if err != nil {
		return err
	}
	h := &tar.Header{Name: name, Mode: int64(info.Mode().Perm())}
	var content []byte
	switch {
	case e.IsDir():
		h.Typeflag = tar.TypeDir
	case e.Type()&fs.ModeSymlink != 0:
		h.Typeflag = tar.TypeSymlink
		if h.Linkname, err = os.Readlink(path); err != nil {
			return err
		}
	case e.Type().IsRegular():
		h.Typeflag = tar.TypeReg
		if content, err = os.ReadFile(path); err != nil {
			return err
		}
		h.Size = int64(len(content))
	default:
		return nil // no test needs a device
	}
	if err := w.WriteHeader(h); err != nil {
		return err
	}
	_, err = w.Write(content)
	return err
}

// unpack fills a folder with what the bytes hold.
func (b *blob) unpack(root string) error {
	head := make([]byte, len(magic)+8)
	if _, err := b.ReadAt(head, 0); err != nil {
		return err
	}
	if string(head[:len(magic)]) != magic {
		end := int64(0)
		for n := range b.blocks {
			end = max(end, min((n+1)*blockSize, b.size))
		}
		raw := make([]byte, end)
		if _, err := b.ReadAt(raw, 0); err != nil {
			return err
		}
		return os.WriteFile(filepath.Join(root, rawFile), raw, 0o600)
	}
	length := int64(binary.LittleEndian.Uint64(head[len(magic):]))
	r := tar.NewReader(io.NewSectionReader(b, blockSize, length))
	for {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("unpack disk: %w", err)
		}
		if err := unpackOne(r, h, filepath.Join(root, filepath.FromSlash(h.Name))); err != nil {
			return fmt.Errorf("unpack %s: %w", h.Name, err)
		}
	}
}

func unpackOne(r io.Reader, h *tar.Header, path string) error {
	switch h.Typeflag {
	case tar.TypeDir:
		return os.Mkdir(path, fs.FileMode(h.Mode)|0o700)
	case tar.TypeSymlink:
		return os.Symlink(h.Linkname, path)
	}
	content, err := io.ReadAll(r)
	if err != nil {
		return err
	}
	return os.WriteFile(path, content, fs.FileMode(h.Mode))
}
