package disk

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// fsOption is a mount option of a file system; an empty Value makes it a flag.
type fsOption struct{ Key, Value string }

// mountDetached mounts the file system of a device without a place in the tree: it
// vanishes with the returned descriptor unless place is called.
func mountDetached(fsType, device string, attrs int, options []fsOption) (*os.File, error) {
	fs, err := unix.Fsopen(fsType, unix.FSOPEN_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("open file system type %s: %w", fsType, err)
	}
	defer unix.Close(fs)
	for _, o := range append([]fsOption{{"source", device}}, options...) {
		if o.Value == "" {
			err = unix.FsconfigSetFlag(fs, o.Key)
		} else {
			err = unix.FsconfigSetString(fs, o.Key, o.Value)
		}
		if err != nil {
			return nil, fmt.Errorf("mount %s: option %s: %w%s", device, o.Key, err, kernelLog(fs))
		}
	}
	if err := unix.FsconfigCreate(fs); err != nil {
		return nil, fmt.Errorf("mount %s: %w%s", device, err, kernelLog(fs))
	}
	fd, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, attrs)
	if err != nil {
		return nil, fmt.Errorf("mount %s: %w%s", device, err, kernelLog(fs))
	}
	return os.NewFile(uintptr(fd), "mount of "+device), nil
}

// kernelLog is what the kernel has to say about a failed mount, as " (…)".
func kernelLog(fs int) string {
	var lines []string
	buf := make([]byte, 1024)
	for range 16 {
		n, err := unix.Read(fs, buf)
		if err != nil || n <= 0 {
			break
		}
		lines = append(lines, strings.TrimSpace(string(buf[:n])))
	}
	if len(lines) == 0 {
		return ""
	}
	return " (" + strings.Join(lines, "; ") + ")"
}

// cloneMount makes a detached copy of a mount, with attributes set and cleared.
// A user namespace shifts the owners by its mapping; nil does not.
func cloneMount(of *os.File, set, clear uint64, userns *os.File) (*os.File, error) {
	fd, err := unix.OpenTree(int(of.Fd()), "", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_EMPTY_PATH)
	if err != nil {
		return nil, fmt.Errorf("clone %s: %w", of.Name(), err)
	}
	attr := unix.MountAttr{Attr_set: set, Attr_clr: clear, Propagation: unix.MS_PRIVATE}
	if userns != nil {
		attr.Attr_set |= unix.MOUNT_ATTR_IDMAP
		attr.Userns_fd = uint64(userns.Fd())
	}
	if err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, &attr); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("set attributes of %s: %w", of.Name(), err)
	}
	return os.NewFile(uintptr(fd), of.Name()), nil
}

// place puts a detached mount on the directory name of dir ("" is dir itself). It follows
// no symbolic link.
func place(m, dir *os.File, name string) error {
	flags := unix.MOVE_MOUNT_F_EMPTY_PATH
	if name == "" {
		flags |= unix.MOVE_MOUNT_T_EMPTY_PATH
	}
	if err := unix.MoveMount(int(m.Fd()), "", int(dir.Fd()), name, flags); err != nil {
		return fmt.Errorf("place %s on %s/%s: %w", m.Name(), dir.Name(), name, err)
	}
	return nil
}

// mountStat is what statx says about the directory name of dir.
type mountStat struct {
	Mounted bool // it is the root of a mount
	Major   uint32
	Minor   uint32
	UID     uint32
	GID     uint32
	MountID uint64
}

// statMount examines the directory name of dir ("" is dir itself).
func statMount(dir *os.File, name string) (mountStat, error) {
	var st unix.Statx_t
	flags := unix.AT_SYMLINK_NOFOLLOW | unix.AT_NO_AUTOMOUNT
	if name == "" {
		flags |= unix.AT_EMPTY_PATH
	}
	if err := unix.Statx(int(dir.Fd()), name, flags, unix.STATX_BASIC_STATS|unix.STATX_MNT_ID, &st); err != nil {
		return mountStat{}, fmt.Errorf("examine %s/%s: %w", dir.Name(), name, err)
	}
	return mountStat{
		Mounted: st.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0,
		Major:   st.Dev_major, Minor: st.Dev_minor,
		UID: st.Uid, GID: st.Gid,
		MountID: st.Mnt_id,
	}, nil
}

