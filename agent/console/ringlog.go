package console

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
)

// LogHalf is the size in bytes at which a log file is set aside. A server's log is its
// newest LogHalf to 2 × LogHalf bytes, in two files: <id>.log and, older, <id>.log.1.
const LogHalf = 1 << 20

func logPath(dir, id string) string { return filepath.Join(dir, id+".log") }

// ringLog is a bounded log in two files. It is not safe for use by several goroutines.
type ringLog struct {
	path string
	half int64
	file *os.File
	size int64
}

// openRingLog continues the log at path. It does not follow a link there.
func openRingLog(path string, half int64) (*ringLog, error) {
	l := &ringLog{path: path, half: half}
	return l, l.open()
}

func (l *ringLog) open() error {
	f, err := os.OpenFile(l.path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return fmt.Errorf("open console log: %w", err)
	}
	st, err := f.Stat()
	if err != nil {
		_ = f.Close()
		return fmt.Errorf("open console log: %w", err)
	}
	l.file, l.size = f, st.Size()
	return nil
}

// Write appends p; when the file is full it is set aside and a new one begun.
func (l *ringLog) Write(p []byte) (int, error) {
	if l.size > 0 && l.size+int64(len(p)) > l.half {
		if err := l.rotate(); err != nil {
			return 0, err
		}
	}
	n, err := l.file.Write(p)
	l.size += int64(n)
	if err != nil {
		return n, fmt.Errorf("write console log: %w", err)
	}
	return n, nil
}

func (l *ringLog) rotate() error {
	if err := os.Rename(l.path, l.path+".1"); err != nil {
		return fmt.Errorf("set console log aside: %w", err)
	}
	old := l.file
	if err := l.open(); err != nil {
		return err
	}
	return old.Close()
}

func (l *ringLog) Close() error { return l.file.Close() }

// OpenLog opens what server id printed, oldest kept byte first, up to this moment. A
// server that has printed nothing has an empty log.
func OpenLog(dir, id string) (io.ReadCloser, error) {
	path := logPath(dir, id)
	newer, err := openPart(path)
	if err != nil {
		return nil, err
	}
	older, err := openPart(path + ".1")
	if err != nil {
		_ = newer.Close()
		return nil, err
	}
	if newer.file != nil && older.file != nil && os.SameFile(newer.info, older.info) { // set aside between the two opens
		_ = older.Close()
		older = &part{}
	}
	return &bothParts{Reader: io.MultiReader(older, newer), parts: []*part{older, newer}}, nil
}

// RemoveLog deletes the log of server id.
func RemoveLog(dir, id string) error {
	path := logPath(dir, id)
	for _, p := range []string{path, path + ".1"} {
		if err := os.Remove(p); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("remove console log: %w", err)
		}
	}
	return nil
}

// part is one of the two files as long as it was when opened; the zero value is empty.
type part struct {
	file *os.File
	info fs.FileInfo
	left int64
}

func openPart(path string) (*part, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return &part{}, nil
	}
	if err != nil {
		return nil, fmt.Errorf("open console log: %w", err)
	}
	info, err := f.Stat()
	if err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("open console log: %w", err)
	}
	return &part{file: f, info: info, left: info.Size()}, nil
}

func (p *part) Read(b []byte) (int, error) {
	if p.left <= 0 || p.file == nil {
		return 0, io.EOF
	}
	if int64(len(b)) > p.left {
		b = b[:p.left]
	}
	n, err := p.file.Read(b)
	p.left -= int64(n)
	return n, err
}

func (p *part) Close() error {
	if p.file == nil {
		return nil
	}
	return p.file.Close()
}

type bothParts struct {
	io.Reader
	parts []*part
}

func (b *bothParts) Close() error { return errors.Join(b.parts[0].Close(), b.parts[1].Close()) }
