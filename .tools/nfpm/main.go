// Command nfpm builds a Debian package from a description (https://nfpm.goreleaser.com):
//
//	nfpm -config packaging/nfpm.yaml -target dist/reflejo.deb
//
// It is nfpm's own command with nothing in it but Debian packages. Variables in the
// description come from the environment; SOURCE_DATE_EPOCH makes the result reproducible.
package main

import (
	"errors"
	"flag"
	"fmt"
	"os"

	"github.com/goreleaser/nfpm/v2"
	"github.com/goreleaser/nfpm/v2/deb"
)

func main() {
	config := flag.String("config", "nfpm.yaml", "the description")
	target := flag.String("target", "", "the package to write")
	flag.Parse()
	if err := build(*config, *target); err != nil {
		fmt.Fprintln(os.Stderr, "nfpm:", err)
		os.Exit(1)
	}
}

func build(config, target string) error {
	c, err := nfpm.ParseFileWithEnvMapping(config, os.Getenv)
	if err != nil {
		return err
	}
	info, err := c.Get("deb")
	if err != nil {
		return err
	}
	info = nfpm.WithDefaults(info)
	if err := nfpm.PrepareForPackager(info, "deb"); err != nil {
		return fmt.Errorf("read %s: %w", config, err)
	}
	f, err := os.Create(target)
	if err != nil {
		return err
	}
	if err := errors.Join(deb.Default.Package(info, f), f.Close()); err != nil {
		os.Remove(target)
		return fmt.Errorf("build %s: %w", target, err)
	}
	return nil
}
