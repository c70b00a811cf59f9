package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/reflejo/terraform-provider-reflejo/agent/console"
	"github.com/reflejo/terraform-provider-reflejo/agent/guard"
	"github.com/reflejo/terraform-provider-reflejo/agent/guestinit"
	"github.com/reflejo/terraform-provider-reflejo/agent/quiesce"
)

// runInside handles the programs that nobody types: they start before anything of the
// command line is looked at, because one is process 1 of a server and the others must go on
// when their agent is gone.
func runInside(args []string) (code int, done bool) {
	if len(args) < 2 {
		return 0, false
	}
	if code, done := guard.RunInside(args); done {
		return code, true
	}
	switch args[1] {
	case "init":
		return guestinit.Run(args[2:]), true
	case "console-keeper":
		return keepConsoles(args[2:]), true
	case guard.Command:
		return guard.Run(args[2:]), true
	case quiesce.Command:
		return quiesce.Watch(args[2:]), true
	}
	return 0, false
}

func keepConsoles(args []string) int {
	flags := flag.NewFlagSet("console-keeper", flag.ContinueOnError)
	dir := flags.String("dir", "", "directory of the sockets")
	logs := flags.String("log-dir", "", "directory of the logs")
	if flags.Parse(args) != nil || *dir == "" || *logs == "" {
		return 2
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	if err := console.Serve(ctx, *dir, *logs); err != nil {
		fmt.Fprintln(os.Stderr, "reflejo console-keeper:", err)
		return 1
	}
	return 0
}

// hostCommands are the commands that only a host has.
func (a *app) hostCommands() []*cobra.Command {
	hidden := func(use, short string) *cobra.Command {
		// Only for `help`: runInside has taken these before.
		return &cobra.Command{Use: use, Short: short, Hidden: true, Run: func(*cobra.Command, []string) {}}
	}
	return []*cobra.Command{
		a.agentCommand(),
		hidden("init", "Be process 1 of a server"),
		hidden("console-keeper", "Keep the servers' terminals"),
		hidden(guard.Command, "Keep a database's processes"),
		hidden(quiesce.Command, "Thaw what a killed agent has frozen"),
	}
}
