package main

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	"github.com/reflejo/terraform-provider-reflejo/agent/api"
	reflejov1 "github.com/reflejo/terraform-provider-reflejo/agent/api/reflejo/v1"
	"github.com/reflejo/terraform-provider-reflejo/agent/units"
)

func (a *app) serverCommand() *cobra.Command {
	return group("server", "Operate virtual servers",
		&cobra.Command{
			Use:     "list",
			Aliases: []string{"ls"},
			Short:   "List the servers of all hosts",
			Args:    exactly(0, "no arguments"),
			RunE:    func(c *cobra.Command, _ []string) error { return a.serverList(c.Context()) },
		},
		a.oneServer("show", "Show a server, its limits and what it uses", a.serverShow),
		a.execCommand(), a.consoleCommand(), a.logsCommand(),
		a.powerCommand("start", "Start a server", reflejov1.SetPowerRequest_ACTION_START),
		a.powerCommand("stop", "Stop a server cleanly, by force after its shutdown timeout", reflejov1.SetPowerRequest_ACTION_STOP),
		a.powerCommand("kill", "Stop a server at once", reflejov1.SetPowerRequest_ACTION_KILL),
		a.powerCommand("suspend", "Freeze a server; its memory stays", reflejov1.SetPowerRequest_ACTION_SUSPEND),
		a.powerCommand("resume", "Let a suspended server go on", reflejov1.SetPowerRequest_ACTION_RESUME),
		a.powerCommand("reboot", "Stop a server cleanly and start it", reflejov1.SetPowerRequest_ACTION_REBOOT),
		a.migrateCommand(), a.recoverCommand(), a.deleteServerCommand(),
	)
}

// oneServer is a command about one server.
func (a *app) oneServer(use, short string, run func(ctx context.Context, name string) error) *cobra.Command {
	return &cobra.Command{
		Use:               use + " SERVER",
		Short:             short,
		Args:              exactly(1, "a server's name or id"),
		ValidArgsFunction: a.completeServers,
		RunE:              func(c *cobra.Command, args []string) error { return run(c.Context(), args[0]) },
	}
}

// completeServers completes the first argument for the shell.
func (a *app) completeServers(c *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 || a.readFlags() != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	clients, err := a.dial()
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	ctx, cancel := context.WithTimeout(c.Context(), askLimit/5)
	defer cancel()
	var names []string
	for _, r := range listServers(ctx, clients, false) {
		for _, s := range r.value {
			names = append(names, s.GetSpec().GetName())
		}
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}

func listServers(ctx context.Context, clients []*api.Client, usage bool) []answer[[]*reflejov1.Server] {
	return ask(ctx, clients, func(ctx context.Context, c *api.Client) ([]*reflejov1.Server, error) {
		res, err := c.Servers.ListServers(ctx, connect.NewRequest(&reflejov1.ListServersRequest{Usage: usage}))
		if err != nil {
			return nil, err
		}
		return res.Msg.GetServers(), nil
	})
}

func (a *app) serverList(ctx context.Context) error {
	clients, err := a.dial()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, askLimit)
	defer cancel()
	answers := listServers(ctx, clients, a.flags.output == "json")
	var servers []*reflejov1.Server
	for _, r := range answers {
		servers = append(servers, r.value...)
	}
	slices.SortStableFunc(servers, func(x, y *reflejov1.Server) int {
		return cmp.Or(strings.Compare(x.GetSpec().GetName(), y.GetSpec().GetName()), strings.Compare(x.GetHost(), y.GetHost()))
	})
	if a.flags.output == "json" {
		err = printMessages(a, servers)
	} else {
		var rows [][]string
		for _, s := range servers {
			spec := s.GetSpec()
			rows = append(rows, []string{
				spec.GetName(), s.GetHost(), stateText(s), units.FormatCores(spec.GetCpu().GetMilliCores()),
				units.FormatBytes(spec.GetMemory().GetMax()), units.FormatBytes(spec.GetDisk().GetSize()),
				dash(addressesText(s)), dash(imageText(s)),
			})
		}
		err = a.table([]string{"NAME", "HOST", "STATE", "CORES", "MEMORY", "DISK", "ADDRESS", "IMAGE"}, rows)
	}
	if err != nil {
		return err
	}
	return failures(answers)
}

// stateText is the state and, while something is under way, what.
func stateText(s *reflejov1.Server) string {
	o := s.GetOperation()
	switch {
	case o.GetKind() == "":
		return s.GetState()
	case !o.GetDone():
		return fmt.Sprintf("%s (%s)", s.GetState(), strings.TrimSpace(o.GetKind()+" "+o.GetStep()))
	case o.GetError() != "":
		return fmt.Sprintf("%s (%s failed)", s.GetState(), o.GetKind())
	}
	return s.GetState()
}

func addressesText(s *reflejov1.Server) string {
	var list []string
	for _, name := range slices.Sorted(maps.Keys(s.GetNics())) {
		address, _, _ := strings.Cut(s.GetNics()[name].GetAddress(), "/")
		list = append(list, address)
	}
	return strings.Join(list, ",")
}

// imageText is the image's name, or the beginning of its id.
func imageText(s *reflejov1.Server) string {
	if s.GetImageName() != "" {
		return s.GetImageName()
	}
	return shortID(s.GetSpec().GetImage())
}

