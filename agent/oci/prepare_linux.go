package oci

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
	"github.com/reflejo/terraform-provider-reflejo/agent/vserver"
)

// Prepare writes the host's decisions into the server's files; see vserver.Preparer. The
// server may be running. fault.Invalid: the image cannot use the first-boot data, or the
// time zone is not known.
func (r *Runtime) Prepare(ctx context.Context, root string, p vserver.Preparation) error {
	dir, err := openRoot(root)
	if err != nil {
		return fmt.Errorf("prepare server %s: %w", p.ID, err)
	}
	defer func() { _ = dir.Close() }()
	resolver, err := hostFile(r.cfg.Resolver)
	if err != nil {
		return fmt.Errorf("prepare server %s: %w", p.ID, err)
	}
	if servers, _ := parseResolver(resolver); len(servers) == 0 { // a stub of systemd-resolved: what is behind it
		if real, err := hostFile("/run/systemd/resolve/resolv.conf"); err == nil && real != "" {
			resolver = real
		}
	}
	t, zone := look(dir, p)
	files, err := preparedFiles(p, t, resolver, zone)
	if err != nil {
		return fmt.Errorf("prepare server %s: %w", p.ID, err)
	}
	if p.First {
		fresh, err := identity(dir, p, t)
		if err != nil {
			return fmt.Errorf("prepare server %s: %w", p.ID, err)
		}
		files = append(fresh, files...)
	}
	for _, f := range files {
		if ctx.Err() != nil {
			return fmt.Errorf("prepare server %s: %w", p.ID, ctx.Err())
		}
		if err := put(dir, f); err != nil {
			return fmt.Errorf("prepare server %s: %w", p.ID, err)
		}
	}
	if p.Pid != 0 {
		if err := setHostname(p.Pid, p.Hostname); err != nil {
			return fmt.Errorf("prepare server %s: %w", p.ID, err)
		}
	}
	return nil
}

func put(dir *rootDir, f file) error {
	switch {
	case f.Remove:
		return dir.remove(f.Path)
	case f.Link != "":
		return dir.symlink(f.Link, f.Path)
	default:
		return dir.writeFile(f.Path, []byte(f.Content), f.Mode)
	}
}

// look finds out what Prepare has to know about the image, and reads the host's file of
// the time zone.
func look(dir *rootDir, p vserver.Preparation) (traits, string) {
	t := traits{
		CloudInit:      dir.exists("/usr/bin/cloud-init") || dir.exists("/etc/cloud/cloud.cfg"),
		NetworkManager: dir.isDir("/etc/NetworkManager"),
		Ifupdown:       dir.isDir("/etc/network") && dir.exists("/etc/network/interfaces"),
		SSH:            dir.exists("/usr/sbin/sshd"),
	}
	t.Systemd = dir.target("/usr/lib/systemd/systemd") != "" || dir.target("/lib/systemd/systemd") != ""
	if b, err := dir.readFile("/etc/hosts"); err == nil {
		t.Hosts = string(b)
	}
	zone := p.Timezone
	if zone == "" {
		zone = "UTC"
	}
	if !validZone(zone) {
		return t, ""
	}
	t.Zone = dir.exists("/usr/share/zoneinfo/" + zone)
	text, err := hostFile(filepath.Join("/usr/share/zoneinfo", zone))
	if t.Zone || err != nil {
		return t, ""
	}
	return t, text
}

// identity makes a server one of its own: machine id and SSH host keys are not those of
// its image or of the server it was cloned from.
func identity(dir *rootDir, p vserver.Preparation, t traits) ([]file, error) {
	var id [16]byte
	if _, err := rand.Read(id[:]); err != nil {
		return nil, fmt.Errorf("make machine id: %w", err)
	}
	out := []file{{Path: "/etc/machine-id", Content: hex.EncodeToString(id[:]) + "\n", Mode: 0o444}}
	if dir.isDir("/var/lib/dbus") {
		out = append(out, file{Path: "/var/lib/dbus/machine-id", Link: "/etc/machine-id"})
	}
	names, err := dir.names("/etc/ssh", 1000)
	if err != nil {
		return nil, err
	}
	for _, n := range names {
		if strings.HasPrefix(n, "ssh_host_") && strings.Contains(n, "_key") {
			out = append(out, file{Path: "/etc/ssh/" + n, Remove: true})
		}
	}
	if t.SSH {
		private, public, err := newSSHHostKey("root@" + p.Hostname)
		if err != nil {
			return nil, err
		}
		out = append(out, file{Path: sshHostKeyPath, Content: private, Mode: 0o600}, file{Path: sshHostKeyPath + ".pub", Content: public, Mode: 0o644})
	}
	return out, nil
}

// hostFile reads a file of the host's; one that is not there is empty.
func hostFile(p string) (string, error) {
	f, err := os.Open(p)
	if errors.Is(err, os.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	defer func() { _ = f.Close() }()
	b, err := io.ReadAll(io.LimitReader(f, maxGuestFile))
	return string(b), err
}

// setHostname sets the live host name of the server that pid is in.
func setHostname(pid int, name string) error {
	fd, err := unix.PidfdOpen(pid, 0)
	if err == unix.ESRCH {
		return fault.New(fault.Precondition, "set host name: process %d has ended", pid)
	}
	if err != nil {
		return fmt.Errorf("set host name: %w", err)
	}
	defer closeFD(fd)
	err = onThread(func() error {
		err := unix.Setns(fd, unix.CLONE_NEWUTS)
		if err == nil && !ownHostname() {
			err = unix.Sethostname([]byte(name))
		}
		return err
	})
	if err != nil && err != unix.ESRCH {
		return fmt.Errorf("set host name: %w", err)
	}
	return nil
}

// ownHostname reports whether this thread is still in the host's own namespace: then
// setting the name would rename the host.
func ownHostname() bool {
	here, err1 := os.Readlink("/proc/thread-self/ns/uts")
	host, err2 := os.Readlink("/proc/self/ns/uts") // of the main thread, which never moves
	return err1 != nil || err2 != nil || here == host
}
