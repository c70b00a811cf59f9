//go:build terraform

package provider

import (
	"context"
	"errors"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/hashicorp/terraform-plugin-testing/helper/resource"
	"github.com/hashicorp/terraform-plugin-testing/knownvalue"
	"github.com/hashicorp/terraform-plugin-testing/plancheck"
	"github.com/hashicorp/terraform-plugin-testing/statecheck"
	"github.com/hashicorp/terraform-plugin-testing/terraform"
	"github.com/hashicorp/terraform-plugin-testing/tfjsonpath"

	"github.com/reflejo/terraform-provider-reflejo/agent/backup"
	"github.com/reflejo/terraform-provider-reflejo/agent/migrate"
	"github.com/reflejo/terraform-provider-reflejo/agent/snapshot"
	"github.com/reflejo/terraform-provider-reflejo/agent/vserver"
)

// spanning is a network on two hosts and a server on it.
func spanning(more string) string {
	return `
resource "reflejo_network" "app" {
  name  = "app"
  hosts = ["alpha", "beta"]
  cidr  = "10.77.0.0/24"
}
` + server("network = { eth0 = { network = reflejo_network.app.id } }\n"+more)
}

// only checks that exactly one host has server a, and that it runs there.
func (w *world) only(host string) resource.TestCheckFunc {
	return where("server a does not run on "+host+" alone", func() bool {
		for _, h := range w.hosts {
			v, err := h.servers.Get("a")
			if (err == nil) != (h.name == host) || (err == nil && v.State != vserver.StateRunning) {
				return false
			}
		}
		return true
	})
}

// moveOutside moves server a behind Terraform's back.
func (w *world) moveOutside(from, to string) {
	w.t.Helper()
	v := w.hosts[from].server("a")
	ticket, err := mover{w.hosts[to]}.Prepare(w.t.Context(), migrate.Offer{Server: v, Source: from})
	must(w.t, err)
	_, err = mover{w.hosts[from]}.Start(w.t.Context(), migrate.Move{Server: v.Spec.ID, Target: to, Ticket: ticket.Secret})
	must(w.t, err)
	w.hosts[from].await(v.Spec.ID, func(v vserver.View) bool { return v.Gone })
	w.hosts[to].await(v.Spec.ID, func(v vserver.View) bool { return v.State == vserver.StateRunning && v.Operation.Settled() })
}

func TestServerMove(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "alpha", "beta")
	id, address := statecheck.CompareValue(sameAs{}), statecheck.CompareValue(sameAs{})
	same := func() []statecheck.StateCheck {
		return []statecheck.StateCheck{id.AddStateValue(serverA, tfjsonpath.New("id")), address.AddStateValue(serverA, tfjsonpath.New("addresses").AtMapKey("eth0"))}
	}
	w.run(
		resource.TestStep{Config: spanning(`host = "alpha"`), Check: w.only("alpha"), ConfigStateChecks: same()},
		resource.TestStep{Config: spanning(`host = "beta"`), ConfigPlanChecks: planned(plancheck.ResourceActionUpdate), Check: w.only("beta"), ConfigStateChecks: same()},
		resource.TestStep{Config: spanning(`host = "beta"`), ConfigPlanChecks: emptyPlan},
		// Left out, it stays wherever it is.
		resource.TestStep{Config: spanning(""), ConfigPlanChecks: emptyPlan, Check: w.only("beta")},
		// With other changes in the same apply: there first, then what is left.
		resource.TestStep{Config: spanning("host = \"alpha\"\nprocesses = 99\nmemory = { max = \"1GiB\" }"), ConfigPlanChecks: planned(plancheck.ResourceActionUpdate),
			Check: resource.ComposeTestCheckFunc(w.only("alpha"), where("it was moved and not changed", func() bool {
				s := w.hosts["alpha"].server("a").Spec
				return s.Processes == 99 && s.Memory.Max == 1<<30
			})), ConfigStateChecks: same()},
		resource.TestStep{Config: spanning("host = \"alpha\"\nprocesses = 99\nmemory = { max = \"1GiB\" }"), ConfigPlanChecks: emptyPlan},
	)
}

// sameAs compares values of several steps.
type sameAs struct{}

