package snapshot

import (
	"encoding/json"
	"fmt"
	"maps"
	"regexp"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
	"github.com/reflejo/terraform-provider-reflejo/agent/vserver"
)

// Request asks for a snapshot of a server's disk.
type Request struct {
	ID          string // UUID made by the client before it asks, so that a retry is the same request
	Server      string // id or name
	Name        string // unique among the server's snapshots; a DNS label; "" is made of server and time
	Description string
	Labels      map[string]string
	Consistency Consistency // "" means filesystem
	Origin      Origin      // "" means manual
}

// Consistency is the state in which a snapshot finds the file system of a running server.
type Consistency string

// The kinds of consistency.
const (
	ConsistencyFilesystem Consistency = "filesystem" // everything written back, nothing to repair
	ConsistencyCrash      Consistency = "crash"      // as after a power cut; nobody is held up
)

// Origin says why there is a snapshot.
type Origin string

// The origins of snapshots.
const (
	OriginManual    Origin = "manual"    // somebody asked for it
	OriginPolicy    Origin = "policy"    // the server's policy; only these its keep rules remove
	OriginSafety    Origin = "safety"    // what a restore in place replaced
	OriginBackup    Origin = "backup"    // imported from a backup, or taken for one
	OriginMigration Origin = "migration" // taken to move the server
)

// Record is all that is durable about a snapshot. It is persisted before anything is done
// for it.
//
//	creating ──▶ ready ──▶ deleting ──▶ (no record)
//	    └──────▶ failed ──────▲
type Record struct {
	ID          string
	Server      string // id
	ServerName  string // when it was taken
	Host        string
	Name        string
	Description string
	Labels      map[string]string
	Consistency Consistency
	Origin      Origin
	Phase       Phase

	ServerState vserver.State // running, stopped or suspended
	Size        int64         // of the disk, bytes
	Pause       time.Duration // for how long the server's writers were held up
	Checksum    string        // of what the disk holds, "sha256:…"; "" until it is known
	Created     time.Time     // the moment it shows, if it is complete
	Spec        vserver.Spec  // of the server then, secrets left out
	Image       vserver.Image // of the server then
	Term        uint64        // of the server then: see vserver.Record

	// Held is how many bytes it adds to the union of the server's snapshots in this pool:
	// those in which it differs from Base, which came into the pool before it, or all that
	// it holds where Base is "". Order is that in which they came, from 1.
	Held  int64
	Base  string
	Order uint64

	From From // the backup that it was imported from

	Err     string // why it failed, or why the last attempt to delete or sum it did
	ErrKind string // fault kind in words
}

// Phase is how far a snapshot is; it is its state too.
type Phase string

// The phases of a snapshot.
const (
	PhaseCreating Phase = "creating"
	PhaseReady    Phase = "ready"
	PhaseFailed   Phase = "failed" // nothing is left but the record; only deletion is possible
	PhaseDeleting Phase = "deleting"
)

// View is a snapshot as callers see it: a copy that nobody else holds.
type View struct {
	Record
	State     Phase
	Exclusive int64             // what deleting it would free now, bytes
	Reserved  int64             // what it takes from the host's promise, bytes
	Operation vserver.Operation // under way, or the last one if it failed
	Gone      bool              // last view of a deleted snapshot
}

// Bounds of what comes from outside.
const (
	maxDescription = 1024
	maxLabels      = 64
	maxLabelValue  = 255
	maxPerServer   = 4096
	maxRecord      = 1 << 20 // bytes of JSON
	maxDisk        = 64 << 40
)