func shortID(id string) string {
	const short = len("sha256:") + 12
	if len(id) > short {
		return id[:short]
	}
	return id
}

func (a *app) serverShow(ctx context.Context, name string) error {
	_, s, err := a.findServer(ctx, name, true)
	if err != nil {
		return err
	}
	if a.flags.output == "json" {
		return a.printMessage(s)
	}
	spec := s.GetSpec()
	pairs := [][2]string{
		{"Name", spec.GetName()},
		{"Id", spec.GetId()},
		{"Host", s.GetHost()},
		{"State", stateText(s)},
		{"Leaving for", s.GetLeaving()},
		{"Error", s.GetOperation().GetError()},
		{"Image", strings.TrimSpace(s.GetImageName() + " " + spec.GetImage())},
		{"Created", timeText(s.GetCreatedAt())},
		{"Started", timeText(s.GetStartedAt())},
		{"Cores", joinWords(units.FormatCores(spec.GetCpu().GetMilliCores()), fmt.Sprintf("weight %d", spec.GetCpu().GetWeight()), prefixed("pinned to ", spec.GetCpu().GetPin()))},
		{"Memory", joinWords(units.FormatBytes(spec.GetMemory().GetMax()), amount("high ", spec.GetMemory().GetHigh(), units.FormatBytes), amount("swap ", spec.GetMemory().GetSwap(), units.FormatBytes))},
		{"Processes", fmt.Sprint(spec.GetProcesses())},
		{"Disk", diskText(spec.GetDisk(), s.GetDiskUsed())},
	}
	pairs = append(pairs, nicDetails(s)...)
	pairs = append(pairs, usageDetails(s.GetUsage())...)
	if spec.GetDeletionProtection() {
		pairs = append(pairs, [2]string{"Protected", "against deletion"})
	}
	for _, k := range slices.Sorted(maps.Keys(spec.GetLabels())) {
		pairs = append(pairs, [2]string{"Label " + k, spec.GetLabels()[k]})
	}
	for _, m := range s.GetMessages() {
		pairs = append(pairs, [2]string{timeText(m.GetTime()), m.GetText()})
	}
	return a.details(pairs)
}

func diskText(d *reflejov1.Disk, used int64) string {
	rate := func(name string, v int64) string { return amount(name, v, units.FormatByteRate) }
	perSecond := func(name string, v int64) string {
		return amount(name, v, func(n int64) string { return fmt.Sprintf("%d/s", n) })
	}
	return joinWords(units.FormatBytes(d.GetSize()), roundBytes(used)+" used",
		rate("read ", d.GetReadBps()), rate("write ", d.GetWriteBps()),
		perSecond("read operations ", d.GetReadIops()), perSecond("write operations ", d.GetWriteIops()))
}

func nicDetails(s *reflejov1.Server) (pairs [][2]string) {
	for _, name := range slices.Sorted(maps.Keys(s.GetSpec().GetNetwork())) {
		n, at := s.GetSpec().GetNetwork()[name], s.GetNics()[name]
		pairs = append(pairs, [2]string{"Interface " + name, joinWords(at.GetAddress(), at.GetMac(), prefixed("network ", at.GetNetwork()),
			amount("in ", n.GetIngress(), units.FormatBitrate), amount("out ", n.GetEgress(), units.FormatBitrate))})
		for _, key := range slices.Sorted(maps.Keys(n.GetPublish())) {
			p := n.GetPublish()[key]
			pairs = append(pairs, [2]string{"  published " + key, fmt.Sprintf("%s host port %d to port %d", p.GetProtocol(), p.GetHostPort(), p.GetPort())})
		}
		for _, r := range n.GetAllow() {
			pairs = append(pairs, [2]string{"  allowed", joinWords(prefixed("from ", r.GetFrom()), r.GetProtocol(), prefixed("ports ", r.GetPorts()))})
		}
		if n.GetFiltered() && len(n.GetAllow()) == 0 {
			pairs = append(pairs, [2]string{"  allowed", "nothing but published ports"})
		}
	}
	return pairs
}

func usageDetails(u *reflejov1.ServerUsage) [][2]string {
	if u == nil {
		return nil
	}
	pairs := [][2]string{
		{"CPU time used", joinWords(u.GetCpu().AsDuration().String(), "held back "+u.GetThrottled().AsDuration().String())},
		{"Memory used", joinWords(roundBytes(u.GetMemoryUsed()), "cache "+roundBytes(u.GetMemoryCache()), amount("swap ", u.GetSwapUsed(), roundBytes))},
		{"Processes now", fmt.Sprint(u.GetTasks())},
		{"Disk traffic", joinWords("read "+roundBytes(u.GetReadBytes()), "written "+roundBytes(u.GetWriteBytes()))},
	}
	if u.GetOomKills() > 0 {
		pairs = append(pairs, [2]string{"Killed for memory", fmt.Sprint(u.GetOomKills())})
	}
	return pairs
}

// joinWords joins what is not empty.
func joinWords(words ...string) string {
	return strings.Join(slices.DeleteFunc(words, func(w string) bool { return w == "" }), ", ")
}

func prefixed(prefix, s string) string {
	if s == "" {
		return ""
	}
	return prefix + s
}

// amount is "" for 0, which means no limit.
func amount(name string, v int64, format func(int64) string) string {
	if v == 0 {
		return ""
	}
	return name + format(v)
}
