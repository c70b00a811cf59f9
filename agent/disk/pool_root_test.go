//go:build linux && root

package disk

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/uuid"
	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
	"github.com/reflejo/terraform-provider-reflejo/agent/image"
	"github.com/reflejo/terraform-provider-reflejo/agent/vserver"
	"github.com/reflejo/terraform-provider-reflejo/agent/vserver/vservertest"
	"golang.org/x/sys/unix"
)

const (
	testImage = "sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
	testBase  = 64 << 20
)

var testIDs = vserver.IDRange{First: 3 << 20, Size: 1 << 16}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// tempDir is a folder that others may walk through, cleared of mounts when the test ends.
func tempDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "reflejo-disk-")
	must(t, err)
	must(t, os.Chmod(dir, 0o711))
	t.Cleanup(func() {
		unmountBelow(t, dir)
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// unmountBelow unmounts everything in dir, newest first. A new mount namespace of some
// other program can keep a copy of a pool for a moment, and with it the file system below.
func unmountBelow(t testing.TB, dir string) {
	t.Helper()
	all, err := mounts()
	must(t, err)
	slices.Reverse(all)
	for _, m := range all {
		if strings.HasPrefix(m.Point, dir+"/") {
			if err := unmountPatiently(m.Point, busyPatience); err != nil {
				if lazyErr := unmount(m.Point, true); lazyErr != nil {
					t.Error(err, lazyErr)
				}
			}
		}
	}
}

func testConfig(t testing.TB) Config {
	dir := tempDir(t)
	return Config{Path: filepath.Join(dir, "pool"), RunDir: filepath.Join(dir, "run"), PoolSize: MinPoolSize}
}

// open opens the pool and closes it when the test ends.
func open(t testing.TB, cfg Config) *Pool {
	t.Helper()
	p, err := Open(context.Background(), cfg)
	must(t, err)
	t.Cleanup(func() { p.Close() })
	return p
}

func buildBase(t testing.TB, p *Pool) {
	t.Helper()
	must(t, p.Bases().Build(context.Background(), testImage, testBase, func(root string) error {
		return os.WriteFile(filepath.Join(root, "hello"), []byte("hello"), 0o644)
	}))
}

// newDisk makes a disk of the test image and returns its id.
func newDisk(t testing.TB, p *Pool) string {
	t.Helper()
	return newDiskOf(t, p, testBase)
}

func newDiskOf(t testing.TB, p *Pool, size int64) string {
	t.Helper()
	id := uuid.NewString()
	must(t, p.Create(context.Background(), id, testImage, size))
	return id
}

func TestPoolContract(t *testing.T) {
	vservertest.DisksContract(t, func(t *testing.T) (vserver.Disks, image.Bases) {
		p := open(t, testConfig(t))
		return p, p.Bases()
	})
}

func TestBasesContract(t *testing.T) {
	vservertest.BasesContract(t, func(t *testing.T) image.Bases { return open(t, testConfig(t)).Bases() })
}

// A pool on a file system that shares extents needs no file of its own.
func TestPlainPools(t *testing.T) {
	for fsType, mkfs := range map[string][]string{
		"xfs":   {"mkfs.xfs", "-q", "-s", "size=4096"},
		"btrfs": {"mkfs.btrfs", "-q"},
	} {
		t.Run(fsType, func(t *testing.T) {
			newPool := func(t *testing.T) *Pool {
				cfg := testConfig(t)
				cfg.Path = mountNew(t, fsType, mkfs)
				p := open(t, cfg)
				u, err := p.Usage()
				must(t, err)
				if u.Embedded || u.FileSystem != fsType || u.Path != cfg.Path || p.Root() != cfg.Path {
					t.Errorf("usage %+v, root %s", u, p.Root())
				}
				return p
			}
			vservertest.DisksContract(t, func(t *testing.T) (vserver.Disks, image.Bases) {
				p := newPool(t)
				return p, p.Bases()
			})
		})
	}
}

// mountNew mounts a new file system and returns where.
func mountNew(t *testing.T, fsType string, mkfs []string) string {
	t.Helper()
	dir := tempDir(t)
	f, err := os.Create(filepath.Join(dir, "file-system"))
	must(t, err)
	defer f.Close()
	must(t, f.Truncate(MinPoolSize))
	_, err = runTool(t.Context(), nil, append(mkfs, f.Name())...)
	must(t, err)
	l, err := attachLoop(f)
	must(t, err)
	defer l.Close()
	m, err := mountDetached(fsType, l.path(), 0, nil)
	must(t, err)
	defer m.Close()
	point := filepath.Join(dir, "mnt")
	must(t, os.Mkdir(point, 0o755))
	at, err := openDir(dir)
	must(t, err)
	defer at.Close()
	must(t, place(m, at, "mnt"))
	return point
}

func TestEmbeddedPool(t *testing.T) {
	cfg := testConfig(t)
	p := open(t, cfg)
	u, err := p.Usage()
	must(t, err)
	if !u.Embedded || u.FileSystem != "xfs" || u.Size > MinPoolSize || u.Size < MinPoolSize*8/10 || u.Capacity <= 0 || u.Capacity > u.Free {
		t.Errorf("usage %+v", u)
	}
	buildBase(t, p)
	id := newDisk(t, p)

	t.Run("belongs to one agent", func(t *testing.T) {
		if _, err := Open(t.Context(), cfg); !fault.Is(err, fault.Unavailable) {
			t.Errorf("error %v, want Unavailable", err)
		}
	})
	t.Run("is found mounted after a kill", func(t *testing.T) {
		at, err := p.Attach(t.Context(), id, testIDs)
		must(t, err)
		p.Close()
		p = open(t, cfg)
		all, err := p.List(t.Context())
		must(t, err)
		if len(all) != 1 || all[0].ID != id || all[0].Attachment != at {
			t.Errorf("disks %+v, want %s attached as %+v", all, id, at)
		}
		must(t, p.Detach(t.Context(), id))
	})
	t.Run("is mounted again after a reboot", func(t *testing.T) {
		p.Close()
		unmountBelow(t, filepath.Dir(cfg.Path))
		p = open(t, cfg)
		_, err := p.Attach(t.Context(), id, testIDs)
		must(t, err)
	})
	t.Run("grows, in use", func(t *testing.T) {
		p.Close()
		cfg.PoolSize = 2*MinPoolSize - 5
		p = open(t, cfg)
		grown, err := p.Usage()
		must(t, err)
		if grown.Size < u.Size*18/10 {
			t.Errorf("size %d, was %d", grown.Size, u.Size)
		}
	})
	t.Run("stays larger", func(t *testing.T) {
		p.Close()
		cfg.PoolSize = MinPoolSize
		p = open(t, cfg)
		want := []string{"PoolLargerThanConfigured", "PoolIsAFile"}
		if !mayGrowLive() {
			want = append(want, "NoLiveGrow")
		}
		wantConditions(t, p, want...)
	})
}

func wantConditions(t *testing.T, p *Pool, want ...string) {
	t.Helper()
	all, err := p.Conditions()
	must(t, err)
	var have []string
	for _, c := range all {
		have = append(have, c.Type)
	}
	if !slices.Equal(have, want) {
		t.Errorf("conditions %v, want %v", have, want)
	}
}

func TestPoolSizeThatCannotBe(t *testing.T) {
	cfg := testConfig(t)
	cfg.PoolSize = MaxSize
	if _, err := Open(t.Context(), cfg); !fault.Is(err, fault.Exhausted) {
		t.Errorf("error %v, want Exhausted", err)
	}
	if names, _ := filepath.Glob(cfg.Path + "/pool*"); len(names) != 0 {
		t.Errorf("left behind: %v", names)
	}
}

// Two pools on one kernel do not see each other, though their files have the same names.
func TestTwoPools(t *testing.T) {
	a, b := open(t, testConfig(t)), open(t, testConfig(t))
	buildBase(t, a)
	buildBase(t, b)
	id := newDisk(t, a)
	must(t, b.Create(t.Context(), id, testImage, testBase))
	inA, err := a.Attach(t.Context(), id, testIDs)
	must(t, err)
	inB, err := b.Attach(t.Context(), id, testIDs)
	must(t, err)
	if inA.Minor == inB.Minor {
		t.Fatalf("both disks are on loop device %d", inA.Minor)
	}
	must(t, os.WriteFile(inA.Root+"/only-in-a", nil, 0o644))
	if _, err := os.Stat(inB.Root + "/only-in-a"); !os.IsNotExist(err) {
		t.Errorf("a file of pool a is in pool b (%v)", err)
	}
	must(t, a.Remove(t.Context(), id))
	if _, err := os.Stat(inB.Root + "/hello"); err != nil {
		t.Error(err)
	}
}

// The mounts of a pool do not appear in other mount namespaces, even if everything around
// it is shared with them, as it is under systemd.
func TestMountsArePrivate(t *testing.T) {
	dir := tempDir(t)
	shared := filepath.Join(dir, "shared")
	must(t, os.Mkdir(shared, 0o711))
	must(t, unix.Mount(shared, shared, "", unix.MS_BIND, ""))
	must(t, unix.Mount("", shared, "", unix.MS_PRIVATE, "")) // not shared with the mount around it
	must(t, unix.Mount("", shared, "", unix.MS_SHARED, ""))
	cfg := Config{Path: filepath.Join(shared, "pool"), RunDir: filepath.Join(shared, "run"), PoolSize: MinPoolSize}
	p := open(t, cfg)
	buildBase(t, p)
	id := newDisk(t, p)
	_, err := p.Attach(t.Context(), id, testIDs)
	must(t, err)
	p = reopen(t, p) // binds nothing a second time
	must(t, p.Detach(t.Context(), id))
	_, err = p.Attach(t.Context(), id, testIDs)
	must(t, err)
	all, err := mounts()
	must(t, err)
	seen := 0
	for _, m := range all {
		if strings.HasPrefix(m.Point, shared+"/") {
			seen++
			if m.Shared {
				t.Errorf("%s is shared", m.Point)
			}
		}
	}
	if seen != 5 {
		t.Errorf("%d mounts, want two binds, the pool and two of the disk", seen)
	}
}

func BenchmarkCreateAttach(b *testing.B) {
	p := open(b, testConfig(b))
	buildBase(b, p)
	for i := 0; b.Loop(); i++ {
		id := newDisk(b, p)
		_, err := p.Attach(context.Background(), id, vserver.IDRange{First: uint32(1<<20 + i<<16), Size: 1 << 16})
		must(b, err)
		b.StopTimer()
		must(b, p.Remove(context.Background(), id))
		b.StartTimer()
	}
}
