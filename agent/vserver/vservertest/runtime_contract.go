package vservertest

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
	"github.com/reflejo/terraform-provider-reflejo/agent/vserver"
)

// RuntimeEdge is a runtime under test. NewServer describes a server that can be created:
// its image has the programs true, false, cat and echo on the path and no init.
type RuntimeEdge struct {
	Runtime interface {
		vserver.Runtime
		vserver.Commands
	}
	NewServer func(t *testing.T) vserver.Container
}

// RuntimeContract is what every runtime does; newEdge makes one on which nothing runs.
func RuntimeContract(t *testing.T, newEdge func(t *testing.T) RuntimeEdge) {
	for name, test := range map[string]func(*testing.T, RuntimeEdge){
		"Life":     runtimeLife,
		"Twice":    runtimeTwice,
		"Missing":  runtimeMissing,
		"Wait":     runtimeWait,
		"Commands": runtimeCommands,
	} {
		t.Run(name, func(t *testing.T) { test(t, newEdge(t)) })
	}
}

// runtimeStatus is the status of one server by List, "" where it is not listed.
func runtimeStatus(t *testing.T, e RuntimeEdge, id string) vserver.RunStatus {
	t.Helper()
	all, err := e.Runtime.List(t.Context())
	must(t, err)
	for _, s := range all {
		if s.ID == id {
			if (s.Status == vserver.RunStopped) != (s.Pid == 0) {
				t.Errorf("%s with pid %d", s.Status, s.Pid)
			}
			return s.Status
		}
	}
	return ""
}

func runtimeLife(t *testing.T, e RuntimeEdge) {
	c := e.NewServer(t)
	ctx := t.Context()
	step := func(err error, want vserver.RunStatus) {
		t.Helper()
		must(t, err)
		if got := runtimeStatus(t, e, c.ID); got != want {
			t.Fatalf("the server is %q, want %q", got, want)
		}
	}
	_, err := e.Runtime.Create(ctx, c)
	step(err, vserver.RunCreated)
	_, err = e.Runtime.Exec(ctx, c.ID, vserver.Command{Argv: []string{"true"}})
	wantKind(t, err, fault.Precondition)
	step(e.Runtime.Start(ctx, c.ID), vserver.RunRunning)
	must(t, e.Runtime.Stop(ctx, c.ID))
	step(e.Runtime.Wait(ctx, c.ID), vserver.RunStopped)
	wantKind(t, e.Runtime.Start(ctx, c.ID), fault.Precondition)
	_, err = e.Runtime.Create(ctx, c) // what has ended is made anew
	step(err, vserver.RunCreated)
	step(e.Runtime.Start(ctx, c.ID), vserver.RunRunning)
	step(e.Runtime.Delete(ctx, c.ID), "")
}

func runtimeTwice(t *testing.T, e RuntimeEdge) {
	c := e.NewServer(t)
	ctx := t.Context()
	pid, err := e.Runtime.Create(ctx, c)
	must(t, err)
	for range 2 {
		again, err := e.Runtime.Create(ctx, c)
		must(t, err)
		if again != pid || pid <= 0 {
			t.Fatalf("process %d, then %d", pid, again)
		}
		must(t, e.Runtime.Start(ctx, c.ID))
	}
	for range 2 {
		must(t, e.Runtime.Stop(ctx, c.ID))
		must(t, e.Runtime.Wait(ctx, c.ID))
	}
	for range 2 {
		must(t, e.Runtime.Delete(ctx, c.ID))
	}
}

func runtimeMissing(t *testing.T, e RuntimeEdge) {
	id, ctx := uuid.NewString(), t.Context()
	wantKind(t, e.Runtime.Start(ctx, id), fault.NotFound)
	wantKind(t, e.Runtime.Stop(ctx, id), fault.NotFound)
	wantKind(t, e.Runtime.Wait(ctx, id), fault.NotFound)
	_, err := e.Runtime.Exec(ctx, id, vserver.Command{Argv: []string{"true"}})
	wantKind(t, err, fault.NotFound)
	must(t, e.Runtime.Delete(ctx, id))
	c := e.NewServer(t)
	c.ID = "../escape"
	_, err = e.Runtime.Create(ctx, c)
	wantKind(t, err, fault.Invalid)
}

func runtimeWait(t *testing.T, e RuntimeEdge) {
	c := e.NewServer(t)
	_, err := e.Runtime.Create(t.Context(), c)
	must(t, err)
	must(t, e.Runtime.Start(t.Context(), c.ID))
	ctx, cancel := context.WithCancel(t.Context())
	waiting := make(chan error, 1)
	go func() { waiting <- e.Runtime.Wait(ctx, c.ID) }()
	cancel()
	select {
	case err := <-waiting:
		if !errors.Is(err, context.Canceled) {
			t.Fatal(err)
		}
	case <-time.After(time.Minute):
		t.Fatal("Wait does not end with its context")
	}
	go func() { waiting <- e.Runtime.Wait(t.Context(), c.ID) }()
	must(t, e.Runtime.Delete(t.Context(), c.ID))
	if err := <-waiting; err != nil && !fault.Is(err, fault.NotFound) {
		t.Fatal(err)
	}
}

func runtimeCommands(t *testing.T, e RuntimeEdge) {
	c := e.NewServer(t)
	ctx := t.Context()
	_, err := e.Runtime.Create(ctx, c)
	must(t, err)
	must(t, e.Runtime.Start(ctx, c.ID))
	for _, tt := range []struct {
		argv    []string
		in, out string
		code    int
	}{
		{argv: []string{"true"}},
		{argv: []string{"false"}, code: 1},
		{argv: []string{"echo", "a", "b"}, out: "a b\n"},
		{argv: []string{"cat"}, in: "typed", out: "typed"},
	} {
		var out bytes.Buffer
		code, err := e.Runtime.Exec(ctx, c.ID, vserver.Command{Argv: tt.argv, Stdin: strings.NewReader(tt.in), Stdout: &out})
		must(t, err)
		if code != tt.code || out.String() != tt.out {
			t.Errorf("%q: code %d, output %q", tt.argv, code, out.String())
		}
	}
	_, err = e.Runtime.Exec(ctx, c.ID, vserver.Command{Argv: []string{"no-such-program"}})
	wantKind(t, err, fault.Invalid)
	must(t, e.Runtime.Delete(ctx, c.ID))
}
