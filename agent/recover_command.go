package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	"github.com/reflejo/terraform-provider-reflejo/agent/api"
	reflejov1 "github.com/reflejo/terraform-provider-reflejo/agent/api/reflejo/v1"
	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
)

// recovering is a server that is to be brought back from a host that is lost for good.
type recovering struct {
	server string // name or id
	lost   string // host
	on     string // host
	target string // of the backups
	backup string // name or id; "" is the newest
	sure   bool
}

func (a *app) recoverCommand() *cobra.Command {
	w := waiting{limit: backupLimit}
	var r recovering
	c := &cobra.Command{
		Use:   "recover SERVER --lost HOST --on HOST",
		Short: "Bring a server of a host that is lost for good back on another",
		Long: `Bring a server of a host that is lost for good back on another host, from its last backup:
under its own id and, where the networks are the same, with its addresses. What was written
after the backup is lost. Should the lost host return, what it has of the server stays closed.

A server that was being moved to the lost host, and that no longer runs on its own as nobody
can say whether it had arrived, is taken back there as it is: --on is then the host that it
was moving from, and no backup is needed.

Terraform recovers the servers that it keeps by the provider's lost_hosts.`,
		Args: exactly(1, "a server's name or id"),
		RunE: func(c *cobra.Command, args []string) error {
			r.server = args[0]
			return a.recover(c.Context(), r, w)
		},
	}
	c.Flags().StringVar(&r.lost, "lost", "", "the host that is lost for good")
	c.Flags().StringVar(&r.on, "on", "", "the host that is to have the server")
	c.Flags().StringVar(&r.target, "target", "", "where its backups are: host:NAME, s3://bucket/prefix or dir:/path")
	c.Flags().StringVar(&r.backup, "backup", "", "the backup to start from, by name or id (default: the newest)")
	c.MarkFlagRequired("lost")
	c.MarkFlagRequired("on")
	addSure(c, &r.sure)
	w.addTo(c)
	return c
}

func (a *app) recover(ctx context.Context, r recovering, w waiting) error {
	if r.lost == r.on {
		return &usageError{fmt.Errorf("--on: host %s is the one that is lost", r.on)}
	}
	client, err := a.dialHost(r.on)
	if err != nil {
		return err
	}
	if err := a.isLost(ctx, r); err != nil {
		return err
	}
	res, err := client.Servers.GetServer(ctx, connect.NewRequest(&reflejov1.GetServerRequest{Id: r.server}))
	if err := api.ErrorOf(err); err != nil && !fault.Is(err, fault.NotFound) {
		return err
	}
	if s := res; s != nil && s.Msg.GetServer().GetLeaving() == r.lost {
		question := fmt.Sprintf("Host %s is lost for good, and server %s was being handed over to it. Let it run on %s again?", r.lost, s.Msg.GetServer().GetSpec().GetName(), r.on)
		return a.recoverFrom(ctx, client, r, &reflejov1.RecoverServerRequest{Spec: s.Msg.GetServer().GetSpec(), LostHost: r.lost}, question, w)
	}
	b, err := a.lastBackup(ctx, client, r)
	if err != nil {
		return err
	}
	question := fmt.Sprintf("Host %s is lost for good. Bring server %s back on %s as it was at %s (backup %s)? What was written later is lost.",
		r.lost, b.GetServerName(), r.on, timeText(b.GetCreatedAt()), b.GetName())
	return a.recoverFrom(ctx, client, r, &reflejov1.RecoverServerRequest{Spec: b.GetSpec(), LostHost: r.lost, Target: r.target, Backup: b.GetId()}, question, w)
}

// isLost refuses a host that answers and has the server: one that runs twice can't be put
// together again.
func (a *app) isLost(ctx context.Context, r recovering) error {
	client, err := a.dialHost(r.lost)
	if err != nil {
		return nil // a host that is not even listed any more
	}
	ctx, cancel := context.WithTimeout(ctx, askLimit/2)
	defer cancel()
	res, err := client.Servers.GetServer(ctx, connect.NewRequest(&reflejov1.GetServerRequest{Id: r.server}))
	if err != nil || res.Msg.GetServer().GetState() == stateClosed || res.Msg.GetServer().GetState() == stateIncoming {
		return nil
	}
	return fmt.Errorf("host %s is not lost: it answers, and has server %s (%s); use `reflejo server migrate`", r.lost, r.server, stateText(res.Msg.GetServer()))
}

// lastBackup is the backup to start from, which describes the server too.
func (a *app) lastBackup(ctx context.Context, client *api.Client, r recovering) (*reflejov1.Backup, error) {
	if r.target == "" {
		return nil, &usageError{fmt.Errorf("say with --target where the backups of server %s are", r.server)}
	}
	ctx, cancel := context.WithTimeout(ctx, 2*askLimit)
	defer cancel()
	res, err := client.Backups.ListTarget(ctx, connect.NewRequest(&reflejov1.ListTargetRequest{Target: r.target}))
	if err != nil {
		return nil, api.ErrorOf(err)
	}
	list := slices.DeleteFunc(res.Msg.GetBackups(), func(b *reflejov1.Backup) bool {
		return b.GetSpec() == nil || !isOf(r.server, b.GetServerId(), b.GetServerName()) || r.backup != "" && b.GetId() != r.backup && b.GetName() != r.backup
	})
	if len(list) == 0 {
		return nil, fault.New(fault.NotFound, "%s has no backup%s of server %s that can be read", r.target, prefixed(" ", r.backup), r.server)
	}
	for _, b := range list {
		if b.GetServerId() != list[0].GetServerId() {
			return nil, fmt.Errorf("%s has backups of several servers that were called %s: %s, %s; say which by its id", r.target, r.server, list[0].GetServerId(), b.GetServerId())
		}
	}
	return slices.MaxFunc(list, func(x, y *reflejov1.Backup) int {
		return cmp.Or(x.GetCreatedAt().AsTime().Compare(y.GetCreatedAt().AsTime()), cmp.Compare(x.GetId(), y.GetId()))
	}), nil
}

// recoverFrom asks, and follows the server until it is there.
func (a *app) recoverFrom(ctx context.Context, client *api.Client, r recovering, req *reflejov1.RecoverServerRequest, question string, w waiting) error {
	if !a.agreed(r.sure, question) {
		return errors.New("nothing was recovered")
	}
	res, err := client.Servers.RecoverServer(ctx, connect.NewRequest(req))
	if err != nil {
		return api.ErrorOf(err)
	}
	s := res.Msg.GetServer()
	if !w.not {
		if err := a.settle(ctx, client, s, w.limit, false); err != nil {
			return err
		}
	}
	if a.flags.output == "json" {
		return a.printMessage(res.Msg)
	}
	from := "as it was left: it had not moved"
	if res.Msg.GetBackup() != "" {
		from = fmt.Sprintf("as it was at %s (backup %s)", timeText(res.Msg.GetBackupAt()), res.Msg.GetBackup())
	}
	is := "is on"
	if w.not {
		is = "is being made on"
	}
	_, err = fmt.Fprintf(a.out, "server %s %s %s, %s\n", printable(s.GetSpec().GetName()), is, r.on, from)
	return err
}
