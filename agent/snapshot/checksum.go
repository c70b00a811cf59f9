package snapshot

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
	"github.com/reflejo/terraform-provider-reflejo/agent/vserver"
)

// The sums of each snapshot's chunks are kept in a file, so that the next one of its server
// needs to read only what changed. A file proves itself: its sums have to give the checksum
// in the record. So nothing is lost with one but the time to read a disk again, and it is
// not waited for until it is on stable storage.

const sumsSuffix = ".sums"

func (m *Manager) sumsPath(id string) string { return filepath.Join(m.cfg.SumsDir, id+sumsSuffix) }

func (m *Manager) writeSums(id string, sums Sums) error {
	var text bytes.Buffer
	for _, s := range sums {
		text.Write(s[:])
	}
	temp := m.sumsPath(id) + ".new"
	err := os.WriteFile(temp, text.Bytes(), 0o600)
	if err == nil {
		err = os.Rename(temp, m.sumsPath(id))
	}
	if err != nil {
		return fmt.Errorf("keep sums of snapshot %s: %w", id, err)
	}
	return nil
}

// readSums are the sums of a snapshot with this checksum; nil if they are not known.
func (m *Manager) readSums(id, checksum string) Sums {
	text, err := os.ReadFile(m.sumsPath(id))
	if err != nil || checksum == "" {
		return nil
	}
	sums := make(Sums, len(text)/sha256.Size)
	for i := range sums {
		copy(sums[i][:], text[i*sha256.Size:])
	}
	if sums.Checksum() != checksum {
		return nil
	}
	return sums
}

func (m *Manager) removeSums(id string) error {
	if err := os.Remove(m.sumsPath(id)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove sums of snapshot %s: %w", id, err)
	}
	return nil
}

// removeStraySums removes what a killed agent left: sums of no snapshot, and half of a file.
// Nobody else knows the manager yet.
func (m *Manager) removeStraySums() {
	entries, err := os.ReadDir(m.cfg.SumsDir)
	if err != nil {
		m.cfg.Log.Warn("list sums of snapshots", "error", err)
		return
	}
	for _, e := range entries {
		id, rest, _ := strings.Cut(e.Name(), ".")
		if !vserver.ValidID(id) || "."+rest == sumsSuffix && m.items[id] != nil {
			continue
		}
		if err := os.Remove(filepath.Join(m.cfg.SumsDir, e.Name())); err != nil {
			m.cfg.Log.Warn("remove stray sums", "file", e.Name(), "error", err)
		}
	}
}

// sum finds the checksum of a complete snapshot and records it.
func (it *item) sum(ctx context.Context) error {
	if rec := it.record(); rec.Phase != PhaseReady || rec.Checksum != "" {
		return nil
	}
	crashPoint(placeReady)
	it.step("checksum", 4)
	select {
	case it.m.sums <- struct{}{}:
		defer func() { <-it.m.sums }()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	checksum, err := it.sumContent(ctx)
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	crashPoint(placeSummed)
	saveErr := it.save(in(PhaseReady, func(r *Record) {
		r.Checksum, r.Err, r.ErrKind = checksum, "", ""
		if err != nil {
			r.fail(err)
		}
	}))
	return errors.Join(err, saveErr)
}

func (it *item) sumContent(ctx context.Context) (string, error) {
	m, base := it.m, it.record().Base
	c, err := m.cfg.Disks.Open(ctx, it.id)
	if err != nil {
		return "", err
	}
	defer c.Close()
	older, toRead, err := m.known(ctx, c, base)
	if err != nil {
		return "", err
	}
	counting := &counted{Content: c, progress: func(read int64) { it.progress("checksum", 4, min(read, total(toRead)), total(toRead)) }}
	sums, err := SumContent(ctx, counting, older, toRead)
	if err != nil {
		return "", err
	}
	if err := m.writeSums(it.id, sums); err != nil {
		m.cfg.Log.Warn("the next snapshot's checksum will take longer", "snapshot", it.id, "error", err)
	}
	return sums.Checksum(), nil
}

// known are the sums of the snapshot that c came after, and the ranges in which c may differ
// from it; all of c's data where nothing is known.
func (m *Manager) known(ctx context.Context, c Content, base string) (older Sums, changed []Range, err error) {
	if v, err := m.view(base); err == nil {
		older = m.readSums(base, v.Checksum)
	}
	if older != nil {
		changed, err = c.Changed(ctx, base)
		if err == nil {
			return older, changed, nil
		}
		if !fault.Is(err, fault.NotFound) {
			return nil, nil, err
		}
	}
	changed, err = c.Data(ctx)
	return nil, changed, err
}

// counted tells how much of a content was read, every 64 MiB.
type counted struct {
	Content
	read, told int64
	progress   func(read int64)
}

// ReadAt implements io.ReaderAt, for one goroutine at a time.
func (c *counted) ReadAt(p []byte, offset int64) (int, error) {
	n, err := c.Content.ReadAt(p, offset)
	c.read += int64(n)
	if c.read-c.told >= 64<<20 {
		c.told = c.read
		c.progress(c.read)
	}
	return n, err
}
