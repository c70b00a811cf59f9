package peers

import (
	"encoding/json"

	"github.com/reflejo/terraform-provider-reflejo/agent/backup"
	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
)

// The frames of a connection for backups; see the package's doc.
const (
	typeCall   = 16
	typeData   = 17
	typeCommit = 18
	typeClose  = 19
	typeAnswer = 20
)

// Bounds.
const (
	maxText  = 256 << 10 // bytes of a call or an answer: two notes of 64 KiB fit in, as JSON
	maxData  = 1 << 20   // bytes of a file in a frame
	maxFiles = 1000      // in an answer
	maxList  = 100_000   // files in all answers to a call: a target lists no more
)

// The methods of a target.
const (
	methodAppend = "append"
	methodOpen   = "open"
	methodList   = "list"
	methodDelete = "delete"
	methodLoad   = "load"
	methodSwap   = "swap"
)

// call is one call of a target's method.
type call struct {
	Method string `json:"method"`
	Server string `json:"server"`           // id; "" in list means all
	Backup string `json:"backup,omitempty"` // id
	Offset int64  `json:"offset,omitempty"` // of open, bytes
	Most   int64  `json:"most,omitempty"`   // of append, bytes
	Old    []byte `json:"old"`              // of swap; null: there is none, which is not the same as an empty one
	Note   []byte `json:"note,omitempty"`   // of swap
}

func (c call) ref() backup.Ref { return backup.Ref{Server: c.Server, Backup: c.Backup} }

func (c call) encode() ([]byte, error) {
	b, err := json.Marshal(c)
	if err != nil {
		return nil, fault.New(fault.Internal, "encode call: %w", err)
	}
	if len(b) > maxText {
		return nil, fault.New(fault.Invalid, "call %s of a backup store: %d bytes, at most %d can be sent", c.Method, len(b), maxText)
	}
	return b, nil
}

// decodeCall is encode's mirror image. What ids and notes may be is the target's to say.
func decodeCall(b []byte) (call, error) {
	var c call
	if len(b) > maxText {
		return c, fault.New(fault.Invalid, "read call: %d bytes, at most %d are allowed", len(b), maxText)
	}
	if err := json.Unmarshal(b, &c); err != nil {
		return c, fault.New(fault.Invalid, "read call: %w", err)
	}
	if c.Offset < 0 || c.Most < 0 {
		return c, fault.New(fault.Invalid, "read call: offset %d and most %d must not be negative", c.Offset, c.Most)
	}
	return c, nil
}

// answer is what a store says.
type answer struct {
	State *backup.State `json:"state,omitempty"` // of append
	Files []backup.File `json:"files,omitempty"` // of list
	More  bool          `json:"more,omitempty"`  // another answer with files follows
	Note  []byte        `json:"note,omitempty"`  // of load
}

func (a answer) encode() ([]byte, error) {
	b, err := json.Marshal(a)
	if err != nil {
		return nil, fault.New(fault.Internal, "encode answer: %w", err)
	}
	if len(b) > maxText {
		return nil, fault.New(fault.Internal, "encode answer: %d bytes, at most %d can be sent", len(b), maxText)
	}
	return b, nil
}

// decodeAnswer is encode's mirror image.
func decodeAnswer(b []byte) (answer, error) {
	var a answer
	if len(b) > maxText {
		return a, fault.New(fault.Internal, "read answer: %d bytes, at most %d are allowed", len(b), maxText)
	}
	if err := json.Unmarshal(b, &a); err != nil {
		return a, fault.New(fault.Internal, "read answer: %w", err)
	}
	if len(a.Files) > maxFiles || a.More && len(a.Files) == 0 {
		return a, fault.New(fault.Internal, "read answer: it has %d files, want 1 … %d", len(a.Files), maxFiles)
	}
	if s := a.State; s != nil && min(s.Next, s.Totals.Frames, s.Totals.Data, s.Totals.Zeros, s.Totals.Bytes) < 0 {
		return a, fault.New(fault.Internal, "read answer: a file's state has negative numbers")
	}
	return a, nil
}
