package postgres

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/reflejo/terraform-provider-reflejo/agent/database"
	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
	"github.com/reflejo/terraform-provider-reflejo/agent/guard"
	"github.com/reflejo/terraform-provider-reflejo/agent/vserver"
)

// Run implements database.Clusters.
func (m *Manager) Run(ctx context.Context, c database.Cluster) (time.Time, error) {
	err := m.run(ctx, c)
	var s guard.State
	if err == nil {
		s, err = m.guard(m.cfg.layout(c)).State(ctx)
	}
	if err != nil {
		return time.Time{}, fmt.Errorf("run database %s: %w", c.Name, err)
	}
	return s.Started, nil
}

func (m *Manager) run(ctx context.Context, c database.Cluster) error {
	l := m.cfg.layout(c)
	d, err := m.ControlData(ctx, c)
	if err != nil {
		return err
	}
	if d.Identity != c.Identity {
		return fault.New(fault.Precondition, "its files are of another cluster: system identifier %s, not %s", d.Identity, c.Identity)
	}
	user, err := m.cfg.Servers.Account(c.Server, systemUser)
	if err != nil {
		return err
	}
	if err := m.prepare(ctx, c, l, user); err != nil {
		return err
	}
	g := m.guard(l)
	config, err := m.guardConfig(ctx, c, l, user)
	if err != nil {
		return err
	}
	s, err := g.Ensure(ctx, config)
	if err != nil {
		return err
	}
	if s.Phase != guard.Running {
		if _, err := g.Start(ctx); err != nil {
			return m.withLog(err, l)
		}
		return m.answers(ctx, c, g)
	}
	restart := !slices.Equal(s.Argv, config.Program.Argv)
	if !restart {
		if err := m.answers(ctx, c, g); err != nil {
			return err
		}
		if restart, err = m.reload(ctx, c, g); err != nil || !restart {
			return err
		}
	}
	m.cfg.Log.Info("restart for settings", "database", c.Name)
	if _, err := g.Restart(ctx, stopLimit); err != nil {
		return m.withLog(err, l)
	}
	return m.answers(ctx, c, g)
}

// guardConfig is what the guard keeps.
func (m *Manager) guardConfig(ctx context.Context, c database.Cluster, l layout, user vserver.Account) (guard.Config, error) {
	bin, err := m.bin(ctx, c.Server, c.Major)
	if err != nil {
		return guard.Config{}, err
	}
	if err := os.MkdirAll(l.guard, 0o700); err != nil {
		return guard.Config{}, fmt.Errorf("make directory of guard: %w", err)
	}
	enter, err := m.cfg.Servers.Entrance(c.Server, l.guard, guard.Inside(), guard.Files)
	if err != nil {
		return guard.Config{}, err
	}
	return guard.Config{
		ID: c.ID, Enter: enter, Groups: m.cfg.Groups, LogFile: l.log,
		Program: guard.Program{
			Argv: commandLine(bin, c, l), Dir: l.data, UID: user.UID, GID: user.GID, Groups: user.Groups,
			Env: []string{"PATH=/usr/local/bin:/usr/bin:/bin", "LANG=C.UTF-8", "PGDATA=" + l.data, "HOME=" + user.Home},
		},
	}, nil
}

// withLog adds the end of what postgres printed, which says why it does not run.
func (m *Manager) withLog(err error, l layout) error {
	b, rerr := os.ReadFile(l.log)
	if rerr != nil {
		return err
	}
	lines := strings.Split(strings.TrimSpace(string(b[max(0, len(b)-2048):])), "\n")
	return fmt.Errorf("%w: %s", err, refusal(strings.Join(lines[max(0, len(lines)-3):], "\n")))
}

// The bounds of the directory that a server shares with the host.
const sharedOptions = "size=1m,nr_inodes=64,mode=0755"

