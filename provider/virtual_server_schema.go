package provider

import (
	"context"
	"math/big"

	"github.com/hashicorp/terraform-plugin-framework-timeouts/resource/timeouts"
	"github.com/hashicorp/terraform-plugin-framework-validators/listvalidator"
	"github.com/hashicorp/terraform-plugin-framework-validators/mapvalidator"
	"github.com/hashicorp/terraform-plugin-framework-validators/stringvalidator"
	"github.com/hashicorp/terraform-plugin-framework/attr"
	"github.com/hashicorp/terraform-plugin-framework/path"
	"github.com/hashicorp/terraform-plugin-framework/resource"
	"github.com/hashicorp/terraform-plugin-framework/resource/schema"
	"github.com/hashicorp/terraform-plugin-framework/resource/schema/booldefault"
	"github.com/hashicorp/terraform-plugin-framework/resource/schema/mapdefault"
	"github.com/hashicorp/terraform-plugin-framework/resource/schema/numberdefault"
	"github.com/hashicorp/terraform-plugin-framework/resource/schema/objectdefault"
	"github.com/hashicorp/terraform-plugin-framework/resource/schema/planmodifier"
	"github.com/hashicorp/terraform-plugin-framework/resource/schema/stringdefault"
	"github.com/hashicorp/terraform-plugin-framework/resource/schema/stringplanmodifier"
	"github.com/hashicorp/terraform-plugin-framework/schema/validator"
	"github.com/hashicorp/terraform-plugin-framework/types"
)

// What a server is where the configuration leaves something out: architecture.md §5.
// A test holds them equal to the agent's.
const (
	defaultMilliCores = 1000
	defaultWeight     = 100
	defaultMemory     = 512 << 20
	defaultDisk       = 10 << 30
	defaultProcesses  = 4096
	defaultShutdown   = int64(30e9)
)

const networkName = "a network"

