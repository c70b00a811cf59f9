//go:build unix

package main

import (
	"os"
	"os/signal"
	"syscall"

	reflejov1 "github.com/reflejo/terraform-provider-reflejo/agent/api/reflejo/v1"
)

// onResize calls f with the terminal's new size at each change until stop.
func (a *app) onResize(f func(*reflejov1.WindowSize)) (stop func()) {
	if !isTerminal(a.out) {
		return func() {}
	}
	changed := make(chan os.Signal, 1)
	signal.Notify(changed, syscall.SIGWINCH)
	done := make(chan struct{})
	go func() {
		for {
			select {
			case <-changed:
				f(a.windowSize())
			case <-done:
				return
			}
		}
	}()
	return func() { signal.Stop(changed); close(done) }
}
