package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	"github.com/reflejo/terraform-provider-reflejo/agent/api"
	reflejov1 "github.com/reflejo/terraform-provider-reflejo/agent/api/reflejo/v1"
)

func (a *app) hostCommand() *cobra.Command {
	return group("host", "Operate hosts", a.drainCommand())
}

func (a *app) drainCommand() *cobra.Command {
	var t travel
	var to []string
	w := waiting{limit: moveLimit}
	c := &cobra.Command{
		Use:   "drain HOST",
		Short: "Move all servers off a host",
		Long: `Move all servers off a host, one after the other, each to the host with most room that
takes it. Servers that can't be moved stay, and are listed with the reason; the exit code is
then 1. Run again after an interruption, or when the reasons are gone, it goes on.

Servers that Terraform keeps on the host by name are moved back by the next apply: take their
host out of the configuration, or change it, first.`,
		Args: exactly(1, "a host"),
		ValidArgsFunction: func(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
			if len(args) > 0 || a.readFlags() != nil {
				return nil, cobra.ShellCompDirectiveNoFileComp
			}
			return a.env.HostNames(), cobra.ShellCompDirectiveNoFileComp
		},
		RunE: func(c *cobra.Command, args []string) error { return a.drain(c.Context(), args[0], to, &t, w) },
	}
	c.Flags().StringSliceVar(&to, "to", nil, "hosts to move to (default: all others)")
	c.Flags().DurationVar(&w.limit, "wait", moveLimit, "how long to wait for each server; what was begun goes on afterwards")
	t.addTo(c)
	return c
}

// drained is what became of one server of a host that is drained.
type drained struct {
	Server string `json:"server"`
	ID     string `json:"id"`
	To     string `json:"to,omitempty"`
	Reason string `json:"reason,omitempty"` // why it is still there
}

func (a *app) drain(ctx context.Context, name string, to []string, t *travel, w waiting) error {
	from, err := a.dialHost(name)
	if err != nil {
		return err
	}
	targets, err := a.drainTargets(name, to)
	if err != nil {
		return err
	}
	asking, cancel := context.WithTimeout(ctx, askLimit)
	defer cancel()
	list := listServers(asking, []*api.Client{from}, false)[0]
	if list.err != nil {
		return failures([]answer[[]*reflejov1.Server]{list})
	}
	servers := slices.DeleteFunc(list.value, func(s *reflejov1.Server) bool { return s.GetState() == stateIncoming })
	slices.SortFunc(servers, func(x, y *reflejov1.Server) int { return strings.Compare(x.GetSpec().GetName(), y.GetSpec().GetName()) })
	p := a.progress()
	defer p.stop()
	all := []drained{}
	for i, s := range servers {
		if ctx.Err() != nil {
			return fmt.Errorf("%d of %d servers are off %s; run it again to go on: %w", i, len(servers), name, ctx.Err())
		}
		task := p.task(fmt.Sprintf("%s (%d of %d)", s.GetSpec().GetName(), i+1, len(servers)), true)
		host, err := a.drainOne(ctx, from, targets, s, t, w, task)
		task.end()
		d := drained{Server: s.GetSpec().GetName(), ID: s.GetSpec().GetId(), To: host}
		if err != nil {
			d.To, d.Reason = "", err.Error()
		}
		all = append(all, d)
	}
	p.stop()
	return a.printDrained(name, all)
}

func (a *app) printDrained(host string, all []drained) error {
	var err error
	stay := 0
	var rows [][]string
	for _, d := range all {
		if d.Reason != "" {
			stay++
		}
		rows = append(rows, []string{d.Server, dash(d.To), dash(strings.ReplaceAll(d.Reason, "\n", "; "))})
	}
	switch {
	case a.flags.output == "json":
		err = a.printJSON(all)
	case len(all) == 0:
		_, err = fmt.Fprintf(a.out, "host %s has no servers\n", host)
	default:
		err = a.table([]string{"SERVER", "MOVED TO", "STAYS BECAUSE"}, rows)
	}
	if stay > 0 {
		err = errors.Join(err, fmt.Errorf("%d of %d servers are still on %s", stay, len(all), host))
	}
	return err
}

