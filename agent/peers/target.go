package peers

import (
	"context"
	"io"

	"github.com/reflejo/terraform-provider-reflejo/agent/backup"
	"github.com/reflejo/terraform-provider-reflejo/agent/endpoint"
	"github.com/reflejo/terraform-provider-reflejo/agent/vserver"
)

// Open is the backup store of a host; fault.NotFound if none of this name is configured.
// The host is called by the methods: one that is away or keeps no backups of others
// (fault.Precondition) is found out then. A method's context bounds an upload or a reader
// that comes of it, too. What a link's loss interrupts is fault.Unavailable.
func (p *Peers) Open(_ context.Context, host string) (backup.Target, error) {
	if _, err := p.address(host); err != nil {
		return nil, err
	}
	return target{p, host}, nil
}

// target is the store of another host.
type target struct {
	peers *Peers
	host  string
}

// begin calls a method, and waits for the first answer.
func (t target) begin(ctx context.Context, q call) (*conn, answer, error) {
	text, err := q.encode()
	if err != nil {
		return nil, answer{}, err
	}
	c, err := t.peers.dial(ctx, t.host, PurposeBackup)
	if err != nil {
		return nil, answer{}, err
	}
	var a answer
	if err = c.send(typeCall, text); err == nil {
		a, err = c.answer()
	}
	if err != nil {
		_ = c.Close()
		return nil, answer{}, err
	}
	return c, a, nil
}

// ask calls a method that has one answer.
func (t target) ask(ctx context.Context, q call) (answer, error) {
	c, a, err := t.begin(ctx, q)
	if err != nil {
		return answer{}, err
	}
	return a, c.Close()
}

// answer is the next frame, which must be an answer.
func (c *conn) answer() (answer, error) {
	f, err := c.receive()
	if err != nil {
		return answer{}, err
	}
	return c.answerOf(f)
}

func (c *conn) answerOf(f endpoint.Frame) (answer, error) {
	if f.Type != typeAnswer {
		return answer{}, c.nonsense("a frame of type %d, want an answer", f.Type)
	}
	a, err := decodeAnswer(f.Payload)
	if err != nil {
		return answer{}, c.nonsense("%w", err)
	}
	return a, nil
}

func (t target) Append(ctx context.Context, f backup.Ref, most int64) (backup.Upload, error) {
	c, a, err := t.begin(ctx, call{Method: methodAppend, Server: f.Server, Backup: f.Backup, Most: most})
	if err != nil {
		return nil, err
	}
	if a.State == nil {
		_ = c.Close()
		return nil, c.nonsense("an answer without the file's state")
	}
	return &upload{c: c, state: *a.State}, nil
}

// upload is a file that another host writes.
type upload struct {
	c     *conn
	state backup.State
	ended bool
}

func (u *upload) State() backup.State { return u.state }

// Write sends. That it succeeds does not say that the other host has it; Commit does.
func (u *upload) Write(p []byte) (int, error) {
	written := 0
	for len(p) > 0 {
		n := min(len(p), maxData)
		if err := u.c.send(typeData, p[:n]); err != nil {
			return written, err
		}
		p, written = p[n:], written+n
	}
	return written, nil
}

// Commit may fail after the file has become complete, when the link is lost before the
// answer: then Append finds it complete.
func (u *upload) Commit() error { return u.end(typeCommit) }

// Close waits until the other host has let go of the file, so that it can be opened again.
// After Commit there is nothing to do.
func (u *upload) Close() error { return u.end(typeClose) }

func (u *upload) end(kind byte) error {
	if u.ended {
		return nil
	}
	u.ended = true
	err := u.c.send(kind, nil)
	if err == nil {
		_, err = u.c.answer()
	}
	_ = u.c.Close()
	return err
}

func (t target) Open(ctx context.Context, f backup.Ref, offset int64) (io.ReadCloser, error) {
	c, _, err := t.begin(ctx, call{Method: methodOpen, Server: f.Server, Backup: f.Backup, Offset: offset})
	if err != nil {
		return nil, err
	}
	return &reader{c: c}, nil
}

// reader is a file that another host reads.
type reader struct {
	c    *conn
	rest []byte // of the last frame
	err  error  // once there is no next one; io.EOF at the file's end only
}

func (r *reader) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	if len(r.rest) == 0 && r.err == nil {
		r.rest, r.err = r.next()
	}
	if len(r.rest) == 0 {
		return 0, r.err
	}
	n := copy(p, r.rest)
	r.rest = r.rest[n:]
	return n, nil
}

// next is the content of the next frame.
func (r *reader) next() ([]byte, error) {
	f, err := r.c.receive()
	if err != nil {
		return nil, err
	}
	if f.Type != typeData {
		if _, err := r.c.answerOf(f); err != nil {
			return nil, err
		}
		return nil, io.EOF
	}
	if n := len(f.Payload); n == 0 || n > maxData {
		return nil, r.c.nonsense("%d bytes of a file at once, want 1 … %d", n, maxData)
	}
	return f.Payload, nil
}

func (r *reader) Close() error { return r.c.Close() }

func (t target) List(ctx context.Context, server string) ([]backup.File, error) {
	c, a, err := t.begin(ctx, call{Method: methodList, Server: server})
	if err != nil {
		return nil, err
	}
	defer c.Close()
	var all []backup.File
	for {
		for _, f := range a.Files {
			if !vserver.ValidID(f.Server) || !vserver.ValidID(f.Backup) || f.Size < 0 || server != "" && f.Server != server {
				return nil, c.nonsense("a file that can't be in the list")
			}
		}
		if all = append(all, a.Files...); len(all) > maxList {
			return nil, c.nonsense("more than %d files", maxList)
		}
		if !a.More {
			return all, nil
		}
		if a, err = c.answer(); err != nil {
			return nil, err
		}
	}
}

func (t target) Delete(ctx context.Context, f backup.Ref) error {
	_, err := t.ask(ctx, call{Method: methodDelete, Server: f.Server, Backup: f.Backup})
	return err
}

func (t target) Load(ctx context.Context, server string) ([]byte, error) {
	a, err := t.ask(ctx, call{Method: methodLoad, Server: server})
	if err != nil {
		return nil, err
	}
	return append([]byte{}, a.Note...), nil // never nil, which would be no note
}

func (t target) Swap(ctx context.Context, server string, old, note []byte) error {
	_, err := t.ask(ctx, call{Method: methodSwap, Server: server, Old: old, Note: note})
	return err
}
