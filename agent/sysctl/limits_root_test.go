//go:build linux && root

package sysctl

import (
	"errors"
	"testing"

	"golang.org/x/sys/unix"
)

// Children inherit what was raised. A root without CAP_SYS_RESOURCE is told that it was not.
func TestRaiseLimits(t *testing.T) {
	err := RaiseLimits()
	if !capable(t) {
		if !errors.Is(err, unix.EPERM) {
			t.Fatalf("without CAP_SYS_RESOURCE: %v", err)
		}
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range inherited {
		var now unix.Rlimit
		if err := unix.Getrlimit(l.resource, &now); err != nil || now.Cur != unix.RLIM_INFINITY || now.Max != unix.RLIM_INFINITY {
			t.Errorf("%s: %+v, %v", l.name, now, err)
		}
	}
}
