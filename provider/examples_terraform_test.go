//go:build terraform

package provider

import (
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const examples = "../examples"

// exampleDirs are the directories with configuration that the Terraform on PATH can read.
func exampleDirs(t *testing.T) []string {
	t.Helper()
	var dirs []string
	must(t, filepath.WalkDir(examples, func(name string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if entry.IsDir() && slices.Contains([]string{"actions", ".terraform"}, entry.Name()) {
			return fs.SkipDir // an action block is a parse error before 1.14
		}
		if dir := filepath.Dir(name); strings.HasSuffix(name, ".tf") && !slices.Contains(dirs, dir) {
			dirs = append(dirs, dir)
		}
		return nil
	}))
	if len(dirs) < 12 {
		t.Errorf("only %d examples: %v", len(dirs), dirs)
	}
	return dirs
}

// copied is a copy of all examples to run Terraform in.
func copied(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	must(t, os.CopyFS(dir, os.DirFS(examples)))
	return dir
}

func TestExamplesAreFormatted(t *testing.T) {
	t.Parallel()
	if output, err := newCLI(t).run(examples, "fmt", "-check", "-recursive", "-diff"); err != nil {
		t.Errorf("terraform fmt: %v\n%s", err, output)
	}
}

func TestExamplesAreValid(t *testing.T) {
	t.Parallel()
	c, root := newCLI(t), copied(t)
	versions := "terraform {\n  required_providers {\n    reflejo = {\n      source = \"reflejo/reflejo\"\n    }\n  }\n}\n"
	for _, example := range exampleDirs(t) {
		relative, err := filepath.Rel(examples, example)
		must(t, err)
		dir := filepath.Join(root, relative)
		// Pages show a resource alone; import by identity needs Terraform 1.12.
		_ = os.Remove(filepath.Join(dir, "import-by-identity.tf"))
		if kind, _, _ := strings.Cut(filepath.ToSlash(relative), "/"); kind == "resources" || kind == "data-sources" {
			must(t, os.WriteFile(filepath.Join(dir, "versions.tf"), []byte(versions), 0o600))
		}
		c.must(dir, "init", "-backend=false")
		c.must(dir, "validate")
	}
}

// The tests of examples run against real hosts' service and managers.
func TestExamplesTested(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "alpha", "beta", "gamma")
	for _, h := range w.hosts { // the example brings its own
		must(t, h.images.Delete(t.Context(), "debian"))
	}
	c := newCLI(t, w.environ()...)
	root := copied(t)
	tested := 0
	for _, example := range exampleDirs(t) {
		relative, err := filepath.Rel(examples, example)
		must(t, err)
		dir := filepath.Join(root, relative)
		if _, err := os.Stat(filepath.Join(dir, "tests")); err != nil {
			continue
		}
		tested++
		c.must(dir, "init", "-backend=false")
		t.Logf("%s: %s", relative, c.must(dir, "test"))
	}
	if tested < 2 {
		t.Errorf("%d examples have tests", tested)
	}
	for _, h := range w.hosts {
		if left := h.servers.List(); len(left) > 0 {
			t.Errorf("%s has %d servers left", h.name, len(left))
		}
	}
}

// environ is the environment of a provider that runs as a program.
func (w *world) environ() []string {
	var env []string
	for _, name := range []string{"REFLEJO_HOSTS", "REFLEJO_CA_FILE", "REFLEJO_CERT_FILE", "REFLEJO_KEY_FILE"} {
		env = append(env, name+"="+w.env(name))
	}
	return env
}

// The pipeline's gate tells no changes, changes, destruction and failure apart.
func TestPipelineGate(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "alpha", "beta")
	c := newCLI(t, w.environ()...)
	dir := filepath.Join(copied(t), "pipeline")
	gate := func(want int, env ...string) {
		t.Helper()
		cmd := exec.CommandContext(t.Context(), filepath.Join(dir, "gate.sh"))
		cmd.Env = append(append(c.env, "PATH="+filepath.Dir(os.Getenv("TF_ACC_TERRAFORM_PATH"))+string(os.PathListSeparator)+os.Getenv("PATH")), env...)
		output, err := cmd.CombinedOutput()
		if err != nil && cmd.ProcessState == nil {
			t.Fatal(err)
		}
		if got := cmd.ProcessState.ExitCode(); got != want {
			t.Fatalf("the gate ended with %d, want %d:\n%s", got, want, output)
		}
	}
	gate(2)
	c.must(dir, "apply", "-input=false", "plan.out")
	gate(0)
	config, err := os.ReadFile(filepath.Join(dir, "main.tf"))
	must(t, err)
	must(t, os.WriteFile(filepath.Join(dir, "main.tf"), []byte(strings.Replace(string(config), "size   = 2", "size   = 1", 1)), 0o600))
	gate(3)
	gate(2, "ALLOW_DESTROY=1")
	gate(1, "REFLEJO_HOSTS=alpha")
}
