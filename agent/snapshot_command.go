package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	"connectrpc.com/connect"
	"github.com/google/uuid"
	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/reflejo/terraform-provider-reflejo/agent/api"
	reflejov1 "github.com/reflejo/terraform-provider-reflejo/agent/api/reflejo/v1"
	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
	"github.com/reflejo/terraform-provider-reflejo/agent/units"
)

func (a *app) snapshotCommand() *cobra.Command {
	var server string
	list := &cobra.Command{
		Use:     "list",
		Aliases: []string{"ls"},
		Short:   "List the snapshots of all hosts",
		Args:    exactly(0, "no arguments"),
		RunE:    func(c *cobra.Command, _ []string) error { return a.snapshotList(c.Context(), server) },
	}
	ofServer(list, &server)
	show := &cobra.Command{
		Use:   "show SNAPSHOT",
		Short: "Show a snapshot",
		Args:  exactly(1, "a snapshot's name or id"),
		RunE:  func(c *cobra.Command, args []string) error { return a.snapshotShow(c.Context(), args[0], server) },
	}
	ofServer(show, &server)
	return group("snapshot", "Keep read-only copies of servers' disks",
		list, show, a.createSnapshotCommand(), a.updateSnapshotCommand(), a.deleteSnapshotCommand(), a.restoreCommand())
}

// ofServer adds the flag that says whose snapshots or backups are meant.
func ofServer(c *cobra.Command, server *string) {
	c.Flags().StringVar(server, "server", "", "only those of this server (name or id)")
}

// isOf reports whether something is of a server that was named by its name or id.
func isOf(server, id, name string) bool { return server == "" || server == id || server == name }

func (a *app) listSnapshots(ctx context.Context, server string) (answers []answer[[]*reflejov1.Snapshot], err error) {
	clients, err := a.dial()
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, askLimit)
	defer cancel()
	return ask(ctx, clients, func(ctx context.Context, c *api.Client) ([]*reflejov1.Snapshot, error) {
		res, err := c.Snapshots.ListSnapshots(ctx, connect.NewRequest(&reflejov1.ListSnapshotsRequest{}))
		if err != nil {
			return nil, err
		}
		return slices.DeleteFunc(res.Msg.GetSnapshots(), func(s *reflejov1.Snapshot) bool { return !isOf(server, s.GetServerId(), s.GetServerName()) }), nil
	}), nil
}

func (a *app) snapshotList(ctx context.Context, server string) error {
	answers, err := a.listSnapshots(ctx, server)
	if err != nil {
		return err
	}
	var all []*reflejov1.Snapshot
	for _, r := range answers {
		all = append(all, r.value...)
	}
	slices.SortStableFunc(all, func(x, y *reflejov1.Snapshot) int {
		return cmp.Or(strings.Compare(x.GetServerName(), y.GetServerName()), x.GetCreatedAt().AsTime().Compare(y.GetCreatedAt().AsTime()), strings.Compare(x.GetName(), y.GetName()))
	})
	if a.flags.output == "json" {
		err = printMessages(a, all)
	} else {
		var rows [][]string
		for _, s := range all {
			rows = append(rows, []string{
				s.GetName(), s.GetServerName(), s.GetHost(), copyState(s.GetState(), s.GetOperation()), s.GetOrigin(), dash(timeText(s.GetCreatedAt())),
				units.FormatBytes(s.GetSize()), roundBytes(s.GetExclusiveSize()), s.GetId(),
			})
		}
		err = a.table([]string{"NAME", "SERVER", "HOST", "STATE", "ORIGIN", "CREATED", "SIZE", "FREES", "ID"}, rows)
	}
	return errors.Join(err, failures(answers))
}

// copyState is the state of a snapshot or backup and, while something is under way, what.
func copyState(state string, o *reflejov1.Operation) string {
	switch {
	case o.GetKind() == "":
		return state
	case !o.GetDone():
		return fmt.Sprintf("%s (%s)", state, strings.TrimSpace(o.GetKind()+" "+o.GetStep()))
	case o.GetError() != "" && state != "failed":
		return fmt.Sprintf("%s (%s failed)", state, o.GetKind())
	}
	return state
}

