package service

import (
	"context"
	"errors"
	"io"
	"sync"
	"time"

	"connectrpc.com/connect"

	"github.com/reflejo/terraform-provider-reflejo/agent/api"
	reflejov1 "github.com/reflejo/terraform-provider-reflejo/agent/api/reflejo/v1"
	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
	"github.com/reflejo/terraform-provider-reflejo/agent/vserver"
)

// Consoles is what consoles have beside vserver.Commands.
type Consoles interface {
	// ResizeConsole tells the console how large the terminal of the one who joined it is.
	ResizeConsole(ctx context.Context, id string, rows, columns uint16) error
	// TailConsoleLog opens the console's log for following: Read returns io.EOF when there is
	// nothing more now, and may be called again.
	TailConsoleLog(ctx context.Context, id string) (io.ReadCloser, error)
}

// firstWithin is how long a client may take to say what a stream is about.
const firstWithin = 10 * time.Second

// followEvery is how often a followed console log is looked at for more.
const followEvery = 250 * time.Millisecond

// Exec runs a program. Three parties meet here, and none can hold up the agent: a client
// that does not read stops the program's output, a program that does not read stops the
// client's input, and when either is gone everything ends.
func (h *serverHandler) Exec(ctx context.Context, stream *connect.BidiStream[reflejov1.ExecRequest, reflejov1.ExecResponse]) error {
	first, err := receiveFirst(ctx, stream.Receive)
	if err != nil {
		return err
	}
	start := first.GetStart()
	if len(start.GetArgv()) == 0 || start.GetArgv()[0] == "" {
		return fault.Field("start.argv", "exec: the first message must say what to run")
	}
	id, err := h.running(start.GetId())
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stdin, toStdin := io.Pipe()
	defer stdin.Close() // frees the receiver
	resize := make(chan [2]uint16, 1)
	go func() {
		err := receiveInput(stream.Receive, toStdin, resize)
		toStdin.CloseWithError(bareEOF(err))
		if !errors.Is(err, io.EOF) {
			cancel()
		}
	}()
	out := &output[reflejov1.ExecResponse]{send: stream.Send}
	code, err := h.s.cfg.Commands.Exec(ctx, id, vserver.Command{
		Argv:    start.GetArgv(),
		Env:     start.GetEnv(),
		Dir:     start.GetDir(),
		User:    start.GetUser(),
		TTY:     start.GetTty(),
		Rows:    side(start.GetSize().GetRows()),
		Columns: side(start.GetSize().GetColumns()),
		Resize:  resize,
		Stdin:   stdin,
		Stdout: out.as(func(p []byte) *reflejov1.ExecResponse {
			return &reflejov1.ExecResponse{Part: &reflejov1.ExecResponse_Stdout{Stdout: p}}
		}),
		Stderr: out.as(func(p []byte) *reflejov1.ExecResponse {
			return &reflejov1.ExecResponse{Part: &reflejov1.ExecResponse_Stderr{Stderr: p}}
		}),
	})
	if err != nil {
		return err
	}
	return out.put(&reflejov1.ExecResponse{Part: &reflejov1.ExecResponse_ExitCode{ExitCode: int32(code)}})
}

// Console joins the console until the client closes its side, is gone, or the server's
// console ends.
func (h *serverHandler) Console(ctx context.Context, stream *connect.BidiStream[reflejov1.ConsoleRequest, reflejov1.ConsoleResponse]) error {
	first, err := receiveFirst(ctx, stream.Receive)
	if err != nil {
		return err
	}
	if first.GetId() == "" {
		return fault.Field("id", "console: the first message must say which server")
	}
	id, err := h.running(first.GetId())
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	in, toIn := io.Pipe()
	defer in.Close() // frees the receiver
	resize := make(chan [2]uint16, 1)
	go func() {
		for {
			m, err := stream.Receive()
			if err != nil {
				toIn.CloseWithError(bareEOF(err))
				return
			}
			if r := m.GetResize(); r != nil {
				latest(resize, r)
			} else if _, err := toIn.Write(m.GetData()); err != nil {
				return
			}
		}
	}()
	go h.resizeConsole(ctx, id, resize)
	out := &output[reflejov1.ConsoleResponse]{send: stream.Send}
	return h.s.cfg.Commands.Console(ctx, id, struct {
		io.Reader
		io.Writer
	}{in, out.as(func(p []byte) *reflejov1.ConsoleResponse { return &reflejov1.ConsoleResponse{Data: p} })})
}

// resizeConsole hands the client's window sizes on until the console is left.
func (h *serverHandler) resizeConsole(ctx context.Context, id string, resize <-chan [2]uint16) {
	for {
		select {
		case <-ctx.Done():
			return
		case size := <-resize:
			if err := h.s.cfg.Consoles.ResizeConsole(ctx, id, size[0], size[1]); err != nil {
				h.s.log.Debug("console can't be resized", "server", id, "error", err)
			}
		}
	}
}

