// Package snapshot keeps read-only copies of servers' disks: taken at one moment whether
// the server runs, is stopped or suspended; put back in place, cloned, deleted in any
// order; by hand or by a policy that the agent runs on its own.
//
// The pieces:
//
//	snapshot.go what a snapshot is ([Request], [Record], [View])
//	manager.go  what callers ask for; admission of new ones
//	work.go     takes and deletes; a worker per snapshot (item.go)
//	chain.go    pure: what each adds to the others of its server, for the host's ledger
//	sums.go     pure: the checksum of what a disk holds (checksum.go finds it)
//	captures.go what servers ask for: restore, clone, safety snapshots
//	recover.go  finishes what a killed agent left; takes over what comes from elsewhere
//	policy.go   runs the servers' policies
//	edges.go    the pool as this package needs it (package disk implements it)
package snapshot
