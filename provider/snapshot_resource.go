package provider

import (
	"context"
	"errors"
	"fmt"

	"github.com/google/uuid"
	"github.com/hashicorp/terraform-plugin-framework-timeouts/resource/timeouts"
	"github.com/hashicorp/terraform-plugin-framework-validators/mapvalidator"
	"github.com/hashicorp/terraform-plugin-framework-validators/stringvalidator"
	"github.com/hashicorp/terraform-plugin-framework/attr"
	"github.com/hashicorp/terraform-plugin-framework/list"
	"github.com/hashicorp/terraform-plugin-framework/resource"
	"github.com/hashicorp/terraform-plugin-framework/resource/schema"
	"github.com/hashicorp/terraform-plugin-framework/resource/schema/int64planmodifier"
	"github.com/hashicorp/terraform-plugin-framework/resource/schema/mapdefault"
	"github.com/hashicorp/terraform-plugin-framework/resource/schema/mapplanmodifier"
	"github.com/hashicorp/terraform-plugin-framework/resource/schema/planmodifier"
	"github.com/hashicorp/terraform-plugin-framework/resource/schema/stringdefault"
	"github.com/hashicorp/terraform-plugin-framework/resource/schema/stringplanmodifier"
	"github.com/hashicorp/terraform-plugin-framework/schema/validator"
	"github.com/hashicorp/terraform-plugin-framework/types"

	reflejov1 "github.com/reflejo/terraform-provider-reflejo/agent/api/reflejo/v1"
	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
)

// snapshotResource is reflejo_snapshot.
type snapshotResource struct{ hosts *hosts }

var (
	_ resource.ResourceWithConfigure      = (*snapshotResource)(nil)
	_ resource.ResourceWithIdentity       = (*snapshotResource)(nil)
	_ resource.ResourceWithImportState    = (*snapshotResource)(nil)
	_ resource.ResourceWithModifyPlan     = (*snapshotResource)(nil)
	_ resource.ResourceWithValidateConfig = (*snapshotResource)(nil)
	_ list.ListResourceWithConfigure      = (*snapshotResource)(nil)
)

// snapshotModel is a reflejo_snapshot in HCL.
type snapshotModel struct {
	ID          types.String   `tfsdk:"id"`
	ServerID    types.String   `tfsdk:"server_id"`
	Name        types.String   `tfsdk:"name"`
	Description types.String   `tfsdk:"description"`
	Labels      types.Map      `tfsdk:"labels"`
	Consistency types.String   `tfsdk:"consistency"`
	Triggers    types.Map      `tfsdk:"triggers"`
	Timeouts    timeouts.Value `tfsdk:"timeouts"`

	Host          types.String `tfsdk:"host"`
	State         types.String `tfsdk:"state"`
	ServerState   types.String `tfsdk:"server_state"`
	PauseMS       types.Int64  `tfsdk:"pause_ms"`
	Size          types.Int64  `tfsdk:"size"`
	ExclusiveSize types.Int64  `tfsdk:"exclusive_size"`
	Checksum      types.String `tfsdk:"checksum"`
	CreatedAt     types.String `tfsdk:"created_at"`
}

func (r *snapshotResource) Metadata(_ context.Context, req resource.MetadataRequest, resp *resource.MetadataResponse) {
	resp.TypeName = req.ProviderTypeName + "_snapshot"
}

func (r *snapshotResource) Configure(_ context.Context, req resource.ConfigureRequest, resp *resource.ConfigureResponse) {
	r.hosts = configured(req.ProviderData, &resp.Diagnostics)
}

func (r *snapshotResource) IdentitySchema(_ context.Context, _ resource.IdentitySchemaRequest, resp *resource.IdentitySchemaResponse) {
	resp.IdentitySchema = idIdentity("UUID of the snapshot.")
}

