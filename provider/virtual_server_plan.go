package provider

import (
	"context"
	"fmt"
	"strconv"
	"strings"

	"github.com/hashicorp/terraform-plugin-framework/diag"
	"github.com/hashicorp/terraform-plugin-framework/path"
	"github.com/hashicorp/terraform-plugin-framework/resource"
	"github.com/hashicorp/terraform-plugin-framework/resource/schema"
	"github.com/hashicorp/terraform-plugin-framework/types"

	reflejov1 "github.com/reflejo/terraform-provider-reflejo/agent/api/reflejo/v1"
	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
	"github.com/reflejo/terraform-provider-reflejo/agent/units"
)

// ModifyPlan decides at plan time all that can be: what may not change is an error or a
// warning before anything is touched, and what only looks like a change is none.
func (r *serverResource) ModifyPlan(ctx context.Context, req resource.ModifyPlanRequest, resp *resource.ModifyPlanResponse) {
	if req.Plan.Raw.IsNull() {
		resp.Diagnostics.Append(r.planDestroy(ctx, req)...)
		return
	}
	var config, plan serverModel
	resp.Diagnostics.Append(req.Config.Get(ctx, &config)...)
	resp.Diagnostics.Append(req.Plan.Get(ctx, &plan)...)
	if resp.Diagnostics.HasError() {
		return
	}
	p := serverPlan{hosts: r.hosts, config: config, plan: plan}
	if !req.State.Raw.IsNull() {
		p.state = &serverModel{}
		resp.Diagnostics.Append(req.State.Get(ctx, p.state)...)
		if resp.Diagnostics.HasError() {
			return
		}
		p.decideImage(ctx)
		p.decideOrigin()
		p.decideDisk(ctx)
		p.decideNetwork(ctx)
		p.decideHost(ctx)
	}
	p.decideSnapshots(ctx)
	p.claimPorts(ctx)
	p.adviseAdmission(ctx)
	resp.Diagnostics.Append(p.diags...)
	resp.RequiresReplace = append(resp.RequiresReplace, p.replace...)
	if resp.Diagnostics.HasError() {
		return
	}
	resp.Diagnostics.Append(resp.Plan.Set(ctx, &p.plan)...)
	if p.state != nil && len(p.replace) == 0 && !resp.Diagnostics.HasError() {
		described := resp.Plan.Schema.(schema.Schema)
		if err := quiet(described.Attributes, &resp.Plan, req.State); err != nil {
			resp.Diagnostics.AddError("Compare plan and state", err.Error())
		}
		p.adviseFirstBoot(&resp.Diagnostics)
	}
}

func (r *serverResource) planDestroy(ctx context.Context, req resource.ModifyPlanRequest) (diags diag.Diagnostics) {
	var name types.String
	var protected types.Bool
	diags.Append(req.State.GetAttribute(ctx, path.Root("name"), &name)...)
	diags.Append(req.State.GetAttribute(ctx, path.Root("deletion_protection"), &protected)...)
	if protected.ValueBool() {
		diags.Append(protectedError(name.ValueString()))
	}
	return diags
}

func protectedError(name string) diag.Diagnostic {
	at := path.Root("deletion_protection")
	return diag.NewAttributeErrorDiagnostic(at, "Server is protected",
		fmt.Sprintf("Attribute deletion_protection of server %s is true, so it is neither destroyed nor replaced. Nothing was touched. Set it to false, apply, and destroy it then.", name))
}

// serverPlan is one decision about one server.
type serverPlan struct {
	hosts        *hosts // nil or unknown: no host can be asked
	config, plan serverModel
	state        *serverModel // nil: a new server
	replace      path.Paths
	diags        diag.Diagnostics
}

// decideImage keeps the image that the server was made from, unless replacement was asked for.
func (p *serverPlan) decideImage(ctx context.Context) {
	if p.config.Image.IsNull() || p.config.Image.Equal(p.state.Image) {
		return
	}
	at, name := path.Root("image"), p.state.Name.ValueString()
	same, err := p.sameImage(ctx)
	switch replace := p.config.ReplaceOnImageChange.ValueBool(); {
	case same:
		p.plan.Image = p.state.Image // the same image under another word
	case replace && err != nil:
		p.diags.AddAttributeError(at, "The image can't be compared now", fmt.Sprintf(
			"Attribute image: replace_on_image_change is set, and whether %s is the image that server %s was made from can't be told: %s", p.config.Image.ValueString(), name, sentence(err.Error())))
	case replace && p.state.DeletionProtection.ValueBool():
		p.diags.Append(protectedError(name))
	case replace:
		p.replace = append(p.replace, at)
	default:
		if !p.config.Image.IsUnknown() && err == nil {
			p.diags.AddAttributeWarning(at, "The server keeps its image", fmt.Sprintf(
				"Attribute image: server %s was made from %s and stays on it; an image is read only when a server is created. "+
					"Set replace_on_image_change = true to have the server replaced, which loses its disk, or create another server.",
				name, p.state.Image.ValueString()))
		}
		p.plan.Image = p.state.Image
	}
}

