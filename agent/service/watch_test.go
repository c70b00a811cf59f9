package service_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"

	"github.com/reflejo/terraform-provider-reflejo/agent/api"
	reflejov1 "github.com/reflejo/terraform-provider-reflejo/agent/api/reflejo/v1"
	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
	"github.com/reflejo/terraform-provider-reflejo/agent/pki"
	"github.com/reflejo/terraform-provider-reflejo/agent/service/servicetest"
)

// until polls for something that must come true.
func until(t *testing.T, what string, f func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !f(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("never: %s", what)
		}
	}
}

func watch(t *testing.T, c *api.Client, settled bool) *connect.ServerStreamForClient[reflejov1.WatchServerResponse] {
	t.Helper()
	stream, err := c.Servers.WatchServer(t.Context(), connect.NewRequest(&reflejov1.WatchServerRequest{Id: "web", UntilSettled: settled}))
	if err != nil {
		t.Fatal(err)
	}
	return stream
}

func TestWatchUntilSettled(t *testing.T) {
	t.Parallel()
	h, site := withWeb(t)
	c := site.Client(t, pki.RoleOperator)
	stream := watch(t, c, true)
	if !stream.Receive() || stream.Msg().GetServer().GetState() != "running" || stream.Receive() || stream.Err() != nil {
		t.Errorf("a settled server: %v, %v", stream.Msg(), stream.Err())
	}
	h.Hold()
	stop := &reflejov1.SetPowerRequest{Id: "web", Action: reflejov1.SetPowerRequest_ACTION_STOP}
	if _, err := c.Servers.SetPower(t.Context(), connect.NewRequest(stop)); err != nil {
		t.Fatal(err)
	}
	stream = watch(t, c, true)
	if !stream.Receive() || stream.Msg().GetServer().GetOperation().GetKind() != "stop" {
		t.Fatalf("got %v, %v", stream.Msg(), stream.Err())
	}
	h.Release()
	if !stream.Receive() || stream.Msg().GetServer().GetState() != "stopped" || stream.Receive() || stream.Err() != nil {
		t.Errorf("got %v, %v", stream.Msg(), stream.Err())
	}
}

func TestWatchEndsWithTheServerAndTheClient(t *testing.T) {
	t.Parallel()
	h, site := withWeb(t)
	c := site.Client(t, pki.RoleOperator)
	ctx, leave := context.WithCancel(t.Context())
	if _, err := c.Servers.WatchServer(ctx, connect.NewRequest(&reflejov1.WatchServerRequest{Id: "web"})); err != nil {
		t.Fatal(err)
	}
	until(t, "a watcher", func() bool { return h.Watchers() == 1 })
	leave()
	until(t, "no watcher", func() bool { return h.Watchers() == 0 })
	stream := watch(t, c, false)
	stream.Receive()
	if _, err := c.Servers.DeleteServer(t.Context(), connect.NewRequest(&reflejov1.DeleteServerRequest{Id: "web"})); err != nil {
		t.Fatal(err)
	}
	for !stream.Msg().GetGone() {
		if !stream.Receive() {
			t.Fatalf("ended before it was gone: %v", stream.Err())
		}
	}
	if stream.Receive() || stream.Err() != nil {
		t.Errorf("goes on after the end: %v, %v", stream.Msg(), stream.Err())
	}
}

// An agent that stops tells watchers to come back instead of hanging on them.
func TestShutdownEndsStreams(t *testing.T) {
	t.Parallel()
	_, site := withWeb(t)
	stream := watch(t, site.Client(t, pki.RoleOperator), false)
	stream.Receive()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if err := site.Service.Shutdown(ctx); err != nil {
		t.Fatal(err)
	}
	if stream.Receive() || !fault.Is(api.ErrorOf(stream.Err()), fault.Unavailable) {
		t.Errorf("got %v, %v", stream.Msg(), stream.Err())
	}
}

// run executes a program without input.
func run(ctx context.Context, c *api.Client, argv ...string) (string, error) {
	return runWith(ctx, c, &reflejov1.ExecStart{Id: "web", Argv: argv})
}

