// Package image keeps the images of a host: root file systems, each unpacked once
// into a read-only base disk that servers' disks are cloned from.
//
//	m, err := image.NewManager(image.Config{Bases: disks, Store: db.Bucket("images"), …})
//	err = m.Recover(ctx)
//	info, err := m.Import(ctx, "debian", "oci://registry.example/debian:12", "", progress)
//
// # Sources
//
//	oci://registry/name:tag           an OCI or Docker image from a registry, for this host's architecture
//	oci://registry/name@sha256:…      the same, fixed to a manifest or an index
//	host:/path                        below one of Config.Dirs: an OCI layout (directory or tar), the output
//	                                  of `docker save`, a root file system as a tar (plain, gz, zst, xz), or
//	                                  a directory tree
//	Upload                            any of those tars, sent by the client
//
// # Identity
//
// An image's id is the digest of its content, the same on every host: of the manifest for
// the architecture (OCI), of the config (`docker save` of before 2024, which has no manifest),
// of the file (root file system tar, compressed as it is), of the tree (directory; times are
// not part of it). A checksum is compared with all digests that name the content: the id,
// and also the index (OCI) and the file (OCI layout in a tar).
//
// # Names
//
// A name belongs to one image. An image may have several names: importing the same content
// under a second name adds the name and costs no space. Importing a name that is there with the
// same source is answered at once, without looking at the source again: an image does not change
// under a name; to follow a moved tag, import it under a new name. Another source, or a
// checksum that the image does not have, is refused with fault.Exists.
// Get of an id answers with the image's oldest name. Delete of a name takes the name away, and
// the image with its last name; Rename and Delete of an id need the image to have one name.
//
// # The way of an import
//
//	resolve   source → content with a known id; nothing is downloaded but manifests
//	fetch     bring blobs of a registry into a temporary directory, verified by digest
//	build     Bases.Build makes the disk; unpack writes the layers into it, verifying digests
//	inspect   what OS, what init, which architecture
//	record    only now the image exists
//
// Work is shared: imports of one content at the same time do it once, and it goes on as long as
// one caller waits. When the last one has gone it is taken back. Whatever a killed agent leaves
// (temporary files, base disks without record, half-deleted images) Recover removes.
//
// # Trust
//
// Archives are hostile. Every path is resolved by the kernel inside the new root
// (openat2 RESOLVE_IN_ROOT), ".." is refused, device nodes are left out (servers get /dev from
// their runtime), of extended attributes only file capabilities are kept, owners must fit a server's
// 65,536 ids, and [Limits] bound everything that is read, unpacked and remembered.
package image
