package provider

import (
	"cmp"
	"context"
	"slices"

	"github.com/hashicorp/terraform-plugin-framework-validators/mapvalidator"
	"github.com/hashicorp/terraform-plugin-framework-validators/stringvalidator"
	"github.com/hashicorp/terraform-plugin-framework/attr"
	"github.com/hashicorp/terraform-plugin-framework/datasource"
	"github.com/hashicorp/terraform-plugin-framework/datasource/schema"
	"github.com/hashicorp/terraform-plugin-framework/path"
	"github.com/hashicorp/terraform-plugin-framework/schema/validator"
	"github.com/hashicorp/terraform-plugin-framework/types"

	reflejov1 "github.com/reflejo/terraform-provider-reflejo/agent/api/reflejo/v1"
	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
)

// snapshotDataSource is data reflejo_snapshot, snapshotsDataSource data reflejo_snapshots.
type (
	snapshotDataSource  struct{ hosts *hosts }
	snapshotsDataSource struct{ hosts *hosts }
)

var (
	_ datasource.DataSourceWithConfigure = (*snapshotDataSource)(nil)
	_ datasource.DataSourceWithConfigure = (*snapshotsDataSource)(nil)
)

// snapshotFacts is what is known of a snapshot.
type snapshotFacts struct {
	ID            types.String `tfsdk:"id"`
	Name          types.String `tfsdk:"name"`
	ServerID      types.String `tfsdk:"server_id"`
	ServerName    types.String `tfsdk:"server_name"`
	Host          types.String `tfsdk:"host"`
	Description   types.String `tfsdk:"description"`
	Labels        types.Map    `tfsdk:"labels"`
	Consistency   types.String `tfsdk:"consistency"`
	Origin        types.String `tfsdk:"origin"`
	State         types.String `tfsdk:"state"`
	ServerState   types.String `tfsdk:"server_state"`
	PauseMS       types.Int64  `tfsdk:"pause_ms"`
	Size          types.Int64  `tfsdk:"size"`
	ExclusiveSize types.Int64  `tfsdk:"exclusive_size"`
	ReservedSize  types.Int64  `tfsdk:"reserved_size"`
	Checksum      types.String `tfsdk:"checksum"`
	Image         types.String `tfsdk:"image"`
	CreatedAt     types.String `tfsdk:"created_at"`
}

var snapshotTypes = map[string]attr.Type{
	"id": types.StringType, "name": types.StringType, "server_id": types.StringType, "server_name": types.StringType, "host": types.StringType,
	"description": types.StringType, "labels": types.MapType{ElemType: types.StringType}, "consistency": types.StringType, "origin": types.StringType,
	"state": types.StringType, "server_state": types.StringType, "pause_ms": types.Int64Type, "size": types.Int64Type, "exclusive_size": types.Int64Type,
	"reserved_size": types.Int64Type, "checksum": types.StringType, "image": types.StringType, "created_at": types.StringType,
}

func newSnapshotFacts(s *reflejov1.Snapshot) snapshotFacts {
	return snapshotFacts{
		ID: types.StringValue(s.GetId()), Name: types.StringValue(s.GetName()), ServerID: types.StringValue(s.GetServerId()), ServerName: types.StringValue(s.GetServerName()),
		Host: types.StringValue(s.GetHost()), Description: optionalString(s.GetDescription()), Labels: stringMapValue(s.GetLabels()),
		Consistency: types.StringValue(s.GetConsistency()), Origin: types.StringValue(s.GetOrigin()), State: types.StringValue(s.GetState()), ServerState: optionalString(s.GetServerState()),
		PauseMS: types.Int64Value(s.GetPause().AsDuration().Milliseconds()), Size: types.Int64Value(s.GetSize()), ExclusiveSize: types.Int64Value(s.GetExclusiveSize()),
		ReservedSize: types.Int64Value(s.GetReservedSize()), Checksum: optionalString(s.GetChecksum()), Image: optionalString(s.GetImage()), CreatedAt: timeValue(s.GetCreatedAt()),
	}
}

