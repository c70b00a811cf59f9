package provider

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/google/uuid"
	"github.com/hashicorp/terraform-plugin-framework-timeouts/resource/timeouts"
	"github.com/hashicorp/terraform-plugin-framework/list"
	"github.com/hashicorp/terraform-plugin-framework/resource"
	"github.com/hashicorp/terraform-plugin-framework/resource/schema"
	"github.com/hashicorp/terraform-plugin-framework/resource/schema/boolplanmodifier"
	"github.com/hashicorp/terraform-plugin-framework/resource/schema/int64planmodifier"
	"github.com/hashicorp/terraform-plugin-framework/resource/schema/planmodifier"
	"github.com/hashicorp/terraform-plugin-framework/resource/schema/stringplanmodifier"
	"github.com/hashicorp/terraform-plugin-framework/schema/validator"
	"github.com/hashicorp/terraform-plugin-framework/types"

	reflejov1 "github.com/reflejo/terraform-provider-reflejo/agent/api/reflejo/v1"
	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
)

// backupTimeout is how long to wait for a backup by default: all of a disk may have to travel.
const backupTimeout = 6 * 60 * 60 * 1e9

// backupResource is reflejo_backup.
type backupResource struct{ hosts *hosts }

var (
	_ resource.ResourceWithConfigure      = (*backupResource)(nil)
	_ resource.ResourceWithIdentity       = (*backupResource)(nil)
	_ resource.ResourceWithImportState    = (*backupResource)(nil)
	_ resource.ResourceWithModifyPlan     = (*backupResource)(nil)
	_ resource.ResourceWithValidateConfig = (*backupResource)(nil)
	_ list.ListResourceWithConfigure      = (*backupResource)(nil)
)

// backupModel is a reflejo_backup in HCL.
type backupModel struct {
	ID          types.String   `tfsdk:"id"`
	SnapshotID  types.String   `tfsdk:"snapshot_id"`
	Target      types.String   `tfsdk:"target"`
	Name        types.String   `tfsdk:"name"`
	Incremental types.Bool     `tfsdk:"incremental"`
	Timeouts    timeouts.Value `tfsdk:"timeouts"`

	Host      types.String `tfsdk:"host"`
	ServerID  types.String `tfsdk:"server_id"`
	State     types.String `tfsdk:"state"`
	ParentID  types.String `tfsdk:"parent_id"`
	Size      types.Int64  `tfsdk:"size"`
	DiskSize  types.Int64  `tfsdk:"disk_size"`
	Checksum  types.String `tfsdk:"checksum"`
	CreatedAt types.String `tfsdk:"created_at"`
}

func (r *backupResource) Metadata(_ context.Context, req resource.MetadataRequest, resp *resource.MetadataResponse) {
	resp.TypeName = req.ProviderTypeName + "_backup"
}

func (r *backupResource) Configure(_ context.Context, req resource.ConfigureRequest, resp *resource.ConfigureResponse) {
	r.hosts = configured(req.ProviderData, &resp.Diagnostics)
}

func (r *backupResource) IdentitySchema(_ context.Context, _ resource.IdentitySchemaRequest, resp *resource.IdentitySchemaResponse) {
	resp.IdentitySchema = idIdentity("UUID of the backup.")
}

