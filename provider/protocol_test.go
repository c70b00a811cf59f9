package provider

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/hashicorp/terraform-plugin-framework/providerserver"
	"github.com/hashicorp/terraform-plugin-go/tfprotov6"
	"github.com/hashicorp/terraform-plugin-go/tftypes"

	"github.com/reflejo/terraform-provider-reflejo/agent/network"
	"github.com/reflejo/terraform-provider-reflejo/agent/vserver"
)

// protocol speaks to the provider as a newer Terraform than the one on PATH would.
type protocol struct {
	t      *testing.T
	server tfprotov6.ProviderServer
	schema *tfprotov6.GetProviderSchemaResponse
}

func newProtocol(t *testing.T, getenv func(string) string) *protocol {
	t.Helper()
	server := providerserver.NewProtocol6(&reflejoProvider{version: "test", getenv: getenv})()
	schema, err := server.GetProviderSchema(t.Context(), &tfprotov6.GetProviderSchemaRequest{})
	must(t, err)
	p := &protocol{t: t, server: server, schema: schema}
	p.none(schema.Diagnostics)
	return p
}

// configured configures the provider from its environment.
func (p *protocol) configured() *protocol {
	p.t.Helper()
	resp, err := p.server.ConfigureProvider(p.t.Context(), &tfprotov6.ConfigureProviderRequest{Config: p.value(p.schema.Provider, nil)})
	must(p.t, err)
	p.none(resp.Diagnostics)
	return p
}

func (p *protocol) none(diagnostics []*tfprotov6.Diagnostic) {
	p.t.Helper()
	for _, d := range diagnostics {
		p.t.Fatalf("%s: %s: %s (%s)", d.Severity, d.Summary, d.Detail, d.Attribute)
	}
}

// value is a configuration in which all attributes but the given ones are null.
func (p *protocol) value(schema *tfprotov6.Schema, given map[string]tftypes.Value) *tfprotov6.DynamicValue {
	p.t.Helper()
	object, ok := schema.ValueType().(tftypes.Object)
	if !ok {
		p.t.Fatalf("schema has type %s", schema.ValueType())
	}
	values := map[string]tftypes.Value{}
	for name, kind := range object.AttributeTypes {
		values[name] = tftypes.NewValue(kind, nil)
		if v, ok := given[name]; ok {
			values[name] = v
		}
	}
	dynamic, err := tfprotov6.NewDynamicValue(object, tftypes.NewValue(object, values))
	must(p.t, err)
	return &dynamic
}

func text(s string) tftypes.Value { return tftypes.NewValue(tftypes.String, s) }

func texts(list ...string) tftypes.Value {
	values := []tftypes.Value{}
	for _, s := range list {
		values = append(values, text(s))
	}
	return tftypes.NewValue(tftypes.List{ElementType: tftypes.String}, values)
}

func pairs(key, value string) tftypes.Value {
	return tftypes.NewValue(tftypes.Map{ElementType: tftypes.String}, map[string]tftypes.Value{key: text(value)})
}

// put makes a server on the host, not through Terraform.
func (h *testHost) put(name string) vserver.View {
	h.world.t.Helper()
	v, err := h.servers.Create(h.world.t.Context(), vserver.Spec{ID: uuid.NewString(), Name: name, Image: "debian", Power: vserver.PowerRunning, KeepSnapshots: true})
	must(h.world.t, err)
	h.await(v.Spec.ID, func(v vserver.View) bool { return v.State == vserver.StateRunning && v.Operation.Settled() })
	return v
}

type listResult struct {
	display, id string
	resource    map[string]tftypes.Value
}

func (p *protocol) list(kind string, config map[string]tftypes.Value, limit int64) (results []listResult, diagnostics []*tfprotov6.Diagnostic) {
	p.t.Helper()
	stream, err := p.server.(tfprotov6.ListResourceServer).ListResource(p.t.Context(), &tfprotov6.ListResourceRequest{
		TypeName: kind, Config: p.value(p.schema.ListResourceSchemas[kind], config), IncludeResource: true, Limit: limit,
	})
	must(p.t, err)
	identity := tftypes.Object{AttributeTypes: map[string]tftypes.Type{"id": tftypes.String}}
	for r := range stream.Results {
		diagnostics = append(diagnostics, r.Diagnostics...)
		if r.Identity == nil {
			continue
		}
		one := listResult{display: r.DisplayName}
		value, err := r.Identity.IdentityData.Unmarshal(identity)
		must(p.t, err)
		var fields map[string]tftypes.Value
		must(p.t, value.As(&fields))
		must(p.t, fields["id"].As(&one.id))
		value, err = r.Resource.Unmarshal(p.schema.ResourceSchemas[kind].ValueType())
		must(p.t, err)
		must(p.t, value.As(&one.resource))
		results = append(results, one)
	}
	return results, diagnostics
}

