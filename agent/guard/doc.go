// Package guard keeps one database's postgres under a host process whose end is the
// database's end.
//
//	reflejo guard        host: user and pid namespaces of the host, a group outside the
//	  │                  server's limits and freezer, memory locked
//	  └─ reflejo guard-init   in the server, process 1 of a pid namespace of its own
//	       └─ postgres …      everything of the database
//
// The guard's only child has PR_SET_PDEATHSIG, so when the guard exits, by will or by
// force, the kernel kills it at once, and with a pid namespace's process 1 everything in
// the namespace. That is the fence: no signal has to be sent, no file of a control group
// written, nobody has to be alive. Killing postgres' own first process is no fence, its
// backends go on for seconds.
//
//	agent ──▶ guard.sock (Client)     start, stop, reload, restart, fence, state
//
// The guard outlives the agent; the next agent finds it by its socket (Open). What it runs
// is in the file guard.json of its directory, which the agent writes before it asks for a
// start. A service manager must not kill it together with the agent (systemd:
// KillMode=process).
//
// # How the child gets there
//
// Entering a user namespace needs a process with one thread, so a runtime does it
// (Config.Enter, `runc exec --detach`). It runs this program from a descriptor, as the
// server has no such file; that stub clones process 1 as its own sibling, which makes it the
// guard's child once the runtime has left, since the guard is a subreaper. Only then is the
// signal set, and whether the guard lived until then is seen by the socket between the two.
//
// # What is not here yet
//
// The lease: with a witness the guard is to end the database when its lease has run out or
// the agent has died without notice, and to give the death notice that was deposited with
// it. Both belong into guard.supervise, which then has a timer beside its other events.
package guard
