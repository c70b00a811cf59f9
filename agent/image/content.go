package image

import (
	"archive/tar"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"sync/atomic"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
	"github.com/reflejo/terraform-provider-reflejo/agent/units"
)

// content is what a source turned out to be: an image with a known id.
type content interface {
	// about describes it as far as is known before unpacking.
	about() about
	// fetch brings what is not on this host yet into temporary files in dir, verified.
	fetch(ctx context.Context, dir string, report Progress) error
	// unpack writes all layers; when it returns nil every byte has been verified.
	unpack(ctx context.Context, u *unpacker, report Progress) error
	// close releases files.
	close()
}

type about struct {
	id           string
	digests      []string // what a checksum may say, id included
	architecture string   // "" if unknown
	config       v1.Config
	size         int64 // unpacked, bytes; 0 if unknown
}

// shared is a content that is closed when its last user is done with it.
type shared struct {
	content
	users atomic.Int32
}

func share(c content) *shared {
	s := &shared{content: c}
	s.users.Store(1)
	return s
}

func (s *shared) retain() { s.users.Add(1) }

func (s *shared) release() {
	if s.users.Add(-1) == 0 {
		s.close()
	}
}

// layer is one archive of an OCI image.
type layer struct {
	digest string // of the bytes as they are stored; "" if nobody says (docker save)
	diffID string // of the tar in them
	size   int64  // as stored, bytes; 0 if nobody says
	open   func(ctx context.Context) (io.ReadCloser, error)
}

// ociContent is an OCI or Docker image.
type ociContent struct {
	what     about
	layers   []layer
	max      int64                                                                       // bytes of a layer whose size nobody says
	download func(ctx context.Context, c *ociContent, dir string, report Progress) error // nil: the blobs are here
	closers  []func()
}

func (c *ociContent) about() about { return c.what }

func (c *ociContent) fetch(ctx context.Context, dir string, report Progress) error {
	if c.download == nil {
		return nil
	}
	return c.download(ctx, c, dir, report)
}

func (c *ociContent) close() {
	for _, f := range c.closers {
		f()
	}
}

func (c *ociContent) unpack(ctx context.Context, u *unpacker, report Progress) error {
	var total, before int64
	for _, l := range c.layers {
		total += l.size
	}
	for i, l := range c.layers {
		n, err := c.unpackLayer(ctx, u, l, func(n int64) { report("unpacking", before+n, total) })
		if err != nil {
			return fmt.Errorf("layer %d of %d: %w", i+1, len(c.layers), err)
		}
		before += n
	}
	return nil
}

func (c *ociContent) unpackLayer(ctx context.Context, u *unpacker, l layer, tick func(int64)) (int64, error) {
	f, err := l.open(ctx)
	if err != nil {
		return 0, fmt.Errorf("open: %w", err)
	}
	defer f.Close()
	limit := l.size
	if limit == 0 {
		limit = c.max
	}
	stored := &meter{ctx: ctx, r: f, what: "the layer", limit: limit, sum: sha256.New(), tick: tick}
	plain, err := u.stream(ctx, stored, true)
	if err != nil {
		return 0, err
	}
	if l.digest != "" && stored.digest() != l.digest {
		return 0, fault.New(fault.Invalid, "verify layer: it has digest %s, the manifest says %s", stored.digest(), l.digest)
	}
	if plain != l.diffID {
		return 0, fault.New(fault.Invalid, "verify layer: its tar has digest %s, the image config says %s", plain, l.diffID)
	}
	return stored.n, nil
}

// stream unpacks one tar, compressed or not, reads r to its end, and returns the digest of the tar.
func (u *unpacker) stream(ctx context.Context, r io.Reader, layered bool) (string, error) {
	z, err := decompress(r)
	if err != nil {
		return "", damagedArchive(err)
	}
	defer z.Close()
	plain := &meter{ctx: ctx, r: z, what: "the unpacked image", limit: u.limits.Size - u.read, sum: sha256.New()}
	err = u.layer(ctx, tar.NewReader(plain), layered)
	u.read += plain.n
	if err != nil {
		return "", err
	}
	before := plain.n
	// What follows the tar's end belongs to the digest, and the compressed data's own checksum comes last.
	if _, err := io.Copy(io.Discard, plain); err != nil {
		return "", damagedArchive(err)
	}
	u.read += plain.n - before
	if _, err := io.Copy(io.Discard, r); err != nil {
		return "", damagedArchive(err)
	}
	return plain.digest(), nil
}

// tarContent is a root file system in a tar file.
type tarContent struct {
	file *os.File
	size int64
	id   string
}

func (c *tarContent) about() about { return about{id: c.id, digests: []string{c.id}} }
func (c *tarContent) close()       { c.file.Close() }

func (c *tarContent) fetch(context.Context, string, Progress) error { return nil }

func (c *tarContent) unpack(ctx context.Context, u *unpacker, report Progress) error {
	stored := &meter{ctx: ctx, r: io.NewSectionReader(c.file, 0, c.size), what: "file", limit: c.size, sum: sha256.New(),
		tick: func(n int64) { report("unpacking", n, c.size) }}
	if _, err := u.stream(ctx, stored, false); err != nil {
		return err
	}
	if stored.digest() != c.id {
		return fault.New(fault.Aborted, "verify file: it changed while it was read")
	}
	return nil
}

// hashFile is the digest of the file's first size bytes.
func hashFile(ctx context.Context, f io.ReaderAt, size int64, report Progress) (string, error) {
	m := &meter{ctx: ctx, r: io.NewSectionReader(f, 0, size), what: "file", limit: size, sum: sha256.New(),
		tick: func(n int64) { report("reading", n, size) }}
	n, err := io.Copy(io.Discard, m)
	if err != nil {
		return "", fmt.Errorf("read file: %w", err)
	}
	if n != size {
		return "", fault.New(fault.Aborted, "read file: it became shorter while it was read")
	}
	return m.digest(), nil
}

// spool copies r into a temporary file without a name in dir, hashing; nothing is left of it when it is
// closed, or the agent killed. More than limit bytes are refused. The meter tells what was read, also
// after a failure; it is nil if nothing was tried.
func spool(ctx context.Context, dir string, r io.Reader, what string, limit int64, tick func(int64)) (*os.File, *meter, error) {
	f, err := tempFile(dir)
	if err != nil {
		return nil, nil, err
	}
	m := &meter{ctx: ctx, r: r, what: what, limit: limit, sum: sha256.New(), tick: tick}
	if _, err := io.CopyBuffer(struct{ io.Writer }{f}, struct{ io.Reader }{m}, make([]byte, 256<<10)); err != nil {
		f.Close()
		if isFull(err) {
			return nil, m, fault.New(fault.Exhausted, "keep %s in %s: no space left after %s: %w", what, dir, units.FormatBytes(m.n), err)
		}
		return nil, m, fmt.Errorf("read %s: %w", what, err)
	}
	return f, m, nil
}

const tempPrefix = "import-"

func tempFile(dir string) (*os.File, error) {
	f, err := os.CreateTemp(dir, tempPrefix)
	if err != nil {
		return nil, fmt.Errorf("make temporary file: %w", err)
	}
	if err := os.Remove(f.Name()); err != nil {
		f.Close()
		return nil, fmt.Errorf("unlink temporary file: %w", err)
	}
	return f, nil
}
