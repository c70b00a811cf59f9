//go:build !linux

package testvm

import (
	"context"
	"errors"
)

var errNotLinux = errors.New("the test machine needs a Linux host")

// BuildImage works on Linux only.
func BuildImage(context.Context, ImageConfig) (Image, error) { return Image{}, errNotLinux }

// Run works on Linux only.
func Run(context.Context, Machine, ...string) ([]int, error) { return nil, errNotLinux }

// CopyDisk works on Linux only.
func (Image) CopyDisk(context.Context, string) error { return errNotLinux }
