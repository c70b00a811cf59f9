package provider

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/terraform-plugin-framework-timeouts/resource/timeouts"
	"github.com/hashicorp/terraform-plugin-framework/list"
	"github.com/hashicorp/terraform-plugin-framework/path"
	"github.com/hashicorp/terraform-plugin-framework/resource"
	"github.com/hashicorp/terraform-plugin-framework/resource/schema"
	"github.com/hashicorp/terraform-plugin-framework/resource/schema/int64planmodifier"
	"github.com/hashicorp/terraform-plugin-framework/resource/schema/planmodifier"
	"github.com/hashicorp/terraform-plugin-framework/resource/schema/stringplanmodifier"
	"github.com/hashicorp/terraform-plugin-framework/schema/validator"
	"github.com/hashicorp/terraform-plugin-framework/types"

	reflejov1 "github.com/reflejo/terraform-provider-reflejo/agent/api/reflejo/v1"
	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
)

// imageTimeout is how long images may take by default: they come over networks.
const imageTimeout = 30 * time.Minute

// imageResource is reflejo_image.
type imageResource struct{ hosts *hosts }

var (
	_ resource.ResourceWithConfigure      = (*imageResource)(nil)
	_ resource.ResourceWithIdentity       = (*imageResource)(nil)
	_ resource.ResourceWithImportState    = (*imageResource)(nil)
	_ resource.ResourceWithModifyPlan     = (*imageResource)(nil)
	_ resource.ResourceWithValidateConfig = (*imageResource)(nil)
	_ list.ListResourceWithConfigure      = (*imageResource)(nil)
)

// imageModel is a reflejo_image in HCL.
type imageModel struct {
	ID           types.String   `tfsdk:"id"`
	Name         types.String   `tfsdk:"name"`
	Hosts        types.Set      `tfsdk:"hosts"`
	Source       types.String   `tfsdk:"source"`
	Checksum     types.String   `tfsdk:"checksum"`
	OS           types.String   `tfsdk:"os"`
	Architecture types.String   `tfsdk:"architecture"`
	SizeBytes    types.Int64    `tfsdk:"size_bytes"`
	Timeouts     timeouts.Value `tfsdk:"timeouts"`
}

func (r *imageResource) Metadata(_ context.Context, req resource.MetadataRequest, resp *resource.MetadataResponse) {
	resp.TypeName = req.ProviderTypeName + "_image"
}

func (r *imageResource) Configure(_ context.Context, req resource.ConfigureRequest, resp *resource.ConfigureResponse) {
	r.hosts = configured(req.ProviderData, &resp.Diagnostics)
}

func (r *imageResource) IdentitySchema(_ context.Context, _ resource.IdentitySchemaRequest, resp *resource.IdentitySchemaResponse) {
	resp.IdentitySchema = idIdentity("Digest of the image's content, `sha256:…`.")
}

func (r *imageResource) Schema(ctx context.Context, _ resource.SchemaRequest, resp *resource.SchemaResponse) {
	resp.Schema = schema.Schema{
		MarkdownDescription: "An image: a root file system that servers' disks are made from, on one or several hosts. Its id is the digest of its content, the same on every host.\n\n" +
			"An image never changes. Another `source` or `checksum` is another image, so it replaces the resource; while servers made from the old one exist, the host refuses to delete it and nothing is touched. " +
			"To bring out a new release beside the old one, add another `reflejo_image` under another name (`debian-12-7`) and let new servers use that.",
		Attributes: map[string]schema.Attribute{
			"id": schema.StringAttribute{
				Computed: true, PlanModifiers: []planmodifier.String{stringplanmodifier.UseStateForUnknown()},
				MarkdownDescription: "Digest of the content, `sha256:…`. Servers name an image by this or by `name`.",
			},
			"name":  schema.StringAttribute{Required: true, Validators: []validator.String{nameValidator()}, MarkdownDescription: "Name, unique on each of its hosts: a DNS label. Changes in place."},
			"hosts": hostsAttribute("Hosts that it is on. Change in place; an image can't be taken from a host whose servers were made from it."),
			"source": schema.StringAttribute{
				Required: true, Validators: []validator.String{sourceValidator()}, PlanModifiers: []planmodifier.String{stringplanmodifier.RequiresReplace()},
				MarkdownDescription: "Where it comes from: `oci://registry/name:tag` or `oci://registry/name@sha256:…`, which the hosts pull; `host:/path`, a tar, OCI layout or directory on the hosts, below a directory that their configuration allows; " +
					"or the path of a tar file (root file system or OCI layout; plain, gz, zst, xz) or of a directory where Terraform runs, which is sent to them. A directory gives the same image for the same content; a tar also keeps hard links and file capabilities.",
			},
			"checksum": schema.StringAttribute{
				Optional: true, Validators: []validator.String{digestValidator()}, PlanModifiers: []planmodifier.String{stringplanmodifier.RequiresReplace()},
				MarkdownDescription: "Digest that the source must have, `sha256:…`: of the manifest or index of an OCI image, of the file of a tar. With `\"sha256:${filesha256(\"debian.tar\")}\"` a changed file is a changed image. Not for a directory where Terraform runs.",
			},
			"os":           schema.StringAttribute{Computed: true, PlanModifiers: []planmodifier.String{stringplanmodifier.UseStateForUnknown()}, MarkdownDescription: "Operating system, as it calls itself."},
			"architecture": schema.StringAttribute{Computed: true, PlanModifiers: []planmodifier.String{stringplanmodifier.UseStateForUnknown()}, MarkdownDescription: "Processor architecture: `amd64`, `arm64`."},
			"size_bytes":   schema.Int64Attribute{Computed: true, PlanModifiers: []planmodifier.Int64{int64planmodifier.UseStateForUnknown()}, MarkdownDescription: "Smallest disk, in bytes, of a server made from it."},
			"timeouts": timeouts.Attributes(ctx, timeouts.Opts{
				Create: true, Update: true,
				CreateDescription: "How long all hosts together may take to get the image, such as `30m` (the default).",
				UpdateDescription: "How long a change may take, such as `30m` (the default).",
			}),
		},
	}
	describeTimeouts(resp.Schema.Attributes)
}

