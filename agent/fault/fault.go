// Package fault gives errors a kind that a caller can act on.
//
// Wrap with [New] or [Wrap] where the reason is known, ask with [KindOf] where
// a decision depends on it. Text is for people and is never compared. The one
// mapping of kinds to the wire is in agent/service/errors.go, its mirror image
// in agent/api/errors.go.
package fault

import (
	"errors"
	"fmt"
)

// Kind says what a caller may do about an error.
type Kind uint8

const (
	// Internal: a fault of ours or of the host; try again or report it.
	Internal Kind = iota
	// Invalid: the request can never succeed as it is.
	Invalid
	// NotFound: there is definitely no such object.
	NotFound
	// Exists: the name or id is taken by something else.
	Exists
	// Exhausted: not enough CPU, memory, disk, bandwidth or addresses; the text has the asked and the free amount.
	Exhausted
	// Precondition: the object's state forbids the request (protected, in use, suspended); the text says what to do first.
	Precondition
	// Denied: the caller's certificate does not give this right.
	Denied
	// Unavailable: the host or a part of it can't answer now; the same request may succeed later.
	Unavailable
	// Aborted: another operation on the object is under way or it changed since it was read.
	Aborted
)

var names = [...]string{"internal", "invalid", "not found", "exists", "exhausted", "precondition", "denied", "unavailable", "aborted"}

// String is the kind in lower case, as it appears in logs and metrics.
func (k Kind) String() string {
	if int(k) < len(names) {
		return names[k]
	}
	return fmt.Sprintf("kind %d", uint8(k))
}

// Error is an error with a kind and, where one attribute of the request is to
// blame, that attribute's path in HCL terms ("memory.max", "network.eth0.address").
type Error struct {
	Kind  Kind
	Field string
	Err   error
}

func (e *Error) Error() string { return e.Err.Error() }
func (e *Error) Unwrap() error { return e.Err }

// New makes an error of the kind from a format, as fmt.Errorf (so %w works).
func New(k Kind, format string, args ...any) error {
	return &Error{Kind: k, Err: fmt.Errorf(format, args...)}
}

// Field makes an Invalid error that blames one attribute.
func Field(field, format string, args ...any) error {
	return &Error{Kind: Invalid, Field: field, Err: fmt.Errorf(format, args...)}
}

// Wrap gives err a kind; a nil err stays nil.
func Wrap(k Kind, err error) error {
	if err == nil {
		return nil
	}
	return &Error{Kind: k, Err: err}
}

// KindOf is the kind of the outermost Error in err's chain, Internal where there is none.
func KindOf(err error) Kind {
	var e *Error
	if errors.As(err, &e) {
		return e.Kind
	}
	return Internal
}

// FieldOf is the blamed attribute of the outermost Error that names one, or "".
func FieldOf(err error) string {
	for err != nil {
		var e *Error
		if !errors.As(err, &e) {
			return ""
		}
		if e.Field != "" {
			return e.Field
		}
		err = e.Err
	}
	return ""
}

// Is reports whether err has the kind.
func Is(err error, k Kind) bool { return err != nil && KindOf(err) == k }
