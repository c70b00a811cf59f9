// Package oci runs virtual servers with an OCI runtime (runc, or crun by its path): it is
// vserver.Runtime, vserver.Commands and vserver.Preparer.
//
// What a server is made of is decided by pure functions and tested as golden files:
//
//	spec.go        the runtime configuration: namespaces, mounts, devices
//	seccomp.go     the system calls that a server may use
//	initsystem.go  which init an image has, how it is started and asked to stop
//	state.go       what the runtime's own state files say
//	user.go        "name" or "uid:gid" → ids, from the server's passwd and group files
//	files.go       what Prepare writes
//
// The *_linux.go files act. Nothing is remembered in this process that is not also on
// disk, so an agent that was killed finds every server again by List.
//
// # Root inside is nobody outside
//
// The wall is the user namespace: every id of a server is one of its own 65,536 host ids,
// which own nothing on the host. Capabilities, seccomp, masked and read-only paths are
// further fences inside that wall; a server's root may take down masks within its own
// mount namespace, and gains nothing, because the kernel checks the owner of what lies
// beneath.
package oci
