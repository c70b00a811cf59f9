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
)

// serverDataSource is data reflejo_virtual_server, serversDataSource data reflejo_virtual_servers.
type (
	serverDataSource  struct{ hosts *hosts }
	serversDataSource struct{ hosts *hosts }
)

var (
	_ datasource.DataSourceWithConfigure = (*serverDataSource)(nil)
	_ datasource.DataSourceWithConfigure = (*serversDataSource)(nil)
)

type serverDataModel struct {
	Name            types.String `tfsdk:"name"`
	Host            types.String `tfsdk:"host"`
	ID              types.String `tfsdk:"id"`
	Image           types.String `tfsdk:"image"`
	ImageName       types.String `tfsdk:"image_name"`
	Power           types.String `tfsdk:"power"`
	State           types.String `tfsdk:"state"`
	Hostname        types.String `tfsdk:"hostname"`
	Cores           types.Number `tfsdk:"cores"`
	MemoryBytes     types.Int64  `tfsdk:"memory_bytes"`
	DiskBytes       types.Int64  `tfsdk:"disk_bytes"`
	DiskUsed        types.Int64  `tfsdk:"disk_used"`
	MemoryUsed      types.Int64  `tfsdk:"memory_used"`
	CPUSeconds      types.Number `tfsdk:"cpu_seconds"`
	Tasks           types.Int64  `tfsdk:"tasks"`
	OOMKills        types.Int64  `tfsdk:"oom_kills"`
	Addresses       types.Map    `tfsdk:"addresses"`
	MAC             types.Map    `tfsdk:"mac"`
	Labels          types.Map    `tfsdk:"labels"`
	CreatedAt       types.String `tfsdk:"created_at"`
	StartedAt       types.String `tfsdk:"started_at"`
	Messages        types.List   `tfsdk:"messages"`
	FirstBootServed types.String `tfsdk:"first_boot_version"`
}

var serverDataTypes = map[string]attr.Type{
	"name": types.StringType, "host": types.StringType, "id": types.StringType, "image": types.StringType, "image_name": types.StringType,
	"power": types.StringType, "state": types.StringType, "hostname": types.StringType, "cores": types.NumberType,
	"memory_bytes": types.Int64Type, "disk_bytes": types.Int64Type, "disk_used": types.Int64Type, "memory_used": types.Int64Type,
	"cpu_seconds": types.NumberType, "tasks": types.Int64Type, "oom_kills": types.Int64Type,
	"addresses": types.MapType{ElemType: types.StringType}, "mac": types.MapType{ElemType: types.StringType}, "labels": types.MapType{ElemType: types.StringType},
	"created_at": types.StringType, "started_at": types.StringType, "messages": types.ListType{ElemType: types.StringType}, "first_boot_version": types.StringType,
}

func newServerDataModel(s *reflejov1.Server) serverDataModel {
	var observed serverModel
	observed.observe(s)
	spec, usage := s.GetSpec(), s.GetUsage()
	messages := make([]string, 0, len(s.GetMessages()))
	for _, m := range s.GetMessages() {
		messages = append(messages, timeValue(m.GetTime()).ValueString()+" "+m.GetText())
	}
	return serverDataModel{
		Name: types.StringValue(spec.GetName()), Host: observed.Host, ID: observed.ID,
		Image: types.StringValue(spec.GetImage()), ImageName: optionalString(s.GetImageName()),
		Power: optionalString(spec.GetPower()), State: observed.State, Hostname: types.StringValue(orText(spec.GetHostname(), spec.GetName())),
		Cores: types.NumberValue(coresNumber(spec.GetCpu().GetMilliCores())), MemoryBytes: types.Int64Value(spec.GetMemory().GetMax()), DiskBytes: types.Int64Value(spec.GetDisk().GetSize()),
		DiskUsed: observed.DiskUsed, MemoryUsed: types.Int64Value(usage.GetMemoryUsed()),
		CPUSeconds: types.NumberValue(coresNumber(usage.GetCpu().AsDuration().Milliseconds())), Tasks: types.Int64Value(usage.GetTasks()), OOMKills: types.Int64Value(usage.GetOomKills()),
		Addresses: observed.Addresses, MAC: observed.MAC, Labels: stringMapValue(spec.GetLabels()),
		CreatedAt: observed.CreatedAt, StartedAt: timeValue(s.GetStartedAt()), Messages: types.ListValueMust(types.StringType, stringValues(messages)),
		FirstBootServed: optionalString(spec.GetFirstBootVersion()),
	}
}

