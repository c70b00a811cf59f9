package service

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strconv"
	"sync"
	"time"
)

// Bounds of the audit log: the file and this many older ones, each of this size.
const (
	auditSize = 16 << 20
	auditKeep = 4
)

// Entry is one line of the audit log.
type Entry struct {
	Time    time.Time `json:"time"`
	Who     string    `json:"who"`              // reflejo://operator/ci
	From    string    `json:"from"`             // address and port
	What    string    `json:"what"`             // "ServerService/CreateServer"
	ID      string    `json:"id,omitempty"`     // of the object, as asked
	Name    string    `json:"name,omitempty"`   // of the object, as asked
	Detail  string    `json:"detail,omitempty"` // a power action, a program's path, an image's source
	Outcome string    `json:"outcome"`          // "ok", an error's code, or "begun" for what goes on for long
	Error   string    `json:"error,omitempty"`
	Millis  int64     `json:"ms"`
}

// Audit is the log of who changed what: one JSON object per line, kept within
// (auditKeep + 1) × auditSize bytes. Lines are handed to the kernel at once, so they outlive
// the agent, but not a power cut of the same second. It is safe for several goroutines.
type Audit struct {
	path string
	max  int64

	mu   sync.Mutex
	file *os.File
	size int64
}

// OpenAudit opens the log (mode 0600) for appending.
func OpenAudit(path string) (*Audit, error) { return openAudit(path, auditSize) }

func openAudit(path string, max int64) (*Audit, error) {
	a := &Audit{path: path, max: max}
	if err := a.open(); err != nil {
		return nil, err
	}
	return a, nil
}

// Write appends an entry. On failure the entry is lost and the next one is tried anew.
func (a *Audit) Write(e Entry) error {
	line, err := json.Marshal(e)
	if err != nil {
		return fmt.Errorf("write audit log: %w", err)
	}
	line = append(line, '\n')
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.file == nil || a.size+int64(len(line)) > a.max {
		if err := a.rotate(); err != nil {
			return err
		}
	}
	n, err := a.file.Write(line)
	a.size += int64(n)
	if err != nil {
		return fmt.Errorf("write audit log: %w", err)
	}
	return nil
}

// Close closes the file.
func (a *Audit) Close() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.file == nil {
		return nil
	}
	err := a.file.Close()
	a.file = nil
	return err
}

// rotate moves path to path.1, path.1 to path.2 and so on; the oldest is replaced.
func (a *Audit) rotate() error {
	if a.file != nil {
		a.file.Close()
		a.file = nil
	}
	if info, err := os.Stat(a.path); err == nil && info.Size() > 0 {
		for i := auditKeep; i >= 1; i-- {
			from := a.path
			if i > 1 {
				from += "." + strconv.Itoa(i-1)
			}
			if err := os.Rename(from, a.path+"."+strconv.Itoa(i)); err != nil && !errors.Is(err, os.ErrNotExist) {
				return fmt.Errorf("rotate audit log: %w", err)
			}
		}
	}
	return a.open()
}

func (a *Audit) open() error {
	file, err := os.OpenFile(a.path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("open audit log: %w", err)
	}
	info, err := file.Stat()
	if err != nil {
		file.Close()
		return fmt.Errorf("open audit log: %w", err)
	}
	a.file, a.size = file, info.Size()
	return nil
}
