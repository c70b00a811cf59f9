// Package acceptance holds the tests that need whole hosts: agents as real processes in a
// testbed, driven through their API. The package itself is empty; what its tests share is
// in bed_root_test.go.
package acceptance
