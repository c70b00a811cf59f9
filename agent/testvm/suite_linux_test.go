//go:build root || vm

package testvm

import (
	"bytes"
	"context"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

// cacheDir is where make keeps images: REFLEJO_CACHE or .cache in the repository.
func cacheDir() string {
	if dir := os.Getenv("REFLEJO_CACHE"); dir != "" {
		return dir
	}
	return filepath.Join("..", "..", ".cache")
}

// testImage is the machine, built if need be.
func testImage(t *testing.T) Image {
	t.Helper()
	img, err := BuildImage(t.Context(), ImageConfig{Cache: cacheDir(), Log: os.Stderr})
	if err != nil {
		t.Fatal(err)
	}
	return img
}

// compile builds the test binary of a package into dir.
func compile(t *testing.T, dir, tags, pkg string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", "test", "-c", "-tags", tags, "-o", filepath.Join(dir, filepath.Base(pkg)+".test"), pkg)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("compile tests of %s: %v\n%s", pkg, err, out)
	}
}

// inMachine runs commands and fails for each that fails. The machine is emulated on what
// may be a busy host, so limit is only there to end a hung one.
func inMachine(t *testing.T, limit time.Duration, dir string, commands ...string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	var out bytes.Buffer
	codes, err := Run(ctx, Machine{Image: testImage(t), Dir: dir, Output: io.MultiWriter(&out, os.Stderr)}, commands...)
	if err != nil {
		t.Fatalf("%v\noutput:\n%s", err, out.Bytes())
	}
	for i, code := range codes {
		if code != 0 {
			t.Errorf("%s: exit code %d", commands[i], code)
		}
	}
}
