package oci

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
	"github.com/reflejo/terraform-provider-reflejo/agent/vserver"
)

// Entrance prepares the way into server id for a process of the host that is to have a
// child there: the command line that is returned runs argv as the server's root, passes so
// many descriptors on from 3, and ends as soon as argv runs. It is good for every start of
// the server. What it needs is kept in dir, which exists.
func (r *Runtime) Entrance(id, dir string, argv []string, files int) ([]string, error) {
	none := 0
	p := vserver.Command{Argv: argv}
	if err := checkCommand(p); err != nil {
		return nil, err
	}
	spec := execSpec(account{Home: "/", Groups: []uint32{}}, p)
	spec.OOMScoreAdj = &none
	b, err := json.Marshal(spec)
	if err != nil {
		return nil, fmt.Errorf("encode process: %w", err)
	}
	file := filepath.Join(dir, "process.json")
	if err := os.WriteFile(file+".new", b, 0o600); err != nil {
		return nil, fmt.Errorf("write process: %w", err)
	}
	if err := os.Rename(file+".new", file); err != nil {
		return nil, fmt.Errorf("write process: %w", err)
	}
	return []string{r.cfg.Runc, "--root", r.cfg.Root, "exec", "--detach", "--preserve-fds", strconv.Itoa(files), "--process", file, id}, nil
}

// Account finds a user in a running server's own list. fault.Invalid: there is none.
func (r *Runtime) Account(id, user string) (vserver.Account, error) {
	s, err := r.running(id)
	if err != nil {
		return vserver.Account{}, err
	}
	a, err := accountIn(s, user)
	if err != nil {
		return vserver.Account{}, fmt.Errorf("find user %q of server %s: %w", user, id, err)
	}
	out := vserver.Account{UID: a.UID, GID: a.GID, Groups: a.Groups, Home: a.Home}
	if out.HostUID, err = hostID(s, "uid_map", a.UID); err == nil {
		out.HostGID, err = hostID(s, "gid_map", a.GID)
	}
	if err != nil {
		return vserver.Account{}, fmt.Errorf("find user %q of server %s: %w", user, id, err)
	}
	return out, nil
}

// hostID is what the server's id is on the host, by the kernel's own map of the server
// whose init is s.
func hostID(s runState, file string, id uint32) (uint32, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", s.Pid, file))
	if err != nil || !alive(s.Pid, s.Ticks) {
		return 0, fault.Wrap(fault.Precondition, errors.Join(errGone, err))
	}
	return mappedID(string(b), id)
}

// Share shows directory dir of the host to a running server at path, whose directory must
// exist there with no link on the way. Again is no change; it lasts until the server stops.
func (r *Runtime) Share(id, dir, path string) error {
	s, err := r.running(id)
	if err != nil {
		return err
	}
	if err := share(s, dir, path); err != nil {
		return fmt.Errorf("share %s with server %s: %w", dir, id, err)
	}
	return nil
}

func share(s runState, dir, at string) error {
	if !path.IsAbs(at) || strings.ContainsRune(at, 0) {
		return fault.New(fault.Invalid, "%q is not absolute", at)
	}
	var want unix.Stat_t
	if err := unix.Stat(dir, &want); err != nil {
		return &os.PathError{Op: "stat", Path: dir, Err: err}
	}
	tree, err := unix.OpenTree(unix.AT_FDCWD, dir, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return &os.PathError{Op: "clone", Path: dir, Err: err}
	}
	defer closeFD(tree)
	if err := unix.MountSetattr(tree, "", unix.AT_EMPTY_PATH, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV | unix.MOUNT_ATTR_NOEXEC}); err != nil {
		return &os.PathError{Op: "restrict", Path: dir, Err: err}
	}
	return insideMounts(s, func() error {
		fd, err := retry(func() (int, error) {
			return unix.Openat2(unix.AT_FDCWD, at, &unix.OpenHow{Flags: unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC, Resolve: unix.RESOLVE_NO_SYMLINKS})
		})
		if err != nil {
			return &os.PathError{Op: "open", Path: at, Err: err}
		}
		defer closeFD(fd)
		var have unix.Stat_t
		if err := unix.Fstat(fd, &have); err != nil {
			return &os.PathError{Op: "stat", Path: at, Err: err}
		}
		if have.Dev == want.Dev && have.Ino == want.Ino {
			return nil
		}
		if err := unix.MoveMount(tree, "", fd, "", unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH); err != nil {
			return &os.PathError{Op: "mount", Path: at, Err: err}
		}
		return nil
	})
}

// accountIn finds a user in the files of the server whose init is s.
func accountIn(s runState, user string) (account, error) {
	root, err := openRoot(fmt.Sprintf("/proc/%d/root", s.Pid))
	if err != nil {
		return account{}, err
	}
	defer func() { _ = root.Close() }()
	if !alive(s.Pid, s.Ticks) { // else it may be another process's root
		return account{}, fault.Wrap(fault.Precondition, errGone)
	}
	passwd, err := root.readFile("/etc/passwd")
	if err != nil && !errors.Is(err, unix.ENOENT) {
		return account{}, fault.Wrap(fault.Precondition, err)
	}
	group, err := root.readFile("/etc/group")
	if err != nil && !errors.Is(err, unix.ENOENT) {
		return account{}, fault.Wrap(fault.Precondition, err)
	}
	return resolveUser(passwd, group, user)
}
