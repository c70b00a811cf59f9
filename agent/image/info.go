package image

import (
	"regexp"
	"slices"
	"time"
)

// Info describes an image under one of its names. It is a copy.
type Info struct {
	ID           string    // "sha256:" and 64 hex digits
	Name         string    // unique on the host
	Source       string    // as asked
	Checksum     string    // as asked; "" if none
	Architecture string    // as Go names it ("amd64"); "" if nothing in the image tells
	Size         int64     // smallest disk of a server made from it, bytes
	Used         int64     // what the base disk takes in the pool, bytes
	Init         []string  // entry point; empty: the image boots its /sbin/init, or has none
	Env          []string  // of the entry point, "NAME=value"
	Dir          string    // working directory of the entry point; "" means /
	OS           string    // PRETTY_NAME of its os-release, "" if it has none
	Created      time.Time // when this name was made
}

// Records persists images, by id. store.Bucket satisfies it.
type Records interface {
	// Put stores v as JSON under key; it is durable when Put returns.
	Put(key string, v any) error
	// Get reads the value under key into v and reports whether there is one.
	Get(key string, v any) (bool, error)
	// Delete removes the key; removing what is not there succeeds.
	Delete(key string) error
	// ForEach calls fn with every key and its JSON, until fn fails.
	ForEach(fn func(key string, value []byte) error) error
}

// record is what is kept of an image. All of it changes in one Put, so that a killed agent
// leaves the image as it was before or after.
type record struct {
	ID           string
	Names        []alias // oldest first; empty only while Deleting
	Digests      []string
	Architecture string
	Size         int64
	Used         int64
	Init         []string
	Env          []string
	Dir          string
	OS           string
	Deleting     bool // Delete began: the base disk may be gone
}

// alias is one name of an image.
type alias struct {
	Name     string
	Source   string
	Checksum string
	Created  time.Time
}

func (r record) info(a alias) Info {
	return Info{
		ID: r.ID, Name: a.Name, Source: a.Source, Checksum: a.Checksum,
		Architecture: r.Architecture, Size: r.Size, Used: r.Used,
		Init: slices.Clone(r.Init), Env: slices.Clone(r.Env), Dir: r.Dir, OS: r.OS, Created: a.Created,
	}
}

// alias finds a name of the image.
func (r record) alias(name string) (alias, bool) {
	i := slices.IndexFunc(r.Names, func(a alias) bool { return a.Name == name })
	if i < 0 {
		return alias{}, false
	}
	return r.Names[i], true
}

// with is the record with the name added; without, with it taken away. Neither changes r.
func (r record) with(a alias) record {
	r.Names = append(slices.Clone(r.Names), a)
	return r
}

func (r record) without(name string) record {
	r.Names = slices.DeleteFunc(slices.Clone(r.Names), func(a alias) bool { return a.Name == name })
	return r
}

var (
	namePattern = regexp.MustCompile(`^[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?$`)
	idPattern   = regexp.MustCompile(`^sha256:[0-9a-f]{64}$`)
)

// ValidName reports whether name can be an image's: lower-case letters, digits and inner dots,
// hyphens and underscores, at most 63. It is never mistaken for an id.
func ValidName(name string) bool { return namePattern.MatchString(name) }

// ValidID reports whether id is "sha256:" and 64 lower-case hex digits; a checksum has the same form.
func ValidID(id string) bool { return idPattern.MatchString(id) }
