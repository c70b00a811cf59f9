package provider

import (
	"context"
	"strings"

	"github.com/hashicorp/terraform-plugin-framework/diag"
	"github.com/hashicorp/terraform-plugin-framework/list"
	"github.com/hashicorp/terraform-plugin-framework/resource"
	"github.com/hashicorp/terraform-plugin-framework/tfsdk"

	reflejov1 "github.com/reflejo/terraform-provider-reflejo/agent/api/reflejo/v1"
	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
)

// Import and list of snapshots and backups.

// findSnapshots looks for snapshots by id or name on the hosts that a reference may mean.
func (h *hosts) findSnapshots(ctx context.Context, r reference, server string) ([]*reflejov1.Snapshot, diag.Diagnostics, error) {
	answers, warnings, err := find(ctx, h, r, "snapshot", func(ctx context.Context, one *host) ([]*reflejov1.Snapshot, error) {
		if uuidPattern.MatchString(r.ref) {
			s, err := getSnapshot(r.ref)(ctx, one)
			return []*reflejov1.Snapshot{s}, err
		}
		var named []*reflejov1.Snapshot
		all, err := listSnapshots(ctx, one, server)
		for _, s := range all {
			if s.GetName() == r.ref || r.ref == "" {
				named = append(named, s)
			}
		}
		if err == nil && len(named) == 0 {
			err = fault.New(fault.NotFound, "no snapshot %s", r.ref)
		}
		return named, err
	})
	var found []*reflejov1.Snapshot
	for _, a := range answers {
		found = append(found, a.value...)
	}
	return found, warnings, err
}

func listSnapshots(ctx context.Context, h *host, server string) ([]*reflejov1.Snapshot, error) {
	resp, err := ask(ctx, h, h.Snapshots.ListSnapshots, &reflejov1.ListSnapshotsRequest{Server: server})
	return resp.GetSnapshots(), err
}

func listBackups(ctx context.Context, h *host, server string) ([]*reflejov1.Backup, error) {
	resp, err := ask(ctx, h, h.Backups.ListBackups, &reflejov1.ListBackupsRequest{Server: server})
	return resp.GetBackups(), err
}

// several is the error of a name that means more than one thing.
func several(what, name string, choices []string) error {
	return fault.New(fault.Invalid, "there are several %ss %s: write one of %s", what, name, strings.Join(choices, ", "))
}

// ImportState finds a snapshot by name, host/name or id.
func (r *snapshotResource) ImportState(ctx context.Context, req resource.ImportStateRequest, resp *resource.ImportStateResponse) {
	ref, ok := importReference(ctx, req, "snapshot", uuidPattern, &resp.Diagnostics)
	if !ok {
		return
	}
	found, warnings, err := r.hosts.findSnapshots(ctx, ref, "")
	if err == nil && len(found) > 1 {
		var choices []string
		for _, s := range found {
			choices = append(choices, s.GetHost()+"/"+s.GetId()+" (of "+s.GetServerName()+")")
		}
		err = several("snapshot", ref.ref, choices)
	}
	if err != nil {
		resp.Diagnostics.Append(failed("Snapshot "+ref.ref+" could not be imported", err))
		return
	}
	resp.Diagnostics.Append(warnings...)
	state, diags := newSnapshotModel(ctx, resp.State, found[0])
	resp.Diagnostics.Append(diags...)
	resp.Diagnostics.Append(resp.State.Set(ctx, &state)...)
	setIdentity(ctx, resp.Identity, state.ID, &resp.Diagnostics)
}

func newSnapshotModel(ctx context.Context, blank tfsdk.State, s *reflejov1.Snapshot) (snapshotModel, diag.Diagnostics) {
	m, diags := blankModel[snapshotModel](ctx, blank)
	m.refresh(s)
	return m, diags
}

