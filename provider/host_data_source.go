package provider

import (
	"context"

	"github.com/hashicorp/terraform-plugin-framework/attr"
	"github.com/hashicorp/terraform-plugin-framework/datasource"
	"github.com/hashicorp/terraform-plugin-framework/datasource/schema"
	"github.com/hashicorp/terraform-plugin-framework/path"
	"github.com/hashicorp/terraform-plugin-framework/schema/validator"
	"github.com/hashicorp/terraform-plugin-framework/types"

	reflejov1 "github.com/reflejo/terraform-provider-reflejo/agent/api/reflejo/v1"
)

// hostDataSource is data reflejo_host, hostsDataSource data reflejo_hosts.
type (
	hostDataSource  struct{ hosts *hosts }
	hostsDataSource struct{ hosts *hosts }
)

var (
	_ datasource.DataSourceWithConfigure = (*hostDataSource)(nil)
	_ datasource.DataSourceWithConfigure = (*hostsDataSource)(nil)
)

type hostModel struct {
	Name            types.String `tfsdk:"name"`
	Version         types.String `tfsdk:"version"`
	Kernel          types.String `tfsdk:"kernel"`
	CgroupMode      types.String `tfsdk:"cgroup_mode"`
	Architecture    types.String `tfsdk:"architecture"`
	StartedAt       types.String `tfsdk:"started_at"`
	Capacity        types.Object `tfsdk:"capacity"`
	Promised        types.Object `tfsdk:"promised"`
	Free            types.Object `tfsdk:"free"`
	Conditions      types.List   `tfsdk:"conditions"`
	Pool            types.Object `tfsdk:"pool"`
	Servers         types.Int64  `tfsdk:"servers"`
	RunningServers  types.Int64  `tfsdk:"running_servers"`
	Images          types.Set    `tfsdk:"images"`
	UnderlayAddress types.String `tfsdk:"underlay_address"`
}

var (
	resourcesTypes = map[string]attr.Type{"cores": types.NumberType, "memory_bytes": types.Int64Type, "disk_bytes": types.Int64Type, "ingress_bps": types.Int64Type, "egress_bps": types.Int64Type}
	conditionTypes = map[string]attr.Type{"type": types.StringType, "severity": types.StringType, "message": types.StringType, "since": types.StringType}
	poolTypes      = map[string]attr.Type{"path": types.StringType, "file_system": types.StringType, "embedded": types.BoolType, "size_bytes": types.Int64Type, "used_bytes": types.Int64Type}
	hostTypes      = map[string]attr.Type{
		"name": types.StringType, "version": types.StringType, "kernel": types.StringType, "cgroup_mode": types.StringType, "architecture": types.StringType, "started_at": types.StringType,
		"capacity": types.ObjectType{AttrTypes: resourcesTypes}, "promised": types.ObjectType{AttrTypes: resourcesTypes}, "free": types.ObjectType{AttrTypes: resourcesTypes},
		"conditions": types.ListType{ElemType: types.ObjectType{AttrTypes: conditionTypes}}, "pool": types.ObjectType{AttrTypes: poolTypes},
		"servers": types.Int64Type, "running_servers": types.Int64Type, "images": types.SetType{ElemType: types.StringType}, "underlay_address": types.StringType,
	}
)

var severities = map[reflejov1.Condition_Severity]string{
	reflejov1.Condition_SEVERITY_INFO: "info", reflejov1.Condition_SEVERITY_WARNING: "warning", reflejov1.Condition_SEVERITY_ERROR: "error",
}

func resourcesValue(r *reflejov1.Resources) types.Object {
	return types.ObjectValueMust(resourcesTypes, map[string]attr.Value{
		"cores": types.NumberValue(coresNumber(r.GetMilliCores())), "memory_bytes": types.Int64Value(r.GetMemoryBytes()), "disk_bytes": types.Int64Value(r.GetDiskBytes()),
		"ingress_bps": types.Int64Value(r.GetIngressBps()), "egress_bps": types.Int64Value(r.GetEgressBps()),
	})
}

