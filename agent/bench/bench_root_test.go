//go:build linux && root

package bench

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// programs builds what a test host runs.
func programs(t *testing.T) string {
	t.Helper()
	bin := t.TempDir()
	build := exec.Command("go", "build", "-o", filepath.Join(bin, "reflejo"), "github.com/reflejo/terraform-provider-reflejo/agent")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	// A bed wants a provider, benchmarks never run Terraform.
	if err := os.WriteFile(filepath.Join(bin, "terraform-provider-reflejo"), nil, 0o755); err != nil {
		t.Fatal(err)
	}
	return bin
}

func TestRunMeasuresAndLeavesNothing(t *testing.T) {
	c := Config{Name: "r" + strings.ToLower(rand.Text()[:6]), Bin: programs(t), Dir: filepath.Join(t.TempDir(), "bed"), Quick: true, NoLXD: true, Only: []string{"V1", "V8"}, Log: t.Output()}
	report, err := Run(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range report.Failed {
		t.Errorf("%s: %v", f.ID, f.Err)
	}
	for _, r := range report.Rows {
		if len(r.Values) == 0 {
			t.Errorf("%s %s has no values", r.ID, r.What)
		}
	}
	nothingLeft(t, c)

	// The same, interrupted in its middle.
	ctx, cancel := context.WithCancel(t.Context())
	c.Log = writerFunc(func(text []byte) {
		if bytes.HasPrefix(text, []byte("V1 …")) {
			cancel()
		}
	})
	if _, err := Run(ctx, c); !errors.Is(err, context.Canceled) {
		t.Errorf("an interrupted run ends with %v", err)
	}
	nothingLeft(t, c)
}

type writerFunc func([]byte)

func (f writerFunc) Write(text []byte) (int, error) { f(text); return len(text), nil }

func nothingLeft(t *testing.T, c Config) {
	t.Helper()
	if _, err := os.Stat(c.Dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the bed's directory is left: %v", err)
	}
	for _, pattern := range []string{"/sys/fs/cgroup/*/reflejo-" + c.Name + "-*", "/sys/fs/cgroup/reflejo-" + c.Name + "-*", "/run/netns/" + c.Name + "-*", "/run/reflejo-testbed/" + c.Name + "-*"} {
		left, err := filepath.Glob(pattern)
		if err != nil || len(left) > 0 {
			t.Errorf("left: %v, %v", left, err)
		}
	}
}
