// Command reflejo is the part of the real one that servers and hosts of the tests need:
// `init` and `console-keeper`.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"

	"github.com/reflejo/terraform-provider-reflejo/agent/console"
	"github.com/reflejo/terraform-provider-reflejo/agent/guestinit"
)

func main() {
	switch os.Args[1] {
	case "init":
		os.Exit(guestinit.Run(os.Args[2:]))
	case "console-keeper":
		flags := flag.NewFlagSet("console-keeper", flag.ExitOnError)
		dir, logs := flags.String("dir", "", ""), flags.String("log-dir", "", "")
		_ = flags.Parse(os.Args[2:])
		if err := console.Serve(context.Background(), *dir, *logs); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
}
