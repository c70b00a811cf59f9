package provider

import (
	"context"

	"github.com/hashicorp/terraform-plugin-framework/path"
	"github.com/hashicorp/terraform-plugin-framework/resource/schema"
	"github.com/hashicorp/terraform-plugin-framework/resource/schema/planmodifier"
	"github.com/hashicorp/terraform-plugin-framework/tfsdk"
	"github.com/hashicorp/terraform-plugin-go/tftypes"
)

// keepEqual keeps a quantity as the state has it where the configuration only writes the
// same amount in another way, as it may after an import.
type keepEqual struct{}

func (keepEqual) Description(context.Context) string {
	return "Another way to write the same amount is no change."
}
func (m keepEqual) MarkdownDescription(ctx context.Context) string { return m.Description(ctx) }

func (keepEqual) PlanModifyString(ctx context.Context, req planmodifier.StringRequest, resp *planmodifier.StringResponse) {
	if req.StateValue.IsNull() || req.PlanValue.IsNull() || req.PlanValue.IsUnknown() {
		return
	}
	attribute, diags := req.Plan.Schema.AttributeAtPath(ctx, req.Path)
	if diags.HasError() {
		return
	}
	t, ok := attribute.GetType().(quantityType)
	if !ok {
		return
	}
	was, okWas := quantity{StringValue: req.StateValue, measure: t.measure}.amount()
	is, okIs := quantity{StringValue: req.PlanValue, measure: t.measure}.amount()
	if okWas && okIs && was == is {
		resp.PlanValue = req.StateValue
	}
}

// hostnameFromName makes the name the host name where none is configured.
type hostnameFromName struct{}

func (hostnameFromName) Description(context.Context) string {
	return "Defaults to the server's name."
}
func (m hostnameFromName) MarkdownDescription(ctx context.Context) string { return m.Description(ctx) }

func (hostnameFromName) PlanModifyString(ctx context.Context, req planmodifier.StringRequest, resp *planmodifier.StringResponse) {
	if !req.ConfigValue.IsNull() {
		return
	}
	resp.Diagnostics.Append(req.Plan.GetAttribute(ctx, path.Root("name"), &resp.PlanValue)...)
}

// quiet makes a plan that changes nothing a user may write equal to the state: then there
// is nothing to do, and values that an update would compute again stay as they are known.
func quiet(attributes map[string]schema.Attribute, plan *tfsdk.Plan, state tfsdk.State) error {
	var planned, known map[string]tftypes.Value
	if err := plan.Raw.As(&planned); err != nil {
		return err
	}
	if err := state.Raw.As(&known); err != nil {
		return err
	}
	for name, a := range attributes {
		if a.IsComputed() && !a.IsOptional() {
			continue
		}
		if !planned[name].Equal(known[name]) {
			return nil
		}
	}
	plan.Raw = state.Raw.Copy()
	return nil
}