func (sameAs) CompareValues(values ...any) error {
	for _, v := range values {
		if v != values[0] {
			return errors.New("the value has changed")
		}
	}
	return nil
}

// On a host's own network the address can't come along; the plan leaves it open.
func TestServerMoveToAnotherDefaultNetwork(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "alpha", "beta")
	w.run(
		resource.TestStep{Config: server(`host = "alpha"`)},
		resource.TestStep{Config: server(`host = "beta"`), Check: w.only("beta"), ConfigPlanChecks: resource.ConfigPlanChecks{PreApply: []plancheck.PlanCheck{
			plancheck.ExpectResourceAction(serverA, plancheck.ResourceActionUpdate), plancheck.ExpectUnknownValue(serverA, tfjsonpath.New("addresses")),
		}}},
		resource.TestStep{Config: server(`host = "beta"`), ConfigPlanChecks: emptyPlan},
	)
}

func TestServerMoveRefused(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "alpha", "beta")
	onAlpha := `
resource "reflejo_network" "app" {
  name  = "app"
  hosts = ["alpha"]
  cidr  = "10.77.0.0/24"
}
` + server(`network = { eth0 = { network = reflejo_network.app.id } }
	host = "HOST"`)
	at := func(config, host string) string { return strings.ReplaceAll(config, "HOST", host) }
	suspended := onAlpha[:strings.Index(onAlpha, "resource \"reflejo_virtual")] + server("host = \"HOST\"\npower = \"suspended\"")
	w.run(
		resource.TestStep{Config: at(onAlpha, "alpha")},
		resource.TestStep{Config: at(onAlpha, "delta"), ExpectError: regexp.MustCompile(`(?si)Unknown\s+host.*"delta"\s+is\s+not\s+in\s+the\s+provider`)},
		resource.TestStep{Config: at(onAlpha, "beta"), ExpectError: regexp.MustCompile(`(?si)could\s+not\s+be\s+changed.*host\s+beta.*stays\s+where\s+it\s+is`)},
		resource.TestStep{Config: at(onAlpha, "alpha"), ConfigPlanChecks: emptyPlan, Check: w.only("alpha")},
		resource.TestStep{Config: at(suspended, "alpha")},
		resource.TestStep{Config: at(suspended, "beta"), ExpectError: regexp.MustCompile(`(?si)A\s+suspended\s+server\s+can't\s+be\s+moved.*nothing\s+was\s+touched`)},
		resource.TestStep{Config: server("host = \"beta\"\nmemory = { max = \"65GiB\" }"), ExpectError: regexp.MustCompile(`(?si)can't\s+hold\s+the\s+server|suspended`)},
	)
}

func TestServerMoveFails(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "alpha", "beta")
	w.run(
		resource.TestStep{Config: spanning(`host = "alpha"`)},
		resource.TestStep{PreConfig: func() { w.hosts["beta"].failMoves(errors.New("the link is cut")) },
			Config: spanning(`host = "beta"`), ExpectError: regexp.MustCompile(`(?si)could\s+not\s+be\s+changed.*the\s+link\s+is\s+cut`)},
		resource.TestStep{Config: spanning(`host = "alpha"`), ConfigPlanChecks: emptyPlan, Check: w.only("alpha")},
		resource.TestStep{PreConfig: func() { w.hosts["beta"].failMoves(nil) }, Config: spanning(`host = "beta"`), Check: w.only("beta")},
	)
}

// An apply that ends before the move does: the next one finds it under way, or over.
func TestServerMoveInterrupted(t *testing.T) {
	t.Parallel()
	for name, over := range map[string]bool{"under way": false, "over": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, "alpha", "beta")
			var release func()
			w.run(
				resource.TestStep{Config: spanning(`host = "alpha"`)},
				resource.TestStep{PreConfig: func() { release = w.hosts["alpha"].holdMoves() },
					Config: spanning("host = \"beta\"\ntimeouts = { update = \"2s\" }"), ExpectError: regexp.MustCompile(`(?si)could\s+not\s+be\s+changed\s+in\s+time.*migrate\s+at\s+step.*apply\s+again`)},
				resource.TestStep{PreConfig: func() {
					id := w.hosts["alpha"].server("a").Spec.ID
					if !over {
						time.AfterFunc(3*time.Second, release)
						return
					}
					release()
					w.hosts["alpha"].await(id, func(v vserver.View) bool { return v.Gone })
				}, Config: spanning(`host = "beta"`), Check: w.only("beta")},
				resource.TestStep{Config: spanning(`host = "beta"`), ConfigPlanChecks: emptyPlan},
			)
		})
	}
}