func (r *serverResource) Schema(ctx context.Context, _ resource.SchemaRequest, resp *resource.SchemaResponse) {
	resp.Schema = schema.Schema{
		MarkdownDescription: "A virtual server: a part of a host with its own operating system, disk, addresses and limits. " +
			"Every limit changes while it runs; nothing but `image` and `clone_of` (and those only if asked) ever replaces it.\n\n" +
			"The server's definition is durable on its host before Terraform waits for anything. If waiting takes too long the resource is created all the same, with a warning, and the host carries on.",
		Attributes: map[string]schema.Attribute{
			"id": schema.StringAttribute{
				Computed: true, MarkdownDescription: "UUID, made before the server is.",
				PlanModifiers: []planmodifier.String{stringplanmodifier.UseStateForUnknown()},
			},
			"name": schema.StringAttribute{
				Required: true, MarkdownDescription: "Name, unique on the host: a DNS label. Changes in place.",
				Validators: []validator.String{nameValidator()},
			},
			"host": schema.StringAttribute{
				Optional: true, Computed: true,
				MarkdownDescription: "The host it lives on. A change moves the server, with its disk and addresses (see `migration`), and never replaces it. " +
					"If left out, the server is placed once, on the host with most room that has its image and networks, and stays wherever it is.",
				Validators:    []validator.String{nameValidator()},
				PlanModifiers: []planmodifier.String{stringplanmodifier.UseStateForUnknown()},
			},
			"image": schema.StringAttribute{
				Optional: true, Computed: true,
				MarkdownDescription: "Image that its disk is made from: id (`reflejo_image.debian.id`) or name on the host. Needed unless `clone_of` is set. " +
					"Read at creation only: a later change is a warning and leaves the server as it is, unless `replace_on_image_change` is set.",
				Validators:    []validator.String{referenceValidator("an image", digestPattern)},
				PlanModifiers: []planmodifier.String{stringplanmodifier.UseStateForUnknown()},
			},
			"replace_on_image_change": schema.BoolAttribute{
				Optional: true, WriteOnly: true,
				MarkdownDescription: "Replace the server, and lose its disk, when `image` or `clone_of` changes. Default `false`. It only tells Terraform how to plan, so it is never stored.",
			},
			"power": schema.StringAttribute{
				Optional:            true,
				MarkdownDescription: "`running`, `stopped` or `suspended`. If left out, power is not managed: a new server is started, and what happens later outside Terraform is no drift.",
				Validators:          []validator.String{stringvalidator.OneOf("running", "stopped", "suspended")},
			},
			"hostname": schema.StringAttribute{
				Optional: true, Computed: true, MarkdownDescription: "Host name inside. Default: `name`.",
				Validators:    []validator.String{hostnameValidator(64)},
				PlanModifiers: []planmodifier.String{hostnameFromName{}},
			},
			"timezone": schema.StringAttribute{
				Optional: true, Computed: true, MarkdownDescription: "IANA time zone inside. Default: `UTC`.",
				Default: stringdefault.StaticString("UTC"), Validators: []validator.String{timezoneValidator()},
			},
			"processes": schema.NumberAttribute{
				Optional: true, Computed: true, MarkdownDescription: "Most processes and threads at once. Default: 4096.",
				Default: numberdefault.StaticBigFloat(big.NewFloat(defaultProcesses)), Validators: []validator.Number{wholeValidator{16, 4 << 20}},
			},
			"labels": schema.MapAttribute{
				ElementType: types.StringType, Optional: true, Computed: true, MarkdownDescription: "Words of your own, for `reflejo_virtual_servers` and for operators.",
				Default: mapdefault.StaticValue(types.MapValueMust(types.StringType, map[string]attr.Value{})),
				Validators: []validator.Map{
					mapvalidator.SizeAtMost(64), mapvalidator.KeysAre(labelKeyValidator()),
					mapvalidator.ValueStringsAre(stringvalidator.LengthAtMost(255)), mapvalidator.NoNullValues(),
				},
			},
			"dns":     dnsSchema(),
			"cpu":     cpuSchema(),
			"memory":  memorySchema(),
			"disk":    diskSchema(),
			"network": nicsSchema(),
			"first_boot_wo": schema.StringAttribute{
				Optional: true, WriteOnly: true, Sensitive: true,
				MarkdownDescription: "For the first start: cloud-init user data (`#cloud-config`) or a script (`#!`). Never in the state; the host keeps it only until the server has had it. Needs `first_boot_wo_version`.",
				Validators:          []validator.String{firstBootValidator(), stringvalidator.AlsoRequires(path.MatchRoot("first_boot_wo_version"))},
			},
			"first_boot_wo_version": schema.StringAttribute{
				Optional:            true,
				MarkdownDescription: "Version of `first_boot_wo`, any text. A change is a warning: a server starts for the first time only once, so it acts on the next server that is created from this configuration.",
				Validators:          []validator.String{stringvalidator.LengthBetween(1, 255)},
			},
			"snapshot_policy": snapshotPolicySchema(),
			"backup_policy":   backupPolicySchema(),
			"migration":       migrationSchema(),
			"restore_from": schema.StringAttribute{
				Optional: true, Validators: []validator.String{idValidator()},
				MarkdownDescription: "Id of a snapshot of this server. A change puts that snapshot back in place of the disk: the server stops, a safety snapshot of what is there is taken, and it starts as before, " +
					"with the same id, addresses and MACs. Not for a new server (see `clone_of`). Write the id itself or a variable: a reference to a `reflejo_snapshot` of this server would be a cycle.",
			},
			"clone_of": schema.StringAttribute{
				Optional: true, Computed: true, Validators: []validator.String{idValidator()},
				MarkdownDescription: "Id of a snapshot, of any server of the host, that the disk starts as a copy of, instead of an image. The clone gets its own id, addresses, host keys and machine id. " +
					"Read at creation only, as `image` is. A server without `host` is created where the snapshot is.",
				PlanModifiers: []planmodifier.String{stringplanmodifier.UseStateForUnknown()},
			},
			"deletion_protection": schema.BoolAttribute{
				Optional: true, Computed: true, Default: booldefault.StaticBool(false),
				MarkdownDescription: "Refuse to destroy or replace the server, at plan time and at the host, until an apply has set this to `false`. Default: `false`.",
			},
			"on_destroy": schema.SingleNestedAttribute{
				Optional: true, Computed: true, MarkdownDescription: "What destroying the server does.",
				Default: objectdefault.StaticValue(onDestroyValue(defaultShutdown, true)),
				Attributes: map[string]schema.Attribute{
					"shutdown_timeout": schema.StringAttribute{
						CustomType: quantityType{measure: durationMeasure}, Optional: true, Computed: true,
						Default: stringdefault.StaticString(formatDuration(defaultShutdown)), Validators: []validator.String{between(durationMeasure, "1s", "1h")},
						PlanModifiers:       []planmodifier.String{keepEqual{}},
						MarkdownDescription: "How long a clean stop may take before it is forced; for every stop, not only the last. Default: `30s`.",
					},
					"keep_snapshots": schema.BoolAttribute{
						Optional: true, Computed: true, Default: booldefault.StaticBool(true),
						MarkdownDescription: "Whether its snapshots outlive it. Default: `true`.",
					},
				},
			},
			"timeouts": timeouts.Attributes(ctx, timeouts.Opts{
				Create: true, Update: true, Delete: true,
				CreateDescription: "How long to wait for a new server, such as `10m` (the default). When it is over the apply succeeds with a warning and the host carries on.",
				UpdateDescription: "How long to wait for a change, such as `30m` (the default).",
				DeleteDescription: "How long to wait until the server is gone, such as `5m` (the default).",
			}),

			"state": schema.StringAttribute{Computed: true, MarkdownDescription: "What it is now: `creating`, `running`, `stopped`, `suspended`, `deleting` or `failed`."},
			"addresses": schema.MapAttribute{
				ElementType: types.StringType, Computed: true, MarkdownDescription: "IPv4 address by interface, without prefix length.",
			},
			"mac": schema.MapAttribute{ElementType: types.StringType, Computed: true, MarkdownDescription: "MAC address by interface."},
			"created_at": schema.StringAttribute{
				Computed: true, MarkdownDescription: "When it was created, RFC 3339.",
				PlanModifiers: []planmodifier.String{stringplanmodifier.UseStateForUnknown()},
			},
			"disk_used": schema.Int64Attribute{Computed: true, MarkdownDescription: "Bytes of the pool that its disk takes, when it was last read."},
		},
	}
	describeTimeouts(resp.Schema.Attributes)
}

