package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/reflejo/terraform-provider-reflejo/agent/api"
	reflejov1 "github.com/reflejo/terraform-provider-reflejo/agent/api/reflejo/v1"
	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
)

// waiting is how a command waits for what it began.
type waiting struct {
	not   bool
	limit time.Duration
}

func (w *waiting) addTo(c *cobra.Command) {
	c.Flags().BoolVar(&w.not, "no-wait", false, "return once the agent has taken it on")
	if w.limit == 0 {
		w.limit = 10 * time.Minute
	}
	c.Flags().DurationVar(&w.limit, "wait", w.limit, "how long to wait; what was begun goes on afterwards")
}

func (a *app) powerCommand(use, short string, action reflejov1.SetPowerRequest_Action) *cobra.Command {
	var w waiting
	var timeout time.Duration
	c := a.oneServer(use, short, func(ctx context.Context, name string) error {
		client, s, err := a.findServer(ctx, name, false)
		if err != nil {
			return err
		}
		req := &reflejov1.SetPowerRequest{Id: s.GetSpec().GetId(), Action: action}
		if timeout > 0 {
			req.Timeout = durationpb.New(timeout)
		}
		if _, err := client.Servers.SetPower(ctx, connect.NewRequest(req)); err != nil {
			return api.ErrorOf(err)
		}
		if w.not {
			return nil
		}
		return a.settle(ctx, client, s, w.limit, false)
	})
	if action == reflejov1.SetPowerRequest_ACTION_STOP || action == reflejov1.SetPowerRequest_ACTION_REBOOT {
		c.Flags().DurationVar(&timeout, "timeout", 0, "how long a clean stop may take before it is forced (default: the server's)")
	}
	w.addTo(c)
	return c
}

func (a *app) deleteServerCommand() *cobra.Command {
	var w waiting
	var sure bool
	c := a.oneServer("delete", "Delete a server and its disk", func(ctx context.Context, name string) error {
		client, s, err := a.findServer(ctx, name, false)
		if err != nil {
			return err
		}
		question := fmt.Sprintf("Delete server %s on %s with its disk?", s.GetSpec().GetName(), s.GetHost())
		if !a.agreed(sure, question) {
			return errors.New("nothing was deleted")
		}
		if _, err := client.Servers.DeleteServer(ctx, connect.NewRequest(&reflejov1.DeleteServerRequest{Id: s.GetSpec().GetId()})); err != nil {
			return api.ErrorOf(err)
		}
		if w.not {
			return nil
		}
		return a.settle(ctx, client, s, w.limit, true)
	})
	addSure(c, &sure)
	w.addTo(c)
	return c
}

// settle follows a server until nothing is under way, or it is gone. An agent that is
// restarted meanwhile is waited for.
func (a *app) settle(ctx context.Context, client *api.Client, s *reflejov1.Server, limit time.Duration, gone bool) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	p := a.progress()
	defer p.stop()
	t := p.task(s.GetSpec().GetName(), false)
	last := s
	for {
		done, err := watchOnce(ctx, client, s.GetSpec().GetId(), func(now *reflejov1.Server) {
			last = now
			o := now.GetOperation()
			if t.count(o.GetBytesTotal() > 0); o.GetBytesTotal() > 0 {
				t.at(o.GetStep(), o.GetBytesDone(), o.GetBytesTotal())
				return
			}
			t.at(o.GetStep(), int64(o.GetStepIndex()), int64(o.GetSteps()))
		})
		switch {
		case ctx.Err() != nil:
			return fmt.Errorf("server %s is still %s; the agent goes on with it: %w", s.GetSpec().GetName(), stateText(last), ctx.Err())
		case fault.Is(err, fault.NotFound) && gone:
			return nil
		case fault.Is(err, fault.Unavailable):
			t.at("waiting for the agent of "+client.Name(), 0, 0)
			select {
			case <-ctx.Done():
			case <-time.After(time.Second):
			}
		case err != nil:
			return err
		case done:
			return nil
		}
		if o := last.GetOperation(); err == nil && o.GetDone() && o.GetError() != "" {
			return fmt.Errorf("%s server %s: %s", o.GetKind(), s.GetSpec().GetName(), o.GetError())
		} else if err == nil && !gone {
			return nil
		}
	}
}

// watchOnce follows a server until it has settled; done reports that it is gone.
func watchOnce(ctx context.Context, client *api.Client, id string, seen func(*reflejov1.Server)) (done bool, err error) {
	stream, err := client.Servers.WatchServer(ctx, connect.NewRequest(&reflejov1.WatchServerRequest{Id: id, UntilSettled: true}))
	if err != nil {
		return false, api.ErrorOf(err)
	}
	defer stream.Close()
	for stream.Receive() {
		if stream.Msg().GetGone() {
			return true, nil
		}
		seen(stream.Msg().GetServer())
	}
	return false, api.ErrorOf(stream.Err())
}
