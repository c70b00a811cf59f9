package backup

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"

	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
	"github.com/reflejo/terraform-provider-reflejo/agent/vserver"
)

// Target is a place that keeps backups. Its methods may be called from any goroutine. The
// rules for edges hold: calls may be made twice, removing what is not there succeeds. A
// target that can't be reached now is fault.Unavailable, a full one fault.Exhausted.
type Target interface {
	// Append opens a file for writing, where it was left if it was begun. A complete file is
	// fault.Exists. Writing makes it at most most bytes long (see [MostBytes]), more is
	// fault.Invalid: who keeps files for others must not be filled by one that never ends. One
	// caller at a time per file.
	Append(ctx context.Context, f Ref, most int64) (Upload, error)
	// Open reads a complete file from an offset on; fault.NotFound where there is none.
	Open(ctx context.Context, f Ref, offset int64) (io.ReadCloser, error)
	// List lists the files of a server, or of all where server is "", unfinished ones too.
	List(ctx context.Context, server string) ([]File, error)
	// Delete removes a file, complete or not.
	Delete(ctx context.Context, f Ref) error
	// Load reads the server's note, at most maxNote bytes; fault.NotFound where there is none.
	Load(ctx context.Context, server string) ([]byte, error)
	// Swap replaces the server's note by another, durably, if it is still old (nil: there is
	// none); else it is fault.Aborted.
	Swap(ctx context.Context, server string, old, note []byte) error
}

// Upload is a file that is being written. What was written and not committed may be lost
// or torn when the writer is killed, but what is before it is still there.
type Upload interface {
	// State is how far the file was when it was opened; what is written follows that. A
	// target that can't read back what it holds says that there is nothing, and finds out by
	// what is written that it has it.
	State() State
	io.Writer
	// Commit makes the file complete and durable, and closes it.
	Commit() error
	// Close leaves the file unfinished, for another Append.
	Close() error
}

// MostBytes is how long the file of a disk of this size can become: nothing of it can be
// packed, and every 4 KiB are a frame of their own.
func MostBytes(disk int64) int64 {
	return headSize + maxManifest + sumSize + disk + (disk/4096+2)*(frameSize+sumSize+32)
}

// bounded refuses what would make a file too long.
type bounded struct{ left int64 }

func (b *bounded) take(n int) error {
	if b.left -= int64(n); b.left < 0 {
		return fault.New(fault.Invalid, "write backup file: it becomes longer than was said")
	}
	return nil
}

// Ref names a backup's file.
type Ref struct{ Server, Backup string } // ids

// File is a file at a target.
type File struct {
	Ref
	Size     int64 // bytes, of what is there
	Complete bool
}

const (
	fileSuffix    = ".rbk"
	partialSuffix = ".rbk.partial"
	notesFolder   = "claims"
	noteSuffix    = ".json"
	maxNote       = 64 << 10
	maxFiles      = 100_000 // a target lists no more
)

// check keeps everything but ids out of paths.
func (f Ref) check() error {
	if !vserver.ValidID(f.Server) || !vserver.ValidID(f.Backup) {
		return fault.New(fault.Invalid, "name backup file: server %q and backup %q must be UUIDs in lower case", clip(f.Server), clip(f.Backup))
	}
	return nil
}

func (f Ref) path() string    { return path.Join(f.Server, f.Backup+fileSuffix) }
func (f Ref) partial() string { return path.Join(f.Server, f.Backup+partialSuffix) }

// fileOf is path's mirror image; false for what is no backup.
func fileOf(server, name string) (File, bool) {
	id, complete := strings.CutSuffix(name, fileSuffix)
	if !complete {
		var partial bool
		if id, partial = strings.CutSuffix(name, partialSuffix); !partial {
			return File{}, false
		}
	}
	f := File{Ref: Ref{server, id}, Complete: complete}
	return f, f.check() == nil
}

func notePath(server string) (string, error) {
	if !vserver.ValidID(server) {
		return "", fault.New(fault.Invalid, "name note of server %q: want a UUID in lower case", clip(server))
	}
	return path.Join(notesFolder, server+noteSuffix), nil
}

