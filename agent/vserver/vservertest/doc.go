// Package vservertest has, for each edge of package vserver and for image.Bases, an
// in-memory fake and a contract function.
//
// A fake keeps state, fails where it is told to, and prints itself as an operator would
// read it: use it to test what stands on an edge. A contract function holds what every
// implementation must do; it runs on the fake and, as root, on the real thing:
//
//	vservertest.BasesContract(t, func(t *testing.T) image.Bases { return vservertest.NewPool(t.TempDir(), 256<<20).Bases() })
package vservertest
