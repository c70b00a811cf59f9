//go:build linux && root

package sysctl

import "testing"

// This kernel takes every value; raising twice changes nothing.
func TestRaiseOnThisKernel(t *testing.T) {
	for range 2 {
		if err := Raise("/proc/sys"); err != nil {
			t.Fatal(err)
		}
	}
}
