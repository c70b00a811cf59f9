package provider

import (
	"context"
	"fmt"
	"time"

	"github.com/hashicorp/terraform-plugin-framework/path"
	"github.com/hashicorp/terraform-plugin-framework/types"

	"github.com/reflejo/terraform-provider-reflejo/agent/api"
	reflejov1 "github.com/reflejo/terraform-provider-reflejo/agent/api/reflejo/v1"
	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
)

// moves reports whether the plan has the server change its host.
func (p *serverPlan) moves() bool {
	return p.state != nil && len(p.replace) == 0 && !p.plan.Host.Equal(p.state.Host)
}

// decideHost decides what a host means that is not the one where the server is.
func (p *serverPlan) decideHost(ctx context.Context) {
	if len(p.replace) > 0 || p.hosts == nil || p.hosts.unknown != "" {
		return
	}
	if p.hosts.lost[p.state.Host.ValueString()] {
		p.decideRecovery(ctx)
		return
	}
	if isSet(p.config.Host) && !p.config.Host.Equal(p.state.Host) {
		p.decideMove(ctx)
	}
}

// decideMove asks both hosts. What can't be whatever else this apply does is an error; the
// rest is advice, since the same apply may add a host to a network or free room.
func (p *serverPlan) decideMove(ctx context.Context) {
	at, name, from, to := path.Root("host"), p.state.Name.ValueString(), p.state.Host.ValueString(), p.config.Host.ValueString()
	target, err := p.hosts.get(to)
	if err != nil {
		p.diags.AddAttributeError(at, "Unknown host", invalid(at, err.Error()))
		return
	}
	source, err := p.hosts.get(from)
	var server *reflejov1.Server
	if err == nil {
		server, err = source.server(ctx, p.state.ID.ValueString())
	}
	switch {
	case fault.Is(err, fault.NotFound): // moved or deleted since it was read: the apply finds out
	case err != nil:
		p.diags.AddAttributeError(at, "The server can't be moved now", silentSource(name, from, to, err))
		return
	case server.GetState() == "suspended":
		p.diags.AddAttributeError(at, "A suspended server can't be moved", invalid(at, fmt.Sprintf(
			"server %s on %s is suspended, and its memory can't travel; nothing was touched. Resume it (power = \"running\") or stop it, apply, and move it then", name, from)))
		return
	}
	p.forgetAddresses(ctx)
	if _, err := target.describe(ctx); err != nil {
		p.diags.AddAttributeWarning(at, "Host "+to+" could not be asked", sentence(err.Error())+"\n\nWhether it can take server "+name+" shows when the plan is applied.")
		return
	}
	p.adviseNetworks(ctx, target, name)
}

// silentSource says what to do about a server whose host does not answer.
func silentSource(name, from, to string, err error) string {
	return fmt.Sprintf("Attribute host: server %s is on %s, which can't be asked, so it can't be moved to %s; nothing was touched. %s\n\n"+
		"If %s comes back, apply again then. If it is gone for good, add lost_hosts = [%q] to the provider block (or set %s=%s): "+
		"the plan then recovers the server on %s from its last backup, and says from when that is. Until one of the two, set host back to %q to go on with the rest.",
		name, from, to, sentence(err.Error()), from, from, envLostHosts, from, to, from)
}

// forgetAddresses leaves addresses open where they can't stay: every host's default network is its own.
func (p *serverPlan) forgetAddresses(ctx context.Context) {
	nics, diags := p.plan.nics(ctx)
	p.diags.Append(diags...)
	for _, nic := range nics {
		if nic.Network.IsNull() {
			p.plan.Addresses, p.plan.MAC = types.MapUnknown(types.StringType), types.MapUnknown(types.StringType)
		}
	}
}