func runWith(ctx context.Context, c *api.Client, start *reflejov1.ExecStart, parts ...*reflejov1.ExecRequest) (string, error) {
	stream := c.Servers.Exec(ctx)
	defer stream.CloseResponse()
	parts = append([]*reflejov1.ExecRequest{{Part: &reflejov1.ExecRequest_Start{Start: start}}}, parts...)
	for _, p := range parts {
		if err := stream.Send(p); err != nil && !errors.Is(err, io.EOF) {
			return "", api.ErrorOf(err)
		}
	}
	var out strings.Builder
	for {
		m, err := stream.Receive()
		if err != nil {
			return out.String(), api.ErrorOf(err)
		}
		switch p := m.GetPart().(type) {
		case *reflejov1.ExecResponse_Stdout:
			out.Write(p.Stdout)
		case *reflejov1.ExecResponse_Stderr:
			out.WriteString("err:" + string(p.Stderr))
		case *reflejov1.ExecResponse_ExitCode:
			return out.String() + fmt.Sprintf("exit %d", p.ExitCode), nil
		}
	}
}

func stdin(b []byte) *reflejov1.ExecRequest {
	return &reflejov1.ExecRequest{Part: &reflejov1.ExecRequest_Stdin{Stdin: b}}
}

func TestExec(t *testing.T) {
	t.Parallel()
	h, site := withWeb(t)
	c := site.Client(t, pki.RoleOperator)
	end := &reflejov1.ExecRequest{Part: &reflejov1.ExecRequest_StdinClosed{StdinClosed: true}}
	resize := &reflejov1.ExecRequest{Part: &reflejov1.ExecRequest_Resize{Resize: &reflejov1.WindowSize{Rows: 40, Columns: 1 << 30}}}
	big := bytes.Repeat([]byte("x"), api.MaxExecChunk)
	for name, c2 := range map[string]struct {
		start *reflejov1.ExecStart
		parts []*reflejov1.ExecRequest
		want  string
		kind  fault.Kind
	}{
		"output":        {start: &reflejov1.ExecStart{Id: "web", Argv: []string{"echo", "a", "b"}}, want: "a\nb\nexit 0"},
		"exit code":     {start: &reflejov1.ExecStart{Id: webID, Argv: []string{"false"}}, want: "err:no\nexit 1"},
		"input":         {start: &reflejov1.ExecStart{Id: "web", Argv: []string{"cat"}}, parts: []*reflejov1.ExecRequest{stdin([]byte("in")), stdin([]byte("put")), end}, want: "inputexit 0"},
		"large input":   {start: &reflejov1.ExecStart{Id: "web", Argv: []string{"cat"}}, parts: []*reflejov1.ExecRequest{stdin(big), stdin(big), end}, want: string(big) + string(big) + "exit 0"},
		"ignored input": {start: &reflejov1.ExecStart{Id: "web", Argv: []string{"echo", "a"}}, parts: []*reflejov1.ExecRequest{stdin(big), stdin(big)}, want: "a\nexit 0"},
		"resize":        {start: &reflejov1.ExecStart{Id: "web", Argv: []string{"size"}}, parts: []*reflejov1.ExecRequest{resize}, want: "40 10000\nexit 0"},
		"how": {start: &reflejov1.ExecStart{
			Id: "web", Argv: []string{"env"}, User: "me", Dir: "/srv", Env: []string{"A=b"}, Tty: true, Size: &reflejov1.WindowSize{Rows: 24, Columns: 80},
		}, want: "me /srv [A=b] true 24 80\nexit 0"},
		"nothing to run": {start: &reflejov1.ExecStart{Id: "web"}, kind: fault.Invalid},
		"no such server": {start: &reflejov1.ExecStart{Id: "nobody", Argv: []string{"echo"}}, kind: fault.NotFound},
		"does not run":   {start: &reflejov1.ExecStart{Id: "web", Argv: []string{"nosuch"}}, kind: fault.Invalid},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got, err := runWith(t.Context(), c, c2.start, c2.parts...)
			if fault.KindOf(err) != c2.kind || got != c2.want {
				t.Errorf("got %.80q, %v", got, err)
			}
		})
	}
	t.Cleanup(func() { _ = h })
}

func TestExecNeedsARunningServer(t *testing.T) {
	t.Parallel()
	_, site := withWeb(t)
	c := site.Client(t, pki.RoleOperator)
	stop := &reflejov1.SetPowerRequest{Id: "web", Action: reflejov1.SetPowerRequest_ACTION_SUSPEND}
	if _, err := c.Servers.SetPower(t.Context(), connect.NewRequest(stop)); err != nil {
		t.Fatal(err)
	}
	if _, err := run(t.Context(), c, "echo"); !fault.Is(err, fault.Precondition) {
		t.Errorf("got %v", err)
	}
}

