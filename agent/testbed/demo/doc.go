// Package demo is `make demo`: three hosts, six servers, every limit measured from inside
// and outside under load and changed live, an agent killed; then a server that is captured,
// put back, cloned, moved and lost with its host; and nothing left at the end.
// It prints chapters for a person; it fails if any figure is out of its bounds.
package demo
