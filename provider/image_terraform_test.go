//go:build terraform

package provider

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"testing"

	"github.com/hashicorp/terraform-plugin-testing/helper/resource"
	"github.com/hashicorp/terraform-plugin-testing/plancheck"

	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
)

const imageA = "reflejo_image.a"

func imageConfig(hosts, source, more string) string {
	return fmt.Sprintf(`
resource "reflejo_image" "a" {
  name   = "a"
  hosts  = [%s]
  source = %q
  %s
}
`, hosts, source, more)
}

func expect(address string, a plancheck.ResourceActionType) resource.ConfigPlanChecks {
	return resource.ConfigPlanChecks{PreApply: []plancheck.PlanCheck{plancheck.ExpectResourceAction(address, a)}}
}

func TestImageLife(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "alpha", "beta", "gamma")
	source := "oci://registry.example/a:1"
	config := imageConfig(`"alpha", "beta"`, source, `checksum = "`+digest(source)+`"`)
	on := func(name string, hosts ...string) resource.TestCheckFunc {
		return where("the image is not where it should be", func() bool {
			n := 0
			for _, h := range w.hosts {
				if info, err := h.images.Get(name); err == nil && info.ID == digest(source) {
					n++
				}
			}
			for _, host := range hosts {
				if _, err := w.hosts[host].images.Get(name); err != nil {
					return false
				}
			}
			return n == len(hosts)
		})
	}
	steps := []resource.TestStep{{Config: config, Check: resource.ComposeTestCheckFunc(on("a", "alpha", "beta"), resource.TestCheckResourceAttr(imageA, "id", digest(source)))}}
	steps = append(steps, imports(imageA, config, "a", "alpha/a")...)
	steps = append(steps,
		resource.TestStep{Config: imageConfig(`"beta", "gamma"`, source, `checksum = "`+digest(source)+`"`), ConfigPlanChecks: expect(imageA, plancheck.ResourceActionUpdate), Check: on("a", "beta", "gamma")},
		resource.TestStep{Config: regexp.MustCompile(`= "a"`).ReplaceAllString(imageConfig(`"beta", "gamma"`, source, `checksum = "`+digest(source)+`"`), `= "b"`), ConfigPlanChecks: expect(imageA, plancheck.ResourceActionUpdate), Check: on("b", "beta", "gamma")},
		resource.TestStep{Config: imageConfig(`"beta"`, "oci://registry.example/a:2", ""), ConfigPlanChecks: expect(imageA, plancheck.ResourceActionDestroyBeforeCreate)},
	)
	w.run(steps...)
}

func TestImageFromHere(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "alpha", "beta")
	tarball := filepath.Join(w.dir, "a.tar")
	must(t, os.WriteFile(tarball, []byte("a tar"), 0o600))
	directory := filepath.Join(w.dir, "root")
	must(t, os.MkdirAll(filepath.Join(directory, "etc"), 0o755))
	must(t, os.WriteFile(filepath.Join(directory, "etc", "hostname"), []byte("a"), 0o600))
	both := `"alpha", "beta"`
	w.run(
		resource.TestStep{Config: imageConfig(both, tarball, ""), Check: resource.TestCheckResourceAttr(imageA, "id", digest("a tar"))},
		resource.TestStep{Config: imageConfig(both, tarball, `checksum = "`+digest("b tar")+`"`), ExpectError: regexp.MustCompile(`(?si)Attribute\s+checksum`)},
		resource.TestStep{Config: imageConfig(both, directory, ""), ConfigPlanChecks: expect(imageA, plancheck.ResourceActionCreate)},
		resource.TestStep{Config: imageConfig(both, directory, "")},
		resource.TestStep{Config: imageConfig(both, filepath.Join(w.dir, "none.tar"), ""), ExpectError: regexp.MustCompile(`(?si)Attribute\s+source.*is\s+not\s+there`)},
		resource.TestStep{Config: imageConfig(both, directory, `checksum = "`+digest("x")+`"`), ExpectError: regexp.MustCompile(`(?si)Checksum\s+of\s+a\s+directory`)},
		resource.TestStep{Config: imageConfig(both, directory, ""), ConfigPlanChecks: emptyPlan},
	)
}

func TestImageDeletedOutside(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "alpha", "beta")
	config := imageConfig(`"alpha", "beta"`, "oci://registry.example/a:1", "")
	gone := func(names ...string) func() {
		return func() {
			for _, name := range names {
				must(t, w.hosts[name].images.Delete(t.Context(), "a"))
			}
		}
	}
	w.run(
		resource.TestStep{Config: config},
		resource.TestStep{PreConfig: gone("beta"), Config: config, ConfigPlanChecks: expect(imageA, plancheck.ResourceActionUpdate)},
		resource.TestStep{PreConfig: gone("alpha", "beta"), Config: config, ConfigPlanChecks: expect(imageA, plancheck.ResourceActionCreate)},
	)
}

