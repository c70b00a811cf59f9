//go:build terraform

package provider

import (
	"errors"
	"fmt"
	"reflect"
	"regexp"
	"testing"

	"github.com/hashicorp/terraform-plugin-testing/helper/resource"
	"github.com/hashicorp/terraform-plugin-testing/knownvalue"
	"github.com/hashicorp/terraform-plugin-testing/plancheck"
	"github.com/hashicorp/terraform-plugin-testing/statecheck"
	"github.com/hashicorp/terraform-plugin-testing/terraform"
	"github.com/hashicorp/terraform-plugin-testing/tfjsonpath"

	"github.com/reflejo/terraform-provider-reflejo/agent/schedule"
	"github.com/reflejo/terraform-provider-reflejo/agent/vserver"
)

const serverA = "reflejo_virtual_server.a"

// server is the configuration of a server called a, with more attributes.
func server(more string) string {
	return `
resource "reflejo_virtual_server" "a" {
  name  = "a"
  image = "debian"
  ` + more + `
}
`
}

// imports are the steps that import what is there in every way and want an empty plan.
func imports(address, config string, ids ...string) []resource.TestStep {
	steps := []resource.TestStep{{
		ResourceName: address, Config: config, ImportState: true, ImportStateKind: resource.ImportBlockWithID,
		ImportStateIdFunc: func(s *terraform.State) (string, error) { return s.RootModule().Resources[address].Primary.ID, nil },
	}}
	for _, id := range ids {
		steps = append(steps, resource.TestStep{ResourceName: address, Config: config, ImportState: true, ImportStateKind: resource.ImportBlockWithID, ImportStateId: id})
	}
	return steps
}

func planned(action plancheck.ResourceActionType) resource.ConfigPlanChecks {
	return resource.ConfigPlanChecks{PreApply: []plancheck.PlanCheck{plancheck.ExpectResourceAction(serverA, action)}}
}

var emptyPlan = resource.ConfigPlanChecks{PreApply: []plancheck.PlanCheck{plancheck.ExpectEmptyPlan()}}

// where turns a look at the world into a check.
func where(what string, ok func() bool) resource.TestCheckFunc {
	return func(*terraform.State) error {
		if !ok() {
			return errors.New(what)
		}
		return nil
	}
}

func TestServerDefaults(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "alpha")
	config := server(`host = "alpha"`)
	steps := []resource.TestStep{
		{Config: config, ConfigStateChecks: []statecheck.StateCheck{
			statecheck.ExpectKnownValue(serverA, tfjsonpath.New("state"), knownvalue.StringExact("running")),
			statecheck.ExpectKnownValue(serverA, tfjsonpath.New("hostname"), knownvalue.StringExact("a")),
			statecheck.ExpectKnownValue(serverA, tfjsonpath.New("memory").AtMapKey("max"), knownvalue.StringExact("512MiB")),
			statecheck.ExpectKnownValue(serverA, tfjsonpath.New("disk").AtMapKey("size"), knownvalue.StringExact("10GiB")),
			statecheck.ExpectKnownValue(serverA, tfjsonpath.New("power"), knownvalue.Null()),
			statecheck.ExpectKnownValue(serverA, tfjsonpath.New("addresses").AtMapKey("eth0"), knownvalue.StringRegexp(regexp.MustCompile(`^10\.200\.0\.`))),
		}},
		{Config: config, PlanOnly: true},
	}
	w.run(append(steps, imports(serverA, config, "a", "alpha/a")...)...)
}

