//go:build linux && root

package testbed

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestImageComesFromTheCache(t *testing.T) {
	t.Setenv(EnvCache, t.TempDir())
	dir, err := imageDir()
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, Debian.fileName())
	if err := os.WriteFile(file, []byte("made before"), 0o644); err != nil {
		t.Fatal(err)
	}
	got, err := Debian.File(t.Context())
	if err != nil || got != file {
		t.Errorf("File = %q, %v; want %q", got, err, file)
	}
}

func TestImageThatFailsLeavesNothing(t *testing.T) {
	t.Setenv(EnvCache, t.TempDir())
	bad := Image{Name: "bad", Suite: "no-such-suite", Packages: basePackages}
	if _, err := bad.File(t.Context()); err == nil || !strings.Contains(err.Error(), "apt-get update") {
		t.Errorf("error = %v, want mmdebstrap's own words", err)
	}
	dir, err := imageDir()
	if err != nil {
		t.Fatal(err)
	}
	left, err := filepath.Glob(filepath.Join(dir, "*.tar.zst"))
	half, err2 := filepath.Glob(filepath.Join(dir, ".half*"))
	if err != nil || err2 != nil || len(left)+len(half) > 0 {
		t.Errorf("left %v %v", left, half)
	}
}
