package console

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
)

// Tail reads a server's log as it grows: all that is kept, then what comes. Read returns
// io.EOF when there is nothing more now, and may be called again. A reader that falls more
// than the log's size behind misses what was dropped meanwhile. Not for several goroutines.
type Tail struct {
	path string
	file *os.File // being read, nil until the first one is there
}

// OpenTail opens the log of server id, which may have printed nothing yet.
func OpenTail(dir, id string) (*Tail, error) {
	t := &Tail{path: logPath(dir, id)}
	if err := t.advance(); err != nil {
		return nil, err
	}
	return t, nil
}

// Read implements io.Reader; see Tail.
func (t *Tail) Read(b []byte) (int, error) {
	for {
		if t.file != nil {
			if n, err := t.file.Read(b); n > 0 || !errors.Is(err, io.EOF) {
				return n, err
			}
		}
		before := t.file
		current, err := t.isNewest()
		if err != nil {
			return 0, err
		}
		if current {
			return 0, io.EOF
		}
		if t.file != nil { // what was written between our reading and its being set aside
			if n, err := t.file.Read(b); n > 0 || !errors.Is(err, io.EOF) {
				return n, err
			}
		}
		if err := t.advance(); err != nil {
			return 0, err
		}
		if t.file == before {
			return 0, io.EOF
		}
	}
}

// Close closes the file.
func (t *Tail) Close() error {
	if t.file == nil {
		return nil
	}
	return t.file.Close()
}

// isNewest reports whether nothing newer than the file being read exists.
func (t *Tail) isNewest() (bool, error) {
	info, err := os.Stat(t.path)
	if errors.Is(err, fs.ErrNotExist) {
		return true, nil
	}
	if err != nil {
		return false, fmt.Errorf("follow console log: %w", err)
	}
	return t.file != nil && t.reads(info), nil
}

func (t *Tail) reads(info fs.FileInfo) bool {
	own, err := t.file.Stat()
	return err == nil && os.SameFile(own, info)
}

// advance goes on to the file that comes after the one being read: the older of the two,
// unless that is the one being read.
func (t *Tail) advance() error {
	// The newer first: if it is set aside now, it is found again as the older one.
	newer, err := openIfThere(t.path)
	if err != nil {
		return err
	}
	older, err := openIfThere(t.path + ".1")
	if err != nil {
		return errors.Join(err, closeIfThere(newer))
	}
	next, other := older, newer
	if older == nil || (t.file != nil && sameOpenFile(older, t.file)) {
		next, other = newer, older
	}
	err = closeIfThere(other)
	if next == nil {
		return err
	}
	err = errors.Join(err, closeIfThere(t.file))
	t.file = next
	return err
}

func openIfThere(path string) (*os.File, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("open console log: %w", err)
	}
	return f, nil
}

func closeIfThere(f *os.File) error {
	if f == nil {
		return nil
	}
	return f.Close()
}

func sameOpenFile(a, b *os.File) bool {
	ai, aerr := a.Stat()
	bi, berr := b.Stat()
	return aerr == nil && berr == nil && os.SameFile(ai, bi)
}
