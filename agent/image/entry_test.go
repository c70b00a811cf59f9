package image

import (
	"archive/tar"
	"encoding/binary"
	"io/fs"
	"strings"
	"testing"
	"time"

	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
)

func TestCleanPath(t *testing.T) {
	for in, want := range map[string]string{
		"etc/passwd": "etc/passwd", "./etc/": "etc", "/etc/passwd": "etc/passwd", "//etc//x": "etc/x",
		".": ".", "./": ".", "/": ".", "": ".", "a/./b": "a/b", "...": "...", "a..b/..c": "a..b/..c",
	} {
		if got, err := cleanPath(in); got != want || err != nil {
			t.Errorf("%q: %q, %v; want %q", in, got, err, want)
		}
	}
	for _, in := range []string{"..", "../x", "a/../b", "a/..", "/..", "./../x", "a\x00b", strings.Repeat("x", 256),
		strings.Repeat("a/", 600), strings.Repeat("abcdefg/", 501)} {
		if got, err := cleanPath(in); !fault.Is(err, fault.Invalid) {
			t.Errorf("%.40q: %q, %v; want it refused", in, got, err)
		}
	}
}

func TestParse(t *testing.T) {
	now := time.Unix(1e9, 0)
	for _, c := range []struct {
		name    string
		header  tar.Header
		layered bool
		want    entry
	}{
		{"file", tar.Header{Name: "a/b", Typeflag: tar.TypeReg, Mode: 0o104755, Uid: 1, Gid: 2, Size: 3}, false, entry{path: "a/b", mode: 0o4755, uid: 1, gid: 2, size: 3}},
		{"dir", tar.Header{Name: "./a/", Typeflag: tar.TypeDir, Mode: 0o1777}, false, entry{path: "a", kind: kindDir, mode: 0o1777}},
		{"symlink may say anything", tar.Header{Name: "a", Typeflag: tar.TypeSymlink, Linkname: "../../../etc"}, false, entry{path: "a", kind: kindSymlink, target: "../../../etc"}},
		{"hard link", tar.Header{Name: "a", Typeflag: tar.TypeLink, Linkname: "/b/c"}, false, entry{path: "a", kind: kindHardLink, target: "b/c"}},
		{"fifo", tar.Header{Name: "p", Typeflag: tar.TypeFifo, Mode: 0o600}, false, entry{path: "p", kind: kindFIFO, mode: 0o600}},
		{"char device", tar.Header{Name: "dev/null", Typeflag: tar.TypeChar}, false, entry{path: "dev/null", kind: kindSkip}},
		{"block device", tar.Header{Name: "dev/sda", Typeflag: tar.TypeBlock}, true, entry{path: "dev/sda", kind: kindSkip}},
		{"global header", tar.Header{Name: "pax_global_header", Typeflag: tar.TypeXGlobalHeader}, false, entry{kind: kindSkip}},
		{"whiteout", tar.Header{Name: "a/.wh.b", Typeflag: tar.TypeReg}, true, entry{path: "a/b", kind: kindWhiteout}},
		{"opaque", tar.Header{Name: "a/.wh..wh..opq", Typeflag: tar.TypeReg}, true, entry{path: "a", kind: kindOpaque}},
		{"opaque root", tar.Header{Name: ".wh..wh..opq", Typeflag: tar.TypeReg}, true, entry{path: ".", kind: kindOpaque}},
		{"aufs", tar.Header{Name: ".wh..wh.plnk/x", Typeflag: tar.TypeReg}, true, entry{path: ".wh..wh.plnk/x"}},
		{"aufs dir", tar.Header{Name: ".wh..wh.plnk", Typeflag: tar.TypeDir}, true, entry{path: ".wh..wh.plnk", kind: kindSkip}},
		{"no whiteout in a root file system", tar.Header{Name: "a/.wh.b", Typeflag: tar.TypeReg}, false, entry{path: "a/.wh.b"}},
	} {
		c.header.ModTime = now
		got, err := parse(&c.header, c.layered)
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		got.time, got.capability = time.Time{}, nil
		if got.path != c.want.path || got.kind != c.want.kind || got.target != c.want.target || got.mode != c.want.mode || got.uid != c.want.uid || got.gid != c.want.gid || got.size != c.want.size {
			t.Errorf("%s: %+v, want %+v", c.name, got, c.want)
		}
	}
	for name, h := range map[string]tar.Header{
		"leaves":              {Name: "../x", Typeflag: tar.TypeReg},
		"hard link leaves":    {Name: "x", Typeflag: tar.TypeLink, Linkname: "../../etc/shadow"},
		"empty link":          {Name: "x", Typeflag: tar.TypeSymlink},
		"long link":           {Name: "x", Typeflag: tar.TypeSymlink, Linkname: strings.Repeat("x", 5000)},
		"unknown type":        {Name: "x", Typeflag: 'Z'},
		"root is a file":      {Name: "/", Typeflag: tar.TypeReg},
		"owner out of range":  {Name: "x", Typeflag: tar.TypeReg, Uid: 65536},
		"negative owner":      {Name: "x", Typeflag: tar.TypeReg, Gid: -1},
		"whiteout of nothing": {Name: "a/.wh.", Typeflag: tar.TypeReg},
		"whiteout of parent":  {Name: "a/.wh...", Typeflag: tar.TypeReg},
	} {
		if e, err := parse(&h, true); !fault.Is(err, fault.Invalid) {
			t.Errorf("%s: %+v, %v", name, e, err)
		}
	}
}

