// Command reflejo runs a host's agent and operates hosts: see `reflejo help`.
//
// This package wires and prints; it decides nothing about servers. config.go is the
// agent's configuration, agent_linux.go puts the agent together, and the files named
// *_command.go are the operator's verbs, which only call the API and work on every OS.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/reflejo/terraform-provider-reflejo/agent/api"
)

func main() {
	if code, done := runInside(os.Args); done {
		os.Exit(code)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	a := &app{in: os.Stdin, out: os.Stdout, err: os.Stderr, getenv: os.Getenv}
	os.Exit(a.run(ctx, os.Args[1:]))
}

// app is one run of the command line.
type app struct {
	in       io.Reader
	out, err io.Writer
	getenv   func(string) string

	flags struct {
		hosts, ca, cert, key string
		host                 string // --host
		output               string // table or json
	}
	env     api.Environment // the environment, overridden by flags
	clients map[string]*api.Client
}

// exitError ends the program with a code and, if there is one, an error.
type exitError struct {
	code int
	err  error
}

func (e *exitError) Error() string {
	if e.err == nil {
		return fmt.Sprintf("exit code %d", e.code)
	}
	return e.err.Error()
}

func (e *exitError) Unwrap() error { return e.err }

// run executes a command line and returns the program's exit code: 0, 1 when something
// failed, 2 when the command line is wrong, or what a command asks for.
func (a *app) run(ctx context.Context, args []string) int {
	defer func() {
		for _, c := range a.clients {
			c.Close()
		}
	}()
	root := a.rootCommand()
	root.SetArgs(longFlags(args))
	err := root.ExecuteContext(ctx)
	if err == nil {
		return 0
	}
	var exit *exitError
	var usage *usageError
	switch {
	case errors.As(err, &exit):
		if exit.err != nil {
			fmt.Fprintln(a.err, "reflejo:", exit.err)
		}
		return exit.code
	case errors.As(err, &usage) || isCobraUsage(err):
		fmt.Fprintln(a.err, "reflejo:", err)
		return 2
	}
	fmt.Fprintln(a.err, "reflejo:", api.ErrorOf(err))
	return 1
}

// isCobraUsage knows the two wrong command lines for which cobra has no error type.
func isCobraUsage(err error) bool {
	return strings.HasPrefix(err.Error(), "unknown command") || strings.HasPrefix(err.Error(), "required flag(s)")
}

// usageError is a wrong command line.
type usageError struct{ err error }

func (e *usageError) Error() string { return e.err.Error() }
func (e *usageError) Unwrap() error { return e.err }

func (a *app) rootCommand() *cobra.Command {
	root := &cobra.Command{
		Use:           "reflejo",
		Short:         "Carve Linux hosts into virtual servers",
		SilenceUsage:  true,
		SilenceErrors: true,
		Long: `Carve Linux hosts into virtual servers, and operate them.

Hosts and the certificate to call them with come from flags or from the
environment, which the Terraform provider reads too:

  REFLEJO_HOSTS      alpha=198.18.0.11:7443,beta=198.18.0.12:7443
  REFLEJO_CA_FILE    certificate of the authority
  REFLEJO_CERT_FILE  your certificate
  REFLEJO_KEY_FILE   its key`,
		PersistentPreRunE: func(*cobra.Command, []string) error { return a.readFlags() },
	}
	root.SetIn(a.in)
	root.SetOut(a.out)
	root.SetErr(a.err)
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return &usageError{err} })
	f := root.PersistentFlags()
	f.StringVar(&a.flags.hosts, "hosts", "", "hosts, as in "+api.EnvHosts)
	f.StringVar(&a.flags.ca, "ca-file", "", "certificate of the authority, as in "+api.EnvCAFile)
	f.StringVar(&a.flags.cert, "cert-file", "", "your certificate, as in "+api.EnvCertFile)
	f.StringVar(&a.flags.key, "key-file", "", "its key, as in "+api.EnvKeyFile)
	f.StringVar(&a.flags.host, "host", "", "use only this host")
	f.StringVarP(&a.flags.output, "output", "o", "table", "table or json")
	root.RegisterFlagCompletionFunc("host", func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
		if a.readFlags() != nil {
			return nil, cobra.ShellCompDirectiveError
		}
		return a.env.HostNames(), cobra.ShellCompDirectiveNoFileComp
	})
	root.RegisterFlagCompletionFunc("output", cobra.FixedCompletions([]string{"table", "json"}, cobra.ShellCompDirectiveNoFileComp))
	root.AddCommand(
		a.statusCommand(), a.serverCommand(), a.imageCommand(), a.networkCommand(),
		a.snapshotCommand(), a.backupCommand(), a.hostCommand(),
		a.pkiCommand(), a.versionCommand(),
	)
	root.AddCommand(a.hostCommands()...)
	return root
}

// readFlags lets flags override the environment.
func (a *app) readFlags() error {
	if o := a.flags.output; o != "table" && o != "json" {
		return &usageError{fmt.Errorf("output %q: want table or json", o)}
	}
	env, err := api.FromEnv(a.getenv)
	if err != nil {
		return &usageError{err}
	}
	if a.flags.hosts != "" {
		if env.Hosts, err = api.ParseHosts(a.flags.hosts); err != nil {
			return &usageError{fmt.Errorf("read --hosts: %w", err)}
		}
	}
	for _, f := range []struct {
		flag string
		to   *string
	}{{a.flags.ca, &env.CAFile}, {a.flags.cert, &env.CertFile}, {a.flags.key, &env.KeyFile}} {
		if f.flag != "" {
			*f.to = f.flag
		}
	}
	a.env = env
	return nil
}

// longFlags lets `agent -config FILE` be written with one dash, as many daemons have it.
func longFlags(args []string) []string {
	if len(args) == 0 || args[0] != "agent" {
		return args
	}
	out := make([]string, len(args))
	for i, arg := range args {
		if strings.HasPrefix(arg, "-config") || strings.HasPrefix(arg, "-check") {
			arg = "-" + arg
		}
		out[i] = arg
	}
	return out
}

// exactly wants n arguments and says what they are.
func exactly(n int, names string) cobra.PositionalArgs {
	return func(_ *cobra.Command, args []string) error {
		if len(args) != n {
			return &usageError{fmt.Errorf("want %s, got %d arguments", names, len(args))}
		}
		return nil
	}
}

// group is a command that only has commands below it; anything else is a wrong command line.
func group(use, short string, below ...*cobra.Command) *cobra.Command {
	c := &cobra.Command{
		Use:   use,
		Short: short,
		RunE: func(c *cobra.Command, args []string) error {
			if len(args) > 0 {
				return &usageError{fmt.Errorf("unknown command %q for %q", args[0], c.CommandPath())}
			}
			return c.Help()
		},
	}
	c.AddCommand(below...)
	return c
}
