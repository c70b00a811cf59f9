package provider

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/hashicorp/terraform-plugin-framework/diag"
	"github.com/hashicorp/terraform-plugin-framework/list"
	"github.com/hashicorp/terraform-plugin-framework/path"
	"github.com/hashicorp/terraform-plugin-framework/resource"
	"github.com/hashicorp/terraform-plugin-framework/resource/identityschema"
	"github.com/hashicorp/terraform-plugin-framework/tfsdk"
	"github.com/hashicorp/terraform-plugin-framework/types"

	reflejov1 "github.com/reflejo/terraform-provider-reflejo/agent/api/reflejo/v1"
	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
)

// How long to wait by default.
const (
	createTimeout = 10 * time.Minute
	updateTimeout = 30 * time.Minute
	deleteTimeout = 5 * time.Minute
)

// serverResource is reflejo_virtual_server.
type serverResource struct{ hosts *hosts }

var (
	_ resource.ResourceWithConfigure      = (*serverResource)(nil)
	_ resource.ResourceWithIdentity       = (*serverResource)(nil)
	_ resource.ResourceWithImportState    = (*serverResource)(nil)
	_ resource.ResourceWithModifyPlan     = (*serverResource)(nil)
	_ resource.ResourceWithValidateConfig = (*serverResource)(nil)
	_ list.ListResourceWithConfigure      = (*serverResource)(nil)
)

func (r *serverResource) Metadata(_ context.Context, req resource.MetadataRequest, resp *resource.MetadataResponse) {
	resp.TypeName = req.ProviderTypeName + "_virtual_server"
}

func (r *serverResource) Configure(_ context.Context, req resource.ConfigureRequest, resp *resource.ConfigureResponse) {
	r.hosts = configured(req.ProviderData, &resp.Diagnostics)
}

// idIdentity is the identity of every resource of ours: an id that is unique among all
// hosts and never changes, where things live may.
func idIdentity(what string) identityschema.Schema {
	return identityschema.Schema{Attributes: map[string]identityschema.Attribute{
		"id": identityschema.StringAttribute{RequiredForImport: true, Description: what},
	}}
}

func setIdentity(ctx context.Context, identity *tfsdk.ResourceIdentity, id types.String, diags *diag.Diagnostics) {
	if identity != nil && isSet(id) {
		diags.Append(identity.SetAttribute(ctx, path.Root("id"), id)...)
	}
}

func (r *serverResource) IdentitySchema(_ context.Context, _ resource.IdentitySchemaRequest, resp *resource.IdentitySchemaResponse) {
	resp.IdentitySchema = idIdentity("UUID of the server.")
}

// Create makes the server durable on a host, then waits, within bounds, until it is made.
func (r *serverResource) Create(ctx context.Context, req resource.CreateRequest, resp *resource.CreateResponse) {
	var plan serverModel
	var firstBoot types.String
	resp.Diagnostics.Append(req.Plan.Get(ctx, &plan)...)
	resp.Diagnostics.Append(req.Config.GetAttribute(ctx, path.Root("first_boot_wo"), &firstBoot)...)
	timeout, diags := plan.Timeouts.Create(ctx, createTimeout)
	resp.Diagnostics.Append(diags...)
	if resp.Diagnostics.HasError() {
		return
	}
	plan.ID = types.StringValue(uuid.NewString())
	spec, diags := plan.spec(ctx)
	resp.Diagnostics.Append(diags...)
	if resp.Diagnostics.HasError() {
		return
	}
	spec.FirstBoot = firstBoot.ValueString()

	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	save := func(s *reflejov1.Server) {
		plan.observe(s)
		if plan.Image.IsUnknown() { // a clone's
			plan.Image = optionalString(s.GetSpec().GetImage())
		}
		resp.Diagnostics.Append(resp.State.Set(context.WithoutCancel(ctx), &plan)...)
		setIdentity(context.WithoutCancel(ctx), resp.Identity, plan.ID, &resp.Diagnostics)
	}
	h, server, err := r.create(ctx, r.besideSnapshot(ctx, plan.Host, spec), spec)
	if err != nil && h != nil {
		// Nobody knows whether the host has it: keep track, the next apply clears it up.
		save(&reflejov1.Server{Spec: spec, Host: h.name, State: "creating"})
	}
	if err != nil {
		resp.Diagnostics.Append(failed("Server "+spec.GetName()+" could not be created", err))
		return
	}
	save(server)
	last, err := h.settle(ctx, server)
	if creationFailed(last) {
		r.undo(context.WithoutCancel(ctx), h, last, resp)
		return
	}
	if err != nil {
		resp.Diagnostics.Append(notSettled(err, timeout, last, "is not ready yet", "The resource is created; the host carries on, and the next plan or apply shows how it went."))
	}
	save(last)
}