// ValidateConfig checks what needs more than one attribute.
func (r *imageResource) ValidateConfig(ctx context.Context, req resource.ValidateConfigRequest, resp *resource.ValidateConfigResponse) {
	var m imageModel
	resp.Diagnostics.Append(req.Config.Get(ctx, &m)...)
	if resp.Diagnostics.HasError() {
		return
	}
	resp.Diagnostics.Append(validateTimeouts(m.Timeouts.Object)...)
	if !isSet(m.Source) || !isSet(m.Checksum) || !isLocal(m.Source.ValueString()) {
		return
	}
	if isDir, _, err := checkLocal(m.Source.ValueString()); err == nil && isDir {
		at := path.Root("checksum")
		resp.Diagnostics.AddAttributeError(at, "Checksum of a directory", invalid(at, "a directory has no checksum that could be written down; leave it out, or make a tar of it"))
	}
}

// ModifyPlan finds hosts that are not configured, and local sources that are not there.
func (r *imageResource) ModifyPlan(ctx context.Context, req resource.ModifyPlanRequest, resp *resource.ModifyPlanResponse) {
	if req.Plan.Raw.IsNull() {
		return
	}
	var plan, state imageModel
	resp.Diagnostics.Append(req.Plan.Get(ctx, &plan)...)
	if !req.State.Raw.IsNull() {
		resp.Diagnostics.Append(req.State.Get(ctx, &state)...)
	}
	if resp.Diagnostics.HasError() {
		return
	}
	resp.Diagnostics.Append(r.hosts.knows(plan.Hosts)...)
	grows := slices.ContainsFunc(stringsOf(plan.Hosts), func(name string) bool { return !slices.Contains(stringsOf(state.Hosts), name) })
	if isSet(plan.Source) && isLocal(plan.Source.ValueString()) && (grows || !plan.Source.Equal(state.Source)) {
		if _, _, err := checkLocal(plan.Source.ValueString()); err != nil {
			at := path.Root("source")
			resp.Diagnostics.AddAttributeError(at, "No such source", invalid(at, err.Error()))
		}
	}
}

// known are the image's hosts as they answer: those that have it under its name, and those
// that can't be asked.
func (r *imageResource) known(ctx context.Context, m imageModel, names []string) (there map[string]*reflejov1.Image, silent map[string]error) {
	there, silent = map[string]*reflejov1.Image{}, map[string]error{}
	for _, a := range each(ctx, r.hosts, names, func(ctx context.Context, h *host) (*reflejov1.Image, error) {
		resp, err := ask(ctx, h, h.Images.GetImage, &reflejov1.GetImageRequest{Id: m.Name.ValueString()})
		return resp.GetImage(), err
	}) {
		switch {
		case a.err == nil && (!isSet(m.ID) || a.value.GetId() == m.ID.ValueString()):
			there[a.name] = a.value
		case a.err != nil && !fault.Is(a.err, fault.NotFound):
			silent[a.name] = a.err
		}
	}
	return there, silent
}

