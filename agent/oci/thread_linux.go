package oci

import (
	"runtime"

	"golang.org/x/sys/unix"
)

// onThread runs f on a thread of its own, which is thrown away afterwards: f may move it
// into other namespaces. It is never the process's first thread, which cannot be thrown
// away and is what /proc/self shows.
func onThread(f func() error) error {
	result := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			result <- onThread(f) // this goroutine holds the first thread, so that one gets another
			runtime.UnlockOSThread()
			return
		}
		result <- f() // still locked: the thread ends with the goroutine
	}()
	return <-result
}
