package quiesce

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
	"github.com/reflejo/terraform-provider-reflejo/agent/undo"
)

// Target is what is made quiet.
type Target struct {
	// Root is where the file system is mounted.
	Root string
	// Tasks are the groups whose tasks write there. Without any only the file system is
	// frozen: the server is suspended already, and stays so.
	Tasks []Freezer
	// Watchdog is the command that runs Watch; nil means this program with the argument
	// Command.
	Watchdog []string
	// Held, if not nil, is told by loud for how long tasks and writers were held up.
	Held func(time.Duration)
}

// Freezer are the files of a group of tasks that stop and continue it.
type Freezer struct {
	Path   string // is written to
	Freeze string // what stops the group
	Thaw   string // what continues it
	State  string // is read; may be Path
	Frozen string // the line there that says that all tasks have stopped
}

const (
	fiFreeze = 0xc0045877 // FIFREEZE _IOWR('X', 119, int)
	fiThaw   = 0xc0045878 // FITHAW _IOWR('X', 120, int)

	// A sync that took longer than that is followed by another, which has less to do: what
	// is left to be written is written while everybody waits.
	quickSync = 50 * time.Millisecond

	// statePause is the time between two looks at a freezer's state.
	statePause = 200 * time.Microsecond
)

// Quiet freezes tasks and file system. What it freezes is thawed by loud, which has to be
// called, or by the watchdog once limit has passed since the tasks were frozen, or when this
// process ends. loud's error says that what was done meanwhile was not done in quiet.
//
// Tasks that do not stop in time are fault.Unavailable: one waits for something that does
// not come. A file system that somebody else has frozen is fault.Precondition.
func Quiet(ctx context.Context, target Target, limit time.Duration) (loud func() error, err error) {
	if limit <= 0 {
		return nil, fault.New(fault.Invalid, "freeze %s: a limit of %v is none", target.Root, limit)
	}
	var failed undo.Stack
	defer failed.Run()
	h := &hold{target: target}
	if h.root, err = openRoot(target.Root); err != nil {
		return nil, err
	}
	failed.Add(h.close)
	for _, f := range target.Tasks {
		file, err := openFreezer(f)
		if err != nil {
			return nil, err
		}
		h.freezers = append(h.freezers, file)
	}
	if h.watchdog, err = startWatchdog(target, h.root, h.freezers, limit); err != nil {
		return nil, fmt.Errorf("freeze %s: start watchdog: %w", target.Root, err)
	}
	failed.Add(func() { _, _ = h.watchdog.end() })
	for range 2 {
		began := time.Now()
		if err := unix.Syncfs(int(h.root.Fd())); err != nil {
			return nil, fmt.Errorf("sync %s: %w", target.Root, err)
		}
		if time.Since(began) < quickSync {
			break
		}
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	failed.Add(func() { _ = h.thaw() })
	if err := h.freeze(ctx); err != nil {
		return nil, fmt.Errorf("freeze %s: %w", target.Root, err)
	}
	failed.Keep()
	return sync.OnceValue(h.loud), nil
}

// hold is what Quiet holds until it is loud again.
type hold struct {
	target   Target
	root     *os.File
	freezers []*os.File // one for each of target.Tasks
	watchdog *watchdog
	began    time.Time
	frozen   bool // by us, the file system
}

// freeze stops the tasks first: they do not run into a frozen file system then. Freezing
// that writes what they have left in memory. Last, the watchdog is asked whether it has
// thawed anything already.
func (h *hold) freeze(ctx context.Context) error {
	h.began = time.Now()
	if err := h.watchdog.arm(); err != nil {
		return err
	}
	for i, f := range h.target.Tasks {
		if err := freezeTasks(ctx, f, h.freezers[i]); err != nil {
			return err
		}
	}
	if err := h.freezeFile(); err != nil {
		return err
	}
	return h.watchdog.check()
}

// freezeFile freezes the file system.
func (h *hold) freezeFile() error {
	err := expedited(func() error { return unix.IoctlSetInt(int(h.root.Fd()), fiFreeze, 0) })
	if errors.Is(err, unix.EBUSY) {
		return fault.New(fault.Precondition, "the file system is frozen by another program")
	}
	if err != nil {
		return err
	}
	h.frozen = true
	return nil
}

// freezeTasks stops the tasks of one group and waits until all have stopped.
func freezeTasks(ctx context.Context, f Freezer, file *os.File) error {
	for {
		// Again and again: so the kernel (cgroup v1) takes in what was forked meanwhile.
		if err := write(file, f.Freeze); err != nil {
			return err
		}
		state, err := os.ReadFile(f.State)
		if err != nil {
			return fmt.Errorf("read state of tasks: %w", err)
		}
		for line := range strings.Lines(string(state)) {
			if strings.TrimSpace(line) == f.Frozen {
				return nil
			}
		}
		select {
		case <-time.After(statePause):
		case <-ctx.Done():
			return fault.New(fault.Unavailable, "tasks do not stop: %w", ctx.Err())
		}
	}
}

// thaw undoes what freeze has done so far. It is an error if the file system was not frozen
// any more.
func (h *hold) thaw() error {
	var errs []error
	if h.frozen {
		h.frozen = false
		if err := thawFile(h.root); err != nil {
			errs = append(errs, err)
		}
	}
	for i, f := range h.target.Tasks {
		errs = append(errs, write(h.freezers[i], f.Thaw))
	}
	return errors.Join(errs...)
}

// loud ends the quiet.
func (h *hold) loud() error {
	err := h.thaw()
	held := time.Since(h.began)
	fired, endErr := h.watchdog.end()
	h.close()
	if h.target.Held != nil {
		h.target.Held(held)
	}
	err = errors.Join(err, endErr)
	if fired {
		err = errors.Join(err, fault.New(fault.Unavailable, "the limit has passed, and the watchdog has thawed"))
	}
	if err != nil {
		return fmt.Errorf("thaw %s: it was not quiet all the time: %w", h.target.Root, err)
	}
	return nil
}

func (h *hold) close() {
	for _, f := range append(h.freezers, h.root) {
		_ = f.Close()
	}
}

// Recover thaws the file systems mounted at roots, if they are frozen: for an agent whose
// predecessor was killed together with its watchdog.
func Recover(roots []string) error {
	var errs []error
	for _, path := range roots {
		root, err := openRoot(path)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		if err := thawFile(root); err != nil && !errors.Is(err, unix.EINVAL) { // it was not frozen
			errs = append(errs, err)
		}
		_ = root.Close()
	}
	return errors.Join(errs...)
}

func openRoot(path string) (*os.File, error) {
	f, err := os.OpenFile(path, unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open file system: %w", err)
	}
	return f, nil
}

// openFreezer opens the file for writing, so that whoever holds it can thaw whatever becomes
// of its name. The descriptor blocks: control files can be polled, so Go's runtime would
// take an EAGAIN of the kernel's for "wait until writable".
func openFreezer(f Freezer) (*os.File, error) {
	fd, err := unix.Open(f.Path, unix.O_WRONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open freezer: %w", &os.PathError{Op: "open", Path: f.Path, Err: err})
	}
	return os.NewFile(uintptr(fd), f.Path), nil
}

func thawFile(root *os.File) error {
	if err := unix.IoctlSetInt(int(root.Fd()), fiThaw, 0); err != nil {
		return fmt.Errorf("thaw file system: %w", err)
	}
	return nil
}

// write writes a value to a control file. They ignore the offset.
func write(file *os.File, value string) error {
	for {
		_, err := unix.Pwrite(int(file.Fd()), []byte(value), 0)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return fmt.Errorf("write %q: %w", value, &os.PathError{Op: "write", Path: file.Name(), Err: err})
		}
		return nil
	}
}