// labelsSchema is words of the user's own.
func labelsSchema(what string) schema.Attribute {
	return schema.MapAttribute{
		ElementType: types.StringType, Optional: true, Computed: true, MarkdownDescription: what,
		Default: mapdefault.StaticValue(types.MapValueMust(types.StringType, map[string]attr.Value{})),
		Validators: []validator.Map{
			mapvalidator.SizeAtMost(64), mapvalidator.KeysAre(labelKeyValidator()),
			mapvalidator.ValueStringsAre(stringvalidator.LengthAtMost(255)), mapvalidator.NoNullValues(),
		},
	}
}

func (r *snapshotResource) Schema(ctx context.Context, _ resource.SchemaRequest, resp *resource.SchemaResponse) {
	stable := []planmodifier.String{stringplanmodifier.UseStateForUnknown()}
	resp.Schema = schema.Schema{
		MarkdownDescription: "A snapshot: a read-only copy of a server's disk as it is at one moment, on the server's host. The server goes on meanwhile; it is held up for moments only. " +
			"A snapshot takes what the server changes afterwards, and outlives its server unless that says otherwise (`on_destroy.keep_snapshots`).\n\n" +
			"Snapshots that come and go by a schedule are the server's `snapshot_policy`, not resources.",
		Attributes: map[string]schema.Attribute{
			"id": schema.StringAttribute{Computed: true, PlanModifiers: stable, MarkdownDescription: "UUID, made before the snapshot is."},
			"server_id": schema.StringAttribute{
				Required: true, Validators: []validator.String{idValidator()}, PlanModifiers: []planmodifier.String{stringplanmodifier.RequiresReplace()},
				MarkdownDescription: "The server: `reflejo_virtual_server.db.id`. Another server is another snapshot. The server may be destroyed later.",
			},
			"name": schema.StringAttribute{
				Optional: true, Computed: true, Validators: []validator.String{nameValidator()}, PlanModifiers: stable,
				MarkdownDescription: "Name: a DNS label. Changes in place. If left out it is made of the time.",
			},
			"description": schema.StringAttribute{
				Optional: true, Validators: []validator.String{stringvalidator.LengthBetween(1, 1024)}, MarkdownDescription: "Text of your own. Changes in place.",
			},
			"labels": labelsSchema("Words of your own, for `reflejo_snapshots` and for operators. Change in place."),
			"consistency": schema.StringAttribute{
				Optional: true, Computed: true, Default: stringdefault.StaticString("filesystem"),
				Validators:    []validator.String{stringvalidator.OneOf("filesystem", "crash")},
				PlanModifiers: []planmodifier.String{stringplanmodifier.RequiresReplace()},
				MarkdownDescription: "`filesystem`: writes are finished and held back for the moment, so the file system needs no repair; `crash`: as after a power cut, and nobody waits. Default: `filesystem`. " +
					"Another one is another snapshot.",
			},
			"triggers": schema.MapAttribute{
				ElementType: types.StringType, Optional: true,
				MarkdownDescription: "Any values: a change takes a new snapshot and deletes this one (`create_before_destroy` keeps the old one until the new one is there). " +
					"Known to Terraform alone, so after an import they show as added and replace nothing.",
				Validators: []validator.Map{mapvalidator.SizeAtLeast(1), mapvalidator.NoNullValues()},
				PlanModifiers: []planmodifier.Map{mapplanmodifier.RequiresReplaceIf(func(_ context.Context, req planmodifier.MapRequest, resp *mapplanmodifier.RequiresReplaceIfFuncResponse) {
					resp.RequiresReplace = !req.StateValue.IsNull() && !req.PlanValue.IsNull()
				}, "A changed value takes a new snapshot.", "A changed value takes a new snapshot.")},
			},
			"timeouts": timeouts.Attributes(ctx, timeouts.Opts{
				Create: true, Delete: true,
				CreateDescription: "How long to wait for the snapshot, such as `10m` (the default). When it is over the apply succeeds with a warning and the host carries on.",
				DeleteDescription: "How long to wait until it is gone, such as `5m` (the default).",
			}),

			"host":           schema.StringAttribute{Computed: true, MarkdownDescription: "The host it is on. It changes if the server is moved with its snapshots."},
			"state":          schema.StringAttribute{Computed: true, MarkdownDescription: "What it is now: `creating`, `ready`, `failed` or `deleting`."},
			"server_state":   schema.StringAttribute{Computed: true, PlanModifiers: stable, MarkdownDescription: "What the server was at that moment: `running`, `stopped` or `suspended`."},
			"pause_ms":       schema.Int64Attribute{Computed: true, PlanModifiers: []planmodifier.Int64{int64planmodifier.UseStateForUnknown()}, MarkdownDescription: "For how long the server's writers were held up at once, milliseconds."},
			"size":           schema.Int64Attribute{Computed: true, PlanModifiers: []planmodifier.Int64{int64planmodifier.UseStateForUnknown()}, MarkdownDescription: "Size of the disk, bytes."},
			"exclusive_size": schema.Int64Attribute{Computed: true, MarkdownDescription: "Bytes of the pool that deleting it would free, when it was last read."},
			"checksum":       schema.StringAttribute{Computed: true, MarkdownDescription: "`sha256:…` of what the disk holds: equal for equal contents, on every host and in every backup. Null until it has been computed."},
			"created_at":     schema.StringAttribute{Computed: true, PlanModifiers: stable, MarkdownDescription: "The moment that it shows, RFC 3339."},
		},
	}
	describeTimeouts(resp.Schema.Attributes)
}