// A server that was moved outside Terraform is found, and moved back in place if its host is configured.
func TestServerMovedOutside(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "alpha", "beta")
	w.run(
		resource.TestStep{Config: spanning(`host = "alpha"`)},
		resource.TestStep{PreConfig: func() { w.moveOutside("alpha", "beta") }, RefreshState: true, ExpectNonEmptyPlan: true,
			Check: resource.TestCheckResourceAttr(serverA, "host", "beta")},
		resource.TestStep{Config: spanning(`host = "alpha"`), ConfigPlanChecks: planned(plancheck.ResourceActionUpdate), Check: w.only("alpha")},
		resource.TestStep{Config: spanning("")},
		resource.TestStep{PreConfig: func() { w.moveOutside("alpha", "beta") }, Config: spanning(""), ConfigPlanChecks: emptyPlan,
			Check: resource.ComposeTestCheckFunc(w.only("beta"), resource.TestCheckResourceAttr(serverA, "host", "beta"))},
	)
}

func TestServerMovesWithItsSnapshots(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "alpha", "beta")
	id := uuid.NewString()
	take := func() {
		_, err := w.hosts["alpha"].copies.Create(t.Context(), snapshot.Request{ID: id, Server: "a", Name: "before"})
		must(t, err)
	}
	kept := `
data "reflejo_snapshot" "before" {
  name       = "before"
  depends_on = [reflejo_virtual_server.a]
}
`
	w.run(
		resource.TestStep{Config: spanning(`host = "alpha"`)},
		resource.TestStep{PreConfig: take, Config: spanning("host = \"beta\"\nrestore_from = \"" + id + "\""), ExpectError: regexp.MustCompile(`(?si)The\s+snapshot\s+stays\s+behind.*migration.snapshots\s+=\s+true`)},
		resource.TestStep{Config: kept + spanning("host = \"beta\"\nmigration = { snapshots = true }"),
			Check: resource.ComposeTestCheckFunc(w.only("beta"), resource.TestCheckResourceAttr("data.reflejo_snapshot.before", "host", "beta"))},
	)
}

const policy = `backup_policy = { schedule = "30 2 * * *", target = "s3://backups" }`

// backUp makes a backup of server a.
func (h *testHost) backUp(target string) (id string) {
	h.world.t.Helper()
	s, err := h.copies.Create(h.world.t.Context(), snapshot.Request{ID: uuid.NewString(), Server: "a"})
	must(h.world.t, err)
	id = uuid.NewString()
	_, err = h.copies.Backups().Create(h.world.t.Context(), backup.Request{ID: id, Snapshot: s.ID, Target: target})
	must(h.world.t, err)
	return id
}

