package image

import "context"

// Bases keeps the base disks that servers' disks are cloned from (package disk, in the
// same pool). The rules of vserver/edges.go hold here too.
type Bases interface {
	// Build makes the read-only base disk of an image: a file system of at least size bytes
	// (0: as large as the default server disk, sparse) into whose root fill writes. If fill
	// fails nothing is left. An existing base disk is kept and fill is not called.
	Build(ctx context.Context, id string, size int64, fill func(root string) error) error
	// Remove deletes the base disk. Clones of it are not affected.
	Remove(ctx context.Context, id string) error
	// List describes all base disks of the pool, and what killed builds left (Complete false).
	List(ctx context.Context) ([]Base, error)
}

// Base is one base disk.
type Base struct {
	ID       string // image id, "sha256:…"
	Size     int64  // smallest disk a clone can be, bytes
	Used     int64  // allocated, bytes
	Complete bool
}
