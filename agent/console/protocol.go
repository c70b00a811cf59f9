package console

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
)

// One request per connection, one line of JSON each way. The keeper may be older than
// the agent, so fields are only ever added.
//
//	hello                  is the keeper there?                 → {version}
//	expect id              listen for the master of id          → {path}
//	accept id seconds      wait until it came                   → {} + master descriptor
//	adopt id + descriptor  take a master that the agent held    → {}
//	fetch id               a descriptor of the master           → {} + master descriptor
//	list                   ids with a master                    → {ids}
//	join id rows cols      then raw bytes both ways             → {}
//	resize id rows cols    set the window                       → {}
//	forget id              close the master, stop expecting     → {}
const (
	opHello  = "hello"
	opExpect = "expect"
	opAccept = "accept"
	opAdopt  = "adopt"
	opFetch  = "fetch"
	opList   = "list"
	opJoin   = "join"
	opResize = "resize"
	opForget = "forget"
)

const (
	version     = 1
	maxLine     = 1 << 16 // a list of 1,000 ids is 39 kB
	maxIDLength = 64
	expectLimit = time.Minute // longest wait for a master
)

type request struct {
	Op      string `json:"op"`
	ID      string `json:"id,omitempty"`
	Seconds int    `json:"seconds,omitempty"`
	Rows    uint16 `json:"rows,omitempty"`
	Columns uint16 `json:"columns,omitempty"`
}

type response struct {
	Version int        `json:"version,omitempty"`
	Path    string     `json:"path,omitempty"`
	IDs     []string   `json:"ids,omitempty"`
	Error   string     `json:"error,omitempty"`
	Kind    fault.Kind `json:"kind,omitempty"`
}

func (r response) err() error {
	if r.Error == "" {
		return nil
	}
	return fault.Wrap(r.Kind, errors.New(r.Error))
}

func failure(err error) response { return response{Error: err.Error(), Kind: fault.KindOf(err)} }

// encode is one line.
func encode(v any) ([]byte, error) {
	b, err := json.Marshal(v)
	if err != nil {
		return nil, fmt.Errorf("encode message: %w", err)
	}
	if len(b) >= maxLine {
		return nil, fmt.Errorf("encode message: longer than %d bytes", maxLine)
	}
	return append(b, '\n'), nil
}

// readLine reads up to a newline and not a byte further: raw bytes may follow.
func readLine(r io.Reader, already []byte) ([]byte, error) {
	line := append([]byte(nil), already...)
	var one [1]byte
	for len(line) == 0 || line[len(line)-1] != '\n' {
		if len(line) >= maxLine {
			return nil, fmt.Errorf("read message: longer than %d bytes", maxLine)
		}
		if _, err := io.ReadFull(r, one[:]); err != nil {
			return nil, fmt.Errorf("read message: %w", err)
		}
		line = append(line, one[0])
	}
	return line, nil
}

// ValidID reports whether id can name a file: what the keeper accepts.
func ValidID(id string) bool {
	if id == "" || len(id) > maxIDLength {
		return false
	}
	for _, c := range id {
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' {
			return false
		}
	}
	return true
}