func TestCleanCapability(t *testing.T) {
	make2 := func(magic uint32, n int) []byte {
		b := make([]byte, n)
		binary.LittleEndian.PutUint32(b, magic)
		return b
	}
	v3root := make2(0x03000000, 24)
	binary.LittleEndian.PutUint32(v3root[20:], 100000)
	for name, c := range map[string]struct {
		in   []byte
		want int
	}{
		"none": {nil, 0}, "short": {make2(0x02000000, 12), 0}, "revision 1": {make2(0x01000000, 12), 0},
		"revision 2": {make2(0x02000001, 20), 20}, "revision 2, too long": {make2(0x02000001, 24), 0},
		"revision 3, of the host": {make2(0x03000001, 24), 20}, "revision 3, of a namespace": {v3root, 0},
		"junk": {make2(0xdeadbeef, 20), 0},
	} {
		got := cleanCapability(c.in)
		if len(got) != c.want {
			t.Errorf("%s: %x", name, got)
		}
		if c.want == 20 && binary.LittleEndian.Uint32(got) != 0x02000001 {
			t.Errorf("%s: magic %x", name, got[:4])
		}
	}
}

func TestUnixMode(t *testing.T) {
	if got := unixMode(0o755 | fs.ModeSetuid | fs.ModeSticky); got != 0o5755 {
		t.Errorf("%o", got)
	}
}

func TestParseSource(t *testing.T) {
	for in, want := range map[string]string{
		"oci://docker.io/library/debian:12":       "index.docker.io/library/debian:12",
		"oci://registry.example/a/b":              "registry.example/a/b:latest",
		"oci://registry:5000/a:1":                 "registry:5000/a:1",
		"oci://127.0.0.1:5000/a:1":                "127.0.0.1:5000/a:1 plain",
		"oci://localhost/a:1":                     "localhost/a:1 plain",
		"oci://[::1]:5000/a:1":                    "[::1]:5000/a:1 plain",
		"oci://10.0.0.1:5000/a:1":                 "10.0.0.1:5000/a:1",
		"oci://lab.example:5000/a:1":              "lab.example:5000/a:1 plain",
		"oci://r.example/a@" + digestBytes(nil):   "r.example/a@" + digestBytes(nil),
		"oci://r.example/a:t@" + digestBytes(nil): "r.example/a@" + digestBytes(nil),
		"host:/srv/images/x.tar":                  "/srv/images/x.tar",
		"host:/srv/rootfs/":                       "/srv/rootfs",
	} {
		s, err := parseSource(in, []string{"lab.example:5000"})
		if err != nil {
			t.Errorf("%s: %v", in, err)
			continue
		}
		got := s.path
		if s.ref != nil {
			got = s.ref.Name()
		}
		if s.plain {
			got += " plain"
		}
		if got != want {
			t.Errorf("%s: %q, want %q", in, got, want)
		}
	}
	for _, in := range []string{"", "debian:12", "oci://", "oci://debian:12", "oci://debian", "oci://registry/debian:12", "oci://r.example/", "oci://r.example/UPPER",
		"oci://r.example/a@sha256:12", "host:relative", "host:/a/../b", "host:/a//b", "host:", "http://x/y", "host:/a\x00b", strings.Repeat("x", 5000)} {
		if s, err := parseSource(in, nil); !fault.Is(err, fault.Invalid) || fault.FieldOf(err) != "source" {
			t.Errorf("%.50q: %+v, %v; want it refused, blaming source", in, s, err)
		}
	}
}

func TestAllowedDir(t *testing.T) {
	dirs := []string{"/srv/images", "/srv/images/deep/", "/opt"}
	for in, want := range map[string]string{
		"/srv/images/x.tar": "/srv/images x.tar", "/srv/images": "/srv/images .", "/srv/images/deep/a/b": "/srv/images/deep a/b", "/opt/x": "/opt x",
	} {
		if dir, rel, err := allowedDir(dirs, in); dir+" "+rel != want || err != nil {
			t.Errorf("%s: %q %q %v", in, dir, rel, err)
		}
	}
	for _, in := range []string{"/srv/images2/x", "/srv", "/", "/etc/shadow", "/optional"} {
		if _, _, err := allowedDir(dirs, in); !fault.Is(err, fault.Invalid) {
			t.Errorf("%s: %v", in, err)
		}
	}
	if dir, rel, err := allowedDir([]string{"/"}, "/x/y"); dir != "/" || rel != "x/y" || err != nil {
		t.Errorf("%q %q %v", dir, rel, err)
	}
	if _, _, err := allowedDir(nil, "/x"); !fault.Is(err, fault.Invalid) {
		t.Error(err)
	}
}
