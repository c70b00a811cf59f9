package servicetest

import (
	"cmp"
	"context"
	"crypto/sha256"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/reflejo/terraform-provider-reflejo/agent/backup"
	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
	"github.com/reflejo/terraform-provider-reflejo/agent/snapshot"
	"github.com/reflejo/terraform-provider-reflejo/agent/vserver"
)

// Shelf is every target of backups of a site. It is safe for several goroutines.
type Shelf struct {
	mu      sync.Mutex
	backups map[string]backup.View // by id
	damaged map[string]string      // id → what is wrong
}

// NewShelf is an empty one.
func NewShelf() *Shelf {
	return &Shelf{backups: map[string]backup.View{}, damaged: map[string]string{}}
}

// Damage makes a backup fail its verification.
func (s *Shelf) Damage(id, problem string) { s.mu.Lock(); s.damaged[id] = problem; s.mu.Unlock() }

// Copies keeps the snapshots of one host in memory, and backups on a shelf. What is asked
// for is done at once. It is service.Snapshots; Backups and Captures give its other sides.
type Copies struct {
	host  string
	shelf *Shelf
	find  func(idOrName string) (vserver.View, error)
	now   func() time.Time
	// Disk makes a server's disk of a snapshot; nil: there are no disks.
	Disk func(ctx context.Context, server, image string, size int64) error

	mu        sync.Mutex
	snapshots map[string]snapshot.View
	watchers  map[chan snapshot.View]string
	failing   string
}

// NewCopies keeps the snapshots of servers that find finds on a host.
func NewCopies(host string, shelf *Shelf, find func(idOrName string) (vserver.View, error), now func() time.Time) *Copies {
	return &Copies{host: host, shelf: shelf, find: find, now: now, snapshots: map[string]snapshot.View{}, watchers: map[chan snapshot.View]string{}}
}

// FailNext makes what begins from now on fail with a text; "" ends that.
func (c *Copies) FailNext(text string) { c.mu.Lock(); c.failing = text; c.mu.Unlock() }

func sum(text string) string { return fmt.Sprintf("sha256:%x", sha256.Sum256([]byte(text))) }

