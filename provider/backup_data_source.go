package provider

import (
	"cmp"
	"context"
	"errors"
	"slices"

	"github.com/hashicorp/terraform-plugin-framework/attr"
	"github.com/hashicorp/terraform-plugin-framework/datasource"
	"github.com/hashicorp/terraform-plugin-framework/datasource/schema"
	"github.com/hashicorp/terraform-plugin-framework/diag"
	"github.com/hashicorp/terraform-plugin-framework/path"
	"github.com/hashicorp/terraform-plugin-framework/schema/validator"
	"github.com/hashicorp/terraform-plugin-framework/types"

	reflejov1 "github.com/reflejo/terraform-provider-reflejo/agent/api/reflejo/v1"
)

// backupsDataSource is data reflejo_backups.
type backupsDataSource struct{ hosts *hosts }

var _ datasource.DataSourceWithConfigure = (*backupsDataSource)(nil)

type backupsModel struct {
	Target   types.String `tfsdk:"target"`
	Host     types.String `tfsdk:"host"`
	ServerID types.String `tfsdk:"server_id"`
	Backups  types.List   `tfsdk:"backups"`
}

// backupFacts is what is known of a backup.
type backupFacts struct {
	ID         types.String `tfsdk:"id"`
	Name       types.String `tfsdk:"name"`
	ServerID   types.String `tfsdk:"server_id"`
	ServerName types.String `tfsdk:"server_name"`
	SnapshotID types.String `tfsdk:"snapshot_id"`
	Host       types.String `tfsdk:"host"`
	Target     types.String `tfsdk:"target"`
	ParentID   types.String `tfsdk:"parent_id"`
	State      types.String `tfsdk:"state"`
	Size       types.Int64  `tfsdk:"size"`
	DiskSize   types.Int64  `tfsdk:"disk_size"`
	Checksum   types.String `tfsdk:"checksum"`
	Origin     types.String `tfsdk:"origin"`
	CreatedAt  types.String `tfsdk:"created_at"`
}

var backupTypes = map[string]attr.Type{
	"id": types.StringType, "name": types.StringType, "server_id": types.StringType, "server_name": types.StringType, "snapshot_id": types.StringType,
	"host": types.StringType, "target": types.StringType, "parent_id": types.StringType, "state": types.StringType, "size": types.Int64Type,
	"disk_size": types.Int64Type, "checksum": types.StringType, "origin": types.StringType, "created_at": types.StringType,
}

func newBackupFacts(b *reflejov1.Backup) backupFacts {
	return backupFacts{
		ID: types.StringValue(b.GetId()), Name: types.StringValue(b.GetName()), ServerID: types.StringValue(b.GetServerId()), ServerName: types.StringValue(b.GetServerName()),
		SnapshotID: types.StringValue(b.GetSnapshotId()), Host: types.StringValue(b.GetHost()), Target: types.StringValue(b.GetTarget()), ParentID: optionalString(b.GetParentId()),
		State: types.StringValue(b.GetState()), Size: types.Int64Value(b.GetSize()), DiskSize: types.Int64Value(b.GetDiskSize()), Checksum: optionalString(b.GetChecksum()),
		Origin: types.StringValue(b.GetOrigin()), CreatedAt: timeValue(b.GetCreatedAt()),
	}
}

func (d *backupsDataSource) Metadata(_ context.Context, req datasource.MetadataRequest, resp *datasource.MetadataResponse) {
	resp.TypeName = req.ProviderTypeName + "_backups"
}

func (d *backupsDataSource) Configure(_ context.Context, req datasource.ConfigureRequest, resp *datasource.ConfigureResponse) {
	d.hosts = configured(req.ProviderData, &resp.Diagnostics)
}

