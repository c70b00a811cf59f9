package image_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"

	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
	"github.com/reflejo/terraform-provider-reflejo/agent/image"
)

// gated is a host whose builds wait at the gate.
func gated(t *testing.T) (*host, *gate) {
	g := &gate{entered: make(chan struct{}, 100), open: make(chan struct{})}
	h := newHost(t, func(c *image.Config) {
		g.Bases = c.Bases
		c.Bases = g
	})
	return h, g
}

func TestImportsOfOneImageAreShared(t *testing.T) {
	h, g := gated(t)
	source := h.write(t, "a.tar", rootfs(t))
	other := h.write(t, "b.tar", rootfs(t))
	var wg sync.WaitGroup
	ids := make([]string, 9)
	for i := range ids {
		wg.Go(func() {
			var info image.Info
			var err error
			switch i % 3 {
			case 0: // the same request
				info, err = h.Import(t.Context(), "a", source, "", nil)
			case 1: // the same content under other names
				info, err = h.Import(t.Context(), fmt.Sprint("n", i), other, "", nil)
			case 2:
				info, err = h.Upload(t.Context(), fmt.Sprint("n", i), "./a.tar", "", 0, bytes.NewReader(rootfs(t)), nil)
			}
			if err != nil {
				t.Error(err)
			}
			ids[i] = info.ID
		})
	}
	<-g.entered
	close(g.open)
	wg.Wait()
	for _, id := range ids {
		if id != ids[0] {
			t.Errorf("ids %v", ids)
		}
	}
	if g.builds != 1 {
		t.Errorf("%d builds, want 1", g.builds)
	}
	if l := h.List(); len(l) != 7 {
		t.Errorf("%d names, want 7: %+v", len(l), l)
	}
	h.noTemp(t)
}

func TestTheNameIsKeptWhileItIsImported(t *testing.T) {
	h, g := gated(t)
	source := h.write(t, "a.tar", rootfs(t))
	done := make(chan error)
	go func() {
		_, err := h.Import(t.Context(), "a", source, "", nil)
		done <- err
	}()
	<-g.entered
	if _, err := h.Import(t.Context(), "a", source+"x", "", nil); !fault.Is(err, fault.Aborted) {
		t.Errorf("other source: %v", err)
	}
	if _, err := h.Upload(t.Context(), "a", "x", "", 0, bytes.NewReader(nil), nil); !fault.Is(err, fault.Aborted) {
		t.Errorf("upload: %v", err)
	}
	close(g.open)
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// TestCancel: whoever goes, the others get their image; when all have gone nothing is left.
func TestCancel(t *testing.T) {
	h, g := gated(t)
	source := h.write(t, "a.tar", rootfs(t))
	ctx1, cancel1 := context.WithCancel(t.Context())
	first, second := make(chan error, 1), make(chan error, 1)
	go func() {
		_, err := h.Import(ctx1, "a", source, "", nil)
		first <- err
	}()
	<-g.entered
	started := make(chan struct{})
	go func() {
		close(started)
		_, err := h.Import(t.Context(), "b", source, "", nil)
		second <- err
	}()
	<-started
	cancel1()
	if err := <-first; !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled import: %v", err)
	}
	close(g.open)
	if err := <-second; err != nil {
		t.Errorf("the other import: %v", err)
	}
	if l := h.List(); len(l) != 1 || l[0].Name != "b" {
		t.Errorf("%+v", l)
	}

	h, g = gated(t)
	source = h.write(t, "a.tar", rootfs(t))
	ctx, cancel := context.WithCancel(t.Context())
	errs := make(chan error, 3)
	for i := range 3 {
		go func() {
			_, err := h.Import(ctx, fmt.Sprint("n", i), source, "", nil)
			errs <- err
		}()
	}
	<-g.entered
	cancel()
	for range 3 {
		if err := <-errs; !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	}
	h.nothingLeft(t)
	close(g.open)
	if _, err := h.Import(t.Context(), "n0", source, "", nil); err != nil {
		t.Errorf("again: %v", err)
	}
}

func TestCancelledUploadLeavesNothing(t *testing.T) {
	h := newHost(t, nil)
	r, w := io.Pipe()
	go func() {
		w.Write(rootfs(t)[:600])
		w.CloseWithError(context.Canceled)
	}()
	if _, err := h.Upload(t.Context(), "a", "x", "", 0, r, nil); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	h.nothingLeft(t)
}