// ValidateConfig finds timeouts that are none.
func (r *snapshotResource) ValidateConfig(ctx context.Context, req resource.ValidateConfigRequest, resp *resource.ValidateConfigResponse) {
	timeoutsIn(ctx, req, resp)
}

// ModifyPlan keeps a plan that changes nothing quiet.
func (r *snapshotResource) ModifyPlan(ctx context.Context, req resource.ModifyPlanRequest, resp *resource.ModifyPlanResponse) {
	quietly(req, resp)
}

// quietly makes the plan of a resource that is to stay as it is equal to its state.
func quietly(req resource.ModifyPlanRequest, resp *resource.ModifyPlanResponse) {
	if req.Plan.Raw.IsNull() || req.State.Raw.IsNull() || len(resp.RequiresReplace) > 0 {
		return
	}
	described := resp.Plan.Schema.(schema.Schema)
	if err := quiet(described.Attributes, &resp.Plan, req.State); err != nil {
		resp.Diagnostics.AddError("Compare plan and state", err.Error())
	}
}

// observe fills in what the agent decided and measures.
func (m *snapshotModel) observe(s *reflejov1.Snapshot) {
	m.ID, m.Host, m.State = types.StringValue(s.GetId()), types.StringValue(s.GetHost()), types.StringValue(s.GetState())
	m.ServerState, m.PauseMS = optionalString(s.GetServerState()), types.Int64Value(s.GetPause().AsDuration().Milliseconds())
	m.Size, m.ExclusiveSize = types.Int64Value(s.GetSize()), types.Int64Value(s.GetExclusiveSize())
	m.Checksum, m.CreatedAt = optionalString(s.GetChecksum()), timeValue(s.GetCreatedAt())
	if m.Name.IsUnknown() {
		m.Name = optionalString(s.GetName())
	}
}

// refresh makes the model say what the agent has; triggers and timeouts only Terraform knows.
func (m *snapshotModel) refresh(s *reflejov1.Snapshot) {
	m.observe(s)
	m.ServerID, m.Name, m.Description = types.StringValue(s.GetServerId()), types.StringValue(s.GetName()), optionalString(s.GetDescription())
	m.Labels, m.Consistency = stringMapValue(s.GetLabels()), types.StringValue(orText(s.GetConsistency(), "filesystem"))
}

