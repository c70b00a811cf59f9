package image_test

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"

	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
	"github.com/reflejo/terraform-provider-reflejo/agent/image"
	"github.com/reflejo/terraform-provider-reflejo/agent/store"
	"github.com/reflejo/terraform-provider-reflejo/agent/vserver/vservertest"
)

// host is one agent's image manager with all it stands on: a fake pool, a real store.
type host struct {
	*image.Manager
	pool   *vservertest.Pool
	dirs   string // what host: sources may name
	temp   string
	poolAt string
	config image.Config
	users  atomic.Int64
}

// gate is a pool whose builds wait, so that tests can act in the middle of one.
type gate struct {
	image.Bases
	mu      sync.Mutex
	builds  int
	entered chan struct{} // nil: not told
	open    chan struct{} // nil: builds do not wait
}

func (g *gate) Build(ctx context.Context, id string, size int64, fill func(string) error) error {
	g.mu.Lock()
	g.builds++
	entered, open := g.entered, g.open
	g.mu.Unlock()
	if entered != nil {
		entered <- struct{}{}
	}
	return g.Bases.Build(ctx, id, size, func(root string) error {
		if open != nil {
			select {
			case <-open:
			case <-ctx.Done():
			}
		}
		return fill(root)
	})
}

func newHost(t *testing.T, change func(*image.Config)) *host {
	t.Helper()
	root := t.TempDir()
	h := &host{dirs: filepath.Join(root, "images"), temp: filepath.Join(root, "tmp"), poolAt: filepath.Join(root, "pool")}
	for _, d := range []string{h.dirs, h.poolAt} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	db, err := store.Open(filepath.Join(root, "state.db"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	h.pool = vservertest.NewPool(h.poolAt, 0)
	h.config = image.Config{
		Bases: h.pool.Bases(), Store: db.Bucket("images"), Dirs: []string{h.dirs}, TempDir: h.temp,
		InUse:  func(string) int { return int(h.users.Load()) },
		Limits: image.Limits{Size: 8 << 20, Download: 16 << 20, Entries: 1000},
	}
	if change != nil {
		change(&h.config)
	}
	h.restart(t)
	return h
}

// restart makes a new manager from what is stored, as a start of the agent does.
func (h *host) restart(t *testing.T) {
	t.Helper()
	m, err := image.NewManager(h.config)
	if err != nil {
		t.Fatal(err)
	}
	if err := m.Recover(t.Context()); err != nil {
		t.Fatal(err)
	}
	h.Manager = m
}

// nothingLeft fails if the pool or the temporary directory holds anything.
func (h *host) nothingLeft(t *testing.T) {
	t.Helper()
	if s := h.pool.String(); s != "" {
		t.Errorf("pool holds:\n%s", s)
	}
	if list := h.List(); len(list) != 0 {
		t.Errorf("images: %+v", list)
	}
	h.noTemp(t)
}

func (h *host) noTemp(t *testing.T) {
	t.Helper()
	if entries, err := os.ReadDir(h.temp); err != nil || len(entries) != 0 {
		t.Errorf("temporary files: %v, %v", entries, err)
	}
}

func (h *host) write(t *testing.T, name string, content []byte) string {
	t.Helper()
	if err := os.WriteFile(filepath.Join(h.dirs, name), content, 0o644); err != nil {
		t.Fatal(err)
	}
	return "host:" + filepath.Join(h.dirs, name)
}

// files is the tar of a root file system; a key ending in / is a directory.
func files(t testing.TB, content ...string) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, c := range content {
		name, text, _ := strings.Cut(c, "=")
		h := &tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o755, Size: int64(len(text))}
		if strings.HasSuffix(name, "/") {
			h.Typeflag = tar.TypeDir
		}
		if target, ok := strings.CutPrefix(text, "-> "); ok {
			h.Typeflag, h.Linkname, h.Size, text = tar.TypeSymlink, target, 0, ""
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, text); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func rootfs(t testing.TB) []byte {
	return files(t, "etc/", "etc/os-release=PRETTY_NAME=\"Test OS 1\"\n", "sbin/", "sbin/init=#!/bin/sh\n", "bin=-> sbin")
}

func gz(t testing.TB, b []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	w := gzip.NewWriter(&out)
	if _, err := w.Write(b); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func zst(t testing.TB, b []byte) []byte {
	t.Helper()
	w, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	return w.EncodeAll(b, nil)
}

func xz(t testing.TB) []byte {
	t.Helper()
	b, err := os.ReadFile("testdata/rootfs.tar.xz") // made with xz -9 of the files of rootfs
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestImportTar(t *testing.T) {
	for name, data := range map[string][]byte{"plain": rootfs(t), "gz": gz(t, rootfs(t)), "zst": zst(t, rootfs(t)), "xz": xz(t)} {
		t.Run(name, func(t *testing.T) {
			h := newHost(t, nil)
			source := h.write(t, "debian.tar", data)
			var steps []string
			info, err := h.Import(t.Context(), "debian", source, digest(data), func(step string, _, _ int64) { steps = append(steps, step) })
			if err != nil {
				t.Fatal(err)
			}
			if info.ID != digest(data) || info.Name != "debian" || info.OS != "Test OS 1" || info.Init != nil || info.Size != 64<<20 || info.Source != source || info.Created.IsZero() {
				t.Errorf("%+v", info)
			}
			if b, err := os.ReadFile(h.inBase(info.ID, "sbin/init")); string(b) != "#!/bin/sh\n" {
				t.Errorf("content %q, %v", b, err)
			}
			if len(steps) == 0 {
				t.Error("no progress")
			}
			h.noTemp(t)

			// The same through an upload, under a second name: the same image.
			again, err := h.Upload(t.Context(), "copy", "./debian.tar", "", int64(len(data)), bytes.NewReader(data), nil)
			if err != nil || again.ID != info.ID || again.Source != "./debian.tar" {
				t.Errorf("%+v, %v", again, err)
			}
			h.noTemp(t)
		})
	}
}

func (h *host) inBase(id, name string) string {
	return filepath.Join(h.poolAt, "bases", strings.ReplaceAll(id, ":", "-"), name)
}

func TestImportDirectory(t *testing.T) {
	h := newHost(t, nil)
	root := filepath.Join(h.dirs, "tree")
	for name, content := range map[string]string{"etc/os-release": "PRETTY_NAME=Tree\n", "sbin/init": "x", "b/one": "same"} {
		if err := errors.Join(os.MkdirAll(filepath.Dir(filepath.Join(root, name)), 0o755), os.WriteFile(filepath.Join(root, name), []byte(content), 0o755)); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(os.Link(filepath.Join(root, "b/one"), filepath.Join(root, "b/two")), os.Symlink("/etc", filepath.Join(root, "link")),
		syscall.Mkfifo(filepath.Join(root, "pipe"), 0o600)); err != nil {
		t.Fatal(err)
	}
	info, err := h.Import(t.Context(), "tree", "host:"+root, "", nil)
	if err != nil {
		t.Fatal(err)
	}
	if info.OS != "Tree" || info.Init != nil {
		t.Errorf("%+v", info)
	}
	one, err1 := os.Stat(h.inBase(info.ID, "b/one"))
	two, err2 := os.Stat(h.inBase(info.ID, "b/two"))
	if err := errors.Join(err1, err2); err != nil || !os.SameFile(one, two) {
		t.Errorf("hard link is lost: %v", err)
	}
	if target, err := os.Readlink(h.inBase(info.ID, "link")); target != "/etc" {
		t.Error(target, err)
	}

	// A copy has the same id: times and the place do not matter, content and modes do.
	again := func(name string, change func(root string) error) string {
		copied := filepath.Join(h.dirs, name)
		if err := os.CopyFS(copied, os.DirFS(filepath.Join(root, "etc"))); err != nil {
			t.Fatal(err)
		}
		if change != nil {
			if err := change(copied); err != nil {
				t.Fatal(err)
			}
		}
		i, err := h.Import(t.Context(), name, "host:"+copied, "", nil)
		if err != nil {
			t.Fatal(err)
		}
		return i.ID
	}
	first := again("one", nil)
	if second := again("two", nil); second != first {
		t.Error("a copy has another id")
	}
	if other := again("three", func(root string) error { return os.Chmod(filepath.Join(root, "os-release"), 0o600) }); other == first {
		t.Error("another mode, the same id")
	}
	if other := again("four", func(root string) error { return os.WriteFile(filepath.Join(root, "os-release"), []byte("x"), 0o755) }); other == first {
		t.Error("other content, the same id")
	}
}

func TestHostSourcesStayInTheirDirectories(t *testing.T) {
	h := newHost(t, nil)
	outside := filepath.Join(t.TempDir(), "secret.tar")
	if err := errors.Join(os.WriteFile(outside, rootfs(t), 0o600), os.Symlink(outside, filepath.Join(h.dirs, "abs.tar")), os.Symlink("../state.db", filepath.Join(h.dirs, "up")),
		os.Symlink("/proc/self/root", filepath.Join(h.dirs, "proc")), syscall.Mkfifo(filepath.Join(h.dirs, "fifo"), 0o600)); err != nil {
		t.Fatal(err)
	}
	for source, want := range map[string]fault.Kind{
		"host:" + outside:                               fault.Invalid,
		"host:" + filepath.Join(h.dirs, "abs.tar"):      fault.Invalid,
		"host:" + filepath.Join(h.dirs, "up"):           fault.Invalid,
		"host:" + filepath.Join(h.dirs, "proc/etc"):     fault.Invalid,
		"host:" + filepath.Join(h.dirs, "fifo"):         fault.Invalid,
		"host:" + filepath.Join(h.dirs, "none.tar"):     fault.NotFound,
		"host:" + h.dirs + "/../images/x":               fault.Invalid,
		"host:" + filepath.Join(h.dirs, "fifo/x"):       fault.NotFound,
		"host:" + strings.Repeat("/x", 3000):            fault.Invalid,
		"host:" + filepath.Join(h.dirs, "\x01\xff.tar"): fault.NotFound,
	} {
		if _, err := h.Import(t.Context(), "x", source, "", nil); !fault.Is(err, want) {
			t.Errorf("%s: %v, want %v", source, err, want)
		}
	}
	// A link that stays inside is fine.
	h.write(t, "real.tar", rootfs(t))
	if err := os.Symlink("real.tar", filepath.Join(h.dirs, "latest.tar")); err != nil {
		t.Fatal(err)
	}
	if _, err := h.Import(t.Context(), "x", "host:"+filepath.Join(h.dirs, "latest.tar"), "", nil); err != nil {
		t.Error(err)
	}
}

func TestImportRefuses(t *testing.T) {
	big := files(t, "big="+strings.Repeat("\x00", 10<<20))
	var many []string
	for i := range 1100 {
		many = append(many, fmt.Sprint("d", i, "/"))
	}
	good := gz(t, rootfs(t))
	damagedCRC := bytes.Clone(good)
	damagedCRC[len(damagedCRC)-6] ^= 1
	for name, data := range map[string][]byte{
		"bomb gz":         gz(t, big),
		"bomb zst":        zst(t, big),
		"bomb after tar":  gz(t, append(rootfs(t), make([]byte, 10<<20)...)),
		"many entries":    gz(t, files(t, many...)),
		"escape":          files(t, "../../x=evil"),
		"truncated gz":    good[:len(good)-20],
		"truncated zst":   zst(t, rootfs(t))[:100],
		"truncated xz":    xz(t)[:200],
		"truncated plain": rootfs(t)[:700],
		"wrong CRC":       damagedCRC,
		"empty file":      {},
		"empty tar":       files(t),
		"text":            []byte("hello"),
		"bzip2":           []byte("BZh91AY&SY"),
		"foreign program": files(t, "bin/sh=\x7fELF\x02\x01"+strings.Repeat("\x00", 12)+"\xf3\x00"),
	} {
		t.Run(name, func(t *testing.T) {
			h := newHost(t, nil)
			if _, err := h.Import(t.Context(), "x", h.write(t, "x.tar", data), "", nil); !fault.Is(err, fault.Invalid) {
				t.Errorf("import: %v, want fault.Invalid", err)
			}
			if _, err := h.Upload(t.Context(), "x", "file", "", 0, bytes.NewReader(data), nil); !fault.Is(err, fault.Invalid) {
				t.Errorf("upload: %v, want fault.Invalid", err)
			}
			h.nothingLeft(t)
		})
	}
}

func TestBadRequests(t *testing.T) {
	h := newHost(t, nil)
	good := h.write(t, "x.tar", rootfs(t))
	wrong := digest([]byte("something else"))
	for _, c := range []struct{ name, source, checksum, field string }{
		{"", good, "", "name"}, {"UPPER", good, "", "name"}, {"a b", good, "", "name"}, {digest(nil), good, "", "name"}, {strings.Repeat("x", 64), good, "", "name"},
		{"x", "", "", "source"}, {"x", "debian", "", "source"},
		{"x", good, "md5:1", "checksum"}, {"x", good, strings.ToUpper(wrong), "checksum"}, {"x", good, wrong, "checksum"},
	} {
		if _, err := h.Import(t.Context(), c.name, c.source, c.checksum, nil); !fault.Is(err, fault.Invalid) || fault.FieldOf(err) != c.field {
			t.Errorf("%+v: %v, blames %q", c, err, fault.FieldOf(err))
		}
	}
	if _, err := h.Upload(t.Context(), "x", "f", wrong, 0, bytes.NewReader(rootfs(t)), nil); fault.FieldOf(err) != "checksum" {
		t.Error(err)
	}
	if _, err := h.Upload(t.Context(), "x", "f", "", 1<<40, bytes.NewReader(nil), nil); !fault.Is(err, fault.Invalid) {
		t.Error(err)
	}
	if _, err := h.Upload(t.Context(), "x", "f", "", 99999, bytes.NewReader(rootfs(t)), nil); !fault.Is(err, fault.Invalid) {
		t.Error(err)
	}
	if _, err := h.Upload(t.Context(), "x", "f", "", 0, io.LimitReader(zeroReader{}, 17<<20), nil); !fault.Is(err, fault.Invalid) {
		t.Error(err)
	}
	if _, err := h.Get("nothing"); !fault.Is(err, fault.NotFound) {
		t.Error(err)
	}
	if err := h.Delete(t.Context(), "nothing"); !fault.Is(err, fault.NotFound) {
		t.Error(err)
	}
	h.nothingLeft(t)
}

type zeroReader struct{}

func (zeroReader) Read(p []byte) (int, error) { clear(p); return len(p), nil }

func TestNames(t *testing.T) {
	h := newHost(t, nil)
	ctx := t.Context()
	data := rootfs(t)
	source := h.write(t, "a.tar", data)
	info, err := h.Import(ctx, "a", source, "", nil)
	if err != nil {
		t.Fatal(err)
	}
	// Again: at once, though the source is gone.
	if err := os.Remove(strings.TrimPrefix(source, "host:")); err != nil {
		t.Fatal(err)
	}
	if again, err := h.Import(ctx, "a", source, digest(data), nil); err != nil || again.ID != info.ID {
		t.Errorf("%+v, %v", again, err)
	}
	if _, err := h.Import(ctx, "a", source, digest(nil), nil); !fault.Is(err, fault.Exists) {
		t.Errorf("another checksum: %v", err)
	}
	if _, err := h.Import(ctx, "a", source+"2", "", nil); !fault.Is(err, fault.Exists) {
		t.Errorf("another source: %v", err)
	}
	if _, err := h.Upload(ctx, "b", "./b.tar", "", 0, bytes.NewReader(data), nil); err != nil {
		t.Fatal(err)
	}
	if i, err := h.Upload(ctx, "b", "./b.tar", "", 0, failingReader{}, nil); err != nil || i.Name != "b" {
		t.Errorf("upload again: %v", err)
	}
	if i, err := h.Get(info.ID); err != nil || i.Name != "a" {
		t.Errorf("by id: %+v, %v", i, err)
	}
	if i, err := h.Get("b"); err != nil || i.Name != "b" || i.ID != info.ID {
		t.Errorf("by name: %+v, %v", i, err)
	}
}

// TestRenameAndDelete: an image with two names, one after the other taken away.
func TestRenameAndDelete(t *testing.T) {
	h := newHost(t, nil)
	ctx := t.Context()
	info, err := h.Upload(ctx, "a", "./a.tar", "", 0, bytes.NewReader(rootfs(t)), nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := h.Upload(ctx, "b", "./b.tar", "", 0, bytes.NewReader(rootfs(t)), nil); err != nil {
		t.Fatal(err)
	}
	h.restart(t)
	if l := h.List(); len(l) != 2 || l[0].Name != "a" || l[1].Name != "b" {
		t.Errorf("%+v", l)
	}
	if _, err := h.Rename(info.ID, "c"); !fault.Is(err, fault.Precondition) {
		t.Errorf("rename of an id with two names: %v", err)
	}
	if err := h.Delete(ctx, info.ID); !fault.Is(err, fault.Precondition) {
		t.Errorf("delete of an id with two names: %v", err)
	}
	if _, err := h.Rename("a", "b"); !fault.Is(err, fault.Exists) {
		t.Errorf("rename to a taken name: %v", err)
	}
	if _, err := h.Rename("a", "Bad"); !fault.Is(err, fault.Invalid) {
		t.Error(err)
	}
	if i, err := h.Rename("a", "c"); err != nil || i.Name != "c" {
		t.Errorf("%+v, %v", i, err)
	}
	if _, err := h.Rename("c", "c"); err != nil {
		t.Error(err)
	}
	h.users.Store(2)
	if err := h.Delete(ctx, "c"); err != nil {
		t.Errorf("delete of one of two names while in use: %v", err)
	}
	if err := h.Delete(ctx, "b"); !fault.Is(err, fault.Precondition) {
		t.Errorf("delete of the last name while in use: %v", err)
	}
	if i, err := h.Rename(info.ID, "d"); err != nil || i.Name != "d" {
		t.Errorf("%+v, %v", i, err)
	}
	h.users.Store(0)
	if err := h.Delete(ctx, info.ID); err != nil {
		t.Error(err)
	}
	h.nothingLeft(t)
	h.restart(t)
	h.nothingLeft(t)
}

type failingReader struct{}

func (failingReader) Read([]byte) (int, error) { return 0, errors.New("must not be read") }