// sameImage asks the host whether the configured and the known image are one. A
// configured image that is not known yet is another one.
func (p *serverPlan) sameImage(ctx context.Context) (bool, error) {
	if p.config.Image.IsUnknown() {
		return false, nil
	}
	h, err := p.hosts.get(p.state.Host.ValueString())
	if err != nil {
		return false, err
	}
	id := func(ref string) (string, error) {
		if digestPattern.MatchString(ref) {
			return ref, nil
		}
		image, err := ask(ctx, h, h.Images.GetImage, &reflejov1.GetImageRequest{Id: ref})
		if fault.Is(err, fault.NotFound) {
			return "", nil // an image that the host does not have is another one
		}
		return image.GetImage().GetId(), err
	}
	was := p.state.Image.ValueString()
	if !digestPattern.MatchString(was) { // the name may mean another image by now: the server knows
		server, err := ask(ctx, h, h.Servers.GetServer, &reflejov1.GetServerRequest{Id: p.state.ID.ValueString()})
		if err != nil {
			return false, err
		}
		was = server.GetServer().GetSpec().GetImage()
	}
	is, err := id(p.config.Image.ValueString())
	return err == nil && is == was, err
}

func (p *serverPlan) decideDisk(ctx context.Context) {
	var was, is diskModel
	p.diags.Append(objectAs(ctx, p.state.Disk, &was)...)
	p.diags.Append(objectAs(ctx, p.plan.Disk, &is)...)
	have, okHave := was.Size.amount()
	want, okWant := is.Size.amount()
	if len(p.replace) > 0 || !okHave || !okWant || want >= have {
		return
	}
	var configured diskModel
	p.diags.Append(objectAs(ctx, p.config.Disk, &configured)...)
	origin := ""
	if configured.Size.IsNull() {
		origin = " (the default, since it is not set)"
	}
	at := path.Root("disk").AtName("size")
	p.diags.AddAttributeError(at, "A disk can't shrink", fmt.Sprintf(
		"Attribute disk.size: server %s has %s, asked for are %s%s; nothing was touched. Set it to %s or more.",
		p.state.Name.ValueString(), units.FormatBytes(have), units.FormatBytes(want), origin, units.FormatBytes(have)))
}

// decideNetwork keeps what depends on the interfaces while they do not change, and takes a
// network's name and its id for the same.
func (p *serverPlan) decideNetwork(ctx context.Context) {
	if !p.plan.Network.IsUnknown() && !p.plan.Network.Equal(p.state.Network) {
		p.sameNetworks(ctx)
	}
	if p.plan.Network.Equal(p.state.Network) && len(p.replace) == 0 {
		p.plan.Addresses, p.plan.MAC = p.state.Addresses, p.state.MAC
	}
}

func (p *serverPlan) sameNetworks(ctx context.Context) {
	h := p.host(p.state.Host)
	planned, diags := p.plan.nics(ctx)
	known, more := p.state.nics(ctx)
	if h == nil || diags.HasError() || more.HasError() {
		return
	}
	elements := p.plan.Network.Elements()
	for name, nic := range planned {
		was, ok := known[name]
		if !ok || !isSet(nic.Network) || !isSet(was.Network) || nic.Network.Equal(was.Network) || !h.sameNetwork(ctx, nic.Network.ValueString(), was.Network.ValueString()) {
			continue
		}
		object := elements[name].(types.Object).Attributes()
		object["network"] = was.Network
		elements[name] = types.ObjectValueMust(nicTypes, object)
	}
	p.plan.Network = types.MapValueMust(types.ObjectType{AttrTypes: nicTypes}, elements)
}

// sameNetwork asks whether two words, ids or names, mean one network of the host.
func (h *host) sameNetwork(ctx context.Context, a, b string) bool {
	id := func(ref string) string {
		if uuidPattern.MatchString(ref) {
			return ref
		}
		network, err := ask(ctx, h, h.Networks.GetNetwork, &reflejov1.GetNetworkRequest{Id: ref})
		if err != nil {
			return ""
		}
		return network.GetNetwork().GetSpec().GetId()
	}
	idA := id(a)
	return idA != "" && idA == id(b)
}

