package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	"github.com/reflejo/terraform-provider-reflejo/agent/api"
	reflejov1 "github.com/reflejo/terraform-provider-reflejo/agent/api/reflejo/v1"
)

// detachKey is Ctrl-], as telnet and virsh have it.
const detachKey = 0x1d

func (a *app) consoleCommand() *cobra.Command {
	return a.oneServer("console", "Join a server's console; leave it with Ctrl-]", a.console)
}

func (a *app) console(ctx context.Context, name string) error {
	client, s, err := a.findServer(ctx, name, false)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream := client.Servers.Console(ctx)
	defer stream.CloseResponse()
	out := &requests[reflejov1.ConsoleRequest]{send: stream.Send}
	if err := out.put(&reflejov1.ConsoleRequest{Part: &reflejov1.ConsoleRequest_Id{Id: s.GetSpec().GetId()}}); err != nil {
		return streamError(stream.Receive, err)
	}
	if isTerminal(a.in) {
		fmt.Fprintf(a.err, "Console of %s on %s. Leave with Ctrl-].\r\n", printable(s.GetSpec().GetName()), s.GetHost())
	}
	size, restore, err := a.rawTerminal()
	if err != nil {
		return err
	}
	defer restore()
	resize := func(size *reflejov1.WindowSize) {
		out.put(&reflejov1.ConsoleRequest{Part: &reflejov1.ConsoleRequest_Resize{Resize: size}})
	}
	resize(size)
	defer a.onResize(resize)()
	left := make(chan struct{})
	go a.feed(false, func(p []byte) error {
		p, _, detach := bytes.Cut(p, []byte{detachKey})
		err := out.put(&reflejov1.ConsoleRequest{Part: &reflejov1.ConsoleRequest_Data{Data: p}})
		if detach {
			return errors.Join(err, io.EOF)
		}
		return err
	}, func() {
		close(left)
		stream.CloseRequest()
	})
	for {
		m, err := stream.Receive()
		if err != nil {
			select {
			case <-left: // it was us
				return nil
			default:
			}
			if errors.Is(err, io.EOF) {
				return nil
			}
			return api.ErrorOf(err)
		}
		if _, err := a.out.Write(m.GetData()); err != nil {
			return fmt.Errorf("write output: %w", err)
		}
	}
}

func (a *app) logsCommand() *cobra.Command {
	var follow bool
	c := a.oneServer("logs", "Print what a server's console printed", func(ctx context.Context, name string) error {
		client, s, err := a.findServer(ctx, name, false)
		if err != nil {
			return err
		}
		stream, err := client.Servers.ReadConsoleLog(ctx, connect.NewRequest(&reflejov1.ReadConsoleLogRequest{Id: s.GetSpec().GetId(), Follow: follow}))
		if err != nil {
			return api.ErrorOf(err)
		}
		defer stream.Close()
		for stream.Receive() {
			if _, err := a.out.Write(stream.Msg().GetData()); err != nil {
				return fmt.Errorf("write output: %w", err)
			}
		}
		if ctx.Err() != nil { // Ctrl-C is how following ends
			return nil
		}
		return api.ErrorOf(stream.Err())
	})
	c.Flags().BoolVarP(&follow, "follow", "f", false, "go on printing")
	return c
}