var (
	labelKey     = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9._/-]{0,61}[A-Za-z0-9])?$`)
	checksumText = regexp.MustCompile(`^(sha256:[0-9a-f]{64})?$`)
)

// withDefaults is the request with everything filled in that may be left out, but for the name.
func (r Request) withDefaults() Request {
	if r.Consistency == "" {
		r.Consistency = ConsistencyFilesystem
	}
	if r.Origin == "" {
		r.Origin = OriginManual
	}
	return r
}

// Validate checks everything about a request that needs no knowledge of the host. The error
// is fault.Invalid and names the attribute to blame.
func (r Request) Validate() error {
	r = r.withDefaults()
	if !vserver.ValidID(r.ID) {
		return fault.Field("id", "id %q: want a UUID in lower case", r.ID)
	}
	if !vserver.ValidID(r.Server) && !vserver.ValidName(r.Server) {
		return fault.Field("server_id", "server %q: want a server's id or name", r.Server)
	}
	if r.Name != "" {
		if err := validateName(r.Name); err != nil {
			return err
		}
	}
	if err := validateTexts(r.Description, r.Labels); err != nil {
		return err
	}
	return validateKinds(r.Consistency, r.Origin)
}

func validateName(name string) error {
	if !vserver.ValidName(name) {
		return fault.Field("name", "name %q: want lower-case letters, digits and inner hyphens, at most 63", name)
	}
	return nil
}

func validateTexts(description string, labels map[string]string) error {
	if len(description) > maxDescription || !utf8.ValidString(description) {
		return fault.Field("description", "description: want text of at most %d bytes", maxDescription)
	}
	if len(labels) > maxLabels {
		return fault.Field("labels", "labels: %d given, at most %d", len(labels), maxLabels)
	}
	for k, v := range labels {
		if !labelKey.MatchString(k) {
			return fault.Field("labels", "label key %q: want letters, digits, '.', '_', '/', '-', at most 63", k)
		}
		if len(v) > maxLabelValue || !utf8.ValidString(v) {
			return fault.Field("labels", "label %q: want text of at most %d bytes", k, maxLabelValue)
		}
	}
	return nil
}

func validateKinds(c Consistency, o Origin) error {
	switch c {
	case ConsistencyFilesystem, ConsistencyCrash:
	default:
		return fault.Field("consistency", "consistency %q: want filesystem or crash", c)
	}
	switch o {
	case OriginManual, OriginPolicy, OriginSafety, OriginBackup, OriginMigration:
	default:
		return fault.Field("origin", "origin %q: want manual, policy, safety, backup or migration", o)
	}
	return nil
}

// timeInName is how a moment is written in a name.
const timeInName = "2006-01-02t15-04-05z"

// defaultName is what a snapshot without a name is called: prefix and moment.
func defaultName(prefix string, at time.Time) string {
	const room = maxStem - len(timeInName) - 1
	if len(prefix) > room {
		prefix = strings.TrimRight(prefix[:room], "-")
	}
	return prefix + "-" + at.UTC().Format(timeInName)
}

// maxStem leaves room in a name for a number that makes it unique.
const maxStem = 63 - len("-9999")

// freeName is the name, or with a number after it if it is taken.
func freeName(name string, taken map[string]bool) string {
	stem := strings.TrimRight(name[:min(len(name), maxStem)], "-")
	for i := 2; taken[name]; i++ {
		name = stem + "-" + strconv.Itoa(i)
	}
	return name
}

// DecodeRecord reads a record that comes from outside (a backup, another host) and checks
// all its bounds. The error is fault.Invalid.
func DecodeRecord(text []byte) (Record, error) {
	if len(text) > maxRecord {
		return Record{}, fault.New(fault.Invalid, "read a snapshot's record: %d bytes, at most %d", len(text), maxRecord)
	}
	var r Record
	if err := json.Unmarshal(text, &r); err != nil {
		return Record{}, fault.New(fault.Invalid, "read a snapshot's record: %w", err)
	}
	if err := r.Validate(); err != nil {
		return Record{}, fmt.Errorf("read a snapshot's record: %w", err)
	}
	return r, nil
}

// Validate checks the bounds of a complete snapshot's record. The error is fault.Invalid.
func (r Record) Validate() error {
	if err := (Request{ID: r.ID, Server: r.Server, Name: r.Name, Description: r.Description, Labels: r.Labels,
		Consistency: r.Consistency, Origin: r.Origin}).Validate(); err != nil {
		return err
	}
	switch {
	case !vserver.ValidID(r.Server):
		return fault.Field("server_id", "server %q: want a UUID in lower case", r.Server)
	case r.Name == "":
		return fault.Field("name", "name: want one")
	case !vserver.ValidName(r.ServerName):
		return fault.Field("server_name", "server name %q: want a DNS label", r.ServerName)
	case len(r.Host) > 253 || !utf8.ValidString(r.Host):
		return fault.Field("host", "host: want a name of at most 253 bytes")
	case r.Size <= 0 || r.Size > maxDisk || r.Size%4096 != 0:
		return fault.Field("size", "size %d bytes: want a multiple of 4KiB up to 64TiB", r.Size)
	case r.Pause < 0 || r.Pause > 24*time.Hour:
		return fault.Field("pause", "pause %s: want 0s … 24h", r.Pause)
	case r.Created.IsZero() || r.Created.Year() < 2000 || r.Created.Year() > 9999:
		return fault.Field("created_at", "created at %s: want a time", r.Created)
	case !checksumText.MatchString(r.Checksum):
		return fault.Field("checksum", "checksum %q: want sha256: and 64 hexadecimal digits", r.Checksum)
	case len(r.Image.ID) > 256 || len(r.Spec.Image) > 256:
		return fault.Field("image", "image: want an id")
	}
	switch r.ServerState {
	case vserver.StateRunning, vserver.StateStopped, vserver.StateSuspended:
		return nil
	}
	return fault.Field("server_state", "server state %q: want running, stopped or suspended", r.ServerState)
}

// clone is a copy that shares no map of its own that can be written through. Spec and
// Image are never written after they were set.
func (r Record) clone() Record {
	r.Labels = maps.Clone(r.Labels)
	return r
}

// answers reports whether the record is what the request asks for, by a client that sends
// it once more.
func (r Record) answers(req Request) bool {
	req = req.withDefaults()
	return (req.Server == r.Server || req.Server == r.ServerName) && (req.Name == "" || req.Name == r.Name) &&
		req.Description == r.Description && maps.Equal(req.Labels, r.Labels) &&
		req.Consistency == r.Consistency && req.Origin == r.Origin
}