// claimPorts finds two servers of one configuration that publish the same port of a host.
func (p *serverPlan) claimPorts(ctx context.Context) {
	if p.hosts == nil || !isSet(p.plan.Host) || !isSet(p.plan.Name) {
		return
	}
	nics, diags := p.plan.nics(ctx)
	if diags.HasError() {
		return
	}
	for _, name := range sortedKeys(nics) {
		published, _ := nics[name].publish(ctx)
		for _, key := range sortedKeys(published) {
			port := published[key]
			if !isSet(port.HostPort) || !isSet(port.Protocol) {
				continue
			}
			slot := port.Protocol.ValueString() + "/" + strconv.FormatInt(whole(port.HostPort), 10)
			if other := p.hosts.claims.take(p.plan.Host.ValueString()+" "+slot, p.plan.Name.ValueString()); other != "" {
				at := path.Root("network").AtMapKey(name).AtName("publish").AtMapKey(key).AtName("host_port")
				p.diags.AddAttributeError(at, "Host port published twice", invalid(at, fmt.Sprintf(
					"port %s of host %s is also published by server %s in this configuration", slot, p.plan.Host.ValueString(), other)))
			}
		}
	}
}

// adviseAdmission compares what is asked with what the host has. More than the host can
// ever give is an error; more than is free now is a warning, since the same apply may
// free it. A host that does not answer gives no advice.
func (p *serverPlan) adviseAdmission(ctx context.Context) {
	if !isSet(p.plan.CPU) || !isSet(p.plan.Memory) || !isSet(p.plan.Disk) || p.diags.HasError() {
		return
	}
	want, diags := p.plan.spec(ctx)
	if diags.HasError() {
		return
	}
	var had room
	if p.state != nil && len(p.replace) == 0 && !p.moves() {
		was, diags := p.state.spec(ctx)
		if diags.HasError() {
			return
		}
		had = asked(was)
	}
	need := asked(want)
	if need == had {
		return
	}
	h := p.host(p.plan.Host)
	if h == nil {
		return
	}
	described, err := h.describe(ctx)
	if err != nil {
		return
	}
	capacity := roomOf(described.GetCapacity())
	never := shortages(need, capacity, capacity)
	for _, s := range never {
		p.shortage(s, fmt.Sprintf("Host %s can't hold the server", h.name), fmt.Sprintf("asked for %s, the whole host has %s for servers: ask for less or choose another host", s.ask, s.have), true)
	}
	for _, s := range shortages(need, roomOf(described.GetFree()).plus(had), capacity) {
		if len(never) == 0 {
			p.shortage(s, fmt.Sprintf("Host %s has too little free at the moment", h.name), fmt.Sprintf("asked for %s, %s free: unless this apply frees some, the host will refuse", s.ask, s.have), false)
		}
	}
}

func (p *serverPlan) shortage(s shortage, summary, detail string, isError bool) {
	at, _ := fieldPath(s.field)
	detail = fmt.Sprintf("Attribute %s: %s: %s.", strings.TrimSpace(at.String()), s.what, detail)
	if isError {
		p.diags.AddAttributeError(at, summary, detail)
		return
	}
	p.diags.AddAttributeWarning(at, summary, detail)
}

// adviseFirstBoot says that first-boot data has had its one occasion.
func (p *serverPlan) adviseFirstBoot(diags *diag.Diagnostics) {
	if p.plan.FirstBootVersion.Equal(p.state.FirstBootVersion) {
		return
	}
	diags.AddAttributeWarning(path.Root("first_boot_wo_version"), "First-boot data acts on new servers only", fmt.Sprintf(
		"Attribute first_boot_wo_version: server %s has had its first start, so the new version is recorded and nothing inside the server changes. It acts on a server that is created, or replaced, with this configuration.",
		p.state.Name.ValueString()))
}

// host is the host to ask, nil if that is not possible.
func (p *serverPlan) host(name types.String) *host {
	if p.hosts == nil || !isSet(name) {
		return nil
	}
	h, err := p.hosts.get(name.ValueString())
	if fault.Is(err, fault.Invalid) && p.state == nil {
		at := path.Root("host")
		p.diags.AddAttributeError(at, "Unknown host", invalid(at, err.Error()))
	}
	return h
}
