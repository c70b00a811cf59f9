package peers

import (
	"context"
	"errors"
	"io"
	"sync"

	"github.com/reflejo/terraform-provider-reflejo/agent/backup"
	"github.com/reflejo/terraform-provider-reflejo/agent/endpoint"
	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
)

// Handler answers for the store of this host, a directory that must be there. Where store
// is "" all is refused with fault.Precondition. It belongs to [PurposeBackup]; a store has
// one handler, which knows what is being written.
func Handler(store string) endpoint.Handler {
	if store == "" {
		return func(context.Context, *endpoint.Conn) error {
			return fault.New(fault.Precondition, "reach backup store: this host keeps no backups of other hosts; set store in the block backup of its agent's configuration")
		}
	}
	s := &keeper{target: backup.NewDir(store, "."), busy: map[backup.Ref]string{}}
	return s.handle
}

// keeper keeps backups for other hosts.
type keeper struct {
	target backup.Target

	mu   sync.Mutex
	busy map[backup.Ref]string // files that are being written, and by which host
}

// handle is one call.
func (k *keeper) handle(ctx context.Context, c *endpoint.Conn) error {
	f, err := c.Receive()
	if err != nil {
		return ifLost(err)
	}
	if f.Type != typeCall {
		return fault.New(fault.Invalid, "read call: a frame of type %d", f.Type)
	}
	q, err := decodeCall(f.Payload)
	if err != nil {
		return err
	}
	var a answer
	switch q.Method {
	case methodAppend:
		err = k.write(ctx, c, q)
	case methodOpen:
		err = k.read(ctx, c, q.ref(), q.Offset)
	case methodList:
		a.Files, err = k.list(ctx, c, q.Server)
	case methodDelete:
		err = k.target.Delete(ctx, q.ref())
	case methodLoad:
		a.Note, err = k.target.Load(ctx, q.Server)
	case methodSwap:
		err = k.target.Swap(ctx, q.Server, q.Old, q.Note)
	default:
		err = fault.New(fault.Precondition, "read call: this host's agent does not know what it asks for; bring it up to date")
	}
	if err == nil {
		err = say(c, a)
	}
	return ifLost(err)
}

// say sends an answer.
func say(c *endpoint.Conn, a answer) error {
	text, err := a.encode()
	if err != nil {
		return err
	}
	return c.Send(typeAnswer, text)
}

// ifLost: a caller that said bye in the middle has changed its mind, and needs no reason.
func ifLost(err error) error {
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

// hold keeps a file from being written by two: that would mix them. The other may be one
// whose link is lost and who does not know yet.
func (k *keeper) hold(f backup.Ref, host string) (release func(), err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if by, is := k.busy[f]; is {
		return nil, fault.New(fault.Unavailable, "open backup file for writing: host %s has it open; if that link is lost, this is noticed within seconds", by)
	}
	k.busy[f] = host
	return func() {
		k.mu.Lock()
		defer k.mu.Unlock()
		delete(k.busy, f)
	}, nil
}

// write writes what comes to a file. When it returns the file is free again, so that the
// caller, who is told after that, can go on with it.
func (k *keeper) write(ctx context.Context, c *endpoint.Conn, q call) error {
	release, err := k.hold(q.ref(), c.Peer())
	if err != nil {
		return err
	}
	defer release()
	up, err := k.target.Append(ctx, q.ref(), q.Most)
	if err != nil {
		return err
	}
	commit, err := fill(c, up)
	if commit {
		return up.Commit()
	}
	return errors.Join(err, up.Close())
}

// fill writes what comes to an upload until its end; commit tells whether it is complete.
func fill(c *endpoint.Conn, up backup.Upload) (commit bool, err error) {
	state := up.State()
	if err := say(c, answer{State: &state}); err != nil {
		return false, err
	}
	for {
		f, err := c.Receive()
		if err != nil {
			return false, err
		}
		n := len(f.Payload)
		switch {
		case f.Type == typeData && n > 0 && n <= maxData:
			if _, err := up.Write(f.Payload); err != nil {
				return false, err
			}
		case f.Type == typeCommit && n == 0:
			return true, nil
		case f.Type == typeClose && n == 0:
			return false, nil
		default:
			return false, fault.New(fault.Invalid, "write backup file: a frame of type %d with %d bytes has no place here", f.Type, n)
		}
	}
}

// read sends a file from an offset on. The first frames are small: often only the head of a
// file is asked for, and the caller closes when it has that.
func (k *keeper) read(ctx context.Context, c *endpoint.Conn, f backup.Ref, offset int64) error {
	file, err := k.target.Open(ctx, f, offset)
	if err != nil {
		return err
	}
	defer file.Close()
	if err := say(c, answer{}); err != nil {
		return err
	}
	for buf := make([]byte, maxData/16); ; {
		n, err := io.ReadFull(file, buf)
		if n > 0 {
			if err := c.Send(typeData, buf[:n]); err != nil {
				return err
			}
		}
		switch {
		case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
			return nil
		case err != nil:
			return fault.New(fault.Unavailable, "read backup file: %w", err)
		}
		if len(buf) < maxData {
			buf = make([]byte, 2*len(buf))
		}
	}
}

// list sends all files but the last answer's, which it returns.
func (k *keeper) list(ctx context.Context, c *endpoint.Conn, server string) ([]backup.File, error) {
	all, err := k.target.List(ctx, server)
	if err != nil {
		return nil, err
	}
	for len(all) > maxFiles {
		if err := say(c, answer{Files: all[:maxFiles], More: true}); err != nil {
			return nil, err
		}
		all = all[maxFiles:]
	}
	return all, nil
}