// describeTimeouts gives the library's attribute the description that it leaves out.
func describeTimeouts(attributes map[string]schema.Attribute) {
	if t, ok := attributes["timeouts"].(schema.SingleNestedAttribute); ok {
		t.MarkdownDescription = "How long to wait. Known to Terraform alone, so after an import they show as added."
		attributes["timeouts"] = t
	}
}

func dnsSchema() schema.Attribute {
	return schema.SingleNestedAttribute{
		Optional: true, MarkdownDescription: "What its resolver is told. If left out, what the host's is told.",
		Attributes: map[string]schema.Attribute{
			"servers": schema.ListAttribute{
				ElementType: types.StringType, Optional: true, MarkdownDescription: "Addresses of name servers, in order, at most 6.",
				Validators: []validator.List{listvalidator.SizeBetween(1, 6), listvalidator.ValueStringsAre(ipValidator()), listvalidator.NoNullValues()},
			},
			"search": schema.ListAttribute{
				ElementType: types.StringType, Optional: true, MarkdownDescription: "Search domains, in order, at most 6.",
				Validators: []validator.List{listvalidator.SizeBetween(1, 6), listvalidator.ValueStringsAre(hostnameValidator(253)), listvalidator.NoNullValues()},
			},
		},
	}
}

func cpuSchema() schema.Attribute {
	return schema.SingleNestedAttribute{
		Optional: true, Computed: true, MarkdownDescription: "Share of the host's processors. Changes live.",
		Default: objectdefault.StaticValue(types.ObjectValueMust(cpuTypes, map[string]attr.Value{
			"cores": types.NumberValue(coresNumber(defaultMilliCores)), "weight": wholeNumber(defaultWeight), "pin": types.StringNull(),
		})),
		Attributes: map[string]schema.Attribute{
			"cores": schema.NumberAttribute{
				Optional: true, Computed: true, Default: numberdefault.StaticBigFloat(coresNumber(defaultMilliCores)),
				MarkdownDescription: "Most processor time, in cores: `1.5` is one and a half cores' time. Promised by the host to nobody else. Default: 1.",
				Validators:          []validator.Number{coresValidator{}},
			},
			"weight": schema.NumberAttribute{
				Optional: true, Computed: true, Default: numberdefault.StaticBigFloat(big.NewFloat(defaultWeight)),
				MarkdownDescription: "Share when all want more than there is, 1 to 10000. Default: 100.",
				Validators:          []validator.Number{wholeValidator{1, 10000}},
			},
			"pin": schema.StringAttribute{
				Optional: true, Validators: []validator.String{pinValidator()},
				MarkdownDescription: "Cores of the host that it runs on, alone: `0-1,4`. All of them count as promised. If left out it runs on any core that is nobody's.",
			},
		},
	}
}

