//go:build terraform

package provider

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sync"
	"testing"
)

// mirror is a directory that Terraform installs this provider from, made once per run.
var mirror = sync.OnceValues(func() (string, error) {
	dir := filepath.Join(runDir, "mirror")
	platform := runtime.GOOS + "_" + runtime.GOARCH
	program := filepath.Join(dir, "registry.terraform.io", "reflejo", "reflejo", "99.0.0", platform, "terraform-provider-reflejo_v99.0.0")
	build := exec.Command("go", "build", "-o", program, "..")
	if output, err := build.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build the provider: %w\n%s", err, output)
	}
	return dir, nil
})

// cli runs Terraform with this provider as a program, installed from a mirror.
type cli struct {
	t   *testing.T
	env []string
}

func newCLI(t *testing.T, env ...string) *cli {
	t.Helper()
	from, err := mirror()
	must(t, err)
	config := filepath.Join(t.TempDir(), "cli.tfrc")
	text := fmt.Sprintf("disable_checkpoint = true\nprovider_installation {\n  filesystem_mirror {\n    path = %q\n  }\n}\n", from)
	must(t, os.WriteFile(config, []byte(text), 0o600))
	return &cli{t: t, env: append(append(os.Environ(), "TF_CLI_CONFIG_FILE="+config), env...)}
}

func (c *cli) run(dir string, args ...string) ([]byte, error) {
	c.t.Helper()
	cmd := exec.CommandContext(c.t.Context(), os.Getenv("TF_ACC_TERRAFORM_PATH"), args...)
	cmd.Dir, cmd.Env = dir, c.env
	return cmd.CombinedOutput()
}

// must runs Terraform and fails the test if that fails.
func (c *cli) must(dir string, args ...string) []byte {
	c.t.Helper()
	output, err := c.run(dir, args...)
	if err != nil {
		c.t.Fatalf("terraform %v in %s: %v\n%s", args, dir, err, output)
	}
	return output
}
