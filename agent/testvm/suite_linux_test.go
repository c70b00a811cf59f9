//go:build root || vm

package testvm

import (
	"bytes"
	"context"
	"io"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

const module = "github.com/reflejo/terraform-provider-reflejo/"

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

// compile builds the test binary of a package of the repository and returns the command that
// runs its tests, those that match (a word of the shell's), in the machine. Test data goes along.
func compile(t *testing.T, dir, tags, pkg, run string, flags ...string) string {
	t.Helper()
	name := path.Base(pkg)
	program := filepath.Join(dir, name, name+".test")
	goTool(t, "test", "-c", "-tags", tags, "-o", program, module+pkg)
	data := filepath.Join("..", "..", pkg, "testdata")
	if _, err := os.Stat(data); err == nil {
		if err := os.CopyFS(filepath.Join(dir, name, "testdata"), os.DirFS(data)); err != nil {
			t.Fatal(err)
		}
	}
	return "cd " + name + " && " + strings.Join(append(flags, "./"+name+".test"), " ") + " -test.v -test.timeout 25m -test.run " + run
}

// goTool runs the go command for what shall run in the machine, which has no libraries of
// this one.
func goTool(t *testing.T, args ...string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", args...)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("go %s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

var testFunction = regexp.MustCompile(`(?m)^func (Test\w+)\(t \*testing\.T\)`)

// rootTests matches the tests of a package that need root or the kernel: those of its files
// *_root_test.go. The others say nothing that they did not say on the machine we are on.
func rootTests(t *testing.T, pkg string) string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join("..", "..", pkg, "*_root_test.go"))
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range testFunction.FindAllSubmatch(text, -1) {
			names = append(names, string(m[1]))
		}
	}
	if len(names) == 0 {
		t.Fatalf("%s has no tests that need root", pkg)
	}
	return "'^(" + strings.Join(names, "|") + ")$'"
}

// inMachine runs commands and fails for each that fails. The machine is emulated on what
// may be a busy host, so limit is only there to end a hung one.
func inMachine(t *testing.T, limit time.Duration, m Machine, commands ...string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	var out bytes.Buffer
	m.Image, m.Output = testImage(t), io.MultiWriter(&out, os.Stderr)
	codes, err := Run(ctx, m, commands...)
	if err != nil {
		t.Fatalf("%v\noutput:\n%s", err, out.Bytes())
	}
	for i, code := range codes {
		if code != 0 {
			t.Errorf("%s: exit code %d", commands[i], code)
		}
	}
}