func memorySchema() schema.Attribute {
	return schema.SingleNestedAttribute{
		Optional: true, Computed: true, MarkdownDescription: "Memory. Changes live; less than what is in use is refused.",
		Default: objectdefault.StaticValue(types.ObjectValueMust(memoryTypes, map[string]attr.Value{
			"max": newQuantity(bytesMeasure, defaultMemory), "high": nullQuantity(bytesMeasure), "swap": newQuantity(bytesMeasure, 0),
		})),
		Attributes: map[string]schema.Attribute{
			"max": sized("Limit and guarantee. Default: `512MiB`.", defaultMemory, between(bytesMeasure, "16MiB", "64TiB")),
			"high": schema.StringAttribute{
				CustomType: quantityType{measure: bytesMeasure}, Optional: true,
				MarkdownDescription: "Above this the server is slowed down and its memory reclaimed. At most `max`. If left out there is no such mark.",
				Validators:          []validator.String{between(bytesMeasure, "16MiB", "64TiB")},
				PlanModifiers:       []planmodifier.String{keepEqual{}},
			},
			"swap": sized("Swap beyond `max`. Default: `0`, none.", 0, between(bytesMeasure, "0", "64TiB")),
		},
	}
}

func diskSchema() schema.Attribute {
	limit := func(m measure, what string, checks ...validator.String) schema.Attribute {
		return schema.StringAttribute{
			CustomType: quantityType{measure: m}, Optional: true, MarkdownDescription: what + " If left out there is no limit.",
			Validators: checks, PlanModifiers: []planmodifier.String{keepEqual{}},
		}
	}
	rate := between(byterateMeasure, "64KiB", "1PiB")
	iops := func(what string) schema.Attribute {
		return schema.NumberAttribute{
			Optional: true, MarkdownDescription: what + " If left out there is no limit.",
			Validators: []validator.Number{wholeValidator{10, 1_000_000_000}},
		}
	}
	return schema.SingleNestedAttribute{
		Optional: true, Computed: true, MarkdownDescription: "The disk. Grows and changes its limits live; a smaller size is an error at plan time.",
		Default: objectdefault.StaticValue(types.ObjectValueMust(diskTypes, map[string]attr.Value{
			"size": newQuantity(bytesMeasure, defaultDisk), "read_bps": nullQuantity(byterateMeasure), "write_bps": nullQuantity(byterateMeasure),
			"read_iops": types.NumberNull(), "write_iops": types.NumberNull(),
		})),
		Attributes: map[string]schema.Attribute{
			"size":       sized("Size. Default: `10GiB`.", defaultDisk, between(bytesMeasure, "64MiB", "64TiB"), wholeBlocks()),
			"read_bps":   limit(byterateMeasure, "Most bytes read per second, `200MiB`.", rate),
			"write_bps":  limit(byterateMeasure, "Most bytes written per second, `200MiB`.", rate),
			"read_iops":  iops("Most reads per second."),
			"write_iops": iops("Most writes per second."),
		},
	}
}

// sized is a size with a default.
func sized(what string, value int64, checks ...validator.String) schema.Attribute {
	return schema.StringAttribute{
		CustomType: quantityType{measure: bytesMeasure}, Optional: true, Computed: true, MarkdownDescription: what,
		Default:    stringdefault.StaticString(newQuantity(bytesMeasure, value).ValueString()),
		Validators: checks, PlanModifiers: []planmodifier.String{keepEqual{}},
	}
}

