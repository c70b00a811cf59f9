// Command schemajson prints the provider's schemas, under its short name, in the form of `terraform providers
// schema -json`. The documentation is generated from it: an older Terraform would leave out
// actions and list resources without a word.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"

	"github.com/hashicorp/terraform-plugin-framework/providerserver"
	"github.com/hashicorp/terraform-plugin-go/tfprotov6"
	"github.com/hashicorp/terraform-plugin-go/tftypes"

	"github.com/reflejo/terraform-provider-reflejo/provider"
)

func main() {
	if err := run(context.Background()); err != nil {
		fmt.Fprintln(os.Stderr, "print the provider's schemas:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context) error {
	server := providerserver.NewProtocol6(provider.New("dev"))()
	schemas, err := server.GetProviderSchema(ctx, &tfprotov6.GetProviderSchemaRequest{})
	if err != nil {
		return err
	}
	for _, d := range schemas.Diagnostics {
		return fmt.Errorf("%s: %s", d.Summary, d.Detail)
	}
	identities, err := server.GetResourceIdentitySchemas(ctx, &tfprotov6.GetResourceIdentitySchemasRequest{})
	if err != nil {
		return err
	}
	document := map[string]any{
		"format_version": "1.0",
		"provider_schemas": map[string]any{"reflejo": map[string]any{
			"provider":                   schema(schemas.Provider),
			"resource_schemas":           each(schemas.ResourceSchemas, schema),
			"data_source_schemas":        each(schemas.DataSourceSchemas, schema),
			"list_resource_schemas":      each(schemas.ListResourceSchemas, schema),
			"action_schemas":             each(schemas.ActionSchemas, func(a *tfprotov6.ActionSchema) any { return map[string]any{"block": block(a.Schema.Block)} }),
			"resource_identity_schemas":  each(identities.IdentitySchemas, identity),
			"ephemeral_resource_schemas": map[string]any{},
		}},
	}
	encoder := json.NewEncoder(os.Stdout)
	encoder.SetIndent("", "  ")
	return encoder.Encode(document)
}

func each[T any](schemas map[string]T, convert func(T) any) map[string]any {
	converted := map[string]any{}
	for name, s := range schemas {
		converted[name] = convert(s)
	}
	return converted
}

func schema(s *tfprotov6.Schema) any {
	return map[string]any{"version": s.Version, "block": block(s.Block)}
}

func block(b *tfprotov6.SchemaBlock) any {
	return map[string]any{"attributes": attributes(b.Attributes), "description": b.Description, "description_kind": kind(b.DescriptionKind)}
}

func attributes(list []*tfprotov6.SchemaAttribute) map[string]any {
	converted := map[string]any{}
	for _, a := range list {
		one := map[string]any{"description": a.Description, "description_kind": kind(a.DescriptionKind)}
		for name, set := range map[string]bool{
			"required": a.Required, "optional": a.Optional, "computed": a.Computed, "sensitive": a.Sensitive, "write_only": a.WriteOnly, "deprecated": a.Deprecated,
		} {
			if set {
				one[name] = true
			}
		}
		if a.NestedType != nil {
			one["nested_type"] = map[string]any{"attributes": attributes(a.NestedType.Attributes), "nesting_mode": nesting[a.NestedType.Nesting]}
		} else {
			one["type"] = typeName(a.Type)
		}
		converted[a.Name] = one
	}
	return converted
}

func identity(s *tfprotov6.ResourceIdentitySchema) any {
	converted := map[string]any{}
	for _, a := range s.IdentityAttributes {
		one := map[string]any{"type": typeName(a.Type), "description": a.Description}
		if a.RequiredForImport {
			one["required_for_import"] = true
		}
		if a.OptionalForImport {
			one["optional_for_import"] = true
		}
		converted[a.Name] = one
	}
	return map[string]any{"version": s.Version, "attributes": converted}
}

var nesting = map[tfprotov6.SchemaObjectNestingMode]string{
	tfprotov6.SchemaObjectNestingModeSingle: "single", tfprotov6.SchemaObjectNestingModeList: "list",
	tfprotov6.SchemaObjectNestingModeSet: "set", tfprotov6.SchemaObjectNestingModeMap: "map",
}

func kind(k tfprotov6.StringKind) string {
	if k == tfprotov6.StringKindMarkdown {
		return "markdown"
	}
	return "plain"
}

// typeName is a type as JSON documents of Terraform write it: "string", ["map", "string"].
func typeName(t tftypes.Type) any {
	switch t := t.(type) {
	case tftypes.List:
		return []any{"list", typeName(t.ElementType)}
	case tftypes.Set:
		return []any{"set", typeName(t.ElementType)}
	case tftypes.Map:
		return []any{"map", typeName(t.ElementType)}
	case tftypes.Object:
		return []any{"object", each(t.AttributeTypes, typeName)}
	}
	switch {
	case t.Is(tftypes.Bool):
		return "bool"
	case t.Is(tftypes.Number):
		return "number"
	}
	return "string"
}
