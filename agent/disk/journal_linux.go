package disk

import (
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

const (
	fallocUnshare = 0x40 // FALLOC_FL_UNSHARE_RANGE

	// A server that starts has better uses for the host's first second.
	ownJournalDelay = time.Second
)

// readJournalExtents says where the journal of the file system in f is.
func readJournalExtents(f *os.File) ([]extent, error) {
	b := make([]byte, superblockSize)
	if _, err := f.ReadAt(b, superblockOffset); err != nil {
		return nil, fmt.Errorf("read superblock of %s: %w", f.Name(), err)
	}
	return journalExtents(b)
}

// writeJournal writes the journal of a new file system in f as it is, so that the pool
// has allocated it: clones share it then, and ownJournal can unshare it.
func writeJournal(f *os.File) error {
	extents, err := readJournalExtents(f)
	if err != nil {
		return err
	}
	buf := make([]byte, mebibyte)
	for _, e := range extents {
		for e.length > 0 {
			b := buf[:min(e.length, mebibyte)]
			if _, err := io.ReadFull(io.NewSectionReader(f, e.offset, e.length), b); err != nil {
				return fmt.Errorf("read journal of %s: %w", f.Name(), err)
			}
			if _, err := f.WriteAt(b, e.offset); err != nil {
				return fmt.Errorf("write journal of %s: %w", f.Name(), err)
			}
			e.offset, e.length = e.offset+int64(len(b)), e.length-int64(len(b))
		}
	}
	return nil
}

// ownJournalSoon gives a new disk, a little after its first attachment, a journal that it
// does not share with its base disk. Otherwise each of the first thousand commits would
// make the pool's file system allocate the blocks and log that: they take twice as long.
// It may be done while the disk is in use: the kernel keeps writes off meanwhile, which
// takes about 20 ms. Disks take turns. Nothing depends on it.
func (p *Pool) ownJournalSoon(id string) {
	p.background.Go(func() {
		select {
		case <-time.After(ownJournalDelay):
		case <-p.closing:
			return
		}
		p.ownJournal.Lock()
		defer p.ownJournal.Unlock()
		f, err := p.openDisk(id)
		if err != nil {
			return // removed meanwhile
		}
		defer f.Close()
		if err := unshareJournal(f); err != nil && !errors.Is(err, unix.ENOSPC) {
			p.log.Warn("cannot unshare the journal of a new disk: its first writes stay slower", "server", id, "error", err)
		}
	})
}

// unshareJournal makes the pool's file system copy what f shares with others of its journal.
func unshareJournal(f *os.File) error {
	extents, err := readJournalExtents(f)
	if err != nil {
		return err
	}
	for _, e := range extents {
		err := unix.EINTR
		for err == unix.EINTR {
			err, _ = unix.Fallocate(int(f.Fd()), fallocUnshare, e.offset, e.length).(unix.Errno)
		}
		if err == unix.EOPNOTSUPP {
			return nil
		}
		if err != 0 {
			return fmt.Errorf("unshare journal: %w", err)
		}
	}
	return nil
}