func newHostModel(h *reflejov1.Host) hostModel {
	conditions := make([]attr.Value, 0, len(h.GetConditions()))
	for _, c := range h.GetConditions() {
		conditions = append(conditions, types.ObjectValueMust(conditionTypes, map[string]attr.Value{
			"type": types.StringValue(c.GetType()), "severity": types.StringValue(orText(severities[c.GetSeverity()], "info")),
			"message": types.StringValue(c.GetMessage()), "since": timeValue(c.GetSince()),
		}))
	}
	pool := h.GetPool()
	return hostModel{
		Name: types.StringValue(h.GetName()), Version: types.StringValue(h.GetVersion()), Kernel: types.StringValue(h.GetKernel()),
		CgroupMode: types.StringValue(h.GetCgroupMode()), Architecture: types.StringValue(h.GetArchitecture()), StartedAt: timeValue(h.GetStartedAt()),
		Capacity: resourcesValue(h.GetCapacity()), Promised: resourcesValue(h.GetPromised()), Free: resourcesValue(h.GetFree()),
		Conditions: types.ListValueMust(types.ObjectType{AttrTypes: conditionTypes}, conditions),
		Pool: types.ObjectValueMust(poolTypes, map[string]attr.Value{
			"path": types.StringValue(pool.GetPath()), "file_system": types.StringValue(pool.GetFileSystem()), "embedded": types.BoolValue(pool.GetEmbedded()),
			"size_bytes": types.Int64Value(pool.GetSizeBytes()), "used_bytes": types.Int64Value(pool.GetUsedBytes()),
		}),
		Servers: types.Int64Value(int64(h.GetServers())), RunningServers: types.Int64Value(int64(h.GetRunningServers())),
		Images: stringSet(h.GetImages()), UnderlayAddress: types.StringValue(h.GetUnderlayAddress()),
	}
}

func computedString(what string) schema.Attribute {
	return schema.StringAttribute{Computed: true, MarkdownDescription: what}
}

func computedInt64(what string) schema.Attribute {
	return schema.Int64Attribute{Computed: true, MarkdownDescription: what}
}

func resourcesSchema(what string) schema.Attribute {
	return schema.SingleNestedAttribute{
		Computed: true, MarkdownDescription: what,
		Attributes: map[string]schema.Attribute{
			"cores":        schema.NumberAttribute{Computed: true, MarkdownDescription: "Processor cores."},
			"memory_bytes": computedInt64("Memory, bytes."),
			"disk_bytes":   computedInt64("Disk, bytes."),
			"ingress_bps":  computedInt64("Bandwidth towards servers, bits per second; 0 where the host does not account it."),
			"egress_bps":   computedInt64("Bandwidth from servers, bits per second; 0 where the host does not account it."),
		},
	}
}

// hostAttributes are what is known of a host, apart from its name.
func hostAttributes() map[string]schema.Attribute {
	return map[string]schema.Attribute{
		"version":      computedString("Version of its agent."),
		"kernel":       computedString("Release of its kernel."),
		"cgroup_mode":  computedString("How its kernel limits servers: `unified`, `hybrid` or `legacy`."),
		"architecture": computedString("Processor architecture: `amd64`, `arm64`."),
		"started_at":   computedString("When its agent started, RFC 3339."),
		"capacity":     resourcesSchema("What it can promise to servers in all; its own reserve is taken off already."),
		"promised":     resourcesSchema("What it has promised to servers, running or not."),
		"free":         resourcesSchema("What it can still promise."),
		"conditions": schema.ListNestedAttribute{
			Computed: true, MarkdownDescription: "What an operator should know about it.",
			NestedObject: schema.NestedAttributeObject{Attributes: map[string]schema.Attribute{
				"type":     computedString("A word for the condition that never changes, such as `PoolIsAFile`."),
				"severity": computedString("`info`, `warning` or `error`."),
				"message":  computedString("What there is, and what to do."),
				"since":    computedString("Since when, RFC 3339."),
			}},
		},
		"pool": schema.SingleNestedAttribute{
			Computed: true, MarkdownDescription: "Where its servers' disks are.",
			Attributes: map[string]schema.Attribute{
				"path":        computedString("Directory on the host."),
				"file_system": computedString("`xfs` or `btrfs`."),
				"embedded":    schema.BoolAttribute{Computed: true, MarkdownDescription: "Whether the agent made the pool in a file of another file system."},
				"size_bytes":  computedInt64("Size, bytes."),
				"used_bytes":  computedInt64("In use, bytes."),
			},
		},
		"servers":          computedInt64("Number of its servers."),
		"running_servers":  computedInt64("Number of those that run."),
		"images":           schema.SetAttribute{ElementType: types.StringType, Computed: true, MarkdownDescription: "Ids of its images."},
		"underlay_address": computedString("Address that other hosts send the traffic of shared networks to."),
	}
}