// Create implements service.Snapshots.
func (c *Copies) Create(_ context.Context, r snapshot.Request) (snapshot.View, error) {
	if err := r.Validate(); err != nil {
		return snapshot.View{}, err
	}
	v, err := c.find(r.Server)
	if err != nil {
		return snapshot.View{}, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if s, ok := c.snapshots[r.ID]; ok {
		return s, nil
	}
	r.Name = cmp.Or(r.Name, fmt.Sprintf("%s-%d", v.Spec.Name, len(c.snapshots)+1))
	for _, other := range c.snapshots {
		if other.Server == v.Spec.ID && other.Name == r.Name {
			return snapshot.View{}, &fault.Error{Kind: fault.Exists, Field: "name", Err: fmt.Errorf("snapshot %s of server %s is there already", r.Name, v.Spec.Name)}
		}
	}
	return c.put(v, r), nil
}

// put keeps a snapshot of a server as it is. c.mu is held.
func (c *Copies) put(v vserver.View, r snapshot.Request) snapshot.View {
	s := snapshot.View{State: snapshot.PhaseReady, Exclusive: 4 << 20, Reserved: 8 << 20, Record: snapshot.Record{
		ID: r.ID, Server: v.Spec.ID, ServerName: v.Spec.Name, Host: c.host, Name: r.Name, Description: r.Description, Labels: r.Labels,
		Consistency: cmp.Or(r.Consistency, snapshot.ConsistencyFilesystem), Origin: cmp.Or(r.Origin, snapshot.OriginManual), Phase: snapshot.PhaseReady,
		ServerState: v.State, Size: v.Spec.Disk.Size, Pause: 12 * time.Millisecond, Checksum: sum(r.Name), Created: c.now(), Spec: v.Spec, Image: vserver.Image{ID: v.Spec.Image},
	}}
	if c.failing != "" {
		s.State, s.Phase, s.Checksum = snapshot.PhaseFailed, snapshot.PhaseFailed, ""
		s.Operation = vserver.Operation{Kind: "create", Err: c.failing, ErrKind: fault.Exhausted.String(), Done: true, Started: c.now()}
	}
	return c.set(s)
}

// set stores a view and tells the watchers. c.mu is held.
func (c *Copies) set(s snapshot.View) snapshot.View {
	c.snapshots[s.ID] = s
	if s.Gone {
		delete(c.snapshots, s.ID)
	}
	for ch, id := range c.watchers {
		if id == s.ID {
			select {
			case <-ch:
			default:
			}
			ch <- s
		}
	}
	return s
}

func (c *Copies) get(id string) (snapshot.View, error) {
	s, ok := c.snapshots[id]
	if !ok {
		return s, fault.New(fault.NotFound, "snapshot %q: host %s has none of this id", id, c.host)
	}
	return s, nil
}

// Get implements service.Snapshots.
func (c *Copies) Get(_ context.Context, id string) (snapshot.View, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.get(id)
}

// List implements service.Snapshots.
func (c *Copies) List(_ context.Context, server string) []snapshot.View {
	c.mu.Lock()
	defer c.mu.Unlock()
	all := slices.DeleteFunc(slices.Collect(maps.Values(c.snapshots)), func(s snapshot.View) bool { return server != "" && s.Server != server })
	slices.SortFunc(all, func(a, b snapshot.View) int { return cmp.Or(a.Created.Compare(b.Created), strings.Compare(a.ID, b.ID)) })
	return all
}

// Watch implements service.Snapshots.
func (c *Copies) Watch(ctx context.Context, id string) (<-chan snapshot.View, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	s, err := c.get(id)
	if err != nil {
		return nil, err
	}
	ch := make(chan snapshot.View, 1)
	ch <- s
	c.watchers[ch] = id
	context.AfterFunc(ctx, func() { c.mu.Lock(); delete(c.watchers, ch); c.mu.Unlock() })
	return ch, nil
}

// Update implements service.Snapshots.
func (c *Copies) Update(id, name, description string, labels map[string]string) (snapshot.View, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	s, err := c.get(id)
	if err != nil {
		return s, err
	}
	s.Name, s.Description, s.Labels = name, description, labels
	return c.set(s), nil
}

// Delete implements service.Snapshots.
func (c *Copies) Delete(_ context.Context, id string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	s, err := c.get(id)
	if err != nil {
		return err
	}
	s.Gone, s.State = true, snapshot.PhaseDeleting
	c.set(s)
	return nil
}

// Move takes the snapshots of a server to another host, as a migration may.
func (c *Copies) Move(server string, to *Copies) {
	for _, s := range c.List(context.Background(), server) {
		_ = c.Delete(context.Background(), s.ID)
		s.Host = to.host
		to.mu.Lock()
		to.set(s)
		to.mu.Unlock()
	}
}

// Captures is what servers need of it.
func (c *Copies) Captures() vserver.Captures { return captures{c} }

type captures struct{ c *Copies }

func (x captures) Find(id string) (vserver.Capture, error) {
	x.c.mu.Lock()
	defer x.c.mu.Unlock()
	s, err := x.c.get(id)
	return vserver.Capture{ID: s.ID, Server: s.Server, Name: s.Name, Size: s.Size, Image: s.Image}, err
}

func (x captures) Keep(_ context.Context, id string, r vserver.Record) error {
	x.c.mu.Lock()
	defer x.c.mu.Unlock()
	if _, err := x.c.get(id); err != nil {
		x.c.put(vserver.View{Spec: r.Spec, State: vserver.StateStopped}, snapshot.Request{ID: id, Name: "safety", Origin: snapshot.OriginSafety})
	}
	return nil
}

func (x captures) Copy(ctx context.Context, id, server string, size int64) error {
	x.c.mu.Lock()
	s, err := x.c.get(id)
	x.c.mu.Unlock()
	if err != nil || x.c.Disk == nil {
		return err
	}
	return x.c.Disk(ctx, server, s.Image.ID, size)
}

func (x captures) Gone(ctx context.Context, server string, remove bool) error {
	for _, s := range x.c.List(ctx, server) {
		if remove {
			_ = x.c.Delete(ctx, s.ID)
		}
	}
	return nil
}

func (x captures) Reserved() (all int64) {
	for _, s := range x.c.List(context.Background(), "") {
		all += s.Reserved
	}
	return all
}
