package main

import (
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/term"
)

// progress shows how far long work is. On a terminal it is one line that is drawn anew,
// from one second on; elsewhere a plain line per step and task.
type progress struct {
	out      io.Writer
	terminal bool
	width    int

	mu    sync.Mutex
	begun time.Time
	drawn time.Time
	shown bool // a line is on the terminal
	tasks []*task
}

// task is one of the pieces of work that go on side by side.
type task struct {
	p     *progress
	name  string
	step  string
	done  int64
	total int64
	bytes bool
	ended bool
}

const (
	progressAfter = time.Second
	progressEvery = 100 * time.Millisecond
	barWidth      = 20
)

func (a *app) progress() *progress {
	p := &progress{out: a.err, begun: time.Now(), width: 80}
	if f, ok := a.err.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		p.terminal = true
		if w, _, err := term.GetSize(int(f.Fd())); err == nil && w > 0 {
			p.width = w
		}
	}
	return p
}

// task adds a piece of work; its amounts are bytes or steps.
func (p *progress) task(name string, bytes bool) *task {
	p.mu.Lock()
	defer p.mu.Unlock()
	t := &task{p: p, name: name, bytes: bytes}
	p.tasks = append(p.tasks, t)
	return t
}

// at reports how far a task is; a total of 0 is unknown.
func (t *task) at(step string, done, total int64) {
	t.p.mu.Lock()
	defer t.p.mu.Unlock()
	changed := step != t.step
	t.step, t.done, t.total = step, done, total
	if t.p.terminal {
		t.p.draw()
	} else if changed && step != "" && time.Since(t.p.begun) >= progressAfter {
		fmt.Fprintf(t.p.out, "%s: %s\n", t.name, step)
	}
}

// count says whether a task's amounts are bytes from now on, or steps.
func (t *task) count(bytes bool) {
	t.p.mu.Lock()
	defer t.p.mu.Unlock()
	t.bytes = bytes
}

// end takes a task off the line.
func (t *task) end() {
	t.p.mu.Lock()
	defer t.p.mu.Unlock()
	t.ended = true
	if t.p.terminal {
		t.p.draw()
	}
}

// stop clears the line.
func (p *progress) stop() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.shown {
		fmt.Fprint(p.out, "\r\x1b[K")
		p.shown = false
	}
}

func (p *progress) draw() {
	now := time.Now()
	if now.Sub(p.begun) < progressAfter || now.Sub(p.drawn) < progressEvery {
		return
	}
	p.drawn = now
	var parts []string
	for _, t := range p.tasks {
		if !t.ended && t.step != "" {
			parts = append(parts, t.text())
		}
	}
	line := []rune(strings.Join(parts, "  "))
	if len(line) >= p.width {
		line = line[:p.width-1]
	}
	fmt.Fprintf(p.out, "\r\x1b[K%s", string(line))
	p.shown = true
}

// text is a task in words: "alpha: unpacking [#####     ] 512MiB/2GiB".
func (t *task) text() string {
	amount := func(n int64) string {
		if t.bytes {
			return roundBytes(n)
		}
		return fmt.Sprint(n)
	}
	switch {
	case t.total > 0:
		full := int(min(t.done, t.total) * barWidth / t.total)
		return fmt.Sprintf("%s: %s [%s%s] %s/%s", t.name, t.step, strings.Repeat("#", full), strings.Repeat(" ", barWidth-full), amount(t.done), amount(t.total))
	case t.done > 0:
		return fmt.Sprintf("%s: %s %s", t.name, t.step, amount(t.done))
	}
	return t.name + ": " + t.step
}