// drainTargets are the hosts that servers may go to.
func (a *app) drainTargets(from string, to []string) ([]*api.Client, error) {
	if len(to) == 0 {
		to = slices.DeleteFunc(a.env.HostNames(), func(name string) bool { return name == from })
	}
	if slices.Contains(to, from) || len(to) == 0 {
		return nil, &usageError{fmt.Errorf("host %s can't be drained to itself: name others with --to", from)}
	}
	var targets []*api.Client
	for _, name := range to {
		c, err := a.dialHost(name)
		if err != nil {
			return nil, err
		}
		targets = append(targets, c)
	}
	return targets, nil
}

// drainOne moves one server to the host with most room that takes it.
func (a *app) drainOne(ctx context.Context, from *api.Client, targets []*api.Client, s *reflejov1.Server, t *travel, w waiting, task *task) (string, error) {
	switch o := s.GetOperation(); {
	case s.GetState() == "suspended":
		return "", errors.New("it is suspended, and its memory can't travel: resume or stop it")
	case s.GetState() == "failed" || s.GetState() == "deleting":
		return "", fmt.Errorf("it is %s", s.GetState())
	case o.GetKind() == "migrate" && !o.GetDone(): // an earlier drain began it; wherever it goes is good
		return a.follow(ctx, from, s, w, task)
	}
	ranked, refused := rankHosts(ctx, targets)
	for _, to := range ranked {
		err := a.move(ctx, from, to, s, t, w, task)
		var no *refusedError
		if !errors.As(err, &no) {
			return to.Name(), err
		}
		refused = append(refused, err)
	}
	return "", errors.Join(refused...)
}

// follow follows a server that is on its way already, to whichever host.
func (a *app) follow(ctx context.Context, from *api.Client, s *reflejov1.Server, w waiting, task *task) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, w.limit)
	defer cancel()
	m := mover{from: from, to: from, id: s.GetSpec().GetId(), name: s.GetSpec().GetName(), task: task}
	if err := m.left(ctx); err != nil {
		return "", m.waited(ctx, err)
	}
	there, _, err := a.findServer(ctx, m.id, false)
	if err != nil {
		return "", err
	}
	m.to = there
	return there.Name(), m.waited(ctx, m.arrived(ctx))
}

// rankHosts orders hosts by how much of their memory is free, those that are silent left
// out. What a server really needs is the host's own decision.
func rankHosts(ctx context.Context, targets []*api.Client) (ranked []*api.Client, silent []error) {
	ctx, cancel := context.WithTimeout(ctx, askLimit)
	defer cancel()
	answers := ask(ctx, targets, func(ctx context.Context, c *api.Client) (float64, error) {
		res, err := c.Hosts.GetHost(ctx, connect.NewRequest(&reflejov1.GetHostRequest{}))
		if err != nil {
			return 0, err
		}
		h := res.Msg.GetHost()
		part := func(free, all int64) float64 { return float64(free) / float64(max(all, 1)) }
		return min(
			part(h.GetFree().GetMemoryBytes(), h.GetCapacity().GetMemoryBytes()),
			part(h.GetFree().GetMilliCores(), h.GetCapacity().GetMilliCores()),
			part(h.GetFree().GetDiskBytes(), h.GetCapacity().GetDiskBytes()),
		), nil
	})
	for _, r := range answers {
		if r.err != nil {
			silent = append(silent, fmt.Errorf("host %s: %w", r.client.Name(), r.err))
		}
	}
	answers = slices.DeleteFunc(answers, func(r answer[float64]) bool { return r.err != nil })
	slices.SortStableFunc(answers, func(x, y answer[float64]) int { return cmp.Compare(y.value, x.value) })
	for _, r := range answers {
		ranked = append(ranked, r.client)
	}
	return ranked, silent
}