// creationFailed reports whether the server will never be made: the host may still be
// clearing away what it had made when it says so.
func creationFailed(s *reflejov1.Server) bool {
	op := s.GetOperation()
	return s.GetState() == "failed" || (op.GetKind() == "create" && op.GetError() != "")
}

// create sends the request until a host took it. With a host in the error case, that host
// may or may not have taken it.
func (r *serverResource) create(ctx context.Context, name types.String, spec *reflejov1.ServerSpec) (*host, *reflejov1.Server, error) {
	if isSet(name) {
		h, err := r.hosts.get(name.ValueString())
		if err != nil {
			return nil, nil, &fault.Error{Kind: fault.Invalid, Field: "host", Err: err}
		}
		return h.create(ctx, spec)
	}
	refused := map[string]string{}
	for {
		h, placed, err := r.hosts.choose(ctx, spec, refused)
		if err != nil {
			return nil, nil, err
		}
		maybe, server, err := h.create(ctx, spec)
		placed(err == nil || maybe != nil)
		if !fault.Is(err, fault.Exhausted) || maybe != nil {
			return maybe, server, err
		}
		refused[h.name] = err.Error()
	}
}

// undo takes a server whose creation failed away again and reports why it failed.
func (r *serverResource) undo(ctx context.Context, h *host, s *reflejov1.Server, resp *resource.CreateResponse) {
	resp.Diagnostics.Append(failed("Server "+s.GetSpec().GetName()+" could not be created", operationError(s)))
	ctx, cancel := context.WithTimeout(ctx, deleteTimeout)
	defer cancel()
	if err := h.remove(ctx, s); err != nil {
		resp.Diagnostics.AddWarning("What is left of server "+s.GetSpec().GetName()+" could not be removed",
			sentence(err.Error())+"\n\nIt is kept in the state as tainted; the next apply removes it and creates the server again.")
		return
	}
	resp.State.RemoveResource(ctx)
}

// Read refreshes the state. A host that does not answer leaves it as it was.
func (r *serverResource) Read(ctx context.Context, req resource.ReadRequest, resp *resource.ReadResponse) {
	var state serverModel
	resp.Diagnostics.Append(req.State.Get(ctx, &state)...)
	if resp.Diagnostics.HasError() {
		return
	}
	setIdentity(ctx, resp.Identity, state.ID, &resp.Diagnostics)
	resp.Diagnostics.Append(r.hosts.returnedHosts(ctx)...)
	h, server, err := r.hosts.locateServer(ctx, state.ID.ValueString(), state.Host.ValueString())
	switch {
	case fault.Is(err, fault.NotFound):
		resp.State.RemoveResource(ctx)
		return
	case errors.Is(err, errLost): // the plan says what becomes of it
		state.Host = types.StringValue(r.hosts.lostHost(state.Host.ValueString()))
		resp.Diagnostics.Append(resp.State.Set(ctx, &state)...)
		return
	case err != nil:
		resp.Diagnostics.Append(stale(fmt.Sprintf("Server %s", state.Name.ValueString()), state.Host.ValueString(), err))
		return
	}
	resp.Diagnostics.Append(state.refresh(ctx, server, h.knowsNetwork(ctx))...)
	resp.Diagnostics.Append(resp.State.Set(ctx, &state)...)
}

// knowsNetwork is for refresh: whether a name and an id mean one network of the host.
func (h *host) knowsNetwork(ctx context.Context) func(ref, id string) bool {
	return func(ref, id string) bool { return h.sameNetwork(ctx, ref, id) }
}