func (d *hostDataSource) Metadata(_ context.Context, req datasource.MetadataRequest, resp *datasource.MetadataResponse) {
	resp.TypeName = req.ProviderTypeName + "_host"
}

func (d *hostDataSource) Configure(_ context.Context, req datasource.ConfigureRequest, resp *datasource.ConfigureResponse) {
	d.hosts = configured(req.ProviderData, &resp.Diagnostics)
}

func (d *hostDataSource) Schema(_ context.Context, _ datasource.SchemaRequest, resp *datasource.SchemaResponse) {
	attributes := hostAttributes()
	attributes["name"] = schema.StringAttribute{Required: true, MarkdownDescription: "Its name in the provider block.", Validators: []validator.String{nameValidator()}}
	resp.Schema = schema.Schema{MarkdownDescription: "A host: what it has, has promised and has free, and its conditions.", Attributes: attributes}
}

// Read asks the host.
func (d *hostDataSource) Read(ctx context.Context, req datasource.ReadRequest, resp *datasource.ReadResponse) {
	var name types.String
	resp.Diagnostics.Append(req.Config.GetAttribute(ctx, path.Root("name"), &name)...)
	if resp.Diagnostics.HasError() {
		return
	}
	h, err := d.hosts.get(name.ValueString())
	var described *reflejov1.Host
	if err == nil {
		described, err = h.describe(ctx)
	}
	if err != nil {
		diagnostic := failed("Host "+name.ValueString()+" could not be read", err)
		resp.Diagnostics.AddAttributeError(path.Root("name"), diagnostic.Summary(), diagnostic.Detail())
		return
	}
	m := newHostModel(described)
	m.Name = name
	resp.Diagnostics.Append(resp.State.Set(ctx, &m)...)
}

func (d *hostsDataSource) Metadata(_ context.Context, req datasource.MetadataRequest, resp *datasource.MetadataResponse) {
	resp.TypeName = req.ProviderTypeName + "_hosts"
}

func (d *hostsDataSource) Configure(_ context.Context, req datasource.ConfigureRequest, resp *datasource.ConfigureResponse) {
	d.hosts = configured(req.ProviderData, &resp.Diagnostics)
}

func (d *hostsDataSource) Schema(_ context.Context, _ datasource.SchemaRequest, resp *datasource.SchemaResponse) {
	attributes := hostAttributes()
	attributes["name"] = computedString("Its name in the provider block.")
	resp.Schema = schema.Schema{
		MarkdownDescription: "All hosts of the provider block. A host that does not answer is left out of `hosts`, named in `unreachable`, and a warning.",
		Attributes: map[string]schema.Attribute{
			"hosts": schema.MapNestedAttribute{
				Computed: true, MarkdownDescription: "The hosts that answer, by name.",
				NestedObject: schema.NestedAttributeObject{Attributes: attributes},
			},
			"unreachable": schema.SetAttribute{ElementType: types.StringType, Computed: true, MarkdownDescription: "Names of the hosts that do not answer."},
		},
	}
}

// Read asks all hosts at once.
func (d *hostsDataSource) Read(ctx context.Context, _ datasource.ReadRequest, resp *datasource.ReadResponse) {
	if d.hosts.unknown != "" {
		_, err := d.hosts.get("")
		resp.Diagnostics.Append(failed("Hosts could not be read", err))
		return
	}
	there, unreachable := map[string]hostModel{}, []string{}
	for _, a := range each(ctx, d.hosts, d.hosts.names(), func(ctx context.Context, h *host) (*reflejov1.Host, error) { return h.describe(ctx) }) {
		if a.err != nil {
			unreachable = append(unreachable, a.name)
			resp.Diagnostics.AddWarning("Host "+a.name+" could not be read", sentence(a.err.Error()))
			continue
		}
		m := newHostModel(a.value)
		m.Name = types.StringValue(a.name)
		there[a.name] = m
	}
	hosts, diags := types.MapValueFrom(ctx, types.ObjectType{AttrTypes: hostTypes}, there)
	resp.Diagnostics.Append(diags...)
	resp.Diagnostics.Append(resp.State.SetAttribute(ctx, path.Root("hosts"), hosts)...)
	resp.Diagnostics.Append(resp.State.SetAttribute(ctx, path.Root("unreachable"), stringSet(unreachable))...)
}
