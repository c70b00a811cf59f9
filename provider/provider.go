package provider

import (
	"context"
	"os"

	"github.com/hashicorp/terraform-plugin-framework/action"
	"github.com/hashicorp/terraform-plugin-framework/datasource"
	"github.com/hashicorp/terraform-plugin-framework/list"
	"github.com/hashicorp/terraform-plugin-framework/path"
	"github.com/hashicorp/terraform-plugin-framework/provider"
	"github.com/hashicorp/terraform-plugin-framework/provider/schema"
	"github.com/hashicorp/terraform-plugin-framework/resource"
	"github.com/hashicorp/terraform-plugin-framework/schema/validator"
	"github.com/hashicorp/terraform-plugin-framework/types"

	"github.com/hashicorp/terraform-plugin-framework-validators/mapvalidator"
	"github.com/hashicorp/terraform-plugin-framework-validators/setvalidator"
	"github.com/hashicorp/terraform-plugin-framework-validators/stringvalidator"
)

// New makes the provider. Version is what `terraform version` and user agents show.
func New(version string) provider.Provider {
	return &reflejoProvider{version: version, getenv: os.Getenv}
}

type reflejoProvider struct {
	version string
	getenv  func(string) string
}

var (
	_ provider.ProviderWithActions        = (*reflejoProvider)(nil)
	_ provider.ProviderWithListResources  = (*reflejoProvider)(nil)
	_ provider.ProviderWithValidateConfig = (*reflejoProvider)(nil)
)

func (p *reflejoProvider) Metadata(_ context.Context, _ provider.MetadataRequest, resp *provider.MetadataResponse) {
	resp.TypeName, resp.Version = "reflejo", p.version
}

func (p *reflejoProvider) Schema(_ context.Context, _ provider.SchemaRequest, resp *provider.SchemaResponse) {
	file := func(what, env string, other path.Expression) schema.StringAttribute {
		return schema.StringAttribute{
			Optional:            true,
			MarkdownDescription: what + " Also from the environment variable `" + env + "`.",
			Validators:          []validator.String{stringvalidator.LengthAtLeast(1), stringvalidator.ConflictsWith(other)},
		}
	}
	pem := func(what, block string, sensitive bool) schema.StringAttribute {
		return schema.StringAttribute{
			Optional: true, Sensitive: sensitive,
			MarkdownDescription: what,
			Validators:          []validator.String{pemValidator(block)},
		}
	}
	root := func(name string) path.Expression { return path.MatchRoot(name) }
	resp.Schema = schema.Schema{
		MarkdownDescription: "Carves Linux hosts into virtual servers. One provider block knows all hosts; a resource names the host it lives on. " +
			"Hosts are called when something on them is needed, so a host that is down fails only what needs it.",
		Attributes: map[string]schema.Attribute{
			"hosts": schema.MapNestedAttribute{
				Optional: true,
				MarkdownDescription: "The hosts, by the name of their agent. Also from the environment variable `REFLEJO_HOSTS` " +
					"(`alpha=198.18.0.11:7443,beta=198.18.0.12:7443`).",
				Validators: []validator.Map{mapvalidator.SizeAtLeast(1), mapvalidator.KeysAre(nameValidator())},
				NestedObject: schema.NestedAttributeObject{Attributes: map[string]schema.Attribute{
					"address": schema.StringAttribute{
						Required:            true,
						MarkdownDescription: "Where the host's agent listens: name or IP address and port, `198.18.0.11:7443`. The port may be left out if it is 7443.",
						Validators:          []validator.String{addressValidator()},
					},
				}},
			},
			"ca_file":   file("PEM file with the certificate of the authority that the agents' certificates come from.", "REFLEJO_CA_FILE", root("ca_pem")),
			"ca_pem":    pem("The authority's certificate itself, instead of `ca_file`.", "CERTIFICATE", false),
			"cert_file": file("PEM file with the certificate that this configuration acts under.", "REFLEJO_CERT_FILE", root("cert_pem")),
			"cert_pem":  pem("The certificate itself, instead of `cert_file`.", "CERTIFICATE", false),
			"key_file":  file("PEM file with the certificate's private key.", "REFLEJO_KEY_FILE", root("key_pem")),
			"key_pem":   pem("The private key itself, instead of `key_file`.", "PRIVATE KEY", true),
			"forget_unreachable": schema.BoolAttribute{
				Optional: true,
				MarkdownDescription: "Let `terraform destroy` forget what lives on a host that does not answer. It is then still on that host if the host comes back. " +
					"Default `false`: destroying it is an error.",
			},
			"lost_hosts": schema.SetAttribute{
				ElementType: types.StringType, Optional: true,
				MarkdownDescription: "Hosts that are gone for good. They are not asked for anything any more. A server that was on one is recovered on another host from its last backup (`backup_policy.target`), under its own id: " +
					"the plan names the backup; what was written since is lost. Should such a host return, its copy stays closed. Also from the environment variable `REFLEJO_LOST_HOSTS` (`alpha,beta`).",
				Validators: []validator.Set{setvalidator.ValueStringsAre(nameValidator()), setvalidator.NoNullValues()},
			},
		},
	}
}

