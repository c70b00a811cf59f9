package endpoint

import (
	"errors"
	"net"
	"os"
	"sync/atomic"
	"time"
)

// link is the connection below TLS. It ends reads and writes when the other side has been
// silent for too long, and only then: a write may wait for as long as the other side is
// heard, because it may be busy with what it has. The deadlines are kept here because a TLS
// connection can't be used after one has passed.
type link struct {
	net.Conn
	heard   atomic.Int64 // when the other side was heard last, ns since start
	start   time.Time
	limited atomic.Bool // writes have a deadline of their own
}

func newLink(c net.Conn) *link { return &link{Conn: c, start: time.Now()} }

func (l *link) Read(p []byte) (int, error) {
	if err := l.Conn.SetReadDeadline(time.Now().Add(silence)); err != nil {
		return 0, err
	}
	n, err := l.Conn.Read(p)
	if n > 0 {
		l.heard.Store(int64(time.Since(l.start)))
	}
	return n, err
}

func (l *link) Write(p []byte) (int, error) {
	written := 0
	for {
		if !l.limited.Load() {
			if err := l.Conn.SetWriteDeadline(time.Now().Add(silence)); err != nil {
				return written, err
			}
		}
		n, err := l.Conn.Write(p[written:])
		written += n
		alive := n > 0 || time.Since(l.start)-time.Duration(l.heard.Load()) < silence
		if err == nil || !errors.Is(err, os.ErrDeadlineExceeded) || l.limited.Load() || !alive {
			return written, err
		}
	}
}

// limitWrites gives all further writes this long, whatever is heard.
func (l *link) limitWrites(d time.Duration) error {
	l.limited.Store(true)
	return l.Conn.SetWriteDeadline(time.Now().Add(d))
}
