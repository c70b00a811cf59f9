package image

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
)

// blobs are the files of an OCI layout or of `docker save`, by path.
type blobs interface {
	// open opens a file; one that is not there is fs.ErrNotExist.
	open(name string) (io.ReadCloser, error)
}

// readSmall reads a manifest, index or config.
func readSmall(b blobs, name string) ([]byte, error) {
	f, err := b.open(name)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", name, err)
	}
	defer f.Close()
	return readAll(f, name, maxManifest)
}

// openImage reads what image is in b, for architecture arch. The content opens its layers in b.
func openImage(b blobs, arch string, limits Limits) (*ociContent, error) {
	index, err := readSmall(b, "index.json")
	if errors.Is(err, fs.ErrNotExist) {
		return openSaved(b, arch, limits)
	}
	if err != nil {
		return nil, err
	}
	p, err := pick(func(d v1.Descriptor) ([]byte, error) { return readSmall(b, blobPath(d.Digest.String())) }, index, arch, true)
	if err != nil {
		return nil, missing(err)
	}
	c, err := newOCIContent(p, limits)
	if err != nil {
		return nil, err
	}
	for i := range c.layers {
		c.layers[i].open = func(context.Context) (io.ReadCloser, error) {
			f, err := b.open(blobPath(c.layers[i].digest))
			return f, missing(err)
		}
	}
	// index.json of a layout is not the image's index: each program that copies a layout writes its own.
	c.what.digests = withoutDigest(c.what.digests, digestBytes(index))
	return c, nil
}

func withoutDigest(all []string, d string) []string {
	var kept []string
	for _, x := range all {
		if x != d {
			kept = append(kept, x)
		}
	}
	return kept
}

func blobPath(digest string) string { return "blobs/" + strings.Replace(digest, ":", "/", 1) }

// missing says what a missing file means here: the image is not whole.
func missing(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return fault.New(fault.Invalid, "the image is incomplete: %w", err)
	}
	return err
}

// openSaved reads the format of `docker save` of before 2024: layers are verified by the config, and
// the config's digest is the image's id, as Docker shows it.
func openSaved(b blobs, arch string, limits Limits) (*ociContent, error) {
	raw, err := readSmall(b, "manifest.json")
	if err != nil {
		return nil, missing(err)
	}
	var saved []struct {
		Config   string
		RepoTags []string
		Layers   []string
	}
	if err := json.Unmarshal(raw, &saved); err != nil {
		return nil, fault.New(fault.Invalid, "read manifest.json: %w", err)
	}
	if len(saved) != 1 {
		return nil, fault.New(fault.Invalid, "read manifest.json: it has %d images, want one", len(saved))
	}
	rawConfig, err := readSmall(b, saved[0].Config)
	if err != nil {
		return nil, missing(err)
	}
	config, err := v1.ParseConfigFile(bytes.NewReader(rawConfig))
	if err != nil {
		return nil, fault.New(fault.Invalid, "read image config: %w", err)
	}
	if err := checkImage(config, arch); err != nil {
		return nil, err
	}
	ids := config.RootFS.DiffIDs
	if len(ids) == 0 || len(ids) != len(saved[0].Layers) || len(ids) > maxLayers {
		return nil, fault.New(fault.Invalid, "read manifest.json: %d layers, the config has %d; want the same number, 1 … %d", len(saved[0].Layers), len(ids), maxLayers)
	}
	id := digestBytes(rawConfig)
	c := &ociContent{what: about{id: id, digests: []string{id}, architecture: config.Architecture, config: config.Config}, max: limits.Download}
	for i, name := range saved[0].Layers {
		c.layers = append(c.layers, layer{diffID: ids[i].String(), open: func(context.Context) (io.ReadCloser, error) {
			f, err := b.open(name)
			return f, missing(err)
		}})
	}
	return c, nil
}

// tarBlobs are the files in a plain tar, found by one reading of its headers.
type tarBlobs struct {
	file  io.ReaderAt
	spans map[string]span
}

type span struct {
	at, size int64
	link     string // of a symbolic link: `docker save` wrote one for a layer that it had already
}

func (t *tarBlobs) open(name string) (io.ReadCloser, error) {
	s, ok := t.spans[path.Clean(name)]
	for range 8 {
		if !ok || s.link == "" {
			break
		}
		s, ok = t.spans[s.link]
	}
	if !ok || s.link != "" {
		return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
	}
	return io.NopCloser(io.NewSectionReader(t.file, s.at, s.size)), nil
}

// imageFile reports whether a file of this path can be in an OCI layout or `docker save` tar.
// Everything else is in a root file system.
func imageFile(p string, dir bool) bool {
	top, rest, deep := strings.Cut(p, "/")
	switch {
	case p == "." || top == "blobs":
		return true
	case p == "oci-layout" || p == "index.json" || p == "manifest.json" || p == "repositories":
		return !dir
	case isHex(top): // docker save: a directory per layer
		return dir && !deep || rest == "layer.tar" || rest == "json" || rest == "VERSION"
	}
	// Configs and layers beside each other, as crane writes them too.
	for _, ending := range []string{".json", ".tar", ".tar.gz", ""} {
		if name, ok := strings.CutSuffix(p, ending); ok && (isHex(name) && ending != "" || ValidID(name)) {
			return !dir
		}
	}
	return false
}

