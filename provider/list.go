package provider

import (
	"context"
	"fmt"
	"iter"
	"slices"

	"github.com/hashicorp/terraform-plugin-framework-validators/listvalidator"
	"github.com/hashicorp/terraform-plugin-framework/diag"
	"github.com/hashicorp/terraform-plugin-framework/list"
	"github.com/hashicorp/terraform-plugin-framework/list/schema"
	"github.com/hashicorp/terraform-plugin-framework/path"
	"github.com/hashicorp/terraform-plugin-framework/schema/validator"
	"github.com/hashicorp/terraform-plugin-framework/tfsdk"
	"github.com/hashicorp/terraform-plugin-framework/types"

	reflejov1 "github.com/reflejo/terraform-provider-reflejo/agent/api/reflejo/v1"
)

// listModel is the configuration of every list block: which hosts to look on.
type listModel struct {
	Hosts types.List `tfsdk:"hosts"`
}

func listSchema(what string) schema.Schema {
	return schema.Schema{
		MarkdownDescription: "Lists the " + what + " of hosts, to find and import what Terraform does not manage yet. Needs Terraform 1.14.",
		Attributes: map[string]schema.Attribute{
			"hosts": schema.ListAttribute{
				ElementType: types.StringType, Optional: true, MarkdownDescription: "Hosts to look on. If left out, all.",
				Validators: []validator.List{listvalidator.SizeAtLeast(1), listvalidator.ValueStringsAre(nameValidator()), listvalidator.NoNullValues()},
			},
		},
	}
}

// listed is one thing to show.
type listed struct {
	id, display string
	model       func(blank tfsdk.State) (any, diag.Diagnostics)
}

// stream turns what the hosts have into list results. A host that can't be asked is an
// error among the results: a list that leaves something out without a word is a wrong list.
func stream(ctx context.Context, req list.ListRequest, items []listed, diags diag.Diagnostics) iter.Seq[list.ListResult] {
	return func(push func(list.ListResult) bool) {
		if len(diags) > 0 && !push(list.ListResult{Diagnostics: diags}) {
			return
		}
		for i, item := range items {
			if req.Limit > 0 && int64(i) >= req.Limit {
				return
			}
			result := req.NewListResult(ctx)
			result.DisplayName = item.display
			result.Diagnostics.Append(result.Identity.SetAttribute(ctx, path.Root("id"), item.id)...)
			if req.IncludeResource {
				m, more := item.model(tfsdk.State{Schema: result.Resource.Schema, Raw: result.Resource.Raw})
				result.Diagnostics.Append(more...)
				result.Diagnostics.Append(result.Resource.Set(ctx, m)...)
			}
			if !push(result) {
				return
			}
		}
	}
}

// listHosts are the hosts that a list block means.
func (h *hosts) listHosts(ctx context.Context, config tfsdk.Config) ([]string, diag.Diagnostics) {
	var m listModel
	diags := config.Get(ctx, &m)
	if diags.HasError() {
		return nil, diags
	}
	if h == nil {
		diags.AddError("Provider is not configured", "Hosts can't be listed before the provider is configured.")
		return nil, diags
	}
	names := stringsOf(m.Hosts)
	if len(names) == 0 {
		names = h.names()
	}
	for _, name := range names {
		if _, err := h.get(name); err != nil {
			diags.AddAttributeError(path.Root("hosts"), "Unknown host", invalid(path.Root("hosts"), err.Error()))
		}
	}
	return names, diags
}

// collect asks hosts for what they have and reports the silent ones.
func collect[T any](ctx context.Context, h *hosts, names []string, get func(context.Context, *host) (T, error)) (answers []answer[T], diags diag.Diagnostics) {
	for _, a := range each(ctx, h, names, get) {
		if a.err != nil {
			diags.Append(failed("Host "+a.name+" could not be listed", a.err))
			continue
		}
		answers = append(answers, a)
	}
	return answers, diags
}

// ListResourceConfigSchema is the schema of a list block for servers.
func (r *serverResource) ListResourceConfigSchema(_ context.Context, _ list.ListResourceSchemaRequest, resp *list.ListResourceSchemaResponse) {
	resp.Schema = listSchema("virtual servers")
}

