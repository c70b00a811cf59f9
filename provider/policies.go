package provider

import (
	"context"

	"github.com/hashicorp/terraform-plugin-framework-validators/setvalidator"
	"github.com/hashicorp/terraform-plugin-framework-validators/stringvalidator"
	"github.com/hashicorp/terraform-plugin-framework/attr"
	"github.com/hashicorp/terraform-plugin-framework/diag"
	"github.com/hashicorp/terraform-plugin-framework/path"
	"github.com/hashicorp/terraform-plugin-framework/resource/schema"
	"github.com/hashicorp/terraform-plugin-framework/resource/schema/booldefault"
	"github.com/hashicorp/terraform-plugin-framework/resource/schema/objectdefault"
	"github.com/hashicorp/terraform-plugin-framework/resource/schema/planmodifier"
	"github.com/hashicorp/terraform-plugin-framework/resource/schema/stringdefault"
	"github.com/hashicorp/terraform-plugin-framework/schema/validator"
	"github.com/hashicorp/terraform-plugin-framework/types"
	"google.golang.org/protobuf/types/known/durationpb"

	reflejov1 "github.com/reflejo/terraform-provider-reflejo/agent/api/reflejo/v1"
)

// What a server does by itself and how it is moved: snapshot_policy, backup_policy, migration.

type snapshotPolicyModel struct {
	Schedule types.String `tfsdk:"schedule"`
	On       types.Set    `tfsdk:"on"`
	Keep     types.Object `tfsdk:"keep"`
}

type backupPolicyModel struct {
	Schedule    types.String `tfsdk:"schedule"`
	Target      types.String `tfsdk:"target"`
	Keep        types.Object `tfsdk:"keep"`
	Incremental types.Bool   `tfsdk:"incremental"`
}

type keepModel struct {
	Last    types.Number `tfsdk:"last"`
	Hourly  types.Number `tfsdk:"hourly"`
	Daily   types.Number `tfsdk:"daily"`
	Weekly  types.Number `tfsdk:"weekly"`
	Monthly types.Number `tfsdk:"monthly"`
}

type migrationModel struct {
	Mode        types.String `tfsdk:"mode"`
	MaxDowntime quantity     `tfsdk:"max_downtime"`
	Bandwidth   quantity     `tfsdk:"bandwidth"`
	Snapshots   types.Bool   `tfsdk:"snapshots"`
}

// How a server is moved where the configuration does not say.
const (
	defaultMigrationMode = "warm"
	defaultMaxDowntime   = int64(5e9)
)

var (
	keepTypes = map[string]attr.Type{
		"last": types.NumberType, "hourly": types.NumberType, "daily": types.NumberType, "weekly": types.NumberType, "monthly": types.NumberType,
	}
	snapshotPolicyTypes = map[string]attr.Type{
		"schedule": types.StringType, "on": types.SetType{ElemType: types.StringType}, "keep": types.ObjectType{AttrTypes: keepTypes},
	}
	backupPolicyTypes = map[string]attr.Type{
		"schedule": types.StringType, "target": types.StringType, "keep": types.ObjectType{AttrTypes: keepTypes}, "incremental": types.BoolType,
	}
	migrationTypes = map[string]attr.Type{
		"mode": types.StringType, "max_downtime": quantityType{measure: durationMeasure}, "bandwidth": bitrateType, "snapshots": types.BoolType,
	}
)

func keepSchema(what string) schema.Attribute {
	count := func(span string) schema.Attribute {
		return schema.NumberAttribute{
			Optional: true, MarkdownDescription: "How many " + span + ", 1 to 1000.", Validators: []validator.Number{wholeValidator{1, 1000}},
		}
	}
	return schema.SingleNestedAttribute{
		Optional:            true,
		MarkdownDescription: "Which " + what + " of this policy stay; what no rule keeps is deleted. If left out, all stay.",
		Attributes: map[string]schema.Attribute{
			"last":    count("of the newest, whatever their age"),
			"hourly":  count("hours keep their newest one"),
			"daily":   count("days keep their newest one"),
			"weekly":  count("weeks keep their newest one"),
			"monthly": count("months keep their newest one"),
		},
	}
}

