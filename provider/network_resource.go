package provider

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/google/uuid"
	"github.com/hashicorp/terraform-plugin-framework-validators/setvalidator"
	"github.com/hashicorp/terraform-plugin-framework/attr"
	"github.com/hashicorp/terraform-plugin-framework/diag"
	"github.com/hashicorp/terraform-plugin-framework/list"
	"github.com/hashicorp/terraform-plugin-framework/path"
	"github.com/hashicorp/terraform-plugin-framework/resource"
	"github.com/hashicorp/terraform-plugin-framework/resource/schema"
	"github.com/hashicorp/terraform-plugin-framework/resource/schema/booldefault"
	"github.com/hashicorp/terraform-plugin-framework/resource/schema/int64planmodifier"
	"github.com/hashicorp/terraform-plugin-framework/resource/schema/planmodifier"
	"github.com/hashicorp/terraform-plugin-framework/resource/schema/stringplanmodifier"
	"github.com/hashicorp/terraform-plugin-framework/schema/validator"
	"github.com/hashicorp/terraform-plugin-framework/types"

	reflejov1 "github.com/reflejo/terraform-provider-reflejo/agent/api/reflejo/v1"
	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
)

// networkResource is reflejo_network.
type networkResource struct{ hosts *hosts }

var (
	_ resource.ResourceWithConfigure      = (*networkResource)(nil)
	_ resource.ResourceWithIdentity       = (*networkResource)(nil)
	_ resource.ResourceWithImportState    = (*networkResource)(nil)
	_ resource.ResourceWithModifyPlan     = (*networkResource)(nil)
	_ resource.ResourceWithValidateConfig = (*networkResource)(nil)
	_ list.ListResourceWithConfigure      = (*networkResource)(nil)
)

func (r *networkResource) Metadata(_ context.Context, req resource.MetadataRequest, resp *resource.MetadataResponse) {
	resp.TypeName = req.ProviderTypeName + "_network"
}

func (r *networkResource) Configure(_ context.Context, req resource.ConfigureRequest, resp *resource.ConfigureResponse) {
	r.hosts = configured(req.ProviderData, &resp.Diagnostics)
}

func (r *networkResource) IdentitySchema(_ context.Context, _ resource.IdentitySchemaRequest, resp *resource.IdentitySchemaResponse) {
	resp.IdentitySchema = idIdentity("UUID of the network.")
}

func (r *networkResource) Schema(_ context.Context, _ resource.SchemaRequest, resp *resource.SchemaResponse) {
	stable := []planmodifier.String{stringplanmodifier.UseStateForUnknown()}
	resp.Schema = schema.Schema{
		MarkdownDescription: "A network: one segment with one address range, on one or several hosts. On several it is carried between them, and servers on different hosts are neighbours. " +
			"Hosts can be added and taken away while servers use it.",
		Attributes: map[string]schema.Attribute{
			"id":    schema.StringAttribute{Computed: true, PlanModifiers: stable, MarkdownDescription: "UUID, made before the network is."},
			"name":  schema.StringAttribute{Required: true, Validators: []validator.String{nameValidator()}, MarkdownDescription: "Name, unique on each of its hosts: a DNS label. Changes in place."},
			"hosts": hostsAttribute("Hosts that it is on. Change in place; a host whose servers use it can't be taken away. At most one host for each 32 addresses of the range, and 64."),
			"cidr": schema.StringAttribute{
				Required: true, Validators: []validator.String{networkRangeValidator()},
				MarkdownDescription: "IPv4 range, `/8` to `/28`, that no other network of its hosts overlaps. The first addresses are the hosts' own (`gateways`). Changes in place while no server uses the network.",
			},
			"nat": schema.BoolAttribute{
				Optional: true, Computed: true, Default: booldefault.StaticBool(true),
				MarkdownDescription: "Whether servers reach the world beyond their hosts, under the host's address. Default: `true`.",
			},
			"gateways": schema.MapAttribute{ElementType: types.StringType, Computed: true, MarkdownDescription: "Each host's own address on the network: the default gateway of its servers."},
			"vni":      schema.Int64Attribute{Computed: true, PlanModifiers: []planmodifier.Int64{int64planmodifier.UseStateForUnknown()}, MarkdownDescription: "VXLAN network identifier between its hosts."},
			"mtu":      schema.Int64Attribute{Computed: true, MarkdownDescription: "Largest packet, bytes."},
		},
	}
}

