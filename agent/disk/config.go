package disk

import (
	"cmp"
	"math"
	"path/filepath"
	"slices"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
)

// Sizes in bytes.
const (
	// DefaultBaseSize is the size of a base disk whose builder asks for none: that of the
	// server disks that most will ask for, which then are clones of it as it is.
	DefaultBaseSize = 10 << 30
	// MinPoolSize is the smallest embedded pool (mkfs.xfs refuses anything below 300 MiB).
	MinPoolSize = 512 << 20
	// MaxSize is the largest disk, base disk or embedded pool.
	MaxSize = 64 << 40

	minBaseSize = 16 << 20 // room for ext4's own tables and a journal
	blockSize   = 4096     // of the disks' ext4 and of the loop devices
	mebibyte    = 1 << 20
)

// Config says where a pool is.
type Config struct {
	// Path is the pool's directory, absolute; made if missing.
	Path string
	// RunDir is the directory for mount points, absolute; made if missing. A server's
	// init must be able to reach it, so its parents need the x permission for others.
	RunDir string
	// PoolSize is the size of an embedded pool in bytes, rounded up to MiB. 0 means four
	// fifths of what is free when the pool is made. A pool that is smaller grows to it; one
	// that is larger stays.
	PoolSize int64
	// Log receives what an operator should know; nil means nothing is logged.
	Log hclog.Logger
}

// Validate reports the first setting that cannot work as a fault.Invalid error.
func (c Config) Validate() error {
	switch {
	case !filepath.IsAbs(c.Path):
		return fault.Field("pool.path", "pool path %q is not absolute", c.Path)
	case !filepath.IsAbs(c.RunDir):
		return fault.Field("run_dir", "run directory %q is not absolute", c.RunDir)
	case c.PoolSize < 0 || c.PoolSize > MaxSize:
		return fault.Field("pool.size", "pool size %d is out of range: 0 (automatic) or %d to %d bytes", c.PoolSize, MinPoolSize, int64(MaxSize))
	case c.PoolSize > 0 && c.PoolSize < MinPoolSize:
		return fault.Field("pool.size", "pool size %d is too small: at least %d bytes", c.PoolSize, MinPoolSize)
	}
	return nil
}

// embeddedSize is the size of a new embedded pool on a file system with free bytes left.
func embeddedSize(asked, free int64) (int64, error) {
	size := roundUp(asked, mebibyte)
	if size == 0 {
		size = min(free/5*4, MaxSize) / mebibyte * mebibyte
	}
	if size < MinPoolSize {
		return 0, fault.New(fault.Exhausted, "no room for an embedded pool: asked at least %d bytes, free %d bytes, of which the pool takes four fifths", MinPoolSize, free)
	}
	if size > free {
		return 0, fault.New(fault.Exhausted, "no room for an embedded pool: asked %d bytes, free %d bytes", size, free)
	}
	return size, nil
}

func roundUp(n, unit int64) int64 { return (n + unit - 1) / unit * unit }

// Usage describes a pool. Sizes are bytes.
type Usage struct {
	Path       string // as configured
	FileSystem string // "xfs" or "btrfs"
	Embedded   bool   // the agent made the pool in a file
	Size       int64
	Used       int64
	Free       int64
	// Capacity is what may be promised to servers' disks and snapshots in all: the space that
	// is not taken by base disks, by files of others, or by the pool's own bookkeeping.
	Capacity int64
}

// The space a file system needs to keep track of fragmented disks.
const bookkeepingShare = 50 // one part in

// capacity is Usage.Capacity. What disks, snapshots and arrivals take is promised, so it is
// not taken off; base disks are not, and what is not ours is not ours to promise.
func capacity(size, others int64, bases []int64) int64 {
	left := size - others - size/bookkeepingShare
	for _, n := range bases {
		left -= n
	}
	return max(0, left)
}

// span is a piece of the pool's file system, in bytes.
type span struct{ start, length int64 }

// unionBytes is how many bytes the spans cover; what several share counts once.
func unionBytes(all []span) (sum int64) {
	slices.SortFunc(all, func(a, b span) int { return cmp.Compare(a.start, b.start) })
	end := int64(math.MinInt64)
	for _, p := range all {
		if to := p.start + p.length; to > end {
			sum += to - max(p.start, end)
			end = to
		}
	}
	return sum
}

// Severity says how much a condition matters.
type Severity string

// The severities.
const (
	SeverityInfo    Severity = "info"
	SeverityWarning Severity = "warning"
	SeverityError   Severity = "error"
)

// Condition is something about the pool that an operator should know.
type Condition struct {
	Type     string // a stable word, "PoolIsAFile"
	Severity Severity
	Message  string // what is there and what to do
	Since    time.Time
}