func TestImageRefusedByOneHost(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "alpha", "beta")
	w.hosts["beta"].images.fail = fault.New(fault.Exhausted, "import image a: the pool is full")
	config := imageConfig(`"alpha", "beta"`, "oci://registry.example/a:1", "")
	w.run(
		resource.TestStep{Config: config, ExpectError: regexp.MustCompile(`(?si)could\s+not\s+be\s+created.*beta.*pool\s+is\s+full`)},
		resource.TestStep{PreConfig: func() {
			if _, err := w.hosts["alpha"].images.Get("a"); err == nil {
				t.Error("alpha still has it")
			}
			w.hosts["beta"].images.mu.Lock()
			w.hosts["beta"].images.fail = nil
			w.hosts["beta"].images.content = map[string]string{"oci://registry.example/a:1": "moved"}
			w.hosts["beta"].images.mu.Unlock()
		}, Config: config, ExpectError: regexp.MustCompile(`(?si)different\s+content`)},
	)
}

func TestImageInUse(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "alpha", "beta")
	image := imageConfig(`"alpha", "beta"`, "oci://registry.example/a:1", "")
	user := `
resource "reflejo_virtual_server" "a" {
  name  = "a"
  host  = "alpha"
  image = reflejo_image.a.id
}
`
	w.run(
		resource.TestStep{Config: image + user},
		resource.TestStep{Config: image + user, ConfigPlanChecks: emptyPlan},
		resource.TestStep{Config: imageConfig(`"beta"`, "oci://registry.example/a:1", "") + user, ExpectError: regexp.MustCompile(`(?si)server\s+a\s+was\s+made\s+from\s+it`)},
		resource.TestStep{Config: imageConfig(`"alpha", "beta"`, "oci://registry.example/a:2", "") + user, ExpectError: regexp.MustCompile(`(?si)servers\s+were\s+made\s+from\s+image\s+a\s+\(1\s+on\s+alpha\).*nothing\s+was\s+touched`)},
		resource.TestStep{Config: image + user},
	)
}

func TestImageHostDown(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "alpha", "beta")
	config := imageConfig(`"alpha", "beta"`, "oci://registry.example/a:1", "")
	w.run(
		resource.TestStep{Config: config},
		resource.TestStep{PreConfig: w.hosts["beta"].stop, Config: config, ConfigPlanChecks: emptyPlan},
		resource.TestStep{Config: config, Destroy: true, ExpectError: regexp.MustCompile(`(?si)does\s+not\s+answer.*nothing\s+was\s+touched`)},
		resource.TestStep{Config: "provider \"reflejo\" {\n  forget_unreachable = true\n}\n" + config, Destroy: true},
	)
}

func TestDataSources(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "alpha", "beta")
	config := networkConfig(`"alpha", "beta"`, cidrA) + server(`host = "alpha"
		labels = { team = "orders" }
		network = { eth0 = { network = reflejo_network.a.id } }`) + `
data "reflejo_host" "alpha" { name = "alpha" }
data "reflejo_hosts" "all" {}
data "reflejo_image" "debian" { name = "debian" }
data "reflejo_network" "a" {
  name = "a"
  depends_on = [reflejo_virtual_server.a]
}
data "reflejo_network" "default" {
  name = "default"
  host = "beta"
}
data "reflejo_virtual_server" "a" {
  name = "a"
  depends_on = [reflejo_virtual_server.a]
}
data "reflejo_virtual_servers" "orders" {
  labels = { team = "orders" }
  depends_on = [reflejo_virtual_server.a]
}
data "reflejo_virtual_servers" "none" {
  host  = "beta"
  state = "running"
}
`
	check := resource.ComposeAggregateTestCheckFunc(
		resource.TestCheckResourceAttr("data.reflejo_host.alpha", "capacity.cores", "64"),
		resource.TestCheckResourceAttr("data.reflejo_host.alpha", "conditions.0.type", "Test"),
		resource.TestCheckResourceAttr("data.reflejo_hosts.all", "hosts.%", "2"),
		resource.TestCheckResourceAttr("data.reflejo_hosts.all", "unreachable.#", "0"),
		resource.TestCheckResourceAttr("data.reflejo_image.debian", "hosts.#", "2"),
		resource.TestCheckResourceAttr("data.reflejo_network.a", "servers", "1"),
		resource.TestCheckResourceAttr("data.reflejo_network.a", "gateways.alpha", "10.77.0.1"),
		resource.TestCheckResourceAttr("data.reflejo_network.default", "default_network", "true"),
		resource.TestCheckResourceAttrPair("data.reflejo_virtual_server.a", "id", serverA, "id"),
		resource.TestCheckResourceAttr("data.reflejo_virtual_servers.orders", "servers.#", "1"),
		resource.TestCheckResourceAttr("data.reflejo_virtual_servers.none", "servers.#", "0"),
	)
	w.run(
		resource.TestStep{Config: config, Check: check},
		resource.TestStep{Config: `data "reflejo_network" "x" { name = "default" }`, ExpectError: regexp.MustCompile(`(?si)different\s+networks\s+called\s+default.*alpha/`)},
		resource.TestStep{Config: `data "reflejo_virtual_server" "x" { name = "nobody" }`, ExpectError: regexp.MustCompile(`(?si)no\s+server\s+nobody\s+on\s+alpha,\s+beta`)},
		resource.TestStep{Config: `data "reflejo_hosts" "x" {}`, Check: resource.TestCheckResourceAttr("data.reflejo_hosts.x", "unreachable.#", "0")},
		resource.TestStep{PreConfig: w.hosts["beta"].stop, Config: `data "reflejo_hosts" "x" {}`, Check: resource.TestCheckResourceAttr("data.reflejo_hosts.x", "unreachable.0", "beta")},
	)
}
