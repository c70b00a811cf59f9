package image

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"syscall"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/therootcompany/xz"

	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
	"github.com/reflejo/terraform-provider-reflejo/agent/units"
)

// decompress reads r as what its first bytes say it is: gzip, zstandard, xz, else as it is.
// Memory is bounded: windows above 128 MiB are refused.
func decompress(r io.Reader) (io.ReadCloser, error) {
	b := bufio.NewReaderSize(r, 256<<10)
	head, err := b.Peek(6)
	if err != nil && err != io.EOF {
		return nil, err
	}
	switch {
	case bytes.HasPrefix(head, []byte{0x1f, 0x8b}):
		z, err := gzip.NewReader(b)
		return z, corrupt("gzip", err)
	case bytes.HasPrefix(head, []byte{0x28, 0xb5, 0x2f, 0xfd}):
		z, err := zstd.NewReader(b, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(maxWindow))
		if err != nil {
			return nil, corrupt("zstandard", err)
		}
		return z.IOReadCloser(), nil
	case bytes.HasPrefix(head, []byte{0xfd, '7', 'z', 'X', 'Z', 0}):
		z, err := xz.NewReader(b, maxWindow)
		return io.NopCloser(z), corrupt("xz", err)
	case bytes.HasPrefix(head, []byte("BZh")):
		return nil, fault.New(fault.Invalid, "it is compressed with bzip2: use gz, zst, xz or none")
	}
	return io.NopCloser(b), nil
}

func compressed(head []byte) bool {
	return bytes.HasPrefix(head, []byte{0x1f, 0x8b}) || bytes.HasPrefix(head, []byte{0x28, 0xb5, 0x2f, 0xfd}) || bytes.HasPrefix(head, []byte{0xfd, '7', 'z', 'X', 'Z', 0})
}

func corrupt(what string, err error) error {
	if err == nil {
		return nil
	}
	return fault.New(fault.Invalid, "read %s data: %w", what, err)
}

// meter is a reader that ends with ctx, refuses more than limit bytes, counts, and hashes.
type meter struct {
	ctx   context.Context
	r     io.Reader
	what  string // for the error
	limit int64
	n     int64
	sum   hash.Hash // nil: not hashed
	tick  func(n int64)
}

func (m *meter) Read(p []byte) (int, error) {
	if m.ctx.Err() != nil {
		return 0, context.Cause(m.ctx)
	}
	n, err := m.r.Read(p)
	m.n += int64(n)
	if m.n > m.limit {
		return 0, fault.New(fault.Invalid, "%s is larger than %s", m.what, units.FormatBytes(m.limit))
	}
	if m.sum != nil {
		m.sum.Write(p[:n])
	}
	if m.tick != nil {
		m.tick(m.n)
	}
	return n, err
}

// digest is the sha256 of what was read so far, in the form of an id.
func (m *meter) digest() string { return digestOf(m.sum) }

func digestOf(h hash.Hash) string { return "sha256:" + hex.EncodeToString(h.Sum(nil)) }

func digestBytes(b []byte) string {
	h := sha256.Sum256(b)
	return "sha256:" + hex.EncodeToString(h[:])
}

// readAll reads at most limit bytes; more is an error.
func readAll(r io.Reader, what string, limit int64) ([]byte, error) {
	b, err := io.ReadAll(io.LimitReader(r, limit+1))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", what, err)
	}
	if int64(len(b)) > limit {
		return nil, fault.New(fault.Invalid, "read %s: larger than %s", what, units.FormatBytes(limit))
	}
	return b, nil
}

// isFull reports whether err says that a disk is full.
func isFull(err error) bool {
	return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT)
}

// classify gives errors a kind where nobody did.
func classify(err error) error {
	var f *fault.Error
	switch {
	case err == nil || errors.As(err, &f):
		return err
	case isFull(err):
		return fault.Wrap(fault.Exhausted, err)
	}
	return err
}
