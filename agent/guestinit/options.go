package guestinit

import (
	"errors"
	"fmt"
	"strings"
)

// Options are the arguments of `reflejo init`.
type Options struct {
	// FirstBoot is a script to run once before anything else; "" means none. It is renamed
	// before it runs and deleted afterwards, so it runs at most once whatever happens.
	FirstBoot string
	// Exec replaces this process by Argv instead of running it as a child: for an image
	// with an init system of its own, which has to be process 1.
	Exec bool
	// Argv is the entry point; empty means none: stay and reap.
	Argv []string
}

// Args is the command line (after the program's name) that [ParseArgs] reads back.
func (o Options) Args() []string {
	out := []string{"init"}
	if o.FirstBoot != "" {
		out = append(out, "-first-boot="+o.FirstBoot)
	}
	if o.Exec {
		out = append(out, "-exec")
	}
	if len(o.Argv) > 0 {
		out = append(append(out, "--"), o.Argv...)
	}
	return out
}

// ParseArgs reads the arguments after "init". Package flag is left out on purpose: this
// process is small and its command line is written by the agent only.
func ParseArgs(args []string) (Options, error) {
	var o Options
	for i, a := range args {
		switch {
		case a == "--":
			o.Argv = args[i+1:]
			return o, o.check()
		case a == "-exec":
			o.Exec = true
		case strings.HasPrefix(a, "-first-boot="):
			o.FirstBoot = strings.TrimPrefix(a, "-first-boot=")
		default:
			return o, fmt.Errorf("parse arguments: unknown argument %q", a)
		}
	}
	return o, o.check()
}

func (o Options) check() error {
	if o.Exec && len(o.Argv) == 0 {
		return errors.New("parse arguments: -exec needs a command after --")
	}
	return nil
}