func (d *backupsDataSource) Schema(_ context.Context, _ datasource.SchemaRequest, resp *datasource.SchemaResponse) {
	resp.Schema = schema.Schema{
		MarkdownDescription: "The backups that a target holds, whoever made them (`target`), or those that hosts made or were told of.",
		Attributes: map[string]schema.Attribute{
			"target": schema.StringAttribute{
				Optional: true, Validators: []validator.String{targetValidator()},
				MarkdownDescription: "Look at what is there: `host:NAME`, `s3://bucket/prefix` or `dir:/path`. If left out, at what the hosts know.",
			},
			"host": schema.StringAttribute{
				Optional: true, Validators: []validator.String{nameValidator()},
				MarkdownDescription: "With `target`: the host that looks; needed for `dir:`, else the first that answers. Without: only those that this host knows.",
			},
			"server_id": schema.StringAttribute{Optional: true, MarkdownDescription: "Only those of this server.", Validators: []validator.String{idValidator()}},
			"backups": schema.ListNestedAttribute{
				Computed: true, MarkdownDescription: "The backups, oldest first.",
				NestedObject: schema.NestedAttributeObject{Attributes: map[string]schema.Attribute{
					"id":          computedString("UUID."),
					"name":        computedString("Its name."),
					"server_id":   computedString("The server whose disk it is; it may be gone."),
					"server_name": computedString("What that server was called."),
					"snapshot_id": computedString("The snapshot that it was made of."),
					"host":        computedString("The host whose agent made it."),
					"target":      computedString("Where it is."),
					"parent_id":   computedString("The backup that it builds on; null for a full one."),
					"state":       computedString("`writing`, `ready`, `failed` or `deleting`."),
					"size":        computedInt64("Size of the file, bytes."),
					"disk_size":   computedInt64("Size of the disk in it, bytes."),
					"checksum":    computedString("`sha256:…` of what the disk holds."),
					"origin":      computedString("`manual` or `policy`."),
					"created_at":  computedString("The moment that it shows, RFC 3339."),
				}},
			},
		},
	}
}

// Read asks one host about a target, or hosts about what they know.
func (d *backupsDataSource) Read(ctx context.Context, req datasource.ReadRequest, resp *datasource.ReadResponse) {
	var m backupsModel
	resp.Diagnostics.Append(req.Config.Get(ctx, &m)...)
	if resp.Diagnostics.HasError() {
		return
	}
	names, err := d.hosts.where(reference{host: m.Host.ValueString()})
	if err != nil {
		at := path.Root("host")
		resp.Diagnostics.AddAttributeError(at, "Backups could not be read", invalid(at, err.Error()))
		return
	}
	var found []*reflejov1.Backup
	if isSet(m.Target) {
		found, err = d.hosts.lookAt(ctx, names, m.Target.ValueString(), m.ServerID.ValueString())
		if err != nil {
			d := failed("Backups could not be read", err)
			resp.Diagnostics.Append(diag.NewAttributeErrorDiagnostic(path.Root("target"), d.Summary(), d.Detail()))
			return
		}
	} else {
		answers, diags := collect(ctx, d.hosts, names, func(ctx context.Context, h *host) ([]*reflejov1.Backup, error) {
			return listBackups(ctx, h, m.ServerID.ValueString())
		})
		resp.Diagnostics.Append(diags...)
		for _, a := range answers {
			found = append(found, a.value...)
		}
	}
	slices.SortStableFunc(found, func(a, b *reflejov1.Backup) int {
		return cmp.Or(a.GetCreatedAt().AsTime().Compare(b.GetCreatedAt().AsTime()), cmp.Compare(a.GetId(), b.GetId()))
	})
	facts := make([]backupFacts, 0, len(found))
	for _, b := range found {
		facts = append(facts, newBackupFacts(b))
	}
	list, diags := types.ListValueFrom(ctx, types.ObjectType{AttrTypes: backupTypes}, facts)
	resp.Diagnostics.Append(diags...)
	m.Backups = list
	resp.Diagnostics.Append(resp.State.Set(ctx, &m)...)
}

// lookAt asks hosts, one after the other until one can say, what a target holds.
func (h *hosts) lookAt(ctx context.Context, names []string, target, server string) ([]*reflejov1.Backup, error) {
	var errs []error
	for _, name := range names {
		a := h.backupsOf(ctx, []string{name}, target, server)[0]
		if a.err == nil {
			return a.value, nil
		}
		errs = append(errs, a.err)
	}
	return nil, errors.Join(errs...)
}