// snapshotAttributes are what is known of a snapshot.
func snapshotAttributes() map[string]schema.Attribute {
	return map[string]schema.Attribute{
		"id":             computedString("UUID."),
		"name":           computedString("Its name."),
		"server_id":      computedString("The server whose disk it shows; it may be gone."),
		"server_name":    computedString("What that server was called."),
		"host":           computedString("The host it is on."),
		"description":    computedString("Text of the user's own."),
		"labels":         schema.MapAttribute{ElementType: types.StringType, Computed: true, MarkdownDescription: "Its labels."},
		"consistency":    computedString("`filesystem` or `crash`."),
		"origin":         computedString("Why there is one: `manual`, `policy`, `safety` (what a restore replaced), `backup` (imported) or `migration`."),
		"state":          computedString("`creating`, `ready`, `failed` or `deleting`."),
		"server_state":   computedString("What the server was at that moment: `running`, `stopped` or `suspended`."),
		"pause_ms":       computedInt64("For how long the server's writers were held up at once, milliseconds."),
		"size":           computedInt64("Size of the disk, bytes."),
		"exclusive_size": computedInt64("Bytes of the pool that deleting it would free."),
		"reserved_size":  computedInt64("Bytes that it takes from what the host can promise."),
		"checksum":       computedString("`sha256:…` of what the disk holds; null until it has been computed."),
		"image":          computedString("Id of the image of the server then."),
		"created_at":     computedString("The moment that it shows, RFC 3339."),
	}
}

func (d *snapshotDataSource) Metadata(_ context.Context, req datasource.MetadataRequest, resp *datasource.MetadataResponse) {
	resp.TypeName = req.ProviderTypeName + "_snapshot"
}

func (d *snapshotDataSource) Configure(_ context.Context, req datasource.ConfigureRequest, resp *datasource.ConfigureResponse) {
	d.hosts = configured(req.ProviderData, &resp.Diagnostics)
}

// snapshotDataModel is data reflejo_snapshot.
type snapshotDataModel struct {
	snapshotFacts
	MostRecent types.Bool `tfsdk:"most_recent"`
}

func (d *snapshotDataSource) Schema(_ context.Context, _ datasource.SchemaRequest, resp *datasource.SchemaResponse) {
	attributes := snapshotAttributes()
	attributes["name"] = schema.StringAttribute{
		Optional: true, Computed: true, MarkdownDescription: "Its name or id. If left out, any of the server's.",
		Validators: []validator.String{referenceValidator("a snapshot", uuidPattern), stringvalidator.AtLeastOneOf(path.MatchRoot("name"), path.MatchRoot("server_id"))},
	}
	attributes["server_id"] = schema.StringAttribute{
		Optional: true, Computed: true, MarkdownDescription: "The server whose disk it shows: its id. If left out, any.", Validators: []validator.String{idValidator()},
	}
	attributes["host"] = schema.StringAttribute{
		Optional: true, Computed: true, MarkdownDescription: "The host it is on. If left out, all are asked.", Validators: []validator.String{nameValidator()},
	}
	attributes["most_recent"] = schema.BoolAttribute{
		Optional: true, MarkdownDescription: "Take the newest complete one if several match. Default `false`: several are an error.",
	}
	resp.Schema = schema.Schema{MarkdownDescription: "A snapshot, whoever took it: by name, by id, or a server's newest (`server_id` with `most_recent`).", Attributes: attributes}
}

// Read looks for the snapshot.
func (d *snapshotDataSource) Read(ctx context.Context, req datasource.ReadRequest, resp *datasource.ReadResponse) {
	var m snapshotDataModel
	resp.Diagnostics.Append(req.Config.Get(ctx, &m)...)
	if resp.Diagnostics.HasError() {
		return
	}
	found, warnings, err := d.hosts.findSnapshots(ctx, reference{host: m.Host.ValueString(), ref: m.Name.ValueString()}, m.ServerID.ValueString())
	found = slices.DeleteFunc(found, func(s *reflejov1.Snapshot) bool {
		return (isSet(m.ServerID) && s.GetServerId() != m.ServerID.ValueString()) || (m.MostRecent.ValueBool() && s.GetState() != "ready")
	})
	switch {
	case err == nil && len(found) == 0:
		err = fault.New(fault.NotFound, "no such snapshot of server %s", m.ServerID.ValueString())
	case err == nil && len(found) > 1 && !m.MostRecent.ValueBool():
		err = fault.New(fault.Invalid, "%d snapshots match: name one by its id, or set most_recent = true", len(found))
	}
	if err != nil {
		resp.Diagnostics.Append(notFound("Snapshot could not be read", err))
		return
	}
	resp.Diagnostics.Append(warnings...)
	newestLast(found)
	name := m.Name
	m.snapshotFacts = newSnapshotFacts(found[len(found)-1])
	if isSet(name) {
		m.Name = name
	}
	resp.Diagnostics.Append(resp.State.Set(ctx, &m)...)
}

