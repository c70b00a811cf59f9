package disk

import (
	"context"
	"fmt"
	"os"

	"github.com/reflejo/terraform-provider-reflejo/agent/snapshot"
)

// Open implements [snapshot.Disks].
func (s Snapshots) Open(_ context.Context, id string) (snapshot.Content, error) {
	if err := checkID("snapshot", id); err != nil {
		return nil, err
	}
	f, err := s.pool.openSnapshot(id)
	if err != nil {
		return nil, err
	}
	return newContent(s.pool, f)
}

// OpenDisk implements [snapshot.Disks].
func (s Snapshots) OpenDisk(ctx context.Context, server string) (snapshot.Content, error) {
	if err := checkServerID(server); err != nil {
		return nil, err
	}
	unlock, err := s.pool.busy.lock(ctx, server)
	if err != nil {
		return nil, err
	}
	defer unlock()
	f, err := s.pool.openDetached(server)
	if err != nil {
		return nil, err
	}
	return newContent(s.pool, f)
}

// content is what a file holds. An open file keeps its extents, so they stay comparable
// also when its snapshot is removed meanwhile.
type content struct {
	*os.File
	pool *Pool
	size int64
}

func newContent(p *Pool, f *os.File) (*content, error) {
	st, err := f.Stat()
	if err != nil {
		f.Close()
		return nil, err
	}
	return &content{File: f, pool: p, size: st.Size()}, nil
}

func (c *content) Size() int64 { return c.size }

// Data implements [snapshot.Content].
func (c *content) Data(ctx context.Context) ([]snapshot.Range, error) {
	extents, err := readExtents(ctx, c.File, 0, c.size)
	if err != nil {
		return nil, err
	}
	return dataRanges(extents, c.size), nil
}

// Changed implements [snapshot.Content].
func (c *content) Changed(ctx context.Context, since string) ([]snapshot.Range, error) {
	if err := checkID("snapshot", since); err != nil {
		return nil, err
	}
	older, err := c.pool.openSnapshot(since)
	if err != nil {
		return nil, err
	}
	defer older.Close()
	before, err := readExtents(ctx, older, 0, c.size)
	if err != nil {
		return nil, fmt.Errorf("compare with snapshot %s: %w", since, err)
	}
	now, err := readExtents(ctx, c.File, 0, c.size)
	if err != nil {
		return nil, fmt.Errorf("compare with snapshot %s: %w", since, err)
	}
	return changedRanges(before, now, c.size), nil
}
