//go:build terraform

package provider

import (
	"errors"
	"regexp"
	"testing"

	"github.com/hashicorp/terraform-plugin-testing/helper/resource"
	"github.com/hashicorp/terraform-plugin-testing/plancheck"

	"github.com/reflejo/terraform-provider-reflejo/agent/network"
)

const networkA = "reflejo_network.a"

func networkConfig(hosts, more string) string {
	return `
resource "reflejo_network" "a" {
  name  = "a"
  hosts = [` + hosts + `]
  ` + more + `
}
`
}

const cidrA = `cidr = "10.77.0.0/24"`

// definition is a host's definition of network a.
func (h *testHost) definition(name string) network.View {
	h.world.t.Helper()
	v, err := h.nets.Get(name)
	must(h.world.t, err)
	return v
}

// members are the hosts of a definition by slot.
func placesOf(v network.View) map[string]int {
	places := map[string]int{}
	for _, m := range v.Members {
		places[m.Host] = m.Slot
	}
	return places
}

func same(a, b map[string]int) bool {
	if len(a) != len(b) {
		return false
	}
	for k, v := range a {
		if w, ok := b[k]; !ok || v != w {
			return false
		}
	}
	return true
}

func TestNetworkLife(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "alpha", "beta", "gamma")
	two := networkConfig(`"beta", "gamma"`, cidrA)
	three := networkConfig(`"alpha", "beta", "gamma"`, cidrA)
	has := func(places map[string]int) resource.TestCheckFunc {
		return where("the hosts do not agree on their places", func() bool {
			for _, h := range w.hosts {
				v, err := h.nets.Get("a")
				if _, wanted := places[h.name]; !wanted {
					if err == nil {
						return false
					}
					continue
				}
				if err != nil || !same(placesOf(v), places) {
					t.Logf("%s: %v %v", h.name, placesOf(v), err)
					return false
				}
			}
			return true
		})
	}
	steps := []resource.TestStep{{Config: two, Check: has(map[string]int{"beta": 0, "gamma": 1})}}
	steps = append(steps, imports(networkA, two, "a", "beta/a")...)
	steps = append(steps,
		resource.TestStep{Config: three, Check: has(map[string]int{"beta": 0, "gamma": 1, "alpha": 2}),
			ConfigPlanChecks: resource.ConfigPlanChecks{PreApply: []plancheck.PlanCheck{plancheck.ExpectResourceAction(networkA, plancheck.ResourceActionUpdate)}}},
		resource.TestStep{Config: networkConfig(`"alpha", "gamma"`, cidrA), Check: has(map[string]int{"gamma": 1, "alpha": 2})},
		resource.TestStep{Config: networkConfig(`"alpha", "gamma"`, `cidr = "10.78.0.0/24"
			nat = false`), Check: where("the definition did not change", func() bool {
			v := w.hosts["alpha"].definition("a")
			return v.CIDR.String() == "10.78.0.0/24" && !v.NAT
		})},
	)
	w.run(steps...)
}

func TestNetworkRenamed(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "alpha")
	w.run(
		resource.TestStep{Config: networkConfig(`"alpha"`, cidrA)},
		resource.TestStep{Config: regexp.MustCompile(`= "a"`).ReplaceAllString(networkConfig(`"alpha"`, cidrA), `= "b"`),
			ConfigPlanChecks: resource.ConfigPlanChecks{PreApply: []plancheck.PlanCheck{plancheck.ExpectResourceAction(networkA, plancheck.ResourceActionUpdate)}},
			Check:            where("it was not renamed", func() bool { return w.hosts["alpha"].definition("b").Name == "b" })},
	)
}

func TestNetworkDeletedOutside(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "alpha", "beta")
	config := networkConfig(`"alpha", "beta"`, cidrA)
	gone := func(names ...string) func() {
		return func() {
			for _, name := range names {
				must(t, w.hosts[name].nets.Delete(t.Context(), "a"))
			}
		}
	}
	w.run(
		resource.TestStep{Config: config},
		resource.TestStep{PreConfig: gone("beta"), Config: config,
			ConfigPlanChecks: resource.ConfigPlanChecks{PreApply: []plancheck.PlanCheck{plancheck.ExpectResourceAction(networkA, plancheck.ResourceActionUpdate)}},
			Check:            where("it was not put back", func() bool { return len(w.hosts["beta"].definition("a").Members) == 2 })},
		resource.TestStep{PreConfig: gone("alpha", "beta"), Config: config,
			ConfigPlanChecks: resource.ConfigPlanChecks{PreApply: []plancheck.PlanCheck{plancheck.ExpectResourceAction(networkA, plancheck.ResourceActionCreate)}}},
	)
}

