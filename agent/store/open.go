package store

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"
	"syscall"
	"time"

	bolt "go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"

	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
)

const (
	// schema is the version of what the buckets hold. A file of an older version is
	// converted by Open (there is none yet); a newer one is refused.
	schema = 1

	// lockWait is how long Open waits for another process to let go: long enough for the
	// agent before an upgrade to finish, short enough to be answered at a terminal.
	lockWait = 5 * time.Second

	ownBucket = "_store"
	schemaKey = "schema"
)

// Open opens the state file, making it where there is none (mode 0600, its directory must
// exist). Outcomes besides success:
//   - another process has it open, for longer than five seconds: fault.Unavailable, naming
//     the process where the system tells;
//   - a newer version of reflejo wrote it: fault.Precondition;
//   - it is damaged, or no state file: fault.Precondition; nothing in it is changed;
//   - no space to make it: fault.Exhausted.
func Open(path string) (*DB, error) { return open(path, lockWait) }

func open(path string, wait time.Duration) (*DB, error) {
	if err := create(path, wait); err != nil {
		return nil, err
	}
	db, err := openExisting(path, wait)
	if err != nil {
		return nil, err
	}
	removeLeftovers(path)
	return db, nil
}

// create makes the file whole under another name and links it into place: a kill in between
// leaves no half-made file, and of two processes doing so at once the second finds the first's.
func create(path string, wait time.Duration) error {
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
		return nil // there, or openExisting will say why not
	}
	temp := fmt.Sprintf("%s.new-%d-%d", path, os.Getpid(), time.Now().UnixNano())
	defer os.Remove(temp)
	b, err := bolt.Open(temp, 0o600, &bolt.Options{Timeout: wait})
	if err != nil {
		return (&DB{path: path}).classify(fmt.Errorf("make state file %s: %w", path, err))
	}
	db := &DB{bolt: b, path: path}
	err = db.Update(func(tx *Tx) error { return tx.Put(ownBucket, schemaKey, schema) })
	if cerr := b.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return fmt.Errorf("make state file %s: %w", path, err)
	}
	if err := os.Link(temp, path); err != nil {
		if _, serr := os.Lstat(path); serr == nil {
			return nil
		}
		return fmt.Errorf("make state file %s: %w", path, err)
	}
	return syncDir(filepath.Dir(path))
}

// removeLeftovers removes what a killed create left. Only the holder of the lock calls it.
func removeLeftovers(path string) {
	entries, err := os.ReadDir(filepath.Dir(path))
	if err != nil {
		return
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), filepath.Base(path)+".new-") {
			os.Remove(filepath.Join(filepath.Dir(path), e.Name()))
		}
	}
}

func openExisting(path string, wait time.Duration) (*DB, error) {
	if info, err := os.Stat(path); err != nil {
		return nil, fmt.Errorf("open state file: %w", err)
	} else if !info.Mode().IsRegular() {
		return nil, fault.New(fault.Precondition, "open state file %s: it is not a regular file", path)
	} else if info.Size() == 0 { // bbolt would take it for a new one, and the state would be lost silently
		return nil, damaged(path, errors.New("the file is empty"))
	}
	var file *os.File
	db := &DB{path: path}
	err := guard(func() (err error) {
		db.bolt, err = bolt.Open(path, 0o600, &bolt.Options{Timeout: wait, OpenFile: func(name string, flag int, mode os.FileMode) (*os.File, error) {
			var err error
			file, err = os.OpenFile(name, flag&^os.O_CREATE, mode)
			return file, err
		}})
		return err
	})
	var errno syscall.Errno
	switch {
	case errors.Is(err, bolterrors.ErrTimeout):
		return nil, fault.New(fault.Unavailable, "open state file %s: %s has it open; only one agent can use a state directory: stop the other one", path, holder(path))
	case err != nil && (file == nil || errors.As(err, &errno)):
		return nil, db.classify(fmt.Errorf("open state file: %w", err))
	case err != nil: // the system can read it, bbolt cannot
		release(file)
		return nil, damaged(path, err)
	}
	if err := db.check(); err != nil {
		guard(db.bolt.Close)
		return nil, err
	}
	return db, nil
}

func damaged(path string, err error) error {
	return fault.New(fault.Precondition, "open state file %s: it is damaged or no state file; restore it from a backup, or move it away to begin with an empty one: %w", path, err)
}

// check reads the whole file once, so that damage shows at the start and not as a crash
// later, and compares the schema version. The file is small: some kilobytes per server.
func (db *DB) check() error {
	info, err := os.Stat(db.path)
	if err != nil {
		return fmt.Errorf("open state file: %w", err)
	}
	version := 0
	err = guard(func() error {
		return db.bolt.View(func(t *bolt.Tx) error {
			// First of all: reading mapped pages beyond the file's end would be a fault.
			if t.Size() > info.Size() {
				return fmt.Errorf("it was cut: %d bytes of %d", info.Size(), t.Size())
			}
			if _, err := (&Tx{bolt: t}).Get(ownBucket, schemaKey, &version); err != nil {
				return err
			}
			return t.ForEach(checkBucket)
		})
	})
	switch {
	case err != nil:
		return damaged(db.path, err)
	case version == 0:
		return damaged(db.path, errors.New("it has no schema version"))
	case version > schema:
		return fault.New(fault.Precondition, "open state file %s: it has schema version %d, this program knows up to %d: a newer reflejo wrote it; install that version again", db.path, version, schema)
	}
	return nil
}

func checkBucket(name []byte, b *bolt.Bucket) error {
	return b.ForEach(func(k, v []byte) error {
		if !json.Valid(v) {
			return fmt.Errorf("value of %q in bucket %q is not JSON", k, name)
		}
		return nil
	})
}

var errPanicked = errors.New("unreadable page")

// guard turns bbolt's panics and memory faults on damaged pages into errors.
func guard(fn func() error) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("%w: %v", errPanicked, r)
		}
	}()
	return fn()
}
