// Package quiesce stops everything that writes to a server's disk for a moment, and the
// file system on it, in a state that needs no repair.
//
//	loud, err := quiesce.Quiet(ctx, quiesce.Target{Root: root, Tasks: freezers}, 10*time.Second)
//	… // nobody writes, and everything that was written is on the disk
//	err = loud() // an error says that it was not quiet all the time
//
// A frozen file system stops whoever touches it until it is thawed, and the kernel does not
// thaw it when the one who froze it dies. So before anything is frozen a second process is
// started, the watchdog (`reflejo thaw-watchdog`, [Watch]). It holds what is needed to thaw,
// and thaws when its pipe from this process closes or the limit passes, and again and again
// until this process says that it is done: so also what is frozen after the limit has
// passed does not stay so. [Recover] is for the case that both were killed.
package quiesce
