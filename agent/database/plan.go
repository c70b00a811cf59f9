package database

// Step is one thing the manager does for a database. Every step may run twice.
type Step string

// The steps, each one edge call (or one write of the record).
const (
	StepPortClose  Step = "port.close"
	StepCreate     Step = "cluster.create"
	StepRun        Step = "cluster.run"
	StepGrant      Step = "cluster.grant"
	StepPortOpen   Step = "port.open"
	StepStop       Step = "cluster.stop"
	StepRemove     Step = "cluster.remove"
	StepPortRemove Step = "port.remove"
	StepForget     Step = "forget"
)

// Have is what is there of one database.
type Have struct {
	Cluster  Condition
	Server   bool // its server runs
	Frozen   bool // and is suspended: nothing in it answers, and nothing is asked
	Open     bool // its port
	Verified bool // all is as this agent made it, by Record.Spec, since it started
}

// Plan says what is left to do: from what is there to what the record wants. It is empty
// exactly when there is nothing left to do. Carried out to the end it leads to a state for
// which it is empty; broken off anywhere, a new Plan finishes the work.
//
// The port is closed before the first and opened after the last of what could be seen
// through it.
func Plan(r Record, h Have) []Step {
	switch r.Phase {
	case PhaseFailed:
		return nil
	case PhaseUndo:
		return []Step{StepPortClose, StepRemove, StepPortRemove}
	case PhaseDelete:
		return []Step{StepPortClose, StepRemove, StepPortRemove, StepForget}
	}
	var s []Step
	switch {
	case h.Frozen:
		return nil
	case !h.Server:
		if h.Open {
			s = append(s, StepPortClose)
		}
		if h.Cluster.Running {
			s = append(s, StepStop)
		}
		return s
	case h.Cluster.Running && h.Verified && h.Open:
		return nil
	case h.Cluster.Running: // adopted, or changed: it goes on serving
		return []Step{StepRun, StepGrant, StepPortOpen}
	}
	s = append(s, StepPortClose)
	if r.Identity == "" {
		s = append(s, StepCreate)
	}
	return append(s, StepRun, StepGrant, StepPortOpen)
}