func TestListServers(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "alpha", "beta")
	w.hosts["alpha"].put("a")
	w.hosts["alpha"].put("b")
	c := w.hosts["beta"].put("c")
	p := newProtocol(t, w.env).configured()
	all, diagnostics := p.list("reflejo_virtual_server", nil, 0)
	p.none(diagnostics)
	var names []string
	for _, r := range all {
		names = append(names, r.display)
	}
	if got := strings.Join(names, " "); got != "alpha/a alpha/b beta/c" {
		t.Errorf("listed %s", got)
	}
	only, diagnostics := p.list("reflejo_virtual_server", map[string]tftypes.Value{"hosts": texts("beta")}, 0)
	p.none(diagnostics)
	var host string
	if len(only) != 1 || only[0].id != c.Spec.ID {
		t.Fatalf("listed %v of beta", only)
	}
	must(t, only[0].resource["host"].As(&host))
	if host != "beta" {
		t.Errorf("c is on %q", host)
	}
	if limited, _ := p.list("reflejo_virtual_server", nil, 2); len(limited) != 2 {
		t.Errorf("%d results within a limit of 2", len(limited))
	}
	w.hosts["beta"].stop()
	some, diagnostics := p.list("reflejo_virtual_server", nil, 0)
	if len(some) != 2 || len(diagnostics) != 1 || diagnostics[0].Severity != tfprotov6.DiagnosticSeverityError {
		t.Errorf("with beta down: %d results, diagnostics %v", len(some), diagnostics)
	}
	if _, diagnostics := p.list("reflejo_virtual_server", map[string]tftypes.Value{"hosts": texts("delta")}, 0); len(diagnostics) != 1 {
		t.Errorf("a host that is not configured: diagnostics %v", diagnostics)
	}
}

func TestListNetworksAndImages(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "alpha", "beta")
	d := network.Definition{ID: uuid.NewString(), Name: "app", CIDR: mustRange("10.77.0.0/24"), NAT: true, Members: []network.Member{{Host: "alpha"}}}
	_, err := w.hosts["alpha"].nets.Put(t.Context(), d)
	must(t, err)
	p := newProtocol(t, w.env).configured()
	networks, diagnostics := p.list("reflejo_network", nil, 0)
	p.none(diagnostics)
	if len(networks) != 1 || networks[0].id != d.ID || networks[0].display != "app (10.77.0.0/24)" {
		t.Errorf("listed networks %v", networks)
	}
	images, diagnostics := p.list("reflejo_image", nil, 0)
	p.none(diagnostics)
	if len(images) != 1 || images[0].display != "debian" {
		t.Fatalf("listed images %v", images)
	}
	var hosts []tftypes.Value
	must(t, images[0].resource["hosts"].As(&hosts))
	if len(hosts) != 2 {
		t.Errorf("debian is on %v", hosts)
	}
}

// reboot invokes the action and returns what it said.
func (p *protocol) reboot(ctx context.Context, config map[string]tftypes.Value, read int) (progress []string, diagnostics []*tfprotov6.Diagnostic) {
	p.t.Helper()
	stream, err := p.server.(tfprotov6.ActionServer).InvokeAction(ctx, &tfprotov6.InvokeActionRequest{
		ActionType: "reflejo_reboot", Config: p.value(p.schema.ActionSchemas["reflejo_reboot"].Schema, config),
	})
	must(p.t, err)
	for event := range stream.Events {
		switch e := event.Type.(type) {
		case tfprotov6.ProgressInvokeActionEventType:
			progress = append(progress, e.Message)
		case tfprotov6.CompletedInvokeActionEventType:
			diagnostics = e.Diagnostics
		}
		if read--; read == 0 {
			return progress, diagnostics
		}
	}
	return progress, diagnostics
}

