//go:build !crashpoints

package snapshot

// crashPoint does nothing in a normal build; see crash_on.go.
func crashPoint(string) {}
