package provider

import (
	"context"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/hashicorp/terraform-plugin-framework/diag"
	"github.com/hashicorp/terraform-plugin-framework/path"
	"github.com/hashicorp/terraform-plugin-framework/resource"
	"github.com/hashicorp/terraform-plugin-framework/tfsdk"
	"github.com/hashicorp/terraform-plugin-framework/types"
	"github.com/hashicorp/terraform-plugin-go/tftypes"

	reflejov1 "github.com/reflejo/terraform-provider-reflejo/agent/api/reflejo/v1"
	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
)

// reference is what a user calls something: "name", an id, or either after "host/".
type reference struct{ host, ref string }

// parseReference reads a reference to something whose ids have the form of the pattern.
func parseReference(text, what string, id *regexp.Regexp) (reference, error) {
	r := reference{ref: text}
	if host, ref, found := strings.Cut(text, "/"); found {
		r = reference{host: host, ref: ref}
		if !labelPattern.MatchString(host) {
			return r, fmt.Errorf("%q is not the name of a host", clip(host))
		}
	}
	if !id.MatchString(r.ref) && !labelPattern.MatchString(r.ref) {
		return r, fmt.Errorf("%q names no %s: write its name, its id, or HOST/NAME", clip(text), what)
	}
	return r, nil
}

// importReference is what an import asks for: an identity's id, or the text after the address.
func importReference(ctx context.Context, req resource.ImportStateRequest, what string, id *regexp.Regexp, diags *diag.Diagnostics) (reference, bool) {
	text := req.ID
	if text == "" && req.Identity != nil {
		var fromIdentity types.String
		diags.Append(req.Identity.GetAttribute(ctx, path.Root("id"), &fromIdentity)...)
		text = fromIdentity.ValueString()
	}
	r, err := parseReference(text, what, id)
	if err != nil {
		diags.AddError("Nothing to import", sentence(err.Error()))
	}
	return r, err == nil && !diags.HasError()
}

// where are the hosts that a reference may mean.
func (h *hosts) where(r reference) ([]string, error) {
	if h.unknown != "" {
		_, err := h.get("")
		return nil, err
	}
	if r.host == "" {
		return h.names(), nil
	}
	_, err := h.get(r.host)
	return []string{r.host}, err
}

// find looks for one thing on the hosts that a reference may mean; several finds are the
// answers of the hosts that have it, in order. A host that does not answer is a warning if
// the thing was found elsewhere, else the error. The error is fault.NotFound only if all
// answered that they do not have it.
func find[T any](ctx context.Context, h *hosts, r reference, what string, get func(context.Context, *host) (T, error)) (found []answer[T], warnings diag.Diagnostics, err error) {
	names, err := h.where(r)
	if err != nil {
		return nil, nil, err
	}
	var silent error
	for _, a := range each(ctx, h, names, get) {
		switch {
		case a.err == nil:
			found = append(found, a)
		case !fault.Is(a.err, fault.NotFound):
			silent = a.err
			warnings.AddWarning("Host "+a.name+" could not be asked", sentence(a.err.Error())+"\n\nThe "+what+" "+r.ref+" was looked for on the other hosts only.")
		}
	}
	switch {
	case len(found) > 0:
		return found, warnings, nil
	case silent != nil:
		return nil, nil, silent
	}
	return nil, nil, fault.New(fault.NotFound, "no %s %s on %s", what, r.ref, strings.Join(names, ", "))
}

// findServer looks for exactly one server.
func (h *hosts) findServer(ctx context.Context, r reference) (*host, *reflejov1.Server, diag.Diagnostics, error) {
	found, warnings, err := find(ctx, h, r, "server", func(ctx context.Context, one *host) (*reflejov1.Server, error) {
		return one.server(ctx, r.ref)
	})
	if err != nil {
		return nil, nil, nil, err
	}
	if len(found) > 1 {
		var names []string
		for _, f := range found {
			names = append(names, f.name+"/"+r.ref)
		}
		return nil, nil, nil, fault.New(fault.Invalid, "several hosts have a server %s: write one of %s", r.ref, strings.Join(names, ", "))
	}
	return found[0].host, found[0].value, warnings, nil
}

