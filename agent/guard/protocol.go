package guard

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
)

// One request per connection, one line of JSON each way; watch answers with a line for each
// change. The guard may be older than the agent, so fields are only ever added.
//
//	state            what is there                               → {state}
//	watch            now and after each change, until closed     → {state} …
//	start            run it, by guard.json as it is now          → {state} when it runs, or failed to
//	stop seconds     fast shutdown, then force after so long     → {state} when nothing is left
//	restart seconds  both                                        → {state}
//	signal n         to the first process of postgres            → {state}
//	fence            end everything and the guard, at once       → the connection ends
//	quit seconds     stop, then the guard ends too               → {state}
const (
	opState   = "state"
	opWatch   = "watch"
	opStart   = "start"
	opStop    = "stop"
	opRestart = "restart"
	opSignal  = "signal"
	opFence   = "fence"
	opQuit    = "quit"
)

const (
	version = 1
	maxLine = 1 << 16
)

type request struct {
	Op      string  `json:"op"`
	Seconds float64 `json:"seconds,omitempty"`
	Signal  int     `json:"signal,omitempty"`
}

func (r request) timeout() time.Duration { return time.Duration(r.Seconds * float64(time.Second)) }

type response struct {
	Version int        `json:"version,omitempty"`
	State   State      `json:"state"`
	Error   string     `json:"error,omitempty"`
	Kind    fault.Kind `json:"kind,omitempty"`
}

func (r response) err() error {
	if r.Error == "" {
		return nil
	}
	return fault.Wrap(r.Kind, errors.New(r.Error))
}

// Phase is how far a guard is with its database.
type Phase string

// The phases.
//
//	stopped ──start──▶ starting ──▶ running ──stop──▶ stopping ──▶ stopped
//	                      ▲            │ended by itself
//	                      └── waiting ◀┘
const (
	Stopped  Phase = "stopped"
	Starting Phase = "starting"
	Running  Phase = "running" // the program runs; whether postgres answers is another's to ask
	Stopping Phase = "stopping"
	Waiting  Phase = "waiting" // it ended by itself, or could not be started, and will be started again
)

// State is what a guard says of its database.
type State struct {
	ID       string    `json:"id"`
	Phase    Phase     `json:"phase"`
	PID      int       `json:"pid,omitempty"`      // of process 1 of its namespace, as the host counts
	Started  time.Time `json:"started,omitzero"`   // of the run that runs
	Argv     []string  `json:"argv,omitempty"`     // what it runs
	Starts   int       `json:"starts,omitempty"`   // since the guard began
	Failures int       `json:"failures,omitempty"` // in a row
	Last     string    `json:"last,omitempty"`     // how the last run ended, or why it did not begin
}

// inside is a message to the process in the server.
type inside struct {
	Program *Program `json:"program,omitempty"` // first: run this
	Signal  int      `json:"signal,omitempty"`  // then: pass this on
}

// outside is a message from it: first an empty one, then whether the program was started.
type outside struct {
	Started bool   `json:"started,omitempty"`
	Error   string `json:"error,omitempty"`
}

func writeLine(w io.Writer, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encode message: %w", err)
	}
	if _, err := w.Write(append(b, '\n')); err != nil {
		return fmt.Errorf("send message: %w", err)
	}
	return nil
}

// lines reads messages, none longer than maxLine.
func lines(r io.Reader) *bufio.Reader { return bufio.NewReaderSize(r, maxLine) }

func readLine(r *bufio.Reader, v any) error {
	b, err := r.ReadSlice('\n')
	if err != nil {
		return fmt.Errorf("read message: %w", err)
	}
	if err := json.Unmarshal(b, v); err != nil {
		return fmt.Errorf("read message: %w", err)
	}
	return nil
}
