//go:build !linux

package main

import "github.com/spf13/cobra"

// runInside: nothing of a virtual server runs on this system.
func runInside([]string) (code int, done bool) { return 0, false }

// hostCommands: only Linux can be a host.
func (a *app) hostCommands() []*cobra.Command { return nil }