func nicsSchema() schema.Attribute {
	rate := func(what string) schema.Attribute {
		return schema.StringAttribute{
			CustomType: quantityType{measure: bitrateMeasure}, Optional: true, MarkdownDescription: what + " If left out there is no limit.",
			Validators: []validator.String{between(bitrateMeasure, "64kbit", "1tbit")}, PlanModifiers: []planmodifier.String{keepEqual{}},
		}
	}
	return schema.MapNestedAttribute{
		Optional: true, Computed: true, Default: mapdefault.StaticValue(defaultNICs()),
		MarkdownDescription: "Network interfaces, by their name inside (`eth0`), at most 8. Change live. If left out: one `eth0` on the host's default network.",
		Validators:          []validator.Map{mapvalidator.SizeBetween(1, 8), mapvalidator.KeysAre(interfaceValidator())},
		NestedObject: schema.NestedAttributeObject{Attributes: map[string]schema.Attribute{
			"network": schema.StringAttribute{
				Optional: true, MarkdownDescription: "Network it is on: id (`reflejo_network.app.id`) or name. If left out, the host's default network.",
				Validators: []validator.String{referenceValidator(networkName, uuidPattern)},
			},
			"address": schema.StringAttribute{
				Optional: true, MarkdownDescription: "IPv4 address, within the network's range. If left out the host chooses one, which stays.",
				Validators: []validator.String{ipv4Validator()},
			},
			"ingress": rate("Most bits per second towards the server, `1gbit`."),
			"egress":  rate("Most bits per second from the server, `100mbit`."),
			"publish": publishSchema(),
			"allow":   allowSchema(),
		}},
	}
}

func publishSchema() schema.Attribute {
	port := func(what string) schema.Attribute {
		return schema.NumberAttribute{Required: true, MarkdownDescription: what, Validators: []validator.Number{wholeValidator{1, 65535}}}
	}
	return schema.MapNestedAttribute{
		Optional: true, Computed: true, Default: mapdefault.StaticValue(types.MapValueMust(types.ObjectType{AttrTypes: publishTypes}, map[string]attr.Value{})),
		MarkdownDescription: "Ports of the host that lead to ports of the server, by names of your own.",
		Validators:          []validator.Map{mapvalidator.SizeAtMost(128), mapvalidator.KeysAre(labelKeyValidator())},
		NestedObject: schema.NestedAttributeObject{Attributes: map[string]schema.Attribute{
			"protocol": schema.StringAttribute{
				Optional: true, Computed: true, Default: stringdefault.StaticString("tcp"), MarkdownDescription: "`tcp` or `udp`. Default: `tcp`.",
				Validators: []validator.String{stringvalidator.OneOf("tcp", "udp")},
			},
			"host_port": port("Port of the host, 1 to 65535. Free for only one server of the host."),
			"port":      port("Port of the server, 1 to 65535."),
		}},
	}
}

func allowSchema() schema.Attribute {
	return schema.ListNestedAttribute{
		Optional:            true,
		MarkdownDescription: "What may come in from the network, besides answers and published ports. If left out, everything on its network may; `[]` is nothing.",
		Validators:          []validator.List{listvalidator.SizeAtMost(128)},
		NestedObject: schema.NestedAttributeObject{Attributes: map[string]schema.Attribute{
			"from": schema.StringAttribute{
				Optional: true, MarkdownDescription: "IPv4 range, `10.77.0.0/16`. If left out, anywhere.",
				Validators: []validator.String{rangeValidator()},
			},
			"protocol": schema.StringAttribute{
				Optional: true, MarkdownDescription: "`tcp`, `udp` or `icmp`. If left out, all.",
				Validators: []validator.String{stringvalidator.OneOf("tcp", "udp", "icmp")},
			},
			"ports": schema.StringAttribute{
				Optional: true, MarkdownDescription: "Port or range, `5432` or `8000-8010`, of protocol `tcp` or `udp`. If left out, all.",
				Validators: []validator.String{portsValidator(), stringvalidator.AlsoRequires(path.MatchRelative().AtParent().AtName("protocol"))},
			},
		}},
	}
}