// unmount removes the topmost mount at path. With lazy it goes out of the tree even if it
// is busy, and ends with its last user.
func unmount(path string, lazy bool) error {
	flags := unix.UMOUNT_NOFOLLOW
	if lazy {
		flags |= unix.MNT_DETACH
	}
	if err := unix.Unmount(path, flags); err != nil {
		return fmt.Errorf("unmount %s: %w", path, err)
	}
	return nil
}

// unmountPatiently unmounts path; while it is busy it tries again for that long.
func unmountPatiently(path string, patience time.Duration) error {
	deadline := time.Now().Add(patience)
	for pause := time.Millisecond; ; pause = min(2*pause, 50*time.Millisecond) {
		err := unmount(path, false)
		if !errors.Is(err, unix.EBUSY) || time.Now().After(deadline) {
			return err
		}
		time.Sleep(pause)
	}
}

// makePrivate makes sure that what is mounted below dir is mounted in no other mount
// namespace: where dir is on a shared mount it is bound on itself, privately.
// Directories opened before must be opened again.
func makePrivate(path string) error {
	dir, err := openDir(path)
	if err != nil {
		return err
	}
	defer dir.Close()
	st, err := statMount(dir, "")
	if err != nil {
		return err
	}
	all, err := mounts()
	if err != nil {
		return err
	}
	for _, m := range all {
		if m.ID != st.MountID || !m.Shared {
			continue
		}
		self, err := cloneMount(dir, 0, 0, nil)
		if err != nil {
			return err
		}
		defer self.Close()
		if err := place(self, dir, ""); err != nil {
			return err
		}
		// Now, not before: a mount that is put on a shared one becomes shared.
		private := unix.MountAttr{Propagation: unix.MS_PRIVATE}
		if err := unix.MountSetattr(int(self.Fd()), "", unix.AT_EMPTY_PATH, &private); err != nil {
			return fmt.Errorf("make %s private: %w", path, err)
		}
		return nil
	}
	return nil
}

// mounts reads this process's mount table.
func mounts() ([]mount, error) {
	f, err := os.Open("/proc/thread-self/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("read mount table: %w", err)
	}
	defer f.Close()
	return parseMounts(f)
}

// openDir opens a directory; the last element of path may not be a symbolic link.
func openDir(path string) (*os.File, error) {
	f, err := os.OpenFile(path, unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open directory: %w", err)
	}
	return f, nil
}

// openDirAt opens the directory name of dir, making it with this mode if it is missing.
func openDirAt(dir *os.File, name string, mode uint32) (*os.File, error) {
	if err := unix.Mkdirat(int(dir.Fd()), name, mode); err != nil && !errors.Is(err, unix.EEXIST) {
		return nil, fmt.Errorf("make directory %s/%s: %w", dir.Name(), name, err)
	}
	f, err := openAt(dir, name, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, err
	}
	if err := f.Chmod(os.FileMode(mode)); err != nil { // whatever the umask was
		f.Close()
		return nil, fmt.Errorf("set mode of %s: %w", f.Name(), err)
	}
	return f, nil
}

// openAt opens name in dir; a symbolic link there is an error.
func openAt(dir *os.File, name string, flags int, mode uint32) (*os.File, error) {
	fd, err := unix.Openat(int(dir.Fd()), name, flags|unix.O_NOFOLLOW|unix.O_CLOEXEC, mode)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: dir.Name() + "/" + name, Err: err}
	}
	return os.NewFile(uintptr(fd), dir.Name()+"/"+name), nil
}