func (r *backupResource) Schema(ctx context.Context, _ resource.SchemaRequest, resp *resource.SchemaResponse) {
	stable, replaced := stringplanmodifier.UseStateForUnknown(), stringplanmodifier.RequiresReplace()
	resp.Schema = schema.Schema{
		MarkdownDescription: "A backup: a snapshot as one self-contained file away from the disk pool, checksummed throughout. It can be verified, and imported as a snapshot on any host (`reflejo backup import`), " +
			"long after its server and its host are gone. The snapshot may be deleted once the backup is complete.\n\n" +
			"Backups that come and go by a schedule are the server's `backup_policy`, not resources.",
		Attributes: map[string]schema.Attribute{
			"id": schema.StringAttribute{Computed: true, PlanModifiers: []planmodifier.String{stable}, MarkdownDescription: "UUID, made before the backup is."},
			"snapshot_id": schema.StringAttribute{
				Required: true, Validators: []validator.String{idValidator()}, PlanModifiers: []planmodifier.String{replaced},
				MarkdownDescription: "The snapshot: `reflejo_snapshot.before.id`. Another one is another backup.",
			},
			"target": schema.StringAttribute{
				Required: true, Validators: []validator.String{targetValidator()}, PlanModifiers: []planmodifier.String{replaced},
				MarkdownDescription: targetWords + " Another one is another backup.",
			},
			"name": schema.StringAttribute{
				Optional: true, Computed: true, Validators: []validator.String{nameValidator()}, PlanModifiers: []planmodifier.String{stable, replaced},
				MarkdownDescription: "Name: a DNS label. If left out it is the snapshot's. It is written into the file, so another name is another backup.",
			},
			"incremental": schema.BoolAttribute{
				Optional: true, Computed: true, PlanModifiers: []planmodifier.Bool{boolplanmodifier.UseStateForUnknown(), asMade{}},
				MarkdownDescription: "Write only what changed since the newest backup of the server at the target (`parent_id`), if there is one to build on. That one can't be deleted before this one. " +
					"Default: `false`. Read at creation only; afterwards it says whether the backup has a parent.",
			},
			"timeouts": timeouts.Attributes(ctx, timeouts.Opts{
				Create: true, Delete: true,
				CreateDescription: "How long to wait for the backup, such as `6h` (the default). When it is over the apply succeeds with a warning and the host carries on.",
				DeleteDescription: "How long to wait until it is gone, such as `5m` (the default).",
			}),

			"host":       schema.StringAttribute{Computed: true, PlanModifiers: []planmodifier.String{stable}, MarkdownDescription: "The host whose agent made it."},
			"server_id":  schema.StringAttribute{Computed: true, PlanModifiers: []planmodifier.String{stable}, MarkdownDescription: "The server whose disk it is."},
			"state":      schema.StringAttribute{Computed: true, MarkdownDescription: "What it is now: `writing`, `ready`, `failed` or `deleting`."},
			"parent_id":  schema.StringAttribute{Computed: true, PlanModifiers: []planmodifier.String{stable}, MarkdownDescription: "The backup that it builds on; null for a full one."},
			"size":       schema.Int64Attribute{Computed: true, PlanModifiers: []planmodifier.Int64{int64planmodifier.UseStateForUnknown()}, MarkdownDescription: "Size of the file, bytes."},
			"disk_size":  schema.Int64Attribute{Computed: true, PlanModifiers: []planmodifier.Int64{int64planmodifier.UseStateForUnknown()}, MarkdownDescription: "Size of the disk in it, bytes."},
			"checksum":   schema.StringAttribute{Computed: true, PlanModifiers: []planmodifier.String{stable}, MarkdownDescription: "`sha256:…` of what the disk holds, as the snapshot's."},
			"created_at": schema.StringAttribute{Computed: true, PlanModifiers: []planmodifier.String{stable}, MarkdownDescription: "The moment that it shows, RFC 3339."},
		},
	}
	describeTimeouts(resp.Schema.Attributes)
}

// asMade keeps what something was made with, whatever the configuration says later.
type asMade struct{}

func (asMade) Description(context.Context) string               { return "Read at creation only." }
func (m asMade) MarkdownDescription(ctx context.Context) string { return m.Description(ctx) }

func (asMade) PlanModifyBool(_ context.Context, req planmodifier.BoolRequest, resp *planmodifier.BoolResponse) {
	if !req.StateValue.IsNull() {
		resp.PlanValue = req.StateValue
	}
}

// ValidateConfig finds timeouts that are none.
func (r *backupResource) ValidateConfig(ctx context.Context, req resource.ValidateConfigRequest, resp *resource.ValidateConfigResponse) {
	timeoutsIn(ctx, req, resp)
}

// ModifyPlan keeps a plan that changes nothing quiet.
func (r *backupResource) ModifyPlan(ctx context.Context, req resource.ModifyPlanRequest, resp *resource.ModifyPlanResponse) {
	quietly(req, resp)
}

// refresh makes the model say what is there; timeouts only Terraform knows.
func (m *backupModel) refresh(b *reflejov1.Backup) {
	m.ID, m.SnapshotID, m.Target, m.Name = types.StringValue(b.GetId()), types.StringValue(b.GetSnapshotId()), types.StringValue(b.GetTarget()), types.StringValue(b.GetName())
	m.Host, m.ServerID, m.State = types.StringValue(b.GetHost()), optionalString(b.GetServerId()), types.StringValue(b.GetState())
	m.ParentID, m.Incremental = optionalString(b.GetParentId()), types.BoolValue(b.GetParentId() != "")
	m.Size, m.DiskSize = types.Int64Value(b.GetSize()), types.Int64Value(b.GetDiskSize())
	m.Checksum, m.CreatedAt = optionalString(b.GetChecksum()), timeValue(b.GetCreatedAt())
}

