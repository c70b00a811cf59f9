package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/reflejo/terraform-provider-reflejo/agent/bench"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, unix.SIGTERM, unix.SIGHUP)
	defer stop()
	if err := run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context) error {
	c := bench.Config{Log: os.Stderr}
	var only, output string
	var markdown bool
	flag.StringVar(&c.Bin, "bin", "bin", "directory with the programs (make build)")
	flag.StringVar(&c.Dir, "work", ".cache/bench", "directory of the test host, removed at the end")
	flag.StringVar(&only, "only", "", "benchmarks to run, such as V1,V3 (there are "+strings.Join(bench.IDs(), ", ")+")")
	flag.StringVar(&c.Name, "name", "bench", "name of the test host, another one for each run at the same time")
	flag.BoolVar(&c.Quick, "quick", false, "fewer rounds and shorter loads")
	flag.BoolVar(&c.NoLXD, "no-lxd", false, "leave LXD out although it is installed")
	flag.StringVar(&output, "o", "text", "text or json")
	flag.BoolVar(&markdown, "markdown", false, "print a Markdown table, as in docs/BENCHMARKS.md")
	flag.Parse()
	if flag.NArg() > 0 || output != "text" && output != "json" {
		flag.Usage()
		return fmt.Errorf("want flags only, and -o text or -o json")
	}
	if only != "" {
		c.Only = strings.Split(only, ",")
	}
	report, err := bench.Run(ctx, c)
	if len(report.Rows) > 0 || len(report.Failed) > 0 {
		if err := show(report, output, markdown); err != nil {
			return err
		}
	}
	if err == nil && len(report.Failed) > 0 {
		err = fmt.Errorf("%d benchmarks could not be measured", len(report.Failed))
	}
	return err
}

func show(report bench.Report, output string, markdown bool) error {
	switch {
	case output == "json":
		text, err := report.JSON()
		if err != nil {
			return err
		}
		fmt.Printf("%s\n", text)
	case markdown:
		fmt.Print(report.Markdown())
	default:
		fmt.Print(report.Text())
	}
	return nil
}
