package image

import (
	"archive/tar"
	"encoding/binary"
	"io/fs"
	"path"
	"strings"
	"time"

	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
)

// entry is one thing that an archive says should be in the root file system, checked: its path is
// clean, relative and without "..", its owner and mode are possible.
type entry struct {
	path       string // "." is the root itself
	kind       kind
	target     string // of a symlink (as written), of a hard link (clean, like path)
	mode       uint32 // permissions with set-user-id, set-group-id and sticky, as chmod(2) takes them
	uid, gid   int
	time       time.Time
	size       int64  // content of a file, bytes
	capability []byte // security.capability in its revision 2 form, nil if none
}

type kind uint8

// The kinds of entry: what is kept in a root file system …
const (
	kindFile kind = iota
	kindDir
	kindSymlink
	kindHardLink
	kindFIFO
	// … and what is not kept:
	kindSkip     // devices, sockets, archive metadata
	kindWhiteout // path does not exist any more (layers only)
	kindOpaque   // what lower layers have in the directory path does not exist any more (layers only)
)

const (
	whiteout       = ".wh."
	whiteoutMeta   = ".wh..wh."
	whiteoutOpaque = ".wh..wh..opq"
	capabilityKey  = "SCHILY.xattr.security.capability"
)

// parse decides what an archive's header means. In a layer, names that begin with ".wh." are
// deletions; elsewhere they are names like others. Errors are fault.Invalid.
func parse(h *tar.Header, layered bool) (entry, error) {
	if h.Typeflag == tar.TypeXGlobalHeader {
		return entry{kind: kindSkip}, nil
	}
	p, err := cleanPath(h.Name)
	if err != nil {
		return entry{}, err
	}
	e := entry{path: p, mode: uint32(h.Mode) & 0o7777, uid: h.Uid, gid: h.Gid, time: cleanTime(h.ModTime)}
	if base := path.Base(p); layered && strings.HasPrefix(base, whiteout) {
		return parseWhiteout(p, base)
	}
	switch h.Typeflag {
	case tar.TypeReg, '\x00', tar.TypeCont, tar.TypeGNUSparse:
		e.kind, e.size = kindFile, h.Size
		e.capability = cleanCapability([]byte(h.PAXRecords[capabilityKey]))
	case tar.TypeDir:
		e.kind = kindDir
	case tar.TypeSymlink:
		e.kind, e.target = kindSymlink, h.Linkname
		if e.target == "" || len(e.target) > maxPath || strings.ContainsRune(e.target, 0) {
			return entry{}, fault.New(fault.Invalid, "symbolic link %q: its target is empty, too long or has a NUL", p)
		}
	case tar.TypeLink:
		e.kind = kindHardLink
		if e.target, err = cleanPath(h.Linkname); err != nil {
			return entry{}, fault.New(fault.Invalid, "hard link %q: %w", p, err)
		}
	case tar.TypeFifo:
		e.kind = kindFIFO
	case tar.TypeChar, tar.TypeBlock:
		// A server gets its /dev from its runtime and must not have a way to the host's devices.
		return entry{path: p, kind: kindSkip}, nil
	default:
		return entry{}, fault.New(fault.Invalid, "entry %q has the unknown type %q", p, h.Typeflag)
	}
	if p == "." && e.kind != kindDir {
		return entry{}, fault.New(fault.Invalid, "entry %q: the root must be a directory", h.Name)
	}
	if e.kind != kindHardLink && (e.uid < 0 || e.uid > maxID || e.gid < 0 || e.gid > maxID) {
		return entry{}, fault.New(fault.Invalid, "%q belongs to user %d, group %d: a server has ids 0 … %d", p, e.uid, e.gid, maxID)
	}
	return e, nil
}

func parseWhiteout(p, base string) (entry, error) {
	dir := path.Dir(p)
	switch name := strings.TrimPrefix(base, whiteout); {
	case base == whiteoutOpaque:
		return entry{kind: kindOpaque, path: dir}, nil
	case strings.HasPrefix(base, whiteoutMeta): // aufs's own bookkeeping
		return entry{kind: kindSkip, path: p}, nil
	case name == "" || name == "." || name == "..":
		return entry{}, fault.New(fault.Invalid, "whiteout %q names nothing", p)
	default:
		return entry{kind: kindWhiteout, path: path.Join(dir, name)}, nil
	}
}

// cleanPath makes an archive's name relative to the root. A ".." is refused and not resolved:
// no program that makes images writes one.
func cleanPath(name string) (string, error) {
	if len(name) > maxPath {
		return "", fault.New(fault.Invalid, "path %.60q… is longer than %d bytes", name, maxPath)
	}
	if strings.ContainsRune(name, 0) {
		return "", fault.New(fault.Invalid, "path %q has a NUL", name)
	}
	parts := strings.Split(name, "/")
	if len(parts) > maxDepth {
		return "", fault.New(fault.Invalid, "path %.60q… has more than %d components", name, maxDepth)
	}
	for _, c := range parts {
		if c == ".." {
			return "", fault.New(fault.Invalid, "path %q leads out of the image", name)
		}
		if len(c) > maxName {
			return "", fault.New(fault.Invalid, "path %.60q… has a component longer than %d bytes", name, maxName)
		}
	}
	return path.Clean(strings.TrimLeft(path.Clean("/"+name), "/")), nil
}

// cleanTime keeps times within what every file system can hold.
func cleanTime(t time.Time) time.Time {
	if s := t.Unix(); s < 0 || s > 1<<33 {
		return time.Unix(0, 0)
	}
	return t
}

// cleanCapability is the attribute as revision 2, without a user namespace's root in it, or nil if
// it is no capability: a capability that is bound to another namespace means nothing here.
func cleanCapability(v []byte) []byte {
	const revision2, revision3, revisionMask = 0x02000000, 0x03000000, 0xFF000000
	if len(v) < 20 {
		return nil
	}
	magic := binary.LittleEndian.Uint32(v)
	switch {
	case len(v) == 20 && magic&revisionMask == revision2:
		return v
	case len(v) == 24 && magic&revisionMask == revision3 && binary.LittleEndian.Uint32(v[20:]) == 0:
		v = append([]byte{}, v[:20]...)
		binary.LittleEndian.PutUint32(v, magic&^revisionMask|revision2)
		return v
	}
	return nil
}

// unixMode is a Go file mode as chmod(2) takes it.
func unixMode(m fs.FileMode) uint32 {
	u := uint32(m.Perm())
	for _, b := range []struct {
		is  fs.FileMode
		bit uint32
	}{{fs.ModeSetuid, 0o4000}, {fs.ModeSetgid, 0o2000}, {fs.ModeSticky, 0o1000}} {
		if m&b.is != 0 {
			u |= b.bit
		}
	}
	return u
}
