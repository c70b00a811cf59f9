//go:build linux && vm

package testvm

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// TestInstalledHost installs the Debian package on a host whose init is systemd, uses it, cuts
// the host's power while servers run, and looks at what is there when it is back. The steps
// are in package installed, which runs in the machine.
func TestInstalledHost(t *testing.T) {
	img, dir := testImage(t), t.TempDir()
	m := Machine{Image: img, Dir: dir, Disk: filepath.Join(t.TempDir(), "root.img")}
	if err := img.CopyDisk(t.Context(), m.Disk); err != nil {
		t.Fatal(err)
	}
	debianPackage(t, filepath.Join(dir, "reflejo.deb"))
	tests := compile(t, dir, "vmguest", "agent/testvm/installed", "")
	untilPowerCut(t, m, tests+"'^TestInstalled$'")
	untilReboot(t, m, tests+"'^TestAfterPowerCut$'")
	inMachine(t, 30*time.Minute, m, tests+"'^TestAfterReboot$'")
}

// debianPackage builds what `make dist` does, for this machine alone.
func debianPackage(t *testing.T, target string) {
	t.Helper()
	work := t.TempDir()
	program, nfpm := filepath.Join(work, "reflejo"), filepath.Join(work, "nfpm")
	goTool(t, "build", "-trimpath", "-ldflags=-s -w -X main.version=0.0.1", "-o", program, module+"agent")
	goTool(t, "-C", filepath.Join("..", "..", ".tools", "nfpm"), "build", "-o", nfpm, ".")
	cmd := exec.CommandContext(t.Context(), nfpm, "-config", filepath.Join("packaging", "nfpm.yaml"), "-target", target)
	cmd.Dir = filepath.Join("..", "..")
	cmd.Env = append(os.Environ(), "VERSION=0.0.1", "ARCH=amd64", "BIN="+program)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build the Debian package: %v\n%s", err, out)
	}
}

// untilReboot runs a command, and shuts the machine down in order when it has succeeded.
func untilReboot(t *testing.T, m Machine, command string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Minute)
	defer cancel()
	var out bytes.Buffer
	m.Output = io.MultiWriter(&out, os.Stderr)
	codes, err := Run(ctx, m, command, "systemctl reboot; sleep infinity")
	if !errors.Is(err, ErrNoResult) || !slices.Equal(codes, []int{0}) {
		t.Fatalf("exit codes %v: %v\noutput:\n%s", codes, err, out.Bytes())
	}
}

const cutNow = "cut the power now"

// untilPowerCut runs a command, and kills the machine when it has succeeded.
func untilPowerCut(t *testing.T, m Machine, command string) {
	t.Helper()
	ctx, cut := context.WithTimeout(t.Context(), 30*time.Minute)
	defer cut()
	out := &trigger{on: cutNow, do: cut}
	m.Output = io.MultiWriter(out, os.Stderr)
	if _, err := Run(ctx, m, command+" && echo "+cutNow+"; sleep 60"); !out.done || !errors.Is(err, context.Canceled) {
		t.Fatalf("%v\noutput:\n%s", err, out.text.String())
	}
}

// trigger does something once, when a text has been written to it.
type trigger struct {
	on   string
	do   func()
	done bool
	text strings.Builder
}

func (w *trigger) Write(p []byte) (int, error) {
	w.text.Write(p)
	if !w.done && strings.Contains(w.text.String(), "\n"+w.on) {
		w.done = true
		w.do()
	}
	return len(p), nil
}
