//go:build linux && root

package disk

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
	"github.com/reflejo/terraform-provider-reflejo/agent/quiesce"
	"github.com/reflejo/terraform-provider-reflejo/agent/vserver"
	"golang.org/x/sys/unix"
)

// buildDefault builds the test image's base disk in the default size, with some content.
func buildDefault(t testing.TB, p *Pool) {
	t.Helper()
	must(t, p.Bases().Build(context.Background(), testImage, 0, func(root string) error {
		for i := range 40 { // directories are spread over the disk: shrinking has to move them
			dir := filepath.Join(root, fmt.Sprint("d", i))
			if err := os.Mkdir(dir, 0o755); err != nil {
				return err
			}
			if err := os.WriteFile(filepath.Join(dir, "f"), bytes.Repeat([]byte{byte(i)}, 512<<10), 0o644); err != nil {
				return err
			}
		}
		return nil
	}))
}

// wantContent checks what buildDefault wrote.
func wantContent(t testing.TB, root string) {
	t.Helper()
	for i := range 40 {
		b, err := os.ReadFile(filepath.Join(root, fmt.Sprint("d", i), "f"))
		if err != nil || !bytes.Equal(b, bytes.Repeat([]byte{byte(i)}, 512<<10)) {
			t.Errorf("file %d is not what the image has (%v)", i, err)
		}
	}
}

// variants lists the names of a pool's variants.
func variants(t testing.TB, p *Pool) []string {
	t.Helper()
	entries, err := os.ReadDir(p.variants.Name())
	must(t, err)
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

// harmless is what e2fsck says of a file system that is whole: images have no lost+found,
// and extent trees may have room.
var harmless = regexp.MustCompile(`(?m)^/proc/self/fd/3: (/lost\+found not found\.  CREATED\.|Inode \d+ extent tree \(at level \d+\) could be (narrower|shorter)\.  IGNORED\.)\n`)

// wantWhole checks the file system of a file, unmounted, and that it fills the file. It
// lacks only the directory lost+found, so a copy is checked.
func wantWhole(t testing.TB, path string) {
	t.Helper()
	f, err := os.Open(path)
	must(t, err)
	defer f.Close()
	dir, err := openDir(filepath.Dir(path))
	must(t, err)
	defer dir.Close()
	scratch, err := tempFile(dir)
	must(t, err)
	defer scratch.Close()
	must(t, unix.IoctlFileClone(int(scratch.Fd()), int(f.Fd())))
	out, _ := runTool(context.Background(), []*os.File{scratch}, "e2fsck", "-f", "-p", "/proc/self/fd/3")
	out = harmless.ReplaceAllString(out, "")
	if strings.Count(out, "\n") > 0 || !strings.HasPrefix(out, "/proc/self/fd/3: ") {
		t.Errorf("%s: %s", path, out)
	}
	s, err := readSuperblock(f)
	must(t, err)
	st, err := f.Stat()
	must(t, err)
	if s.Blocks < s.wantBlocks(st.Size()) || s.Blocks > uint64(st.Size()/blockSize) {
		t.Errorf("%s has %d blocks on %d bytes", path, s.Blocks, st.Size())
	}
}

func TestSizes(t *testing.T) {
	cfg := testConfig(t)
	cfg.PoolSize = 3 << 30 // growing writes a little in each 2 GiB, for which the pool takes 1 MiB
	p := open(t, cfg)
	buildDefault(t, p)
	all, err := p.Bases().List(t.Context())
	must(t, err)
	least := all[0].Size
	if least < 64<<20 || least > 192<<20 || least%(64<<20) != 0 {
		t.Errorf("20 MiB of content need %d bytes", least)
	}
	for _, size := range []int64{least, 1 << 30, 2<<30 + 777, DefaultBaseSize - 128<<20 + 4096, DefaultBaseSize, DefaultBaseSize + 4096, 64 << 30, 1 << 40} {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			id := uuid.NewString()
			must(t, p.Create(t.Context(), id, testImage, size))
			path := filepath.Join(p.disks.Name(), diskName(id))
			wantWhole(t, path)
			inode, blocks := func() (uint64, uint64) {
				f, err := os.Open(path)
				must(t, err)
				defer f.Close()
				b := make([]byte, 8)
				_, err = f.ReadAt(b, superblockOffset)
				must(t, err)
				return uint64(b[0]) | uint64(b[1])<<8 | uint64(b[2])<<16 | uint64(b[3])<<24, uint64(size / blockSize)
			}()
			if ratio := blocks * blockSize / inode; ratio > inodeRatio || ratio < inodeRatio/2 {
				t.Errorf("an inode per %d bytes, want one per %d", ratio, inodeRatio)
			}
			at, err := p.Attach(t.Context(), id, testIDs)
			must(t, err)
			wantContent(t, at.Root)
			var st unix.Statfs_t
			must(t, unix.Statfs(at.Root, &st))
			if free := int64(st.Bavail) * st.Bsize; free < size*9/10-96<<20 {
				t.Errorf("%d bytes free of %d", free, size)
			}
			if used := mustUsed(t, path); used > 128<<20 {
				t.Errorf("a new disk takes %d bytes", used)
			}
			if size == least {
				growTo(t, p, id, 16*DefaultBaseSize)
				growTo(t, p, id, 1<<40)
				must(t, p.Detach(t.Context(), id))
				wantWhole(t, path)
			}
			must(t, p.Remove(t.Context(), id))
		})
	}
}

