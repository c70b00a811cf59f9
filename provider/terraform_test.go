//go:build terraform

package provider

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/hashicorp/terraform-plugin-framework/provider"
	"github.com/hashicorp/terraform-plugin-framework/providerserver"
	"github.com/hashicorp/terraform-plugin-go/tfprotov6"
	"github.com/hashicorp/terraform-plugin-testing/helper/resource"

	"github.com/reflejo/terraform-provider-reflejo/agent/vserver"
)

// runDir is a directory for this run of the tests.
var runDir string

// TestMain makes sure that the Terraform on PATH is used and nothing else: without it the
// testing library would download one.
func TestMain(m *testing.M) {
	os.Exit(func() int {
		cli := os.Getenv("TF_ACC_TERRAFORM_PATH")
		if cli == "" {
			found, err := exec.LookPath("terraform")
			if err != nil {
				fmt.Fprintln(os.Stderr, "tests with tag terraform need the Terraform CLI (1.11 or newer): put it on PATH or name it in TF_ACC_TERRAFORM_PATH")
				return 1
			}
			cli = found
		}
		dir, err := os.MkdirTemp("", "reflejo-provider-")
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer os.RemoveAll(dir)
		runDir = dir
		for name, value := range map[string]string{
			"TF_ACC_TERRAFORM_PATH": cli, "CHECKPOINT_DISABLE": "1", "TF_CLI_CONFIG_FILE": filepath.Join(dir, "none.tfrc"), "TF_IN_AUTOMATION": "1",
		} {
			os.Setenv(name, value)
		}
		for _, name := range []string{"TF_LOG", "TF_CLI_ARGS", "TF_WORKSPACE", "REFLEJO_HOSTS", "REFLEJO_LOST_HOSTS", "REFLEJO_CA_FILE", "REFLEJO_CERT_FILE", "REFLEJO_KEY_FILE"} {
			os.Unsetenv(name)
		}
		if err := os.WriteFile(filepath.Join(dir, "none.tfrc"), nil, 0o600); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		return m.Run()
	}())
}

// factories serve this package's provider, in process, in a world.
func (w *world) factories() map[string]func() (tfprotov6.ProviderServer, error) {
	return map[string]func() (tfprotov6.ProviderServer, error){
		"reflejo": func() (tfprotov6.ProviderServer, error) {
			return providerserver.NewProtocol6WithError(provider.Provider(&reflejoProvider{version: "test", getenv: w.env}))()
		},
	}
}

// run runs the steps of a test case against the world.
func (w *world) run(steps ...resource.TestStep) {
	w.t.Helper()
	resource.UnitTest(w.t, resource.TestCase{ProtoV6ProviderFactories: w.factories(), Steps: steps})
}

// remove deletes a server behind Terraform's back.
func (h *testHost) remove(idOrName string) {
	h.world.t.Helper()
	v := h.server(idOrName)
	must(h.world.t, h.servers.Delete(h.world.t.Context(), v.Spec.ID))
	h.await(v.Spec.ID, func(v vserver.View) bool { return v.Gone })
}

// refuse makes the host refuse a network.
func (b *bridge) refuse(name string, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.refused[name] = err
}
