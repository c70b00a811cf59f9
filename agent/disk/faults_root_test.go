//go:build linux && root

package disk

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	"github.com/google/uuid"
	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
	"github.com/reflejo/terraform-provider-reflejo/agent/vserver"
	"golang.org/x/sys/unix"
)

// owner is who a file belongs to.
func owner(t *testing.T, path string) (uid, gid uint32) {
	t.Helper()
	var st unix.Stat_t
	must(t, unix.Lstat(path, &st))
	return st.Uid, st.Gid
}

func TestOwnersAreShiftedBothWays(t *testing.T) {
	p := open(t, testConfig(t))
	buildBase(t, p)
	at, err := p.Attach(t.Context(), newDisk(t, p), testIDs)
	must(t, err)
	want := func(path string, id uint32) {
		t.Helper()
		if uid, gid := owner(t, path); uid != id || gid != id {
			t.Errorf("%s belongs to %d:%d, want %d", path, uid, gid, id)
		}
	}
	want(at.Root+"/hello", 0)
	want(at.Rootfs+"/hello", testIDs.First)

	// The server's user 1000 owns a file …
	must(t, os.WriteFile(at.Root+"/theirs", nil, 0o644))
	must(t, os.Lchown(at.Rootfs+"/theirs", int(testIDs.First)+1000, int(testIDs.First)+1000))
	want(at.Root+"/theirs", 1000)
	// … and the host's root one for the server's user 33.
	must(t, os.WriteFile(at.Root+"/ours", nil, 0o644))
	must(t, os.Lchown(at.Root+"/ours", 33, 33))
	want(at.Rootfs+"/ours", testIDs.First+33)
	// No other id of the host can own anything there, not even the host's root.
	if err := os.WriteFile(at.Rootfs+"/root's", nil, 0o644); !errors.Is(err, unix.EOVERFLOW) {
		t.Errorf("error %v for a file of the host's root, want EOVERFLOW", err)
	}
	if err := os.Lchown(at.Rootfs+"/theirs", int(testIDs.First+testIDs.Size), 0); !errors.Is(err, unix.EOVERFLOW) {
		t.Errorf("error %v for an id of another server, want EOVERFLOW", err)
	}
}

func TestWhoReachesTheMounts(t *testing.T) {
	p := open(t, testConfig(t))
	buildBase(t, p)
	at, err := p.Attach(t.Context(), newDisk(t, p), testIDs)
	must(t, err)
	for _, c := range []struct {
		path string
		mode os.FileMode
		gid  uint32
	}{
		{p.cfg.RunDir, 0o711, 0},
		{filepath.Dir(at.Root), 0o700, 0},
		{filepath.Dir(filepath.Dir(at.Rootfs)), 0o711, 0},
		{filepath.Dir(at.Rootfs), 0o710, testIDs.First},
		{p.disks.Name(), 0o700, 0},
		{p.bases.Name(), 0o700, 0},
	} {
		st, err := os.Lstat(c.path)
		must(t, err)
		if _, gid := owner(t, c.path); st.Mode().Perm() != c.mode || gid != c.gid {
			t.Errorf("%s has mode %v and group %d, want %v and %d", c.path, st.Mode().Perm(), gid, c.mode, c.gid)
		}
	}
}

// A killed agent leaves a disk in one of these states; every call must cope.
func TestLeftovers(t *testing.T) {
	p := open(t, testConfig(t))
	buildBase(t, p)
	states := map[string]func(t *testing.T, id string, at vserver.Attachment){
		"attached without the shifted mount": func(t *testing.T, id string, at vserver.Attachment) { must(t, unmount(at.Rootfs, false)) },
		"shifted mount alone":                func(t *testing.T, id string, at vserver.Attachment) { must(t, unmount(at.Root, false)) },
		"mount points alone": func(t *testing.T, id string, at vserver.Attachment) {
			must(t, errors.Join(unmount(at.Rootfs, false), unmount(at.Root, false)))
		},
		"loop device alone": func(t *testing.T, id string, at vserver.Attachment) {
			l, err := openLoop(at.Minor)
			must(t, err)
			t.Cleanup(func() { l.Close() })
			must(t, errors.Join(unmount(at.Rootfs, false), unmount(at.Root, false)))
		},
		"file larger than the file system": func(t *testing.T, id string, at vserver.Attachment) {
			must(t, errors.Join(unmount(at.Rootfs, false), unmount(at.Root, false)))
			must(t, os.Truncate(filepath.Join(p.disks.Name(), diskName(id)), 2*testBase))
		},
		"attached with other ids": func(t *testing.T, id string, at vserver.Attachment) {
			must(t, p.Detach(t.Context(), id))
			_, err := p.Attach(t.Context(), id, vserver.IDRange{First: 9 << 20, Size: 10})
			must(t, err)
		},
		"mounted twice at one place": func(t *testing.T, id string, at vserver.Attachment) {
			root, err := openDir(at.Root)
			must(t, err)
			defer root.Close()
			again, err := cloneMount(root, 0, 0, nil)
			must(t, err)
			defer again.Close()
			must(t, place(again, p.canonical, id))
		},
	}
	whole := t
	for name, breakIt := range states {
		t.Run(name, func(t *testing.T) {
			id := newDisk(t, p)
			at, err := p.Attach(t.Context(), id, testIDs)
			must(t, err)
			must(t, os.WriteFile(at.Root+"/mine", []byte("kept"), 0o644))
			breakIt(t, id, at)
			p = reopen(whole, p)
			at, err = p.Attach(t.Context(), id, testIDs)
			must(t, err)
			if b, err := os.ReadFile(at.Rootfs + "/mine"); err != nil || string(b) != "kept" {
				t.Errorf("the file holds %q (%v)", b, err)
			}
			if uid, _ := owner(t, at.Rootfs+"/mine"); uid != testIDs.First {
				t.Errorf("the file belongs to %d, want %d", uid, testIDs.First)
			}
			breakIt(t, id, at)
			must(t, p.Remove(t.Context(), id))
			wantNoTrace(t, p, id)
		})
	}
}

