package provider

import (
	"context"
	"fmt"

	"github.com/hashicorp/terraform-plugin-framework/diag"
	"github.com/hashicorp/terraform-plugin-framework/path"
	"github.com/hashicorp/terraform-plugin-framework/types"

	reflejov1 "github.com/reflejo/terraform-provider-reflejo/agent/api/reflejo/v1"
)

// decideRecovery plans that a server whose host is gone for good comes back on another from
// its last backup, and says which one that is: it is the only confirmation that is asked for.
func (p *serverPlan) decideRecovery(ctx context.Context) {
	at, name, from := path.Root("host"), p.state.Name.ValueString(), p.state.Host.ValueString()
	names := p.hosts.names()
	switch to := p.config.Host; {
	case to.IsUnknown():
		return
	case to.IsNull():
		p.plan.Host = types.StringUnknown()
	case p.hosts.lost[to.ValueString()]: // a warning: what does not change must not keep the rest from being planned
		p.diags.AddAttributeWarning(at, "The server's host is lost", invalid(at, fmt.Sprintf(
			"server %s was on %s, and host %s is in the provider's lost_hosts. Set host to another one, or leave it out to have one chosen: the server is then recovered there from its last backup. "+
				"To give the server up, take it out of the configuration", name, from, to.ValueString())))
		return
	default:
		if _, err := p.hosts.get(to.ValueString()); err != nil {
			p.diags.AddAttributeError(at, "Unknown host", invalid(at, err.Error()))
			return
		}
		names = []string{to.ValueString()}
	}
	p.plan.Addresses, p.plan.MAC = types.MapUnknown(types.StringType), types.MapUnknown(types.StringType)
	var policy backupPolicyModel
	p.diags.Append(objectAs(ctx, p.plan.BackupPolicy, &policy)...)
	if !isSet(policy.Target) {
		at := path.Root("backup_policy")
		p.diags.AddAttributeError(at, "Nothing to recover the server from", invalid(at, fmt.Sprintf(
			"server %s was on %s, which is in the provider's lost_hosts, and backup_policy has no target that its backups could be at. Set backup_policy to what it was", name, from)))
		return
	}
	p.announceRecovery(names, p.hosts.backupsOf(ctx, names, policy.Target.ValueString(), p.state.ID.ValueString()), policy.Target.ValueString())
}

func (p *serverPlan) announceRecovery(names []string, answers []answer[[]*reflejov1.Backup], target string) {
	at, name, from := path.Root("host"), p.state.Name.ValueString(), p.state.Host.ValueString()
	var all []*reflejov1.Backup
	reasons := ""
	for _, a := range answers {
		all = append(all, a.value...)
		if a.err != nil {
			reasons += "\n  - " + a.name + ": " + sentence(a.err.Error())
		}
	}
	last := newest(all)
	if last == nil {
		detail := fmt.Sprintf("Attribute host: server %s was on %s, which is in the provider's lost_hosts, and %d hosts found no backup of it at %s; nothing was touched.", name, from, len(names), target)
		if reasons != "" {
			detail += " Could not be looked at from:" + reasons
		}
		p.diags.AddAttributeError(at, "No backup to recover the server from", detail+
			"\n\nIf its backups are elsewhere, set backup_policy.target to where they are. To give the server up, take it out of the configuration.")
		return
	}
	where := "a host that is chosen"
	if isSet(p.plan.Host) {
		where = "host " + p.plan.Host.ValueString()
	}
	p.diags.AddAttributeWarning(at, fmt.Sprintf("Server %s is recovered from its last backup", name), fmt.Sprintf(
		"Host %s is lost (lost_hosts). Applying this plan makes server %s anew on %s, under its own id, from backup %s (%s) of %s at %s. What was written after that is lost. "+
			"Should %s return, its copy stays closed.",
		from, name, where, last.GetId(), orText(last.GetName(), "no name"), timeValue(last.GetCreatedAt()).ValueString(), target, from))
}

// backupsOf asks hosts which backups of a server a target holds.
func (h *hosts) backupsOf(ctx context.Context, names []string, target, server string) []answer[[]*reflejov1.Backup] {
	return each(ctx, h, names, func(ctx context.Context, one *host) ([]*reflejov1.Backup, error) {
		resp, err := ask(ctx, one, one.Backups.ListTarget, &reflejov1.ListTargetRequest{Target: target, Server: server})
		return resp.GetBackups(), err
	})
}

// newest is the newest complete backup, nil if there is none.
func newest(backups []*reflejov1.Backup) (last *reflejov1.Backup) {
	for _, b := range backups {
		if b.GetState() == "ready" && (last == nil || b.GetCreatedAt().AsTime().After(last.GetCreatedAt().AsTime())) {
			last = b
		}
	}
	return last
}

// stranded tells of a server that was being handed over to a host that is lost for good.
func (h *hosts) stranded(at string, s *reflejov1.Server) (diags diag.Diagnostics) {
	to, name := s.GetLeaving(), s.GetSpec().GetName()
	if to == "" || !h.lost[to] {
		return nil
	}
	diags.AddAttributeWarning(path.Root("host"), fmt.Sprintf("Server %s waits for a lost host", name), fmt.Sprintf(
		"Attribute host: server %s was being handed over from %s to %s, which is in the provider's lost_hosts, and runs on neither until that is decided. "+
			"The next change of it takes it back on %s as it is; so does `reflejo server recover %s --lost %s --on %s`.", name, at, to, at, name, to, at))
	return diags
}

// takeBack lets a stranded server run again where it is.
func (h *hosts) takeBack(ctx context.Context, at *host, s *reflejov1.Server) (*reflejov1.Server, error) {
	lost := s.GetLeaving()
	if lost == "" || !h.lost[lost] {
		return s, nil
	}
	resp, _, err := persist(ctx, at, at.Servers.RecoverServer, &reflejov1.RecoverServerRequest{Spec: s.GetSpec(), LostHost: lost}, 6)
	if err != nil {
		return s, err
	}
	return at.settle(ctx, resp.GetServer())
}
