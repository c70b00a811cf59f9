package vserver

import (
	"maps"
	"net/netip"
	"slices"
	"time"
)

// Record is all that is durable about a server. It says what is wanted; what is there is
// asked of the edges. A record is persisted before anything is done for it.
type Record struct {
	Spec      Spec
	Applied   Spec // the last spec that was carried out whole; what a failed update falls back to
	Phase     Phase
	Source    string  // snapshot that the disk starts from, "" for the image's base disk
	Restore   Restore // a restore in place that is under way
	Leaving   string  // host that the server is being handed over to: it may not be started here
	MovedTo   string  // with PhaseMoved: the host that has it now
	Arriving  int64   // with PhaseIncoming: bytes that its snapshots will take
	Term      uint64  // +1 each time that a host took the server over as its own was lost
	Closed    string  // host that took it over as this one was lost: what is here is never started again
	Want      Power   // running, stopped or suspended: what the server should be when nothing is under way
	Rebooting bool    // a reboot has been accepted and its stop is not finished
	Force     bool    // the stop that is under way does not ask the guest
	Timeout   time.Duration
	Image     Image // as it was when the server was made
	IDs       IDRange
	Links     map[string]Assigned // what was decided for each of Spec.Network
	// AppliedLinks belong to Applied as Links to Spec.
	AppliedLinks map[string]Assigned
	Generation   uint64
	Created      time.Time
	Started      time.Time
	Booted       bool // the first start's preparation is done and handed over
	Operation    Operation
	Messages     []Message
}

// Phase is what has to become of a record.
type Phase string

// Restore is a snapshot that is to be put back in place of the disk; the zero value is none.
type Restore struct {
	Snapshot string
	Safety   string // id of the snapshot that is taken before
}

// The phases of a record.
const (
	// PhaseIncoming is a server that is on its way here: everything is promised to it and
	// nothing is done for it, until Accept or Abandon.
	PhaseIncoming Phase = "incoming"
	PhaseCreate   Phase = "create" // being made for the first time; a failure takes all back
	PhaseLive     Phase = "live"   // exists; a failure leaves it as near to what it was as can be
	PhaseUndo     Phase = "undo"   // its creation failed: everything but the record goes
	PhaseFailed   Phase = "failed" // its creation failed and nothing is left but this record
	PhaseDelete   Phase = "delete" // everything goes, the record last
	PhaseMoved    Phase = "moved"  // another host has it: everything goes here
)

// Assigned is what was decided for one interface.
type Assigned struct {
	NetworkID string
	Address   netip.Addr
	MAC       string
}

// Image is what a server needs to know of its image.
type Image struct {
	ID   string
	Size int64 // smallest disk
	Init []string
	Env  []string
	Dir  string
}

const maxMessages = 20

// say adds a message, dropping the oldest beyond a bound.
func (r *Record) say(now time.Time, text string) {
	r.Messages = append(r.Messages, Message{Time: now.UTC(), Text: text})
	if n := len(r.Messages) - maxMessages; n > 0 {
		r.Messages = slices.Delete(r.Messages, 0, n)
	}
}

// clone is a copy that shares nothing that can be written through.
func (r Record) clone() Record {
	r.Spec, r.Applied = r.Spec.clone(), r.Applied.clone()
	r.Links, r.AppliedLinks = maps.Clone(r.Links), maps.Clone(r.AppliedLinks)
	r.Messages = slices.Clone(r.Messages)
	return r
}

// undone: nothing is left of a creation that failed.
func (r *Record) undone() {
	r.Phase, r.Spec.FirstBoot.UserData, r.Operation.Done = PhaseFailed, "", true
}

// holds is the spec that admission of others must count: while a change is under way that
// can still fail, the larger of what was and what is to be, so that falling back is always possible.
func (r Record) holds() Spec {
	s, was := r.Spec, r.Applied
	s.CPU.MilliCores = max(s.CPU.MilliCores, was.CPU.MilliCores)
	s.Memory.Max = max(s.Memory.Max, was.Memory.Max)
	s.Disk.Size = max(s.Disk.Size, was.Disk.Size) + r.Arriving
	return s
}

// assigned are all addresses the server holds: its own, and those it may fall back to.
func (r Record) assigned() []Assigned {
	return append(slices.Collect(maps.Values(r.Links)), slices.Collect(maps.Values(r.AppliedLinks))...)
}

// clone is a copy that shares nothing that can be written through; empty collections are
// nil in it, so that equal specs are deeply equal.
func (s Spec) clone() Spec {
	s.Labels = cloneMap(s.Labels)
	s.DNS.Servers, s.DNS.Search = cloneSlice(s.DNS.Servers), cloneSlice(s.DNS.Search)
	s.SnapshotPolicy.On = cloneSlice(s.SnapshotPolicy.On)
	nics := cloneMap(s.Network)
	for k, n := range nics {
		n.Publish = cloneMap(n.Publish)
		n.Allow = cloneSlice(n.Allow)
		nics[k] = n
	}
	s.Network = nics
	return s
}

func cloneMap[M ~map[K]V, K comparable, V any](m M) M {
	if len(m) == 0 {
		return nil
	}
	return maps.Clone(m)
}

func cloneSlice[S ~[]E, E any](s S) S {
	if len(s) == 0 {
		return nil
	}
	return slices.Clone(s)
}
