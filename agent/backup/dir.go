package backup

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"

	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
	"github.com/reflejo/terraform-provider-reflejo/agent/vserver"
)

// dir is a directory as a target. Everything below it is reached through os.Root, so that
// no link in it leads out of it.
type dir struct {
	base string // must be there: a directory that another disk is mounted on is not to be made
	sub  string // below it; made
}

// NewDir is the target that keeps its files in folder sub (local, "." for itself) of the
// directory base, which must be there: fault.Unavailable, since something may have to be
// mounted first.
func NewDir(base, sub string) Target { return dir{base, sub} }

// open is the directory, its folder made.
func (d dir) open() (*os.Root, error) {
	base, err := os.OpenRoot(d.base)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fault.New(fault.Unavailable, "open backup directory: %w", err)
	} else if err != nil {
		return nil, fmt.Errorf("open backup directory: %w", classify(err))
	}
	if filepath.Clean(d.sub) == "." {
		return base, nil
	}
	defer base.Close()
	if err := base.MkdirAll(d.sub, 0o700); err != nil {
		return nil, fmt.Errorf("make backup directory: %w", classify(err))
	}
	root, err := base.OpenRoot(d.sub)
	if err != nil {
		return nil, fmt.Errorf("open backup directory: %w", classify(err))
	}
	return root, nil
}

// in runs f in the directory.
func (d dir) in(verb string, f func(root *os.Root) error) error {
	root, err := d.open()
	if err != nil {
		return err
	}
	defer root.Close()
	if err := f(root); err != nil {
		return fmt.Errorf("%s: %w", verb, classify(err))
	}
	return nil
}

func (d dir) Append(_ context.Context, f Ref, most int64) (Upload, error) {
	if err := f.check(); err != nil {
		return nil, err
	}
	u := &dirUpload{ref: f}
	err := d.in("open backup file for writing", func(root *os.Root) error {
		if _, err := root.Lstat(f.path()); err == nil {
			return fault.New(fault.Exists, "backup %s is complete", f.Backup)
		}
		if err := root.MkdirAll(f.Server, 0o700); err != nil {
			return err
		}
		if err := syncDir(root, "."); err != nil {
			return err
		}
		file, err := root.OpenFile(f.partial(), os.O_RDWR|os.O_CREATE, 0o600)
		if err != nil {
			return err
		}
		if u.state, err = cutTorn(file); err != nil {
			file.Close()
			return err
		}
		u.file, u.bounded = file, bounded{most - u.state.Totals.Bytes}
		return nil
	})
	if err != nil {
		return nil, err
	}
	u.root, err = d.open()
	if err != nil {
		u.file.Close()
		return nil, err
	}
	return u, nil
}

// cutTorn finds out how far the file is good, and cuts off the rest.
func cutTorn(file *os.File) (State, error) {
	s, err := Survey(bufio.NewReaderSize(file, 1<<20))
	if err != nil {
		return State{}, err
	}
	if err := file.Truncate(s.Totals.Bytes); err != nil {
		return State{}, err
	}
	if _, err := file.Seek(s.Totals.Bytes, io.SeekStart); err != nil {
		return State{}, err
	}
	return s, nil
}

type dirUpload struct {
	root  *os.Root
	file  *os.File
	ref   Ref
	state State
	bounded
}

func (u *dirUpload) State() State { return u.state }

func (u *dirUpload) Write(p []byte) (int, error) {
	if err := u.take(len(p)); err != nil {
		return 0, err
	}
	n, err := u.file.Write(p)
	return n, classify(err)
}

func (u *dirUpload) Commit() error {
	defer u.root.Close()
	err := u.file.Sync()
	if cerr := u.file.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = u.root.Rename(u.ref.partial(), u.ref.path())
	}
	if err == nil {
		err = syncDir(u.root, u.ref.Server)
	}
	if err != nil {
		return fmt.Errorf("complete backup file: %w", classify(err))
	}
	return nil
}

func (u *dirUpload) Close() error {
	defer u.root.Close()
	if err := u.file.Close(); err != nil {
		return fmt.Errorf("close backup file: %w", classify(err))
	}
	return nil
}

func (d dir) Open(_ context.Context, f Ref, offset int64) (io.ReadCloser, error) {
	if err := f.check(); err != nil {
		return nil, err
	}
	var file *os.File
	err := d.in("open backup file", func(root *os.Root) error {
		var err error
		if file, err = root.Open(f.path()); errors.Is(err, fs.ErrNotExist) {
			return fault.New(fault.NotFound, "there is no backup %s of server %s", f.Backup, f.Server)
		} else if err != nil {
			return err
		}
		if info, err := file.Stat(); err != nil || !info.Mode().IsRegular() {
			file.Close()
			return errors.Join(err, fault.New(fault.Precondition, "backup %s is no regular file", f.Backup))
		}
		_, err = file.Seek(offset, io.SeekStart)
		return err
	})
	if err != nil {
		return nil, err
	}
	return file, nil
}