// hostsAttribute is the set of hosts that something is on.
func hostsAttribute(what string) schema.Attribute {
	return schema.SetAttribute{
		ElementType: types.StringType, Required: true, MarkdownDescription: what,
		Validators: []validator.Set{setvalidator.SizeAtLeast(1), setvalidator.ValueStringsAre(nameValidator()), setvalidator.NoNullValues()},
	}
}

// ValidateConfig checks that the range is large enough for the hosts.
func (r *networkResource) ValidateConfig(ctx context.Context, req resource.ValidateConfigRequest, resp *resource.ValidateConfigResponse) {
	var m networkModel
	resp.Diagnostics.Append(req.Config.Get(ctx, &m)...)
	if resp.Diagnostics.HasError() || !isSet(m.CIDR) || !isSet(m.Hosts) {
		return
	}
	if limit, ok := hostLimit(m.CIDR.ValueString()); ok && len(m.Hosts.Elements()) > limit {
		at := path.Root("hosts")
		resp.Diagnostics.AddAttributeError(at, "Too many hosts for the range",
			invalid(at, fmt.Sprintf("%d hosts; %s has room for %d: use a larger range", len(m.Hosts.Elements()), m.CIDR.ValueString(), limit)))
	}
}

// ModifyPlan finds hosts that are not configured and ranges that can't change, and keeps
// what does not depend on a change.
func (r *networkResource) ModifyPlan(ctx context.Context, req resource.ModifyPlanRequest, resp *resource.ModifyPlanResponse) {
	if req.Plan.Raw.IsNull() {
		return
	}
	var plan networkModel
	resp.Diagnostics.Append(req.Plan.Get(ctx, &plan)...)
	if resp.Diagnostics.HasError() {
		return
	}
	resp.Diagnostics.Append(r.hosts.knows(plan.Hosts)...)
	if req.State.Raw.IsNull() || resp.Diagnostics.HasError() {
		return
	}
	var state networkModel
	resp.Diagnostics.Append(req.State.Get(ctx, &state)...)
	if resp.Diagnostics.HasError() {
		return
	}
	if plan.Hosts.Equal(state.Hosts) && plan.CIDR.Equal(state.CIDR) {
		plan.Gateways, plan.MTU = state.Gateways, state.MTU
	}
	if isSet(plan.CIDR) && !plan.CIDR.Equal(state.CIDR) && r.hosts != nil && r.hosts.unknown == "" {
		d := r.ask(ctx, state.ID.ValueString(), stringsOf(state.Hosts))
		if err := d.inUse(state.Name.ValueString(), sortedKeys(d.there)); err != nil {
			at := path.Root("cidr")
			resp.Diagnostics.AddAttributeError(at, "The range can't change now", invalid(at, err.Error()))
		}
	}
	resp.Diagnostics.Append(resp.Plan.Set(ctx, &plan)...)
}

// knows reports hosts that the provider block does not have. One that is lost stays in the
// definition of what spans it: the rest goes on as it is.
func (h *hosts) knows(names types.Set) (diags diag.Diagnostics) {
	if h == nil || h.unknown != "" {
		return nil
	}
	for _, name := range stringsOf(names) {
		if _, err := h.get(name); err != nil && !errors.Is(err, errLost) {
			at := path.Root("hosts")
			diags.AddAttributeError(at, "Unknown host", invalid(at, err.Error()))
		}
	}
	return diags
}

// ask asks hosts for their definition of a network, by id or name.
func (r *networkResource) ask(ctx context.Context, ref string, names []string) definitions {
	return definitionsOf(each(ctx, r.hosts, names, func(ctx context.Context, h *host) (*reflejov1.Network, error) {
		resp, err := ask(ctx, h, h.Networks.GetNetwork, &reflejov1.GetNetworkRequest{Id: ref})
		return resp.GetNetwork(), err
	}))
}

// askAll asks the hosts and then those that their definitions name beside.
func (r *networkResource) askAll(ctx context.Context, ref string, names []string) definitions {
	d := r.ask(ctx, ref, names)
	others := slices.DeleteFunc(d.named(), func(name string) bool { return slices.Contains(names, name) || r.hosts.byName[name] == nil })
	if len(others) == 0 {
		return d
	}
	more := r.ask(ctx, ref, others)
	maps.Copy(d.there, more.there)
	return d
}