// List lists the servers of hosts.
func (r *serverResource) List(ctx context.Context, req list.ListRequest, results *list.ListResultsStream) {
	names, diags := r.hosts.listHosts(ctx, req.Config)
	if diags.HasError() {
		results.Results = list.ListResultsStreamDiagnostics(diags)
		return
	}
	answers, diags := collect(ctx, r.hosts, names, listServers)
	var items []listed
	for _, a := range answers {
		for _, server := range a.value {
			items = append(items, listed{
				id: server.GetSpec().GetId(), display: a.name + "/" + server.GetSpec().GetName(),
				model: func(blank tfsdk.State) (any, diag.Diagnostics) { return modelAny(newServerModel(ctx, blank, server)) },
			})
		}
	}
	results.Results = stream(ctx, req, items, diags)
}

func modelAny[T any](m T, diags diag.Diagnostics) (any, diag.Diagnostics) { return &m, diags }

func listServers(ctx context.Context, h *host) ([]*reflejov1.Server, error) {
	resp, err := ask(ctx, h, h.Servers.ListServers, &reflejov1.ListServersRequest{})
	return here(resp.GetServers()), err
}

// here leaves out servers that another host still has.
func here(servers []*reflejov1.Server) []*reflejov1.Server {
	return slices.DeleteFunc(servers, func(s *reflejov1.Server) bool { return s.GetState() == stateIncoming })
}

// ListResourceConfigSchema is the schema of a list block for networks.
func (r *networkResource) ListResourceConfigSchema(_ context.Context, _ list.ListResourceSchemaRequest, resp *list.ListResourceSchemaResponse) {
	resp.Schema = listSchema("networks")
}

// List lists the networks of hosts, each once; the hosts' default networks are left out, as
// they can't be managed.
func (r *networkResource) List(ctx context.Context, req list.ListRequest, results *list.ListResultsStream) {
	names, diags := r.hosts.listHosts(ctx, req.Config)
	if diags.HasError() {
		results.Results = list.ListResultsStreamDiagnostics(diags)
		return
	}
	answers, diags := collect(ctx, r.hosts, names, func(ctx context.Context, h *host) ([]*reflejov1.Network, error) {
		resp, err := ask(ctx, h, h.Networks.ListNetworks, &reflejov1.ListNetworksRequest{})
		return resp.GetNetworks(), err
	})
	there := map[string]map[string]*reflejov1.Network{}
	for _, a := range answers {
		for _, network := range a.value {
			if id := network.GetSpec().GetId(); !network.GetDefaultNetwork() {
				put(there, id, a.name, network)
			}
		}
	}
	var items []listed
	for _, id := range sortedKeys(there) {
		on := there[id]
		first := on[sortedKeys(on)[0]].GetSpec()
		items = append(items, listed{id: id, display: fmt.Sprintf("%s (%s)", first.GetName(), first.GetCidr()),
			model: func(tfsdk.State) (any, diag.Diagnostics) { return modelAny(r.model(ctx, on), nil) }})
	}
	slices.SortFunc(items, byDisplay)
	results.Results = stream(ctx, req, items, diags)
}

func put[T any](m map[string]map[string]T, id, host string, value T) {
	if m[id] == nil {
		m[id] = map[string]T{}
	}
	m[id][host] = value
}

func byDisplay(a, b listed) int {
	switch {
	case a.display < b.display:
		return -1
	case a.display > b.display:
		return 1
	}
	return 0
}

// ListResourceConfigSchema is the schema of a list block for images.
func (r *imageResource) ListResourceConfigSchema(_ context.Context, _ list.ListResourceSchemaRequest, resp *list.ListResourceSchemaResponse) {
	resp.Schema = listSchema("images")
}

// List lists the images of hosts, each once.
func (r *imageResource) List(ctx context.Context, req list.ListRequest, results *list.ListResultsStream) {
	names, diags := r.hosts.listHosts(ctx, req.Config)
	if diags.HasError() {
		results.Results = list.ListResultsStreamDiagnostics(diags)
		return
	}
	answers, diags := collect(ctx, r.hosts, names, func(ctx context.Context, h *host) ([]*reflejov1.Image, error) {
		resp, err := ask(ctx, h, h.Images.ListImages, &reflejov1.ListImagesRequest{})
		return resp.GetImages(), err
	})
	there := map[string]map[string]*reflejov1.Image{}
	for _, a := range answers {
		for _, image := range a.value {
			put(there, image.GetId()+" "+image.GetName(), a.name, image)
		}
	}
	var items []listed
	for _, key := range sortedKeys(there) {
		on := there[key]
		first := on[sortedKeys(on)[0]]
		items = append(items, listed{id: first.GetId(), display: first.GetName(),
			model: func(blank tfsdk.State) (any, diag.Diagnostics) { return modelAny(newImageModel(ctx, blank, on)) }})
	}
	slices.SortFunc(items, byDisplay)
	results.Results = stream(ctx, req, items, diags)
}
