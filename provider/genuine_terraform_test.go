//go:build terraform

package provider

import (
	"testing"

	"github.com/google/uuid"
	"github.com/hashicorp/terraform-plugin-testing/helper/resource"
	"github.com/hashicorp/terraform-plugin-testing/plancheck"

	"github.com/reflejo/terraform-provider-reflejo/agent/snapshot"
)

// A server there and back again, with its snapshots, through the real managers of both hosts.
func TestGenuineMove(t *testing.T) {
	t.Parallel()
	w := newGenuineWorld(t, "alpha", "beta")
	config := func(host string) string {
		return spanning("host = \""+host+"\"\nmigration = { snapshots = true }") + `
resource "reflejo_snapshot" "s" {
  server_id = reflejo_virtual_server.a.id
  name      = "before"
}
`
	}
	w.run(
		resource.TestStep{Config: config("alpha"), Check: w.only("alpha")},
		resource.TestStep{Config: config("beta"), ConfigPlanChecks: planned(plancheck.ResourceActionUpdate), Check: w.only("beta")},
		resource.TestStep{Config: config("beta"), ConfigPlanChecks: emptyPlan, Check: resource.TestCheckResourceAttr(snapshotS, "host", "beta")},
		resource.TestStep{Config: config("alpha"), ConfigPlanChecks: planned(plancheck.ResourceActionUpdate), Check: w.only("alpha")},
		resource.TestStep{Config: config("alpha"), ConfigPlanChecks: emptyPlan},
	)
}

func TestGenuineRestoreAndClone(t *testing.T) {
	t.Parallel()
	w := newGenuineWorld(t, "alpha")
	h, id := w.hosts["alpha"], uuid.NewString()
	clone := "\nresource \"reflejo_virtual_server\" \"c\" {\n  name = \"c\"\n  clone_of = \"" + id + "\"\n}\n"
	restored := server("host = \"alpha\"\nrestore_from = \"" + id + "\"")
	w.run(
		resource.TestStep{Config: server(`host = "alpha"`)},
		resource.TestStep{PreConfig: func() {
			_, err := h.genuine.snapshots.Create(t.Context(), snapshot.Request{ID: id, Server: "a", Name: "before"})
			must(t, err)
			views, err := h.genuine.snapshots.Watch(t.Context(), id)
			must(t, err)
			for v := range views {
				if v.State == snapshot.PhaseReady && v.Operation.Settled() {
					break
				}
			}
		}, Config: restored, ConfigPlanChecks: planned(plancheck.ResourceActionUpdate), Check: w.only("alpha")},
		resource.TestStep{Config: restored, ConfigPlanChecks: emptyPlan, Check: where("there is no safety snapshot", func() bool {
			for _, s := range h.genuine.snapshots.List(t.Context(), "") {
				if s.Origin == snapshot.OriginSafety {
					return true
				}
			}
			return false
		})},
		resource.TestStep{Config: restored + clone, Check: resource.TestCheckResourceAttr("reflejo_virtual_server.c", "state", "running")},
		resource.TestStep{Config: restored + clone, ConfigPlanChecks: emptyPlan},
	)
}

// newGenuineWorld is a world whose hosts keep snapshots and move servers as real ones do,
// over real connections, with disks in memory.
func newGenuineWorld(t *testing.T, names ...string) *world {
	t.Helper()
	return makeWorld(t, true, names...)
}
