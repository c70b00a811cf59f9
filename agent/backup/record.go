package backup

import (
	"time"

	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
	"github.com/reflejo/terraform-provider-reflejo/agent/snapshot"
	"github.com/reflejo/terraform-provider-reflejo/agent/vserver"
)

// Request asks for a backup of a snapshot.
type Request struct {
	ID          string // UUID made by the client before it asks, so that a retry is the same request
	Snapshot    string // id
	Target      string // see [ParseTarget]
	Name        string // a DNS label; "" is the snapshot's
	Incremental bool   // build on the newest backup of the server at the target that can be built on, if there is one
	Origin      Origin // "" means manual
}

// Validate checks everything about a request that needs no knowledge of the host. The error
// is fault.Invalid and names the attribute to blame.
func (r Request) Validate() error {
	switch {
	case !vserver.ValidID(r.ID):
		return fault.Field("id", "id %q: want a UUID in lower case", clip(r.ID))
	case !vserver.ValidID(r.Snapshot):
		return fault.Field("snapshot_id", "snapshot %q: want a UUID in lower case", clip(r.Snapshot))
	case r.Name != "" && !vserver.ValidName(r.Name):
		return fault.Field("name", "name %q: want lower-case letters, digits and inner hyphens, at most 63", clip(r.Name))
	case r.Origin != OriginManual && r.Origin != OriginPolicy:
		return fault.Field("origin", "origin %q: want manual or policy", clip(string(r.Origin)))
	}
	_, err := ParseTarget(r.Target)
	return err
}

// Phase is how far a backup is; it is its state too.
type Phase string

// The phases of a backup.
const (
	PhaseWriting  Phase = "writing"
	PhaseReady    Phase = "ready"
	PhaseFailed   Phase = "failed" // what was written stays, for the same request once more
	PhaseDeleting Phase = "deleting"
)

// Record is all that is durable about a backup here. It is persisted before anything is
// done for it.
//
//	writing ──▶ ready ───▶ deleting ──▶ (no record)
//	   │ ▲                    ▲
//	   ▼ │                    │
//	 failed ──────────────────┘
type Record struct {
	Request
	Phase Phase
	// Manifest is decided and persisted before the first byte is written, so that an
	// interrupted file is gone on with and not begun as another; nil until then. Base is the
	// snapshot that its parent has.
	Manifest *Manifest
	Base     string
	Source   snapshot.Record // the snapshot as it was found when the backup was asked for
	Size     int64           // of the file, bytes; 0 until it is ready
	Begun    time.Time
	Err      string // why it failed, or why the last attempt to delete it did
	ErrKind  string // fault kind in words
}

func (r Record) ref() Ref { return Ref{Server: r.Source.Server, Backup: r.ID} }

// parent is the backup that it builds on, "" for a full one.
func (r Record) parent() string {
	if r.Manifest == nil {
		return ""
	}
	return r.Manifest.Parent
}

// View is a backup as callers see it: a copy that nobody else holds.
type View struct {
	ID         string
	Name       string
	Server     string // id
	ServerName string
	Snapshot   string // id
	Host       string // whose agent took the snapshot
	Target     string
	Parent     string // the backup that it builds on, "" for a full one
	State      Phase
	Size       int64 // of the file, bytes
	DiskSize   int64
	Checksum   string    // of what the disk holds
	Created    time.Time // the snapshot's moment
	Origin     Origin
	Spec       vserver.Spec      // of the server then, secrets left out; only of what a target's catalog tells
	Operation  vserver.Operation // under way, or the last one if it failed
	Gone       bool              // last view of a deleted backup
}

func (r Record) view() View {
	v := View{ID: r.ID, Name: r.Name, Server: r.Source.Server, ServerName: r.Source.ServerName, Snapshot: r.Snapshot, Host: r.Source.Host,
		Target: r.Target, Parent: r.parent(), State: r.Phase, Size: r.Size, DiskSize: r.Source.Size, Checksum: r.Source.Checksum,
		Created: r.Source.Created, Origin: r.Origin}
	if r.Manifest != nil {
		v.Checksum = r.Manifest.Snapshot.Checksum
	}
	return v
}

// viewOf is a backup as its file describes it.
func viewOf(target string, m Manifest, size int64) View {
	s := m.Snapshot
	return View{ID: m.ID, Name: m.Name, Server: s.Server, ServerName: s.ServerName, Snapshot: s.ID, Host: s.Host, Target: target, Parent: m.Parent,
		State: PhaseReady, Size: size, DiskSize: s.Size, Checksum: s.Checksum, Created: s.Created, Origin: m.Origin, Spec: s.Spec}
}
