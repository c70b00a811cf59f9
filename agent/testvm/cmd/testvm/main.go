// Command testvm runs programs in the test machine (package testvm).
//
//	testvm image                                     make the image, unless it is cached
//	testvm run -dir bin/vm -- ./cgroup.test -test.v   run a command in it
//	testvm run -dir bin/vm -c ./a.test -c ./b.test    run several, one after the other
//
// The exit code is that of the first command that failed, 125 if the machine did.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/reflejo/terraform-provider-reflejo/agent/testvm"
)

const failed = 125

func main() {
	ctx, cancel := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer cancel()
	code, err := run(ctx, os.Args[1:])
	if err != nil {
		fmt.Fprintln(os.Stderr, "testvm:", err)
	}
	os.Exit(code)
}

type commands []string

func (c *commands) String() string     { return strings.Join(*c, "\n") }
func (c *commands) Set(s string) error { *c = append(*c, s); return nil }

func run(ctx context.Context, args []string) (int, error) {
	flags := flag.NewFlagSet("testvm image|run", flag.ContinueOnError)
	var scripts commands
	cache := flags.String("cache", defaultCache(), "directory of images (REFLEJO_CACHE)")
	mirror := flags.String("mirror", "", "Debian mirror")
	dir := flags.String("dir", "", "directory that is /testvm in the machine")
	memory := flags.Int("memory", 0, "the machine's memory in MiB")
	cpus := flags.Int("cpus", 0, "the machine's processors")
	timeout := flags.Duration("timeout", 10*time.Minute, "kill the machine after this time")
	flags.Var(&scripts, "c", "a command of /bin/sh; may be given again")
	if len(args) == 0 || (args[0] != "image" && args[0] != "run") {
		flags.Usage()
		return failed, nil
	}
	if err := flags.Parse(args[1:]); err != nil {
		return failed, nil
	}
	img, err := testvm.BuildImage(ctx, testvm.ImageConfig{Cache: *cache, Mirror: *mirror, Log: os.Stderr})
	if err != nil || args[0] == "image" {
		return exitCode(err), err
	}
	if flags.NArg() > 0 {
		scripts = append(scripts, strings.Join(flags.Args(), " "))
	}
	ctx, cancel := context.WithTimeout(ctx, *timeout)
	defer cancel()
	codes, err := testvm.Run(ctx, testvm.Machine{Image: img, Dir: *dir, Memory: *memory, CPUs: *cpus, Output: os.Stdout}, scripts...)
	if err != nil {
		return failed, err
	}
	for i, code := range codes {
		if code != 0 {
			return code, fmt.Errorf("%s: exit code %d", scripts[i], code)
		}
	}
	return 0, nil
}

func exitCode(err error) int {
	if err != nil {
		return failed
	}
	return 0
}

func defaultCache() string {
	if dir := os.Getenv("REFLEJO_CACHE"); dir != "" {
		return dir
	}
	return ".cache"
}
