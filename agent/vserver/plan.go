package vserver

// Step is one thing the manager does for a server. Every step may run twice.
type Step string

// The steps, each one edge call (or one write of the record).
const (
	StepDiskCreate    Step = "disk.create"
	StepDiskGrow      Step = "disk.grow"
	StepDiskAttach    Step = "disk.attach"
	StepLimits        Step = "limits.set"
	StepPrepare       Step = "prepare"
	StepRunCreate     Step = "runtime.create"
	StepNetwork       Step = "network.set"
	StepRunStart      Step = "runtime.start"
	StepFreeze        Step = "freeze"
	StepThaw          Step = "thaw"
	StepShutdown      Step = "shutdown"
	StepKill          Step = "kill"
	StepRunDelete     Step = "runtime.delete"
	StepNetworkRemove Step = "network.remove"
	StepLimitsRemove  Step = "limits.remove"
	StepDiskDetach    Step = "disk.detach"
	StepDiskRemove    Step = "disk.remove"
	StepRestart       Step = "restart" // the stop of a reboot is done: forget that it was asked
	StepSnapshotKeep  Step = "snapshot.keep"
	StepDiskRestore   Step = "disk.restore"
	StepRestored      Step = "restored" // a restore in place is done: forget that it was asked
	StepSnapshotsGone Step = "snapshots.gone"
	StepForget        Step = "forget" // the record goes
)

// Steps are all steps there are, in no order that matters. Tests that kill the agent walk it.
func Steps() []Step {
	return []Step{
		StepDiskCreate, StepDiskGrow, StepDiskAttach, StepLimits, StepPrepare, StepRunCreate, StepNetwork, StepRunStart,
		StepFreeze, StepThaw, StepShutdown, StepKill, StepRunDelete, StepNetworkRemove, StepLimitsRemove, StepDiskDetach,
		StepDiskRemove, StepRestart, StepSnapshotKeep, StepDiskRestore, StepRestored, StepSnapshotsGone, StepForget,
	}
}

// Have is what is there of one server, as the edges tell.
type Have struct {
	Disk  *DiskInfo
	Group *GroupInfo
	Run   *Running
	Links bool
	// Verified: limits and links were set by this agent since it started, to what
	// Record.Applied says. After a start nothing is verified.
	Verified bool
}

func (h Have) running() bool { return h.Run != nil && h.Run.Status == RunRunning }
func (h Have) frozen() bool  { return h.Group != nil && h.Group.Frozen }

// Plan says what is left to do for a server: from what is there to what its record wants.
// It is empty exactly when there is nothing left to do. Carried out to the end it leads to
// a state for which it is empty; broken off anywhere, a new Plan finishes the work.
func Plan(r Record, h Have) []Step {
	switch r.Phase {
	case PhaseDelete:
		return append(planGone(r, h), StepSnapshotsGone, StepForget)
	case PhaseMoved:
		return append(planGone(r, h), StepForget)
	case PhaseUndo:
		return planGone(r, h)
	case PhaseFailed, PhaseIncoming:
		return nil
	}
	if r.Leaving != "" || r.Closed != "" {
		return planStopped(r, h)
	}
	if r.Restore.Snapshot != "" {
		return planRestore(r, h)
	}
	if r.Rebooting {
		return append(planStopped(r, h), append([]Step{StepRestart}, planUp(r, halfDown(h))...)...)
	}
	switch r.Want {
	case PowerStopped:
		return planStopped(r, h)
	case PowerSuspended:
		if h.running() && h.frozen() {
			return planLive(r, h)
		}
		return append(planUp(r, h), StepFreeze)
	default:
		if h.running() {
			if h.frozen() {
				return append(planLive(r, h), StepThaw)
			}
			return planLive(r, h)
		}
		return planUp(r, h)
	}
}

// planRestore stops the server, keeps what it has, puts the snapshot in place of it, and
// leads to what is wanted. A disk that is lost is no obstacle.
func planRestore(r Record, h Have) []Step {
	s := planDown(r, h)
	if h.Disk != nil && h.Disk.Attached {
		s = append(s, StepDiskDetach)
	}
	if h.Disk != nil {
		s = append(s, StepSnapshotKeep)
	}
	s = append(s, StepDiskRestore, StepRestored)
	if r.Want == PowerStopped {
		return s
	}
	s = append(s, planUp(r, Have{Disk: &DiskInfo{Size: r.Spec.Disk.Size}})...)
	if r.Want == PowerSuspended {
		s = append(s, StepFreeze)
	}
	return s
}