// reopen is a new agent on the pool after p's agent was killed.
func reopen(t *testing.T, p *Pool) *Pool {
	t.Helper()
	p.Close()
	return open(t, p.cfg)
}

// wantNoTrace checks that nothing of a disk is left.
func wantNoTrace(t *testing.T, p *Pool, id string) {
	t.Helper()
	for _, path := range []string{p.canonicalPath(id), filepath.Dir(p.rootfsPath(id)), filepath.Join(p.disks.Name(), diskName(id))} {
		if _, err := os.Lstat(path); !os.IsNotExist(err) {
			t.Errorf("%s is left (%v)", path, err)
		}
	}
}

func TestKilledBuild(t *testing.T) {
	p := open(t, testConfig(t))
	name := buildingName(testImage, "0123456789abcdef")
	must(t, os.WriteFile(filepath.Join(p.bases.Name(), name), make([]byte, 1<<20), 0o600))
	must(t, os.Mkdir(filepath.Join(p.builds.Name(), "0123456789abcdef"), 0o700))
	must(t, os.WriteFile(filepath.Join(p.cfg.Path, poolFileNew), nil, 0o600))
	p = reopen(t, p)
	bases := p.Bases()
	all, err := bases.List(t.Context())
	must(t, err)
	if len(all) != 1 || all[0].ID != testImage || all[0].Complete || all[0].Used == 0 {
		t.Errorf("base disks %+v, want one that is not complete", all)
	}
	if _, err := os.Lstat(filepath.Join(p.builds.Name(), "0123456789abcdef")); !os.IsNotExist(err) {
		t.Errorf("the build's mount point is left (%v)", err)
	}
	if err := p.Create(t.Context(), uuid.NewString(), testImage, testBase); !fault.Is(err, fault.NotFound) {
		t.Errorf("error %v for a clone of an unfinished base disk, want NotFound", err)
	}
	buildBase(t, p)
	if all, err = bases.List(t.Context()); err != nil || len(all) != 1 || !all[0].Complete {
		t.Errorf("base disks %+v (%v), want one that is complete", all, err)
	}
}

func TestConcurrentServers(t *testing.T) {
	p := open(t, testConfig(t))
	buildBase(t, p)
	const servers = 16
	ids, minors := make([]string, servers), make([]uint32, servers)
	each := func(do func(i int) error) {
		t.Helper()
		var all sync.WaitGroup
		for i := range servers {
			all.Go(func() {
				if err := do(i); err != nil {
					t.Error(err)
				}
			})
		}
		all.Wait()
	}
	each(func(i int) error {
		ids[i] = uuid.NewString()
		if err := p.Create(t.Context(), ids[i], testImage, testBase); err != nil {
			return err
		}
		at, err := p.Attach(t.Context(), ids[i], vserver.IDRange{First: uint32(1<<20 + i<<16), Size: 1 << 16})
		minors[i] = at.Minor
		return err
	})
	slices.Sort(minors)
	if n := len(slices.Compact(slices.Clone(minors))); n != servers {
		t.Errorf("%d servers on %d loop devices", servers, n)
	}
	each(func(i int) error { // several calls about one disk at once
		_, err := p.Attach(t.Context(), ids[0], vserver.IDRange{First: 1 << 20, Size: 1 << 16})
		return err
	})
	each(func(i int) error { return p.Remove(t.Context(), ids[i]) })
	for _, id := range ids {
		wantNoTrace(t, p, id)
	}
}

