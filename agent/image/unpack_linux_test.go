package image

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
)

// file, dir, link, hard and the like are short forms of headers for tests' archives.
type item struct {
	tar.Header
	content string
}

func file(name, content string) item {
	return item{tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(len(content))}, content}
}
func dir(name string) item {
	return item{Header: tar.Header{Name: name, Typeflag: tar.TypeDir, Mode: 0o755}}
}
func link(name, target string) item {
	return item{Header: tar.Header{Name: name, Typeflag: tar.TypeSymlink, Linkname: target, Mode: 0o777}}
}
func hard(name, target string) item {
	return item{Header: tar.Header{Name: name, Typeflag: tar.TypeLink, Linkname: target, Mode: 0o644}}
}
func typed(name string, kind byte) item {
	return item{Header: tar.Header{Name: name, Typeflag: kind, Mode: 0o644}}
}

func tarOf(t testing.TB, items ...item) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, i := range items {
		if i.ModTime.IsZero() {
			i.ModTime = time.Unix(1_700_000_000, 0)
		}
		if err := w.WriteHeader(&i.Header); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, i.content); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// jail is a root directory in a directory whose other content must not change.
type jail struct {
	outside, root string
	before        string
}

func newJail(t testing.TB) jail {
	t.Helper()
	outside := t.TempDir()
	j := jail{outside: outside, root: filepath.Join(outside, "root")}
	for name, content := range map[string]string{"secret": "do not read", "etc/passwd": "root:x:0:0"} {
		p := filepath.Join(outside, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(p), 0o755), os.WriteFile(p, []byte(content), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(j.root, 0o755); err != nil {
		t.Fatal(err)
	}
	j.before = j.others(t)
	return j
}

// others describes everything outside the root.
func (j jail) others(t testing.TB) string {
	var b strings.Builder
	err := filepath.WalkDir(j.outside, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if p == j.root {
			return filepath.SkipDir
		}
		info, err := d.Info()
		if err != nil || p == j.outside {
			return err
		}
		st := info.Sys().(*syscall.Stat_t)
		fmt.Fprintln(&b, p, info.Mode(), info.Size(), info.ModTime(), st.Uid, st.Nlink)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func (j jail) check(t testing.TB) {
	t.Helper()
	if after := j.others(t); after != j.before {
		t.Fatalf("the world outside has changed:\n%s\nbefore:\n%s", after, j.before)
	}
}

// show lists the root: "path kind content-or-target".
func show(t testing.TB, root string) string {
	t.Helper()
	var lines []string
	err := filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if err != nil || p == root {
			return err
		}
		rel, _ := filepath.Rel(root, p)
		switch d.Type() {
		case fs.ModeDir:
			rel += "/"
		case fs.ModeSymlink:
			target, _ := os.Readlink(p)
			rel += " -> " + target
		case 0:
			b, err := os.ReadFile(p)
			if err != nil {
				return err
			}
			rel += "=" + string(b)
		default:
			rel += " " + d.Type().String()
		}
		lines = append(lines, rel)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(lines)
	return strings.Join(lines, " ")
}

var testLimits = Limits{Size: 1 << 20, Entries: 200, Download: 1 << 20}

// unpackLayers unpacks archives in order, as layers or (one) as a root file system.
func unpackLayers(t testing.TB, root string, layered bool, archives ...[]byte) error {
	t.Helper()
	tr, err := openTree(root)
	if err != nil {
		t.Fatal(err)
	}
	defer tr.Close()
	u := newUnpacker(tr, testLimits)
	for _, a := range archives {
		if _, err := u.stream(context.Background(), bytes.NewReader(a), layered); err != nil {
			return err
		}
	}
	return u.finish(context.Background())
}

func TestUnpackRootFileSystem(t *testing.T) {
	j := newJail(t)
	err := unpackLayers(t, j.root, false, tarOf(t,
		dir("./"), dir("etc"), file("etc/hostname", "box"), link("bin", "usr/bin"), file("usr/bin/sh", "#!"),
		hard("usr/bin/bash", "usr/bin/sh"), typed("dev/null", tar.TypeChar), typed("dev/sda", tar.TypeBlock), typed("run/pipe", tar.TypeFifo),
		link("etc/mtab", "/proc/self/mounts"), file(".wh.literal", "x"), file("etc/hostname", "replaced")))
	if err != nil {
		t.Fatal(err)
	}
	want := ".wh.literal=x bin -> usr/bin etc/ etc/hostname=replaced etc/mtab -> /proc/self/mounts run/ run/pipe p--------- usr/ usr/bin/ usr/bin/bash=#! usr/bin/sh=#!"
	if got := show(t, j.root); got != want {
		t.Errorf("%s\nwant %s", got, want)
	}
	j.check(t)
}

// TestUnpackLinksStayInside: each archive tries to reach the directory beside the root.
func TestUnpackLinksStayInside(t *testing.T) {
	for name, items := range map[string][]item{
		"absolute link, write through":   {link("out", "/../secret"), file("out/x", "evil")},
		"link up, write through":         {link("out", ".."), file("out/secret", "evil"), file("out/etc/passwd", "evil")},
		"link to absolute path outside":  {link("out", "OUTSIDE"), file("out/secret", "evil")},
		"file link, then write":          {link("secret", "../secret"), file("secret", "evil")},
		"chain of links":                 {link("a", ".."), link("b", "a/.."), link("c", "b/.."), file("c/secret", "evil")},
		"link replaced by directory":     {link("d", ".."), dir("d"), file("d/secret", "evil")},
		"directory replaced by link":     {dir("d"), link("d", ".."), file("d/secret", "evil")},
		"hard link to a link's target":   {link("s", "../secret"), hard("h", "s"), file("h", "evil")},
		"hard link through a link":       {link("up", ".."), hard("h", "up/secret")},
		"hard link to absolute path":     {hard("h", "/etc/passwd")},
		"proc's magic links":             {link("p", "/proc/self/root"), file("p/x", "evil"), link("q", "/proc/self/cwd/.."), file("q/secret", "evil")},
		"whiteout through a link":        {link("up", ".."), file("up/.wh.secret", "")},
		"opaque through a link":          {link("up", ".."), file("up/.wh..wh..opq", "")},
		"opaque directory that is link":  {link("up", "../etc"), file("up/.wh..wh..opq", "")},
		"mode of a link's target":        {link("secret", "../secret"), {Header: tar.Header{Name: "secret", Typeflag: tar.TypeReg, Mode: 0o4777}}},
		"link loop":                      {link("a", "b"), link("b", "a"), file("a/x", "evil")},
		"dangling link in the way":       {link("var", "/../../data/var"), file("var/lib/x", "fine")},
		"directory times through a link": {dir("t"), link("t", "../etc"), file("zz", "")},
	} {
		for _, layered := range []bool{false, true} {
			t.Run(fmt.Sprint(name, layered), func(t *testing.T) {
				j := newJail(t)
				for i := range items {
					items[i].Linkname = strings.ReplaceAll(items[i].Linkname, "OUTSIDE", j.outside)
				}
				// As a second layer, so that whiteouts do what they can.
				err := unpackLayers(t, j.root, layered, tarOf(t, dir("first")), tarOf(t, items...))
				j.check(t)
				if err != nil && !fault.Is(err, fault.Invalid) {
					t.Errorf("refused with %v, want fault.Invalid", err)
				}
			})
		}
	}
}

func TestUnpackRefuses(t *testing.T) {
	many := make([]item, 300)
	for i := range many {
		many[i] = dir(fmt.Sprint("d", i))
	}
	good := tarOf(t, file("a", strings.Repeat("x", 5000)))
	huge := file("big", "")
	huge.Size = 1 << 40
	for name, a := range map[string][]byte{
		"dot dot":                   tarOf(t, file("../secret", "evil")),
		"dot dot inside":            tarOf(t, file("a/../../secret", "evil")),
		"hard link out":             tarOf(t, hard("x", "../secret")),
		"hard link to nothing":      tarOf(t, hard("x", "y")),
		"hard link to a directory":  tarOf(t, dir("d"), hard("x", "d")),
		"file as a directory":       tarOf(t, file("a", ""), file("a/b", "")),
		"too many entries":          tarOf(t, many...),
		"too large":                 tarOf(t, file("a", strings.Repeat("x", 2<<20))),
		"cut in a file":             good[:2000],
		"cut in a header":           good[:300],
		"no tar":                    []byte(strings.Repeat("hello world ", 200)),
		"random":                    bytes.Repeat([]byte{0x1f, 0x8b, 0x08, 3}, 300),
		"huge size, little content": hugeHeader(t, huge),
	} {
		j := newJail(t)
		err := unpackLayers(t, j.root, false, a)
		if !fault.Is(err, fault.Invalid) {
			t.Errorf("%s: %v, want fault.Invalid", name, err)
		}
		j.check(t)
	}
}

func hugeHeader(t *testing.T, i item) []byte {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	if err := w.WriteHeader(&i.Header); err != nil {
		t.Fatal(err)
	}
	b.Write(make([]byte, 4096))
	return b.Bytes()
}

func TestWhiteouts(t *testing.T) {
	base := []item{dir("etc"), file("etc/a", "1"), file("etc/b", "1"), dir("etc/d"), file("etc/d/x", "1"), file("top", "1")}
	for _, c := range []struct {
		name  string
		upper []item
		want  string
	}{
		{"file", []item{file("etc/.wh.a", "")}, "etc/ etc/b=1 etc/d/ etc/d/x=1 top=1"},
		{"directory", []item{file("etc/.wh.d", "")}, "etc/ etc/a=1 etc/b=1 top=1"},
		{"nothing there", []item{file("etc/.wh.zzz", ""), file("no/.wh.such", "")}, "etc/ etc/a=1 etc/b=1 etc/d/ etc/d/x=1 top=1"},
		{"opaque, then content", []item{file("etc/.wh..wh..opq", ""), file("etc/new", "2")}, "etc/ etc/new=2 top=1"},
		{"content, then opaque", []item{file("etc/new", "2"), file("etc/d/y", "2"), file("etc/.wh..wh..opq", "")}, "etc/ etc/d/ etc/d/y=2 etc/new=2 top=1"},
		{"content, then whiteout of the same", []item{file("etc/a", "2"), file("etc/.wh.a", "")}, "etc/ etc/a=2 etc/b=1 etc/d/ etc/d/x=1 top=1"},
		{"directory, then whiteout of the same", []item{dir("etc/d"), file("etc/d/y", "2"), file("etc/.wh.d", "")}, "etc/ etc/a=1 etc/b=1 etc/d/ etc/d/y=2 top=1"},
		{"whiteout, then content", []item{file("etc/.wh.d", ""), file("etc/d", "file now")}, "etc/ etc/a=1 etc/b=1 etc/d=file now top=1"},
		{"opaque root", []item{file(".wh..wh..opq", ""), file("new", "2")}, "new=2"},
		{"directory becomes a file", []item{file("etc", "2")}, "etc=2 top=1"},
		{"directory becomes a link", []item{link("etc", "top")}, "etc -> top top=1"},
		{"file becomes a directory", []item{dir("top"), file("top/x", "2")}, "etc/ etc/a=1 etc/b=1 etc/d/ etc/d/x=1 top/ top/x=2"},
		{"directory stays", []item{dir("etc")}, "etc/ etc/a=1 etc/b=1 etc/d/ etc/d/x=1 top=1"},
		{"hard link to a lower file", []item{hard("etc/c", "top")}, "etc/ etc/a=1 etc/b=1 etc/c=1 etc/d/ etc/d/x=1 top=1"},
		{"hard link to itself", []item{hard("top", "top")}, "etc/ etc/a=1 etc/b=1 etc/d/ etc/d/x=1 top=1"},
	} {
		j := newJail(t)
		if err := unpackLayers(t, j.root, true, tarOf(t, base...), tarOf(t, c.upper...)); err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		if got := show(t, j.root); got != c.want {
			t.Errorf("%s:\n got %s\nwant %s", c.name, got, c.want)
		}
	}
}

// TestLinkedDirectories: layers write through links that earlier ones made, as /var/run does, also where
// the link's target is not there yet.
func TestLinkedDirectories(t *testing.T) {
	j := newJail(t)
	err := unpackLayers(t, j.root, true,
		tarOf(t, dir("run"), dir("var"), link("var/run", "/run"), link("var/lock", "../run/lock"), link("deep", "/x/y/z")),
		tarOf(t, file("var/run/a", "1"), file("var/lock/b", "1"), file("deep/c", "1")))
	if err != nil {
		t.Fatal(err)
	}
	want := "deep -> /x/y/z run/ run/a=1 run/lock/ run/lock/b=1 var/ var/lock -> ../run/lock var/run -> /run x/ x/y/ x/y/z/ x/y/z/c=1"
	if got := show(t, j.root); got != want {
		t.Errorf("%s\nwant %s", got, want)
	}
}

func TestAttributes(t *testing.T) {
	j := newJail(t)
	at := time.Unix(1_600_000_000, 0)
	f, d, l := file("d/su", "x"), dir("d"), link("l", "nowhere")
	f.Mode, f.ModTime = 0o4755, at
	d.Mode, d.ModTime = 0o1777, at.Add(time.Hour)
	l.ModTime = at.Add(2 * time.Hour)
	sparse := file("zeros", strings.Repeat("\x00", 1<<19))
	if err := unpackLayers(t, j.root, false, tarOf(t, d, f, l, file("d/later", ""), sparse)); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]struct {
		mode fs.FileMode
		time time.Time
	}{
		"d/su": {0o755 | fs.ModeSetuid, at}, "d": {0o777 | fs.ModeSticky | fs.ModeDir, at.Add(time.Hour)}, "l": {0o777 | fs.ModeSymlink, at.Add(2 * time.Hour)},
	} {
		info, err := os.Lstat(filepath.Join(j.root, name))
		if err != nil {
			t.Fatal(err)
		}
		if info.Mode() != want.mode || !info.ModTime().Equal(want.time) {
			t.Errorf("%s: %v %v, want %v %v", name, info.Mode(), info.ModTime(), want.mode, want.time)
		}
	}
	info, err := os.Stat(filepath.Join(j.root, "zeros"))
	if err != nil {
		t.Fatal(err)
	}
	if st := info.Sys().(*syscall.Stat_t); st.Size != 1<<19 || st.Blocks*512 >= 1<<19 {
		t.Errorf("zeros: %d bytes in %d blocks, want them not written", st.Size, st.Blocks)
	}
}

func TestInspectTree(t *testing.T) {
	j := newJail(t)
	err := unpackLayers(t, j.root, false, tarOf(t,
		link("sbin", "usr/sbin"), link("usr/sbin/init", "/lib/systemd/systemd"),
		item{tar.Header{Name: "lib/systemd/systemd", Typeflag: tar.TypeReg, Mode: 0o755, Size: 20}, "\x7fELF\x02\x01" + strings.Repeat("\x00", 12) + "\x3e\x00"},
		link("etc/os-release", "../usr/lib/os-release"), file("usr/lib/os-release", "PRETTY_NAME=\"Test OS\"\n")))
	if err != nil {
		t.Fatal(err)
	}
	tr, err := openTree(j.root)
	if err != nil {
		t.Fatal(err)
	}
	defer tr.Close()
	if got, want := inspect(tr), (facts{"Test OS", true, "amd64"}); got != want {
		t.Errorf("%+v, want %+v", got, want)
	}

	// Links to the host's files must not be read, and a FIFO not waited for.
	j = newJail(t)
	if err := unpackLayers(t, j.root, false, tarOf(t, link("etc/os-release", "/proc/self/environ"), link("usr/lib/os-release", "../../../secret"),
		typed("sbin/init", tar.TypeFifo), link("bin/sh", "../secret"))); err != nil {
		t.Fatal(err)
	}
	tr2, err := openTree(j.root)
	if err != nil {
		t.Fatal(err)
	}
	defer tr2.Close()
	if got := inspect(tr2); got != (facts{}) {
		t.Errorf("%+v, want nothing", got)
	}
}

func TestUnpackEndsWithContext(t *testing.T) {
	j := newJail(t)
	tr, err := openTree(j.root)
	if err != nil {
		t.Fatal(err)
	}
	defer tr.Close()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = newUnpacker(tr, testLimits).stream(ctx, bytes.NewReader(tarOf(t, file("a", "x"))), false)
	if !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

// FuzzUnpack: no archive panics, hangs, or changes anything outside the root.
func FuzzUnpack(f *testing.F) {
	f.Add(tarOf(f, link("up", ".."), file("up/secret", "evil")), tarOf(f, file("up/.wh.secret", "")))
	f.Add(tarOf(f, dir("a"), file("a/b", "x"), hard("c", "a/b")), tarOf(f, file("a/.wh..wh..opq", ""), link("a", "/proc")))
	f.Add(tarOf(f, typed("dev/null", tar.TypeChar), typed("p", tar.TypeFifo)), []byte{})
	f.Fuzz(func(t *testing.T, first, second []byte) {
		j := newJail(t)
		err := unpackLayers(t, j.root, true, first, second)
		j.check(t)
		if err != nil && !fault.Is(err, fault.Invalid) {
			t.Fatalf("refused with %v, want fault.Invalid", err)
		}
		// Whatever was made must be removable: TempDir's clean-up fails the test otherwise.
		if err := os.Chmod(j.root, 0o755); err != nil {
			t.Fatal(err)
		}
	})
}

// FuzzOpenTar: no file is taken for an image that it is not, panics, or needs more than it may.
func FuzzOpenTar(f *testing.F) {
	blob := strings.Repeat("a", 64)
	f.Add(tarOf(f, dir("."), file("oci-layout", "{}"), file("index.json", `{"schemaVersion":2,"manifests":[{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"sha256:`+blob+`","size":3}]}`), file("blobs/sha256/"+blob, "abc")))
	f.Add(tarOf(f, file("manifest.json", `[{"Config":"`+blob+`.json","Layers":["`+blob+`/layer.tar"]}]`), file(blob+".json", `{"rootfs":{"diff_ids":["sha256:`+blob+`"]}}`), link(blob+"/layer.tar", "../"+blob+"/layer.tar")))
	f.Add(tarOf(f, file("etc/passwd", "x")))
	f.Add([]byte{0x28, 0xb5, 0x2f, 0xfd, 0, 0})
	f.Fuzz(func(t *testing.T, data []byte) {
		temp := t.TempDir()
		tmp, err := tempFile(temp)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := tmp.Write(data); err != nil {
			t.Fatal(err)
		}
		o := options{arch: "amd64", limits: testLimits, temp: temp, report: func(string, int64, int64) {}}
		c, err := openTar(t.Context(), tarFile{tmp, int64(len(data)), func() (string, error) { return digestBytes(data), nil }, true}, o)
		if err != nil {
			if !fault.Is(err, fault.Invalid) {
				t.Fatalf("refused with %v, want fault.Invalid", err)
			}
			return
		}
		defer c.close()
		if !ValidID(c.about().id) {
			t.Fatalf("id %q", c.about().id)
		}
		j := newJail(t)
		tr, err := openTree(j.root)
		if err != nil {
			t.Fatal(err)
		}
		defer tr.Close()
		if err := c.unpack(t.Context(), newUnpacker(tr, testLimits), o.report); err != nil && !fault.Is(err, fault.Invalid) {
			t.Fatalf("refused with %v, want fault.Invalid", err)
		}
		j.check(t)
	})
}