// put makes the network exist on the hosts, new ones first. If one refuses, it is taken
// from the new ones again, so that nothing is half there; the error says if that failed.
func (r *networkResource) put(ctx context.Context, m *networkModel, d definitions) (definitions, error) {
	wanted := stringsOf(m.Hosts)
	underlay, err := r.underlay(ctx, wanted)
	if err != nil {
		return d, err
	}
	limit, _ := hostLimit(m.CIDR.ValueString())
	places, err := members(wanted, underlay, d.members(), limit)
	if err != nil {
		return d, err
	}
	spec := m.spec(places)
	slices.SortStableFunc(wanted, func(a, b string) int { return boolOrder(d.there[a] != nil) - boolOrder(d.there[b] != nil) })
	result := definitions{there: map[string]*reflejov1.Network{}}
	for _, name := range wanted {
		h, err := r.hosts.get(name)
		if err == nil {
			var put *reflejov1.PutNetworkResponse
			put, _, err = persist(ctx, h, h.Networks.PutNetwork, &reflejov1.PutNetworkRequest{Spec: spec}, 4)
			result.there[name] = put.GetNetwork()
		}
		if err != nil {
			delete(result.there, name)
			return result, errors.Join(fmt.Errorf("on host %s: %w", name, err), r.takeBack(ctx, spec.GetId(), result, d, name))
		}
	}
	return result, nil
}

func boolOrder(b bool) int {
	if b {
		return 1
	}
	return 0
}

// takeBack deletes the network from the hosts that did not have it before, and from the
// one that failed if it did not either.
func (r *networkResource) takeBack(ctx context.Context, id string, now, before definitions, failed string) error {
	var errs []error
	for _, name := range append(sortedKeys(now.there), failed) {
		if before.there[name] != nil {
			continue
		}
		if err := r.deleteOn(context.WithoutCancel(ctx), name, id); err != nil {
			errs = append(errs, fmt.Errorf("take it back from host %s: %w", name, err))
			continue
		}
		delete(now.there, name)
	}
	return errors.Join(errs...)
}

// underlay asks every host for the address that the others reach it at, which also shows
// that all answer before anything is touched.
func (r *networkResource) underlay(ctx context.Context, names []string) (map[string]string, error) {
	addresses := map[string]string{}
	for _, a := range each(ctx, r.hosts, names, func(ctx context.Context, h *host) (*reflejov1.Host, error) { return h.describe(ctx) }) {
		if a.err != nil {
			return nil, &fault.Error{Kind: fault.KindOf(a.err), Field: "hosts", Err: fmt.Errorf("%w; nothing was touched", a.err)}
		}
		addresses[a.name] = a.value.GetUnderlayAddress()
		if len(names) > 1 && addresses[a.name] == "" {
			return nil, fault.Field("hosts", "host %s has no underlay address, so a network can't span it; set one in its agent's configuration", a.name)
		}
	}
	return addresses, nil
}

func (r *networkResource) deleteOn(ctx context.Context, name, id string) error {
	h, err := r.hosts.get(name)
	if err != nil {
		return err
	}
	_, _, err = persist(ctx, h, h.Networks.DeleteNetwork, &reflejov1.DeleteNetworkRequest{Id: id}, 4)
	if fault.Is(err, fault.NotFound) {
		return nil
	}
	return err
}

// Create puts the network on its hosts.
func (r *networkResource) Create(ctx context.Context, req resource.CreateRequest, resp *resource.CreateResponse) {
	var plan networkModel
	resp.Diagnostics.Append(req.Plan.Get(ctx, &plan)...)
	if resp.Diagnostics.HasError() {
		return
	}
	plan.ID = types.StringValue(uuid.NewString())
	d, err := r.put(ctx, &plan, definitions{})
	if err != nil {
		resp.Diagnostics.Append(failed("Network "+plan.Name.ValueString()+" could not be created", err))
		if len(d.there) == 0 {
			return
		}
		plan.Gateways = types.MapNull(types.StringType) // keep track of what could not be taken back
		plan.refresh(d)
	} else {
		plan.complete(d)
	}
	resp.Diagnostics.Append(resp.State.Set(ctx, &plan)...)
	setIdentity(ctx, resp.Identity, plan.ID, &resp.Diagnostics)
}

// complete fills in what the plan left open.
func (m *networkModel) complete(d definitions) {
	gateways := map[string]attr.Value{}
	for host, network := range d.there {
		gateways[host] = types.StringValue(network.GetGateway())
		if m.VNI.IsUnknown() {
			m.VNI = types.Int64Value(int64(network.GetVni()))
		}
		if m.MTU.IsUnknown() {
			m.MTU = types.Int64Value(int64(network.GetMtu()))
		}
	}
	if m.Gateways.IsUnknown() {
		m.Gateways = types.MapValueMust(types.StringType, gateways)
	}
}

