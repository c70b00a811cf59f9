//go:build linux && root

package oci

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"testing"
	"time"
)

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// person is somebody at a console.
type person struct {
	lockedBuffer
	in    *io.PipeReader
	typed *io.PipeWriter
}

func newPerson() *person {
	p := &person{}
	p.in, p.typed = io.Pipe()
	return p
}

func (p *person) Read(b []byte) (int, error) { return p.in.Read(b) }

// say types text and waits until want is on the screen.
func (p *person) say(t *testing.T, text, want string) {
	t.Helper()
	if _, err := io.WriteString(p.typed, text); err != nil {
		t.Fatal(err)
	}
	eventually(t, 10*time.Second, func() error {
		if !strings.Contains(p.String(), want) {
			return fmt.Errorf("no %q on the screen: %q", want, p.String())
		}
		return nil
	})
}

// pid is a running server's init.
func (h *testHost) pid(t *testing.T, id string) int {
	t.Helper()
	all, err := h.List(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range all {
		if s.ID == id {
			return s.Pid
		}
	}
	t.Fatal("no such server")
	return 0
}

// status is a line of /proc/<pid>/status.
func status(t *testing.T, pid int, key string) string {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if strings.HasPrefix(line, key+":") {
			return strings.TrimSpace(line)
		}
	}
	t.Fatal("no line", key)
	return ""
}