// findSnapshot finds a snapshot by id or name; server tells snapshots of one name apart.
func (a *app) findSnapshot(ctx context.Context, idOrName, server string) (*api.Client, *reflejov1.Snapshot, error) {
	answers, err := a.listSnapshots(ctx, server)
	if err != nil {
		return nil, nil, err
	}
	return pick(answers, "snapshot", idOrName,
		func(s *reflejov1.Snapshot) bool { return s.GetId() == idOrName || s.GetName() == idOrName },
		func(s *reflejov1.Snapshot) string {
			return fmt.Sprintf("%s of server %s", s.GetId(), s.GetServerName())
		})
}

// pick finds the one thing that is meant among all that hosts have.
func pick[T any](answers []answer[[]T], what, idOrName string, meant func(T) bool, describe func(T) string) (client *api.Client, found T, err error) {
	var choices, asked []string
	for _, r := range answers {
		asked = append(asked, r.client.Name())
		for _, one := range r.value {
			if meant(one) {
				client, found = r.client, one
				choices = append(choices, fmt.Sprintf("%s (%s)", r.client.Name(), describe(one)))
			}
		}
	}
	switch silent := failures(answers); {
	case len(choices) == 1:
		return client, found, nil
	case len(choices) > 1:
		return nil, found, fmt.Errorf("%s %q is on %s: pick one by its id", what, idOrName, strings.Join(choices, " and "))
	case silent != nil:
		return nil, found, fmt.Errorf("%s %q was not found on the hosts that answered:\n%w", what, idOrName, silent)
	}
	return nil, found, fault.New(fault.NotFound, "no %s %q on %s", what, idOrName, strings.Join(asked, ", "))
}

func (a *app) snapshotShow(ctx context.Context, name, server string) error {
	_, s, err := a.findSnapshot(ctx, name, server)
	if err != nil {
		return err
	}
	if a.flags.output == "json" {
		return a.printMessage(s)
	}
	pairs := [][2]string{
		{"Name", s.GetName()},
		{"Id", s.GetId()},
		{"Host", s.GetHost()},
		{"Server", s.GetServerName() + " " + s.GetServerId()},
		{"State", copyState(s.GetState(), s.GetOperation())},
		{"Error", s.GetOperation().GetError()},
		{"Description", s.GetDescription()},
		{"Created", timeText(s.GetCreatedAt())},
		{"Origin", s.GetOrigin()},
		{"Consistency", s.GetConsistency()},
		{"Server was", joinWords(s.GetServerState(), prefixed("writers held up for ", s.GetPause().AsDuration().Round(time.Millisecond).String()))},
		{"Size", joinWords(units.FormatBytes(s.GetSize()), roundBytes(s.GetExclusiveSize())+" freed by deleting it", roundBytes(s.GetReservedSize())+" reserved")},
		{"Checksum", s.GetChecksum()},
		{"Image", s.GetImage()},
	}
	for _, k := range slices.Sorted(maps.Keys(s.GetLabels())) {
		pairs = append(pairs, [2]string{"Label " + k, s.GetLabels()[k]})
	}
	return a.details(pairs)
}

func (a *app) createSnapshotCommand() *cobra.Command {
	var w waiting
	request := &reflejov1.CreateSnapshotRequest{}
	c := &cobra.Command{
		Use:               "create SERVER",
		Short:             "Take a snapshot of a server as it is",
		Args:              exactly(1, "a server's name or id"),
		ValidArgsFunction: a.completeServers,
		RunE: func(c *cobra.Command, args []string) error {
			ctx := c.Context()
			client, server, err := a.findServer(ctx, args[0], false)
			if err != nil {
				return err
			}
			request.Id, request.Server = uuid.NewString(), server.GetSpec().GetId()
			res, err := client.Snapshots.CreateSnapshot(ctx, connect.NewRequest(request))
			if err != nil {
				return api.ErrorOf(err)
			}
			return a.snapshotMade(ctx, client, res.Msg.GetSnapshot(), w)
		},
	}
	c.Flags().StringVar(&request.Name, "name", "", "its name (default: made of server and time)")
	c.Flags().StringVar(&request.Description, "description", "", "text of your own")
	c.Flags().StringToStringVar(&request.Labels, "label", nil, "labels, key=value")
	c.Flags().StringVar(&request.Consistency, "consistency", "filesystem", "filesystem (nothing to repair) or crash (as after a power cut; nobody waits)")
	w.addTo(c)
	return c
}