// ReadConsoleLog sends what the console printed, and with follow what it goes on printing.
func (h *serverHandler) ReadConsoleLog(ctx context.Context, req *connect.Request[reflejov1.ReadConsoleLogRequest], stream *connect.ServerStream[reflejov1.ReadConsoleLogResponse]) error {
	v, err := h.s.cfg.Views.Get(req.Msg.GetId())
	if err != nil {
		return err
	}
	open := h.s.cfg.Commands.ConsoleLog
	if req.Msg.GetFollow() {
		open = h.s.cfg.Consoles.TailConsoleLog
	}
	log, err := open(ctx, v.Spec.ID)
	if err != nil {
		return err
	}
	defer log.Close()
	buffer := make([]byte, api.MaxExecChunk)
	for {
		n, err := log.Read(buffer)
		if n > 0 {
			if err := stream.Send(&reflejov1.ReadConsoleLogResponse{Data: buffer[:n]}); err != nil {
				return err
			}
		}
		switch {
		case errors.Is(err, io.EOF) && !req.Msg.GetFollow():
			return nil
		case errors.Is(err, io.EOF) && n == 0:
			if _, gone := h.s.cfg.Views.Get(v.Spec.ID); gone != nil {
				return nil
			}
			if err := pause(ctx, followEvery); err != nil {
				return err
			}
		case err != nil && !errors.Is(err, io.EOF):
			return err
		}
	}
}

// running is the id of a server that can run a program now.
func (h *serverHandler) running(idOrName string) (string, error) {
	v, err := h.s.cfg.Views.Get(idOrName)
	if err != nil {
		return "", err
	}
	if v.State != vserver.StateRunning {
		return "", fault.New(fault.Precondition, "server %s is %s: it must be running", v.Spec.Name, v.State)
	}
	return v.Spec.ID, nil
}

// receiveFirst reads a stream's first message; a client that sends none is not waited for.
func receiveFirst[M any](ctx context.Context, receive func() (*M, error)) (*M, error) {
	type result struct {
		message *M
		err     error
	}
	first := make(chan result, 1)
	go func() {
		m, err := receive()
		first <- result{m, err}
	}()
	ctx, cancel := context.WithTimeout(ctx, firstWithin)
	defer cancel()
	select {
	case r := <-first:
		if errors.Is(r.err, io.EOF) {
			return nil, fault.New(fault.Invalid, "the stream has no first message")
		}
		return r.message, r.err
	case <-ctx.Done(): // the receiver ends when the handler has returned
		if errors.Is(ctx.Err(), context.DeadlineExceeded) {
			return nil, fault.New(fault.Invalid, "no first message within %s", firstWithin)
		}
		return nil, context.Cause(ctx)
	}
}

// bareEOF is io.EOF itself for the end of a stream, as readers must have it.
func bareEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return io.EOF
	}
	return err
}

// receiveInput hands a program its input until the stream ends (io.EOF), or fails.
func receiveInput(receive func() (*reflejov1.ExecRequest, error), stdin *io.PipeWriter, resize chan [2]uint16) error {
	for {
		m, err := receive()
		if err != nil {
			return err
		}
		switch part := m.GetPart().(type) {
		case *reflejov1.ExecRequest_Stdin:
			// A program that closed its input gets no more; its output goes on.
			if _, err := stdin.Write(part.Stdin); errors.Is(err, io.ErrClosedPipe) {
				continue
			} else if err != nil {
				return err
			}
		case *reflejov1.ExecRequest_Resize:
			latest(resize, part.Resize)
		case *reflejov1.ExecRequest_StdinClosed:
			stdin.Close()
		default:
			return fault.New(fault.Invalid, "exec: after the first message only stdin and resize may follow")
		}
	}
}

// latest puts a size into a channel of one, in place of an older one that nobody took.
func latest(resize chan [2]uint16, size *reflejov1.WindowSize) {
	select {
	case <-resize:
	default:
	}
	resize <- [2]uint16{side(size.GetRows()), side(size.GetColumns())}
}

// side is one side of a window; no terminal is larger.
func side(n uint32) uint16 { return uint16(min(n, 10_000)) }

// output lets several writers share a stream.
type output[M any] struct {
	mu   sync.Mutex
	send func(*M) error
}

func (o *output[M]) put(m *M) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.send(m)
}

// as is a writer whose bytes are sent as messages of at most a chunk.
func (o *output[M]) as(wrap func([]byte) *M) io.Writer {
	return writerFunc(func(p []byte) (int, error) {
		written := 0
		for len(p) > 0 {
			n := min(len(p), api.MaxExecChunk)
			if err := o.put(wrap(p[:n])); err != nil {
				return written, err
			}
			written += n
			p = p[n:]
		}
		return written, nil
	})
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

// pause waits, or returns why ctx ended.
func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