func (p *serverPlan) adviseNetworks(ctx context.Context, target *host, server string) {
	nics, diags := p.state.nics(ctx)
	if diags.HasError() {
		return
	}
	for _, name := range sortedKeys(nics) {
		ref := nics[name].Network
		if !isSet(ref) {
			continue
		}
		_, err := ask(ctx, target, target.Networks.GetNetwork, &reflejov1.GetNetworkRequest{Id: ref.ValueString()})
		if fault.Is(err, fault.NotFound) {
			at := path.Root("network").AtMapKey(name).AtName("network")
			p.diags.AddAttributeWarning(at, fmt.Sprintf("Host %s is not on the server's network", target.name), invalid(at, fmt.Sprintf(
				"network %s is not on host %s: unless this apply adds it (hosts of the reflejo_network), the host refuses server %s and it stays where it is", ref.ValueString(), target.name, server)))
		}
	}
}

// move brings a server to another host and waits until it is there and nothing is under
// way on it. Sent again after an interruption it is the same move. The server that comes
// back with an error is as it was last seen.
func (h *host) move(ctx context.Context, s *reflejov1.Server, to *host, settings *reflejov1.MigrationSettings) (*reflejov1.Server, error) {
	if op := s.GetOperation(); op.GetKind() == "migrate" && !op.GetDone() {
		// An apply before this one, or somebody else, began it.
		left, last, err := h.leaves(ctx, s, to)
		if left {
			return to.welcome(ctx, last, h)
		}
		if s = last; err != nil && ctx.Err() != nil {
			return s, err
		}
	}
	prepare := &reflejov1.PrepareMigrationRequest{Server: s, Source: h.name}
	if settings.GetSnapshots() {
		list, err := askAnyway(ctx, h, h.Snapshots.ListSnapshots, &reflejov1.ListSnapshotsRequest{Server: s.GetSpec().GetId()})
		if err != nil {
			return s, err
		}
		for _, snapshot := range list.GetSnapshots() {
			prepare.SnapshotBytes += snapshot.GetReservedSize()
		}
	}
	ticket, _, err := persist(ctx, to, to.Servers.PrepareMigration, prepare, 6)
	if fault.Is(err, fault.Exists) && to.has(ctx, s) { // a move that came to its end just now
		return to.welcome(ctx, s, h)
	}
	if err != nil {
		return s, refusal(to.name, err)
	}
	began, _, err := persist(ctx, h, h.Servers.MigrateServer, &reflejov1.MigrateServerRequest{
		Id: s.GetSpec().GetId(), Target: to.name, Endpoint: api.Endpoint(to.Address(), ticket.GetEndpoint()), Ticket: ticket.GetTicket(), Settings: settings,
	}, 6)
	if err != nil && !fault.Is(err, fault.NotFound) { // not found: it has left by now
		return s, err
	}
	if err == nil {
		if left, last, err := h.leaves(ctx, began.GetServer(), to); !left {
			return last, err
		}
	}
	return to.welcome(ctx, s, h)
}

// leaveLimit is how long a host may take to let go of a server after the move's own end.
const leaveLimit = 30 * time.Second

// leaves watches a server until it has left its host for another, or will not; then the
// error says why.
func (h *host) leaves(ctx context.Context, s *reflejov1.Server, to *host) (left bool, last *reflejov1.Server, err error) {
	last = s
	var ended time.Time // when the move was first seen to have ended without a word
	for {
		seen, err := h.watch(ctx, last, func(seen *reflejov1.WatchServerResponse) bool { return seen.GetGone() || settled(seen.GetServer()) })
		last = seen.GetServer()
		switch {
		case fault.Is(err, fault.NotFound) || seen.GetGone():
			return true, last, nil
		case err != nil:
			return false, last, err
		case last.GetOperation().GetError() != "":
			return false, last, operationError(last)
		}
		if ended.IsZero() {
			ended = time.Now()
		}
		if time.Since(ended) > leaveLimit {
			return to.has(ctx, s), last, fault.New(fault.Aborted, "host %s ended the move, and the server is still there", h.name)
		}
		if !sleep(ctx, firstPause) {
			return false, last, context.Cause(ctx)
		}
	}
}

