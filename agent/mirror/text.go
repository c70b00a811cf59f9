package mirror

import "fmt"

// name is the text of a value of an enumeration.
func name[T ~uint8](v T, names ...string) string {
	if int(v) < len(names) {
		return names[v]
	}
	return fmt.Sprintf("%T(%d)", v, uint8(v))
}

func (n Node) String() string { return name(n, "nobody", "A", "B", "W") }

func (s Safety) String() string { return name(s, "FULL", "OFF") }

func (r Role) String() string {
	return name(r, "none", "principal", "mirror", "witness", "former")
}

func (p Phase) String() string {
	return name(p, "down", "starting", "promoting", "closed", "serving", "stopping", "stopped")
}

func (s Shown) String() string {
	return name(s, "none", "SUSPENDED", "DISCONNECTED", "SYNCHRONIZING", "PENDING_FAILOVER", "SYNCHRONIZED")
}

func (v Version) String() string { return fmt.Sprintf("%d.%d", v.Seq, v.Conf) }

func (v Verb) String() string {
	return name(v, "nothing", "await", "begin", "safety", "timeout", "witness", "suspend", "resume", "failover", "force", "remove", "replace", "hold")
}

func (k EventKind) String() string {
	return name(k, "boot", "tick", "link up", "link down", "receive", "started", "promoted", "ended", "flushed", "hardened",
		"probed", "log ended", "rejoined", "failed", "health", "operator")
}

func (k MessageKind) String() string {
	return name(k, "hello", "tell", "ping", "echo", "append", "ack", "raise", "ask", "handover", "refuse", "abandon", "invite",
		"want", "forget", "notice")
}

func (k ActionKind) String() string {
	return name(k, "persist", "send", "lease", "start", "promote", "open", "fence", "stop", "acknowledge", "probe", "harden",
		"rejoin", "copy all", "close", "answer", "report")
}

// String is what to tell an operator; the agent adds who and where.
func (r Reason) String() string {
	return name(r, "ok", "not the principal", "not the mirror", "no session", "a session exists", "the mirror does not wait for an invitation",
		"safety is OFF", "not synchronized", "suspended", "partner not connected", "partner still connected", "the witness cannot be reached",
		"the principal's lease may still run", "the copy is being undone", "no witness", "neither mirror nor witness can confirm",
		"another change is under way", "redo is broken", "this node has less log than its mirror")
}

func (c Code) String() string {
	return name(c, "null", "synchronized with witness", "synchronized without witness", "", "", "connection with principal lost",
		"connection with mirror lost", "manual failover", "automatic failover", "suspended", "no quorum", "synchronizing mirror",
		"running exposed", "promotion stopped before the end of the log", "principal has less log than its mirror")
}