// Read refreshes the state from all hosts that have the network.
func (r *networkResource) Read(ctx context.Context, req resource.ReadRequest, resp *resource.ReadResponse) {
	var state networkModel
	resp.Diagnostics.Append(req.State.Get(ctx, &state)...)
	if resp.Diagnostics.HasError() {
		return
	}
	setIdentity(ctx, resp.Identity, state.ID, &resp.Diagnostics)
	d := r.askAll(ctx, state.ID.ValueString(), stringsOf(state.Hosts))
	for _, name := range sortedKeys(d.silent) {
		resp.Diagnostics.Append(stale("Network "+state.Name.ValueString()+" on host "+name, name, d.silent[name]))
	}
	switch {
	case len(d.there) > 0:
		state.refresh(d)
		resp.Diagnostics.Append(resp.State.Set(ctx, &state)...)
	case len(d.silent) == 0:
		resp.State.RemoveResource(ctx)
	}
}

// Update takes the network from hosts that it leaves, then puts it on those it is to be on.
func (r *networkResource) Update(ctx context.Context, req resource.UpdateRequest, resp *resource.UpdateResponse) {
	var plan, state networkModel
	resp.Diagnostics.Append(req.Plan.Get(ctx, &plan)...)
	resp.Diagnostics.Append(req.State.Get(ctx, &state)...)
	if resp.Diagnostics.HasError() {
		return
	}
	what := "Network " + state.Name.ValueString() + " could not be changed"
	id, wanted := state.ID.ValueString(), stringsOf(plan.Hosts)
	all := slices.Compact(slices.Sorted(slices.Values(append(stringsOf(state.Hosts), wanted...))))
	d := r.askAll(ctx, id, all)
	leaving := slices.DeleteFunc(append(sortedKeys(d.there), sortedKeys(d.silent)...), func(name string) bool { return slices.Contains(wanted, name) })
	_, err := r.underlay(ctx, wanted)
	if err == nil {
		err = d.inUse(state.Name.ValueString(), leaving)
	}
	for _, name := range leaving {
		if err != nil {
			break
		}
		err = r.forgetOr(name, r.deleteOn(ctx, name, id), &resp.Diagnostics)
		delete(d.there, name)
	}
	if err == nil {
		var now definitions
		if now, err = r.put(ctx, &plan, d); err == nil {
			plan.complete(now)
			resp.Diagnostics.Append(resp.State.Set(ctx, &plan)...)
			setIdentity(ctx, resp.Identity, plan.ID, &resp.Diagnostics)
			return
		}
	}
	resp.Diagnostics.Append(failed(what, err))
	if after := r.askAll(ctx, id, all); len(after.there) > 0 {
		state.refresh(after)
		resp.Diagnostics.Append(resp.State.Set(ctx, &state)...)
	}
}

// forgetOr turns a host's silence into a warning where the provider block says so.
func (r *networkResource) forgetOr(name string, err error, diags *diag.Diagnostics) error {
	if err == nil || !unreachable(err) || !r.hosts.forget {
		return err
	}
	diags.AddWarning("The network on host "+name+" was forgotten",
		sentence(err.Error())+"\n\nThe provider's forget_unreachable is set. If the host comes back it still has the network; delete it there with `reflejo network delete`.")
	return nil
}

// Delete takes the network from all its hosts; it asks all of them before it touches one.
func (r *networkResource) Delete(ctx context.Context, req resource.DeleteRequest, resp *resource.DeleteResponse) {
	var state networkModel
	resp.Diagnostics.Append(req.State.Get(ctx, &state)...)
	if resp.Diagnostics.HasError() {
		return
	}
	id, what := state.ID.ValueString(), "Network "+state.Name.ValueString()+" could not be destroyed"
	d := r.askAll(ctx, id, stringsOf(state.Hosts))
	if err := d.inUse(state.Name.ValueString(), sortedKeys(d.there)); err != nil {
		resp.Diagnostics.Append(failed(what, err))
		return
	}
	for _, name := range sortedKeys(d.silent) {
		if err := r.forgetOr(name, d.silent[name], &resp.Diagnostics); err != nil {
			resp.Diagnostics.Append(failed(what, fmt.Errorf("%w; nothing was touched", err)))
			return
		}
	}
	for _, name := range sortedKeys(d.there) {
		if err := r.forgetOr(name, r.deleteOn(ctx, name, id), &resp.Diagnostics); err != nil {
			resp.Diagnostics.Append(failed(what, fmt.Errorf("on host %s: %w", name, err)))
			return
		}
	}
}
