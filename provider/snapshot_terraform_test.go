//go:build terraform

package provider

import (
	"regexp"
	"strings"
	"testing"

	"github.com/hashicorp/terraform-plugin-testing/helper/resource"
	"github.com/hashicorp/terraform-plugin-testing/knownvalue"
	"github.com/hashicorp/terraform-plugin-testing/plancheck"
	"github.com/hashicorp/terraform-plugin-testing/statecheck"
	"github.com/hashicorp/terraform-plugin-testing/terraform"
	"github.com/hashicorp/terraform-plugin-testing/tfjsonpath"

	"github.com/reflejo/terraform-provider-reflejo/agent/snapshot"
)

const (
	snapshotS = "reflejo_snapshot.s"
	backupB   = "reflejo_backup.b"
)

// snapshotConfig is a snapshot of server a with more attributes.
func snapshotConfig(more string) string {
	return server(`host = "alpha"`) + `
resource "reflejo_snapshot" "s" {
  server_id = reflejo_virtual_server.a.id
  ` + more + `
}
`
}

func backupConfig(more string) string {
	return snapshotConfig(`name = "before"`) + `
resource "reflejo_backup" "b" {
  snapshot_id = reflejo_snapshot.s.id
  ` + more + `
}
`
}

func does(address string, action plancheck.ResourceActionType) resource.ConfigPlanChecks {
	return resource.ConfigPlanChecks{PreApply: []plancheck.PlanCheck{plancheck.ExpectResourceAction(address, action)}}
}

// one is the only snapshot of server a on alpha.
func (w *world) one() snapshot.View {
	w.t.Helper()
	all := w.hosts["alpha"].copies.List(w.t.Context(), "")
	if len(all) != 1 {
		w.t.Fatalf("%d snapshots", len(all))
	}
	return all[0]
}

func TestSnapshotLife(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "alpha", "beta")
	full := `name = "before-upgrade"
		description = "of release 1.3"
		labels      = { team = "orders" }
		consistency = "crash"`
	changed := snapshotConfig(`name = "before"
		consistency = "crash"`)
	id := statecheck.CompareValue(sameAs{})
	same := func() []statecheck.StateCheck {
		return []statecheck.StateCheck{id.AddStateValue(snapshotS, tfjsonpath.New("id"))}
	}
	steps := []resource.TestStep{{Config: snapshotConfig(full), ConfigStateChecks: append(same(),
		statecheck.ExpectKnownValue(snapshotS, tfjsonpath.New("state"), knownvalue.StringExact("ready")),
		statecheck.ExpectKnownValue(snapshotS, tfjsonpath.New("host"), knownvalue.StringExact("alpha")),
		statecheck.ExpectKnownValue(snapshotS, tfjsonpath.New("server_state"), knownvalue.StringExact("running")),
		statecheck.ExpectKnownValue(snapshotS, tfjsonpath.New("pause_ms"), knownvalue.Int64Exact(12)),
		statecheck.ExpectKnownValue(snapshotS, tfjsonpath.New("size"), knownvalue.Int64Exact(10<<30)),
		statecheck.ExpectKnownValue(snapshotS, tfjsonpath.New("checksum"), knownvalue.StringRegexp(regexp.MustCompile(`^sha256:`))),
	)}, {Config: snapshotConfig(full), PlanOnly: true}}
	steps = append(steps, imports(snapshotS, snapshotConfig(full), "before-upgrade", "alpha/before-upgrade")...)
	steps = append(steps,
		resource.TestStep{Config: changed, ConfigPlanChecks: does(snapshotS, plancheck.ResourceActionUpdate), ConfigStateChecks: same(),
			Check: where("the snapshot was not changed", func() bool {
				s := w.one()
				return s.Name == "before" && s.Description == "" && len(s.Labels) == 0
			})},
		resource.TestStep{Config: strings.Replace(changed, "crash", "filesystem", 1), ConfigPlanChecks: does(snapshotS, plancheck.ResourceActionDestroyBeforeCreate)},
		// Deleted outside: taken anew.
		resource.TestStep{PreConfig: func() { must(t, w.hosts["alpha"].copies.Delete(t.Context(), w.one().ID)) },
			Config: snapshotConfig(`name = "before"`), ConfigPlanChecks: does(snapshotS, plancheck.ResourceActionCreate)},
		// Changed outside: put right.
		resource.TestStep{PreConfig: func() {
			_, err := w.hosts["alpha"].copies.Update(w.one().ID, "other", "by hand", nil)
			must(t, err)
		}, Config: snapshotConfig(`name = "before"`), ConfigPlanChecks: does(snapshotS, plancheck.ResourceActionUpdate),
			Check: where("it was not put right", func() bool { return w.one().Name == "before" && w.one().Description == "" })},
		// Gone with it is only the snapshot.
		resource.TestStep{Config: server(`host = "alpha"`), Check: where("a snapshot is left", func() bool { return len(w.hosts["alpha"].copies.List(t.Context(), "")) == 0 })},
	)
	w.run(steps...)
}

