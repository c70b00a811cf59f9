package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"connectrpc.com/connect"
	"github.com/google/uuid"
	"github.com/spf13/cobra"

	"github.com/reflejo/terraform-provider-reflejo/agent/api"
	reflejov1 "github.com/reflejo/terraform-provider-reflejo/agent/api/reflejo/v1"
	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
	"github.com/reflejo/terraform-provider-reflejo/agent/units"
)

// backupLimit is how long to wait for a backup by default: all of a disk may have to travel.
const backupLimit = 6 * time.Hour

// backups is which backups a command means.
type backups struct{ target, server string }

func (b *backups) addTo(c *cobra.Command) {
	c.Flags().StringVar(&b.target, "target", "", "look at what is there (host:NAME, s3://bucket/prefix or dir:/path), not at what the hosts know")
	ofServer(c, &b.server)
}

func (a *app) backupCommand() *cobra.Command {
	var which backups
	list := &cobra.Command{
		Use:     "list",
		Aliases: []string{"ls"},
		Short:   "List the backups that hosts know, or that a target holds",
		Args:    exactly(0, "no arguments"),
		RunE:    func(c *cobra.Command, _ []string) error { return a.backupList(c.Context(), which) },
	}
	which.addTo(list)
	show := &cobra.Command{
		Use:   "show BACKUP",
		Short: "Show a backup",
		Args:  exactly(1, "a backup's name or id"),
		RunE:  func(c *cobra.Command, args []string) error { return a.backupShow(c.Context(), args[0], which) },
	}
	which.addTo(show)
	return group("backup", "Keep snapshots as files away from the disk pool",
		list, show, a.createBackupCommand(), a.verifyBackupCommand(), a.importBackupCommand(), a.deleteBackupCommand())
}

// listBackups asks all hosts for what they know or, with a target, the first that can tell
// for what is there.
func (a *app) listBackups(ctx context.Context, which backups) ([]answer[[]*reflejov1.Backup], error) {
	clients, err := a.dial()
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, 2*askLimit)
	defer cancel()
	ofServer := func(all []*reflejov1.Backup) []*reflejov1.Backup {
		return slices.DeleteFunc(all, func(b *reflejov1.Backup) bool { return !isOf(which.server, b.GetServerId(), b.GetServerName()) })
	}
	if which.target == "" {
		return ask(ctx, clients, func(ctx context.Context, c *api.Client) ([]*reflejov1.Backup, error) {
			res, err := c.Backups.ListBackups(ctx, connect.NewRequest(&reflejov1.ListBackupsRequest{}))
			if err != nil {
				return nil, err
			}
			return ofServer(res.Msg.GetBackups()), nil
		}), nil
	}
	if strings.HasPrefix(which.target, "dir:") && len(clients) > 1 {
		return nil, &usageError{fmt.Errorf("a directory is another one on each host: say with --host on which %s is", which.target)}
	}
	var silent []answer[[]*reflejov1.Backup]
	for _, c := range clients {
		r := ask(ctx, []*api.Client{c}, func(ctx context.Context, c *api.Client) ([]*reflejov1.Backup, error) {
			res, err := c.Backups.ListTarget(ctx, connect.NewRequest(&reflejov1.ListTargetRequest{Target: which.target}))
			if err != nil {
				return nil, err
			}
			return ofServer(res.Msg.GetBackups()), nil
		})[0]
		if r.err == nil {
			return []answer[[]*reflejov1.Backup]{r}, nil
		}
		silent = append(silent, r)
	}
	return nil, failures(silent)
}

func (a *app) backupList(ctx context.Context, which backups) error {
	answers, err := a.listBackups(ctx, which)
	if err != nil {
		return err
	}
	var all []*reflejov1.Backup
	for _, r := range answers {
		all = append(all, r.value...)
	}
	slices.SortStableFunc(all, func(x, y *reflejov1.Backup) int {
		return cmp.Or(strings.Compare(x.GetServerName(), y.GetServerName()), x.GetCreatedAt().AsTime().Compare(y.GetCreatedAt().AsTime()), strings.Compare(x.GetName(), y.GetName()))
	})
	if a.flags.output == "json" {
		err = printMessages(a, all)
	} else {
		var rows [][]string
		for _, b := range all {
			kind := "full"
			if b.GetParentId() != "" {
				kind = "incremental"
			}
			rows = append(rows, []string{
				b.GetName(), b.GetServerName(), b.GetHost(), copyState(b.GetState(), b.GetOperation()), kind, dash(timeText(b.GetCreatedAt())),
				roundBytes(b.GetSize()), b.GetTarget(), b.GetId(),
			})
		}
		err = a.table([]string{"NAME", "SERVER", "MADE BY", "STATE", "KIND", "OF", "SIZE", "TARGET", "ID"}, rows)
	}
	return errors.Join(err, failures(answers))
}