// prepare writes what postgres reads and shows it to the server.
func (m *Manager) prepare(ctx context.Context, c database.Cluster, l layout, user vserver.Account) error {
	for _, d := range []string{l.shared, l.keys} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return fmt.Errorf("make directory: %w", err)
		}
	}
	if err := mountShared(l.shared); err != nil {
		return err
	}
	cert, err := m.certificate(ctx, c, l)
	if err != nil {
		return err
	}
	uid, gid := int(user.HostUID), int(user.HostGID)
	for _, f := range []struct {
		name, text string
		uid, gid   int
		mode       os.FileMode
	}{
		{l.settings, settingsFile(c, l), 0, 0, 0o644},
		{l.access, accessFile(c), 0, 0, 0o644},
		{l.people, "", 0, 0, 0o644},
		{l.cert, string(cert.Cert), 0, 0, 0o644},
		{l.key, string(cert.Key), uid, gid, 0o400},
	} {
		if err := place(filepath.Join(l.shared, f.name), f.text, f.uid, f.gid, f.mode); err != nil {
			return err
		}
	}
	sockets := filepath.Join(l.shared, l.sockets)
	if err := os.Mkdir(sockets, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return fmt.Errorf("make directory of sockets: %w", err)
	}
	if err := os.Chown(sockets, uid, gid); err != nil {
		return fmt.Errorf("give directory of sockets away: %w", err)
	}
	if _, err := m.script(ctx, c.Server, "root", `mkdir -p "$1"`, "", l.share); err != nil {
		return fmt.Errorf("make shared directory: %w", err)
	}
	return m.cfg.Servers.Share(c.Server, l.shared, l.share)
}

// certificate is the database's: its operator's, or one that is made once.
func (m *Manager) certificate(ctx context.Context, c database.Cluster, l layout) (Certificate, error) {
	if m.cfg.Certificate != nil {
		cert, err := m.cfg.Certificate(ctx, c)
		if err != nil || len(cert.Cert) > 0 {
			return cert, err
		}
	}
	certFile, keyFile := filepath.Join(l.keys, l.cert), filepath.Join(l.keys, l.key)
	cert, err1 := os.ReadFile(certFile)
	key, err2 := os.ReadFile(keyFile)
	if err1 == nil && err2 == nil {
		return Certificate{cert, key}, nil
	}
	made, err := selfSigned(c.Name, m.cfg.Addresses, time.Now())
	if err != nil {
		return made, err
	}
	if err := place(keyFile, string(made.Key), 0, 0, 0o600); err != nil {
		return made, err
	}
	return made, place(certFile, string(made.Cert), 0, 0, 0o644) // last: with it the pair is whole
}

// place makes a file of this content appear at once.
func place(name, text string, uid, gid int, mode os.FileMode) error {
	temporary := name + ".new"
	err := os.WriteFile(temporary, []byte(text), 0o600)
	if err == nil {
		err = os.Chown(temporary, uid, gid)
	}
	if err == nil {
		err = os.Chmod(temporary, mode)
	}
	if err == nil {
		err = os.Rename(temporary, name)
	}
	if err != nil {
		return fmt.Errorf("write %s: %w", path.Base(name), err)
	}
	return nil
}

// mountShared puts a small tmpfs at dir, unless one is there.
func mountShared(dir string) error {
	if mounted(dir) {
		return nil
	}
	if err := unix.Mount("reflejo", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, sharedOptions); err != nil {
		return fmt.Errorf("mount shared directory: %w", err)
	}
	return nil
}

func unmountShared(dir string) error {
	if !mounted(dir) {
		return nil
	}
	if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
		return fmt.Errorf("unmount shared directory: %w", err)
	}
	return nil
}

// mounted reports whether something is mounted at dir.
func mounted(dir string) bool {
	var a, b unix.Stat_t
	return unix.Stat(dir, &a) == nil && unix.Stat(filepath.Dir(dir), &b) == nil && a.Dev != b.Dev
}

// reload makes a running cluster read its files again, and reports whether what is wanted
// needs a restart.
func (m *Manager) reload(ctx context.Context, c database.Cluster, g *guard.Client) (restart bool, err error) {
	before, err := m.loaded(ctx, c)
	if err != nil {
		return false, err
	}
	if err := g.Signal(ctx, syscall.SIGHUP); err != nil {
		return false, err
	}
	ctx, cancel := context.WithTimeout(ctx, answerLimit)
	defer cancel()
	for {
		now, err := m.loaded(ctx, c)
		if err != nil {
			return false, err
		}
		if now != before {
			break
		}
		if err := rest(ctx, 5*time.Millisecond); err != nil {
			return false, fmt.Errorf("wait for a reload: %w", err)
		}
	}
	return m.pending(ctx, c)
}

// rest waits for d, or until ctx ends.
func rest(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
