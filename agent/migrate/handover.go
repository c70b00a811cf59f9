package migrate

// SourcePhase is how far the side is that has the server first; see the package comment.
type SourcePhase string

// The phases of the source.
const (
	SourceCopying  SourcePhase = "copying"
	SourceHandover SourcePhase = "handover" // may not start the server by itself
	SourceMoved    SourcePhase = "moved"    // the target has it; what is here goes
	SourceDone     SourcePhase = "done"     // only says where the server went
	SourceReclaims SourcePhase = "reclaims" // the target is lost for good: the server is this host's again
)

// TargetPhase is how far the side is that gets the server; it is what the target answers.
type TargetPhase string

// The phases of the target.
const (
	TargetUnknown    TargetPhase = "" // no record: it will never take over by this move
	TargetIncoming   TargetPhase = "incoming"
	TargetOwner      TargetPhase = "owner"
	TargetForgetting TargetPhase = "forgetting" // never answered: it is as unknown
)

// Ask is what the source wants of the target's record.
type Ask string

// What can be asked.
const (
	AskStatus Ask = "status"
	AskCommit Ask = "commit" // take the server over
	AskAbort  Ask = "abort"  // forget the move, unless it was taken over
	AskKnown  Ask = "known"  // the source knows that the target has it
)

// targetNext decides what becomes of the target's record when it is asked. The answer is
// the next phase, given when it is durable; forgetting is answered as unknown.
func targetNext(phase TargetPhase, complete bool, ask Ask) TargetPhase {
	switch {
	case phase == TargetIncoming && ask == AskCommit && complete:
		return TargetOwner
	case phase == TargetIncoming && ask == AskAbort:
		return TargetForgetting
	case phase == TargetOwner && ask == AskKnown:
		return TargetUnknown
	}
	return phase
}

// answered is a phase as the other side hears it.
func answered(phase TargetPhase) TargetPhase {
	if phase == TargetForgetting {
		return TargetUnknown
	}
	return phase
}

// sourceStep is what the source does next.
type sourceStep string

const (
	stepCopy     sourceStep = "copy"      // go on with copying
	stepAskAgain sourceStep = "ask"       // commit, or abort where it gave up
	stepTakeBack sourceStep = "take back" // record copying, then the server may start here
	stepRelease  sourceStep = "release"   // record moved, remove what is here
	stepDone     sourceStep = "done"      // the target knows that this side knows
	stepLost     sourceStep = "lost"      // copying, but the target has forgotten the move
	stepBroken   sourceStep = "broken"    // can't be: leave everything as it is
)

// sourceNext decides what the source does about an answer.
func sourceNext(phase SourcePhase, heard TargetPhase) sourceStep {
	switch phase {
	case SourceCopying:
		switch heard {
		case TargetIncoming:
			return stepCopy
		case TargetUnknown:
			return stepLost
		}
	case SourceHandover:
		switch heard {
		case TargetIncoming:
			return stepAskAgain
		case TargetOwner:
			return stepRelease
		case TargetUnknown:
			return stepTakeBack
		}
	case SourceMoved:
		switch heard {
		case TargetOwner:
			return stepAskAgain
		case TargetUnknown:
			return stepDone
		}
	}
	return stepBroken
}

// sourceAsks is what the source asks in a phase.
func sourceAsks(phase SourcePhase, gaveUp bool) Ask {
	switch {
	case phase == SourceMoved:
		return AskKnown
	case phase == SourceHandover && gaveUp:
		return AskAbort
	case phase == SourceHandover:
		return AskCommit
	case gaveUp:
		return AskAbort
	}
	return AskStatus
}