// findBackup finds a backup by id or name, and the host that told of it.
func (a *app) findBackup(ctx context.Context, idOrName string, which backups) (*api.Client, *reflejov1.Backup, error) {
	answers, err := a.listBackups(ctx, which)
	if err != nil {
		return nil, nil, err
	}
	return pick(answers, "backup", idOrName,
		func(b *reflejov1.Backup) bool { return b.GetId() == idOrName || b.GetName() == idOrName },
		func(b *reflejov1.Backup) string { return fmt.Sprintf("%s of server %s", b.GetId(), b.GetServerName()) })
}

func (a *app) backupShow(ctx context.Context, name string, which backups) error {
	_, b, err := a.findBackup(ctx, name, which)
	if err != nil {
		return err
	}
	if a.flags.output == "json" {
		return a.printMessage(b)
	}
	return a.details([][2]string{
		{"Name", b.GetName()},
		{"Id", b.GetId()},
		{"Target", b.GetTarget()},
		{"Made by", b.GetHost()},
		{"Server", b.GetServerName() + " " + b.GetServerId()},
		{"Snapshot", b.GetSnapshotId()},
		{"State", copyState(b.GetState(), b.GetOperation())},
		{"Error", b.GetOperation().GetError()},
		{"Of", timeText(b.GetCreatedAt())},
		{"Origin", b.GetOrigin()},
		{"Builds on", b.GetParentId()},
		{"Size", joinWords(roundBytes(b.GetSize()), "of a disk of "+units.FormatBytes(b.GetDiskSize()))},
		{"Checksum", b.GetChecksum()},
	})
}

func (a *app) createBackupCommand() *cobra.Command {
	w := waiting{limit: backupLimit}
	var server string
	request := &reflejov1.CreateBackupRequest{}
	c := &cobra.Command{
		Use:   "create SNAPSHOT TARGET",
		Short: "Write a snapshot to a target as one self-contained file",
		Long: `Write a snapshot to a target as one self-contained file. Targets are host:NAME (the
backup store of another host), s3://bucket/prefix (a store in the agent's
configuration) and dir:/path (a directory of the host that its configuration allows).`,
		Args: exactly(2, "a snapshot's name or id, and a target"),
		RunE: func(c *cobra.Command, args []string) error {
			ctx := c.Context()
			client, s, err := a.findSnapshot(ctx, args[0], server)
			if err != nil {
				return err
			}
			request.Id, request.Snapshot, request.Target = uuid.NewString(), s.GetId(), args[1]
			res, err := client.Backups.CreateBackup(ctx, connect.NewRequest(request))
			if err != nil {
				return api.ErrorOf(err)
			}
			b := res.Msg.GetBackup()
			if !w.not {
				if b, err = a.settleBackup(ctx, client, b, w.limit, false); err != nil {
					return err
				}
			}
			if a.flags.output == "json" {
				return a.printMessage(b)
			}
			_, err = fmt.Fprintf(a.out, "backup %s is %s at %s\n", printable(b.GetName()), b.GetId(), b.GetTarget())
			return err
		},
	}
	c.Flags().StringVar(&request.Name, "name", "", "its name (default: the snapshot's)")
	c.Flags().BoolVar(&request.Incremental, "incremental", false, "write only what changed since the newest backup of the server that is there")
	ofServer(c, &server)
	w.addTo(c)
	return c
}

// settleBackup follows a backup until nothing is under way, or it is gone.
func (a *app) settleBackup(ctx context.Context, client *api.Client, b *reflejov1.Backup, limit time.Duration, gone bool) (*reflejov1.Backup, error) {
	last := b
	err := a.settleCopy(ctx, client, copyWatch{what: "backup", name: b.GetName(), limit: limit, gone: gone, once: func(ctx context.Context, at func(*reflejov1.Operation)) (bool, error) {
		stream, err := client.Backups.WatchBackup(ctx, connect.NewRequest(&reflejov1.WatchBackupRequest{Id: b.GetId(), UntilSettled: true}))
		if err != nil {
			return false, api.ErrorOf(err)
		}
		defer stream.Close()
		for stream.Receive() {
			if stream.Msg().GetGone() {
				return true, nil
			}
			last = stream.Msg().GetBackup()
			at(last.GetOperation())
		}
		return false, api.ErrorOf(stream.Err())
	}})
	return last, err
}