// everything sets every attribute but timeouts, which an import can't know.
const everything = `
resource "reflejo_network" "app" {
  name  = "app"
  hosts = ["alpha"]
  cidr  = "10.77.0.0/24"
}
resource "reflejo_virtual_server" "a" {
  name      = "a"
  host      = "alpha"
  image     = "debian"
  power     = "running"
  hostname  = "a.example"
  timezone  = "Europe/Madrid"
  processes = 500
  labels    = { team = "orders" }
  dns       = { servers = ["192.0.2.53"], search = ["example"] }
  cpu       = { cores = 1.5, weight = 200, pin = "2-3" }
  memory    = { max = "2048MiB", high = "1.5GiB", swap = "1024MiB" }
  disk      = { size = "20480MiB", read_bps = "100MiB", write_bps = "200MiB", read_iops = 500, write_iops = 600 }
  network = {
    eth0 = {
      network = "app"
      address = "10.77.0.30"
      ingress = "1000mbit"
      egress  = "100mbit"
      publish = { web = { host_port = 8080, port = 80 }, dns = { protocol = "udp", host_port = 53, port = 53 } }
      allow   = [{ from = "10.77.0.0/24", protocol = "tcp", ports = "5432" }, { protocol = "icmp" }]
    }
    eth1 = { allow = [] }
  }
  first_boot_wo         = "#!/bin/sh\ntouch /done"
  first_boot_wo_version = "1"
  deletion_protection   = true
  on_destroy            = { shutdown_timeout = "120s", keep_snapshots = false }
  snapshot_policy       = { schedule = "0 * * * *", on = ["stop", "start"], keep = { last = 3, hourly = 24, daily = 7, weekly = 4, monthly = 12 } }
  backup_policy         = { schedule = "30 2 * * *", target = "s3://backups/orders", keep = { daily = 14 }, incremental = true }
  migration             = { mode = "cold", max_downtime = "2000ms", bandwidth = "1000mbit", snapshots = true }
}
`

const otherwise = `
resource "reflejo_network" "app" {
  name  = "app"
  hosts = ["alpha"]
  cidr  = "10.77.0.0/24"
}
resource "reflejo_virtual_server" "a" {
  name      = "b"
  host      = "alpha"
  image     = "debian"
  power     = "suspended"
  hostname  = "b.example"
  timezone  = "UTC"
  processes = 600
  labels    = { team = "billing", tier = "2" }
  dns       = { search = ["example", "test"] }
  cpu       = { cores = 0.5, weight = 50 }
  memory    = { max = "1GiB" }
  disk      = { size = "30GiB", write_bps = "300MiB/s", write_iops = 700 }
  network = {
    eth0 = {
      network = reflejo_network.app.id
      ingress = "2gbit"
      publish = { web = { host_port = 8081, port = 80 } }
    }
  }
  first_boot_wo         = "#!/bin/sh\ntouch /done-again"
  first_boot_wo_version = "2"
  on_destroy            = { shutdown_timeout = "10s" }
  snapshot_policy       = { on = ["suspend"] }
  migration             = { max_downtime = "10s" }
  timeouts              = { update = "5m", delete = "1m" }
}
`

func TestServerEveryAttribute(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "alpha")
	steps := []resource.TestStep{{Config: everything, Check: where("the host does not have what was asked for", func() bool {
		s := w.hosts["alpha"].server("a").Spec
		return s.CPU == vserver.CPU{MilliCores: 1500, Weight: 200, Pin: "2-3"} &&
			s.Memory == vserver.Memory{Max: 2 << 30, High: 3 << 29, Swap: 1 << 30} &&
			s.Disk == vserver.Disk{Size: 20 << 30, ReadBPS: 100 << 20, WriteBPS: 200 << 20, ReadIOPS: 500, WriteIOPS: 600} &&
			s.Processes == 500 && s.Hostname == "a.example" && s.Timezone == "Europe/Madrid" && s.DeletionProtection &&
			s.Network["eth0"].Address == "10.77.0.30" && len(s.Network["eth0"].Publish) == 2 && s.Network["eth0"].Publish["web"].Protocol == "tcp" &&
			s.Network["eth1"].Filtered && len(s.Network["eth1"].Allow) == 0 && s.ShutdownTimeout.Minutes() == 2 && s.FirstBoot.Version == "1" && !s.KeepSnapshots &&
			reflect.DeepEqual(s.SnapshotPolicy, vserver.SnapshotPolicy{Schedule: "0 * * * *", On: []string{"start", "stop"}, Keep: schedule.Keep{Last: 3, Hourly: 24, Daily: 7, Weekly: 4, Monthly: 12}}) &&
			s.BackupPolicy == vserver.BackupPolicy{Schedule: "30 2 * * *", Target: "s3://backups/orders", Keep: schedule.Keep{Daily: 14}, Incremental: true} &&
			s.Migration == vserver.Migration{Mode: "cold", MaxDowntime: 2e9, Bandwidth: 1e9, Snapshots: true}
	})}}
	steps = append(steps, imports(serverA, everything, "a")...)
	steps = append(steps,
		resource.TestStep{Config: otherwise, ConfigPlanChecks: planned(plancheck.ResourceActionUpdate), Check: where("the host was not changed", func() bool {
			v := w.hosts["alpha"].server("b")
			s := v.Spec
			return s.CPU == vserver.CPU{MilliCores: 500, Weight: 50} && s.Memory == vserver.Memory{Max: 1 << 30} &&
				s.Disk == vserver.Disk{Size: 30 << 30, WriteBPS: 300 << 20, WriteIOPS: 700} && v.State == vserver.StateSuspended &&
				len(s.Network) == 1 && !s.Network["eth0"].Filtered && s.Network["eth0"].Address == "" && s.FirstBoot.Version == "2" && !s.DeletionProtection &&
				s.KeepSnapshots && reflect.DeepEqual(s.SnapshotPolicy, vserver.SnapshotPolicy{On: []string{"suspend"}}) && s.BackupPolicy == vserver.BackupPolicy{} &&
				s.Migration == vserver.Migration{Mode: "warm", MaxDowntime: 10e9}
		})},
		resource.TestStep{Config: otherwise, PlanOnly: true},
	)
	w.run(steps...)
}