// Clients that stop reading or vanish do not keep programs, or the agent's stop, waiting.
func TestExecOfVanishedClients(t *testing.T) {
	t.Parallel()
	_, site := withWeb(t)
	for _, program := range []string{"yes", "sleep", "cat"} {
		ctx, vanish := context.WithCancel(t.Context())
		stream := site.Client(t, pki.RoleOperator).Servers.Exec(ctx)
		start := &reflejov1.ExecStart{Id: "web", Argv: []string{program}}
		if err := stream.Send(&reflejov1.ExecRequest{Part: &reflejov1.ExecRequest_Start{Start: start}}); err != nil {
			t.Fatal(err)
		}
		vanish()
	}
	// The clean-up of the test fails if a handler is left.
}

func TestConsole(t *testing.T) {
	t.Parallel()
	h, site := withWeb(t)
	stream := site.Client(t, pki.RoleOperator).Servers.Console(t.Context())
	defer stream.CloseResponse()
	for _, m := range []*reflejov1.ConsoleRequest{
		{Part: &reflejov1.ConsoleRequest_Id{Id: "web"}},
		{Part: &reflejov1.ConsoleRequest_Resize{Resize: &reflejov1.WindowSize{Rows: 24, Columns: 80}}},
		{Part: &reflejov1.ConsoleRequest_Data{Data: []byte("root\r")}},
	} {
		if err := stream.Send(m); err != nil {
			t.Fatal(err)
		}
	}
	var got strings.Builder
	for got.String() != "login: root\r" {
		m, err := stream.Receive()
		if err != nil {
			t.Fatalf("after %q: %v", got.String(), err)
		}
		got.Write(m.GetData())
	}
	until(t, "the size", func() bool { return slices.Contains(h.Sizes(), [2]uint16{24, 80}) })
	if err := stream.CloseRequest(); err != nil {
		t.Fatal(err)
	}
	if m, err := stream.Receive(); !errors.Is(err, io.EOF) {
		t.Errorf("leaving the console: got %v, %v", m, err)
	}
}

func TestConsoleLog(t *testing.T) {
	t.Parallel()
	h, site := withWeb(t)
	c := site.Client(t, pki.RoleOperator)
	h.Print("one\n")
	for _, follow := range []bool{false, true} {
		stream, err := c.Servers.ReadConsoleLog(t.Context(), connect.NewRequest(&reflejov1.ReadConsoleLogRequest{Id: "web", Follow: follow}))
		if err != nil {
			t.Fatal(err)
		}
		if !stream.Receive() || string(stream.Msg().GetData()) != "one\n" {
			t.Errorf("got %q, %v", stream.Msg().GetData(), stream.Err())
		}
		if !follow {
			if stream.Receive() || stream.Err() != nil {
				t.Errorf("goes on with %q, %v", stream.Msg().GetData(), stream.Err())
			}
			continue
		}
		h.Print("two\n")
		if !stream.Receive() || string(stream.Msg().GetData()) != "two\n" {
			t.Errorf("got %q, %v", stream.Msg().GetData(), stream.Err())
		}
		if err := h.Delete(t.Context(), "web"); err != nil {
			t.Fatal(err)
		}
		if stream.Receive() || stream.Err() != nil {
			t.Errorf("follows a deleted server: %v", stream.Err())
		}
	}
}

// 64 watchers, as of one apply, share a connection.
func TestManyWatchers(t *testing.T) {
	t.Parallel()
	h := servicetest.NewHost("alpha")
	h.AddImage("debian")
	site := servicetest.Start(t, h)
	c := site.Client(t, pki.RoleOperator)
	h.Hold()
	create(t, c)
	results := make(chan error, 64)
	for range cap(results) {
		stream := watch(t, c, true)
		go func() {
			last := ""
			for stream.Receive() {
				last = stream.Msg().GetServer().GetState()
			}
			if last != "running" {
				results <- fmt.Errorf("ended at %q: %w", last, stream.Err())
			}
			results <- nil
		}()
	}
	h.Release()
	for range cap(results) {
		if err := <-results; err != nil {
			t.Error(err)
		}
	}
}