func TestSnapshotTriggers(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "alpha")
	release := func(n string) string { return snapshotConfig(`triggers = { release = "` + n + `" }`) }
	w.run(
		resource.TestStep{Config: snapshotConfig("")},
		// A first trigger, as after an import, takes no new one; a new value does.
		resource.TestStep{Config: release("1.4"), ConfigPlanChecks: does(snapshotS, plancheck.ResourceActionUpdate)},
		resource.TestStep{Config: release("1.4"), ConfigPlanChecks: emptyPlan},
		resource.TestStep{Config: release("1.5"), ConfigPlanChecks: does(snapshotS, plancheck.ResourceActionDestroyBeforeCreate)},
		resource.TestStep{Config: snapshotConfig(""), ConfigPlanChecks: does(snapshotS, plancheck.ResourceActionUpdate)},
	)
}

// Snapshots outlive their servers.
func TestSnapshotOfServerThatIsGone(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "alpha")
	alone := func(id string) string {
		return "resource \"reflejo_snapshot\" \"s\" {\n  server_id = \"" + id + "\"\n  name = \"last\"\n}\n"
	}
	h := w.hosts["alpha"]
	id := h.put("a").Spec.ID
	w.run(
		resource.TestStep{Config: alone(id)},
		resource.TestStep{PreConfig: func() { h.remove("a") }, Config: alone(id), ConfigPlanChecks: emptyPlan},
		resource.TestStep{Config: strings.Replace(alone(id), "last", "renamed", 1), ConfigPlanChecks: does(snapshotS, plancheck.ResourceActionUpdate)},
		resource.TestStep{Config: strings.Replace(alone(id), "\"s\"", "\"other\"", 1), ExpectError: regexp.MustCompile(`(?si)could\s+not\s+be\s+taken.*server_id.*no\s+server`)},
	)
}

func TestSnapshotMovesWithItsServer(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "alpha", "beta")
	config := strings.Replace(snapshotConfig(`name = "before"`), `host = "alpha"`, "", 1)
	w.run(
		resource.TestStep{Config: config},
		resource.TestStep{PreConfig: func() {
			from := onlyHost(w, "a")
			to := map[string]string{"alpha": "beta", "beta": "alpha"}[from]
			w.hosts[from].copies.Move(w.hosts[from].server("a").Spec.ID, w.hosts[to].copies)
			w.moveOutside(from, to)
		}, Config: config, ConfigPlanChecks: emptyPlan},
	)
}

func TestSnapshotFails(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "alpha")
	h := w.hosts["alpha"]
	w.run(
		resource.TestStep{Config: server(`host = "alpha"`)},
		resource.TestStep{PreConfig: func() { h.copies.FailNext("the pool is full") },
			Config: snapshotConfig(""), ExpectError: regexp.MustCompile(`(?si)could\s+not\s+be\s+taken.*the\s+pool\s+is\s+full`)},
		resource.TestStep{PreConfig: func() {
			h.copies.FailNext("")
			if left := h.copies.List(t.Context(), ""); len(left) > 0 {
				t.Errorf("%d snapshots are left", len(left))
			}
		}, Config: snapshotConfig(""), ConfigPlanChecks: does(snapshotS, plancheck.ResourceActionCreate)},
	)
}

