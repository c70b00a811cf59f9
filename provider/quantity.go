package provider

import (
	"context"
	"fmt"

	"github.com/hashicorp/terraform-plugin-framework/attr"
	"github.com/hashicorp/terraform-plugin-framework/attr/xattr"
	"github.com/hashicorp/terraform-plugin-framework/diag"
	"github.com/hashicorp/terraform-plugin-framework/types/basetypes"
	"github.com/hashicorp/terraform-plugin-go/tftypes"

	"github.com/reflejo/terraform-provider-reflejo/agent/units"
)

// measure is what a quantity counts.
type measure uint8

const (
	bytesMeasure    measure = iota // "2GiB"
	bitrateMeasure                 // "100mbit", bits per second
	byterateMeasure                // "200MiB/s", bytes per second
	durationMeasure                // "10s", held in nanoseconds
)

var measures = [...]struct {
	name   string
	parse  func(string) (int64, error)
	format func(int64) string
}{
	bytesMeasure:    {"size", units.ParseBytes, units.FormatBytes},
	bitrateMeasure:  {"bit rate", units.ParseBitrate, units.FormatBitrate},
	byterateMeasure: {"byte rate", units.ParseByteRate, units.FormatByteRate},
	durationMeasure: {"duration", parseDuration, formatDuration},
}

// quantityType is the attribute type of an amount that carries its unit. Texts that mean
// the same amount are equal: "2GiB" and "2048MiB" never make a difference in a plan.
type quantityType struct {
	basetypes.StringType
	measure measure
}

var _ basetypes.StringTypable = quantityType{}

func (t quantityType) Equal(o attr.Type) bool {
	other, ok := o.(quantityType)
	return ok && other.measure == t.measure
}

func (t quantityType) String() string { return "quantity (" + measures[t.measure].name + ")" }

func (t quantityType) ValueFromString(_ context.Context, v basetypes.StringValue) (basetypes.StringValuable, diag.Diagnostics) {
	return quantity{StringValue: v, measure: t.measure}, nil
}

func (t quantityType) ValueFromTerraform(ctx context.Context, v tftypes.Value) (attr.Value, error) {
	value, err := t.StringType.ValueFromTerraform(ctx, v)
	if err != nil {
		return nil, err
	}
	text, ok := value.(basetypes.StringValue)
	if !ok {
		return nil, fmt.Errorf("read %s: unexpected value type %T", t, value)
	}
	return quantity{StringValue: text, measure: t.measure}, nil
}

func (t quantityType) ValueType(context.Context) attr.Value { return quantity{measure: t.measure} }

// quantity is a value of a quantityType.
type quantity struct {
	basetypes.StringValue
	measure measure
}

var (
	_ basetypes.StringValuableWithSemanticEquals = quantity{}
	_ xattr.ValidateableAttribute                = quantity{}
)

// newQuantity is the canonical text of an amount in the measure's base unit.
func newQuantity(m measure, amount int64) quantity {
	return quantity{StringValue: basetypes.NewStringValue(measures[m].format(amount)), measure: m}
}

// nullQuantity is a quantity that is not there.
func nullQuantity(m measure) quantity {
	return quantity{StringValue: basetypes.NewStringNull(), measure: m}
}

// optionalQuantity is null for an amount of zero: no limit.
func optionalQuantity(m measure, amount int64) quantity {
	if amount == 0 {
		return nullQuantity(m)
	}
	return newQuantity(m, amount)
}

func (q quantity) Type(context.Context) attr.Type { return quantityType{measure: q.measure} }

func (q quantity) Equal(o attr.Value) bool {
	other, ok := o.(quantity)
	return ok && other.measure == q.measure && q.StringValue.Equal(other.StringValue)
}

// amount is the amount in the measure's base unit; ok is false for null, unknown and wrong texts.
func (q quantity) amount() (n int64, ok bool) {
	if q.IsNull() || q.IsUnknown() {
		return 0, false
	}
	n, err := measures[q.measure].parse(q.ValueString())
	return n, err == nil
}

// orZero is the amount, zero where there is none.
func (q quantity) orZero() int64 {
	n, _ := q.amount()
	return n
}

func (q quantity) StringSemanticEquals(_ context.Context, o basetypes.StringValuable) (bool, diag.Diagnostics) {
	other, ok := o.(quantity)
	if !ok || other.measure != q.measure {
		return false, nil
	}
	a, okA := q.amount()
	b, okB := other.amount()
	return okA && okB && a == b, nil
}

func (q quantity) ValidateAttribute(_ context.Context, req xattr.ValidateAttributeRequest, resp *xattr.ValidateAttributeResponse) {
	if q.IsNull() || q.IsUnknown() {
		return
	}
	if _, err := measures[q.measure].parse(q.ValueString()); err != nil {
		resp.Diagnostics.AddAttributeError(req.Path, "Invalid "+measures[q.measure].name, invalid(req.Path, err.Error()))
	}
}

func parseDuration(s string) (int64, error) {
	d, err := units.ParseDuration(s)
	return int64(d), err
}

func formatDuration(n int64) string { return units.FormatDuration(duration(n)) }
