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
		size, others int64
		bases        []int64
		want         int64
	}{
		{"empty", 1000, 0, nil, 980},
		{"base disks", 1000, 0, []int64{100, 50}, 830},
		{"files of others", 1000, 300, []int64{100}, 580},
		{"overfull", 1000, 1000, nil, 0},
	} {
		if have := capacity(c.size, c.others, c.bases); have != c.want {
			t.Errorf("%s: capacity %d, want %d", c.name, have, c.want)
		}
	}
}

func TestUnionBytes(t *testing.T) {
	for _, c := range []struct {
		name string
		all  []span
		want int64
	}{
		{"nothing", nil, 0},
		{"at the very beginning", []span{{0, 5}}, 5},
		{"apart", []span{{20, 5}, {10, 5}}, 10},
		{"adjoining", []span{{10, 5}, {15, 5}}, 10},
		{"shared", []span{{10, 5}, {10, 5}, {10, 5}}, 5},
		{"within another", []span{{10, 50}, {20, 5}, {40, 5}}, 50},
		{"overlapping", []span{{10, 10}, {15, 10}, {18, 20}}, 28},
	} {
		if have := unionBytes(c.all); have != c.want {
			t.Errorf("%s: %d bytes, want %d", c.name, have, c.want)
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
	variant := variantName(image, 1<<40)
	if have, ok := variantOf(variant); !ok || have != image {
		t.Errorf("variantOf(%q) = %q, %v", variant, have, ok)
	}
	if _, _, ok := imageOf(variant); ok {
		t.Errorf("%q is taken for a base disk", variant)
	}
	building := buildingName(image, "0123456789abcdef")
	if have, complete, ok := imageOf(building); !ok || complete || have != image {
		t.Errorf("imageOf(%q) = %q, %v, %v", building, have, complete, ok)
	}
	for _, foreign := range []string{"", "x.ext4", id, id + ".ext4.bak", "lost+found", baseName(image) + "~", building + "x", building[:len(building)-1]} {
		if _, ok := serverOf(foreign); ok {
			t.Errorf("%q is taken for a disk", foreign)
		}
		if _, ok := variantOf(foreign); ok {
			t.Errorf("%q is taken for a resized base disk", foreign)
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
		{ID: 22, Minor: 21, Root: "/", Point: "/proc", Type: "proc"},
		{ID: 42, Major: 7, Root: "/", Point: "/pool/with space", Shared: true, Type: "xfs"},
		{ID: 43, Major: 254, Minor: 1048575, Root: "/a/b", Point: "/x\\y\tz", Type: "ext4"},
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

// layout adds what the superblocks of TestParseSuperblock say about groups.
func layout(s superblock) superblock {
	s.perGroup, s.tables, s.reserved, s.descriptors = 32768, 512, 1024, 4096/32
	return s
}

func with64(s superblock) superblock {
	s.descriptors = 4096 / 64
	return s
}

func TestParseSuperblock(t *testing.T) {
	sb := func(change func(b []byte)) []byte {
		b := make([]byte, superblockSize)
		le := binary.LittleEndian
		le.PutUint16(b[0x38:], ext4Magic)
		le.PutUint16(b[0x3A:], 1)
		le.PutUint32(b[0x04:], 1000)
		le.PutUint32(b[0x18:], 2)
		le.PutUint32(b[0x20:], 32768)
		le.PutUint32(b[0x28:], 8192)
		le.PutUint16(b[0x58:], 256)
		le.PutUint16(b[0xCE:], 1024)
		le.PutUint16(b[0xFE:], 64)
		le.PutUint32(b[0x150:], 1)
		change(b)
		return b
	}
	for name, c := range map[string]struct {
		bytes []byte
		want  superblock
		err   error
	}{
		"clean":      {sb(func(b []byte) {}), layout(superblock{Blocks: 1000, BlockSize: 4096}), nil},
		"64 bit":     {sb(func(b []byte) { b[0x60] = 0x80 }), with64(layout(superblock{Blocks: 1<<32 + 1000, BlockSize: 4096})), nil},
		"errors":     {sb(func(b []byte) { b[0x3A] = 3 }), layout(superblock{Blocks: 1000, BlockSize: 4096, Errors: true}), nil},
		"no magic":   {sb(func(b []byte) { b[0x38] = 0 }), superblock{}, errNotExt4},
		"no groups":  {sb(func(b []byte) { b[0x21] = 0 }), superblock{}, errNotExt4},
		"huge block": {sb(func(b []byte) { b[0x18] = 7 }), superblock{}, errNotExt4},
		"short":      {sb(func(b []byte) {})[:1023], superblock{}, errNotExt4},
	} {
		have, err := parseSuperblock(c.bytes)
		if have != c.want || !errors.Is(err, c.err) {
			t.Errorf("%s: %+v, %v; want %+v, %v", name, have, err, c.want, c.err)
		}
	}
}

func TestWantBlocks(t *testing.T) {
	s := superblock{BlockSize: 4096, perGroup: 32768, tables: 512, reserved: 1024, descriptors: 64}
	for size, want := range map[int64]uint64{
		3*4096 - 1:              2, // the first group is never left off
		128 << 20:               32768,
		128<<20 + 1589*4096:     32768, // one block short of 2 + 512 + 1 + 1 + 1024 + 50
		128<<20 + 1590*4096:     32768 + 1590,
		10 << 30:                80 * 32768,
		10<<30 + 1591*4096 - 1:  80 * 32768, // 81 groups have two blocks of descriptors
		10<<30 + 1591*4096:      80*32768 + 1591,
		64 << 40:                64 << 28,
		64<<40 - 128<<20 + 4096: 64<<28 - 32768,
	} {
		if have := s.wantBlocks(size); have != want {
			t.Errorf("%d bytes: %d blocks, want %d", size, have, want)
		}
	}
}

func TestLeastSize(t *testing.T) {
	const block, mib = 4096, mebibyte
	for _, c := range []struct{ blocks, size, want int64 }{
		{1, 10 << 30, 64 * mib},
		{48 * mib / block, 10 << 30, 64 * mib},
		{48*mib/block + 1, 10 << 30, 128 * mib},
		{1024 * mib / block, 10 << 30, 1152 * mib}, // an eighth more
		{8192 * mib / block, 9000 * mib, 9000 * mib},
		{1, 32 * mib, 32 * mib},
	} {
		if have := leastFor(c.blocks, c.size); have != c.want {
			t.Errorf("%d blocks on %d bytes: least %d, want %d", c.blocks, c.size, have, c.want)
		}
	}
	for output, want := range map[string]int64{
		"Estimated minimum size of the filesystem: 60144":                            60144,
		"resize2fs 1.47.0 (5-Feb-2023)\nEstimated minimum size of the filesystem: 7": 7,
		"": 0, "60144": 0, "x: ": 0, "x: -1": 0, "x: 0": 0, "x: 99999999999999999999": 0, "x: 7\ny": 0,
	} {
		have, err := parseMinimum(output)
		if have != want || (err == nil) != (want > 0) {
			t.Errorf("%q: %d, %v; want %d", output, have, err, want)
		}
	}
}

func TestMkfsArguments(t *testing.T) {
	const common = "mkfs.ext4 -q -F -b 4096 -m 0 -i 16384"
	const prezeroed = " -E lazy_itable_init=0,assume_storage_prezeroed=1,nodiscard"
	for size, want := range map[int64]string{
		1<<30 - 1: common + prezeroed + " f",
		1 << 30:   common + " -J size=16" + prezeroed + ",resize=536870912 f",
		2 << 40:   common + " -J size=16" + prezeroed + " f",
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
