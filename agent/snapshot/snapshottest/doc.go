// Package snapshottest has a fake of what package snapshot needs of a pool, and the contract
// that the fake and the real one (package disk) are held to.
//
//	disks := vservertest.NewPool(t.TempDir(), 0)
//	pool := snapshottest.NewPool(disks)
//	manager := snapshot.Open(…, pool.Disks(), …)
package snapshottest