func TestServerAmountsWrittenOtherwise(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "alpha")
	w.run(
		resource.TestStep{Config: server(`
			memory = { max = "2GiB" }
			disk = { size = "10GiB", write_bps = "1MiB" }
			network = { eth0 = { egress = "1gbit" } }
			on_destroy = { shutdown_timeout = "60s" }`)},
		resource.TestStep{ConfigPlanChecks: emptyPlan, Config: server(`
			memory = { max = "2048MiB", swap = "0B" }
			disk = { size = "10240MiB", write_bps = "1024KiB/s" }
			network = { eth0 = { egress = "1000mbit" } }
			on_destroy = { shutdown_timeout = "1m" }`)},
	)
}

func TestServerDeletedOutside(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "alpha")
	config := server("")
	w.run(
		resource.TestStep{Config: config},
		resource.TestStep{PreConfig: func() { w.hosts["alpha"].remove("a") }, Config: config, ConfigPlanChecks: planned(plancheck.ResourceActionCreate)},
	)
}

func TestServerDrift(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "alpha")
	stop := func() {
		h := w.hosts["alpha"]
		v, err := h.servers.SetPower(t.Context(), "a", vserver.ActionStop, 0)
		must(t, err)
		h.await(v.Spec.ID, func(v vserver.View) bool { return v.State == vserver.StateStopped && v.Operation.Settled() })
	}
	weaken := func() {
		s := w.hosts["alpha"].server("a").Spec
		s.CPU.Weight = 7
		_, err := w.hosts["alpha"].servers.Update(t.Context(), s)
		must(t, err)
	}
	w.run(
		resource.TestStep{Config: server(`power = "running"`)},
		resource.TestStep{PreConfig: stop, Config: server(`power = "running"`), ConfigPlanChecks: planned(plancheck.ResourceActionUpdate),
			Check: resource.TestCheckResourceAttr(serverA, "state", "running")},
		resource.TestStep{PreConfig: weaken, Config: server(`power = "running"`), ConfigPlanChecks: planned(plancheck.ResourceActionUpdate),
			Check: where("the weight was not put right", func() bool { return w.hosts["alpha"].server("a").Spec.CPU.Weight == 100 })},
		resource.TestStep{Config: server("")},
		resource.TestStep{PreConfig: stop, Config: server(""), ConfigPlanChecks: emptyPlan},
		resource.TestStep{Config: server(`power = "suspended"`), Check: resource.TestCheckResourceAttr(serverA, "state", "suspended")},
		resource.TestStep{Config: server(`power = "stopped"`), Check: resource.TestCheckResourceAttr(serverA, "state", "stopped")},
	)
}

func TestServersSpread(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "alpha", "beta", "gamma")
	config := `
resource "reflejo_virtual_server" "a" {
  count = 32
  name  = "a${count.index}"
  image = "debian"
}
`
	w.run(
		resource.TestStep{Config: config, Check: where("servers were not spread", func() bool {
			for _, h := range w.hosts {
				if n := len(h.servers.List()); n < 10 || n > 11 {
					t.Logf("%s has %d", h.name, n)
					return false
				}
			}
			return true
		})},
		resource.TestStep{Config: config, PlanOnly: true},
	)
}