// serverAttributes are what is known of a server, apart from its name and host.
func serverAttributes() map[string]schema.Attribute {
	texts := func(what string) schema.Attribute {
		return schema.MapAttribute{ElementType: types.StringType, Computed: true, MarkdownDescription: what}
	}
	return map[string]schema.Attribute{
		"id":                 computedString("UUID."),
		"image":              computedString("Id of the image that its disk was made from."),
		"image_name":         computedString("Name of that image; null if it has none any more."),
		"power":              computedString("Power that is wanted; null if it is not managed."),
		"state":              computedString("What it is now: `creating`, `running`, `stopped`, `suspended`, `deleting` or `failed`."),
		"hostname":           computedString("Host name inside."),
		"cores":              schema.NumberAttribute{Computed: true, MarkdownDescription: "Most processor time, in cores."},
		"memory_bytes":       computedInt64("Memory, bytes."),
		"disk_bytes":         computedInt64("Size of its disk, bytes."),
		"disk_used":          computedInt64("Bytes of the pool that its disk takes."),
		"memory_used":        computedInt64("Memory in use, bytes; 0 if it does not run."),
		"cpu_seconds":        schema.NumberAttribute{Computed: true, MarkdownDescription: "Processor time used since it was started, seconds."},
		"tasks":              computedInt64("Processes and threads."),
		"oom_kills":          computedInt64("How often a process was ended for want of memory since it was started."),
		"addresses":          texts("IPv4 address by interface, without prefix length."),
		"mac":                texts("MAC address by interface."),
		"labels":             texts("Its labels."),
		"created_at":         computedString("When it was created, RFC 3339."),
		"started_at":         computedString("When it was last started, RFC 3339; null if it does not run."),
		"messages":           schema.ListAttribute{ElementType: types.StringType, Computed: true, MarkdownDescription: "What happened to it by itself, each with its time."},
		"first_boot_version": computedString("Version of its first-boot data."),
	}
}

func (d *serverDataSource) Metadata(_ context.Context, req datasource.MetadataRequest, resp *datasource.MetadataResponse) {
	resp.TypeName = req.ProviderTypeName + "_virtual_server"
}

func (d *serverDataSource) Configure(_ context.Context, req datasource.ConfigureRequest, resp *datasource.ConfigureResponse) {
	d.hosts = configured(req.ProviderData, &resp.Diagnostics)
}

func (d *serverDataSource) Schema(_ context.Context, _ datasource.SchemaRequest, resp *datasource.SchemaResponse) {
	attributes := serverAttributes()
	attributes["name"] = schema.StringAttribute{Required: true, MarkdownDescription: "Its name or id.", Validators: []validator.String{referenceValidator("a server", uuidPattern)}}
	attributes["host"] = schema.StringAttribute{
		Optional: true, Computed: true, Validators: []validator.String{nameValidator()},
		MarkdownDescription: "The host it lives on. If left out, all are asked; it is an error if several have a server of this name.",
	}
	resp.Schema = schema.Schema{MarkdownDescription: "A virtual server, whoever made it, with what it uses at the moment.", Attributes: attributes}
}

// Read looks for the server.
func (d *serverDataSource) Read(ctx context.Context, req datasource.ReadRequest, resp *datasource.ReadResponse) {
	var name, host types.String
	resp.Diagnostics.Append(req.Config.GetAttribute(ctx, path.Root("name"), &name)...)
	resp.Diagnostics.Append(req.Config.GetAttribute(ctx, path.Root("host"), &host)...)
	if resp.Diagnostics.HasError() {
		return
	}
	h, server, warnings, err := d.hosts.findServer(ctx, reference{host: host.ValueString(), ref: name.ValueString()})
	if err == nil {
		var withUsage *reflejov1.GetServerResponse
		withUsage, err = ask(ctx, h, h.Servers.GetServer, &reflejov1.GetServerRequest{Id: server.GetSpec().GetId(), Usage: true})
		server = withUsage.GetServer()
	}
	if err != nil {
		resp.Diagnostics.Append(notFound("Server "+name.ValueString()+" could not be read", err))
		return
	}
	resp.Diagnostics.Append(warnings...)
	m := newServerDataModel(server)
	m.Name, m.Host = name, types.StringValue(h.name)
	resp.Diagnostics.Append(resp.State.Set(ctx, &m)...)
}

