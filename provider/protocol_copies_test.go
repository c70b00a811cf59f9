package provider

import (
	"context"
	"strings"
	"testing"

	"github.com/google/uuid"
	"github.com/hashicorp/terraform-plugin-go/tfprotov6"
	"github.com/hashicorp/terraform-plugin-go/tftypes"

	"github.com/reflejo/terraform-provider-reflejo/agent/backup"
	"github.com/reflejo/terraform-provider-reflejo/agent/snapshot"
	"github.com/reflejo/terraform-provider-reflejo/agent/vserver"
)

// snap takes a snapshot of a server, not through Terraform.
func (h *testHost) snap(server, name string) snapshot.View {
	h.world.t.Helper()
	s, err := h.copies.Create(h.world.t.Context(), snapshot.Request{ID: uuid.NewString(), Server: server, Name: name})
	must(h.world.t, err)
	return s
}

func TestListSnapshotsAndBackups(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "alpha", "beta")
	alpha, beta := w.hosts["alpha"], w.hosts["beta"]
	alpha.put("a")
	beta.put("b")
	first, second := alpha.snap("a", "first"), beta.snap("b", "second")
	_, err := beta.copies.Backups().Create(t.Context(), backup.Request{ID: uuid.NewString(), Snapshot: second.ID, Target: "host:alpha"})
	must(t, err)
	p := newProtocol(t, w.env).configured()
	snapshots, diagnostics := p.list("reflejo_snapshot", nil, 0)
	p.none(diagnostics)
	if len(snapshots) != 2 || snapshots[0].display != "alpha/a/first" || snapshots[0].id != first.ID || snapshots[1].display != "beta/b/second" {
		t.Errorf("listed %v", snapshots)
	}
	backups, diagnostics := p.list("reflejo_backup", map[string]tftypes.Value{"hosts": texts("beta")}, 0)
	p.none(diagnostics)
	if len(backups) != 1 || backups[0].display != "beta/b/second" {
		t.Fatalf("listed %v", backups)
	}
	var target string
	must(t, backups[0].resource["target"].As(&target))
	if target != "host:alpha" {
		t.Errorf("target %q", target)
	}
}

// invoke invokes an action and returns what it said.
func (p *protocol) invoke(ctx context.Context, kind string, config map[string]tftypes.Value) (progress []string, diagnostics []*tfprotov6.Diagnostic) {
	p.t.Helper()
	stream, err := p.server.(tfprotov6.ActionServer).InvokeAction(ctx, &tfprotov6.InvokeActionRequest{
		ActionType: kind, Config: p.value(p.schema.ActionSchemas[kind].Schema, config),
	})
	must(p.t, err)
	for event := range stream.Events {
		switch e := event.Type.(type) {
		case tfprotov6.ProgressInvokeActionEventType:
			progress = append(progress, e.Message)
		case tfprotov6.CompletedInvokeActionEventType:
			diagnostics = e.Diagnostics
		}
	}
	return progress, diagnostics
}

func TestSnapshotAction(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "alpha", "beta")
	h := w.hosts["beta"]
	id := h.put("a").Spec.ID
	p := newProtocol(t, w.env).configured()
	_, diagnostics := p.invoke(t.Context(), "reflejo_snapshot", map[string]tftypes.Value{"server_id": text(id), "name": text("by-hand"), "labels": pairs("a", "b")})
	p.none(diagnostics)
	if all := h.copies.List(t.Context(), id); len(all) != 1 || all[0].Name != "by-hand" || all[0].Labels["a"] != "b" {
		t.Errorf("snapshots %v", all)
	}
	_, diagnostics = p.invoke(t.Context(), "reflejo_snapshot", map[string]tftypes.Value{"server_id": text(id), "name": text("by-hand")})
	if len(diagnostics) != 1 || !strings.Contains(diagnostics[0].Detail, "there already") {
		t.Errorf("the same name again: %v", diagnostics)
	}
	h.copies.FailNext("the pool is full")
	_, diagnostics = p.invoke(t.Context(), "reflejo_snapshot", map[string]tftypes.Value{"server_id": text(id)})
	if len(diagnostics) != 1 || !strings.Contains(diagnostics[0].Detail, "The pool is full") {
		t.Errorf("one that fails: %v", diagnostics)
	}
}