func (d dir) List(ctx context.Context, server string) ([]File, error) {
	var all []File
	err := d.in("list backups", func(root *os.Root) error {
		servers := []string{server}
		if server == "" {
			var err error
			if servers, err = names(root, "."); err != nil {
				return err
			}
		}
		for _, s := range servers {
			if !vserver.ValidID(s) {
				continue
			}
			if err := ctx.Err(); err != nil {
				return err
			}
			files, err := listServer(root, s)
			if err != nil {
				return err
			}
			if all = append(all, files...); len(all) > maxFiles {
				return fault.New(fault.Exhausted, "there are more than %d files", maxFiles)
			}
		}
		return nil
	})
	return all, err
}

func listServer(root *os.Root, server string) ([]File, error) {
	found, err := names(root, server)
	if err != nil {
		return nil, err
	}
	var all []File
	for _, name := range found {
		f, ok := fileOf(server, name)
		if !ok {
			continue
		}
		info, err := root.Lstat(path.Join(server, name))
		if errors.Is(err, fs.ErrNotExist) {
			continue // deleted or completed meanwhile
		} else if err != nil {
			return nil, err
		}
		if f.Size = info.Size(); info.Mode().IsRegular() {
			all = append(all, f)
		}
	}
	return all, nil
}

// names are what a folder holds, sorted; none where it is not there.
func names(root *os.Root, folder string) ([]string, error) {
	entries, err := fs.ReadDir(root.FS(), filepath.ToSlash(folder))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	var all []string
	for _, e := range entries {
		all = append(all, e.Name())
	}
	return all, nil
}

func (d dir) Delete(_ context.Context, f Ref) error {
	if err := f.check(); err != nil {
		return err
	}
	return d.in("delete backup file", func(root *os.Root) error {
		for _, name := range []string{f.path(), f.partial()} {
			if err := root.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
		}
		if err := root.Remove(f.Server); err == nil || errors.Is(err, fs.ErrNotExist) { // its last one
			return syncDir(root, ".")
		}
		return syncDir(root, f.Server)
	})
}

func (d dir) Load(_ context.Context, server string) ([]byte, error) {
	name, err := notePath(server)
	if err != nil {
		return nil, err
	}
	var note []byte
	err = d.in("read note", func(root *os.Root) error {
		note, err = readNote(root, name)
		if note == nil && err == nil {
			return fault.New(fault.NotFound, "there is none of server %s", server)
		}
		return err
	})
	return note, err
}

// readNote is a note; nil where there is none.
func readNote(root *os.Root, name string) ([]byte, error) {
	file, err := root.Open(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	} else if err != nil {
		return nil, err
	}
	defer file.Close()
	note, err := io.ReadAll(io.LimitReader(file, maxNote+1))
	if err == nil && len(note) > maxNote {
		return nil, fault.New(fault.Invalid, "a note of more than %d bytes", maxNote)
	}
	return append([]byte{}, note...), err
}

func (d dir) Swap(_ context.Context, server string, old, note []byte) error {
	name, err := notePath(server)
	if err != nil {
		return err
	}
	return d.in("write note", func(root *os.Root) error {
		if err := root.MkdirAll(notesFolder, 0o700); err != nil {
			return err
		}
		lock, err := lockFolder(root, notesFolder)
		if err != nil {
			return err
		}
		defer lock.Close() // the lock goes with the file, and with the process
		is, err := readNote(root, name)
		if err != nil {
			return err
		}
		if (is == nil) != (old == nil) || !bytes.Equal(is, old) {
			return fault.New(fault.Aborted, "the note of server %s changed meanwhile", server)
		}
		return replace(root, name, note)
	})
}

// replace makes a file's content another, whole and durable.
func replace(root *os.Root, name string, content []byte) error {
	next := name + ".new"
	file, err := root.OpenFile(next, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = file.Write(content)
	if err == nil {
		err = file.Sync()
	}
	if cerr := file.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = root.Rename(next, name)
	}
	if err != nil {
		return err
	}
	if err := syncDir(root, path.Dir(name)); err != nil {
		return err
	}
	return syncDir(root, ".")
}

func syncDir(root *os.Root, name string) error {
	folder, err := root.Open(name)
	if err != nil {
		return err
	}
	defer folder.Close()
	return folder.Sync()
}
