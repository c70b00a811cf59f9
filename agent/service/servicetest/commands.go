package servicetest

import (
	"context"
	"fmt"
	"io"

	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
	"github.com/reflejo/terraform-provider-reflejo/agent/vserver"
)

// Exec implements vserver.Commands with a few programs: echo prints its arguments, cat
// copies its input, false is 1, yes prints for ever, sleep waits for the end, size prints
// the next window size, env prints how it was started.
func (h *Host) Exec(ctx context.Context, _ string, cmd vserver.Command) (int, error) {
	switch cmd.Argv[0] {
	case "echo":
		for _, a := range cmd.Argv[1:] {
			fmt.Fprintln(cmd.Stdout, a)
		}
		return 0, nil
	case "cat":
		_, err := io.Copy(cmd.Stdout, cmd.Stdin)
		return 0, err
	case "false":
		fmt.Fprintln(cmd.Stderr, "no")
		return 1, nil
	case "yes":
		for {
			if _, err := cmd.Stdout.Write(make([]byte, 1<<20)); err != nil {
				return 0, err
			}
		}
	case "sleep":
		<-ctx.Done()
		return 0, context.Cause(ctx)
	case "size":
		size := <-cmd.Resize
		fmt.Fprintln(cmd.Stdout, size[0], size[1])
		return 0, nil
	case "env":
		fmt.Fprintln(cmd.Stdout, cmd.User, cmd.Dir, cmd.Env, cmd.TTY, cmd.Rows, cmd.Columns)
		return 0, nil
	}
	return 0, fault.New(fault.Invalid, "run %q: not found", cmd.Argv[0])
}

// Console implements vserver.Commands: it greets and echoes.
func (h *Host) Console(ctx context.Context, _ string, rw io.ReadWriter) error {
	fmt.Fprint(rw, "login: ")
	_, err := io.Copy(rw, rw)
	return err
}