// growTo makes an attached disk of buildDefault's image larger, in use where the agent may.
func growTo(t *testing.T, p *Pool, id string, size int64) {
	t.Helper()
	if !mayGrowLive() {
		must(t, p.Detach(t.Context(), id))
	}
	must(t, p.Grow(t.Context(), id, size))
	at, err := p.Attach(t.Context(), id, testIDs)
	must(t, err)
	wantContent(t, at.Root)
	var st unix.Statfs_t
	must(t, unix.Statfs(at.Root, &st))
	if have := int64(st.Blocks) * st.Bsize; have < size/100*97 {
		t.Errorf("the file system has %d bytes after growing to %d", have, size)
	}
}

func mustUsed(t testing.TB, path string) int64 {
	t.Helper()
	var st unix.Stat_t
	must(t, unix.Stat(path, &st))
	return st.Blocks * 512
}

func TestVariantsAreKeptAndBounded(t *testing.T) {
	p := open(t, testConfig(t))
	buildBase(t, p)
	create := func(size int64) {
		t.Helper()
		id := uuid.NewString()
		must(t, p.Create(t.Context(), id, testImage, size))
		must(t, p.Remove(t.Context(), id))
	}
	size := func(i int) int64 { return testBase + int64(i)<<20 }
	create(testBase)
	if have := variants(t, p); len(have) != 0 {
		t.Errorf("variants %v of the size that the base disk has", have)
	}
	for i := 1; i <= maxVariants; i++ {
		create(size(i))
	}
	var first, again unix.Stat_t
	path := filepath.Join(p.variants.Name(), variantName(testImage, size(1)))
	must(t, unix.Stat(path, &first))
	create(size(1)) // is wanted again, so the second goes first
	create(size(1) + 1)
	must(t, unix.Stat(path, &again))
	if first.Ino != again.Ino {
		t.Error("a variant was made again")
	}
	create(size(maxVariants + 1))
	have := variants(t, p)
	if len(have) != maxVariants {
		t.Errorf("%d variants %v, want %d", len(have), have, maxVariants)
	}
	if s := strings.Join(have, " "); strings.Contains(s, variantName(testImage, size(2))) || !strings.Contains(s, variantName(testImage, size(1))) {
		t.Errorf("variants %v, want all but the one of %d bytes", have, size(2))
	}
	if all, err := p.Bases().List(t.Context()); err != nil || len(all) != 1 {
		t.Errorf("base disks %+v (%v), want one", all, err)
	}
	p = reopen(t, p)
	if have := variants(t, p); len(have) != maxVariants {
		t.Errorf("%d variants after a restart, want %d", len(have), maxVariants)
	}
	must(t, p.Bases().Remove(t.Context(), testImage))
	if have := variants(t, p); len(have) != 0 {
		t.Errorf("variants %v of a removed base disk", have)
	}
	// What an agent left that was killed while it removed a base disk; other files are not ours.
	must(t, os.WriteFile(path, nil, 0o400))
	must(t, os.WriteFile(filepath.Join(p.variants.Name(), "other"), nil, 0o400))
	p = reopen(t, p)
	if have := variants(t, p); len(have) != 1 || have[0] != "other" {
		t.Errorf("variants %v, want only the file that is not ours", have)
	}
}

func TestOneSizeAskedManyTimes(t *testing.T) {
	p := open(t, testConfig(t))
	buildDefault(t, p)
	const size, many = 1 << 30, 32
	ids := make([]string, many)
	var all sync.WaitGroup
	for i := range ids {
		ids[i] = uuid.NewString()
		all.Go(func() {
			if err := p.Create(context.Background(), ids[i], testImage, size); err != nil {
				t.Error(err)
			}
		})
	}
	ended, cancel := context.WithCancel(t.Context()) // one who gives up does not spoil it for others
	all.Go(func() { _ = p.Create(ended, uuid.NewString(), testImage, size) })
	cancel()
	all.Wait()
	if have := variants(t, p); len(have) != 1 {
		t.Errorf("variants %v, want one", have)
	}
	at, err := p.Attach(t.Context(), ids[many-1], testIDs)
	must(t, err)
	wantContent(t, at.Rootfs)
	for _, id := range ids {
		must(t, p.Remove(t.Context(), id))
	}
}

