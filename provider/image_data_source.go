package provider

import (
	"context"
	"slices"

	"github.com/hashicorp/terraform-plugin-framework/datasource"
	"github.com/hashicorp/terraform-plugin-framework/datasource/schema"
	"github.com/hashicorp/terraform-plugin-framework/schema/validator"
	"github.com/hashicorp/terraform-plugin-framework/types"
)

// imageDataSource is data reflejo_image.
type imageDataSource struct{ hosts *hosts }

var _ datasource.DataSourceWithConfigure = (*imageDataSource)(nil)

type imageDataModel struct {
	Name         types.String `tfsdk:"name"`
	Host         types.String `tfsdk:"host"`
	ID           types.String `tfsdk:"id"`
	Hosts        types.Set    `tfsdk:"hosts"`
	Source       types.String `tfsdk:"source"`
	Checksum     types.String `tfsdk:"checksum"`
	OS           types.String `tfsdk:"os"`
	Architecture types.String `tfsdk:"architecture"`
	SizeBytes    types.Int64  `tfsdk:"size_bytes"`
	UsedBytes    types.Int64  `tfsdk:"used_bytes"`
	Servers      types.Int64  `tfsdk:"servers"`
	Init         types.List   `tfsdk:"init"`
	CreatedAt    types.String `tfsdk:"created_at"`
}

func (d *imageDataSource) Metadata(_ context.Context, req datasource.MetadataRequest, resp *datasource.MetadataResponse) {
	resp.TypeName = req.ProviderTypeName + "_image"
}

func (d *imageDataSource) Configure(_ context.Context, req datasource.ConfigureRequest, resp *datasource.ConfigureResponse) {
	d.hosts = configured(req.ProviderData, &resp.Diagnostics)
}

// optionalHost is the attribute that narrows a look-up to one host.
func optionalHost(what string) schema.Attribute {
	return schema.StringAttribute{Optional: true, MarkdownDescription: what, Validators: []validator.String{nameValidator()}}
}

func (d *imageDataSource) Schema(_ context.Context, _ datasource.SchemaRequest, resp *datasource.SchemaResponse) {
	resp.Schema = schema.Schema{
		MarkdownDescription: "An image that is on one or several hosts, whoever made it.",
		Attributes: map[string]schema.Attribute{
			"name":         schema.StringAttribute{Required: true, MarkdownDescription: "Its name or id.", Validators: []validator.String{referenceValidator("an image", digestPattern)}},
			"host":         optionalHost("Host to look on. If left out, all; it is an error if hosts have different images of this name."),
			"id":           computedString("Digest of its content, `sha256:…`."),
			"hosts":        schema.SetAttribute{ElementType: types.StringType, Computed: true, MarkdownDescription: "Hosts that have it, of those looked on."},
			"source":       computedString("Where it came from, as asked."),
			"checksum":     computedString("Digest that was asked for, if any."),
			"os":           computedString("Operating system, as it calls itself."),
			"architecture": computedString("Processor architecture: `amd64`, `arm64`."),
			"size_bytes":   computedInt64("Smallest disk, in bytes, of a server made from it."),
			"used_bytes":   computedInt64("Bytes of the pool that it takes, on the first of its hosts."),
			"servers":      computedInt64("Number of servers made from it, on all its hosts."),
			"init":         schema.ListAttribute{ElementType: types.StringType, Computed: true, MarkdownDescription: "What it starts. Empty: it boots its own `/sbin/init`."},
			"created_at":   computedString("When the first of its hosts got it, RFC 3339."),
		},
	}
}

// Read looks for the image.
func (d *imageDataSource) Read(ctx context.Context, req datasource.ReadRequest, resp *datasource.ReadResponse) {
	var m imageDataModel
	resp.Diagnostics.Append(req.Config.Get(ctx, &m)...)
	if resp.Diagnostics.HasError() {
		return
	}
	there, warnings, err := d.hosts.findImage(ctx, reference{host: m.Host.ValueString(), ref: m.Name.ValueString()})
	if err != nil {
		resp.Diagnostics.Append(notFound("Image "+m.Name.ValueString()+" could not be read", err))
		return
	}
	resp.Diagnostics.Append(warnings...)
	names := sortedKeys(there)
	first := there[names[0]]
	var servers int64
	for _, image := range there {
		servers += int64(image.GetServers())
	}
	m.ID, m.Hosts, m.Source, m.Checksum = types.StringValue(first.GetId()), stringSet(names), types.StringValue(first.GetSource()), optionalString(first.GetChecksum())
	m.OS, m.Architecture, m.CreatedAt = types.StringValue(first.GetOs()), types.StringValue(first.GetArchitecture()), timeValue(first.GetCreatedAt())
	m.SizeBytes, m.UsedBytes, m.Servers = types.Int64Value(first.GetSizeBytes()), types.Int64Value(first.GetUsedBytes()), types.Int64Value(servers)
	m.Init = types.ListValueMust(types.StringType, stringValues(slices.Clone(first.GetInit())))
	resp.Diagnostics.Append(resp.State.Set(ctx, &m)...)
}
