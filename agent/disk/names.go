package disk

import (
	"regexp"
	"strconv"
	"strings"

	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
)

// Names in the pool and run directories. Every name that reaches a system call is made
// here from an id that matched one of these patterns: none holds a slash or a dot-dot.
const (
	lockName      = "lock"
	poolFile      = "pool.xfs"
	poolFileNew   = "pool.xfs.new"
	poolMount     = "pool"
	basesDir      = "bases"
	variantsDir   = "variants"
	disksDir      = "disks"
	snapshotsDir  = "snapshots"
	arrivalsDir   = "arrivals"
	canonicalDir  = "canonical"
	rootfsDir     = "rootfs"
	rootfsMount   = "fs"
	buildsDir     = "builds"
	diskSuffix    = ".ext4"
	buildingInfix = ".building-"
	copySuffix    = ".ext4.copy" // of a disk that is about to replace one
)

var (
	uuidPattern     = regexp.MustCompile(`^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$`)
	digestPattern   = regexp.MustCompile(`^sha256:[0-9a-f]{64}$`)
	basePattern     = regexp.MustCompile(`^sha256-([0-9a-f]{64})\.ext4$`)
	variantPattern  = regexp.MustCompile(`^sha256-([0-9a-f]{64})\.[1-9][0-9]{0,15}\.ext4$`)
	copyPattern     = regexp.MustCompile(`^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\.ext4\.copy$`)
	buildingPattern = regexp.MustCompile(`^sha256-([0-9a-f]{64})\.building-[0-9a-f]{16}$`)
)

// checkServerID accepts UUIDs in lower case.
func checkServerID(id string) error {
	if !uuidPattern.MatchString(id) {
		return fault.Field("id", "server id %q is not a UUID in lower case", id)
	}
	return nil
}

// checkID accepts the ids of snapshots and arrivals, which are UUIDs in lower case too.
func checkID(field, id string) error {
	if !uuidPattern.MatchString(id) {
		return fault.Field(field, "%s id %q is not a UUID in lower case", field, id)
	}
	return nil
}

// checkImageID accepts SHA-256 digests in lower case.
func checkImageID(id string) error {
	if !digestPattern.MatchString(id) {
		return fault.Field("image", "image id %q is not sha256: and 64 hexadecimal digits", id)
	}
	return nil
}

// checkSize accepts what a disk can be.
func checkSize(size int64) error {
	if size < minBaseSize || size > MaxSize {
		return fault.Field("disk.size", "disk size %d is out of range: %d to %d bytes", size, minBaseSize, int64(MaxSize))
	}
	return nil
}

func diskName(id string) string { return id + diskSuffix }

// copyName is what a copy is called until it takes the place of the server's disk.
func copyName(id string) string { return id + copySuffix }

// serverOf is the inverse of diskName.
func serverOf(name string) (id string, ok bool) {
	id, ok = strings.CutSuffix(name, diskSuffix)
	return id, ok && uuidPattern.MatchString(id)
}

func baseStem(id string) string { return strings.Replace(id, ":", "-", 1) }

func baseName(id string) string { return baseStem(id) + diskSuffix }

func buildingName(id, random string) string { return baseStem(id) + buildingInfix + random }

// variantName is the name of a base disk resized to size bytes.
func variantName(id string, size int64) string {
	return baseStem(id) + "." + strconv.FormatInt(size, 10) + diskSuffix
}

// variantOf says whose variant a file is.
func variantOf(name string) (id string, ok bool) {
	m := variantPattern.FindStringSubmatch(name)
	if m == nil {
		return "", false
	}
	return "sha256:" + m[1], true
}

// imageOf says whose base disk a file is, and whether it is finished.
func imageOf(name string) (id string, complete, ok bool) {
	if m := basePattern.FindStringSubmatch(name); m != nil {
		return "sha256:" + m[1], true, true
	}
	if m := buildingPattern.FindStringSubmatch(name); m != nil {
		return "sha256:" + m[1], false, true
	}
	return "", false, false
}
