package vservertest

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
	"github.com/reflejo/terraform-provider-reflejo/agent/vserver"
)

// Limits is a vserver.Limits in memory. It keeps state and prints itself; tasks and the
// memory they hold are put in by the test with Run.
type Limits struct {
	mu     sync.Mutex
	groups map[string]*limitsGroup
}

type limitsGroup struct {
	want   vserver.LimitSet
	frozen bool
	tasks  int
	held   int64
}

var _ vserver.Limits = (*Limits)(nil)

// NewLimits is an empty host.
func NewLimits() *Limits { return &Limits{groups: map[string]*limitsGroup{}} }

// Run puts tasks that together hold some memory into a server's group.
func (l *Limits) Run(id string, tasks int, held int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	g := l.groups[id]
	g.tasks += tasks
	g.held += held
}

// Set implements vserver.Limits.
func (l *Limits) Set(_ context.Context, id string, want vserver.LimitSet) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if _, err := uuid.Parse(id); err != nil || id != strings.ToLower(id) {
		return fault.New(fault.Invalid, "set limits of server %q: no UUID in lower case", id)
	}
	if want.Memory.Max <= 0 {
		return fault.Field("memory.max", "set limits of server %s: no memory", id)
	}
	g := l.groups[id]
	if g == nil {
		g = &limitsGroup{}
		l.groups[id] = g
	}
	if g.held > want.Memory.Max {
		return &fault.Error{Kind: fault.Precondition, Field: "memory.max", Err: fmt.Errorf("lower memory of server %s to %d bytes: %d are in use", id, want.Memory.Max, g.held)}
	}
	g.want = want
	return nil
}

// Freeze implements vserver.Limits.
func (l *Limits) Freeze(_ context.Context, id string, frozen bool) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	g := l.groups[id]
	if g == nil {
		return fault.New(fault.NotFound, "freeze server %s: no group", id)
	}
	g.frozen = frozen
	return nil
}

// Kill implements vserver.Limits.
func (l *Limits) Kill(_ context.Context, id string) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if g := l.groups[id]; g != nil {
		g.tasks, g.held, g.frozen = 0, 0, false
	}
	return nil
}

// Usage implements vserver.Limits.
func (l *Limits) Usage(_ context.Context, id string) (vserver.Usage, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	g := l.groups[id]
	if g == nil {
		return vserver.Usage{}, fault.New(fault.NotFound, "read usage of server %s: no group", id)
	}
	return vserver.Usage{MemoryUsed: g.held, Tasks: int64(g.tasks)}, nil
}

// Remove implements vserver.Limits.
func (l *Limits) Remove(_ context.Context, id string) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.groups, id)
	return nil
}

// List implements vserver.Limits.
func (l *Limits) List(context.Context) ([]vserver.GroupInfo, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	var out []vserver.GroupInfo
	for _, id := range slices.Sorted(maps.Keys(l.groups)) {
		g := l.groups[id]
		out = append(out, vserver.GroupInfo{ID: id, Frozen: g.frozen, Tasks: g.tasks})
	}
	return out, nil
}

// String lists the groups with their limits, one server per line, by id.
func (l *Limits) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	var b strings.Builder
	for _, id := range slices.Sorted(maps.Keys(l.groups)) {
		g := l.groups[id]
		w := g.want
		fmt.Fprintf(&b, "%s cpu %dm weight %d pin %q memory %d high %d swap %d pids %d", id,
			w.CPU.MilliCores, w.CPU.Weight, w.CPU.Pin, w.Memory.Max, w.Memory.High, w.Memory.Swap, w.Processes)
		fmt.Fprintf(&b, " disk %d:%d rbps %d wbps %d riops %d wiops %d ids %d+%d", w.Major, w.Minor,
			w.Disk.ReadBPS, w.Disk.WriteBPS, w.Disk.ReadIOPS, w.Disk.WriteIOPS, w.IDs.First, w.IDs.Size)
		if g.frozen {
			b.WriteString(" frozen")
		}
		b.WriteByte('\n')
	}
	return b.String()
}

