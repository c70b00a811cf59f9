// Package snapshot keeps read-only copies of servers' disks: taken at one moment whether
// the server runs, is stopped or suspended; put back in place, cloned, deleted in any
// order; by hand or by a policy that the agent runs on its own.
//
// The pieces:
//
//	snapshot.go what a snapshot is ([Request], [Record], [View])
//	sums.go     pure: the checksum of what a disk holds
//	manager.go  takes, keeps, restores and deletes; finishes what a killed agent left
//	policy.go   runs the servers' policies
//	edges.go    the pool as this package needs it (package disk implements it)
package snapshot
