package disk

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// Usage describes the pool as it is now.
func (p *Pool) Usage() (Usage, error) {
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(p.root.Fd()), &st); err != nil {
		return Usage{}, fmt.Errorf("examine pool %s: %w", p.cfg.Path, err)
	}
	bases, err := readDir(p.bases)
	if err != nil {
		return Usage{}, fmt.Errorf("list base disks: %w", err)
	}
	u := Usage{
		Path: p.cfg.Path, FileSystem: p.fileSystem, Embedded: p.embedded,
		Size: int64(st.Blocks) * st.Bsize,
		Free: int64(st.Bavail) * st.Bsize,
	}
	u.Used = u.Size - int64(st.Bfree)*st.Bsize
	others, err := p.takenByOthers(u.Used)
	if err != nil {
		return Usage{}, err
	}
	u.Capacity = capacity(u.Size, others, allocated(bases))
	return u, nil
}

// othersAge is for how long it stays good enough what others take.
const othersAge = time.Minute

// takenByOthers is how many of the file system's used bytes are not in the pool's files. It
// looks at every file, so it is not found out anew for every question.
func (p *Pool) takenByOthers(used int64) (int64, error) {
	p.others.Lock()
	defer p.others.Unlock()
	if !p.others.at.IsZero() && time.Since(p.others.at) < othersAge {
		return p.others.bytes, nil
	}
	ours, err := p.ours()
	if err != nil {
		return 0, err
	}
	p.others.at, p.others.bytes = time.Now(), max(0, used-ours)
	return p.others.bytes, nil
}

// ours is how many bytes the pool's files take.
//
// In a file system of the pool's own only the file system itself is somebody else, and it is
// enough to know what the files take if they share nothing. Elsewhere the pool's extents are
// read, because files that share extents, disks with their snapshots, cannot be told apart
// by their sizes; this takes 2 to 3 µs for each extent.
func (p *Pool) ours() (sum int64, err error) {
	if p.alone {
		err := p.eachFile(func(_ *os.File, e entry) error {
			sum += e.used
			return nil
		})
		return sum, err
	}
	var all []span
	err = p.eachFile(func(dir *os.File, e entry) error {
		f, err := openAt(dir, e.name, unix.O_RDONLY, 0)
		if errors.Is(err, os.ErrNotExist) {
			return nil // removed meanwhile
		}
		if err != nil {
			return err
		}
		defer f.Close()
		return eachExtent(context.Background(), f, 0, math.MaxInt64, func(x fiemapExtent) {
			if x.flags&fiemapUnsound == 0 {
				all = append(all, span{int64(x.physical), int64(x.length)})
			}
		})
	})
	return unionBytes(all), err
}

// eachFile goes through the pool's files.
func (p *Pool) eachFile(do func(dir *os.File, e entry) error) error {
	for _, dir := range []*os.File{p.bases, p.variants, p.disks, p.snapshots, p.arrivals} {
		entries, err := readDir(dir)
		if err != nil {
			return fmt.Errorf("list pool: %w", err)
		}
		for _, e := range entries {
			if err := do(dir, e); err != nil {
				return err
			}
		}
	}
	return nil
}

// isAlone reports whether the pool has a file system of its own: it is embedded, or its
// directory is the root of one.
func (p *Pool) isAlone() (bool, error) {
	if p.embedded {
		return true, nil
	}
	st, err := statMount(p.root, "")
	if err != nil || !st.Mounted {
		return false, err
	}
	all, err := mounts()
	for _, m := range all {
		if m.ID == st.MountID {
			return m.Root == "/", err
		}
	}
	return false, err
}

func allocated(entries []entry) []int64 {
	all := make([]int64, len(entries))
	for i, e := range entries {
		all[i] = e.used
	}
	return all
}