func TestFullPool(t *testing.T) {
	p := open(t, testConfig(t))
	buildBase(t, p)
	id := newDisk(t, p)
	filler, err := os.Create(filepath.Join(p.Root(), "filler"))
	must(t, err)
	defer filler.Close()
	fillUp(t, filler)

	t.Run("build", func(t *testing.T) {
		const other = "sha256:bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb"
		err := p.Bases().Build(t.Context(), other, testBase, func(root string) error {
			return os.WriteFile(root+"/large", bytes.Repeat([]byte("large"), testBase/10), 0o644)
		})
		if !fault.Is(err, fault.Exhausted) {
			t.Errorf("error %v, want Exhausted", err)
		}
		if all, err := p.Bases().List(t.Context()); err != nil || len(all) != 1 {
			t.Errorf("base disks %+v (%v), want only the first", all, err)
		}
	})
	t.Run("create", func(t *testing.T) {
		// A clone needs little; it works or says clearly why not, and leaves nothing.
		for range 64 {
			other := uuid.NewString()
			err := p.Create(t.Context(), other, testImage, testBase)
			if err != nil && !fault.Is(err, fault.Exhausted) {
				t.Errorf("error %v, want Exhausted", err)
			}
			if err != nil {
				wantNoTrace(t, p, other)
			}
		}
	})
	t.Run("recovers", func(t *testing.T) {
		must(t, filler.Truncate(0))
		must(t, filler.Sync())
		_, err := p.Attach(t.Context(), id, testIDs)
		must(t, err)
	})
}

// fillUp writes until the file system is full.
func fillUp(t *testing.T, f *os.File) {
	t.Helper()
	for size := int64(64 << 20); size >= blockSize; size /= 2 {
		for {
			end, err := f.Seek(0, 2)
			must(t, err)
			err = unix.Fallocate(int(f.Fd()), 0, end, size)
			if errors.Is(err, unix.ENOSPC) {
				break
			}
			must(t, err)
		}
	}
}

// damage changes bytes of a detached disk.
func damage(t *testing.T, p *Pool, id string, offset int64, b []byte) {
	t.Helper()
	f, err := p.openDisk(id)
	must(t, err)
	defer f.Close()
	_, err = f.WriteAt(b, offset)
	must(t, errors.Join(err, f.Sync()))
}

func TestDamagedDisks(t *testing.T) {
	p := open(t, testConfig(t))
	buildBase(t, p)
	t.Run("errors that can be mended", func(t *testing.T) {
		id := newDisk(t, p)
		_, err := runTool(t.Context(), nil, "tune2fs", "-E", "force_fsck", filepath.Join(p.disks.Name(), diskName(id)))
		must(t, err)
		at, err := p.Attach(t.Context(), id, testIDs)
		must(t, err)
		if _, err := os.Stat(at.Root + "/hello"); err != nil {
			t.Error(err)
		}
		must(t, p.Detach(t.Context(), id))
		f, err := p.openDisk(id)
		must(t, err)
		defer f.Close()
		if s, err := readSuperblock(f); err != nil || s.Errors {
			t.Errorf("superblock %+v (%v), want no errors", s, err)
		}
	})
	t.Run("errors that cannot", func(t *testing.T) {
		id := newDisk(t, p)
		damage(t, p, id, 0, bytes.Repeat([]byte{0xA5}, testBase))
		_, err := p.Attach(t.Context(), id, testIDs)
		if !fault.Is(err, fault.Precondition) {
			t.Errorf("error %v, want Precondition", err)
		}
		must(t, p.Remove(t.Context(), id))
		wantNoTrace(t, p, id)
	})
	t.Run("a power cut under load", func(t *testing.T) {
		id := newDisk(t, p)
		at, err := p.Attach(t.Context(), id, testIDs)
		must(t, err)
		f, err := os.Create(at.Root + "/synced")
		must(t, err)
		_, err = f.WriteString("on disk")
		must(t, errors.Join(err, f.Sync(), f.Close()))
		shutDown(t, at.Root)
		at, err = p.Attach(t.Context(), id, testIDs) // finds it dead, mends it, mounts it again
		must(t, err)
		if b, err := os.ReadFile(at.Rootfs + "/synced"); err != nil || string(b) != "on disk" {
			t.Errorf("the file holds %q (%v)", b, err)
		}
	})
}

// shutDown ends a mounted file system as a power cut would, by EXT4_IOC_SHUTDOWN.
func shutDown(t *testing.T, root string) {
	t.Helper()
	dir, err := openDir(root)
	must(t, err)
	defer dir.Close()
	must(t, unix.IoctlSetPointerInt(int(dir.Fd()), 0x8004587d, 2)) // EXT4_GOING_FLAGS_NOLOGFLUSH
}

