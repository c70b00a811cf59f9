// Package inventory lists what an agent keeps on the kernel and on disk, as text that two
// moments can be compared by:
//
//	before, err := inventory.Take(scope)
//	… create a server, kill the agent, delete the server …
//	after, err := inventory.Take(scope)
//	if d := before.Diff(after); d != "" { t.Error("the agent left or lost:\n" + d) }
//
// A line names one thing (a mount, a loop device, a control group, a link, an nftables
// chain, a file, a process) without what changes by itself: process ids, device numbers,
// counters, sizes.
package inventory