// snapshotMade follows a new snapshot and says what it is.
func (a *app) snapshotMade(ctx context.Context, client *api.Client, s *reflejov1.Snapshot, w waiting) error {
	if !w.not {
		var err error
		if s, err = a.settleSnapshot(ctx, client, s, w.limit, false); err != nil {
			return err
		}
	}
	if a.flags.output == "json" {
		return a.printMessage(s)
	}
	_, err := fmt.Fprintf(a.out, "snapshot %s is %s on %s\n", printable(s.GetName()), s.GetId(), client.Name())
	return err
}

// settleSnapshot follows a snapshot until nothing is under way, or it is gone.
func (a *app) settleSnapshot(ctx context.Context, client *api.Client, s *reflejov1.Snapshot, limit time.Duration, gone bool) (*reflejov1.Snapshot, error) {
	last := s
	err := a.settleCopy(ctx, client, copyWatch{what: "snapshot", name: s.GetName(), limit: limit, gone: gone, once: func(ctx context.Context, at func(*reflejov1.Operation)) (bool, error) {
		stream, err := client.Snapshots.WatchSnapshot(ctx, connect.NewRequest(&reflejov1.WatchSnapshotRequest{Id: s.GetId(), UntilSettled: true}))
		if err != nil {
			return false, api.ErrorOf(err)
		}
		defer stream.Close()
		for stream.Receive() {
			if stream.Msg().GetGone() {
				return true, nil
			}
			last = stream.Msg().GetSnapshot()
			at(last.GetOperation())
		}
		return false, api.ErrorOf(stream.Err())
	}})
	return last, err
}

// copyWatch is how a snapshot or backup is followed.
type copyWatch struct {
	what, name string
	limit      time.Duration
	gone       bool // wait until it is gone
	once       func(ctx context.Context, at func(*reflejov1.Operation)) (gone bool, err error)
}

// settleCopy follows a copy until nothing is under way, or it is gone, with progress. An agent that is
// restarted meanwhile is waited for.
func (a *app) settleCopy(ctx context.Context, client *api.Client, w copyWatch) error {
	ctx, cancel := context.WithTimeout(ctx, w.limit)
	defer cancel()
	p := a.progress()
	defer p.stop()
	t := p.task(w.name, true)
	var last *reflejov1.Operation
	for {
		gone, err := w.once(ctx, func(o *reflejov1.Operation) {
			last = o
			t.at(o.GetStep(), o.GetBytesDone(), o.GetBytesTotal())
		})
		switch {
		case ctx.Err() != nil:
			return fmt.Errorf("%s %s: %s is still under way; the agent goes on with it: %w", w.what, w.name, last.GetKind(), ctx.Err())
		case gone || (fault.Is(err, fault.NotFound) && w.gone):
			if !w.gone {
				return fault.New(fault.NotFound, "%s %s was deleted by somebody else", w.what, w.name)
			}
			return nil
		case fault.Is(err, fault.Unavailable):
			t.at("waiting for the agent of "+client.Name(), 0, 0)
			select {
			case <-ctx.Done():
			case <-time.After(time.Second):
			}
		case err != nil:
			return err
		case last.GetError() != "":
			return fmt.Errorf("%s %s %s: %s", last.GetKind(), w.what, w.name, last.GetError())
		case !w.gone:
			return nil
		}
	}
}