// LimitsHost is a vserver.Limits and the means to act as a server's programs.
type LimitsHost struct {
	Limits vserver.Limits
	// Run puts tasks into the server's group, which has limits already, that together
	// hold this much memory, and returns when they do. A task counts until it has ended.
	Run func(t *testing.T, id string, tasks int, held int64)
}

// LimitsContract is what every vserver.Limits keeps. newHost gives an empty host.
func LimitsContract(t *testing.T, newHost func(t *testing.T) LimitsHost) {
	for name, test := range map[string]func(*testing.T, LimitsHost){
		"set is idempotent and listed": limitsSet,
		"refuses bad input":            limitsInvalid,
		"what is not there":            limitsAbsent,
		"freeze and thaw":              limitsFreeze,
		"kill, frozen or not":          limitsKill,
		"remove with tasks":            limitsRemove,
		"memory below use":             limitsMemoryBelowUse,
	} {
		t.Run(name, func(t *testing.T) { test(t, newHost(t)) })
	}
}

// SomeLimits is an ordinary server's limits: half a core, 64 MiB, 64 tasks.
func SomeLimits() vserver.LimitSet {
	return vserver.LimitSet{
		CPU:       vserver.CPU{MilliCores: 500, Weight: 100},
		Memory:    vserver.Memory{Max: 64 << 20},
		Processes: 64,
		IDs:       vserver.IDRange{First: 1 << 20, Size: 65536},
	}
}

func limitsGroupOf(t *testing.T, h LimitsHost, id string) (vserver.GroupInfo, bool) {
	t.Helper()
	list, err := h.Limits.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, g := range list {
		if g.ID == id {
			return g, true
		}
	}
	return vserver.GroupInfo{}, false
}

