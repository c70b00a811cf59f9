package disk

import (
	"context"
	"encoding/binary"
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
	"github.com/reflejo/terraform-provider-reflejo/agent/vserver"
)

func TestConfigValidate(t *testing.T) {
	good := Config{Path: "/p", RunDir: "/r"}
	for name, c := range map[string]struct {
		change func(*Config)
		field  string
	}{
		"defaults":        {func(c *Config) {}, ""},
		"smallest":        {func(c *Config) { c.PoolSize = MinPoolSize }, ""},
		"largest":         {func(c *Config) { c.PoolSize = MaxSize }, ""},
		"too small":       {func(c *Config) { c.PoolSize = MinPoolSize - 1 }, "pool.size"},
		"too large":       {func(c *Config) { c.PoolSize = MaxSize + 1 }, "pool.size"},
		"negative":        {func(c *Config) { c.PoolSize = -1 }, "pool.size"},
		"relative path":   {func(c *Config) { c.Path = "p" }, "pool.path"},
		"no path":         {func(c *Config) { c.Path = "" }, "pool.path"},
		"relative rundir": {func(c *Config) { c.RunDir = "./r" }, "run_dir"},
	} {
		cfg := good
		c.change(&cfg)
		err := cfg.Validate()
		if fault.FieldOf(err) != c.field || (err != nil) != fault.Is(err, fault.Invalid) {
			t.Errorf("%s: error %v blames %q, want %q", name, err, fault.FieldOf(err), c.field)
		}
	}
}

func TestEmbeddedSize(t *testing.T) {
	const gib = 1 << 30
	for _, c := range []struct {
		asked, free, want int64
		kind              fault.Kind
	}{
		{0, 10 * gib, 8 * gib, 0},
		{0, 1 << 20, 0, fault.Exhausted},
		{gib + 1, 10 * gib, gib + mebibyte, 0},
		{2 * gib, gib, 0, fault.Exhausted},
		{0, 1 << 60, MaxSize, 0},
	} {
		have, err := embeddedSize(c.asked, c.free)
		if have != c.want || fault.KindOf(err) != c.kind {
			t.Errorf("embeddedSize(%d, %d) = %d, %v; want %d, %v", c.asked, c.free, have, err, c.want, c.kind)
		}
	}
}

func TestCapacity(t *testing.T) {
	for _, c := range []struct {
		name         string
		size, used   int64
		bases, disks []int64
		want         int64
	}{
		{"empty", 1000, 0, nil, nil, 980},
		{"a base disk", 1000, 100, []int64{100}, nil, 880},
		{"clones share it", 1000, 100, []int64{100}, []int64{100, 100}, 880},
		{"clones have written", 1000, 300, []int64{100}, []int64{200, 200}, 880},
		{"files of others", 1000, 400, []int64{100}, []int64{100}, 580},
		{"overfull", 1000, 1000, nil, nil, 0},
	} {
		if have := capacity(c.size, c.used, c.bases, c.disks); have != c.want {
			t.Errorf("%s: capacity %d, want %d", c.name, have, c.want)
		}
	}
}

func TestIDs(t *testing.T) {
	const id = "0b3f9d52-7a6c-4e0f-9a51-3f1d6c7e8a90"
	image := "sha256:" + strings.Repeat("0a", 32)
	for _, bad := range []string{"", ".", "..", "/", id + "/", "../" + id, id + "\n", id[1:], strings.ToUpper(id), "{" + id + "}", image} {
		if err := checkServerID(bad); !fault.Is(err, fault.Invalid) {
			t.Errorf("server id %q: %v, want Invalid", bad, err)
		}
	}
	for _, bad := range []string{"", "sha256:", image + "0", image[:70], strings.ToUpper(image), "sha512" + image[6:], image + "\n", id, "sha256:../" + image[10:]} {
		if err := checkImageID(bad); !fault.Is(err, fault.Invalid) {
			t.Errorf("image id %q: %v, want Invalid", bad, err)
		}
	}
	if err := errors.Join(checkServerID(id), checkImageID(image)); err != nil {
		t.Error(err)
	}
}

func TestFileNames(t *testing.T) {
	const id = "0b3f9d52-7a6c-4e0f-9a51-3f1d6c7e8a90"
	image := "sha256:" + strings.Repeat("0a", 32)
	if have, ok := serverOf(diskName(id)); !ok || have != id {
		t.Errorf("serverOf(%q) = %q, %v", diskName(id), have, ok)
	}
	if have, complete, ok := imageOf(baseName(image)); !ok || !complete || have != image {
		t.Errorf("imageOf(%q) = %q, %v, %v", baseName(image), have, complete, ok)
	}
	building := buildingName(image, "0123456789abcdef")
	if have, complete, ok := imageOf(building); !ok || complete || have != image {
		t.Errorf("imageOf(%q) = %q, %v, %v", building, have, complete, ok)
	}
	for _, foreign := range []string{"", "x.ext4", id, id + ".ext4.bak", "lost+found", baseName(image) + "~", building + "x", building[:len(building)-1]} {
		if _, ok := serverOf(foreign); ok {
			t.Errorf("%q is taken for a disk", foreign)
		}
		if _, _, ok := imageOf(foreign); ok {
			t.Errorf("%q is taken for a base disk", foreign)
		}
	}
}