// Conditions lists what an operator should know about the pool now:
//
//	PoolIsAFile               the pool is embedded
//	PoolLargerThanConfigured  the configuration asks for less than there is
//	PoolOvercommitted         the host's file system has less room than the pool file may take
//	NoLiveGrow                disks in use cannot grow
//	DiskBusy                  a detached disk is still open somewhere
func (p *Pool) Conditions() ([]Condition, error) {
	p.mu.Lock()
	all := slices.Clone(p.notes)
	stuck := make(map[string]time.Time, len(p.stuck))
	for id, since := range p.stuck {
		stuck[id] = since
	}
	p.mu.Unlock()
	if p.embedded {
		more, err := p.embeddedConditions()
		if err != nil {
			return nil, err
		}
		all = append(all, more...)
	}
	if !mayGrowLive() {
		all = append(all, Condition{"NoLiveGrow", SeverityWarning,
			"The agent lacks CAP_SYS_RESOURCE: disks grow only while their server is stopped. Give the agent's service the capability.", p.since})
	}
	for id, since := range stuck {
		if p.isFree(id) {
			p.setStuck(id, false)
			continue
		}
		all = append(all, Condition{"DiskBusy", SeverityWarning,
			fmt.Sprintf("Disk %s is detached, its data is safe, but a process still has it open; its loop device ends with that process.", id), since})
	}
	return all, nil
}

func (p *Pool) embeddedConditions() ([]Condition, error) {
	all := []Condition{{"PoolIsAFile", SeverityInfo,
		fmt.Sprintf("The file system at %s cannot share extents between files, so the pool is an XFS in the file %s. A partition with XFS or btrfs there would be faster.", p.cfg.Path, poolFile), p.since}}
	path := filepath.Join(p.cfg.Path, poolFile)
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return nil, fmt.Errorf("examine pool file: %w", err)
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(p.cfg.Path, &fs); err != nil {
		return nil, fmt.Errorf("examine file system of %s: %w", p.cfg.Path, err)
	}
	missing, free := st.Size-st.Blocks*512, int64(fs.Bavail)*fs.Bsize
	if missing > free {
		all = append(all, Condition{"PoolOvercommitted", SeverityError,
			fmt.Sprintf("The pool file may still take %d bytes, but its file system has %d free: servers would see I/O errors. Free %d bytes there.", missing, free, missing-free), p.since})
	}
	return all, nil
}

// note keeps a condition that Open found.
func (p *Pool) note(kind string, s Severity, text string) {
	p.notes = append(p.notes, Condition{kind, s, text, p.since})
}

// setStuck remembers that a detached disk is still open somewhere, or that it is not.
func (p *Pool) setStuck(id string, stuck bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !stuck {
		delete(p.stuck, id)
	} else if _, known := p.stuck[id]; !known {
		p.stuck[id] = time.Now()
		p.log.Warn("disk is detached but still open somewhere", "server", id)
	}
}

// isFree reports whether a detached disk has no loop device, or is attached again or gone.
func (p *Pool) isFree(id string) bool {
	f, err := p.openDisk(id)
	if err != nil {
		return true
	}
	defer f.Close()
	if at, err := p.attachment(id); err == nil && at.Root != "" {
		return true
	}
	l, err := findLoop(f)
	if l != nil {
		l.Close()
	}
	return err == nil && l == nil
}

// Trim gives what servers have deleted back: free space of the attached disk to the pool.
// Only pieces of a mebibyte and more are given back, so that disks stay in few extents.
// It returns the bytes given back. A disk that is not attached is left alone.
func (p *Pool) Trim(id string) (int64, error) {
	if err := checkServerID(id); err != nil {
		return 0, err
	}
	at, err := p.attachment(id)
	if err != nil || at.Root == "" {
		return 0, err
	}
	root, err := openDir(at.Root)
	if err != nil {
		return 0, err
	}
	defer root.Close()
	n, err := trim(root, extentHint)
	if errors.Is(err, unix.EOPNOTSUPP) {
		return 0, nil
	}
	return int64(n), err
}