// halfDown is what a reboot's stop leaves: the disk stays attached, the group stays.
func halfDown(h Have) Have {
	h.Run, h.Links = nil, false
	if h.Group != nil {
		g := *h.Group
		g.Frozen = false
		h.Group = &g
	}
	if h.Disk != nil {
		d := *h.Disk
		d.Attached = false
		h.Disk = &d
	}
	return h
}

// planUp leads to a running server from anything less.
func planUp(r Record, h Have) []Step {
	if h.running() {
		return planLive(r, h)
	}
	var s []Step
	if h.Run != nil { // created but not started, or ended: begin anew, its first process may be stale
		s = append(s, StepRunDelete)
	}
	s = append(s, planDisk(r, h)...)
	if h.Disk == nil || !h.Disk.Attached {
		s = append(s, StepDiskAttach)
	}
	s = append(s, StepLimits)
	if h.frozen() {
		s = append(s, StepThaw)
	}
	return append(s, StepPrepare, StepRunCreate, StepNetwork, StepRunStart)
}

// planLive brings a running server's limits, links and disk in line with its record.
func planLive(r Record, h Have) []Step {
	var s []Step
	changed := func(differs bool) bool { return differs || !h.Verified }
	old, now := r.Applied, r.Spec
	if changed(!sameLimits(old, now)) || h.Group == nil {
		s = append(s, StepLimits)
	}
	if changed(!sameLinks(old, now)) || !h.Links {
		s = append(s, StepNetwork)
	}
	if !sameFiles(old, now) {
		s = append(s, StepPrepare)
	}
	return append(s, planDisk(r, h)...)
}

// planDisk makes the disk exist with its size.
func planDisk(r Record, h Have) []Step {
	switch {
	case h.Disk == nil:
		return []Step{StepDiskCreate}
	case h.Disk.Size < r.Spec.Disk.Size:
		return []Step{StepDiskGrow}
	}
	return nil
}

// planStopped leads to a server of which only the disk is left, complete and detached.
func planStopped(r Record, h Have) []Step {
	s := planDown(r, h)
	s = append(s, planDisk(r, h)...)
	if h.Disk != nil && h.Disk.Attached {
		s = append(s, StepDiskDetach)
	}
	return s
}

// planDown ends what runs and takes its links and group away.
func planDown(r Record, h Have) []Step {
	var s []Step
	if h.running() {
		if h.frozen() {
			if r.Force {
				s = append(s, StepKill)
			} else {
				s = append(s, StepThaw, StepShutdown)
			}
		} else if r.Force {
			s = append(s, StepKill)
		} else {
			s = append(s, StepShutdown)
		}
	}
	if h.Links {
		s = append(s, StepNetworkRemove)
	}
	if h.Run != nil {
		s = append(s, StepRunDelete)
	}
	if h.Group != nil {
		s = append(s, StepLimitsRemove)
	}
	return s
}

// planGone removes everything but the record.
func planGone(r Record, h Have) []Step {
	s := planDown(r, h)
	if h.Disk != nil {
		s = append(s, StepDiskRemove)
	}
	return s
}

// sameLimits: nothing differs that limits.set carries.
func sameLimits(a, b Spec) bool {
	rates := func(d Disk) Disk { d.Size = 0; return d }
	return a.CPU == b.CPU && a.Memory == b.Memory && a.Processes == b.Processes && rates(a.Disk) == rates(b.Disk)
}

// sameLinks: nothing differs that network.set carries.
func sameLinks(a, b Spec) bool {
	if len(a.Network) != len(b.Network) {
		return false
	}
	for name, x := range a.Network {
		y, ok := b.Network[name]
		if !ok || !sameNIC(x, y) {
			return false
		}
	}
	return true
}

func sameNIC(x, y NIC) bool {
	if x.Network != y.Network || x.Address != y.Address || x.Ingress != y.Ingress || x.Egress != y.Egress ||
		x.Filtered != y.Filtered || len(x.Publish) != len(y.Publish) || len(x.Allow) != len(y.Allow) {
		return false
	}
	for k, p := range x.Publish {
		if y.Publish[k] != p {
			return false
		}
	}
	for i := range x.Allow {
		if x.Allow[i] != y.Allow[i] {
			return false
		}
	}
	return true
}

// sameFiles: nothing differs that prepare writes.
func sameFiles(a, b Spec) bool {
	return a.Hostname == b.Hostname && a.Name == b.Name && a.Timezone == b.Timezone && equalStrings(a.DNS.Servers, b.DNS.Servers) && equalStrings(a.DNS.Search, b.DNS.Search)
}

func equalStrings(a, b []string) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if a[i] != b[i] {
			return false
		}
	}
	return true
}