// Create makes the backup on the host that has the snapshot.
func (r *backupResource) Create(ctx context.Context, req resource.CreateRequest, resp *resource.CreateResponse) {
	var plan backupModel
	resp.Diagnostics.Append(req.Plan.Get(ctx, &plan)...)
	timeout, diags := plan.Timeouts.Create(ctx, backupTimeout)
	resp.Diagnostics.Append(diags...)
	if resp.Diagnostics.HasError() {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	what := "Backup of snapshot " + plan.SnapshotID.ValueString() + " could not be made"
	found, _, err := find(ctx, r.hosts, reference{ref: plan.SnapshotID.ValueString()}, "snapshot", getSnapshot(plan.SnapshotID.ValueString()))
	if err != nil {
		resp.Diagnostics.Append(failed(what, &fault.Error{Kind: fault.KindOf(err), Field: "snapshot_id", Err: err}))
		return
	}
	h, asked := found[0].host, plan.Incremental
	request := &reflejov1.CreateBackupRequest{
		Id: uuid.NewString(), Snapshot: plan.SnapshotID.ValueString(), Target: plan.Target.ValueString(), Name: plan.Name.ValueString(), Incremental: plan.Incremental.ValueBool(),
	}
	save := func(b *reflejov1.Backup) {
		name := plan.Name
		plan.refresh(b)
		if isSet(name) {
			plan.Name = name
		}
		if isSet(asked) { // what was planned comes out as it was; the next refresh says what became of it
			plan.Incremental = asked
		}
		plan.SnapshotID, plan.Target = types.StringValue(request.GetSnapshot()), types.StringValue(request.GetTarget())
		resp.Diagnostics.Append(resp.State.Set(context.WithoutCancel(ctx), &plan)...)
		setIdentity(context.WithoutCancel(ctx), resp.Identity, plan.ID, &resp.Diagnostics)
	}
	created, ambiguous, err := persist(ctx, h, h.Backups.CreateBackup, request, 6)
	if err != nil {
		if ambiguous { // nobody knows whether the host has it: keep track, the next apply clears it up
			save(&reflejov1.Backup{Id: request.GetId(), Host: h.name, State: "writing"})
		}
		resp.Diagnostics.Append(failed(what, err))
		return
	}
	save(created.GetBackup())
	last, err := h.settleBackup(ctx, created.GetBackup())
	if op := last.GetOperation(); last.GetState() == "failed" {
		resp.Diagnostics.Append(failed(what, operationFault(op)))
		if err := h.removeBackup(context.WithoutCancel(ctx), last); err == nil {
			resp.State.RemoveResource(context.WithoutCancel(ctx))
		}
		return
	}
	if err != nil {
		resp.Diagnostics.AddWarning("Backup "+last.GetName()+" is not complete yet", fmt.Sprintf(
			"%s Last seen: %s.\n\nThe resource is created; the host carries on, and the next plan or apply shows how it went.", waited(err, timeout), last.GetState()))
	}
	save(last)
}

// locateBackup finds a backup on a host that knows it or, as backups outlive the hosts that
// made them, at its target.
func (h *hosts) locateBackup(ctx context.Context, id, target, last string) (*host, *reflejov1.Backup, error) {
	at, b, err := locate(ctx, h, last, func(ctx context.Context, one *host) (*reflejov1.Backup, error) {
		resp, err := ask(ctx, one, one.Backups.GetBackup, &reflejov1.GetBackupRequest{Id: id})
		return resp.GetBackup(), err
	})
	if err == nil || h.unknown != "" || !(fault.Is(err, fault.NotFound) || unreachable(err)) {
		return at, b, err
	}
	others := h.names()
	if strings.HasPrefix(target, "dir:") { // another host's directory of this name is another one
		others = slices.DeleteFunc(others, func(name string) bool { return name != last })
	}
	for _, a := range h.backupsOf(ctx, others, target, "") {
		for _, b := range a.value {
			if b.GetId() == id {
				return a.host, b, nil
			}
		}
		if a.err != nil && fault.Is(err, fault.NotFound) && !fault.Is(a.err, fault.NotFound) {
			err = a.err // it may be there
		}
	}
	return nil, nil, err
}

// Read refreshes the state.
func (r *backupResource) Read(ctx context.Context, req resource.ReadRequest, resp *resource.ReadResponse) {
	var state backupModel
	resp.Diagnostics.Append(req.State.Get(ctx, &state)...)
	if resp.Diagnostics.HasError() {
		return
	}
	setIdentity(ctx, resp.Identity, state.ID, &resp.Diagnostics)
	_, b, err := r.hosts.locateBackup(ctx, state.ID.ValueString(), state.Target.ValueString(), state.Host.ValueString())
	switch {
	case fault.Is(err, fault.NotFound):
		resp.State.RemoveResource(ctx)
		return
	case errors.Is(err, errLost):
		resp.Diagnostics.AddWarning("Backup "+state.Name.ValueString()+" is lost with its host", sentence(err.Error())+"\n\nNo other host finds it at "+state.Target.ValueString()+
			". The last known state is kept; a destroy takes it out of the state.")
		return
	case err != nil:
		resp.Diagnostics.Append(stale("Backup "+state.Name.ValueString(), state.Host.ValueString(), err))
		return
	}
	host, target := state.Host, state.Target
	state.refresh(b)
	state.Host, state.Target = host, target
	resp.Diagnostics.Append(resp.State.Set(ctx, &state)...)
}

// Update stores what only Terraform knows: everything else of a backup is in its file.
func (r *backupResource) Update(ctx context.Context, req resource.UpdateRequest, resp *resource.UpdateResponse) {
	var plan, state backupModel
	resp.Diagnostics.Append(req.Plan.Get(ctx, &plan)...)
	resp.Diagnostics.Append(req.State.Get(ctx, &state)...)
	if resp.Diagnostics.HasError() {
		return
	}
	plan.State = state.State
	resp.Diagnostics.Append(resp.State.Set(ctx, &plan)...)
	setIdentity(ctx, resp.Identity, plan.ID, &resp.Diagnostics)
}

// Delete deletes the backup's file.
func (r *backupResource) Delete(ctx context.Context, req resource.DeleteRequest, resp *resource.DeleteResponse) {
	var state backupModel
	resp.Diagnostics.Append(req.State.Get(ctx, &state)...)
	timeout, diags := state.Timeouts.Delete(ctx, deleteTimeout)
	resp.Diagnostics.Append(diags...)
	if resp.Diagnostics.HasError() {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	h, b, err := r.hosts.locateBackup(ctx, state.ID.ValueString(), state.Target.ValueString(), state.Host.ValueString())
	if err == nil {
		err = h.removeBackup(ctx, b)
	}
	resp.Diagnostics.Append(r.hosts.destroyed(ctx, "Backup "+state.Name.ValueString(), state.Host.ValueString(), err)...)
}

// settleBackup waits until nothing is under way on the backup and returns how it was last seen.
func (h *host) settleBackup(ctx context.Context, b *reflejov1.Backup) (*reflejov1.Backup, error) {
	last, gone := b, false
	err := follow(ctx, h, h.Backups.WatchBackup, &reflejov1.WatchBackupRequest{Id: b.GetId()}, func(seen *reflejov1.WatchBackupResponse) bool {
		if gone = seen.GetGone(); seen.GetBackup() != nil {
			last = seen.GetBackup()
		}
		return gone || operationEnded(last.GetOperation())
	})
	if err == nil && gone {
		err = fault.New(fault.NotFound, "backup %s was deleted by someone else", b.GetName())
	}
	return last, err
}

// removeBackup deletes the backup and waits until it is gone.
func (h *host) removeBackup(ctx context.Context, b *reflejov1.Backup) error {
	_, _, err := persist(ctx, h, h.Backups.DeleteBackup, &reflejov1.DeleteBackupRequest{Id: b.GetId(), Target: b.GetTarget()}, 6)
	if err != nil {
		return err
	}
	last := b
	err = follow(ctx, h, h.Backups.WatchBackup, &reflejov1.WatchBackupRequest{Id: b.GetId()}, func(seen *reflejov1.WatchBackupResponse) bool {
		if seen.GetBackup() != nil {
			last = seen.GetBackup()
		}
		return seen.GetGone() || last.GetOperation().GetDone()
	})
	if op := last.GetOperation(); err == nil && op.GetDone() && op.GetError() != "" {
		return operationFault(op)
	}
	return err
}