// spread makes the image on the hosts, all at once. On any failure it is taken from those
// that did not have it before.
func (r *imageResource) spread(ctx context.Context, m imageModel, names []string) (*reflejov1.Image, error) {
	before, _ := r.known(ctx, imageModel{Name: m.Name}, names)
	answers := each(ctx, r.hosts, names, func(ctx context.Context, h *host) (*reflejov1.Image, error) { return h.importImage(ctx, m) })
	var errs []error
	var image *reflejov1.Image
	for _, a := range answers {
		switch {
		case a.err != nil:
			errs = append(errs, fmt.Errorf("on host %s: %w", a.name, a.err))
		case isSet(m.ID) && a.value.GetId() != m.ID.ValueString():
			errs = append(errs, fault.Field("source", "host %s got %s from %s, the other hosts have %s: the source has changed; name it by digest (name@sha256:…) or under another name", a.name, a.value.GetId(), m.Source.ValueString(), m.ID.ValueString()))
		case image != nil && a.value.GetId() != image.GetId():
			errs = append(errs, fault.Field("source", "hosts got different content from %s, %s and %s: name it by digest (name@sha256:…)", m.Source.ValueString(), image.GetId(), a.value.GetId()))
		default:
			image = a.value
		}
	}
	if len(errs) == 0 {
		return image, nil
	}
	for _, a := range answers {
		if a.err == nil && before[a.name] == nil {
			if err := r.deleteOn(context.WithoutCancel(ctx), a.name, m.Name.ValueString()); err != nil {
				errs = append(errs, fmt.Errorf("take it back from host %s: %w", a.name, err))
			}
		}
	}
	return nil, joined(errs)
}

// joined keeps the kind and the blamed attribute of a single error.
func joined(errs []error) error {
	if len(errs) == 1 {
		return errs[0]
	}
	return errors.Join(errs...)
}

func (r *imageResource) deleteOn(ctx context.Context, host, name string) error {
	h, err := r.hosts.get(host)
	if err != nil {
		return err
	}
	_, _, err = persist(ctx, h, h.Images.DeleteImage, &reflejov1.DeleteImageRequest{Id: name}, 4)
	if fault.Is(err, fault.NotFound) {
		return nil
	}
	return err
}

func (m *imageModel) observe(image *reflejov1.Image) {
	m.ID, m.OS, m.Architecture = types.StringValue(image.GetId()), types.StringValue(image.GetOs()), types.StringValue(image.GetArchitecture())
	m.SizeBytes = types.Int64Value(image.GetSizeBytes())
}

// Create makes the image on all its hosts at once.
func (r *imageResource) Create(ctx context.Context, req resource.CreateRequest, resp *resource.CreateResponse) {
	var plan imageModel
	resp.Diagnostics.Append(req.Plan.Get(ctx, &plan)...)
	timeout, diags := plan.Timeouts.Create(ctx, imageTimeout)
	resp.Diagnostics.Append(diags...)
	if resp.Diagnostics.HasError() {
		return
	}
	plan.ID = types.StringNull()
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	image, err := r.spread(ctx, plan, stringsOf(plan.Hosts))
	if err != nil {
		resp.Diagnostics.Append(failed("Image "+plan.Name.ValueString()+" could not be created", inTime(ctx, err, timeout)))
		return
	}
	plan.observe(image)
	resp.Diagnostics.Append(resp.State.Set(ctx, &plan)...)
	setIdentity(ctx, resp.Identity, plan.ID, &resp.Diagnostics)
}

// inTime adds to an error that it came with the end of a timeout.
func inTime(ctx context.Context, err error, timeout time.Duration) error {
	if errors.Is(context.Cause(ctx), context.DeadlineExceeded) {
		return fmt.Errorf("it took longer than %s (attribute timeouts); what the hosts had begun is taken back: %w", timeout, err)
	}
	return err
}

// Read refreshes which hosts have the image.
func (r *imageResource) Read(ctx context.Context, req resource.ReadRequest, resp *resource.ReadResponse) {
	var state imageModel
	resp.Diagnostics.Append(req.State.Get(ctx, &state)...)
	if resp.Diagnostics.HasError() {
		return
	}
	setIdentity(ctx, resp.Identity, state.ID, &resp.Diagnostics)
	there, silent := r.known(ctx, state, stringsOf(state.Hosts))
	for _, name := range sortedKeys(silent) {
		resp.Diagnostics.Append(stale("Image "+state.Name.ValueString()+" on host "+name, name, silent[name]))
	}
	if len(there) == 0 && len(silent) == 0 {
		resp.State.RemoveResource(ctx)
		return
	}
	state.Hosts = stringSet(slices.Sorted(slices.Values(append(sortedKeys(there), sortedKeys(silent)...))))
	for _, image := range there {
		state.observe(image)
	}
	resp.Diagnostics.Append(resp.State.Set(ctx, &state)...)
}

