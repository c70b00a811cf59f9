// Package disk keeps the virtual servers' disks: it is the disk edge of package
// vserver ([vserver.Disks]), of package image ([image.Bases]) and of package snapshot
// ([snapshot.Disks], [snapshot.Arrivals]).
//
//	pool, err := disk.Open(ctx, disk.Config{Path: "/var/lib/reflejo/pool", RunDir: "/run/reflejo/disk"})
//	err = pool.Bases().Build(ctx, "sha256:…", 0, unpack) // once per image
//	err = pool.Create(ctx, id, "sha256:…", 20<<30)       // a reflink clone: milliseconds
//	at, err := pool.Attach(ctx, id, ids)                 // loop device, mount, shifted mount
//
// # Layout
//
// The pool needs a file system that can share extents between files (XFS, btrfs). Where
// the configured path has none, the pool lives in one file there that is formatted XFS:
//
//	<Path>/lock                    held by the one agent that uses the pool
//	<Path>/pool.xfs                embedded pools only: the pool's file system,
//	<Path>/pool/                   … mounted here; called <root> below, else <root> is <Path>
//	<root>/bases/sha256-<hex>.ext4             base disks, read-only, never changed once named so
//	<root>/bases/sha256-<hex>.building-<hex>   what a build under way or a killed one left
//	<root>/variants/sha256-<hex>.<bytes>.ext4  base disks resized, see below
//	<root>/disks/<server id>.ext4              servers' disks
//	<root>/disks/<server id>.ext4.copy         a restored disk for the moment before it takes that name
//	<root>/snapshots/<snapshot id>.ext4        snapshots of those disks, read-only, never changed
//	<root>/arrivals/<arrival id>.ext4          disks that come in from elsewhere
//	<RunDir>/canonical/<server id>             mounts with the owners that are on the disk; 0700
//	<RunDir>/rootfs/<server id>/fs             the same, ids shifted to the server's own range
//	<RunDir>/builds/<hex>                      base disks being filled
//
// # Sizes
//
// A base disk is as large as the default server disk. For a disk of another size, from
// what the image needs upward, the base disk is cloned and the clone resized, unmounted,
// once: this variant is kept, so that the next disk of that size is a clone again. The
// last few sizes asked for are kept per image.
//
// # Speed of small synchronous writes
//
// On XFS a disk's file is opened by handle for its loop device, so that writes leave the
// file's times alone and a flush of the disk is one of the device. A second after its
// first attachment a disk gets a journal that it does not share with its base disk.
//
// # Snapshots
//
// A snapshot is a reflink clone of a disk's file. Cloning costs time per extent, during
// which writers wait, so a disk in use is cloned piece by piece before its moment, and at
// its moment only what was written meanwhile (see take_linux.go).
//
// # What survives what
//
// A disk, a snapshot or a variant is one file, cloned without a name and linked into place when it is durable, so
// an interrupted Create leaves nothing. Loop devices clear themselves with their last
// user. Mounts are prepared detached and put into place in one step each. So a killed
// agent leaves disks that are attached, not attached, or attached without the shifted
// mount, and Attach and Detach finish each of them. No mount leaves the agent's mount
// namespace: the directories above it are made private.
package disk
