package testbed

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// onThread runs f on a thread of its own that ends afterwards, so f may change the
// thread's namespaces. It is never the process's first thread, which can't end and which
// /proc/self speaks of.
func onThread(f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		if unix.Gettid() != unix.Getpid() {
			done <- f()
			return
		}
		// While this goroutine keeps the first thread, the next one gets another.
		again := make(chan error)
		go func() { again <- onThread(f) }()
		err := <-again
		runtime.UnlockOSThread()
		done <- err
	}()
	return <-done
}

// Inside runs f on a thread that is in the pinned namespaces; an empty path means the
// machine's own. Goroutines that f starts are not in them.
func Inside(netns, mountns string, f func() error) error {
	return onThread(func() error {
		for _, ns := range []struct {
			path string
			kind int
		}{{netns, unix.CLONE_NEWNET}, {mountns, unix.CLONE_NEWNS}} {
			if ns.path == "" {
				continue
			}
			if err := join(ns.path, ns.kind); err != nil {
				return err
			}
		}
		return f()
	})
}

// join moves the calling thread into a pinned namespace.
func join(path string, kind int) error {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open namespace %s: %w", path, err)
	}
	defer unix.Close(fd)
	if kind == unix.CLONE_NEWNS { // the kernel wants a thread that shares no working directory
		if err := unix.Unshare(unix.CLONE_FS); err != nil {
			return fmt.Errorf("unshare working directory: %w", err)
		}
	}
	if err := unix.Setns(fd, kind); err != nil {
		return fmt.Errorf("enter namespace %s: %w", path, err)
	}
	return nil
}

// isPinned reports whether a namespace is mounted on path.
func isPinned(path string) bool {
	var st unix.Statfs_t
	return unix.Statfs(path, &st) == nil && st.Type == unix.NSFS_MAGIC
}

// makeNetns pins a new network namespace on path, unless one is there.
func makeNetns(path string) error {
	if isPinned(path) {
		return nil
	}
	if err := errors.Join(keepVisible(filepath.Dir(path)), makePin(path)); err != nil {
		return err
	}
	return onThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("make network namespace: %w", err)
		}
		if err := unix.Mount("/proc/thread-self/ns/net", path, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("pin network namespace on %s: %w", path, err)
		}
		return nil
	})
}

// keepVisible makes the directory of network namespaces a mount point, as the first `ip
// netns add` on a machine does. Done by that later, it would cover our pins, which could not
// be removed any more.
func keepVisible(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil || mounted(dir) {
		return err
	}
	if err := unix.Mount(dir, dir, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("make %s a mount point: %w", dir, err)
	}
	return nil
}

func makePin(path string) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDONLY|unix.O_CLOEXEC, 0o444)
	if err != nil {
		return err
	}
	return f.Close()
}

// unpin removes the pin of a namespace; without processes in it the namespace is gone.
func unpin(path string) error {
	if err := unmount(path); err != nil {
		return err
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// unmount detaches what is mounted on path, if anything is.
func unmount(path string) error {
	err := unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
	if err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("unmount %s: %w", path, err)
	}
	return nil
}

// makePinDir mounts the private file system that mount namespaces are pinned on: the kernel
// refuses to pin them where the pin would show up inside.
func makePinDir(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	if mounted(dir) {
		return nil
	}
	if err := unix.Mount("reflejo-testbed", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "size=64k,mode=700"); err != nil {
		return fmt.Errorf("mount tmpfs on %s: %w", dir, err)
	}
	if err := unix.Mount("", dir, "", unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make %s private: %w", dir, err)
	}
	return nil
}

// mounted reports whether dir is a mount point of the caller's mount namespace.
func mounted(dir string) bool {
	mounts, err := readMounts()
	return err == nil && slices.ContainsFunc(mounts, func(m mount) bool { return m.point == dir })
}

// makeMountns pins a new mount namespace on path, unless one is there: a private copy of
// the machine's mounts without other programs' images, and with an empty file system on
// runDir, as after a boot.
func makeMountns(path, pinDir, runDir string) error {
	if isPinned(path) {
		return nil
	}
	if err := errors.Join(makePin(path), os.MkdirAll(runDir, 0o755)); err != nil {
		return err
	}
	source := make(chan string)
	release := make(chan struct{})
	result := make(chan error, 1)
	go func() {
		result <- onThread(func() error {
			if err := fillMountns(pinDir, runDir); err != nil {
				return err
			}
			source <- fmt.Sprintf("/proc/%d/task/%d/ns/mnt", unix.Getpid(), unix.Gettid())
			<-release // the thread keeps the namespace until it is pinned
			return nil
		})
	}()
	select {
	case err := <-result:
		return err
	case from := <-source: // pinned from outside, where path can be seen
		err := unix.Mount(from, path, "", unix.MS_BIND, "")
		close(release)
		if err != nil {
			err = fmt.Errorf("pin mount namespace on %s: %w", path, err)
		}
		return errors.Join(err, <-result)
	}
}

// fillMountns moves the calling thread into a new mount namespace and arranges it.
func fillMountns(pinDir, runDir string) error {
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("make mount namespace: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	mounts, err := readMounts()
	if err != nil {
		return err
	}
	slices.Reverse(mounts) // what is mounted on top goes first
	for _, m := range mounts {
		// A private copy of these would keep other programs' devices and namespaces busy.
		if m.foreign() || m.point == pinDir {
			if err := unmount(m.point); err != nil { // it may be gone with its own unmounting
				return err
			}
		}
	}
	if err := unix.Mount("reflejo-run", runDir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=755"); err != nil {
		return fmt.Errorf("mount tmpfs on %s: %w", runDir, err)
	}
	return nil
}

// mount is one line of mountinfo.
type mount struct{ point, kind, source string }

// foreign reports whether a copy of the mount holds something of another program.
func (m mount) foreign() bool {
	return m.kind == "nsfs" || strings.HasPrefix(m.kind, "fuse") || strings.HasPrefix(m.source, "/dev/loop")
}

// readMounts lists the mounts of the calling thread's namespace, oldest first.
func readMounts() ([]mount, error) {
	text, err := os.ReadFile("/proc/thread-self/mountinfo")
	if err != nil {
		return nil, err
	}
	return parseMounts(string(text)), nil
}

// parseMounts reads mountinfo(5).
func parseMounts(text string) []mount {
	var mounts []mount
	unescape := strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`)
	for line := range strings.Lines(text) {
		place, kind, found := strings.Cut(line, " - ")
		p, k := strings.Fields(place), strings.Fields(kind)
		if !found || len(p) < 5 || len(k) < 2 {
			continue
		}
		mounts = append(mounts, mount{point: unescape.Replace(p[4]), kind: k[0], source: unescape.Replace(k[1])})
	}
	return mounts
}