func TestServerPlacedWhereItCanBe(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "alpha", "beta")
	network := `
resource "reflejo_network" "app" {
  name  = "app"
  hosts = ["beta"]
  cidr  = "10.77.0.0/24"
}
`
	w.run(
		resource.TestStep{Config: network + server(`network = { eth0 = { network = reflejo_network.app.id } }`), Check: resource.TestCheckResourceAttr(serverA, "host", "beta")},
		resource.TestStep{Config: network + server(`network = { eth0 = { network = reflejo_network.app.id } }
			host = "beta"`), ConfigPlanChecks: emptyPlan},
		resource.TestStep{Config: network + server(`network = { eth0 = { network = reflejo_network.app.id } }`) + `
resource "reflejo_virtual_server" "b" {
  name  = "b"
  image = "none"
}`, ExpectError: regexp.MustCompile(`(?si)no\s+host\s+can\s+take\s+it.*alpha:\s+it\s+has\s+no\s+image.*beta:\s+it\s+has\s+no\s+image`)},
	)
}

func TestServerWhatCanNotChange(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "alpha", "beta")
	w.hosts["alpha"].images.add("other", "oci://registry.example/other:1")
	must(t, w.hosts["alpha"].kernel.Pool.Bases().Build(t.Context(), digest("oci://registry.example/other:1"), 1<<30, func(string) error { return nil }))
	before := server(`host = "alpha"`)
	id := ""
	w.run(
		resource.TestStep{Config: before, Check: func(s *terraform.State) error {
			id = s.RootModule().Resources[serverA].Primary.ID
			return nil
		}},
		resource.TestStep{Config: server(`disk = { size = "9GiB" }`), ExpectError: regexp.MustCompile(`(?si)A\s+disk\s+can't\s+shrink.*10GiB.*9GiB`)},
		resource.TestStep{Config: regexp.MustCompile(`"debian"`).ReplaceAllString(before, `"other"`), ConfigPlanChecks: emptyPlan},
		resource.TestStep{Config: regexp.MustCompile(`"debian"`).ReplaceAllString(before, `"`+digest("oci://registry.example/debian:12")+`"`), ConfigPlanChecks: emptyPlan},
		resource.TestStep{Config: regexp.MustCompile(`"debian"`).ReplaceAllString(server(`replace_on_image_change = true`), `"other"`),
			ConfigPlanChecks: planned(plancheck.ResourceActionDestroyBeforeCreate),
			Check: where("the server was not replaced", func() bool {
				v := w.hosts[onlyHost(w, "a")].server("a")
				return v.Spec.ID != id
			})},
	)
}

// onlyHost is the host that has a server of the name.
func onlyHost(w *world, name string) string {
	for _, h := range w.hosts {
		if _, err := h.servers.Get(name); err == nil {
			return h.name
		}
	}
	return ""
}

func TestServerMemoryBelowUse(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "alpha")
	h := w.hosts["alpha"]
	before := server(`memory = { max = "1GiB" }`)
	w.run(
		resource.TestStep{Config: before},
		resource.TestStep{PreConfig: func() { h.kernel.Limits.Run(h.server("a").Spec.ID, 1, 900<<20) },
			Config: server(`memory = { max = "512MiB" }`), ExpectError: regexp.MustCompile(`(?si)Server\s+a\s+could\s+not\s+be\s+changed.*memory`)},
		resource.TestStep{Config: before, ConfigPlanChecks: emptyPlan},
	)
}

func TestServerProtection(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "alpha")
	protected := server(`deletion_protection = true`)
	w.run(
		resource.TestStep{Config: protected},
		resource.TestStep{Config: protected, Destroy: true, ExpectError: regexp.MustCompile(`deletion_protection of server a is true`)},
		resource.TestStep{Config: "# gone", ExpectError: regexp.MustCompile(`Nothing was touched`)},
		resource.TestStep{Config: server("")},
	)
}