func newestLast(snapshots []*reflejov1.Snapshot) {
	slices.SortStableFunc(snapshots, func(a, b *reflejov1.Snapshot) int {
		return cmp.Or(a.GetCreatedAt().AsTime().Compare(b.GetCreatedAt().AsTime()), cmp.Compare(a.GetId(), b.GetId()))
	})
}

type snapshotsModel struct {
	Host      types.String `tfsdk:"host"`
	ServerID  types.String `tfsdk:"server_id"`
	Labels    types.Map    `tfsdk:"labels"`
	Snapshots types.List   `tfsdk:"snapshots"`
}

func (d *snapshotsDataSource) Metadata(_ context.Context, req datasource.MetadataRequest, resp *datasource.MetadataResponse) {
	resp.TypeName = req.ProviderTypeName + "_snapshots"
}

func (d *snapshotsDataSource) Configure(_ context.Context, req datasource.ConfigureRequest, resp *datasource.ConfigureResponse) {
	d.hosts = configured(req.ProviderData, &resp.Diagnostics)
}

func (d *snapshotsDataSource) Schema(_ context.Context, _ datasource.SchemaRequest, resp *datasource.SchemaResponse) {
	resp.Schema = schema.Schema{
		MarkdownDescription: "The snapshots of all hosts, or those that match, whoever took them. A host that does not answer is an error, since a list that leaves something out would be a wrong one.",
		Attributes: map[string]schema.Attribute{
			"host":      optionalHost("Only those on this host."),
			"server_id": schema.StringAttribute{Optional: true, MarkdownDescription: "Only those of this server.", Validators: []validator.String{idValidator()}},
			"labels": schema.MapAttribute{
				ElementType: types.StringType, Optional: true, MarkdownDescription: "Only those that have all of these labels.",
				Validators: []validator.Map{mapvalidator.SizeAtLeast(1), mapvalidator.KeysAre(labelKeyValidator()), mapvalidator.NoNullValues()},
			},
			"snapshots": schema.ListNestedAttribute{
				Computed: true, MarkdownDescription: "The snapshots, oldest first.",
				NestedObject: schema.NestedAttributeObject{Attributes: snapshotAttributes()},
			},
		},
	}
}

// Read asks all hosts at once.
func (d *snapshotsDataSource) Read(ctx context.Context, req datasource.ReadRequest, resp *datasource.ReadResponse) {
	var m snapshotsModel
	resp.Diagnostics.Append(req.Config.Get(ctx, &m)...)
	if resp.Diagnostics.HasError() {
		return
	}
	names, err := d.hosts.where(reference{host: m.Host.ValueString()})
	if err != nil {
		at := path.Root("host")
		resp.Diagnostics.AddAttributeError(at, "Snapshots could not be read", invalid(at, err.Error()))
		return
	}
	answers, diags := collect(ctx, d.hosts, names, func(ctx context.Context, h *host) ([]*reflejov1.Snapshot, error) {
		return listSnapshots(ctx, h, m.ServerID.ValueString())
	})
	resp.Diagnostics.Append(diags...)
	wanted := stringMap(m.Labels)
	var found []*reflejov1.Snapshot
	for _, a := range answers {
		found = append(found, slices.DeleteFunc(a.value, func(s *reflejov1.Snapshot) bool { return !labelled(s.GetLabels(), wanted) })...)
	}
	newestLast(found)
	facts := make([]snapshotFacts, 0, len(found))
	for _, s := range found {
		facts = append(facts, newSnapshotFacts(s))
	}
	list, diags := types.ListValueFrom(ctx, types.ObjectType{AttrTypes: snapshotTypes}, facts)
	resp.Diagnostics.Append(diags...)
	m.Snapshots = list
	resp.Diagnostics.Append(resp.State.Set(ctx, &m)...)
}

// labelled reports whether labels have all that is wanted.
func labelled(labels, wanted map[string]string) bool {
	for key, value := range wanted {
		if got, ok := labels[key]; !ok || got != value {
			return false
		}
	}
	return true
}