func TestReboot(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "alpha")
	h := w.hosts["alpha"]
	v := h.put("a")
	started := h.server("a").Started
	p := newProtocol(t, w.env).configured()
	progress, diagnostics := p.reboot(t.Context(), map[string]tftypes.Value{"server_id": text(v.Spec.ID), "shutdown_timeout": text("5s")}, 0)
	p.none(diagnostics)
	if len(progress) == 0 {
		t.Error("no progress was reported")
	}
	if after := h.server("a"); after.State != vserver.StateRunning || !after.Started.After(started) {
		t.Errorf("after the reboot: %s, started %s, before %s", after.State, after.Started, started)
	}
	_, diagnostics = p.reboot(t.Context(), map[string]tftypes.Value{"server_id": text(uuid.NewString())}, 0)
	if len(diagnostics) != 1 || diagnostics[0].Attribute.String() != `AttributeName("server_id")` {
		t.Errorf("an unknown server: %v", diagnostics)
	}
	stopped, err := h.servers.SetPower(t.Context(), "a", vserver.ActionStop, 0)
	must(t, err)
	h.await(stopped.Spec.ID, func(v vserver.View) bool { return v.State == vserver.StateStopped && v.Operation.Settled() })
	_, diagnostics = p.reboot(t.Context(), map[string]tftypes.Value{"server_id": text(v.Spec.ID)}, 0)
	if len(diagnostics) != 1 || !strings.Contains(diagnostics[0].Detail, "start it instead") {
		t.Errorf("a stopped server: %v", diagnostics)
	}
}

// A client that reads one event and goes away must not stop the reboot, nor leave anything waiting.
func TestRebootNobodyListens(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "alpha")
	h := w.hosts["alpha"]
	v := h.put("a")
	started := h.server("a").Started
	p := newProtocol(t, w.env).configured()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	p.reboot(ctx, map[string]tftypes.Value{"server_id": text(v.Spec.ID)}, 1)
	h.await(v.Spec.ID, func(v vserver.View) bool {
		return v.Started.After(started) && v.State == vserver.StateRunning && v.Operation.Settled()
	})
}

func TestRebootTimeout(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "alpha")
	h := w.hosts["alpha"]
	v := h.put("a")
	defer h.kernel.Hold(vserver.StepRunCreate)()
	p := newProtocol(t, w.env).configured()
	_, diagnostics := p.reboot(t.Context(), map[string]tftypes.Value{"server_id": text(v.Spec.ID), "timeout": text("1s")}, 0)
	if len(diagnostics) != 1 || !strings.Contains(diagnostics[0].Detail, "the host carries on") {
		t.Errorf("diagnostics %v", diagnostics)
	}
}

// Interrupted creation: the state has the server, the host carries on.
func TestCreateInterrupted(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "alpha")
	h := w.hosts["alpha"]
	release := h.kernel.Hold(vserver.StepRunCreate)
	p := newProtocol(t, w.env).configured()
	schema := p.schema.ResourceSchemas["reflejo_virtual_server"]
	config := p.value(schema, map[string]tftypes.Value{"name": text("a"), "image": text("debian"), "host": text("alpha")})
	null, err := tfprotov6.NewDynamicValue(schema.ValueType(), tftypes.NewValue(schema.ValueType(), nil))
	must(t, err)
	plan, err := p.server.PlanResourceChange(t.Context(), &tfprotov6.PlanResourceChangeRequest{
		TypeName: "reflejo_virtual_server", PriorState: &null, ProposedNewState: config, Config: config,
	})
	must(t, err)
	p.none(plan.Diagnostics)
	ctx, interrupt := context.WithCancel(t.Context())
	go func() {
		for ctx.Err() == nil && len(h.servers.List()) == 0 {
			time.Sleep(time.Millisecond)
		}
		interrupt()
	}()
	applied, err := p.server.ApplyResourceChange(ctx, &tfprotov6.ApplyResourceChangeRequest{
		TypeName: "reflejo_virtual_server", PriorState: &null, PlannedState: plan.PlannedState, Config: config, PlannedPrivate: plan.PlannedPrivate, PlannedIdentity: plan.PlannedIdentity,
	})
	must(t, err)
	state, err := applied.NewState.Unmarshal(schema.ValueType())
	must(t, err)
	var fields map[string]tftypes.Value
	must(t, state.As(&fields))
	var id string
	must(t, fields["id"].As(&id))
	if v := h.server("a"); v.Spec.ID != id || v.State != vserver.StateCreating {
		t.Errorf("state has %s, the host %s, %s", id, v.Spec.ID, v.State)
	}
	if !state.IsFullyKnown() {
		t.Errorf("state has unknown values: %s", state)
	}
	release()
	h.await(id, func(v vserver.View) bool { return v.State == vserver.StateRunning })
}