// Remote reaches the stores of other hosts (package endpoint): on the other side there is
// a target of [NewDir].
type Remote interface {
	// Open connects to the store of a host; fault.NotFound if none of this name is known.
	Open(ctx context.Context, host string) (Target, error)
}

// Location is a target as users write it, taken apart.
type Location struct {
	Scheme string // dir, s3 or host
	Path   string // of dir: absolute and clean
	Bucket string // of s3
	Prefix string // of s3, without slashes at its ends; may be ""
	Host   string // of host
}

var (
	bucketPattern = regexp.MustCompile(`^[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]$`)
	prefixPattern = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._=-]*(/[A-Za-z0-9][A-Za-z0-9._=-]*)*$`)
)

const maxTarget = 1024

// ParseTarget reads "dir:/path", "s3://bucket/prefix" or "host:NAME". The error is
// fault.Invalid and blames "target".
func ParseTarget(text string) (Location, error) {
	if len(text) > maxTarget {
		return Location{}, fault.Field("target", "target of %d characters: at most %d are allowed", len(text), maxTarget)
	}
	scheme, rest, _ := strings.Cut(text, ":")
	switch scheme {
	case "dir":
		if !filepath.IsAbs(rest) || filepath.Clean(rest) != rest || strings.ContainsRune(rest, 0) {
			return Location{}, fault.Field("target", "target %q: want an absolute path without \".\", \"..\" or double slashes, such as \"dir:/srv/backups\"", clip(text))
		}
		return Location{Scheme: scheme, Path: rest}, nil
	case "host":
		if !vserver.ValidName(rest) {
			return Location{}, fault.Field("target", "target %q: want a host's name, such as \"host:beta\"", clip(text))
		}
		return Location{Scheme: scheme, Host: rest}, nil
	case "s3":
		name, ok := strings.CutPrefix(rest, "//")
		bucket, prefix, slash := strings.Cut(name, "/")
		prefix = strings.TrimSuffix(prefix, "/")
		switch {
		case !ok || !bucketPattern.MatchString(bucket) || strings.Contains(bucket, ".."):
			return Location{}, fault.Field("target", "target %q: want a bucket's name of 3 to 63 lower-case letters, digits, '.' and '-', such as \"s3://bucket/prefix\"", clip(text))
		case slash && prefix != "" && (!prefixPattern.MatchString(prefix) || len(prefix) > 512):
			return Location{}, fault.Field("target", "target %q: want a prefix of letters, digits and \"._=-\" between slashes, at most 512", clip(text))
		}
		return Location{Scheme: scheme, Bucket: bucket, Prefix: prefix}, nil
	}
	return Location{}, fault.Field("target", "target %q: want \"dir:/path\", \"s3://bucket/prefix\" or \"host:NAME\"", clip(text))
}

// String is the location as users write it; ParseTarget's mirror image.
func (l Location) String() string {
	switch l.Scheme {
	case "dir":
		return "dir:" + l.Path
	case "host":
		return "host:" + l.Host
	}
	return (&url.URL{Scheme: l.Scheme, Host: l.Bucket, Path: l.Prefix}).String()
}

// sameTarget reports whether two names are of one target.
func sameTarget(a, b string) bool {
	x, errX := ParseTarget(a)
	y, errY := ParseTarget(b)
	return errX == nil && errY == nil && x == y
}

// Targets are the targets that a host's configuration allows.
type Targets struct {
	Dirs   []string // directories, absolute; targets may be in them
	S3     []S3
	Remote Remote // nil: other hosts can't be reached
}

// Validate checks the configuration.
func (t Targets) Validate() error {
	for _, d := range t.Dirs {
		if !filepath.IsAbs(d) || filepath.Clean(d) != d {
			return fault.Field("backup.dirs", "backup directory %q: want an absolute path without \".\" or \"..\"", d)
		}
	}
	seen := map[string]bool{}
	for _, s := range t.S3 {
		if err := s.validate(); err != nil {
			return err
		}
		if seen[s.Bucket] {
			return fault.Field("backup.s3", "bucket %q is configured twice", s.Bucket)
		}
		seen[s.Bucket] = true
	}
	return nil
}

// Allow checks a target's name without reaching for it: fault.Invalid for what is no target,
// fault.Precondition where the host's configuration does not allow it.
func (t Targets) Allow(text string) error {
	_, err := t.find(text)
	return err
}

// Open is the target of a name; its errors are those of Allow, and of who connects to
// another host.
func (t Targets) Open(ctx context.Context, text string) (Target, error) {
	open, err := t.find(text)
	if err != nil {
		return nil, err
	}
	return open(ctx)
}

// find is how a target is opened.
func (t Targets) find(text string) (func(context.Context) (Target, error), error) {
	l, err := ParseTarget(text)
	if err != nil {
		return nil, err
	}
	switch l.Scheme {
	case "dir":
		for _, d := range t.Dirs {
			if rel, err := filepath.Rel(d, l.Path); err == nil && filepath.IsLocal(rel) {
				return func(context.Context) (Target, error) { return NewDir(d, rel), nil }, nil
			}
		}
		return nil, notAllowed("open target %s: this host keeps backups only in %s (backup.dirs of its configuration)", text, list(t.Dirs))
	case "host":
		if t.Remote == nil {
			return nil, notAllowed("open target %s: this host knows no other hosts", text)
		}
		return func(ctx context.Context) (Target, error) { return t.Remote.Open(ctx, l.Host) }, nil
	}
	for _, bucket := range []string{l.Bucket, ""} {
		if i := slices.IndexFunc(t.S3, func(s S3) bool { return s.Bucket == bucket }); i >= 0 {
			return func(context.Context) (Target, error) { return newS3(t.S3[i], l) }, nil
		}
	}
	return nil, notAllowed("open target %s: this host's configuration has no store for bucket %q (backup.s3)", text, l.Bucket)
}

func notAllowed(format string, args ...any) error {
	return &fault.Error{Kind: fault.Precondition, Field: "target", Err: fmt.Errorf(format, args...)}
}

func list(dirs []string) string {
	if len(dirs) == 0 {
		return "no directory at all"
	}
	return strings.Join(dirs, ", ")
}

// classify gives errors of the system that a caller can act on their kind.
func classify(err error) error {
	var known *fault.Error
	switch {
	case err == nil, errors.As(err, &known):
		return err
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT), errors.Is(err, syscall.EFBIG):
		return fault.Wrap(fault.Exhausted, err)
	case errors.Is(err, syscall.EIO), errors.Is(err, syscall.ESTALE), errors.Is(err, syscall.ETIMEDOUT), errors.Is(err, syscall.EHOSTDOWN), errors.Is(err, syscall.ENOTCONN):
		return fault.Wrap(fault.Unavailable, err)
	}
	return err
}

// reopening is a file at a target, read front to back over any number of lost connections:
// it is opened again where reading stopped, as long as that brings it on.
type reopening struct {
	ctx    context.Context
	target Target
	file   Ref
	offset int64
	r      io.ReadCloser
	broken int // losses since the last byte
}

const maxBroken = 3

func (r *reopening) Read(p []byte) (int, error) {
	for {
		if err := r.ctx.Err(); err != nil {
			return 0, err
		}
		n, err := r.try(p)
		r.offset += int64(n)
		if n > 0 {
			r.broken = 0
		}
		if err == nil || errors.Is(err, io.EOF) || n > 0 {
			return n, ifEnd(err)
		}
		if r.broken++; r.broken > maxBroken || fault.Is(err, fault.NotFound) {
			return 0, err
		}
	}
}

// ifEnd lets only the end through: an error with bytes shows itself at the next read.
func ifEnd(err error) error {
	if errors.Is(err, io.EOF) {
		return io.EOF
	}
	return nil
}

func (r *reopening) try(p []byte) (int, error) {
	if r.r == nil {
		var err error
		if r.r, err = r.target.Open(r.ctx, r.file, r.offset); err != nil {
			r.r = nil
			return 0, err
		}
	}
	n, err := r.r.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		r.r.Close()
		r.r = nil
	}
	return n, err
}

func (r *reopening) Close() error {
	if r.r == nil {
		return nil
	}
	return r.r.Close()
}