// TestDeleteAgainstImport: whatever the order, the image is there whole or not at all.
func TestDeleteAgainstImport(t *testing.T) {
	h := newHost(t, nil)
	source := h.write(t, "a.tar", rootfs(t))
	for range 20 {
		var wg sync.WaitGroup
		for _, name := range []string{"a", "b"} {
			wg.Go(func() {
				if _, err := h.Import(t.Context(), name, source, "", nil); err != nil && !fault.Is(err, fault.Aborted) {
					t.Error(err)
				}
				if err := h.Delete(t.Context(), name); err != nil && !fault.Is(err, fault.Aborted) && !fault.Is(err, fault.NotFound) {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		bases, err := h.pool.Bases().List(t.Context())
		if l := h.List(); err != nil || (len(l) > 0) != (len(bases) > 0) {
			t.Fatalf("images %+v, base disks %+v, %v", l, bases, err)
		}
	}
}

func TestFullDisk(t *testing.T) {
	full := fmt.Errorf("write: %w", syscall.ENOSPC)
	h := newHost(t, nil)
	source := h.write(t, "a.tar", rootfs(t))
	h.pool.Fail("build", full)
	if _, err := h.Import(t.Context(), "a", source, "", nil); !fault.Is(err, fault.Exhausted) {
		t.Errorf("%v, want fault.Exhausted", err)
	}
	h.pool.Fail("build", nil)
	h.nothingLeft(t)

	// The state file cannot be written: the image that nobody would know of is taken back.
	failing := &failingStore{Records: h.config.Store, err: full}
	h.config.Store = failing
	h.restart(t)
	if _, err := h.Import(t.Context(), "a", source, "", nil); !fault.Is(err, fault.Exhausted) {
		t.Errorf("%v, want fault.Exhausted", err)
	}
	h.nothingLeft(t)
	failing.err = nil
	if _, err := h.Import(t.Context(), "a", source, "", nil); err != nil {
		t.Error(err)
	}
}

type failingStore struct {
	image.Records
	err error
}

func (s *failingStore) Put(key string, v any) error {
	if s.err != nil {
		return s.err
	}
	return s.Records.Put(key, v)
}

// TestRecover: each state that a kill can leave.
func TestRecover(t *testing.T) {
	h := newHost(t, nil)
	ctx := t.Context()
	keep, err := h.Import(ctx, "keep", h.write(t, "keep.tar", rootfs(t)), "", nil)
	if err != nil {
		t.Fatal(err)
	}
	// Killed while a temporary file had its name still, while building, and between building and recording.
	if err := os.WriteFile(filepath.Join(h.temp, "import-123"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	h.pool.LeavePartial(digest([]byte("partial")))
	if err := h.pool.Bases().Build(ctx, digest([]byte("unrecorded")), 0, func(string) error { return nil }); err != nil {
		t.Fatal(err)
	}
	// Lost its base disk.
	lost, err := h.Import(ctx, "lost", h.write(t, "lost.tar", files(t, "lost=x")), "", nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := h.pool.Bases().Remove(ctx, lost.ID); err != nil {
		t.Fatal(err)
	}
	h.restart(t)
	if want := "base " + keep.ID + " for disks from 67108864\n"; h.pool.String() != want {
		t.Errorf("pool:\n%swant:\n%s", h.pool, want)
	}
	if l := h.List(); len(l) != 1 || l[0].Name != "keep" {
		t.Errorf("%+v", l)
	}
	h.noTemp(t)

	// Deletion that failed half-way: not found any more; finished by whatever comes next.
	for name, finish := range map[string]func(id string) error{
		"recover":      func(string) error { h.restart(t); return nil },
		"delete again": func(id string) error { return h.Delete(ctx, id) },
		"import again": func(string) error {
			_, err := h.Import(ctx, "gone", "host:"+filepath.Join(h.dirs, "gone.tar"), "", nil)
			return errors.Join(err, h.Delete(ctx, "gone"))
		},
	} {
		gone, err := h.Import(ctx, "gone", h.write(t, "gone.tar", files(t, "gone=x")), "", nil)
		if err != nil {
			t.Fatal(err)
		}
		h.pool.Fail("remove", errors.New("device is busy"))
		if err := h.Delete(ctx, "gone"); err == nil {
			t.Errorf("%s: deleted", name)
		}
		h.pool.Fail("remove", nil)
		if _, err := h.Get("gone"); !fault.Is(err, fault.NotFound) {
			t.Errorf("%s: half deleted and still there: %v", name, err)
		}
		if err := finish(gone.ID); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if want := "base " + keep.ID + " for disks from 67108864\n"; h.pool.String() != want {
			t.Errorf("%s: pool:\n%s", name, h.pool)
		}
	}
}