func TestServerRecovered(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "alpha", "beta", "gamma")
	alpha := w.hosts["alpha"]
	lost := "provider \"reflejo\" {\n  lost_hosts = [\"alpha\"]\n}\n"
	id := statecheck.CompareValue(sameAs{})
	same := func() []statecheck.StateCheck {
		return []statecheck.StateCheck{id.AddStateValue(serverA, tfjsonpath.New("id"))}
	}
	w.run(
		resource.TestStep{Config: server("host = \"alpha\"\n" + policy), ConfigStateChecks: same()},
		resource.TestStep{PreConfig: func() { alpha.backUp("s3://backups"); alpha.stop() },
			Config: server("host = \"beta\"\n" + policy), ExpectError: regexp.MustCompile(`(?si)can't\s+be\s+moved\s+now.*If\s+alpha\s+comes\s+back.*lost_hosts\s+=\s+\["alpha"\]`)},
		resource.TestStep{Config: lost + server("host = \"alpha\"\n"+policy), ConfigPlanChecks: emptyPlan},
		resource.TestStep{Config: lost + server("host = \"alpha\"\nprocesses = 99\n"+policy), ExpectError: regexp.MustCompile(`(?si)could\s+not\s+be\s+changed.*alpha\s+is\s+gone\s+for\s+good`)},
		resource.TestStep{Config: lost + server("host = \"beta\""), ExpectError: regexp.MustCompile(`(?si)Nothing\s+to\s+recover\s+the\s+server\s+from.*backup_policy`)},
		resource.TestStep{Config: lost + server("host = \"beta\"\n"+strings.Replace(policy, "s3://backups", "s3://elsewhere", 1)), ExpectError: regexp.MustCompile(`(?si)No\s+backup\s+to\s+recover\s+the\s+server\s+from.*nothing\s+was\s+touched`)},
		resource.TestStep{Config: lost + server("host = \"beta\"\nprocesses = 99\n"+policy), ConfigPlanChecks: planned(plancheck.ResourceActionUpdate), ConfigStateChecks: same(),
			Check: where("it does not run on beta", func() bool {
				v, err := w.hosts["beta"].servers.Get("a")
				return err == nil && v.State == vserver.StateRunning && v.Spec.Processes == 99
			})},
		resource.TestStep{Config: lost + server("host = \"beta\"\nprocesses = 99\n"+policy), ConfigPlanChecks: emptyPlan},
		// The old host is back with its copy: it is not looked at, and the plan stays empty.
		resource.TestStep{PreConfig: alpha.start, Config: lost + server("host = \"beta\"\nprocesses = 99\n"+policy), ConfigPlanChecks: emptyPlan},
	)
}

// A server that was being handed over to a host that is lost is taken back where it is.
func TestServerTakenBack(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "alpha", "beta")
	alpha := w.hosts["alpha"]
	lost := "provider \"reflejo\" {\n  lost_hosts = [\"beta\"]\n}\n"
	w.run(
		resource.TestStep{Config: server(`host = "alpha"`)},
		resource.TestStep{PreConfig: func() {
			w.hosts["beta"].stop()
			must(t, alpha.servers.Hold(t.Context(), "a", "migrate", func(ctx context.Context, h *vserver.Held) error {
				return errors.Join(h.Down(ctx), h.Leave("beta"))
			}))
		}, Config: lost + server("host = \"alpha\"\nprocesses = 99"), ConfigPlanChecks: planned(plancheck.ResourceActionUpdate),
			Check: where("it does not run on alpha", func() bool {
				v, err := alpha.servers.Get("a")
				return err == nil && v.State == vserver.StateRunning && v.Spec.Processes == 99 && v.Leaving == ""
			})},
		resource.TestStep{Config: lost + server("host = \"alpha\"\nprocesses = 99"), ConfigPlanChecks: emptyPlan},
	)
}

// Without a host in the configuration, the one with most room that can read the backups is chosen.
func TestServerRecoveredSomewhere(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "alpha", "beta", "gamma")
	lost := ""
	w.run(
		resource.TestStep{Config: server(policy), Check: func(s *terraform.State) error {
			lost = s.RootModule().Resources[serverA].Primary.Attributes["host"]
			return nil
		}},
		resource.TestStep{PreConfig: func() { w.hosts[lost].backUp("s3://backups"); w.hosts[lost].stop(); w.lost = lost },
			Config: server(policy), ConfigPlanChecks: resource.ConfigPlanChecks{PreApply: []plancheck.PlanCheck{
				plancheck.ExpectResourceAction(serverA, plancheck.ResourceActionUpdate), plancheck.ExpectUnknownValue(serverA, tfjsonpath.New("host")),
			}},
			Check: func(s *terraform.State) error {
				if host := s.RootModule().Resources[serverA].Primary.Attributes["host"]; host == lost || host == "" {
					return errors.New("it is on host " + host)
				}
				return nil
			}},
		resource.TestStep{Config: server(policy), ConfigPlanChecks: emptyPlan},
	)
}

// What was on a lost host can be given up.
func TestServerOfLostHostForgotten(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "alpha", "beta")
	w.run(
		resource.TestStep{Config: server(`host = "alpha"`)},
		resource.TestStep{PreConfig: func() { w.hosts["alpha"].stop(); w.lost = "alpha" }, Config: server(`host = "alpha"`), Destroy: true},
	)
}

