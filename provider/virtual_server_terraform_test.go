//go:build terraform

package provider

import (
	"testing"

	"github.com/hashicorp/terraform-plugin-testing/helper/resource"
)

func TestServerLife(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "alpha")
	config := `
resource "reflejo_virtual_server" "a" {
  name  = "a"
  host  = "alpha"
  image = "debian"
}`
	w.run(
		resource.TestStep{Config: config, Check: resource.TestCheckResourceAttr("reflejo_virtual_server.a", "state", "running")},
		resource.TestStep{ResourceName: "reflejo_virtual_server.a", ImportState: true, ImportStateVerify: true, ImportStateId: "a"},
	)
}