// Sizes asked for while the image is deleted: a disk or NotFound, and no variant is left.
func TestVariantsWhileTheBaseGoes(t *testing.T) {
	p := open(t, testConfig(t))
	for range 3 {
		buildBase(t, p)
		var all sync.WaitGroup
		for i := range 6 {
			all.Go(func() {
				id := uuid.NewString()
				err := p.Create(context.Background(), id, testImage, testBase+int64(i)<<20)
				if err != nil && !fault.Is(err, fault.NotFound) {
					t.Error(err)
				}
				if err := p.Remove(context.Background(), id); err != nil {
					t.Error(err)
				}
			})
		}
		all.Go(func() {
			if err := p.Bases().Remove(context.Background(), testImage); err != nil {
				t.Error(err)
			}
		})
		all.Wait()
		if have := variants(t, p); len(have) != 0 {
			t.Errorf("variants %v of a removed base disk", have)
		}
	}
}

// What this test binary is when it is not the test: see TestMain.
const (
	childPool = "REFLEJO_TEST_DISK_POOL" // the directory of the pool
	childDoes = "REFLEJO_TEST_DISK_DOES" // what the agent there does again and again
)

// TestMain is also the agent that tests kill, and the watchdog that thaws what that has frozen.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == quiesce.Command {
		os.Exit(quiesce.Watch(os.Args[2:]))
	}
	dir := os.Getenv(childPool)
	if dir == "" {
		os.Exit(m.Run())
	}
	p, err := Open(context.Background(), Config{Path: filepath.Join(dir, "pool"), RunDir: filepath.Join(dir, "run")})
	do := map[string]func(*Pool, int64) error{"resize": childResizes, "snapshots": childSnapshots}[os.Getenv(childDoes)]
	for i := int64(0); err == nil; i++ {
		fmt.Println("next")
		err = do(p, i)
	}
	fmt.Println(err)
	os.Exit(1)
}

// childResizes makes disks of new sizes.
func childResizes(p *Pool, i int64) error {
	return p.Create(context.Background(), uuid.NewString(), testImage, 1<<30+i<<20+rand.Int64N(1<<40)/mebibyte*mebibyte)
}

func TestKilledResize(t *testing.T) {
	cfg := testConfig(t)
	p := open(t, cfg)
	buildDefault(t, p)
	for round := range 5 {
		p.Close()
		killDoing(t, "resize", filepath.Dir(cfg.Path), time.Duration(round)*25*time.Millisecond)
		p = open(t, cfg)
		for _, name := range variants(t, p) {
			if _, ok := variantOf(name); !ok {
				t.Errorf("%s is left", name)
			}
			wantWhole(t, filepath.Join(p.variants.Name(), name))
		}
		disks, err := p.List(t.Context())
		must(t, err)
		for _, d := range disks {
			wantWhole(t, filepath.Join(p.disks.Name(), diskName(d.ID)))
			must(t, p.Remove(t.Context(), d.ID))
		}
		id := uuid.NewString()
		must(t, p.Create(t.Context(), id, testImage, 512<<20+int64(round)<<20))
		at, err := p.Attach(t.Context(), id, testIDs)
		must(t, err)
		wantContent(t, at.Root)
		must(t, p.Remove(t.Context(), id))
	}
}

// killDoing starts an agent that does something and kills it a moment after it began.
func killDoing(t *testing.T, what, dir string, moment time.Duration) {
	t.Helper()
	agent := exec.Command("/proc/self/exe")
	agent.Env = append(os.Environ(), childPool+"="+dir, childDoes+"="+what)
	out, err := agent.StdoutPipe()
	must(t, err)
	must(t, agent.Start())
	line := make([]byte, 64)
	n, err := out.Read(line)
	<-time.After(moment) // the moment is what is tried, nothing is hoped for
	must(t, agent.Process.Kill())
	_ = agent.Wait()
	if err != nil || !strings.HasPrefix(string(line[:n]), "next") {
		t.Fatalf("the agent said %q (%v)", line[:n], err)
	}
}

func BenchmarkLife(b *testing.B) {
	for name, size := range map[string]int64{"default size": DefaultBaseSize, "2 GiB": 2 << 30, "64 GiB": 64 << 30} {
		b.Run(name, func(b *testing.B) {
			p := open(b, testConfig(b))
			buildDefault(b, p)
			began := time.Now()
			first := uuid.NewString()
			must(b, p.Create(b.Context(), first, testImage, size))
			made := time.Since(began)
			spent := map[string]time.Duration{}
			lap := func(step string, do func() error) {
				began := time.Now()
				must(b, do())
				spent[step] += time.Since(began)
			}
			for i := 0; b.Loop(); i++ {
				id, ctx := uuid.NewString(), context.Background()
				lap("create", func() error { return p.Create(ctx, id, testImage, size) })
				lap("attach", func() error {
					_, err := p.Attach(ctx, id, vserver.IDRange{First: uint32(1<<20 + i%1000<<16), Size: 1 << 16})
					return err
				})
				lap("detach", func() error { return p.Detach(ctx, id) })
				lap("remove", func() error { return p.Remove(ctx, id) })
			}
			b.ReportMetric(float64(made.Microseconds())/1000, "ms/first-create")
			for step, d := range spent {
				b.ReportMetric(float64(d.Microseconds())/1000/float64(b.N), "ms/"+step)
			}
		})
	}
}
