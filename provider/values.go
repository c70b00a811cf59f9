package provider

import (
	"context"
	"math/big"

	"github.com/hashicorp/terraform-plugin-framework/attr"
	"github.com/hashicorp/terraform-plugin-framework/diag"
	"github.com/hashicorp/terraform-plugin-framework/types"
	"github.com/hashicorp/terraform-plugin-framework/types/basetypes"
)

// objectAs reads a nested object; a null or unknown one gives the zero model.
func objectAs(ctx context.Context, object types.Object, target any) diag.Diagnostics {
	if object.IsNull() || object.IsUnknown() {
		return nil
	}
	return object.As(ctx, target, basetypes.ObjectAsOptions{})
}

func optionalString(s string) types.String {
	if s == "" {
		return types.StringNull()
	}
	return types.StringValue(s)
}

// Whole numbers that users write are numbers in the schema, not integers: the framework
// answers a fraction in an integer with a message about a bug, wholeValidator with what is wrong.
func wholeNumber(n int64) types.Number { return types.NumberValue(new(big.Float).SetInt64(n)) }

// optionalWhole is null for zero: no limit.
func optionalWhole(n int64) types.Number {
	if n == 0 {
		return types.NumberNull()
	}
	return wholeNumber(n)
}

// whole is the number, zero where there is none.
func whole(n types.Number) int64 {
	if !isSet(n) {
		return 0
	}
	i, _ := n.ValueBigFloat().Int64()
	return i
}

func optionalList(texts []string) types.List {
	if len(texts) == 0 {
		return types.ListNull(types.StringType)
	}
	return types.ListValueMust(types.StringType, stringValues(texts))
}

func stringValues(texts []string) []attr.Value {
	values := make([]attr.Value, len(texts))
	for i, s := range texts {
		values[i] = types.StringValue(s)
	}
	return values
}

func stringSet(texts []string) types.Set {
	return types.SetValueMust(types.StringType, stringValues(texts))
}

func stringMapValue(m map[string]string) types.Map {
	values := make(map[string]attr.Value, len(m))
	for k, v := range m {
		values[k] = types.StringValue(v)
	}
	return types.MapValueMust(types.StringType, values)
}

// stringsOf are the known elements of a list or set of strings.
func stringsOf(collection interface{ Elements() []attr.Value }) []string {
	var texts []string
	for _, e := range collection.Elements() {
		if s, ok := e.(types.String); ok && !s.IsNull() && !s.IsUnknown() {
			texts = append(texts, s.ValueString())
		}
	}
	return texts
}

func stringMap(m types.Map) map[string]string {
	texts := map[string]string{}
	for k, e := range m.Elements() {
		if s, ok := e.(types.String); ok && !s.IsNull() && !s.IsUnknown() {
			texts[k] = s.ValueString()
		}
	}
	return texts
}

func orText(text, otherwise string) string {
	if text == "" {
		return otherwise
	}
	return text
}

func isSet(v attr.Value) bool { return !v.IsNull() && !v.IsUnknown() }