// Update brings the server to its host, then sends the whole wanted spec; the host changes
// what differs, live.
func (r *serverResource) Update(ctx context.Context, req resource.UpdateRequest, resp *resource.UpdateResponse) {
	var plan, state serverModel
	var configured types.String
	resp.Diagnostics.Append(req.Plan.Get(ctx, &plan)...)
	resp.Diagnostics.Append(req.State.Get(ctx, &state)...)
	resp.Diagnostics.Append(req.Config.GetAttribute(ctx, path.Root("host"), &configured)...)
	timeout, diags := plan.Timeouts.Update(ctx, updateTimeout)
	resp.Diagnostics.Append(diags...)
	if resp.Diagnostics.HasError() {
		return
	}
	spec, diags := plan.spec(ctx)
	resp.Diagnostics.Append(diags...)
	if resp.Diagnostics.HasError() {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	what := "Server " + plan.Name.ValueString() + " could not be changed"
	h, server, ready, err := r.arrive(ctx, plan, state, configured.IsNull(), spec)
	if err == nil && !ready {
		r.keep(ctx, h, server, state, resp)      // where it is counts whatever becomes of the rest
		spec.Image = server.GetSpec().GetImage() // as the agent has it: create-only
		server, err = h.update(ctx, spec)
	}
	if err != nil {
		r.keep(ctx, h, server, state, resp)
		resp.Diagnostics.Append(unfinished(ctx, what, err, timeout, server))
		return
	}
	last, err := h.settle(ctx, server)
	if op := last.GetOperation(); err == nil && op.GetError() != "" {
		resp.Diagnostics.Append(failed(what, operationError(last)))
		r.keep(ctx, h, last, state, resp)
		return
	}
	if err != nil {
		resp.Diagnostics.Append(notSettled(err, timeout, last, "has not changed yet", "The host has the new definition and carries on; the next plan or apply shows how it went."))
	}
	plan.complete(last)
	if plan.Host.IsUnknown() {
		plan.Host = types.StringValue(h.name)
	}
	resp.Diagnostics.Append(resp.State.Set(context.WithoutCancel(ctx), &plan)...)
	setIdentity(context.WithoutCancel(ctx), resp.Identity, plan.ID, &resp.Diagnostics)
}

// keep writes the server into the state as it is, for an update that does not come to its end.
func (r *serverResource) keep(ctx context.Context, h *host, server *reflejov1.Server, state serverModel, resp *resource.UpdateResponse) {
	if h == nil || server == nil {
		return
	}
	ctx = context.WithoutCancel(ctx)
	resp.Diagnostics.Append(state.refresh(ctx, server, h.knowsNetwork(ctx))...)
	state.Host = types.StringValue(h.name)
	resp.Diagnostics.Append(resp.State.Set(ctx, &state)...)
}

// unfinished is the error of an update that was refused, or that ended before it was over.
func unfinished(ctx context.Context, what string, err error, timeout time.Duration, s *reflejov1.Server) diag.Diagnostic {
	if op := s.GetOperation(); ctx.Err() != nil && op.GetKind() != "" {
		return diag.NewErrorDiagnostic(what+" in time", fmt.Sprintf("%s Last seen: %s, %s at step %d of %d (%s).\n\nThe hosts carry on; apply again to see it through.",
			waited(err, timeout), s.GetState(), op.GetKind(), op.GetStepIndex(), op.GetSteps(), op.GetStep()))
	}
	return failed(what, err)
}

// complete fills in what the plan left open, and only that: a value that the plan knew
// must come out as it went in, what has changed meanwhile is for the next refresh.
func (m *serverModel) complete(s *reflejov1.Server) {
	planned := *m
	m.observe(s)
	m.ID, m.Host, m.CreatedAt = planned.ID, planned.Host, planned.CreatedAt
	if !planned.Addresses.IsUnknown() {
		m.Addresses, m.MAC = planned.Addresses, planned.MAC
	}
}

// Delete removes the server: a clean stop within its timeout, then everything of it.
func (r *serverResource) Delete(ctx context.Context, req resource.DeleteRequest, resp *resource.DeleteResponse) {
	var state serverModel
	resp.Diagnostics.Append(req.State.Get(ctx, &state)...)
	timeout, diags := state.Timeouts.Delete(ctx, deleteTimeout)
	resp.Diagnostics.Append(diags...)
	if resp.Diagnostics.HasError() {
		return
	}
	name := state.Name.ValueString()
	if state.DeletionProtection.ValueBool() {
		resp.Diagnostics.Append(protectedError(name))
		return
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	h, server, err := r.hosts.locateServer(ctx, state.ID.ValueString(), state.Host.ValueString())
	if err == nil {
		err = h.remove(ctx, server)
	}
	switch {
	case err == nil || fault.Is(err, fault.NotFound):
	case errors.Is(err, errLost):
		resp.Diagnostics.AddWarning("Server "+name+" was forgotten", sentence(err.Error())+"\n\nIt is out of the state. Its backups, if it has any, stay.")
	case unreachable(err) && r.hosts.forget && ctx.Err() == nil:
		resp.Diagnostics.AddWarning("Server "+name+" was forgotten",
			sentence(err.Error())+"\n\nThe provider's forget_unreachable is set, so it is out of the state. If host "+state.Host.ValueString()+" comes back the server is still there.")
	case ctx.Err() != nil:
		resp.Diagnostics.AddError("Server "+name+" is not gone yet",
			fmt.Sprintf("%s It was being deleted; the host carries on. Apply again to see it gone.", waited(err, timeout)))
	default:
		resp.Diagnostics.Append(failed("Server "+name+" could not be destroyed", err))
	}
}
