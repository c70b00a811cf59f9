package provider

import (
	"context"

	"github.com/hashicorp/terraform-plugin-framework/attr"
	"github.com/hashicorp/terraform-plugin-framework/datasource"
	"github.com/hashicorp/terraform-plugin-framework/datasource/schema"
	"github.com/hashicorp/terraform-plugin-framework/schema/validator"
	"github.com/hashicorp/terraform-plugin-framework/types"
)

// networkDataSource is data reflejo_network.
type networkDataSource struct{ hosts *hosts }

var _ datasource.DataSourceWithConfigure = (*networkDataSource)(nil)

type networkDataModel struct {
	Name           types.String `tfsdk:"name"`
	Host           types.String `tfsdk:"host"`
	ID             types.String `tfsdk:"id"`
	Hosts          types.Set    `tfsdk:"hosts"`
	CIDR           types.String `tfsdk:"cidr"`
	NAT            types.Bool   `tfsdk:"nat"`
	Gateways       types.Map    `tfsdk:"gateways"`
	FreeAddresses  types.Map    `tfsdk:"free_addresses"`
	Servers        types.Int64  `tfsdk:"servers"`
	VNI            types.Int64  `tfsdk:"vni"`
	MTU            types.Int64  `tfsdk:"mtu"`
	DefaultNetwork types.Bool   `tfsdk:"default_network"`
}

func (d *networkDataSource) Metadata(_ context.Context, req datasource.MetadataRequest, resp *datasource.MetadataResponse) {
	resp.TypeName = req.ProviderTypeName + "_network"
}

func (d *networkDataSource) Configure(_ context.Context, req datasource.ConfigureRequest, resp *datasource.ConfigureResponse) {
	d.hosts = configured(req.ProviderData, &resp.Diagnostics)
}

func (d *networkDataSource) Schema(_ context.Context, _ datasource.SchemaRequest, resp *datasource.SchemaResponse) {
	resp.Schema = schema.Schema{
		MarkdownDescription: "A network that is on one or several hosts, whoever made it; also a host's own (`name = \"default\"` with `host`).",
		Attributes: map[string]schema.Attribute{
			"name":            schema.StringAttribute{Required: true, MarkdownDescription: "Its name or id.", Validators: []validator.String{referenceValidator(networkName, uuidPattern)}},
			"host":            optionalHost("Host to look on. If left out, all; it is an error if hosts have different networks of this name."),
			"id":              computedString("UUID."),
			"hosts":           schema.SetAttribute{ElementType: types.StringType, Computed: true, MarkdownDescription: "Hosts that have it, of those looked on."},
			"cidr":            computedString("IPv4 range."),
			"nat":             schema.BoolAttribute{Computed: true, MarkdownDescription: "Whether servers reach the world beyond their hosts."},
			"gateways":        schema.MapAttribute{ElementType: types.StringType, Computed: true, MarkdownDescription: "Each host's own address on it."},
			"free_addresses":  schema.MapAttribute{ElementType: types.Int64Type, Computed: true, MarkdownDescription: "Number of addresses that each host can still hand out."},
			"servers":         computedInt64("Number of servers on it, on all its hosts."),
			"vni":             computedInt64("VXLAN network identifier between its hosts."),
			"mtu":             computedInt64("Largest packet, bytes."),
			"default_network": schema.BoolAttribute{Computed: true, MarkdownDescription: "Whether it is a host's own network, for servers that name none."},
		},
	}
}

// Read looks for the network.
func (d *networkDataSource) Read(ctx context.Context, req datasource.ReadRequest, resp *datasource.ReadResponse) {
	var m networkDataModel
	resp.Diagnostics.Append(req.Config.Get(ctx, &m)...)
	if resp.Diagnostics.HasError() {
		return
	}
	there, warnings, err := d.hosts.findNetwork(ctx, reference{host: m.Host.ValueString(), ref: m.Name.ValueString()})
	if err != nil {
		resp.Diagnostics.Append(notFound("Network "+m.Name.ValueString()+" could not be read", err))
		return
	}
	resp.Diagnostics.Append(warnings...)
	names := sortedKeys(there)
	gateways, free, servers := map[string]attr.Value{}, map[string]attr.Value{}, int64(0)
	for name, network := range there {
		gateways[name], free[name] = types.StringValue(network.GetGateway()), types.Int64Value(int64(network.GetFreeAddresses()))
		servers += int64(network.GetServers())
	}
	first := there[names[0]]
	m.ID, m.Hosts = types.StringValue(first.GetSpec().GetId()), stringSet(names)
	m.CIDR, m.NAT = types.StringValue(first.GetSpec().GetCidr()), types.BoolValue(first.GetSpec().GetNat())
	m.Gateways, m.FreeAddresses = types.MapValueMust(types.StringType, gateways), types.MapValueMust(types.Int64Type, free)
	m.Servers, m.VNI, m.MTU = types.Int64Value(servers), types.Int64Value(int64(first.GetVni())), types.Int64Value(int64(first.GetMtu()))
	m.DefaultNetwork = types.BoolValue(first.GetDefaultNetwork())
	resp.Diagnostics.Append(resp.State.Set(ctx, &m)...)
}