func (a *app) verifyBackupCommand() *cobra.Command {
	var which backups
	c := &cobra.Command{
		Use:   "verify BACKUP",
		Short: "Read a backup back, and what it builds on, and check every checksum",
		Args:  exactly(1, "a backup's name or id"),
		RunE: func(c *cobra.Command, args []string) error {
			client, b, err := a.findBackup(c.Context(), args[0], which)
			if err != nil {
				return err
			}
			return a.verify(c.Context(), client, b, which.target)
		},
	}
	which.addTo(c)
	return c
}

func (a *app) verify(ctx context.Context, client *api.Client, b *reflejov1.Backup, target string) error {
	stream, err := client.Backups.VerifyBackup(ctx, connect.NewRequest(&reflejov1.VerifyBackupRequest{Id: b.GetId(), Target: target}))
	if err != nil {
		return api.ErrorOf(err)
	}
	defer stream.Close()
	p := a.progress()
	defer p.stop()
	t := p.task(b.GetName(), true)
	var last *reflejov1.VerifyBackupResponse
	for stream.Receive() {
		last = stream.Msg()
		t.at("verifying", last.GetDone(), last.GetTotal())
	}
	p.stop()
	switch {
	case stream.Err() != nil:
		return api.ErrorOf(stream.Err())
	case a.flags.output == "json":
		err = a.printMessage(last)
	case last.GetOk():
		_, err = fmt.Fprintf(a.out, "backup %s is complete and unharmed (%s read)\n", printable(b.GetName()), roundBytes(last.GetTotal()))
	}
	if last.GetOk() {
		return err
	}
	return errors.Join(err, fmt.Errorf("backup %s is damaged: %s", b.GetName(), last.GetProblem()))
}

func (a *app) importBackupCommand() *cobra.Command {
	w := waiting{limit: backupLimit}
	var which backups
	var to, name string
	c := &cobra.Command{
		Use:   "import BACKUP --target TARGET --to HOST",
		Short: "Make a snapshot on a host of a backup",
		Long: `Make a snapshot on a host of a backup, whoever made it and whether or not its server
and its host still are. Start a new server from the snapshot with clone_of, or put it
back in place of its server's disk.`,
		Args: exactly(1, "a backup's name or id"),
		RunE: func(c *cobra.Command, args []string) error {
			ctx := c.Context()
			client, err := a.dialHost(to)
			if err != nil {
				return err
			}
			if strings.HasPrefix(which.target, "dir:") {
				a.flags.host = to
			}
			_, b, err := a.findBackup(ctx, args[0], which)
			if err != nil {
				return err
			}
			res, err := client.Backups.ImportBackup(ctx, connect.NewRequest(&reflejov1.ImportBackupRequest{Id: uuid.NewString(), Target: which.target, Backup: b.GetId(), Name: name}))
			if err != nil {
				return api.ErrorOf(err)
			}
			return a.snapshotMade(ctx, client, res.Msg.GetSnapshot(), w)
		},
	}
	which.addTo(c)
	c.Flags().StringVar(&to, "to", "", "the host that the snapshot is to be on")
	c.Flags().StringVar(&name, "name", "", "the snapshot's name (default: the backup's)")
	c.MarkFlagRequired("target")
	c.MarkFlagRequired("to")
	w.addTo(c)
	return c
}

func (a *app) deleteBackupCommand() *cobra.Command {
	w := waiting{limit: backupLimit}
	var which backups
	var sure bool
	c := &cobra.Command{
		Use:   "delete BACKUP",
		Short: "Delete a backup and its file",
		Args:  exactly(1, "a backup's name or id"),
		RunE: func(c *cobra.Command, args []string) error {
			ctx := c.Context()
			client, b, err := a.findBackup(ctx, args[0], which)
			if err != nil {
				return err
			}
			if !a.agreed(sure, fmt.Sprintf("Delete backup %s of server %s at %s?", b.GetName(), b.GetServerName(), b.GetTarget())) {
				return errors.New("nothing was deleted")
			}
			_, err = client.Backups.DeleteBackup(ctx, connect.NewRequest(&reflejov1.DeleteBackupRequest{Id: b.GetId(), Target: which.target}))
			if err = api.ErrorOf(err); err != nil || w.not {
				return err
			}
			_, err = a.settleBackup(ctx, client, b, w.limit, true)
			if fault.Is(err, fault.NotFound) {
				return nil
			}
			return err
		},
	}
	addSure(c, &sure)
	which.addTo(c)
	w.addTo(c)
	return c
}
