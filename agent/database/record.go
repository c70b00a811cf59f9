package database

import (
	"time"

	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
	"github.com/reflejo/terraform-provider-reflejo/agent/vserver"
)

// Record is all that is durable about a database. It says what is wanted; what is there is
// asked of the edges. A record is persisted before anything is done for it.
type Record struct {
	Spec       Spec // without the password
	Applied    Spec // the last spec that was carried out whole; what a failed update falls back to
	Phase      Phase
	Major      int
	Identity   string // the cluster's system identifier; "" before it is made
	Secret     string // proves the owner's password, as PostgreSQL keeps it
	Admin      string // password of the agent's own role
	Generation uint64
	Created    time.Time
	Operation  vserver.Operation
	Messages   []vserver.Message
}

// Phase is what has to become of a record.
type Phase string

// The phases.
const (
	PhaseCreate Phase = "create" // being made for the first time; a failure takes all back
	PhaseLive   Phase = "live"   // exists
	PhaseUndo   Phase = "undo"   // its creation failed: everything but the record goes
	PhaseFailed Phase = "failed" // its creation failed and nothing is left but this record
	PhaseDelete Phase = "delete" // everything goes, the record last
)

const maxMessages = 20

func (r *Record) say(now time.Time, text string) {
	if n := len(r.Messages); n > 0 && r.Messages[n-1].Text == text {
		return
	}
	r.Messages = append(r.Messages, vserver.Message{Time: now.UTC(), Text: text})
	if n := len(r.Messages) - maxMessages; n > 0 {
		r.Messages = r.Messages[n:]
	}
}

func (r Record) clone() Record {
	r.Spec, r.Applied = r.Spec.clone(), r.Applied.clone()
	r.Messages = append([]vserver.Message(nil), r.Messages...)
	return r
}

func fail(o *vserver.Operation, err error) {
	o.Done, o.Err, o.ErrKind, o.Field = true, err.Error(), fault.KindOf(err).String(), fault.FieldOf(err)
}

// cluster is the record as the edge takes it.
func (r Record) cluster() Cluster {
	s := r.Spec
	return Cluster{ID: s.ID, Name: s.Name, Server: s.Server, Major: r.Major, Port: s.Port, Identity: r.Identity, Owner: s.Owner,
		Secret: r.Secret, Admin: r.Admin, Parameters: s.Parameters, Clients: s.Clients}
}

// port is the record as the filter takes it.
func (r Record) port() Port {
	return Port{ID: r.Spec.ID, Server: r.Spec.Server, Number: r.Spec.Port, From: r.Spec.Clients.CIDRs}
}

// State is what a database is right now, as people see it.
type State string

// The states.
const (
	StateCreating State = "creating"
	StateRunning  State = "running"
	StateStopped  State = "stopped" // its server does not run
	StateFailed   State = "failed"  // its creation failed, or it does not run although its server does
	StateDeleting State = "deleting"
)

// View is a database as callers see it: a copy that nobody else holds. The password and what
// proves it are not in it.
type View struct {
	Spec       Spec
	State      State
	Major      int
	Identity   string
	Started    time.Time
	Created    time.Time
	Generation uint64
	Operation  vserver.Operation
	Messages   []vserver.Message
	Gone       bool // last view of one that was deleted
}