func isHex(s string) bool { return ValidID("sha256:" + s) }

// scanTar reads the headers of a tar. It stops with image false at the first entry that shows a root
// file system; else spans has all files, if r can tell where it is (plain).
func scanTar(r io.Reader, plain io.Seeker, limits Limits) (spans map[string]span, image bool, err error) {
	spans = map[string]span{}
	t := tar.NewReader(r)
	for n := int64(0); ; n++ {
		h, err := t.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return nil, false, damagedArchive(err)
		}
		p, err := cleanPath(h.Name)
		if err != nil {
			return nil, false, err
		}
		if !imageFile(p, h.Typeflag == tar.TypeDir) {
			return nil, false, nil
		}
		if n > 100*maxLayers || n > limits.Entries {
			return nil, false, fault.New(fault.Invalid, "read tar: too many files for an OCI layout")
		}
		s := span{size: h.Size}
		switch h.Typeflag {
		case tar.TypeReg:
		case tar.TypeSymlink:
			s.link = path.Join(path.Dir(p), h.Linkname)
		default:
			continue
		}
		if plain != nil {
			if s.at, err = plain.Seek(0, io.SeekCurrent); err != nil {
				return nil, false, fmt.Errorf("read tar: %w", err)
			}
		}
		spans[p] = s
	}
	_, oci := spans["index.json"]
	_, saved := spans["manifest.json"]
	return spans, oci || saved, nil
}

// options are what every source needs to know.
type options struct {
	arch   string
	limits Limits
	temp   string // directory for temporary files
	report Progress
}

// tarFile is a tar on disk, maybe compressed, and its digest.
type tarFile struct {
	*os.File
	size   int64
	digest func() (string, error) // reads the file, if its digest is not known yet
	asked  bool                   // the digest will be compared, also if it is not the id
}

// openTar is what a tar holds: an OCI image, or a root file system. It takes over the file.
func openTar(ctx context.Context, f tarFile, o options) (content, error) {
	c, err := openImageTar(ctx, f, o)
	if err == nil && c == nil {
		id, err := f.digest()
		if err != nil {
			f.Close()
			return nil, err
		}
		return &tarContent{file: f.File, size: f.size, id: id}, nil
	}
	if err == nil && f.asked {
		var id string
		id, err = f.digest()
		c.what.digests = append(c.what.digests, id)
	}
	if err != nil {
		if c != nil {
			c.close()
		}
		f.Close()
		return nil, err
	}
	c.closers = append(c.closers, func() { f.Close() })
	return c, nil
}

// openImageTar is the OCI image in a tar, nil if it holds something else.
func openImageTar(ctx context.Context, f tarFile, o options) (*ociContent, error) {
	plain, is, err := plainTar(ctx, f, o)
	if err != nil || !is {
		return nil, err
	}
	section := io.NewSectionReader(plain, 0, plain.size)
	spans, _, err := scanTar(section, section, o.limits)
	var c *ociContent
	if err == nil {
		c, err = openImage(&tarBlobs{plain, spans}, o.arch, o.limits)
	}
	if plain.File == f.File {
		return c, err
	}
	if err != nil {
		plain.Close()
		return nil, err
	}
	c.closers = append(c.closers, func() { plain.Close() })
	return c, nil
}

// plainTar is f itself, or what is in it if it is compressed, in a temporary file; is tells whether it
// has an image at all: a root file system shows itself by its first entries and is not unpacked here.
func plainTar(ctx context.Context, f tarFile, o options) (plain tarFile, is bool, err error) {
	z, err := decompress(io.NewSectionReader(f, 0, f.size))
	if err != nil {
		return tarFile{}, false, err
	}
	defer func() { z.Close() }()
	if _, is, err = scanTar(&meter{ctx: ctx, r: z, what: "the unpacked tar", limit: o.limits.Download}, nil, o.limits); err != nil || !is {
		return tarFile{}, false, err
	}
	head := make([]byte, 6)
	if _, err := f.ReadAt(head, 0); err != nil {
		return tarFile{}, false, fmt.Errorf("read file: %w", err)
	}
	if !compressed(head) {
		return f, true, nil
	}
	z.Close()
	if z, err = decompress(io.NewSectionReader(f, 0, f.size)); err != nil {
		return tarFile{}, false, err
	}
	temp, m, err := spool(ctx, o.temp, z, "the unpacked tar", o.limits.Download, func(n int64) { o.report("decompressing", n, 0) })
	if err != nil {
		return tarFile{}, false, damagedArchive(err)
	}
	return tarFile{File: temp, size: m.n}, true, nil
}