func TestRestoreAction(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "alpha")
	h := w.hosts["alpha"]
	id := h.put("a").Spec.ID
	h.put("b")
	mine, other := h.snap("a", "mine"), h.snap("b", "other")
	started := h.server("a").Started
	p := newProtocol(t, w.env).configured()
	_, diagnostics := p.invoke(t.Context(), "reflejo_restore", map[string]tftypes.Value{"server_id": text(id), "snapshot_id": text(mine.ID)})
	p.none(diagnostics)
	if v := h.server("a"); v.State != vserver.StateRunning || !v.Started.After(started) || len(h.copies.List(t.Context(), id)) != 2 {
		t.Errorf("after the restore: %s, started %s; %d snapshots", v.State, v.Started, len(h.copies.List(t.Context(), id)))
	}
	_, diagnostics = p.invoke(t.Context(), "reflejo_restore", map[string]tftypes.Value{"server_id": text(id), "snapshot_id": text(other.ID)})
	if len(diagnostics) != 1 || diagnostics[0].Attribute.String() != `AttributeName("snapshot_id")` || !strings.Contains(diagnostics[0].Detail, "another server") {
		t.Errorf("a snapshot of another server: %v", diagnostics)
	}
}

// imported is the state of a server as an import gives it.
func (p *protocol) imported(kind, id string) *tfprotov6.ImportedResource {
	p.t.Helper()
	resp, err := p.server.ImportResourceState(p.t.Context(), &tfprotov6.ImportResourceStateRequest{TypeName: kind, ID: id})
	must(p.t, err)
	p.none(resp.Diagnostics)
	return resp.ImportedResources[0]
}

// The one confirmation of a recovery: the plan names the backup and its time, and a refresh
// says that a lost host is back.
func TestRecoveryIsAnnounced(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "alpha", "beta")
	alpha := w.hosts["alpha"]
	v, err := alpha.servers.Create(t.Context(), vserver.Spec{ID: uuid.NewString(), Name: "a", Image: "debian", Power: vserver.PowerRunning,
		BackupPolicy: vserver.BackupPolicy{Schedule: "30 2 * * *", Target: "s3://backups"}})
	must(t, err)
	alpha.await(v.Spec.ID, func(v vserver.View) bool { return v.Operation.Settled() })
	last := ""
	for range 2 {
		last = uuid.NewString()
		_, err := alpha.copies.Backups().Create(t.Context(), backup.Request{ID: last, Snapshot: alpha.snap("a", "").ID, Target: "s3://backups"})
		must(t, err)
	}
	const kind = "reflejo_virtual_server"
	state := newProtocol(t, w.env).configured().imported(kind, "a")
	w.lost = "alpha"
	p := newProtocol(t, w.env).configured()
	schema := p.schema.ResourceSchemas[kind]
	config := p.value(schema, map[string]tftypes.Value{"name": text("a"), "image": text("debian"), "host": text("beta"), "power": text("running"), "backup_policy": p.policy("s3://backups")})
	plan, err := p.server.PlanResourceChange(t.Context(), &tfprotov6.PlanResourceChangeRequest{
		TypeName: kind, PriorState: state.State, ProposedNewState: config, Config: config, PriorPrivate: state.Private, PriorIdentity: state.Identity,
	})
	must(t, err)
	if d := plan.Diagnostics; len(d) != 1 || d[0].Severity != tfprotov6.DiagnosticSeverityWarning || !strings.Contains(d[0].Detail, last) || !strings.Contains(d[0].Detail, "What was written after that is lost") {
		t.Errorf("the plan says %v", d)
	}
	read, err := p.server.ReadResource(t.Context(), &tfprotov6.ReadResourceRequest{TypeName: kind, CurrentState: state.State, CurrentIdentity: state.Identity})
	must(t, err)
	if d := read.Diagnostics; len(d) != 1 || !strings.Contains(d[0].Summary, "alpha answers again") || read.NewState == nil {
		t.Errorf("the refresh says %v", d)
	}
}

// policy is a backup_policy with a target.
func (p *protocol) policy(target string) tftypes.Value {
	object := p.schema.ResourceSchemas["reflejo_virtual_server"].ValueType().(tftypes.Object).AttributeTypes["backup_policy"].(tftypes.Object)
	values := map[string]tftypes.Value{}
	for name, kind := range object.AttributeTypes {
		values[name] = tftypes.NewValue(kind, nil)
	}
	values["schedule"], values["target"], values["incremental"] = text("30 2 * * *"), text(target), tftypes.NewValue(tftypes.Bool, false)
	return tftypes.NewValue(object, values)
}