// A disk that a process keeps open is detached all the same, and reported until it is free.
func TestBusyDetach(t *testing.T) {
	p := open(t, testConfig(t))
	buildBase(t, p)
	id := newDisk(t, p)
	at, err := p.Attach(t.Context(), id, testIDs)
	must(t, err)
	f, err := os.Create(at.Root + "/open")
	must(t, err)
	must(t, p.Detach(t.Context(), id))
	if at, err := p.attachment(id); err != nil || at != (vserver.Attachment{}) {
		t.Errorf("attachment %+v (%v) after Detach", at, err)
	}
	busy := func() bool {
		all, err := p.Conditions()
		must(t, err)
		return slices.ContainsFunc(all, func(c Condition) bool { return c.Type == "DiskBusy" })
	}
	if !busy() {
		t.Error("a busy disk is not reported")
	}
	must(t, f.Close())
	d, err := p.openDisk(id)
	must(t, err)
	defer d.Close()
	if free, err := awaitCleared(context.Background(), d, 10*busyPatience); err != nil || !free {
		t.Errorf("the loop device is not free (%v)", err)
	}
	if busy() {
		t.Error("a free disk is reported")
	}
}

func TestLiveGrowth(t *testing.T) {
	p := open(t, testConfig(t))
	buildBase(t, p)
	id := newDisk(t, p)
	at, err := p.Attach(t.Context(), id, testIDs)
	must(t, err)
	data := bytes.Repeat([]byte("data"), 1<<20)
	must(t, os.WriteFile(at.Root+"/data", data, 0o644))
	f, err := os.Open(at.Rootfs + "/data")
	must(t, err)
	defer f.Close()
	const odd = 4*testBase + 777 // no whole number of blocks
	err = p.Grow(t.Context(), id, odd)
	if mayGrowLive() {
		must(t, err)
	} else {
		if !fault.Is(err, fault.Precondition) {
			t.Errorf("error %v without CAP_SYS_RESOURCE, want Precondition", err)
		}
		must(t, f.Close())
		must(t, p.Detach(t.Context(), id))
		must(t, p.Grow(t.Context(), id, odd))
		at, err = p.Attach(t.Context(), id, testIDs)
		must(t, err)
	}
	var st unix.Statfs_t
	must(t, unix.Statfs(at.Rootfs, &st))
	if size := int64(st.Blocks) * st.Bsize; size < 3*testBase {
		t.Errorf("the file system has %d bytes, want about %d", size, odd)
	}
	if b, err := os.ReadFile(at.Rootfs + "/data"); err != nil || !bytes.Equal(b, data) {
		t.Errorf("the data changed (%v)", err)
	}
	must(t, p.Detach(t.Context(), id))
	if out, err := runTool(t.Context(), nil, "e2fsck", "-f", "-n", filepath.Join(p.disks.Name(), diskName(id))); err != nil {
		t.Error(err, out)
	}
}

// A disk of the default size has a larger journal and more blocks kept for group
// descriptors than a small one: growing it in use has to fit the former for the latter.
func TestLiveGrowthFromDefaultSize(t *testing.T) {
	p := open(t, testConfig(t))
	buildDefault(t, p)
	for _, size := range []int64{DefaultBaseSize, 1 << 30} {
		id := newDiskOf(t, p, size)
		_, err := p.Attach(t.Context(), id, testIDs)
		must(t, err)
		growTo(t, p, id, 2*size)
		must(t, p.Detach(t.Context(), id))
		wantWhole(t, filepath.Join(p.disks.Name(), diskName(id)))
	}
}

func TestTrimGivesSpaceBack(t *testing.T) {
	p := open(t, testConfig(t))
	buildBase(t, p)
	id := newDisk(t, p)
	at, err := p.Attach(t.Context(), id, testIDs)
	must(t, err)
	must(t, os.WriteFile(at.Root+"/large", bytes.Repeat([]byte("large"), 4<<20), 0o644))
	unix.Sync()
	used := func() int64 {
		all, err := p.List(t.Context())
		must(t, err)
		return all[0].Used
	}
	full := used()
	must(t, os.Remove(at.Root+"/large"))
	root, err := openDir(at.Root)
	must(t, err)
	defer root.Close()
	must(t, unix.Syncfs(int(root.Fd())))
	_, err = p.Trim(id)
	must(t, err)
	if now := used(); now > full-16<<20 {
		t.Errorf("%d bytes used after 20 MiB were deleted and trimmed, before %d", now, full)
	}
}
