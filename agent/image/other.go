//go:build !linux

package image

import (
	"context"
	"errors"
)

// Images are unpacked by agents, which run on Linux; elsewhere the package only has to compile.
var errNotLinux = errors.New("images can only be unpacked on Linux")

func openTree(string) (tree, error) { return nil, errNotLinux }

func openHost(context.Context, []string, string, bool, options) (content, error) {
	return nil, errNotLinux
}