func TestNetworkDrift(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "alpha", "beta")
	config := networkConfig(`"alpha", "beta"`, cidrA)
	w.run(
		resource.TestStep{Config: config},
		resource.TestStep{PreConfig: func() {
			d := w.hosts["beta"].definition("a").Definition
			d.NAT = false
			_, err := w.hosts["beta"].nets.Put(t.Context(), d)
			must(t, err)
		}, Config: config,
			ConfigPlanChecks: resource.ConfigPlanChecks{PreApply: []plancheck.PlanCheck{plancheck.ExpectResourceAction(networkA, plancheck.ResourceActionUpdate)}},
			Check:            where("NAT was not put right", func() bool { return w.hosts["beta"].definition("a").NAT })},
	)
}

func TestNetworkRefusedByOneHost(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "alpha", "beta")
	w.hosts["beta"].bridge.refuse("a", errors.New("no bridge today"))
	w.run(
		resource.TestStep{Config: networkConfig(`"alpha", "beta"`, cidrA), ExpectError: regexp.MustCompile(`(?si)could\s+not\s+be\s+created.*beta.*no\s+bridge\s+today`)},
		resource.TestStep{PreConfig: func() {
			for _, h := range w.hosts {
				if _, err := h.nets.Get("a"); err == nil {
					t.Errorf("%s still has it", h.name)
				}
			}
		}, Config: networkConfig(`"alpha"`, cidrA)},
		resource.TestStep{Config: networkConfig(`"alpha", "beta"`, cidrA), ExpectError: regexp.MustCompile(`(?si)could\s+not\s+be\s+changed.*no\s+bridge\s+today`)},
		resource.TestStep{Config: networkConfig(`"alpha"`, cidrA), Check: where("alpha names a host that has it not", func() bool {
			return same(placesOf(w.hosts["alpha"].definition("a")), map[string]int{"alpha": 0})
		})},
	)
}

func TestNetworkInUse(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "alpha", "beta")
	user := server(`host = "alpha"
		network = { eth0 = { network = "a" } }
		depends_on = [reflejo_network.a]`)
	both := networkConfig(`"alpha", "beta"`, cidrA)
	w.run(
		resource.TestStep{Config: both + user},
		resource.TestStep{Config: networkConfig(`"beta"`, cidrA) + user, ExpectError: regexp.MustCompile(`(?si)servers\s+use\s+network\s+a\s+\(1\s+on\s+alpha\).*nothing\s+was\s+touched`)},
		resource.TestStep{Config: networkConfig(`"alpha", "beta"`, `cidr = "10.79.0.0/24"`) + user, ExpectError: regexp.MustCompile(`(?si)The\s+range\s+can't\s+change\s+now`)},
		resource.TestStep{Config: networkConfig(`"alpha"`, cidrA) + user},
	)
}

func TestNetworkHostDown(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "alpha", "beta")
	both := networkConfig(`"alpha", "beta"`, cidrA)
	w.run(
		resource.TestStep{Config: both},
		resource.TestStep{PreConfig: w.hosts["beta"].stop, Config: both, ConfigPlanChecks: emptyPlan},
		resource.TestStep{Config: networkConfig(`"alpha", "beta"`, cidrA+"\nnat = false"), ExpectError: regexp.MustCompile(`(?si)does\s+not\s+answer.*nothing\s+was\s+touched`)},
		resource.TestStep{Config: both, Destroy: true, ExpectError: regexp.MustCompile(`(?si)does\s+not\s+answer.*nothing\s+was\s+touched`)},
		resource.TestStep{Config: "provider \"reflejo\" {\n  forget_unreachable = true\n}\n" + both, Destroy: true},
	)
}