type serversModel struct {
	Host    types.String `tfsdk:"host"`
	State   types.String `tfsdk:"state"`
	Labels  types.Map    `tfsdk:"labels"`
	Servers types.List   `tfsdk:"servers"`
}

func (d *serversDataSource) Metadata(_ context.Context, req datasource.MetadataRequest, resp *datasource.MetadataResponse) {
	resp.TypeName = req.ProviderTypeName + "_virtual_servers"
}

func (d *serversDataSource) Configure(_ context.Context, req datasource.ConfigureRequest, resp *datasource.ConfigureResponse) {
	d.hosts = configured(req.ProviderData, &resp.Diagnostics)
}

func (d *serversDataSource) Schema(_ context.Context, _ datasource.SchemaRequest, resp *datasource.SchemaResponse) {
	attributes := serverAttributes()
	attributes["name"], attributes["host"] = computedString("Its name."), computedString("The host it lives on.")
	resp.Schema = schema.Schema{
		MarkdownDescription: "The virtual servers of all hosts, or those that match. A host that does not answer is an error, since a list that leaves something out would be a wrong one.",
		Attributes: map[string]schema.Attribute{
			"host":  optionalHost("Only those of this host."),
			"state": schema.StringAttribute{Optional: true, MarkdownDescription: "Only those in this state.", Validators: []validator.String{stringvalidator.OneOf("creating", "running", "stopped", "suspended", "deleting", "failed")}},
			"labels": schema.MapAttribute{
				ElementType: types.StringType, Optional: true, MarkdownDescription: "Only those that have all of these labels.",
				Validators: []validator.Map{mapvalidator.SizeAtLeast(1), mapvalidator.KeysAre(labelKeyValidator()), mapvalidator.NoNullValues()},
			},
			"servers": schema.ListNestedAttribute{
				Computed: true, MarkdownDescription: "The servers, by host and name.",
				NestedObject: schema.NestedAttributeObject{Attributes: attributes},
			},
		},
	}
}

// Read asks all hosts at once.
func (d *serversDataSource) Read(ctx context.Context, req datasource.ReadRequest, resp *datasource.ReadResponse) {
	var m serversModel
	resp.Diagnostics.Append(req.Config.Get(ctx, &m)...)
	if resp.Diagnostics.HasError() {
		return
	}
	names, err := d.hosts.where(reference{host: m.Host.ValueString()})
	if err != nil {
		at := path.Root("host")
		resp.Diagnostics.AddAttributeError(at, "Servers could not be read", invalid(at, err.Error()))
		return
	}
	answers, diags := collect(ctx, d.hosts, names, func(ctx context.Context, h *host) ([]*reflejov1.Server, error) {
		list, err := ask(ctx, h, h.Servers.ListServers, &reflejov1.ListServersRequest{Usage: true})
		return here(list.GetServers()), err
	})
	resp.Diagnostics.Append(diags...)
	wanted := stringMap(m.Labels)
	servers := []serverDataModel{}
	for _, a := range answers {
		for _, s := range a.value {
			if matches(s, m.State.ValueString(), wanted) {
				one := newServerDataModel(s)
				one.Host = types.StringValue(a.name)
				servers = append(servers, one)
			}
		}
	}
	slices.SortFunc(servers, func(a, b serverDataModel) int {
		return cmp.Or(cmp.Compare(a.Host.ValueString(), b.Host.ValueString()), cmp.Compare(a.Name.ValueString(), b.Name.ValueString()))
	})
	list, diags := types.ListValueFrom(ctx, types.ObjectType{AttrTypes: serverDataTypes}, servers)
	resp.Diagnostics.Append(diags...)
	m.Servers = list
	resp.Diagnostics.Append(resp.State.Set(ctx, &m)...)
}

func matches(s *reflejov1.Server, state string, labels map[string]string) bool {
	if state != "" && s.GetState() != state {
		return false
	}
	return labelled(s.GetSpec().GetLabels(), labels)
}