func TestIDRanges(t *testing.T) {
	for _, bad := range []vserver.IDRange{{}, {First: 1}, {Size: 1}, {First: 1<<32 - 2, Size: 2}, {First: 1<<32 - 1, Size: 1<<32 - 1}} {
		if err := checkIDs(bad); !fault.Is(err, fault.Invalid) {
			t.Errorf("%+v: %v, want Invalid", bad, err)
		}
	}
	ids := vserver.IDRange{First: 1 << 20, Size: 1 << 16}
	if err := checkIDs(ids); err != nil {
		t.Error(err)
	}
	for id, want := range map[uint32]uint32{0: 1 << 20, 65535: 1<<20 + 65535, 65536: overflowID, 1<<32 - 1: overflowID} {
		if have := shifted(id, ids); have != want {
			t.Errorf("owner %d shows as %d, want %d", id, have, want)
		}
	}
}

func TestParseMounts(t *testing.T) {
	const text = `22 27 0:21 / /proc rw,relatime - proc proc rw
42 27 7:0 / /pool/with\040space rw,noatime shared:1 master:2 - xfs /dev/loop0 rw,logbufs=8
43 42 254:1048575 /a/b /x\134y\011z rw master:7 propagate_from:2 - ext4 /dev/vda rw
`
	have, err := parseMounts(strings.NewReader(text))
	want := []mount{
		{ID: 22, Minor: 21, Point: "/proc", Type: "proc"},
		{ID: 42, Major: 7, Point: "/pool/with space", Shared: true, Type: "xfs"},
		{ID: 43, Major: 254, Minor: 1048575, Point: "/x\\y\tz", Type: "ext4"},
	}
	if diff := cmp.Diff(want, have); err != nil || diff != "" {
		t.Errorf("error %v, difference:\n%s", err, diff)
	}
	for _, bad := range []string{"x", "a b c d e f g h i j", "1 2 x:y / / rw - a b c"} {
		if _, err := parseMounts(strings.NewReader(bad)); err == nil {
			t.Errorf("no error for %q", bad)
		}
	}
}

func FuzzParseMount(f *testing.F) {
	f.Add(`42 27 7:0 / /pool/with\040space rw,noatime shared:1 - xfs /dev/loop0 rw`)
	f.Add(`42 27 7:0 / \04 rw -`)
	f.Fuzz(func(t *testing.T, line string) { _, _ = parseMount(line) })
}

func TestParseSuperblock(t *testing.T) {
	sb := func(change func(b []byte)) []byte {
		b := make([]byte, superblockSize)
		le := binary.LittleEndian
		le.PutUint16(b[0x38:], ext4Magic)
		le.PutUint16(b[0x3A:], 1)
		le.PutUint32(b[0x04:], 1000)
		le.PutUint32(b[0x18:], 2)
		le.PutUint32(b[0x150:], 1)
		change(b)
		return b
	}
	for name, c := range map[string]struct {
		bytes []byte
		want  superblock
		err   error
	}{
		"clean":      {sb(func(b []byte) {}), superblock{Blocks: 1000, BlockSize: 4096}, nil},
		"64 bit":     {sb(func(b []byte) { b[0x60] = 0x80 }), superblock{Blocks: 1<<32 + 1000, BlockSize: 4096}, nil},
		"errors":     {sb(func(b []byte) { b[0x3A] = 3 }), superblock{Blocks: 1000, BlockSize: 4096, Errors: true}, nil},
		"no magic":   {sb(func(b []byte) { b[0x38] = 0 }), superblock{}, errNotExt4},
		"huge block": {sb(func(b []byte) { b[0x18] = 7 }), superblock{}, errNotExt4},
		"short":      {sb(func(b []byte) {})[:1023], superblock{}, errNotExt4},
	} {
		have, err := parseSuperblock(c.bytes)
		if have != c.want || !errors.Is(err, c.err) {
			t.Errorf("%s: %+v, %v; want %+v, %v", name, have, err, c.want, c.err)
		}
	}
	if have := (superblock{BlockSize: 4096}).wantBlocks(3*4096 - 1); have != 2 {
		t.Errorf("%d blocks, want 2", have)
	}
}

func TestMkfsArguments(t *testing.T) {
	const small = "mkfs.ext4 -q -F -b 4096 -m 0 -E lazy_itable_init=0,assume_storage_prezeroed=1,nodiscard"
	for size, want := range map[int64]string{
		1<<30 - 1: small + " f",
		1 << 30:   small + " -J size=16 f",
	} {
		if have := strings.Join(mkfsExt4("f", size), " "); have != want {
			t.Errorf("%d bytes: %s, want %s", size, have, want)
		}
	}
}

func TestLocks(t *testing.T) {
	var l locks
	free, err := l.lock(t.Context(), "a")
	if err != nil {
		t.Fatal(err)
	}
	other, err := l.lock(t.Context(), "b") // does not wait for a
	if err != nil {
		t.Fatal(err)
	}
	other()
	ended, cancel := context.WithCancel(t.Context())
	waiting := make(chan error)
	go func() { _, err := l.lock(ended, "a"); waiting <- err }()
	cancel()
	if err := <-waiting; !errors.Is(err, context.Canceled) {
		t.Errorf("error %v, want Canceled", err)
	}
	done := make(chan struct{})
	go func() {
		again, err := l.lock(context.Background(), "a")
		if err == nil {
			again()
		}
		close(done)
	}()
	free()
	<-done
	if len(l.held) != 0 {
		t.Errorf("%d locks are left", len(l.held))
	}
}