// ImportState finds a backup by name, host/name or id, on the hosts that know it.
func (r *backupResource) ImportState(ctx context.Context, req resource.ImportStateRequest, resp *resource.ImportStateResponse) {
	ref, ok := importReference(ctx, req, "backup", uuidPattern, &resp.Diagnostics)
	if !ok {
		return
	}
	answers, warnings, err := find(ctx, r.hosts, ref, "backup", func(ctx context.Context, one *host) ([]*reflejov1.Backup, error) {
		var named []*reflejov1.Backup
		all, err := listBackups(ctx, one, "")
		for _, b := range all {
			if b.GetId() == ref.ref || b.GetName() == ref.ref {
				named = append(named, b)
			}
		}
		if err == nil && len(named) == 0 {
			err = fault.New(fault.NotFound, "no backup %s", ref.ref)
		}
		return named, err
	})
	var found []*reflejov1.Backup
	var choices []string
	for _, a := range answers {
		for _, b := range a.value {
			found, choices = append(found, b), append(choices, a.name+"/"+b.GetId()+" (of "+b.GetServerName()+")")
		}
	}
	if err == nil && len(found) > 1 {
		err = several("backup", ref.ref, choices)
	}
	if err != nil {
		resp.Diagnostics.Append(failed("Backup "+ref.ref+" could not be imported", err))
		return
	}
	resp.Diagnostics.Append(warnings...)
	state, diags := newBackupModel(ctx, resp.State, found[0])
	resp.Diagnostics.Append(diags...)
	resp.Diagnostics.Append(resp.State.Set(ctx, &state)...)
	setIdentity(ctx, resp.Identity, state.ID, &resp.Diagnostics)
}

func newBackupModel(ctx context.Context, blank tfsdk.State, b *reflejov1.Backup) (backupModel, diag.Diagnostics) {
	m, diags := blankModel[backupModel](ctx, blank)
	m.refresh(b)
	return m, diags
}

// ListResourceConfigSchema is the schema of a list block for snapshots.
func (r *snapshotResource) ListResourceConfigSchema(_ context.Context, _ list.ListResourceSchemaRequest, resp *list.ListResourceSchemaResponse) {
	resp.Schema = listSchema("snapshots")
}

// List lists the snapshots of hosts, also those of servers that are gone.
func (r *snapshotResource) List(ctx context.Context, req list.ListRequest, results *list.ListResultsStream) {
	listCopies(ctx, r.hosts, req, results, listSnapshots, func(host string, s *reflejov1.Snapshot) listed {
		return listed{id: s.GetId(), display: host + "/" + s.GetServerName() + "/" + s.GetName(),
			model: func(blank tfsdk.State) (any, diag.Diagnostics) { return modelAny(newSnapshotModel(ctx, blank, s)) }}
	})
}

// ListResourceConfigSchema is the schema of a list block for backups.
func (r *backupResource) ListResourceConfigSchema(_ context.Context, _ list.ListResourceSchemaRequest, resp *list.ListResourceSchemaResponse) {
	resp.Schema = listSchema("backups")
}

// List lists the backups that hosts know.
func (r *backupResource) List(ctx context.Context, req list.ListRequest, results *list.ListResultsStream) {
	listCopies(ctx, r.hosts, req, results, listBackups, func(host string, b *reflejov1.Backup) listed {
		return listed{id: b.GetId(), display: host + "/" + b.GetServerName() + "/" + b.GetName(),
			model: func(blank tfsdk.State) (any, diag.Diagnostics) { return modelAny(newBackupModel(ctx, blank, b)) }}
	})
}

// listCopies lists what hosts have of one kind.
func listCopies[T any](ctx context.Context, h *hosts, req list.ListRequest, results *list.ListResultsStream, get func(context.Context, *host, string) ([]T, error), item func(host string, one T) listed) {
	names, diags := h.listHosts(ctx, req.Config)
	if diags.HasError() {
		results.Results = list.ListResultsStreamDiagnostics(diags)
		return
	}
	answers, diags := collect(ctx, h, names, func(ctx context.Context, one *host) ([]T, error) { return get(ctx, one, "") })
	var items []listed
	for _, a := range answers {
		for _, one := range a.value {
			items = append(items, item(a.name, one))
		}
	}
	results.Results = stream(ctx, req, items, diags)
}