// has reports whether the host has the server for its own.
func (h *host) has(ctx context.Context, s *reflejov1.Server) bool {
	_, err := h.server(ctx, s.GetSpec().GetId())
	return err == nil
}

// welcome waits until a server that has left another host runs, or does not, on this one.
func (h *host) welcome(ctx context.Context, s *reflejov1.Server, from *host) (*reflejov1.Server, error) {
	there, err := h.settle(ctx, s)
	if fault.Is(err, fault.NotFound) {
		return s, fault.New(fault.Aborted, "host %s does not have the server any more, and host %s does not have it either", from.name, h.name)
	}
	return there, err
}

// refusal names the host that does not take a server.
func refusal(host string, err error) error {
	return &fault.Error{Kind: fault.KindOf(err), Field: fault.FieldOf(err), Err: fmt.Errorf("host %s: %w; the server stays where it is", host, err)}
}

// arrive brings the server to the host that the plan has for it, from wherever it is, and
// returns it there; ready says that it has all of the spec already. A server with an error is
// how it was last seen, on the host beside it.
func (r *serverResource) arrive(ctx context.Context, plan, state serverModel, stays bool, spec *reflejov1.ServerSpec) (h *host, s *reflejov1.Server, ready bool, err error) {
	h, s, err = r.hosts.locateServer(ctx, state.ID.ValueString(), state.Host.ValueString())
	if err != nil && r.hosts.lost[state.Host.ValueString()] {
		h, s, err = r.recover(ctx, plan.Host, state.Host.ValueString(), spec)
		return h, s, true, err
	}
	if err == nil {
		s, err = r.hosts.takeBack(ctx, h, s)
	}
	if err != nil || stays || !isSet(plan.Host) || h.name == plan.Host.ValueString() {
		return h, s, false, err
	}
	to, err := r.hosts.get(plan.Host.ValueString())
	if err != nil {
		return h, s, false, &fault.Error{Kind: fault.KindOf(err), Field: "host", Err: err}
	}
	moved, err := h.move(ctx, s, to, spec.GetMigration())
	if err != nil {
		return h, moved, false, err
	}
	return to, moved, false, nil
}

// recover makes a server of a lost host anew from its last backup.
func (r *serverResource) recover(ctx context.Context, name types.String, lost string, spec *reflejov1.ServerSpec) (*host, *reflejov1.Server, error) {
	h, placed, err := r.refuge(ctx, name, spec)
	if err != nil {
		return nil, nil, err
	}
	resp, _, err := persist(ctx, h, h.Servers.RecoverServer, &reflejov1.RecoverServerRequest{Spec: spec, LostHost: lost}, 6)
	placed(err == nil)
	return h, resp.GetServer(), err
}

// refuge is the host to recover a server on: the one that is configured, or the one with
// most room of those that can read its backups.
func (r *serverResource) refuge(ctx context.Context, name types.String, spec *reflejov1.ServerSpec) (*host, func(bool), error) {
	if isSet(name) {
		h, err := r.hosts.get(name.ValueString())
		if err != nil {
			return nil, nil, &fault.Error{Kind: fault.KindOf(err), Field: "host", Err: err}
		}
		return h, func(bool) {}, nil
	}
	blind := map[string]string{}
	for _, a := range r.hosts.backupsOf(ctx, r.hosts.names(), spec.GetBackupPolicy().GetTarget(), spec.GetId()) {
		switch {
		case a.err != nil:
			blind[a.name] = a.err.Error()
		case newest(a.value) == nil:
			blind[a.name] = "it finds no backup of the server"
		}
	}
	return r.hosts.choose(ctx, &reflejov1.ServerSpec{
		Id: spec.GetId(), Name: spec.GetName(), Cpu: spec.GetCpu(), Memory: spec.GetMemory(), Disk: spec.GetDisk(), Network: spec.GetNetwork(),
	}, blind)
}
