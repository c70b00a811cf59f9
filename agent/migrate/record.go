package migrate

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
	"github.com/reflejo/terraform-provider-reflejo/agent/snapshot"
	"github.com/reflejo/terraform-provider-reflejo/agent/vserver"
)

// ticketLife is for how long a ticket is good, and a target keeps what it was not told
// more of.
const ticketLife = time.Hour

// doneLife is for how long a source remembers where a server went.
const doneLife = 30 * 24 * time.Hour

// outgoing is what is durable about a move at its source; its key is the server's id.
type outgoing struct {
	Server, Name string // id and name
	Move         string // the target's id of the move
	Target       string // host
	Endpoint     string // its address and port
	Secret       []byte
	Settings     vserver.Migration
	Phase        SourcePhase
	Term         uint64    // with SourceReclaims: in which it is this host's again
	Progressed   time.Time // when the target last acknowledged something

	Base  string   // the snapshot that the target has, "" for none
	Taken string   // a migration snapshot that it may not have yet
	Mine  []string // migration snapshots that there may be
	Final string   // the round that was, or is to be, sent from the disk itself
	// Dirty covers what such a round may have written at the target: it can differ there
	// from Base even where the disk does not.
	Dirty []snapshot.Range
	Kept  []string // snapshots that are at the target
	Links map[string]vserver.Assigned
	Err   string // of the last attempt
}

// incoming is what is durable about a move at its target; its key is the move's id, which
// is the arrival's too.
type incoming struct {
	Move, Server, Name string
	Source             string // host
	Phase              TargetPhase
	Hash               [sha256.Size]byte // of the ticket's secret
	Expires            time.Time
	SnapshotBytes      int64
	Opened             bool // the source has described the server itself
	Accepted           bool // after owner: the server lives here; from now on the record only answers

	Size    int64    // of the arrival, 0 before there is one
	Base    string   // the newest round that is complete and durable
	Round   string   // the one under way: the arrival is between Base and it
	Through int64    // of which all below this offset is durable
	Kept    []string // snapshots
}

// complete reports whether the arrival is what the source sent in this round.
func (r incoming) complete(round string) bool {
	return round != "" && r.Base == round && r.Round == ""
}

const ticketPrefix = "rm1."

// newSecret makes a ticket's secret.
func newSecret() []byte {
	b := make([]byte, 32)
	_, _ = rand.Read(b) // never fails
	return b
}

// encodeTicket is a ticket as people carry it.
func encodeTicket(move string, secret []byte) string {
	id := uuid.MustParse(move)
	return ticketPrefix + base64.RawURLEncoding.EncodeToString(append(id[:], secret...))
}

// decodeTicket reads a ticket.
func decodeTicket(text string) (move string, secret []byte, err error) {
	rest, ok := strings.CutPrefix(text, ticketPrefix)
	b, bad := base64.RawURLEncoding.DecodeString(rest)
	if !ok || bad != nil || len(b) != 16+32 {
		return "", nil, fault.Field("ticket", "this is no ticket of PrepareMigration")
	}
	return uuid.UUID(b[:16]).String(), b[16:], nil
}

func (r incoming) accepts(secret []byte) bool {
	sum := sha256.Sum256(secret)
	return subtle.ConstantTimeCompare(sum[:], r.Hash[:]) == 1
}
