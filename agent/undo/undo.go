// Package undo takes back the finished steps of an operation that fails half-way.
//
//	var u undo.Stack
//	defer u.Run()
//	… step one …
//	u.Add(func() { take back step one })
//	u.Keep() // everything worked
package undo

// Stack holds the ways back, run in reverse order. The zero value is ready.
// It is not safe for use by several goroutines.
type Stack struct{ steps []func() }

// Add puts a way back on top.
func (s *Stack) Add(f func()) { s.steps = append(s.steps, f) }

// Keep forgets all ways back: the operation succeeded.
func (s *Stack) Keep() { s.steps = nil }

// Run takes everything back, newest first. It does nothing after Keep.
func (s *Stack) Run() {
	for i := len(s.steps) - 1; i >= 0; i-- {
		s.steps[i]()
	}
	s.steps = nil
}