func limitsMust(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func limitsSet(t *testing.T, h LimitsHost) {
	id, want := uuid.NewString(), SomeLimits()
	for range 2 {
		limitsMust(t, h.Limits.Set(t.Context(), id, want))
	}
	want.CPU.MilliCores, want.Memory.Max, want.Processes = 1000, 128<<20, 100
	limitsMust(t, h.Limits.Set(t.Context(), id, want))
	if _, ok := limitsGroupOf(t, h, id); !ok {
		t.Fatal("the group is not listed")
	}
	h.Run(t, id, 3, 1<<20)
	if g, _ := limitsGroupOf(t, h, id); g.Tasks < 3 || g.Frozen {
		t.Fatalf("listed as %+v, want 3 tasks, not frozen", g)
	}
	want.Memory = vserver.Memory{Max: 32 << 20, High: 24 << 20}
	limitsMust(t, h.Limits.Set(t.Context(), id, want)) // lower, live
	if u, err := h.Limits.Usage(t.Context(), id); err != nil || u.Tasks < 3 || u.MemoryUsed < 1<<20 {
		t.Fatalf("usage %+v, %v; want 3 tasks and 1 MiB", u, err)
	}
	limitsMust(t, h.Limits.Remove(t.Context(), id))
}

func limitsInvalid(t *testing.T, h LimitsHost) {
	for _, id := range []string{"", "..", "a/b", strings.ToUpper(uuid.NewString())} {
		if err := h.Limits.Set(t.Context(), id, SomeLimits()); !fault.Is(err, fault.Invalid) {
			t.Errorf("Set of server %q: %v, want fault.Invalid", id, err)
		}
	}
	want, id := SomeLimits(), uuid.NewString()
	want.Memory.Max = 0
	if err := h.Limits.Set(t.Context(), id, want); !fault.Is(err, fault.Invalid) || fault.FieldOf(err) != "memory.max" {
		t.Errorf("Set without memory: %v, want fault.Invalid about memory.max", err)
	}
	if _, ok := limitsGroupOf(t, h, id); ok {
		t.Error("a refused Set left a group behind")
	}
}

func limitsAbsent(t *testing.T, h LimitsHost) {
	id := uuid.NewString()
	if _, err := h.Limits.Usage(t.Context(), id); !fault.Is(err, fault.NotFound) {
		t.Errorf("Usage: %v, want fault.NotFound", err)
	}
	if err := h.Limits.Freeze(t.Context(), id, true); !fault.Is(err, fault.NotFound) {
		t.Errorf("Freeze: %v, want fault.NotFound", err)
	}
	if err := h.Limits.Kill(t.Context(), id); err != nil {
		t.Errorf("Kill: %v", err)
	}
	if err := h.Limits.Remove(t.Context(), id); err != nil {
		t.Errorf("Remove: %v", err)
	}
	if list, err := h.Limits.List(t.Context()); err != nil || len(list) != 0 {
		t.Errorf("List: %v, %v; want nothing", list, err)
	}
}

func limitsFreeze(t *testing.T, h LimitsHost) {
	id := uuid.NewString()
	limitsMust(t, h.Limits.Set(t.Context(), id, SomeLimits()))
	h.Run(t, id, 2, 0)
	for _, frozen := range []bool{true, true, false, false, true} {
		limitsMust(t, h.Limits.Freeze(t.Context(), id, frozen))
		if g, _ := limitsGroupOf(t, h, id); g.Frozen != frozen || g.Tasks < 2 {
			t.Fatalf("after Freeze(%v) listed as %+v", frozen, g)
		}
	}
	limitsMust(t, h.Limits.Set(t.Context(), id, SomeLimits())) // limits change while suspended
	if g, _ := limitsGroupOf(t, h, id); !g.Frozen {
		t.Fatal("Set thawed the group")
	}
	limitsMust(t, h.Limits.Remove(t.Context(), id))
}

func limitsKill(t *testing.T, h LimitsHost) {
	id := uuid.NewString()
	limitsMust(t, h.Limits.Set(t.Context(), id, SomeLimits()))
	for _, frozen := range []bool{false, true} {
		h.Run(t, id, 3, 0)
		limitsMust(t, h.Limits.Freeze(t.Context(), id, frozen))
		limitsMust(t, h.Limits.Kill(t.Context(), id))
		// A killed task may still wait to be reaped by whoever started it.
		deadline := time.Now().Add(30 * time.Second)
		for {
			g, ok := limitsGroupOf(t, h, id)
			if !ok || g.Frozen {
				t.Fatalf("after Kill listed as %+v (%v), want thawed", g, ok)
			}
			if g.Tasks == 0 {
				break
			}
			if time.Now().After(deadline) {
				t.Fatalf("after Kill there are %d tasks", g.Tasks)
			}
			time.Sleep(5 * time.Millisecond)
		}
	}
	limitsMust(t, h.Limits.Remove(t.Context(), id))
}

func limitsRemove(t *testing.T, h LimitsHost) {
	id := uuid.NewString()
	limitsMust(t, h.Limits.Set(t.Context(), id, SomeLimits()))
	h.Run(t, id, 3, 0)
	for range 2 {
		limitsMust(t, h.Limits.Remove(t.Context(), id))
	}
	if _, ok := limitsGroupOf(t, h, id); ok {
		t.Fatal("the group is still listed")
	}
	limitsMust(t, h.Limits.Set(t.Context(), id, SomeLimits())) // the id may come back
	limitsMust(t, h.Limits.Remove(t.Context(), id))
}

func limitsMemoryBelowUse(t *testing.T, h LimitsHost) {
	id, want := uuid.NewString(), SomeLimits()
	limitsMust(t, h.Limits.Set(t.Context(), id, want))
	h.Run(t, id, 1, 24<<20)
	lower := want
	lower.Memory.Max, lower.Processes = 8<<20, 8
	err := h.Limits.Set(t.Context(), id, lower)
	if !fault.Is(err, fault.Precondition) || fault.FieldOf(err) != "memory.max" {
		t.Fatalf("Set below use: %v, want fault.Precondition about memory.max", err)
	}
	if !strings.Contains(err.Error(), fmt.Sprint(8<<20)) {
		t.Errorf("%q does not say what was asked", err)
	}
	// Nothing changed: the old limits hold, the task lives.
	if g, _ := limitsGroupOf(t, h, id); g.Tasks < 1 {
		t.Fatalf("listed as %+v, want the task alive", g)
	}
	if u, err := h.Limits.Usage(t.Context(), id); err != nil || u.OOMKills != 0 || u.MemoryUsed < 24<<20 {
		t.Fatalf("usage %+v, %v; want 24 MiB held and nothing killed", u, err)
	}
	limitsMust(t, h.Limits.Remove(t.Context(), id))
}
