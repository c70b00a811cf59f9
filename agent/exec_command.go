package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/reflejo/terraform-provider-reflejo/agent/api"
	reflejov1 "github.com/reflejo/terraform-provider-reflejo/agent/api/reflejo/v1"
)

// execFailed is the exit code of `server exec` when the program did not run, so that it can be
// told from the program's own.
const execFailed = 125

func (a *app) execCommand() *cobra.Command {
	start := &reflejov1.ExecStart{}
	var noInput bool
	c := &cobra.Command{
		Use:   "exec [flags] SERVER [--] PROGRAM [ARGUMENTS]",
		Short: "Run a program in a server",
		Long: `Run a program in a running server. The exit code is the program's, or 125 if it
did not run. With a terminal on both ends the program gets a terminal, too.`,
		Example: "  reflejo server exec web -- systemctl status\n  tar c . | reflejo server exec web -- tar x -C /srv",
		Args: func(_ *cobra.Command, args []string) error {
			if _, err := program(args); err != nil {
				return &usageError{err}
			}
			return nil
		},
		ValidArgsFunction: a.completeServers,
		RunE: func(c *cobra.Command, args []string) error {
			if !c.Flags().Changed("tty") {
				start.Tty = isTerminal(a.in) && isTerminal(a.out) && !noInput
			}
			start.Argv, _ = program(args) // checked above
			code, err := a.exec(c.Context(), args[0], start, noInput)
			if err != nil {
				return &exitError{execFailed, err}
			}
			if code != 0 {
				return &exitError{code: code}
			}
			return nil
		},
	}
	f := c.Flags()
	f.SetInterspersed(false) // what follows the server is the program's own, with or without --
	f.BoolVarP(&start.Tty, "tty", "t", false, "give the program a terminal (default: if there is one here)")
	f.BoolVarP(&noInput, "no-stdin", "n", false, "give the program no input")
	f.StringVarP(&start.User, "user", "u", "", "user that runs it: a name, \"uid\" or \"uid:gid\" (default: root)")
	f.StringVarP(&start.Dir, "workdir", "w", "", "directory it runs in")
	f.StringArrayVarP(&start.Env, "env", "e", nil, "NAME=value for its environment, may be repeated")
	return c
}

// program is what follows the server.
func program(args []string) ([]string, error) {
	if len(args) > 1 && args[1] == "--" {
		args = append(args[:1:1], args[2:]...)
	} else if len(args) > 1 && strings.HasPrefix(args[1], "-") {
		return nil, fmt.Errorf("%s: flags go before the server", args[1])
	}
	if len(args) < 2 {
		return nil, errors.New("want a server and a program")
	}
	return args[1:], nil
}

func isTerminal(v any) bool {
	f, ok := v.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// exec returns the program's exit code.
func (a *app) exec(ctx context.Context, name string, start *reflejov1.ExecStart, noInput bool) (int, error) {
	client, s, err := a.findServer(ctx, name, false)
	if err != nil {
		return 0, err
	}
	start.Id = s.GetSpec().GetId()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if start.Tty {
		size, restore, err := a.rawTerminal()
		if err != nil {
			return 0, err
		}
		defer restore()
		start.Size = size
	}
	stream := client.Servers.Exec(ctx)
	defer stream.CloseResponse()
	out := &requests[reflejov1.ExecRequest]{send: stream.Send}
	if err := out.put(&reflejov1.ExecRequest{Part: &reflejov1.ExecRequest_Start{Start: start}}); err != nil {
		return 0, streamError(stream.Receive, err)
	}
	if start.Tty {
		stop := a.onResize(func(size *reflejov1.WindowSize) {
			out.put(&reflejov1.ExecRequest{Part: &reflejov1.ExecRequest_Resize{Resize: size}})
		})
		defer stop()
	}
	go a.feed(noInput, func(p []byte) error {
		return out.put(&reflejov1.ExecRequest{Part: &reflejov1.ExecRequest_Stdin{Stdin: p}})
	}, func() {
		out.put(&reflejov1.ExecRequest{Part: &reflejov1.ExecRequest_StdinClosed{StdinClosed: true}})
	})
	return a.receiveOutput(stream)
}

func (a *app) receiveOutput(stream *connect.BidiStreamForClient[reflejov1.ExecRequest, reflejov1.ExecResponse]) (int, error) {
	for {
		m, err := stream.Receive()
		if errors.Is(err, io.EOF) {
			return 0, errors.New("the connection ended before the program did")
		}
		if err != nil {
			return 0, api.ErrorOf(err)
		}
		switch part := m.GetPart().(type) {
		case *reflejov1.ExecResponse_Stdout:
			_, err = a.out.Write(part.Stdout)
		case *reflejov1.ExecResponse_Stderr:
			_, err = a.err.Write(part.Stderr)
		case *reflejov1.ExecResponse_ExitCode:
			return int(part.ExitCode), nil
		}
		if err != nil {
			return 0, fmt.Errorf("write output: %w", err)
		}
	}
}

// feed sends our input in chunks, then says that it is over.
func (a *app) feed(noInput bool, send func([]byte) error, end func()) {
	defer end()
	if noInput {
		return
	}
	buffer := make([]byte, api.MaxExecChunk/2)
	for {
		n, err := a.in.Read(buffer)
		if n > 0 && send(buffer[:n]) != nil {
			return
		}
		if err != nil {
			return
		}
	}
}

// requests lets input and resizes share a stream.
type requests[M any] struct {
	mu   sync.Mutex
	send func(*M) error
}

func (r *requests[M]) put(m *M) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.send(m)
}

// streamError is the agent's reason why a stream could not be written: it is in the answer.
func streamError[M any](receive func() (*M, error), err error) error {
	if !errors.Is(err, io.EOF) {
		return api.ErrorOf(err)
	}
	if _, rerr := receive(); rerr != nil {
		return api.ErrorOf(rerr)
	}
	return err
}

// rawTerminal hands every key to the program until restore.
func (a *app) rawTerminal() (size *reflejov1.WindowSize, restore func(), err error) {
	in, ok := a.in.(*os.File)
	if !ok || !term.IsTerminal(int(in.Fd())) {
		return &reflejov1.WindowSize{Rows: 24, Columns: 80}, func() {}, nil
	}
	old, err := term.MakeRaw(int(in.Fd()))
	if err != nil {
		return nil, nil, fmt.Errorf("set terminal to raw: %w", err)
	}
	return a.windowSize(), func() { term.Restore(int(in.Fd()), old) }, nil
}

func (a *app) windowSize() *reflejov1.WindowSize {
	if f, ok := a.out.(*os.File); ok {
		if columns, rows, err := term.GetSize(int(f.Fd())); err == nil {
			return &reflejov1.WindowSize{Rows: uint32(rows), Columns: uint32(columns)}
		}
	}
	return &reflejov1.WindowSize{Rows: 24, Columns: 80}
}
