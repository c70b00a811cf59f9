// Package mirror is a mirror session's brain.
package mirror
