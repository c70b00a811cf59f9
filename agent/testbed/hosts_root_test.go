//go:build linux && root

package testbed

import (
	"context"
	"crypto/rand"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/reflejo/terraform-provider-reflejo/agent/testbed/inventory"
)

// newHosts makes the namespaces of a bed with a random name, without agents.
func newHosts(t *testing.T) *Bed {
	t.Helper()
	b, err := New(Config{Name: "t" + strings.ToLower(rand.Text()[:6]), Dir: filepath.Join(t.TempDir(), "bed"), Bin: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(b.n.path("logs"), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := b.Down(context.Background()); err != nil {
			t.Error("remove bed:", err)
		}
	})
	upHosts(t, b)
	return b
}

func upHosts(t *testing.T, b *Bed) {
	t.Helper()
	for _, f := range []func() error{
		func() error { return makePinDir(b.n.pinDir()) },
		b.n.upSwitch,
		func() error { return b.n.upPlace(Operator) },
	} {
		if err := f(); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range b.n.hosts() {
		h := &Host{b, name}
		if err := os.MkdirAll(h.Dir(), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := b.n.upPlace(name); err != nil {
			t.Fatal(err)
		}
		if err := makeMountns(h.Mountns(), b.n.pinDir(), h.runDir()); err != nil {
			t.Fatal(err)
		}
	}
}

// reaches reports whether one place's ping is answered by another.
func reaches(t *testing.T, b *Bed, from, to string) bool {
	t.Helper()
	out, err := exec.Command("nsenter", "--net="+b.n.netns(from), "--", "ping", "-n", "-c1", "-W1", Address(to).String()).CombinedOutput()
	if err != nil && !strings.Contains(string(out), "100% packet loss") {
		t.Fatalf("ping: %v\n%s", err, out)
	}
	return err == nil
}

func TestHostsReachEachOther(t *testing.T) {
	t.Parallel()
	b := newHosts(t)
	upHosts(t, b) // again: nothing to do
	for _, from := range b.n.places() {
		for _, to := range b.n.places() {
			if !reaches(t, b, from, to) {
				t.Errorf("%s does not reach %s", from, to)
			}
		}
	}
}

func TestCutAndHeal(t *testing.T) {
	t.Parallel()
	b := newHosts(t)
	check := func(a, z string, want bool) {
		t.Helper()
		if reaches(t, b, a, z) != want || reaches(t, b, z, a) != want {
			t.Errorf("%s and %s reach each other: %v, want %v", a, z, !want, want)
		}
	}
	if err := b.Cut("beta", "alpha"); err != nil {
		t.Fatal(err)
	}
	check("alpha", "beta", false)
	check("alpha", "gamma", true)
	check("beta", Operator, true)
	if err := b.Cut("alpha", "beta"); err != nil { // the same again
		t.Fatal(err)
	}
	if err := b.Heal("alpha", "beta"); err != nil {
		t.Fatal(err)
	}
	check("alpha", "beta", true)
	if err := b.Heal("alpha", "beta"); err != nil {
		t.Fatal(err)
	}
	if err := b.Cut("alpha", "alpha"); err == nil {
		t.Error("alpha can be cut from itself")
	}
	if err := b.Cut("alpha", "delta"); err == nil {
		t.Error("a host that does not exist can be cut")
	}
}

func TestKillEndsAllOfAHostAndNothingElse(t *testing.T) {
	t.Parallel()
	b := newHosts(t)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	alpha, beta := &Host{b, "alpha"}, &Host{b, "beta"}
	ours := []*exec.Cmd{
		runIn(t, alpha, "sleep", "1000"),                                   // in its namespaces
		runIn(t, alpha, "sh", "-c", "unshare --net --mount sleep 1001; :"), // a child in others
		runIn(t, alpha, "sh", "-c", "trap '' TERM INT HUP; sleep 1002; :"), // stubborn
	}
	others := runIn(t, beta, "sleep", "1003")
	if err := alpha.Kill(ctx); err != nil {
		t.Fatal(err)
	}
	for _, cmd := range ours {
		if err := cmd.Wait(); err == nil || cmd.ProcessState.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
			t.Errorf("%v ended with %v, want SIGKILL", cmd.Args, err)
		}
	}
	if err := others.Process.Signal(syscall.Signal(0)); err != nil {
		t.Errorf("a process of another host is gone: %v", err)
	}
	if isPinned(alpha.Mountns()) {
		t.Error("the mount namespace is still there")
	}
	if !reaches(t, b, "beta", "alpha") {
		t.Error("the killed host's kernel does not answer")
	}
	if err := beta.PowerOff(ctx); err != nil {
		t.Fatal(err)
	}
	if reaches(t, b, "alpha", "beta") {
		t.Error("the host answers although its power is off")
	}
	_ = others.Wait()
}

// runIn starts a command on a host that lives until something ends it.
func runIn(t *testing.T, h *Host, argv ...string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command("nsenter", append([]string{"--net=" + h.Netns(), "--mount=" + h.Mountns(), "--"}, argv...)...)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill() })
	deadline := time.Now().Add(10 * time.Second)
	for { // until nsenter has become the command
		name, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", cmd.Process.Pid))
		if strings.TrimSpace(string(name)) != "nsenter" {
			return cmd
		}
		if time.Now().After(deadline) {
			t.Fatalf("%v did not start", argv)
		}
		time.Sleep(time.Millisecond)
	}
}

func TestDownLeavesNothing(t *testing.T) {
	t.Parallel()
	b := newHosts(t)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	alpha := &Host{b, "alpha"}
	// What an agent makes: an image on a loop device, mounted, with a bridge.
	image := filepath.Join(alpha.Dir(), "disk.img")
	script := `set -e
		truncate -s 64M "$1"; mkfs.ext4 -q "$1"; mkdir -p "$2/mnt"; mount -o loop "$1" "$2/mnt"
		ip link add br1 type bridge; nft add table inet reflejo; losetup -f "$1"
		for d in /sys/fs/cgroup/memory /sys/fs/cgroup/freezer /sys/fs/cgroup/unified; do mkdir -p "$d/$3/a/b"; done`
	out, err := exec.Command("nsenter", "--net="+alpha.Netns(), "--mount="+alpha.Mountns(), "--",
		"sh", "-c", script, "sh", image, alpha.Dir(), alpha.Cgroup()).CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	found, err := alpha.Inventory()
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"loop " + image, "link br1 bridge", "nft 1 reflejo", "mount " + alpha.Dir() + "/mnt ext4",
		"cgroup freezer/" + alpha.Cgroup() + "/a/b", "file " + image} {
		if !slices.Contains(found, want) {
			t.Errorf("the inventory lacks %q:\n%s", want, found)
		}
	}
	pins := []string{b.n.netns("alpha"), b.n.netns(Operator), b.n.netns(switchPlace)}
	if err := b.Down(ctx); err != nil {
		t.Fatal(err)
	}
	for _, path := range append(pins, b.Dir()) {
		if _, err := os.Lstat(path); !os.IsNotExist(err) {
			t.Errorf("%s is still there", path)
		}
	}
	left, err := inventory.Take(inventory.Scope{Dirs: []string{filepath.Dir(b.Dir())}, Cgroup: alpha.Cgroup()})
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range left {
		if strings.Contains(line, b.Dir()) || strings.Contains(line, alpha.Cgroup()) {
			t.Errorf("left: %s", line)
		}
	}
	if err := b.Down(ctx); err != nil {
		t.Errorf("down of what is not there: %v", err)
	}
}
