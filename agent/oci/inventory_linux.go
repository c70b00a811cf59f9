package oci

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"syscall"

	"github.com/reflejo/terraform-provider-reflejo/agent/console"
	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
	"github.com/reflejo/terraform-provider-reflejo/agent/vserver"
)

// maxStateFile bounds a state file; runc's is about 40 kB.
const maxStateFile = 4 << 20

// List describes all servers that the runtime knows or that a killed agent began to
// make; see vserver.Runtime.
func (r *Runtime) List(context.Context) ([]vserver.Running, error) {
	ids := map[string]bool{}
	for _, dir := range []string{r.cfg.Root, filepath.Join(r.cfg.RunDir, "bundles")} {
		entries, err := os.ReadDir(dir)
		if err != nil {
			return nil, fmt.Errorf("list servers: %w", err)
		}
		for _, e := range entries {
			if e.IsDir() && console.ValidID(e.Name()) {
				ids[e.Name()] = true
			}
		}
	}
	out := make([]vserver.Running, 0, len(ids))
	for id := range ids {
		s, status, err := r.inspect(id)
		switch {
		case fault.Is(err, fault.NotFound): // deleted since
			continue
		case err != nil:
			return nil, err
		}
		run := vserver.Running{ID: id, Pid: s.Pid, Status: status, Started: s.Created}
		if status == vserver.RunStopped {
			run.Pid = 0
		}
		out = append(out, run)
	}
	return out, nil
}

// inspect reads how far the runtime is with a server. A directory without a readable
// state is a creation that was cut off: stopped. fault.NotFound: nothing is there.
func (r *Runtime) inspect(id string) (runState, vserver.RunStatus, error) {
	dir := filepath.Join(r.cfg.Root, id)
	s, err := r.states.read(id, dir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		_, err1 := os.Lstat(dir)
		_, err2 := os.Lstat(r.bundle(id))
		if err1 != nil && err2 != nil {
			return runState{}, "", fault.New(fault.NotFound, "find server %s: the runtime does not know it", id)
		}
		return runState{}, vserver.RunStopped, nil
	case err != nil:
		r.cfg.Log.Warn("read the state of a server; it counts as ended", "server", id, "error", err)
		return runState{}, vserver.RunStopped, nil
	case !alive(s.Pid, s.Ticks):
		return s, vserver.RunStopped, nil
	}
	if _, err := os.Lstat(filepath.Join(dir, fifoFile)); err == nil {
		return s, vserver.RunCreated, nil
	}
	return s, vserver.RunRunning, nil
}

// runningPids are the inits that run now, for lxcfs.
func (r *Runtime) runningPids(ctx context.Context) ([]runState, error) {
	entries, err := os.ReadDir(r.cfg.Root)
	if err != nil {
		return nil, fmt.Errorf("list servers: %w", err)
	}
	var out []runState
	for _, e := range entries {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		if s, status, err := r.inspect(e.Name()); err == nil && status != vserver.RunStopped {
			out = append(out, s)
		}
	}
	return out, nil
}

// stateCache keeps decoded state files: a list of 500 servers decodes nothing twice.
type stateCache struct {
	mu      sync.Mutex
	entries map[string]stateEntry
}

type stateEntry struct {
	version stateVersion
	state   runState
}

// stateVersion tells one content of a file from the next; runtimes replace the file.
type stateVersion struct {
	inode       uint64
	size, mtime int64
}

func (c *stateCache) read(id, dir string) (runState, error) {
	path, decode := filepath.Join(dir, stateFileRunc), decodeRunc
	st, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		path, decode = filepath.Join(dir, stateFileCrun), decodeCrun
		st, err = os.Lstat(path)
	}
	if err != nil {
		return runState{}, fmt.Errorf("read state of server %s: %w", id, err)
	}
	v := stateVersion{size: st.Size(), mtime: st.ModTime().UnixNano()}
	if sys, ok := st.Sys().(*syscall.Stat_t); ok {
		v.inode = sys.Ino
	}
	c.mu.Lock()
	e, ok := c.entries[id]
	c.mu.Unlock()
	if ok && e.version == v {
		return e.state, nil
	}
	if st.Size() > maxStateFile {
		return runState{}, fmt.Errorf("read state of server %s: %d bytes are too many", id, st.Size())
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return runState{}, fmt.Errorf("read state of server %s: %w", id, err)
	}
	s, err := decode(b)
	if err != nil {
		return runState{}, fmt.Errorf("read state of server %s: %w", id, err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.entries == nil {
		c.entries = map[string]stateEntry{}
	}
	c.entries[id] = stateEntry{v, s}
	return s, nil
}

func (c *stateCache) forget(id string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.entries, id)
}

// keyedMutex is one lock per id, kept only while somebody holds or wants it.
type keyedMutex struct {
	mu    sync.Mutex
	locks map[string]*countedLock
}

type countedLock struct {
	sync.Mutex
	users int
}

// lock locks id and returns what unlocks it.
func (k *keyedMutex) lock(id string) (unlock func()) {
	k.mu.Lock()
	if k.locks == nil {
		k.locks = map[string]*countedLock{}
	}
	l := k.locks[id]
	if l == nil {
		l = &countedLock{}
		k.locks[id] = l
	}
	l.users++
	k.mu.Unlock()
	l.Lock()
	return func() {
		l.Unlock()
		k.mu.Lock()
		defer k.mu.Unlock()
		if l.users--; l.users == 0 {
			delete(k.locks, id)
		}
	}
}