// findNetwork looks for a network on all its hosts.
func (h *hosts) findNetwork(ctx context.Context, r reference) (map[string]*reflejov1.Network, diag.Diagnostics, error) {
	found, warnings, err := find(ctx, h, r, "network", func(ctx context.Context, one *host) (*reflejov1.Network, error) {
		resp, err := ask(ctx, one, one.Networks.GetNetwork, &reflejov1.GetNetworkRequest{Id: r.ref})
		return resp.GetNetwork(), err
	})
	if err != nil {
		return nil, nil, err
	}
	there, ids := map[string]*reflejov1.Network{}, []string{}
	for _, f := range found {
		there[f.name] = f.value
		ids = append(ids, f.name+"/"+f.value.GetSpec().GetId())
	}
	for _, network := range there {
		if network.GetSpec().GetId() != found[0].value.GetSpec().GetId() {
			return nil, nil, fault.New(fault.Invalid, "hosts have different networks called %s: write one of %s", r.ref, strings.Join(ids, ", "))
		}
	}
	return there, warnings, nil
}

// findImage looks for an image on all its hosts.
func (h *hosts) findImage(ctx context.Context, r reference) (map[string]*reflejov1.Image, diag.Diagnostics, error) {
	found, warnings, err := find(ctx, h, r, "image", func(ctx context.Context, one *host) (*reflejov1.Image, error) {
		resp, err := ask(ctx, one, one.Images.GetImage, &reflejov1.GetImageRequest{Id: r.ref})
		return resp.GetImage(), err
	})
	if err != nil {
		return nil, nil, err
	}
	there, ids := map[string]*reflejov1.Image{}, []string{}
	for _, f := range found {
		there[f.name] = f.value
		ids = append(ids, f.name+"/"+f.value.GetId())
	}
	for _, image := range there {
		if image.GetId() != found[0].value.GetId() {
			return nil, nil, fault.New(fault.Invalid, "hosts have different images called %s: write one of %s", r.ref, strings.Join(ids, ", "))
		}
	}
	return there, warnings, nil
}

// ImportState finds a server by name, host/name or id.
func (r *serverResource) ImportState(ctx context.Context, req resource.ImportStateRequest, resp *resource.ImportStateResponse) {
	ref, ok := importReference(ctx, req, "server", uuidPattern, &resp.Diagnostics)
	if !ok {
		return
	}
	_, server, warnings, err := r.hosts.findServer(ctx, ref)
	if err != nil {
		resp.Diagnostics.Append(failed("Server "+ref.ref+" could not be imported", err))
		return
	}
	resp.Diagnostics.Append(warnings...)
	state, diags := newServerModel(ctx, resp.State, server)
	resp.Diagnostics.Append(diags...)
	resp.Diagnostics.Append(resp.State.Set(ctx, &state)...)
	setIdentity(ctx, resp.Identity, state.ID, &resp.Diagnostics)
}

// newServerModel is a server of which Terraform knew nothing so far. Blank gives the schema.
func newServerModel(ctx context.Context, blank tfsdk.State, server *reflejov1.Server) (serverModel, diag.Diagnostics) {
	m, diags := blankModel[serverModel](ctx, blank)
	diags.Append(m.refresh(ctx, server, func(string, string) bool { return false })...)
	return m, diags
}

// blankModel reads a model in which everything is null.
func blankModel[T any](ctx context.Context, blank tfsdk.State) (m T, diags diag.Diagnostics) {
	object, ok := blank.Schema.Type().TerraformType(ctx).(tftypes.Object)
	if !ok {
		diags.AddError("Unexpected schema", "Please report this to the provider's developers.")
		return m, diags
	}
	values := make(map[string]tftypes.Value, len(object.AttributeTypes))
	for name, t := range object.AttributeTypes {
		values[name] = tftypes.NewValue(t, nil)
	}
	state := tfsdk.State{Schema: blank.Schema, Raw: tftypes.NewValue(object, values)}
	diags = state.Get(ctx, &m)
	return m, diags
}

