package backup

import (
	"encoding/json"
	"fmt"
	"unicode/utf8"

	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
	"github.com/reflejo/terraform-provider-reflejo/agent/snapshot"
	"github.com/reflejo/terraform-provider-reflejo/agent/vserver"
)

// maxDepth is how many increments a full backup may carry: each is one more file that an
// import needs whole.
const maxDepth = 30

// maxManifest bounds a manifest's JSON, bytes.
const maxManifest = 1 << 20

// Origin says why there is a backup.
type Origin string

// The origins of backups.
const (
	OriginManual Origin = "manual" // somebody asked for it
	OriginPolicy Origin = "policy" // the server's policy; only these its keep rules remove
)

// Manifest is what a backup says of itself; it comes first in the file. It is enough to make
// the server anew on a host that never knew it.
type Manifest struct {
	ID     string
	Name   string
	Origin Origin
	// Parent is the backup that this one is an increment to, "" for a full one, and
	// ParentChecksum what the disk held there ("sha256:…").
	Parent         string
	ParentChecksum string
	Depth          int   // how many increments there are down to the full one: 0 for that itself
	Chunk          int64 // snapshot.ChunkSize: the piece of which the checksum is made
	// Snapshot is the snapshot as it was described where it was taken: server, host, time,
	// consistency, size and checksum of the disk, the server's spec (without secrets) and image.
	Snapshot snapshot.Record
}

// manifestOf is the manifest of a full backup of a snapshot.
func manifestOf(id, name string, origin Origin, s snapshot.Record) Manifest {
	// What only its own pool needs to know, and what went wrong there, stays behind.
	s.Held, s.Base, s.Order, s.From, s.Err, s.ErrKind, s.Phase = 0, "", 0, snapshot.From{}, "", "", snapshot.PhaseReady
	s.Spec.FirstBoot.UserData = ""
	s.Created = s.Created.UTC()
	return Manifest{ID: id, Name: name, Origin: origin, Chunk: snapshot.ChunkSize, Snapshot: s}
}

// onto makes the manifest that of an increment to a backup.
func (m Manifest) onto(parent Manifest) Manifest {
	m.Parent, m.ParentChecksum, m.Depth = parent.ID, parent.Snapshot.Checksum, parent.Depth+1
	return m
}

// Validate checks all bounds of a manifest, which comes from somebody else's machine. The
// error is fault.Invalid.
func (m Manifest) Validate() error {
	switch {
	case !vserver.ValidID(m.ID):
		return fault.Field("id", "id %q: want a UUID in lower case", clip(m.ID))
	case m.Name != "" && !vserver.ValidName(m.Name):
		return fault.Field("name", "name %q: want lower-case letters, digits and inner hyphens, at most 63", clip(m.Name))
	case m.Origin != OriginManual && m.Origin != OriginPolicy:
		return fault.Field("origin", "origin %q: want manual or policy", clip(string(m.Origin)))
	case m.Chunk != snapshot.ChunkSize:
		return fault.Field("chunk", "chunk of %d bytes: want %d", m.Chunk, snapshot.ChunkSize)
	case m.Depth < 0 || m.Depth > maxDepth || (m.Depth == 0) != (m.Parent == ""):
		return fault.Field("depth", "depth %d of increments onto %q: want 0 without a parent, else 1 to %d", m.Depth, clip(m.Parent), maxDepth)
	case m.Parent != "" && (!vserver.ValidID(m.Parent) || m.Parent == m.ID):
		return fault.Field("parent", "parent %q: want another backup's UUID", clip(m.Parent))
	case (m.Parent == "") != (m.ParentChecksum == "") || m.Parent != "" && !validChecksum(m.ParentChecksum):
		return fault.Field("parent", "parent's checksum %q: want sha256: and 64 hexadecimal digits where there is a parent", clip(m.ParentChecksum))
	case !validChecksum(m.Snapshot.Checksum):
		return fault.Field("checksum", "checksum %q: want sha256: and 64 hexadecimal digits", clip(m.Snapshot.Checksum))
	}
	if err := m.Snapshot.Validate(); err != nil {
		return fmt.Errorf("snapshot: %w", err)
	}
	return nil
}

// decodeManifest reads and checks a manifest.
func decodeManifest(text []byte) (Manifest, error) {
	var m Manifest
	if err := json.Unmarshal(text, &m); err != nil {
		return Manifest{}, fault.New(fault.Invalid, "read manifest: %w", err)
	}
	m.Snapshot.Spec.FirstBoot.UserData = ""
	if err := m.Validate(); err != nil {
		return Manifest{}, fmt.Errorf("read manifest: %w", err)
	}
	return m, nil
}

func validChecksum(text string) bool {
	const prefix = "sha256:"
	if len(text) != len(prefix)+64 || text[:len(prefix)] != prefix {
		return false
	}
	for _, c := range text[len(prefix):] {
		if (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return true
}

// clip makes text from outside fit for an error.
func clip(text string) string {
	const most = 80
	if !utf8.ValidString(text) {
		return "(not text)"
	}
	if len(text) > most {
		return text[:most] + "…"
	}
	return text
}
