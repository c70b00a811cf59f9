package vserver

import "time"

// View is a server as callers see it: a copy that nobody else holds.
type View struct {
	Spec       Spec // as stored; FirstBoot.UserData is empty
	State      State
	Created    time.Time
	Started    time.Time // last start; zero if not running
	NICs       map[string]NICView
	DiskUsed   int64
	Operation  Operation
	Generation uint64 // of the spec, +1 per accepted change
	Messages   []Message
	Gone       bool   // last view of a server that was deleted or has moved
	MovedTo    string // with Gone: the host that has it now, "" if it was deleted
	Leaving    string // the host that it is being handed over to: it may not run here until that is decided
}

// NICView is what was decided for one interface.
type NICView struct {
	Address   string // with prefix length
	MAC       string
	NetworkID string
}

// Operation is the operation under way, or the last one if it failed; the zero value
// means nothing is under way and the last one succeeded.
type Operation struct {
	Kind       string // create, update, start, stop, suspend, resume, reboot, delete, snapshot, restore, migrate
	Step       string
	Index      int // of Step, from 1
	Steps      int
	BytesDone  int64 // of a long step; 0 of 0 where nothing is counted
	BytesTotal int64
	Started    time.Time
	Err        string
	ErrKind    string // fault kind in words
	Field      string // the attribute to blame, "" if none is
	Done       bool
}

// Settled reports whether nothing is under way.
func (o Operation) Settled() bool { return o.Kind == "" || o.Done }

// Message is something that happened to a server by itself.
type Message struct {
	Time time.Time
	Text string
}

// PowerAction is a one-time change of power.
type PowerAction string

// The power actions.
const (
	ActionStart   PowerAction = "start"
	ActionStop    PowerAction = "stop"
	ActionKill    PowerAction = "kill"
	ActionSuspend PowerAction = "suspend"
	ActionResume  PowerAction = "resume"
	ActionReboot  PowerAction = "reboot"
)

// Resources are amounts that are promised to servers.
type Resources struct {
	MilliCores int64
	Memory     int64 // bytes
	Disk       int64 // bytes
	Ingress    int64 // bits per second
	Egress     int64
}
