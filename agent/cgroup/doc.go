// Package cgroup keeps the servers' control groups: vserver.Limits on cgroup v2 and on
// v1/hybrid hosts.
//
//	m, err := cgroup.Open(cgroup.Config{Parent: "reflejo"})
//	err = m.Set(ctx, id, want)  // before the runtime creates the server, and live
//	spec.Linux.CgroupsPath = m.Path(id)
//
// # Where things are
//
//	v2        /sys/fs/cgroup/reflejo                   weight of all servers against the host
//	          /sys/fs/cgroup/reflejo/<id>              every limit; owned by root
//	          /sys/fs/cgroup/reflejo/<id>/guest        delegated: Path(id); the runtime's and the server's own
//	v1        /sys/fs/cgroup/<controller>/reflejo/<id> limits; owned by root
//	          /sys/fs/cgroup/systemd/reflejo/<id>      name=systemd, delegated
//	          /sys/fs/cgroup/unified/reflejo/<id>      hybrid only: pressure and cgroup.kill
//
// On v2 the limits are one level above what the server's own systemd manages, because
// whoever may write a group's cgroup.procs must not also be under limits it can edit.
// On v1 only the name=systemd directory is handed over, which has no limits.
//
// # How
//
// What to write is decided by pure functions (v1.go, v2.go) as a list of settings from
// the wanted limits and what the kernel has now; the *_linux.go files read, compare
// and write. What is already so is not written again, and a list that fails half-way is
// taken back. containerd/cgroups detects the mode, makes groups and enables controllers;
// values are written by us because that library can neither take a limit back ("max",
// an empty cpuset, a device's rate) nor order the writes that depend on each other.
//
// On v1, I/O rates bind direct and synchronous I/O only: the kernel charges the
// writeback of buffered writes to the root group. On v2 they bind buffered writes too.
package cgroup
