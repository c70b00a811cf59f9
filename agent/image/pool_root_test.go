//go:build linux && root

package image_test

import (
	"archive/tar"
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/google/uuid"
	"github.com/klauspost/compress/gzip"
	"golang.org/x/sys/unix"

	"github.com/reflejo/terraform-provider-reflejo/agent/disk"
	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
	"github.com/reflejo/terraform-provider-reflejo/agent/image"
	"github.com/reflejo/terraform-provider-reflejo/agent/vserver"
)

// sized is a pool whose base disks are of this size where none is asked.
type sized struct {
	image.Bases
	size  int64
	asked []int64
}

func (s *sized) Build(ctx context.Context, id string, size int64, fill func(string) error) error {
	s.asked = append(s.asked, size)
	if size == 0 {
		size = s.size
	}
	return s.Bases.Build(ctx, id, size, fill)
}

// newPool is a real pool of 512 MiB, with nothing of it left after the test.
func newPool(t *testing.T) *disk.Pool {
	t.Helper()
	p, err := openPool(poolDir(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	return p
}

func openPool(dir string) (*disk.Pool, error) {
	return disk.Open(context.Background(), disk.Config{Path: filepath.Join(dir, "pool"), RunDir: filepath.Join(dir, "run"), PoolSize: disk.MinPoolSize})
}

// poolDir is a directory that may hold a pool, cleared of mounts after the test.
func poolDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "reflejo-image-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for _, m := range mountsBelow(t, dir) {
			if err := unix.Unmount(m, 0); err != nil {
				t.Errorf("unmount %s: %v", m, err)
				unix.Unmount(m, unix.MNT_DETACH)
			}
		}
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// mountsBelow lists the mounts in dir, newest first.
func mountsBelow(t *testing.T, dir string) []string {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var all []string
	for s := bufio.NewScanner(f); s.Scan(); {
		if at := strings.Fields(s.Text())[4]; strings.HasPrefix(at, dir+"/") {
			all = append(all, at)
		}
	}
	slices.Reverse(all)
	return all
}

// xs is the compressed tar of files of mib MiB each: small to send, large on a disk.
func xs(t *testing.T, mib ...int) []byte {
	t.Helper()
	var b bytes.Buffer
	z, err := gzip.NewWriterLevel(&b, gzip.BestSpeed)
	if err != nil {
		t.Fatal(err)
	}
	w := tar.NewWriter(z)
	for i, n := range mib {
		if err := w.WriteHeader(&tar.Header{Name: fmt.Sprint("x", i), Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(n) << 20}); err != nil {
			t.Fatal(err)
		}
		for range n {
			if _, err := io.Copy(w, strings.NewReader(strings.Repeat("x", 1<<20))); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// ping is the capability that ping has: CAP_NET_RAW, permitted and effective.
var ping = []byte{1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}

// attributes is a tar of files with all that an archive can say about them.
func attributes(t *testing.T) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, i := range []struct {
		tar.Header
		content string
	}{
		{tar.Header{Name: "./", Typeflag: tar.TypeDir, Mode: 0o755}, ""},
		{tar.Header{Name: "home/u/", Typeflag: tar.TypeDir, Mode: 0o700, Uid: 1000, Gid: 1001}, ""},
		{tar.Header{Name: "home/u/f", Typeflag: tar.TypeReg, Mode: 0o640, Uid: 1000, Gid: 65535, Size: 1}, "f"},
		{tar.Header{Name: "home/u/l", Typeflag: tar.TypeSymlink, Linkname: "/nowhere", Uid: 1000, Gid: 1001}, ""},
		{tar.Header{Name: "bin/su", Typeflag: tar.TypeReg, Mode: 0o6755, Size: 2, Gid: 42}, "su"},
		{tar.Header{Name: "bin/ping", Typeflag: tar.TypeReg, Mode: 0o755, Size: 4, PAXRecords: map[string]string{
			"SCHILY.xattr.security.capability": string(ping), "SCHILY.xattr.user.note": "left out", "SCHILY.xattr.trusted.overlay.opaque": "y"}}, "ping"},
		{tar.Header{Name: "dev/sda", Typeflag: tar.TypeBlock, Devmajor: 8, Mode: 0o666}, ""},
		{tar.Header{Name: "run/pipe", Typeflag: tar.TypeFifo, Mode: 0o622, Uid: 7}, ""},
	} {
		if err := w.WriteHeader(&i.Header); err != nil {
			t.Fatal(err)
		}
		io.WriteString(w, i.content)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// TestImageOnRealDisk: what an archive says about owners, modes and capabilities is what a server gets.
func TestImageOnRealDisk(t *testing.T) {
	p := newPool(t)
	bases := &sized{Bases: p.Bases(), size: 64 << 20}
	h := newHost(t, func(c *image.Config) { c.Bases = bases })
	info, err := h.Upload(t.Context(), "x", "x.tar", "", 0, bytes.NewReader(attributes(t)), nil)
	if err != nil {
		t.Fatal(err)
	}
	if info.Size != 64<<20 || info.Used == 0 || info.Used > info.Size {
		t.Errorf("size %d, used %d", info.Size, info.Used)
	}
	id := uuid.NewString()
	if err := p.Create(t.Context(), id, info.ID, info.Size); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Remove(context.Background(), id); err != nil {
			t.Error(err)
		}
	})
	at, err := p.Attach(t.Context(), id, vserver.IDRange{First: 77 << 16, Size: 1 << 16})
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]struct{ mode, uid, gid uint32 }{
		"home/u":   {unix.S_IFDIR | 0o700, 1000, 1001},
		"home/u/f": {unix.S_IFREG | 0o640, 1000, 65535},
		"home/u/l": {unix.S_IFLNK | 0o777, 1000, 1001},
		"bin/su":   {unix.S_IFREG | 0o6755, 0, 42},
		"bin/ping": {unix.S_IFREG | 0o755, 0, 0},
		"run/pipe": {unix.S_IFIFO | 0o622, 7, 0},
		"home":     {unix.S_IFDIR | 0o755, 0, 0},
	} {
		var st syscall.Stat_t
		if err := syscall.Lstat(filepath.Join(at.Root, name), &st); err != nil {
			t.Error(name, err)
			continue
		}
		if st.Mode != want.mode || st.Uid != want.uid || st.Gid != want.gid {
			t.Errorf("%s: mode %o owner %d:%d, want %o %d:%d", name, st.Mode, st.Uid, st.Gid, want.mode, want.uid, want.gid)
		}
	}
	got := make([]byte, 64)
	n, err := unix.Getxattr(filepath.Join(at.Root, "bin/ping"), "security.capability", got)
	if err != nil || !bytes.Equal(got[:n], ping) {
		t.Errorf("capability %x, %v", got[:n], err)
	}
	if n, err := unix.Listxattr(filepath.Join(at.Root, "bin/ping"), got); err != nil || string(got[:n]) != "security.capability\x00" {
		t.Errorf("attributes %q, %v", got[:n], err)
	}
	if _, err := os.Lstat(filepath.Join(at.Root, "dev/sda")); !os.IsNotExist(err) {
		t.Errorf("device node: %v", err)
	}
	entries, err := os.ReadDir(at.Root)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	if want := []string{"bin", "home", "run"}; !slices.Equal(names, want) {
		t.Errorf("root has %v, want %v", names, want)
	}
}

// TestLargeImage: a base disk that the image does not fit is made larger, also when nobody could know.
func TestLargeImage(t *testing.T) {
	p := newPool(t)
	bases := &sized{Bases: p.Bases(), size: 32 << 20}
	h := newHost(t, func(c *image.Config) {
		c.Bases = bases
		c.Limits = image.Limits{Size: 256 << 20}
	})
	info, err := h.Upload(t.Context(), "x", "x.tar", "", 0, bytes.NewReader(xs(t, 20, 20, 20)), nil)
	if err != nil {
		t.Fatal(err)
	}
	if info.Size < 64<<20 || len(bases.asked) != 2 || bases.asked[1] != info.Size {
		t.Errorf("size %d, asked %d", info.Size, bases.asked)
	}
	// A directory's size is known before.
	bases.asked = nil
	tree := filepath.Join(h.dirs, "tree")
	if err := os.Mkdir(tree, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(tree, "x"), bytes.Repeat([]byte("y"), 50<<20), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := h.Import(t.Context(), "tree", "host:"+tree, "", nil); err != nil {
		t.Fatal(err)
	}
	if len(bases.asked) != 2 || bases.asked[1] < 114<<20 {
		t.Errorf("asked %d", bases.asked)
	}
}

// TestFullPool: an image that does not fit the pool is refused, and the pool is as before.
func TestFullPool(t *testing.T) {
	p := newPool(t)
	h := newHost(t, func(c *image.Config) {
		c.Bases = p.Bases()
		c.Limits = image.Limits{Size: 2 << 30}
	})
	_, err := h.Upload(t.Context(), "x", "x.tar", "", 0, bytes.NewReader(xs(t, 200, 200, 200)), nil)
	if !fault.Is(err, fault.Exhausted) {
		t.Errorf("%v, want fault.Exhausted", err)
	}
	if all, err := p.Bases().List(t.Context()); err != nil || len(all) != 0 {
		t.Errorf("left: %+v, %v", all, err)
	}
	h.nothingLeft(t)
	if _, err := h.Upload(t.Context(), "x", "x.tar", "", 0, bytes.NewReader(rootfs(t)), nil); err != nil {
		t.Errorf("after that: %v", err)
	}
}