// Update renames the image and changes which hosts have it.
func (r *imageResource) Update(ctx context.Context, req resource.UpdateRequest, resp *resource.UpdateResponse) {
	var plan, state imageModel
	resp.Diagnostics.Append(req.Plan.Get(ctx, &plan)...)
	resp.Diagnostics.Append(req.State.Get(ctx, &state)...)
	timeout, diags := plan.Timeouts.Update(ctx, imageTimeout)
	resp.Diagnostics.Append(diags...)
	if resp.Diagnostics.HasError() {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	now, err := r.change(ctx, plan, state)
	if err != nil {
		resp.Diagnostics.Append(failed("Image "+state.Name.ValueString()+" could not be changed", inTime(ctx, err, timeout)))
	}
	resp.Diagnostics.Append(resp.State.Set(context.WithoutCancel(ctx), &now)...)
	setIdentity(context.WithoutCancel(ctx), resp.Identity, now.ID, &resp.Diagnostics)
}

// change goes from state to plan in steps that each leave something sound, and returns how
// far it came: take it from hosts, rename it, bring it to new hosts.
func (r *imageResource) change(ctx context.Context, plan, state imageModel) (imageModel, error) {
	now := plan
	now.Name, now.Hosts = state.Name, state.Hosts
	wanted, have := stringsOf(plan.Hosts), stringsOf(state.Hosts)
	for _, name := range slices.Clone(have) {
		if slices.Contains(wanted, name) {
			continue
		}
		if err := r.deleteOn(ctx, name, state.Name.ValueString()); err != nil {
			return now, fmt.Errorf("on host %s: %w", name, err)
		}
		have = slices.DeleteFunc(have, func(n string) bool { return n == name })
		now.Hosts = stringSet(have)
	}
	if !plan.Name.Equal(state.Name) {
		if err := r.rename(ctx, have, state.Name.ValueString(), plan.Name.ValueString()); err != nil {
			return now, err
		}
		now.Name = plan.Name
	}
	added := slices.DeleteFunc(slices.Clone(wanted), func(name string) bool { return slices.Contains(have, name) })
	if len(added) > 0 {
		if _, err := r.spread(ctx, now, added); err != nil {
			return now, err
		}
	}
	now.Hosts = plan.Hosts
	return now, nil
}

// rename renames the image on all hosts, or, if one refuses, on none.
func (r *imageResource) rename(ctx context.Context, names []string, from, to string) error {
	one := func(ctx context.Context, name, from, to string) error {
		h, err := r.hosts.get(name)
		if err != nil {
			return err
		}
		_, _, err = persist(ctx, h, h.Images.UpdateImage, &reflejov1.UpdateImageRequest{Id: from, Name: to}, 4)
		return err
	}
	for i, name := range names {
		err := one(ctx, name, from, to)
		if err == nil {
			continue
		}
		errs := []error{fmt.Errorf("on host %s: %w", name, err)}
		for _, done := range names[:i] {
			if err := one(context.WithoutCancel(ctx), done, to, from); err != nil {
				errs = append(errs, fmt.Errorf("rename it back on host %s: %w", done, err))
			}
		}
		return joined(errs)
	}
	return nil
}

// Delete takes the image from all its hosts; it asks all of them before it touches one.
func (r *imageResource) Delete(ctx context.Context, req resource.DeleteRequest, resp *resource.DeleteResponse) {
	var state imageModel
	resp.Diagnostics.Append(req.State.Get(ctx, &state)...)
	if resp.Diagnostics.HasError() {
		return
	}
	name := state.Name.ValueString()
	what := "Image " + name + " could not be destroyed"
	there, silent := r.known(ctx, state, stringsOf(state.Hosts))
	for _, host := range sortedKeys(silent) {
		if !r.hosts.forget || !unreachable(silent[host]) {
			resp.Diagnostics.Append(failed(what, fmt.Errorf("%w; nothing was touched", silent[host])))
			return
		}
		resp.Diagnostics.AddWarning("The image on host "+host+" was forgotten",
			sentence(silent[host].Error())+"\n\nThe provider's forget_unreachable is set. If the host comes back it still has the image; delete it there with `reflejo image delete`.")
	}
	if err := imageInUse(name, there); err != nil {
		resp.Diagnostics.Append(failed(what, err))
		return
	}
	for _, host := range sortedKeys(there) {
		if err := r.deleteOn(ctx, host, name); err != nil {
			resp.Diagnostics.Append(failed(what, fmt.Errorf("on host %s: %w", host, err)))
			return
		}
	}
}

func imageInUse(name string, there map[string]*reflejov1.Image) error {
	var users []string
	for _, host := range sortedKeys(there) {
		if n := there[host].GetServers(); n > 0 {
			users = append(users, fmt.Sprintf("%d on %s", n, host))
		}
	}
	if len(users) == 0 {
		return nil
	}
	return fault.New(fault.Precondition, "servers were made from image %s (%s): destroy them first, or leave the image and add another under another name; nothing was touched", name, strings.Join(users, ", "))
}