func TestSnapshotHostDown(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "alpha", "beta")
	h := w.hosts["alpha"]
	w.run(
		resource.TestStep{Config: snapshotConfig(`name = "before"`)},
		resource.TestStep{PreConfig: h.stop, Config: snapshotConfig(`name = "before"`), ConfigPlanChecks: emptyPlan},
		resource.TestStep{Config: snapshotConfig(`name = "other"`), ExpectError: regexp.MustCompile(`(?si)could\s+not\s+be\s+changed.*does\s+not\s+answer`)},
		resource.TestStep{Config: snapshotConfig(`name = "before"`), Destroy: true, ExpectError: regexp.MustCompile(`(?si)could\s+not\s+be\s+destroyed.*does\s+not\s+answer`)},
		resource.TestStep{Config: "provider \"reflejo\" {\n  lost_hosts = [\"alpha\"]\n}\n" + snapshotConfig(`name = "before"`), Destroy: true},
	)
}

func TestBackupLife(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "alpha", "beta")
	config := backupConfig(`target = "host:beta"`)
	id := ""
	steps := []resource.TestStep{{Config: config, ConfigStateChecks: []statecheck.StateCheck{
		statecheck.ExpectKnownValue(backupB, tfjsonpath.New("state"), knownvalue.StringExact("ready")),
		statecheck.ExpectKnownValue(backupB, tfjsonpath.New("name"), knownvalue.StringExact("before")),
		statecheck.ExpectKnownValue(backupB, tfjsonpath.New("host"), knownvalue.StringExact("alpha")),
		statecheck.ExpectKnownValue(backupB, tfjsonpath.New("size"), knownvalue.Int64Exact(3<<20)),
		statecheck.ExpectKnownValue(backupB, tfjsonpath.New("parent_id"), knownvalue.Null()),
		statecheck.ExpectKnownValue(backupB, tfjsonpath.New("incremental"), knownvalue.Bool(false)),
		statecheck.CompareValuePairs(backupB, tfjsonpath.New("checksum"), snapshotS, tfjsonpath.New("checksum"), sameAs{}),
	}, Check: func(s *terraform.State) error {
		id = s.RootModule().Resources[backupB].Primary.ID
		return nil
	}}, {Config: config, PlanOnly: true}}
	steps = append(steps, imports(backupB, config, "before", "alpha/before")...)
	steps = append(steps,
		// What a backup is made with is in its file.
		resource.TestStep{Config: backupConfig("target = \"host:beta\"\nincremental = true"), ConfigPlanChecks: emptyPlan},
		resource.TestStep{Config: backupConfig("target = \"host:beta\"\nname = \"weekly\""), ConfigPlanChecks: does(backupB, plancheck.ResourceActionDestroyBeforeCreate)},
		resource.TestStep{Config: backupConfig(`target = "s3://backups/a"`), ConfigPlanChecks: does(backupB, plancheck.ResourceActionDestroyBeforeCreate)},
		resource.TestStep{PreConfig: func() {
			for _, b := range w.hosts["alpha"].copies.Backups().List("") {
				must(t, w.hosts["alpha"].copies.Backups().Delete(t.Context(), "", b.ID))
			}
		}, Config: backupConfig(`target = "s3://backups/a"`), ConfigPlanChecks: does(backupB, plancheck.ResourceActionCreate)},
		resource.TestStep{Config: backupConfig("target = \"s3://backups/a\"") + `
resource "reflejo_backup" "next" {
  snapshot_id = reflejo_snapshot.s.id
  target      = reflejo_backup.b.target
  name        = "next"
  incremental = true
  depends_on  = [reflejo_backup.b]
}
data "reflejo_backups" "there" {
  target     = "s3://backups/a"
  depends_on = [reflejo_backup.next]
}
data "reflejo_backups" "known" {
  server_id  = reflejo_virtual_server.a.id
  depends_on = [reflejo_backup.next]
}
`, ConfigStateChecks: []statecheck.StateCheck{
			statecheck.CompareValuePairs("reflejo_backup.next", tfjsonpath.New("parent_id"), backupB, tfjsonpath.New("id"), sameAs{}),
			statecheck.ExpectKnownValue("data.reflejo_backups.there", tfjsonpath.New("backups"), knownvalue.ListSizeExact(2)),
			statecheck.ExpectKnownValue("data.reflejo_backups.known", tfjsonpath.New("backups"), knownvalue.ListSizeExact(2)),
		}},
		resource.TestStep{Config: backupConfig(`target = "s3://unknown"`), ExpectError: regexp.MustCompile(`(?si)could\s+not\s+be\s+made.*target.*no\s+credentials`)},
	)
	w.run(steps...)
	if id == "" {
		t.Error("there never was an id")
	}
}

