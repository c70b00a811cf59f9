package provider

import (
	"context"
	"fmt"
	"net/netip"
	"strconv"

	"github.com/hashicorp/terraform-plugin-framework-timeouts/resource/timeouts"
	"github.com/hashicorp/terraform-plugin-framework/diag"
	"github.com/hashicorp/terraform-plugin-framework/path"
	"github.com/hashicorp/terraform-plugin-framework/resource"
	"github.com/hashicorp/terraform-plugin-framework/types"

	"github.com/reflejo/terraform-provider-reflejo/agent/units"
)

// ValidateConfig checks what needs more than one attribute. Values that are not known yet
// are checked again at plan time and by the agent.
func (r *serverResource) ValidateConfig(ctx context.Context, req resource.ValidateConfigRequest, resp *resource.ValidateConfigResponse) {
	var m serverModel
	resp.Diagnostics.Append(req.Config.Get(ctx, &m)...)
	if resp.Diagnostics.HasError() {
		return
	}
	resp.Diagnostics.Append(m.validateDNS(ctx)...)
	resp.Diagnostics.Append(m.validateCPU(ctx)...)
	resp.Diagnostics.Append(m.validateMemory(ctx)...)
	resp.Diagnostics.Append(m.validateNetwork(ctx)...)
	resp.Diagnostics.Append(m.validatePolicies(ctx)...)
	resp.Diagnostics.Append(validateTimeouts(m.Timeouts.Object)...)
	if m.Image.IsNull() && m.CloneOf.IsNull() {
		at := path.Root("image")
		resp.Diagnostics.AddAttributeError(at, "Nothing to make the disk from", invalid(at, "neither image nor clone_of is set: a new server starts from an image or from a snapshot"))
	}
	if isSet(m.FirstBootVersion) && m.FirstBoot.IsNull() {
		at := path.Root("first_boot_wo_version")
		resp.Diagnostics.AddAttributeWarning(at, "First-boot version without first-boot data",
			invalid(at, "first_boot_wo is not set, so a server that is created now starts without first-boot data"))
	}
}

// validateDNS refuses an empty block: it would mean the same as none, which is written null.
func (m serverModel) validateDNS(ctx context.Context) diag.Diagnostics {
	var dns dnsModel
	diags := objectAs(ctx, m.DNS, &dns)
	if isSet(m.DNS) && dns.Servers.IsNull() && dns.Search.IsNull() {
		at := path.Root("dns")
		diags.AddAttributeError(at, "Nothing for the resolver", invalid(at, "neither servers nor search is set; leave dns out to have what the host's resolver has"))
	}
	return diags
}

func (m serverModel) validateCPU(ctx context.Context) diag.Diagnostics {
	var cpu cpuModel
	diags := objectAs(ctx, m.CPU, &cpu)
	if !isSet(cpu.Pin) || cpu.Cores.IsUnknown() {
		return diags
	}
	milli := int64(defaultMilliCores)
	if isSet(cpu.Cores) {
		n, err := milliCores(cpu.Cores.ValueBigFloat())
		if err != nil {
			return diags // the attribute's own validator says so
		}
		milli = n
	}
	cores, err := parsePin(cpu.Pin.ValueString())
	if err == nil && int64(len(cores))*1000 < milli {
		at := path.Root("cpu").AtName("pin")
		diags.AddAttributeError(at, "Too few pinned cores",
			invalid(at, fmt.Sprintf("%q names %d cores, fewer than the %s of cpu.cores: pin more or ask for fewer", cpu.Pin.ValueString(), len(cores), units.FormatCores(milli))))
	}
	return diags
}

func (m serverModel) validateMemory(ctx context.Context) diag.Diagnostics {
	var memory memoryModel
	diags := objectAs(ctx, m.Memory, &memory)
	high, okHigh := memory.High.amount()
	limit, okLimit := memory.Max.amount()
	if memory.Max.IsNull() && isSet(m.Memory) {
		limit, okLimit = defaultMemory, true
	}
	if okHigh && okLimit && high > limit {
		at := path.Root("memory").AtName("high")
		diags.AddAttributeError(at, "memory.high above memory.max", invalid(at, fmt.Sprintf(
			"%s is more than memory.max, %s: the server would never reach it", memory.High.ValueString(), units.FormatBytes(limit))))
	}
	return diags
}

// validateNetwork finds what two interfaces, or two published ports, can't share.
func (m serverModel) validateNetwork(ctx context.Context) diag.Diagnostics {
	nics, diags := m.nics(ctx)
	if diags.HasError() {
		return nil // what can't be read is not known yet
	}
	ports, addresses := map[string]path.Path{}, map[netip.Addr]path.Path{}
	for _, name := range sortedKeys(nics) {
		at := path.Root("network").AtMapKey(name)
		nic := nics[name]
		if address, err := netip.ParseAddr(nic.Address.ValueString()); err == nil && isSet(nic.Address) {
			if other, taken := addresses[address]; taken {
				diags.AddAttributeError(at.AtName("address"), "Address used twice", invalid(at.AtName("address"), fmt.Sprintf("%s is also that of %s", address, other)))
			}
			addresses[address] = at.AtName("address")
		}
		published, _ := nic.publish(ctx)
		for _, key := range sortedKeys(published) {
			p, here := published[key], at.AtName("publish").AtMapKey(key).AtName("host_port")
			if !isSet(p.HostPort) || p.Protocol.IsUnknown() {
				continue
			}
			slot := orText(p.Protocol.ValueString(), "tcp") + "/" + strconv.FormatInt(whole(p.HostPort), 10)
			if other, taken := ports[slot]; taken {
				diags.AddAttributeError(here, "Host port published twice", invalid(here, fmt.Sprintf("port %s of the host is also published by %s", slot, other)))
			}
			ports[slot] = here
		}
		diags.Append(validateAllow(ctx, nic, at.AtName("allow"))...)
	}
	return diags
}

func validateAllow(ctx context.Context, nic nicModel, at path.Path) (diags diag.Diagnostics) {
	allowed, _ := nic.allow(ctx)
	for i, a := range allowed {
		if isSet(a.Ports) && isSet(a.Protocol) && a.Protocol.ValueString() == "icmp" {
			here := at.AtListIndex(i).AtName("ports")
			diags.AddAttributeError(here, "Ports without tcp or udp", invalid(here, "protocol icmp has no ports"))
		}
	}
	return diags
}

// timeoutsIn is validateTimeouts for a resource that has nothing else to validate.
func timeoutsIn(ctx context.Context, req resource.ValidateConfigRequest, resp *resource.ValidateConfigResponse) {
	var limits timeouts.Value
	resp.Diagnostics.Append(req.Config.GetAttribute(ctx, path.Root("timeouts"), &limits)...)
	if !resp.Diagnostics.HasError() {
		resp.Diagnostics.Append(validateTimeouts(limits.Object)...)
	}
}

// validateTimeouts finds durations that are not positive, which the library lets pass.
func validateTimeouts(limits types.Object) (diags diag.Diagnostics) {
	for _, name := range sortedKeys(limits.Attributes()) {
		text, ok := limits.Attributes()[name].(types.String)
		if !ok || !isSet(text) {
			continue
		}
		at := path.Root("timeouts").AtName(name)
		if d, err := units.ParseDuration(text.ValueString()); err != nil || d == 0 {
			diags.AddAttributeError(at, "Invalid timeout", invalid(at, fmt.Sprintf("%q is not a positive duration: write \"90s\" or \"10m\"", clip(text.ValueString()))))
		}
	}
	return diags
}
