//go:build linux && root

package oci

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
)

// A directory of the host is seen in the server, once, and no link leads it elsewhere.
func TestShare(t *testing.T) {
	h := newHost(t, "")
	c := h.newContainer(t, busyboxRoot(t, h.dir))
	if err := h.Share(c.ID, h.dir, "/tmp"); !fault.Is(err, fault.NotFound) {
		t.Errorf("shared with a server that is not there: %v", err)
	}
	h.run(t, c)
	dir := filepath.Join(h.dir, "shared")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, "note"), "from the host")
	if out, code := h.sh(t, c.ID, "mkdir -p /run/here && ln -s /run/here /run/link && ln -s / /run/root"); code != 0 {
		t.Fatal(out)
	}
	for range 2 {
		if err := h.Share(c.ID, dir, "/run/here"); err != nil {
			t.Fatal(err)
		}
	}
	out, _ := h.sh(t, c.ID, "cat /run/here/note; echo x >/run/here/note; grep -c ' /run/here ' /proc/self/mountinfo")
	if !strings.HasPrefix(out, "from the host") || !strings.HasSuffix(strings.TrimSpace(out), "1") || strings.Contains(out, "\nx\n") {
		t.Errorf("seen in the server: %q", out)
	}
	if b, err := os.ReadFile(filepath.Join(dir, "note")); err != nil || string(b) != "from the host" {
		t.Errorf("written by the server: %q %v", b, err)
	}
	for _, bad := range []string{"/run/link", "/run/root/tmp", "/run/none", "run/here", ""} {
		if err := h.Share(c.ID, dir, bad); err == nil {
			t.Errorf("shared at %q", bad)
		}
	}
}

// A process of the host has a child in the server, with the server's root's rights and what
// it was given.
func TestEntrance(t *testing.T) {
	h := newHost(t, "")
	c := h.newContainer(t, busyboxRoot(t, h.dir))
	pid := h.run(t, c)
	dir := t.TempDir()
	argv, err := h.Entrance(c.ID, dir, []string{"/bin/sh", "-c", "id -u >&3; cat /proc/self/uid_map >&3; readlink /proc/self/ns/pid >&3; cat /proc/self/oom_score_adj >&3; echo end >&3"}, 1)
	if err != nil {
		t.Fatal(err)
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.ExtraFiles = []*os.File{w}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatal(err, string(out))
	}
	_ = w.Close()
	_ = r.SetReadDeadline(time.Now().Add(20 * time.Second))
	var text strings.Builder
	for b := make([]byte, 4096); !strings.Contains(text.String(), "end\n"); {
		n, err := r.Read(b)
		if err != nil {
			t.Fatal(err, text.String())
		}
		text.Write(b[:n])
	}
	ns, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/pid", pid))
	if err != nil {
		t.Fatal(err)
	}
	got := strings.Fields(text.String())
	if want := []string{"0", "0", fmt.Sprint(c.IDs.First), fmt.Sprint(c.IDs.Size), ns, "0", "end"}; strings.Join(got, " ") != strings.Join(want, " ") {
		t.Errorf("in the server: %q, want %q", got, want)
	}
	a, err := h.Account(c.ID, "ann")
	if err != nil || a.UID != 1000 || a.HostUID != c.IDs.First+1000 || a.HostGID != c.IDs.First+1000 || a.Home != "/home/ann" {
		t.Errorf("%+v %v", a, err)
	}
	if _, err := h.Account(c.ID, "nobody-at-all"); !fault.Is(err, fault.Invalid) {
		t.Errorf("no such user: %v", err)
	}
}

func TestMappedID(t *testing.T) {
	const text = "         0     100000      65536\n     65536          7          1\n"
	for id, want := range map[uint32]uint32{0: 100000, 999: 100999, 65535: 165535, 65536: 7} {
		if got, err := mappedID(text, id); err != nil || got != want {
			t.Errorf("%d is %d, want %d: %v", id, got, want, err)
		}
	}
	for _, bad := range []string{"", "x y z\n", "1 2\n", text} {
		if got, err := mappedID(bad, 65537); err == nil {
			t.Errorf("%q: %d", bad, got)
		}
	}
}
