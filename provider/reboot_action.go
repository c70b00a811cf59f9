package provider

import (
	"context"
	"fmt"
	"time"

	"github.com/hashicorp/terraform-plugin-framework/action"
	"github.com/hashicorp/terraform-plugin-framework/action/schema"
	"github.com/hashicorp/terraform-plugin-framework/path"
	"github.com/hashicorp/terraform-plugin-framework/schema/validator"
	"github.com/hashicorp/terraform-plugin-framework/types"
	"google.golang.org/protobuf/types/known/durationpb"

	reflejov1 "github.com/reflejo/terraform-provider-reflejo/agent/api/reflejo/v1"
)

// rebootAction is the action reflejo_reboot.
type rebootAction struct{ hosts *hosts }

var _ action.ActionWithConfigure = (*rebootAction)(nil)

type rebootModel struct {
	ServerID        types.String `tfsdk:"server_id"`
	ShutdownTimeout quantity     `tfsdk:"shutdown_timeout"`
	Timeout         quantity     `tfsdk:"timeout"`
}

func (a *rebootAction) Metadata(_ context.Context, req action.MetadataRequest, resp *action.MetadataResponse) {
	resp.TypeName = req.ProviderTypeName + "_reboot"
}

func (a *rebootAction) Configure(_ context.Context, req action.ConfigureRequest, resp *action.ConfigureResponse) {
	a.hosts = configured(req.ProviderData, &resp.Diagnostics)
}

func (a *rebootAction) Schema(_ context.Context, _ action.SchemaRequest, resp *action.SchemaResponse) {
	clock := func(what string) schema.Attribute {
		return schema.StringAttribute{
			CustomType: quantityType{measure: durationMeasure}, Optional: true, MarkdownDescription: what,
			Validators: []validator.String{between(durationMeasure, "1s", "1h")},
		}
	}
	resp.Schema = schema.Schema{
		MarkdownDescription: "Reboots a running or suspended server: a clean stop, then a start. Addresses and disk stay. Needs Terraform 1.14; with older ones use `reflejo server reboot`.",
		Attributes: map[string]schema.Attribute{
			"server_id": schema.StringAttribute{
				Required: true, MarkdownDescription: "The server: `reflejo_virtual_server.db.id`.", Validators: []validator.String{idValidator()},
			},
			"shutdown_timeout": clock("How long the clean stop may take before it is forced. Default: the server's own (`on_destroy.shutdown_timeout`)."),
			"timeout":          clock("How long to wait until the server runs again. Default: `10m`. When it is over the host carries on."),
		},
	}
}

// Invoke reboots the server and tells how it goes.
func (a *rebootAction) Invoke(ctx context.Context, req action.InvokeRequest, resp *action.InvokeResponse) {
	var m rebootModel
	resp.Diagnostics.Append(req.Config.Get(ctx, &m)...)
	if resp.Diagnostics.HasError() {
		return
	}
	timeout := createTimeout
	if n, ok := m.Timeout.amount(); ok {
		timeout = duration(n)
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	if err := a.reboot(ctx, m, timeout, newProgress(ctx, resp.SendProgress)); err != nil {
		d := failed("Server "+m.ServerID.ValueString()+" could not be rebooted", err)
		resp.Diagnostics.AddAttributeError(path.Root("server_id"), d.Summary(), d.Detail())
	}
}

func (a *rebootAction) reboot(ctx context.Context, m rebootModel, timeout time.Duration, say func(string)) error {
	h, server, _, err := a.hosts.findServer(ctx, reference{ref: m.ServerID.ValueString()})
	if err != nil {
		return err
	}
	name := server.GetSpec().GetName()
	request := &reflejov1.SetPowerRequest{Id: m.ServerID.ValueString(), Action: reflejov1.SetPowerRequest_ACTION_REBOOT}
	if n, ok := m.ShutdownTimeout.amount(); ok {
		request.Timeout = durationpb.New(duration(n))
	}
	say(fmt.Sprintf("rebooting %s on %s", name, h.name))
	// Once only: sent again after it was carried out it would be a second reboot.
	answer, err := askAnyway(ctx, h, h.Servers.SetPower, request)
	if err != nil {
		return err
	}
	last, err := h.watch(ctx, answer.GetServer(), func(seen *reflejov1.WatchServerResponse) bool {
		if op := seen.GetServer().GetOperation(); op.GetKind() != "" && !op.GetDone() {
			say(fmt.Sprintf("%s: %s (%d of %d)", name, op.GetStep(), op.GetStepIndex(), op.GetSteps()))
		}
		return seen.GetGone() || settled(seen.GetServer())
	})
	switch {
	case err != nil && ctx.Err() != nil:
		return fmt.Errorf("waited %s; last seen %s at %q; the host carries on", timeout, last.GetServer().GetState(), last.GetServer().GetOperation().GetStep())
	case err != nil:
		return err
	case last.GetServer().GetOperation().GetError() != "":
		return operationError(last.GetServer())
	}
	say(fmt.Sprintf("%s is %s", name, last.GetServer().GetState()))
	return nil
}

// newProgress gives a function that reports progress and never blocks: nobody reads the
// framework's channel once the client is gone, and a newer report is worth more than an
// older one that waits.
func newProgress(ctx context.Context, send func(action.InvokeProgressEvent)) func(string) {
	if send == nil {
		return func(string) {}
	}
	queue := make(chan string, 1)
	go func() {
		for {
			select {
			case text := <-queue:
				send(action.InvokeProgressEvent{Message: text})
			case <-ctx.Done():
				return
			}
		}
	}()
	last := ""
	return func(text string) {
		if text == last {
			return
		}
		last = text
		for {
			select {
			case queue <- text:
				return
			default:
			}
			select { // make room by dropping what nobody has taken yet
			case <-queue:
			default:
			}
		}
	}
}
