package guard

import (
	"fmt"
	"io"
	"os"
)

// openLog returns the end into which a program prints; what it prints is kept in the file
// name, which is moved to name.1 when it is MaxLog long.
func openLog(name string) (*os.File, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("make pipe for the log: %w", err)
	}
	l := &keptLog{name: name}
	if err := l.open(); err != nil {
		return nil, err
	}
	go func() {
		_, _ = io.Copy(l, r)
	}()
	return w, nil
}

// keptLog is a file with a bound. A disk that is full loses lines, never blocks the database.
type keptLog struct {
	name string
	file *os.File
	size int64
}

func (l *keptLog) open() error {
	f, err := os.OpenFile(l.name, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return fmt.Errorf("open log: %w", err)
	}
	st, err := f.Stat()
	if err != nil {
		_ = f.Close()
		return fmt.Errorf("open log: %w", err)
	}
	l.file, l.size = f, st.Size()
	return nil
}

func (l *keptLog) Write(p []byte) (int, error) {
	if l.size+int64(len(p)) > MaxLog {
		if os.Rename(l.name, l.name+".1") == nil {
			old := l.file
			if l.open() == nil {
				_ = old.Close()
			}
		}
	}
	n, _ := l.file.Write(p)
	l.size += int64(n)
	return len(p), nil
}
