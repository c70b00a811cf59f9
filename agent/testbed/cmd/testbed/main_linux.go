// Command testbed makes, breaks and removes the test hosts of `make testbed`.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/reflejo/terraform-provider-reflejo/agent/testbed"
	"github.com/reflejo/terraform-provider-reflejo/agent/testbed/demo"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, unix.SIGTERM)
	defer stop()
	if err := command().ExecuteContext(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "testbed:", err)
		os.Exit(1)
	}
}

// command is the whole command line.
func command() *cobra.Command {
	var dir string
	root := &cobra.Command{
		Use: "testbed", Short: "Hosts to try reflejo on", SilenceUsage: true, SilenceErrors: true,
		CompletionOptions: cobra.CompletionOptions{DisableDefaultCmd: true},
	}
	root.PersistentFlags().StringVar(&dir, "dir", ".testbed", "directory of the testbed")
	root.AddCommand(upCommand(&dir), downCommand(&dir), inventoryCommand(&dir), demoCommand(),
		hostCommand(&dir, "start HOST", "Boot a host that is down and start its agent", (*testbed.Host).Start),
		hostCommand(&dir, "kill-agent HOST", "SIGKILL the agent alone", (*testbed.Host).KillAgent),
		hostCommand(&dir, "kill-host HOST", "SIGKILL everything of a host; its kernel still answers, with resets", (*testbed.Host).Kill),
		hostCommand(&dir, "power-off HOST", "Cut a host off silently, then SIGKILL everything of it", (*testbed.Host).PowerOff),
		pairCommand(&dir, "cut HOST HOST", "Drop everything between two hosts, silently", (*testbed.Bed).Cut),
		pairCommand(&dir, "heal HOST HOST", "End a cut", (*testbed.Bed).Heal))
	return root
}

func upCommand(dir *string) *cobra.Command {
	var images bool
	cmd := &cobra.Command{
		Use: "up", Short: "Make what is missing of the hosts and start their agents", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			program, err := os.Executable()
			if err != nil {
				return err
			}
			bed, err := testbed.New(testbed.Config{Dir: *dir, Bin: filepath.Dir(program)})
			if err != nil {
				return err
			}
			return up(cmd.Context(), bed, images)
		},
	}
	cmd.Flags().BoolVar(&images, "images", true, "make the image `debian` and import it on every host")
	return cmd
}

func up(ctx context.Context, bed *testbed.Bed, images bool) error {
	if err := step("start hosts", func() error { return bed.Up(ctx) }); err != nil {
		return err
	}
	if images {
		err := step("make image debian, or find it in the cache", func() error { _, err := testbed.Debian.File(ctx); return err })
		if err != nil {
			return err
		}
		if err := step("import image debian", func() error { _, err := bed.Import(ctx, testbed.Debian); return err }); err != nil {
			return err
		}
	}
	for _, name := range bed.HostNames() {
		fmt.Printf("  %-6s %s\n", name, testbed.Endpoint(name))
	}
	fmt.Printf("try: %s/run reflejo status\n", bed.Dir())
	return nil
}

// step says what is done and how long it took.
func step(name string, f func() error) error {
	start := time.Now()
	fmt.Printf("%s … ", name)
	if err := f(); err != nil {
		fmt.Println("failed")
		return err
	}
	fmt.Printf("%.1f s\n", time.Since(start).Seconds())
	return nil
}

func downCommand(dir *string) *cobra.Command {
	return &cobra.Command{
		Use: "down", Short: "Remove everything of the testbed", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			bed, err := testbed.Open(*dir)
			if err != nil {
				return err
			}
			return step("remove hosts", func() error { return bed.Down(cmd.Context()) })
		},
	}
}

func demoCommand() *cobra.Command {
	var c demo.Config
	cmd := &cobra.Command{
		Use: "demo", Short: "Show reflejo at work on hosts of its own", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			program, err := os.Executable()
			if err != nil {
				return err
			}
			c.Bin = filepath.Dir(program)
			return demo.Run(cmd.Context(), c, os.Stdout)
		},
	}
	cmd.Flags().StringVar(&c.Dir, "work", ".cache/demo", "directory of the demo's hosts, which it removes")
	cmd.Flags().StringVar(&c.Examples, "examples", "examples", "directory of the configurations that are applied")
	return cmd
}

func inventoryCommand(dir *string) *cobra.Command {
	return &cobra.Command{
		Use: "inventory HOST", Short: "List what a host's agent keeps on the kernel", Args: cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			host, err := openHost(*dir, args[0])
			if err != nil {
				return err
			}
			inventory, err := host.Inventory()
			if err != nil {
				return err
			}
			fmt.Print(inventory)
			return nil
		},
	}
}

func hostCommand(dir *string, use, short string, f func(*testbed.Host, context.Context) error) *cobra.Command {
	return &cobra.Command{
		Use: use, Short: short, Args: cobra.ExactArgs(1), ValidArgs: testbed.Hosts,
		RunE: func(cmd *cobra.Command, args []string) error {
			host, err := openHost(*dir, args[0])
			if err != nil {
				return err
			}
			return f(host, cmd.Context())
		},
	}
}

func openHost(dir, name string) (*testbed.Host, error) {
	bed, err := testbed.Open(dir)
	if err != nil {
		return nil, err
	}
	return bed.Host(name)
}

func pairCommand(dir *string, use, short string, f func(*testbed.Bed, string, string) error) *cobra.Command {
	return &cobra.Command{
		Use: use, Short: short, Args: cobra.ExactArgs(2), ValidArgs: testbed.Hosts,
		RunE: func(_ *cobra.Command, args []string) error {
			bed, err := testbed.Open(*dir)
			if err != nil {
				return err
			}
			return f(bed, args[0], args[1])
		},
	}
}
