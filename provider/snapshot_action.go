package provider

import (
	"context"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/hashicorp/terraform-plugin-framework-validators/mapvalidator"
	"github.com/hashicorp/terraform-plugin-framework-validators/stringvalidator"
	"github.com/hashicorp/terraform-plugin-framework/action"
	"github.com/hashicorp/terraform-plugin-framework/action/schema"
	"github.com/hashicorp/terraform-plugin-framework/path"
	"github.com/hashicorp/terraform-plugin-framework/schema/validator"
	"github.com/hashicorp/terraform-plugin-framework/types"

	reflejov1 "github.com/reflejo/terraform-provider-reflejo/agent/api/reflejo/v1"
	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
)

// snapshotAction is the action reflejo_snapshot, restoreAction the action reflejo_restore.
type (
	snapshotAction struct{ hosts *hosts }
	restoreAction  struct{ hosts *hosts }
)

var (
	_ action.ActionWithConfigure = (*snapshotAction)(nil)
	_ action.ActionWithConfigure = (*restoreAction)(nil)
)

type snapshotActionModel struct {
	ServerID    types.String `tfsdk:"server_id"`
	Name        types.String `tfsdk:"name"`
	Description types.String `tfsdk:"description"`
	Labels      types.Map    `tfsdk:"labels"`
	Consistency types.String `tfsdk:"consistency"`
	Timeout     quantity     `tfsdk:"timeout"`
}

type restoreActionModel struct {
	ServerID   types.String `tfsdk:"server_id"`
	SnapshotID types.String `tfsdk:"snapshot_id"`
	Timeout    quantity     `tfsdk:"timeout"`
}

// actionTimeout is for how long an action waits.
func actionTimeout(what string) schema.Attribute {
	return schema.StringAttribute{
		CustomType: quantityType{measure: durationMeasure}, Optional: true, MarkdownDescription: what,
		Validators: []validator.String{between(durationMeasure, "1s", "24h")},
	}
}

func serverAttribute() schema.Attribute {
	return schema.StringAttribute{Required: true, MarkdownDescription: "The server: `reflejo_virtual_server.db.id`.", Validators: []validator.String{idValidator()}}
}

func limited(q quantity, otherwise time.Duration) time.Duration {
	if n, ok := q.amount(); ok {
		return duration(n)
	}
	return otherwise
}

func (a *snapshotAction) Metadata(_ context.Context, req action.MetadataRequest, resp *action.MetadataResponse) {
	resp.TypeName = req.ProviderTypeName + "_snapshot"
}

func (a *snapshotAction) Configure(_ context.Context, req action.ConfigureRequest, resp *action.ConfigureResponse) {
	a.hosts = configured(req.ProviderData, &resp.Diagnostics)
}

func (a *snapshotAction) Schema(_ context.Context, _ action.SchemaRequest, resp *action.SchemaResponse) {
	resp.Schema = schema.Schema{
		MarkdownDescription: "Takes a snapshot that Terraform does not keep track of, each time it is invoked, such as before every change of a server. " +
			"Needs Terraform 1.14; with older ones use `reflejo snapshot create`, or a `reflejo_snapshot` with `triggers`.",
		Attributes: map[string]schema.Attribute{
			"server_id":   serverAttribute(),
			"name":        schema.StringAttribute{Optional: true, MarkdownDescription: "Name: a DNS label, another one each time. If left out it is made of the time.", Validators: []validator.String{nameValidator()}},
			"description": schema.StringAttribute{Optional: true, MarkdownDescription: "Text of your own.", Validators: []validator.String{stringvalidator.LengthBetween(1, 1024)}},
			"labels": schema.MapAttribute{
				ElementType: types.StringType, Optional: true, MarkdownDescription: "Words of your own.",
				Validators: []validator.Map{
					mapvalidator.SizeAtMost(64), mapvalidator.KeysAre(labelKeyValidator()), mapvalidator.ValueStringsAre(stringvalidator.LengthAtMost(255)), mapvalidator.NoNullValues(),
				},
			},
			"consistency": schema.StringAttribute{
				Optional: true, MarkdownDescription: "`filesystem` or `crash`, as of a `reflejo_snapshot`. Default: `filesystem`.", Validators: []validator.String{stringvalidator.OneOf("filesystem", "crash")},
			},
			"timeout": actionTimeout("How long to wait for it. Default: `10m`. When it is over the host carries on."),
		},
	}
}

// Invoke takes the snapshot and tells how it goes.
func (a *snapshotAction) Invoke(ctx context.Context, req action.InvokeRequest, resp *action.InvokeResponse) {
	var m snapshotActionModel
	resp.Diagnostics.Append(req.Config.Get(ctx, &m)...)
	if resp.Diagnostics.HasError() {
		return
	}
	timeout := limited(m.Timeout, createTimeout)
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	if err := a.take(ctx, m, timeout, newProgress(ctx, resp.SendProgress)); err != nil {
		d := failed("Snapshot of server "+m.ServerID.ValueString()+" could not be taken", err)
		resp.Diagnostics.AddAttributeError(path.Root("server_id"), d.Summary(), d.Detail())
	}
}