func TestServerCreateFails(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "alpha")
	k := w.hosts["alpha"].kernel
	k.Fail(vserver.StepRunCreate, errors.New("the runtime is out of order"))
	w.run(
		resource.TestStep{Config: server(""), ExpectError: regexp.MustCompile(`(?si)Server\s+a\s+could\s+not\s+be\s+created.*out\s+of\s+order`)},
		resource.TestStep{
			PreConfig: func() {
				if n := len(w.hosts["alpha"].servers.List()); n != 0 {
					t.Errorf("%d servers are left", n)
				}
				k.Fail(vserver.StepRunCreate, nil)
			},
			Config: server(""), ConfigPlanChecks: planned(plancheck.ResourceActionCreate),
		},
	)
}

func TestServerCreateTakesLong(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "alpha")
	release := w.hosts["alpha"].kernel.Hold(vserver.StepRunCreate)
	config := server(`timeouts = { create = "1s" }`)
	w.run(
		resource.TestStep{Config: config, Check: resource.TestCheckResourceAttr(serverA, "state", "creating")},
		resource.TestStep{
			PreConfig: func() {
				id := w.hosts["alpha"].server("a").Spec.ID
				release()
				w.hosts["alpha"].await(id, func(v vserver.View) bool { return v.State == vserver.StateRunning && v.Operation.Settled() })
			},
			RefreshState: true, Check: resource.TestCheckResourceAttr(serverA, "state", "running"),
		},
		resource.TestStep{Config: config, ConfigPlanChecks: emptyPlan},
	)
}

func TestServerHostDown(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "alpha", "beta")
	config := server(`host = "alpha"`)
	forget := `
provider "reflejo" {
  forget_unreachable = true
}
`
	h := w.hosts["alpha"]
	w.run(
		resource.TestStep{Config: config},
		resource.TestStep{PreConfig: h.stop, Config: config, ConfigPlanChecks: emptyPlan},
		resource.TestStep{Config: server("host = \"alpha\"\nprocesses = 99"), ExpectError: regexp.MustCompile(`(?si)could\s+not\s+be\s+changed.*does\s+not\s+answer`)},
		resource.TestStep{Config: regexp.MustCompile(`"debian"`).ReplaceAllString(server("host = \"alpha\"\nreplace_on_image_change = true"), `"other"`), ExpectError: regexp.MustCompile(`(?si)can't\s+be\s+compared\s+now`)},
		resource.TestStep{Config: config, Destroy: true, ExpectError: regexp.MustCompile(`(?si)could\s+not\s+be\s+destroyed.*does\s+not\s+answer`)},
		resource.TestStep{Config: config + `
resource "reflejo_virtual_server" "b" {
  name  = "b"
  image = "debian"
}`, Check: resource.TestCheckResourceAttr("reflejo_virtual_server.b", "host", "beta")},
		resource.TestStep{PreConfig: h.start, Config: config, ConfigPlanChecks: resource.ConfigPlanChecks{PreApply: []plancheck.PlanCheck{
			plancheck.ExpectResourceAction(serverA, plancheck.ResourceActionNoop),
		}}},
		resource.TestStep{PreConfig: h.stop, Config: forget + config, Destroy: true},
	)
}

func TestServersPublishTheSamePort(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "alpha")
	config := ""
	for _, name := range []string{"a", "b"} {
		config += fmt.Sprintf(`
resource "reflejo_virtual_server" %q {
  name    = %q
  host    = "alpha"
  image   = "debian"
  network = { eth0 = { publish = { web = { host_port = 8080, port = 80 } } } }
}
`, name, name)
	}
	w.run(resource.TestStep{Config: config, ExpectError: regexp.MustCompile(`(?si)Host\s+port\s+published\s+twice.*tcp/8080`)})
}

func TestServerAskedTooMuch(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "alpha")
	w.run(
		resource.TestStep{Config: server(`host = "alpha"
			memory = { max = "65GiB" }`), ExpectError: regexp.MustCompile(`(?si)memory.max.*asked\s+for\s+65GiB.*64GiB`)},
		resource.TestStep{Config: server(`host = "nowhere"`), ExpectError: regexp.MustCompile(`(?si)host\s+"nowhere"\s+is\s+not\s+in\s+the\s+provider`)},
		resource.TestStep{Config: server(`memory = { max = "65GiB" }`), ExpectError: regexp.MustCompile(`(?si)alpha:\s+memory:\s+asked\s+for\s+65GiB,\s+64GiB\s+free`)},
	)
}
