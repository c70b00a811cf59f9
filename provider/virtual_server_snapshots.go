package provider

import (
	"context"
	"fmt"

	"github.com/hashicorp/terraform-plugin-framework/path"
	"github.com/hashicorp/terraform-plugin-framework/types"

	reflejov1 "github.com/reflejo/terraform-provider-reflejo/agent/api/reflejo/v1"
	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
	"github.com/reflejo/terraform-provider-reflejo/agent/units"
)

// What a server has to do with snapshots: the one that its disk starts from, and the one
// that is put back.

// decideOrigin treats clone_of as decideImage does image.
func (p *serverPlan) decideOrigin() {
	want, have := p.config.CloneOf, p.state.CloneOf
	if want.IsNull() || want.Equal(have) || len(p.replace) > 0 {
		return
	}
	at, name := path.Root("clone_of"), p.state.Name.ValueString()
	switch {
	case p.config.ReplaceOnImageChange.ValueBool() && p.state.DeletionProtection.ValueBool():
		p.diags.Append(protectedError(name))
	case p.config.ReplaceOnImageChange.ValueBool():
		p.replace = append(p.replace, at)
	case have.IsNull():
		p.diags.AddAttributeError(at, "The server has its disk already", invalid(at, fmt.Sprintf(
			"server %s was made from an image, and clone_of is read only when a server is created; nothing was touched. Leave it out, put a snapshot of this server back with restore_from, "+
				"or set replace_on_image_change = true to have the server replaced, which loses its disk", name)))
	default:
		if !want.IsUnknown() {
			p.diags.AddAttributeWarning(at, "The server keeps its disk", fmt.Sprintf(
				"Attribute clone_of: server %s started from snapshot %s and stays; clone_of is read only when a server is created. Set replace_on_image_change = true to have the server replaced, which loses its disk.",
				name, have.ValueString()))
		}
		p.plan.CloneOf = have
	}
}

// decideSnapshots looks at the snapshots that the configuration names.
func (p *serverPlan) decideSnapshots(ctx context.Context) {
	isNew := p.state == nil || len(p.replace) > 0
	if isNew && p.config.CloneOf.IsNull() {
		p.plan.CloneOf = types.StringNull()
	}
	if isNew && len(p.replace) > 0 && p.config.Image.IsNull() {
		p.plan.Image = types.StringUnknown()
	}
	if isNew && !p.config.RestoreFrom.IsNull() {
		at := path.Root("restore_from")
		p.diags.AddAttributeError(at, "A new server has nothing to restore", invalid(at,
			"a snapshot is put back in place of the disk that it was taken of, and this server is yet to be made. To start a new server from a snapshot set clone_of"))
		return
	}
	if isNew {
		p.adviseClone(ctx)
		return
	}
	if isSet(p.plan.RestoreFrom) && !p.plan.RestoreFrom.Equal(p.state.RestoreFrom) {
		p.adviseRestore(ctx)
	}
}

// snapshot looks for a snapshot on a host, or on all for "" as host. Nil and no error: nobody could say.
func (p *serverPlan) snapshot(ctx context.Context, host, id string) (*reflejov1.Snapshot, error) {
	if p.hosts == nil || p.hosts.unknown != "" {
		return nil, nil
	}
	found, _, err := find(ctx, p.hosts, reference{host: host, ref: id}, "snapshot", getSnapshot(id))
	if fault.Is(err, fault.NotFound) {
		return nil, err
	}
	if err != nil {
		return nil, nil
	}
	return found[0].value, nil
}

func (p *serverPlan) adviseClone(ctx context.Context) {
	if !isSet(p.config.CloneOf) || p.config.Host.IsUnknown() {
		return
	}
	at := path.Root("clone_of")
	s, err := p.snapshot(ctx, p.config.Host.ValueString(), p.config.CloneOf.ValueString())
	if err != nil {
		p.diags.AddAttributeError(at, "No such snapshot", invalid(at, err.Error()+". A clone is made on the host that has the snapshot; to have it elsewhere, back the snapshot up and import it there"))
		return
	}
	var disk diskModel
	p.diags.Append(objectAs(ctx, p.plan.Disk, &disk)...)
	if size, ok := disk.Size.amount(); ok && s != nil && size < s.GetSize() {
		at := path.Root("disk").AtName("size")
		p.diags.AddAttributeError(at, "The disk is smaller than the snapshot", invalid(at, fmt.Sprintf(
			"snapshot %s has %s, asked for are %s. Set it to %s or more", s.GetName(), units.FormatBytes(s.GetSize()), units.FormatBytes(size), units.FormatBytes(s.GetSize()))))
	}
}

func (p *serverPlan) adviseRestore(ctx context.Context) {
	at, name, id := path.Root("restore_from"), p.state.Name.ValueString(), p.plan.RestoreFrom.ValueString()
	var moving migrationModel
	p.diags.Append(objectAs(ctx, p.plan.Migration, &moving)...)
	if p.moves() && !moving.Snapshots.ValueBool() && !p.hosts.lost[p.state.Host.ValueString()] {
		p.diags.AddAttributeError(at, "The snapshot stays behind", invalid(at, fmt.Sprintf(
			"server %s is moved by the same plan, and its snapshots stay on %s. Restore it first and move it in another apply, or set migration.snapshots = true", name, p.state.Host.ValueString())))
		return
	}
	s, err := p.snapshot(ctx, p.state.Host.ValueString(), id)
	switch {
	case err != nil:
		p.diags.AddAttributeError(at, "No such snapshot", invalid(at, err.Error()+". A snapshot can be put back on the host that has it"))
	case s == nil:
	case s.GetServerId() != p.state.ID.ValueString():
		p.diags.AddAttributeError(at, "A snapshot of another server", invalid(at, fmt.Sprintf(
			"snapshot %s is of server %s (%s); only a snapshot of server %s itself can be put back. To start a new server from it set clone_of there", id, s.GetServerName(), s.GetServerId(), name)))
	case s.GetState() != "ready":
		p.diags.AddAttributeError(at, "The snapshot is not complete", invalid(at, fmt.Sprintf("snapshot %s is %s", id, s.GetState())))
	default:
		p.diags.AddAttributeWarning(at, fmt.Sprintf("The disk of server %s is put back", name), fmt.Sprintf(
			"Attribute restore_from: applying this plan stops server %s, puts snapshot %s of %s in place of its disk and starts it as before. What is on the disk now stays in a safety snapshot of origin \"safety\".",
			name, orText(s.GetName(), id), timeValue(s.GetCreatedAt()).ValueString()))
	}
}

// besideSnapshot is the host to create a server on: a clone without a host goes where its snapshot is.
func (r *serverResource) besideSnapshot(ctx context.Context, name types.String, spec *reflejov1.ServerSpec) types.String {
	if isSet(name) || spec.GetCloneOf() == "" {
		return name
	}
	found, _, err := find(ctx, r.hosts, reference{ref: spec.GetCloneOf()}, "snapshot", getSnapshot(spec.GetCloneOf()))
	if err != nil {
		return name
	}
	return types.StringValue(found[0].name)
}

// getSnapshot asks a host for a snapshot.
func getSnapshot(id string) func(context.Context, *host) (*reflejov1.Snapshot, error) {
	return func(ctx context.Context, h *host) (*reflejov1.Snapshot, error) {
		resp, err := ask(ctx, h, h.Snapshots.GetSnapshot, &reflejov1.GetSnapshotRequest{Id: id})
		return resp.GetSnapshot(), err
	}
}