// ValidateConfig checks what needs more than one attribute.
func (p *reflejoProvider) ValidateConfig(ctx context.Context, req provider.ValidateConfigRequest, resp *provider.ValidateConfigResponse) {
	var c providerConfig
	resp.Diagnostics.Append(req.Config.Get(ctx, &c)...)
	if resp.Diagnostics.HasError() {
		return
	}
	resp.Diagnostics.Append(c.validateFiles()...)
}

// Configure reads the configuration and the environment. It calls no host.
func (p *reflejoProvider) Configure(ctx context.Context, req provider.ConfigureRequest, resp *provider.ConfigureResponse) {
	var c providerConfig
	resp.Diagnostics.Append(req.Config.Get(ctx, &c)...)
	if resp.Diagnostics.HasError() {
		return
	}
	h, diags := c.hosts(ctx, p.getenv)
	resp.Diagnostics.Append(diags...)
	if resp.Diagnostics.HasError() {
		return
	}
	resp.ResourceData, resp.DataSourceData, resp.ActionData, resp.ListResourceData = h, h, h, h
}

func (p *reflejoProvider) Resources(context.Context) []func() resource.Resource {
	return []func() resource.Resource{
		func() resource.Resource { return &imageResource{} },
		func() resource.Resource { return &networkResource{} },
		func() resource.Resource { return &serverResource{} },
		func() resource.Resource { return &snapshotResource{} },
		func() resource.Resource { return &backupResource{} },
	}
}

func (p *reflejoProvider) DataSources(context.Context) []func() datasource.DataSource {
	return []func() datasource.DataSource{
		func() datasource.DataSource { return &hostDataSource{} },
		func() datasource.DataSource { return &hostsDataSource{} },
		func() datasource.DataSource { return &imageDataSource{} },
		func() datasource.DataSource { return &networkDataSource{} },
		func() datasource.DataSource { return &serverDataSource{} },
		func() datasource.DataSource { return &serversDataSource{} },
		func() datasource.DataSource { return &snapshotDataSource{} },
		func() datasource.DataSource { return &snapshotsDataSource{} },
		func() datasource.DataSource { return &backupsDataSource{} },
	}
}

func (p *reflejoProvider) Actions(context.Context) []func() action.Action {
	return []func() action.Action{
		func() action.Action { return &rebootAction{} },
		func() action.Action { return &snapshotAction{} },
		func() action.Action { return &restoreAction{} },
	}
}

func (p *reflejoProvider) ListResources(context.Context) []func() list.ListResource {
	return []func() list.ListResource{
		func() list.ListResource { return &imageResource{} },
		func() list.ListResource { return &networkResource{} },
		func() list.ListResource { return &serverResource{} },
		func() list.ListResource { return &snapshotResource{} },
		func() list.ListResource { return &backupResource{} },
	}
}