// ImportState finds a network by name, host/name or id.
func (r *networkResource) ImportState(ctx context.Context, req resource.ImportStateRequest, resp *resource.ImportStateResponse) {
	ref, ok := importReference(ctx, req, "network", uuidPattern, &resp.Diagnostics)
	if !ok {
		return
	}
	there, warnings, err := r.hosts.findNetwork(ctx, ref)
	if err != nil {
		resp.Diagnostics.Append(failed("Network "+ref.ref+" could not be imported", err))
		return
	}
	resp.Diagnostics.Append(warnings...)
	first := there[sortedKeys(there)[0]]
	if first.GetDefaultNetwork() {
		resp.Diagnostics.AddError("The default network can't be imported", "It comes from the configuration of its host's agent and can't be changed from here. Read it with data \"reflejo_network\".")
		return
	}
	state := r.model(ctx, there)
	resp.Diagnostics.Append(resp.State.Set(ctx, &state)...)
	setIdentity(ctx, resp.Identity, state.ID, &resp.Diagnostics)
}

// model is a network of which Terraform knew nothing so far, completed from all its hosts.
func (r *networkResource) model(ctx context.Context, there map[string]*reflejov1.Network) networkModel {
	first := there[sortedKeys(there)[0]].GetSpec()
	d := r.askAll(ctx, first.GetId(), sortedKeys(there))
	m := networkModel{Name: types.StringValue(first.GetName()), CIDR: types.StringValue(first.GetCidr()), NAT: types.BoolValue(first.GetNat()),
		Hosts: stringSet(sortedKeys(there)), Gateways: types.MapNull(types.StringType), ID: types.StringValue(first.GetId())}
	if len(d.there) == 0 { // gone, or silent, since it was found
		d.there = there
	}
	m.refresh(d)
	return m
}

// ImportState finds an image by name, host/name or id, on all hosts that have it.
func (r *imageResource) ImportState(ctx context.Context, req resource.ImportStateRequest, resp *resource.ImportStateResponse) {
	ref, ok := importReference(ctx, req, "image", digestPattern, &resp.Diagnostics)
	if !ok {
		return
	}
	there, warnings, err := r.hosts.findImage(ctx, ref)
	if err != nil {
		resp.Diagnostics.Append(failed("Image "+ref.ref+" could not be imported", err))
		return
	}
	resp.Diagnostics.Append(warnings...)
	if ref.host != "" { // it says which image is meant, not which of its hosts count
		first := there[ref.host]
		there, _ = r.known(ctx, imageModel{Name: types.StringValue(first.GetName()), ID: types.StringValue(first.GetId())}, r.hosts.names())
		there[ref.host] = first
	}
	state, diags := newImageModel(ctx, resp.State, there)
	resp.Diagnostics.Append(diags...)
	resp.Diagnostics.Append(resp.State.Set(ctx, &state)...)
	setIdentity(ctx, resp.Identity, state.ID, &resp.Diagnostics)
}

func newImageModel(ctx context.Context, blank tfsdk.State, there map[string]*reflejov1.Image) (imageModel, diag.Diagnostics) {
	m, diags := blankModel[imageModel](ctx, blank)
	names := sortedKeys(there)
	first := there[names[0]]
	m.observe(first)
	m.Name, m.Source, m.Checksum = types.StringValue(first.GetName()), types.StringValue(first.GetSource()), optionalString(first.GetChecksum())
	m.Hosts = stringSet(slices.DeleteFunc(names, func(n string) bool { return there[n].GetName() != first.GetName() }))
	return m, diags
}
