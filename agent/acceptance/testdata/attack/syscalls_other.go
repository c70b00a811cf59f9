//go:build linux && !amd64

package main

import "golang.org/x/sys/unix"

func archCalls() []attempt { return nil }

func x32() error { return unix.ENOSYS }