// A backup outlives the host that made it, where its target does.
func TestBackupOfLostHost(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "alpha", "beta")
	id := w.hosts["alpha"].put("a").Spec.ID
	config := `
resource "reflejo_snapshot" "s" {
  server_id = "` + id + `"
  name      = "before"
}
resource "reflejo_backup" "b" {
  snapshot_id = reflejo_snapshot.s.id
  target      = "s3://backups/a"
}
`
	w.run(
		resource.TestStep{Config: config},
		resource.TestStep{PreConfig: func() { w.hosts["alpha"].stop(); w.lost = "alpha" }, RefreshState: true,
			Check: resource.TestCheckResourceAttr(backupB, "state", "ready")},
		resource.TestStep{Config: config, Destroy: true},
	)
	if left, err := w.hosts["beta"].copies.Backups().Catalog(t.Context(), "s3://backups/a", ""); err != nil || len(left) > 0 {
		t.Errorf("%d backups are left (%v)", len(left), err)
	}
}

func TestSnapshotDataSources(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "alpha", "beta")
	config := snapshotConfig("name = \"first\"\nlabels = { tier = \"1\" }") + `
resource "reflejo_snapshot" "second" {
  server_id  = reflejo_virtual_server.a.id
  name       = "second"
  depends_on = [reflejo_snapshot.s]
}
data "reflejo_snapshots" "all" {
  server_id  = reflejo_virtual_server.a.id
  depends_on = [reflejo_snapshot.second]
}
data "reflejo_snapshots" "labelled" {
  labels     = { tier = "1" }
  depends_on = [reflejo_snapshot.second]
}
data "reflejo_snapshot" "newest" {
  server_id   = reflejo_virtual_server.a.id
  most_recent = true
  depends_on  = [reflejo_snapshot.second]
}
data "reflejo_snapshot" "first" {
  name       = "first"
  depends_on = [reflejo_snapshot.second]
}
`
	w.run(
		resource.TestStep{Config: config, ConfigStateChecks: []statecheck.StateCheck{
			statecheck.ExpectKnownValue("data.reflejo_snapshots.all", tfjsonpath.New("snapshots").AtSliceIndex(1).AtMapKey("name"), knownvalue.StringExact("second")),
			statecheck.ExpectKnownValue("data.reflejo_snapshots.labelled", tfjsonpath.New("snapshots"), knownvalue.ListSizeExact(1)),
			statecheck.ExpectKnownValue("data.reflejo_snapshot.newest", tfjsonpath.New("name"), knownvalue.StringExact("second")),
			statecheck.ExpectKnownValue("data.reflejo_snapshot.first", tfjsonpath.New("origin"), knownvalue.StringExact("manual")),
		}},
		resource.TestStep{Config: snapshotConfig(`name = "first"`) + `
data "reflejo_snapshot" "none" {
  name = "nothing"
}
`, ExpectError: regexp.MustCompile(`(?si)Snapshot\s+could\s+not\s+be\s+read.*no\s+snapshot\s+nothing`)},
	)
}