func (a *snapshotAction) take(ctx context.Context, m snapshotActionModel, timeout time.Duration, say func(string)) error {
	h, server, _, err := a.hosts.findServer(ctx, reference{ref: m.ServerID.ValueString()})
	if err != nil {
		return err
	}
	say(fmt.Sprintf("taking a snapshot of %s on %s", server.GetSpec().GetName(), h.name))
	created, _, err := persist(ctx, h, h.Snapshots.CreateSnapshot, &reflejov1.CreateSnapshotRequest{
		Id: uuid.NewString(), Server: m.ServerID.ValueString(), Name: m.Name.ValueString(), Description: m.Description.ValueString(),
		Labels: stringMap(m.Labels), Consistency: m.Consistency.ValueString(),
	}, 6)
	if err != nil {
		return err
	}
	last, err := h.settleSnapshot(ctx, created.GetSnapshot())
	switch {
	case err != nil && ctx.Err() != nil:
		return fmt.Errorf("waited %s; last seen %s at %q; the host carries on", timeout, last.GetState(), last.GetOperation().GetStep())
	case err != nil:
		return err
	case last.GetState() == "failed":
		return operationFault(last.GetOperation())
	}
	say(fmt.Sprintf("snapshot %s is %s", last.GetName(), last.GetId()))
	return nil
}

func (a *restoreAction) Metadata(_ context.Context, req action.MetadataRequest, resp *action.MetadataResponse) {
	resp.TypeName = req.ProviderTypeName + "_restore"
}

func (a *restoreAction) Configure(_ context.Context, req action.ConfigureRequest, resp *action.ConfigureResponse) {
	a.hosts = configured(req.ProviderData, &resp.Diagnostics)
}

func (a *restoreAction) Schema(_ context.Context, _ action.SchemaRequest, resp *action.SchemaResponse) {
	resp.Schema = schema.Schema{
		MarkdownDescription: "Puts a snapshot back in place of its server's disk: the server stops, a safety snapshot of what is there is taken, and it starts as before, with the same id, addresses and MACs. " +
			"Needs Terraform 1.14; with older ones use `reflejo snapshot restore`, or `restore_from` of the server.",
		Attributes: map[string]schema.Attribute{
			"server_id":   serverAttribute(),
			"snapshot_id": schema.StringAttribute{Required: true, MarkdownDescription: "The snapshot: `reflejo_snapshot.before.id`. It must be one of this server.", Validators: []validator.String{idValidator()}},
			"timeout":     actionTimeout("How long to wait until the server is as it was. Default: `30m`. When it is over the host carries on."),
		},
	}
}

// Invoke puts the snapshot back and tells how it goes.
func (a *restoreAction) Invoke(ctx context.Context, req action.InvokeRequest, resp *action.InvokeResponse) {
	var m restoreActionModel
	resp.Diagnostics.Append(req.Config.Get(ctx, &m)...)
	if resp.Diagnostics.HasError() {
		return
	}
	timeout := limited(m.Timeout, updateTimeout)
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	if err := a.restore(ctx, m, timeout, newProgress(ctx, resp.SendProgress)); err != nil {
		d := failed("Server "+m.ServerID.ValueString()+" could not be restored", err)
		at := path.Root("server_id")
		if field := fault.FieldOf(err); field == "restore_from" || field == "snapshot_id" {
			at = path.Root("snapshot_id")
		}
		resp.Diagnostics.AddAttributeError(at, d.Summary(), d.Detail())
	}
}

func (a *restoreAction) restore(ctx context.Context, m restoreActionModel, timeout time.Duration, say func(string)) error {
	h, server, _, err := a.hosts.findServer(ctx, reference{ref: m.ServerID.ValueString()})
	if err != nil {
		return err
	}
	name := server.GetSpec().GetName()
	say(fmt.Sprintf("putting snapshot %s back in place of the disk of %s on %s", m.SnapshotID.ValueString(), name, h.name))
	safety := uuid.NewString()
	answer, _, err := persist(ctx, h, h.Snapshots.RestoreServer, &reflejov1.RestoreServerRequest{Id: safety, Server: m.ServerID.ValueString(), Snapshot: m.SnapshotID.ValueString()}, 6)
	if err != nil {
		return err
	}
	last, err := h.watch(ctx, answer.GetServer(), func(seen *reflejov1.WatchServerResponse) bool {
		if op := seen.GetServer().GetOperation(); op.GetKind() != "" && !op.GetDone() {
			say(fmt.Sprintf("%s: %s (%d of %d)", name, op.GetStep(), op.GetStepIndex(), op.GetSteps()))
		}
		return seen.GetGone() || settled(seen.GetServer())
	})
	switch {
	case err != nil && ctx.Err() != nil:
		return fmt.Errorf("waited %s; last seen %s at %q; the host carries on", timeout, last.GetServer().GetState(), last.GetServer().GetOperation().GetStep())
	case err != nil:
		return err
	case last.GetServer().GetOperation().GetError() != "":
		return operationError(last.GetServer())
	}
	say(fmt.Sprintf("%s is %s; what it had is in snapshot %s", name, last.GetServer().GetState(), safety))
	return nil
}