func snapshotPolicySchema() schema.Attribute {
	return schema.SingleNestedAttribute{
		Optional:            true,
		MarkdownDescription: "Snapshots that the host takes by itself, without Terraform. If left out, none. Removing it takes no more; those that are there stay.",
		Attributes: map[string]schema.Attribute{
			"schedule": schema.StringAttribute{
				Optional: true, Validators: []validator.String{scheduleValidator()},
				MarkdownDescription: "When, as cron writes it: minute, hour, day of the month, month, day of the week, in UTC. `0 * * * *` is every hour.",
			},
			"on": schema.SetAttribute{
				ElementType: types.StringType, Optional: true,
				MarkdownDescription: "After which changes of power as well: `start`, `stop`, `suspend`.",
				Validators: []validator.Set{
					setvalidator.SizeAtLeast(1), setvalidator.NoNullValues(), setvalidator.ValueStringsAre(stringvalidator.OneOf("start", "stop", "suspend")),
				},
			},
			"keep": keepSchema("snapshots"),
		},
	}
}

func backupPolicySchema() schema.Attribute {
	return schema.SingleNestedAttribute{
		Optional:            true,
		MarkdownDescription: "Backups that the host makes by itself, without Terraform. If left out, none. It is also where a server whose host is lost is recovered from (`lost_hosts`).",
		Attributes: map[string]schema.Attribute{
			"schedule": schema.StringAttribute{
				Required: true, Validators: []validator.String{scheduleValidator()},
				MarkdownDescription: "When, as cron writes it, in UTC. `30 2 * * *` is every night at half past two.",
			},
			"target": schema.StringAttribute{Required: true, Validators: []validator.String{targetValidator()}, MarkdownDescription: targetWords},
			"keep":   keepSchema("backups"),
			"incremental": schema.BoolAttribute{
				Optional: true, Computed: true, Default: booldefault.StaticBool(false),
				MarkdownDescription: "Write only what changed since the backup before. Default: `false`.",
			},
		},
	}
}

// targetWords describe where backups can be.
const targetWords = "Where to: `host:NAME` (the backup store of another host), `s3://bucket/prefix` (credentials are in the hosts' configuration) or `dir:/path` " +
	"(a directory of the host itself, which its configuration allows; a mounted one outlives it)."

func migrationSchema() schema.Attribute {
	return schema.SingleNestedAttribute{
		Optional: true, Computed: true, MarkdownDescription: "How the server is moved when `host` changes.",
		Default: objectdefault.StaticValue(types.ObjectValueMust(migrationTypes, map[string]attr.Value{
			"mode": types.StringValue(defaultMigrationMode), "max_downtime": newQuantity(durationMeasure, defaultMaxDowntime),
			"bandwidth": nullQuantity(bitrateMeasure), "snapshots": types.BoolValue(false),
		})),
		Attributes: map[string]schema.Attribute{
			"mode": schema.StringAttribute{
				Optional: true, Computed: true, Default: stringdefault.StaticString(defaultMigrationMode),
				MarkdownDescription: "`warm`: copied while it runs, then stopped for what is left; `cold`: stopped first. Default: `warm`.",
				Validators:          []validator.String{stringvalidator.OneOf("warm", "cold")},
			},
			"max_downtime": schema.StringAttribute{
				CustomType: quantityType{measure: durationMeasure}, Optional: true, Computed: true,
				Default: stringdefault.StaticString(formatDuration(defaultMaxDowntime)), Validators: []validator.String{between(durationMeasure, "100ms", "1h")},
				PlanModifiers:       []planmodifier.String{keepEqual{}},
				MarkdownDescription: "Of a warm move: copying goes on until copying what is left should take no longer. Default: `5s`.",
			},
			"bandwidth": schema.StringAttribute{
				CustomType: bitrateType, Optional: true, MarkdownDescription: "Most bits per second between the hosts, `1gbit`. If left out there is no limit.",
				Validators: []validator.String{between(bitrateMeasure, "64kbit", "1tbit")}, PlanModifiers: []planmodifier.String{keepEqual{}},
			},
			"snapshots": schema.BoolAttribute{
				Optional: true, Computed: true, Default: booldefault.StaticBool(false),
				MarkdownDescription: "Whether its snapshots move along. Else they stay on the host that they are on. Default: `false`.",
			},
		},
	}
}

// policies fills in the parts of a spec that these attributes are.
func (m serverModel) policies(ctx context.Context, s *reflejov1.ServerSpec) (diags diag.Diagnostics) {
	if isSet(m.SnapshotPolicy) {
		var p snapshotPolicyModel
		diags.Append(objectAs(ctx, m.SnapshotPolicy, &p)...)
		s.SnapshotPolicy = &reflejov1.SnapshotPolicy{Schedule: p.Schedule.ValueString(), On: stringsOf(p.On), Keep: keepSpec(ctx, p.Keep, &diags)}
	}
	if isSet(m.BackupPolicy) {
		var p backupPolicyModel
		diags.Append(objectAs(ctx, m.BackupPolicy, &p)...)
		s.BackupPolicy = &reflejov1.BackupPolicy{
			Schedule: p.Schedule.ValueString(), Target: p.Target.ValueString(), Keep: keepSpec(ctx, p.Keep, &diags), Incremental: p.Incremental.ValueBool(),
		}
	}
	if isSet(m.Migration) {
		var p migrationModel
		diags.Append(objectAs(ctx, m.Migration, &p)...)
		s.Migration = &reflejov1.MigrationSettings{
			Mode: p.Mode.ValueString(), MaxDowntime: durationpb.New(duration(p.MaxDowntime.orZero())), Bandwidth: p.Bandwidth.orZero(), Snapshots: p.Snapshots.ValueBool(),
		}
	}
	return diags
}