// Create takes the snapshot on the host that has the server.
func (r *snapshotResource) Create(ctx context.Context, req resource.CreateRequest, resp *resource.CreateResponse) {
	var plan snapshotModel
	resp.Diagnostics.Append(req.Plan.Get(ctx, &plan)...)
	timeout, diags := plan.Timeouts.Create(ctx, createTimeout)
	resp.Diagnostics.Append(diags...)
	if resp.Diagnostics.HasError() {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	what := "Snapshot " + plan.Name.ValueString() + " could not be taken"
	h, _, _, err := r.hosts.findServer(ctx, reference{ref: plan.ServerID.ValueString()})
	if err != nil {
		resp.Diagnostics.Append(failed(what, &fault.Error{Kind: fault.KindOf(err), Field: "server_id", Err: err}))
		return
	}
	plan.ID = types.StringValue(uuid.NewString())
	save := func(s *reflejov1.Snapshot) {
		plan.observe(s)
		resp.Diagnostics.Append(resp.State.Set(context.WithoutCancel(ctx), &plan)...)
		setIdentity(context.WithoutCancel(ctx), resp.Identity, plan.ID, &resp.Diagnostics)
	}
	request := &reflejov1.CreateSnapshotRequest{
		Id: plan.ID.ValueString(), Server: plan.ServerID.ValueString(), Name: plan.Name.ValueString(), Description: plan.Description.ValueString(),
		Labels: stringMap(plan.Labels), Consistency: plan.Consistency.ValueString(),
	}
	created, ambiguous, err := persist(ctx, h, h.Snapshots.CreateSnapshot, request, 6)
	if err != nil {
		if ambiguous { // nobody knows whether the host has it: keep track, the next apply clears it up
			save(&reflejov1.Snapshot{Id: request.GetId(), Host: h.name, State: "creating"})
		}
		resp.Diagnostics.Append(failed(what, err))
		return
	}
	save(created.GetSnapshot())
	last, err := h.settleSnapshot(ctx, created.GetSnapshot())
	if op := last.GetOperation(); last.GetState() == "failed" {
		resp.Diagnostics.Append(failed(what, operationFault(op)))
		if err := h.removeSnapshot(context.WithoutCancel(ctx), last); err == nil {
			resp.State.RemoveResource(context.WithoutCancel(ctx))
		}
		return
	}
	if err != nil {
		resp.Diagnostics.AddWarning("Snapshot "+last.GetName()+" is not complete yet", fmt.Sprintf(
			"%s Last seen: %s.\n\nThe resource is created; the host carries on, and the next plan or apply shows how it went.", waited(err, timeout), last.GetState()))
	}
	save(last)
}

// Read refreshes the state, from the host that the snapshot is on now.
func (r *snapshotResource) Read(ctx context.Context, req resource.ReadRequest, resp *resource.ReadResponse) {
	var state snapshotModel
	resp.Diagnostics.Append(req.State.Get(ctx, &state)...)
	if resp.Diagnostics.HasError() {
		return
	}
	setIdentity(ctx, resp.Identity, state.ID, &resp.Diagnostics)
	_, s, err := locate(ctx, r.hosts, state.Host.ValueString(), getSnapshot(state.ID.ValueString()))
	switch {
	case fault.Is(err, fault.NotFound):
		resp.State.RemoveResource(ctx)
		return
	case errors.Is(err, errLost):
		resp.Diagnostics.AddWarning("Snapshot "+state.Name.ValueString()+" is lost with its host", sentence(err.Error())+"\n\nThe last known state is kept; a destroy takes it out of the state.")
		return
	case err != nil:
		resp.Diagnostics.Append(stale("Snapshot "+state.Name.ValueString(), state.Host.ValueString(), err))
		return
	}
	state.refresh(s)
	resp.Diagnostics.Append(resp.State.Set(ctx, &state)...)
}

// Update changes what is beside the copy: name, description and labels.
func (r *snapshotResource) Update(ctx context.Context, req resource.UpdateRequest, resp *resource.UpdateResponse) {
	var plan, state snapshotModel
	resp.Diagnostics.Append(req.Plan.Get(ctx, &plan)...)
	resp.Diagnostics.Append(req.State.Get(ctx, &state)...)
	if resp.Diagnostics.HasError() {
		return
	}
	h, s, err := locate(ctx, r.hosts, state.Host.ValueString(), getSnapshot(state.ID.ValueString()))
	if err == nil && (!plan.Name.Equal(state.Name) || !plan.Description.Equal(state.Description) || !plan.Labels.Equal(state.Labels)) {
		var updated *reflejov1.UpdateSnapshotResponse
		updated, _, err = persist(ctx, h, h.Snapshots.UpdateSnapshot, &reflejov1.UpdateSnapshotRequest{
			Id: state.ID.ValueString(), Name: plan.Name.ValueString(), Description: plan.Description.ValueString(), Labels: stringMap(plan.Labels),
		}, 6)
		s = updated.GetSnapshot()
	}
	if err != nil {
		resp.Diagnostics.Append(failed("Snapshot "+state.Name.ValueString()+" could not be changed", err))
		return
	}
	planned := plan
	plan.observe(s)
	plan.ServerState, plan.PauseMS, plan.Size, plan.CreatedAt = planned.ServerState, planned.PauseMS, planned.Size, planned.CreatedAt
	resp.Diagnostics.Append(resp.State.Set(ctx, &plan)...)
	setIdentity(ctx, resp.Identity, plan.ID, &resp.Diagnostics)
}

// Delete deletes the snapshot.
func (r *snapshotResource) Delete(ctx context.Context, req resource.DeleteRequest, resp *resource.DeleteResponse) {
	var state snapshotModel
	resp.Diagnostics.Append(req.State.Get(ctx, &state)...)
	timeout, diags := state.Timeouts.Delete(ctx, deleteTimeout)
	resp.Diagnostics.Append(diags...)
	if resp.Diagnostics.HasError() {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	h, s, err := locate(ctx, r.hosts, state.Host.ValueString(), getSnapshot(state.ID.ValueString()))
	if err == nil {
		err = h.removeSnapshot(ctx, s)
	}
	resp.Diagnostics.Append(r.hosts.destroyed(ctx, "Snapshot "+state.Name.ValueString(), state.Host.ValueString(), err)...)
}

// settleSnapshot waits until nothing is under way on the snapshot and returns how it was last seen.
func (h *host) settleSnapshot(ctx context.Context, s *reflejov1.Snapshot) (*reflejov1.Snapshot, error) {
	last := &reflejov1.WatchSnapshotResponse{Snapshot: s}
	err := follow(ctx, h, h.Snapshots.WatchSnapshot, &reflejov1.WatchSnapshotRequest{Id: s.GetId()}, func(seen *reflejov1.WatchSnapshotResponse) bool {
		if last.Gone = seen.GetGone(); seen.GetSnapshot() != nil {
			last.Snapshot = seen.GetSnapshot()
		}
		return last.GetGone() || operationEnded(last.GetSnapshot().GetOperation())
	})
	if err == nil && last.GetGone() {
		err = fault.New(fault.NotFound, "snapshot %s was deleted by someone else", s.GetName())
	}
	return last.GetSnapshot(), err
}

// removeSnapshot deletes the snapshot and waits until it is gone.
func (h *host) removeSnapshot(ctx context.Context, s *reflejov1.Snapshot) error {
	_, _, err := persist(ctx, h, h.Snapshots.DeleteSnapshot, &reflejov1.DeleteSnapshotRequest{Id: s.GetId()}, 6)
	if err != nil {
		return err
	}
	last := s
	err = follow(ctx, h, h.Snapshots.WatchSnapshot, &reflejov1.WatchSnapshotRequest{Id: s.GetId()}, func(seen *reflejov1.WatchSnapshotResponse) bool {
		if seen.GetSnapshot() != nil {
			last = seen.GetSnapshot()
		}
		return seen.GetGone() || last.GetOperation().GetDone()
	})
	if op := last.GetOperation(); err == nil && op.GetDone() && op.GetError() != "" {
		return operationFault(op)
	}
	return err
}