func TestServerRestoreAndClone(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "alpha", "beta")
	h := w.hosts["alpha"]
	id, other := uuid.NewString(), uuid.NewString()
	clone := func(more string) string {
		return "\nresource \"reflejo_virtual_server\" \"c\" {\n  name = \"c\"\n  clone_of = \"" + id + "\"\n" + more + "\n}\n"
	}
	restored := server("host = \"alpha\"\nrestore_from = \"" + id + "\"")
	steps := []resource.TestStep{
		{Config: server("host = \"alpha\"\nrestore_from = \"" + id + "\""), ExpectError: regexp.MustCompile(`(?si)A\s+new\s+server\s+has\s+nothing\s+to\s+restore.*clone_of`)},
		{Config: server(`host = "alpha"`)},
		{PreConfig: func() {
			_, err := h.copies.Create(t.Context(), snapshot.Request{ID: id, Server: "a"})
			must(t, err)
			h.put("b")
			_, err = h.copies.Create(t.Context(), snapshot.Request{ID: other, Server: "b"})
			must(t, err)
		}, Config: server("host = \"alpha\"\nrestore_from = \"" + other + "\""), ExpectError: regexp.MustCompile(`(?si)A\s+snapshot\s+of\s+another\s+server`)},
		{Config: server("host = \"alpha\"\nrestore_from = \"" + uuid.NewString() + "\""), ExpectError: regexp.MustCompile(`(?si)No\s+such\s+snapshot`)},
		{Config: restored, ConfigPlanChecks: planned(plancheck.ResourceActionUpdate), Check: where("no safety snapshot", func() bool {
			for _, s := range h.copies.List(t.Context(), h.server("a").Spec.ID) {
				if s.Origin == snapshot.OriginSafety {
					return h.server("a").State == vserver.StateRunning
				}
			}
			return false
		})},
		{Config: restored, ConfigPlanChecks: emptyPlan},
	}
	steps = append(steps, imports(serverA, restored, "alpha/a")...)
	steps = append(steps,
		resource.TestStep{Config: restored + clone(`host = "beta"`), ExpectError: regexp.MustCompile(`(?si)No\s+such\s+snapshot.*A\s+clone\s+is\s+made\s+on\s+the\s+host`)},
		resource.TestStep{Config: restored + clone(`disk = { size = "5GiB" }`), ExpectError: regexp.MustCompile(`(?si)disk.size.*has\s+10GiB.*5GiB`)},
		resource.TestStep{Config: restored + clone(""), ConfigStateChecks: []statecheck.StateCheck{
			statecheck.ExpectKnownValue("reflejo_virtual_server.c", tfjsonpath.New("host"), knownvalue.StringExact("alpha")),
			statecheck.ExpectKnownValue("reflejo_virtual_server.c", tfjsonpath.New("image"), knownvalue.StringExact(digest("oci://registry.example/debian:12"))),
		}},
		resource.TestStep{Config: restored + clone(""), ConfigPlanChecks: emptyPlan},
		resource.TestStep{Config: strings.Replace(restored+clone(""), "clone_of = \""+id, "clone_of = \""+other, 1), ConfigPlanChecks: emptyPlan},
		resource.TestStep{Config: restored + strings.Replace(clone(""), "clone_of = \""+id+"\"", "image = \"debian\"", 1), ConfigPlanChecks: emptyPlan},
		resource.TestStep{Config: strings.Replace(restored, "restore_from", "clone_of", 1), ExpectError: regexp.MustCompile(`(?si)The\s+server\s+has\s+its\s+disk\s+already`)},
	)
	steps = append(steps, imports("reflejo_virtual_server.c", restored+clone(""), "c")...)
	w.run(steps...)
}

// holdMoves makes moves from a host wait, before the server has left it, until released.
func (h *testHost) holdMoves() (release func()) {
	m := h.world.moves
	m.mu.Lock()
	defer m.mu.Unlock()
	ch := make(chan struct{})
	m.hold[h.name] = ch
	return sync.OnceFunc(func() {
		m.mu.Lock()
		delete(m.hold, h.name)
		m.mu.Unlock()
		close(ch)
	})
}

// failMoves makes moves to a host fail on the way; nil ends that.
func (h *testHost) failMoves(err error) {
	m := h.world.moves
	m.mu.Lock()
	defer m.mu.Unlock()
	m.fail[h.name] = err
}