func (a *app) updateSnapshotCommand() *cobra.Command {
	var server string
	var remove []string
	request := &reflejov1.UpdateSnapshotRequest{}
	c := &cobra.Command{
		Use:   "update SNAPSHOT",
		Short: "Change a snapshot's name, description or labels",
		Args:  exactly(1, "a snapshot's name or id"),
	}
	c.RunE = func(_ *cobra.Command, args []string) error {
		client, s, err := a.findSnapshot(c.Context(), args[0], server)
		if err != nil {
			return err
		}
		labels := maps.Clone(s.GetLabels())
		if labels == nil {
			labels = map[string]string{}
		}
		maps.Copy(labels, request.Labels)
		maps.DeleteFunc(labels, func(k, _ string) bool { return slices.Contains(remove, k) })
		request.Id, request.Labels = s.GetId(), labels
		if !c.Flags().Changed("name") {
			request.Name = s.GetName()
		}
		if !c.Flags().Changed("description") {
			request.Description = s.GetDescription()
		}
		_, err = client.Snapshots.UpdateSnapshot(c.Context(), connect.NewRequest(request))
		return api.ErrorOf(err)
	}
	c.Flags().StringVar(&request.Name, "name", "", "its new name")
	c.Flags().StringVar(&request.Description, "description", "", "its new description")
	c.Flags().StringToStringVar(&request.Labels, "label", nil, "labels to set, key=value")
	c.Flags().StringSliceVar(&remove, "remove-label", nil, "labels to remove")
	ofServer(c, &server)
	return c
}

func (a *app) deleteSnapshotCommand() *cobra.Command {
	var w waiting
	var server string
	var sure bool
	c := &cobra.Command{
		Use:   "delete SNAPSHOT",
		Short: "Delete a snapshot; others and the server are not touched",
		Args:  exactly(1, "a snapshot's name or id"),
		RunE: func(c *cobra.Command, args []string) error {
			ctx := c.Context()
			client, s, err := a.findSnapshot(ctx, args[0], server)
			if err != nil {
				return err
			}
			if !a.agreed(sure, fmt.Sprintf("Delete snapshot %s of server %s on %s?", s.GetName(), s.GetServerName(), client.Name())) {
				return errors.New("nothing was deleted")
			}
			if _, err := client.Snapshots.DeleteSnapshot(ctx, connect.NewRequest(&reflejov1.DeleteSnapshotRequest{Id: s.GetId()})); err != nil {
				return api.ErrorOf(err)
			}
			if w.not {
				return nil
			}
			_, err = a.settleSnapshot(ctx, client, s, w.limit, true)
			return err
		},
	}
	addSure(c, &sure)
	ofServer(c, &server)
	w.addTo(c)
	return c
}

func addSure(c *cobra.Command, sure *bool) {
	c.Flags().BoolVarP(sure, "yes", "y", false, "do not ask (nobody is asked where there is no terminal)")
}

// agreed asks whoever sits at the terminal, if somebody does.
func (a *app) agreed(sure bool, question string) bool {
	f, ok := a.in.(*os.File)
	return sure || !ok || !term.IsTerminal(int(f.Fd())) || yes(a.in, a.err, question)
}

func (a *app) restoreCommand() *cobra.Command {
	var w waiting
	var server string
	var sure bool
	c := &cobra.Command{
		Use:   "restore SNAPSHOT",
		Short: "Put a snapshot back in place of its server's disk",
		Long: `Put a snapshot back in place of its server's disk. The server is stopped cleanly, what is
on its disk is kept as a safety snapshot, and it is started again if it ran: with the same id,
addresses and MACs.`,
		Args: exactly(1, "a snapshot's name or id"),
		RunE: func(c *cobra.Command, args []string) error {
			ctx := c.Context()
			client, s, err := a.findSnapshot(ctx, args[0], server)
			if err != nil {
				return err
			}
			if !a.agreed(sure, fmt.Sprintf("Put the disk of server %s back to what it was at %s?", s.GetServerName(), timeText(s.GetCreatedAt()))) {
				return errors.New("nothing was touched")
			}
			safety := uuid.NewString()
			res, err := client.Snapshots.RestoreServer(ctx, connect.NewRequest(&reflejov1.RestoreServerRequest{Id: safety, Server: s.GetServerId(), Snapshot: s.GetId()}))
			if err != nil {
				return api.ErrorOf(err)
			}
			if !w.not {
				if err := a.settle(ctx, client, res.Msg.GetServer(), w.limit, false); err != nil {
					return err
				}
			}
			_, err = fmt.Fprintf(a.out, "what server %s had is in snapshot %s\n", printable(s.GetServerName()), safety)
			return err
		},
	}
	addSure(c, &sure)
	ofServer(c, &server)
	w.addTo(c)
	return c
}