// schemas are all schemas of the provider, by what they are called in messages.
func (p *protocol) schemas() map[string]*tfprotov6.Schema {
	all := map[string]*tfprotov6.Schema{"provider": p.schema.Provider}
	for name, s := range p.schema.ResourceSchemas {
		all["resource "+name] = s
	}
	for name, s := range p.schema.DataSourceSchemas {
		all["data "+name] = s
	}
	for name, s := range p.schema.ListResourceSchemas {
		all["list "+name] = s
	}
	for name, s := range p.schema.ActionSchemas {
		all["action "+name] = s.Schema
	}
	return all
}

// walk visits every attribute, nested ones after what they are in; the path has the names.
func walk(attributes []*tfprotov6.SchemaAttribute, above []string, visit func(path []string, a *tfprotov6.SchemaAttribute)) {
	for _, a := range attributes {
		path := append(slices.Clone(above), a.Name)
		visit(path, a)
		if a.NestedType != nil {
			walk(a.NestedType.Attributes, path, visit)
		}
	}
}

func TestEverythingIsDescribed(t *testing.T) {
	t.Parallel()
	p := newProtocol(t, func(string) string { return "" })
	for name, s := range p.schemas() {
		if s.Block.Description == "" {
			t.Errorf("%s has no description", name)
		}
		if len(s.Block.BlockTypes) > 0 {
			t.Errorf("%s has blocks: use nested attributes", name)
		}
		walk(s.Block.Attributes, nil, func(path []string, a *tfprotov6.SchemaAttribute) {
			if a.Description == "" {
				t.Errorf("%s: attribute %s has no description", name, strings.Join(path, "."))
			}
			if d := strings.TrimSpace(a.Description); d != "" && !strings.HasSuffix(d, ".") {
				t.Errorf("%s: description of %s does not end with a full stop: %q", name, strings.Join(path, "."), d)
			}
		})
	}
	if n := len(p.schemas()); n != 1+5+9+5+3 {
		t.Errorf("%d schemas", n)
	}
}

func TestIdentities(t *testing.T) {
	t.Parallel()
	p := newProtocol(t, func(string) string { return "" })
	resp, err := p.server.GetResourceIdentitySchemas(t.Context(), &tfprotov6.GetResourceIdentitySchemasRequest{})
	must(t, err)
	for name := range p.schema.ResourceSchemas {
		s := resp.IdentitySchemas[name]
		if s == nil || len(s.IdentityAttributes) != 1 || s.IdentityAttributes[0].Name != "id" || !s.IdentityAttributes[0].RequiredForImport {
			t.Errorf("%s: identity %v", name, s)
		}
	}
}

func TestImportByIdentity(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "alpha", "beta")
	v := w.hosts["beta"].put("a")
	p := newProtocol(t, w.env).configured()
	kind := tftypes.Object{AttributeTypes: map[string]tftypes.Type{"id": tftypes.String}}
	data, err := tfprotov6.NewDynamicValue(kind, tftypes.NewValue(kind, map[string]tftypes.Value{"id": text(v.Spec.ID)}))
	must(t, err)
	resp, err := p.server.ImportResourceState(t.Context(), &tfprotov6.ImportResourceStateRequest{
		TypeName: "reflejo_virtual_server", Identity: &tfprotov6.ResourceIdentityData{IdentityData: &data},
	})
	must(t, err)
	p.none(resp.Diagnostics)
	state, err := resp.ImportedResources[0].State.Unmarshal(p.schema.ResourceSchemas["reflejo_virtual_server"].ValueType())
	must(t, err)
	var fields map[string]tftypes.Value
	must(t, state.As(&fields))
	var name, host string
	must(t, fields["name"].As(&name))
	must(t, fields["host"].As(&host))
	if fmt.Sprint(host, "/", name) != "beta/a" {
		t.Errorf("imported %s/%s", host, name)
	}
}