func keepSpec(ctx context.Context, object types.Object, diags *diag.Diagnostics) *reflejov1.Keep {
	if !isSet(object) {
		return nil
	}
	var k keepModel
	diags.Append(objectAs(ctx, object, &k)...)
	return &reflejov1.Keep{
		Last: uint32(whole(k.Last)), Hourly: uint32(whole(k.Hourly)), Daily: uint32(whole(k.Daily)), Weekly: uint32(whole(k.Weekly)), Monthly: uint32(whole(k.Monthly)),
	}
}

func keepValue(k *reflejov1.Keep) types.Object {
	values := map[string]attr.Value{}
	some := false
	for name, n := range map[string]uint32{"last": k.GetLast(), "hourly": k.GetHourly(), "daily": k.GetDaily(), "weekly": k.GetWeekly(), "monthly": k.GetMonthly()} {
		values[name] = optionalWhole(int64(n))
		some = some || n > 0
	}
	if !some {
		return types.ObjectNull(keepTypes)
	}
	return types.ObjectValueMust(keepTypes, values)
}

func snapshotPolicyValue(p *reflejov1.SnapshotPolicy) types.Object {
	if p.GetSchedule() == "" && len(p.GetOn()) == 0 {
		return types.ObjectNull(snapshotPolicyTypes)
	}
	on := types.SetNull(types.StringType)
	if len(p.GetOn()) > 0 {
		on = stringSet(p.GetOn())
	}
	return types.ObjectValueMust(snapshotPolicyTypes, map[string]attr.Value{"schedule": optionalString(p.GetSchedule()), "on": on, "keep": keepValue(p.GetKeep())})
}

func backupPolicyValue(p *reflejov1.BackupPolicy) types.Object {
	if p.GetSchedule() == "" && p.GetTarget() == "" {
		return types.ObjectNull(backupPolicyTypes)
	}
	return types.ObjectValueMust(backupPolicyTypes, map[string]attr.Value{
		"schedule": optionalString(p.GetSchedule()), "target": optionalString(p.GetTarget()), "keep": keepValue(p.GetKeep()), "incremental": types.BoolValue(p.GetIncremental()),
	})
}

func migrationValue(p *reflejov1.MigrationSettings) types.Object {
	downtime := int64(p.GetMaxDowntime().AsDuration())
	if downtime == 0 {
		downtime = defaultMaxDowntime
	}
	return types.ObjectValueMust(migrationTypes, map[string]attr.Value{
		"mode": types.StringValue(orText(p.GetMode(), defaultMigrationMode)), "max_downtime": newQuantity(durationMeasure, downtime),
		"bandwidth": optionalQuantity(bitrateMeasure, p.GetBandwidth()), "snapshots": types.BoolValue(p.GetSnapshots()),
	})
}

// validatePolicies finds policies that would do nothing or never end.
func (m serverModel) validatePolicies(ctx context.Context) (diags diag.Diagnostics) {
	var snapshots snapshotPolicyModel
	var backups backupPolicyModel
	diags.Append(objectAs(ctx, m.SnapshotPolicy, &snapshots)...)
	diags.Append(objectAs(ctx, m.BackupPolicy, &backups)...)
	if isSet(m.SnapshotPolicy) && snapshots.Schedule.IsNull() && snapshots.On.IsNull() {
		at := path.Root("snapshot_policy")
		diags.AddAttributeError(at, "A policy that never acts", invalid(at, "neither schedule nor on is set; leave snapshot_policy out to have no snapshots taken"))
	}
	for name, keep := range map[string]types.Object{"snapshot_policy": snapshots.Keep, "backup_policy": backups.Keep} {
		if !isSet(keep) {
			continue
		}
		some := false
		for _, v := range keep.Attributes() {
			some = some || !v.IsNull()
		}
		if at := path.Root(name).AtName("keep"); !some {
			diags.AddAttributeError(at, "Rules that keep nothing", invalid(at, "no rule is set; leave keep out to have all stay"))
		}
	}
	return diags
}
