package provider

import (
	"context"
	"errors"
	"testing"

	"github.com/reflejo/terraform-provider-reflejo/agent/api"
	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
)

// Only a definite answer of every host says that something is gone.
func TestLocate(t *testing.T) {
	t.Parallel()
	none, silent := fault.New(fault.NotFound, "there is none"), fault.New(fault.Unavailable, "no answer")
	for _, c := range []struct {
		name    string
		last    string
		lost    []string
		answers map[string]error // nil: it is there
		found   string
		kind    error
	}{
		{name: "where it was", last: "alpha", answers: map[string]error{"alpha": nil, "beta": none}, found: "alpha"},
		{name: "elsewhere", last: "alpha", answers: map[string]error{"alpha": none, "beta": nil}, found: "beta"},
		{name: "nowhere", last: "alpha", answers: map[string]error{"alpha": none, "beta": none}, kind: none},
		{name: "a host is silent", last: "alpha", answers: map[string]error{"alpha": none, "beta": silent}, kind: silent},
		{name: "its host is silent, another has it", last: "alpha", answers: map[string]error{"alpha": silent, "beta": nil}, found: "beta"},
		{name: "its host is lost", last: "alpha", lost: []string{"alpha"}, answers: map[string]error{"beta": none}, kind: errLost},
		{name: "its host is lost, another has it", last: "alpha", lost: []string{"alpha"}, answers: map[string]error{"beta": nil}, found: "beta"},
		{name: "it may have moved to a lost host", last: "alpha", lost: []string{"beta"}, answers: map[string]error{"alpha": none}, kind: errLost},
	} {
		t.Run(c.name, func(t *testing.T) {
			h := newHosts()
			for _, name := range []string{"alpha", "beta"} {
				h.add(name, &api.Client{})
			}
			for _, name := range c.lost {
				h.lost[name] = true
			}
			at, _, err := locate(t.Context(), h, c.last, func(_ context.Context, one *host) (string, error) {
				err, asked := c.answers[one.name]
				if !asked {
					t.Errorf("host %s was asked", one.name)
				}
				return one.name, err
			})
			if c.found != "" && (err != nil || at.name != c.found) {
				t.Errorf("found at %v, %v; want %s", at, err, c.found)
			}
			if c.kind != nil && !errors.Is(err, c.kind) {
				t.Errorf("got %v, want %v", err, c.kind)
			}
		})
	}
}
