package databasetest

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/reflejo/terraform-provider-reflejo/agent/database"
	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
	"github.com/reflejo/terraform-provider-reflejo/agent/vserver"
)

var (
	_ database.Clusters  = (*Host)(nil)
	_ database.Inspector = (*Host)(nil)
	_ database.Servers   = (*Host)(nil)
	_ database.Secrets   = (*Host)(nil)
)

// Host is servers and the clusters in them, in memory. The zero value is not ready, use New.
type Host struct {
	mu       sync.Mutex
	servers  map[string]vserver.State
	clusters map[string]*cluster // by id: files of it are on a server's disk
	ports    map[string]database.Port
	fail     map[string]error
	stuck    map[string]bool
	next     int
	done     []string // "verb name"
}

// cluster is what is there of one.
type cluster struct {
	made     database.Cluster // identity set
	running  database.Cluster // as it was started and reloaded
	guard    chan struct{}    // closed when the guard ends; nil without
	started  time.Time
	starts   int
	owner    string
	secret   string
	tampered string
}

// New makes a host without servers.
func New() *Host {
	return &Host{servers: map[string]vserver.State{}, clusters: map[string]*cluster{}, ports: map[string]database.Port{}, fail: map[string]error{}, stuck: map[string]bool{}}
}

// SetServer makes a server be in a state. Where it stops running, all in it ends.
func (h *Host) SetServer(id string, s vserver.State) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.servers[id] = s
	if s == vserver.StateRunning || s == vserver.StateSuspended {
		return
	}
	for _, c := range h.clusters {
		if c.made.Server == id {
			c.started = time.Time{} // its guard lives, and waits
		}
	}
}

// Fail makes the named call ("create", "run", "grant", …) return err until it is called
// again with nil.
func (h *Host) Fail(call string, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.fail[call] = err
}

// Stick makes the named call hang until its context ends, after it has done what it does
// if done is true: what an agent's end in the middle of it looks like.
func (h *Host) Stick(call string, done bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.stuck = map[string]bool{call: done}
}

// sticks hangs in a call at its begin (done false) or its end.
func (h *Host) sticks(ctx context.Context, call string, done bool) error {
	h.mu.Lock()
	at, stuck := h.stuck[call]
	h.mu.Unlock()
	if !stuck || at != done {
		return nil
	}
	<-ctx.Done()
	return ctx.Err()
}

// Tamper changes something of a cluster behind the agent's back.
func (h *Host) Tamper(id, what string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.clusters[id].tampered = what
}

// KillGuard ends a cluster as its guard's end does.
func (h *Host) KillGuard(id string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.clusters[id].end()
}

func (c *cluster) end() {
	c.started = time.Time{}
	if c.guard != nil {
		close(c.guard)
		c.guard = nil
	}
}

// Calls is what was done since it was asked the last time, each "verb name".
func (h *Host) Calls() []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	done := h.done
	h.done = nil
	return done
}

// Starts is how often a cluster was started.
func (h *Host) Starts(id string) int {
	h.mu.Lock()
	defer h.mu.Unlock()
	if c := h.clusters[id]; c != nil {
		return c.starts
	}
	return 0
}

// String is all that is there, as an operator would list it.
func (h *Host) String() string {
	h.mu.Lock()
	defer h.mu.Unlock()
	var b strings.Builder
	for _, id := range slices.Sorted(maps.Keys(h.clusters)) {
		c := h.clusters[id]
		state := "stopped"
		if !c.started.IsZero() {
			state = "running"
		}
		fmt.Fprintf(&b, "%s %s owner=%s parameters=%v", c.made.Name, state, c.owner, c.running.Parameters)
		if p, ok := h.ports[id]; ok {
			fmt.Fprintf(&b, " port=%d open to %v", p.Number, p.From)
		}
		b.WriteString("\n")
	}
	return b.String()
}

// enter begins a call: the server has to run.
func (h *Host) enter(call string, c database.Cluster) error {
	h.done = append(h.done, call+" "+c.Name)
	if err := h.fail[call]; err != nil {
		return err
	}
	if s := h.servers[c.Server]; s != vserver.StateRunning {
		return fault.New(fault.Precondition, "%s database %s: server %s does not run", call, c.Name, c.Server)
	}
	return nil
}

// Get implements database.Servers.
func (h *Host) Get(id string) (vserver.View, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	s, ok := h.servers[id]
	if !ok {
		return vserver.View{}, fault.New(fault.NotFound, "no server %s", id)
	}
	return vserver.View{Spec: vserver.Spec{ID: id, Name: "s"}, State: s}, nil
}

// Inspect implements database.Clusters.
func (h *Host) Inspect(_ context.Context, c database.Cluster) (database.Condition, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if err := h.enter("inspect", c); err != nil {
		return database.Condition{}, err
	}
	have := h.clusters[c.ID]
	if have == nil {
		return database.Condition{}, nil
	}
	out := database.Condition{Made: true, Identity: have.made.Identity, Running: !have.started.IsZero(), Started: have.started, Problem: have.tampered}
	if c.Identity != "" && c.Identity != have.made.Identity {
		out.Problem = "its files are of another cluster"
	}
	return out, nil
}

// Create implements database.Clusters.
func (h *Host) Create(ctx context.Context, c database.Cluster) (identity string, err error) {
	if err := h.sticks(ctx, "create", false); err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, h.sticks(ctx, "create", true)) }()
	h.mu.Lock()
	defer h.mu.Unlock()
	if err := h.enter("create", c); err != nil {
		return "", err
	}
	if c.Major != 15 {
		return "", fault.Field("pg_major", "no PostgreSQL %d", c.Major)
	}
	if have := h.clusters[c.ID]; have != nil {
		return have.made.Identity, nil
	}
	h.next++
	c.Identity = strconv.Itoa(7000 + h.next)
	h.clusters[c.ID] = &cluster{made: c}
	return c.Identity, nil
}

// Run implements database.Clusters.
func (h *Host) Run(ctx context.Context, c database.Cluster) (started time.Time, err error) {
	if err := h.sticks(ctx, "run", false); err != nil {
		return started, err
	}
	defer func() { err = errors.Join(err, h.sticks(ctx, "run", true)) }()
	h.mu.Lock()
	defer h.mu.Unlock()
	if err := h.enter("run", c); err != nil {
		return started, err
	}
	have := h.clusters[c.ID]
	if have == nil {
		return started, fault.New(fault.NotFound, "run database %s: no files", c.Name)
	}
	if have.made.Identity != c.Identity {
		return started, fault.New(fault.Precondition, "run database %s: its files are of another cluster", c.Name)
	}
	if c.Parameters["shared_buffers"] == "1TB" {
		have.started = time.Time{}
		return started, fault.New(fault.Unavailable, "run database %s: could not map shared memory", c.Name)
	}
	restart := have.started.IsZero() || c.Port != have.running.Port || c.Parameters["shared_buffers"] != have.running.Parameters["shared_buffers"]
	if restart {
		have.started = time.Now()
		have.starts++
	}
	if have.guard == nil {
		have.guard = make(chan struct{})
	}
	have.running, have.tampered = c, ""
	return have.started, nil
}

// Grant implements database.Clusters.
func (h *Host) Grant(ctx context.Context, c database.Cluster) (err error) {
	if err := h.sticks(ctx, "grant", false); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, h.sticks(ctx, "grant", true)) }()
	h.mu.Lock()
	defer h.mu.Unlock()
	if err := h.enter("grant", c); err != nil {
		return err
	}
	have := h.clusters[c.ID]
	if have == nil || have.started.IsZero() {
		return fault.New(fault.Unavailable, "grant database %s: it does not run", c.Name)
	}
	have.owner, have.secret = c.Owner, c.Secret
	return nil
}

// Stop implements database.Clusters.
func (h *Host) Stop(_ context.Context, id string, _ time.Duration) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.done = append(h.done, "stop")
	if err := h.fail["stop"]; err != nil {
		return err
	}
	if c := h.clusters[id]; c != nil {
		c.end()
	}
	return nil
}

// Remove implements database.Clusters.
func (h *Host) Remove(ctx context.Context, c database.Cluster) (err error) {
	if err := h.sticks(ctx, "remove", false); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, h.sticks(ctx, "remove", true)) }()
	h.mu.Lock()
	defer h.mu.Unlock()
	h.done = append(h.done, "remove "+c.Name)
	if err := h.fail["remove"]; err != nil {
		return err
	}
	if have := h.clusters[c.ID]; have != nil {
		have.end()
		delete(h.clusters, c.ID)
	}
	return nil
}

// Versions implements database.Inspector.
func (h *Host) Versions(_ context.Context, server string) ([]int, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if err := h.enter("versions", database.Cluster{Server: server}); err != nil {
		return nil, err
	}
	return []int{15}, nil
}

// Check implements database.Inspector.
func (h *Host) Check(_ context.Context, server string, _ int, was, want map[string]string) (database.Effect, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if err := h.enter("check", database.Cluster{Server: server}); err != nil {
		return "", err
	}
	known := []string{"work_mem", "shared_buffers", "max_connections"}
	for name, value := range want {
		if !slices.Contains(known, name) || strings.HasSuffix(value, "bogus") {
			return "", fault.Field("parameters."+name, "parameter %s: PostgreSQL does not take %q", name, value)
		}
	}
	switch {
	case was["shared_buffers"] != want["shared_buffers"] || was["max_connections"] != want["max_connections"]:
		return database.EffectRestart, nil
	case !maps.Equal(was, want):
		return database.EffectReload, nil
	}
	return database.EffectNone, nil
}

// Wait implements database.Inspector.
func (h *Host) Wait(ctx context.Context, id string) error {
	h.mu.Lock()
	var guard chan struct{}
	if c := h.clusters[id]; c != nil {
		guard = c.guard
	}
	h.mu.Unlock()
	if guard == nil {
		return nil
	}
	select {
	case <-guard:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Secret implements database.Secrets.
func (h *Host) Secret(password string) (string, error) { return "secret of " + password, nil }

// Proves implements database.Secrets.
func (h *Host) Proves(secret, password string) bool { return secret == "secret of "+password }

// Ports are the host's, as database.Ports.
type Ports struct{ *Host }

// Open implements database.Ports.
func (p Ports) Open(ctx context.Context, port database.Port) (err error) {
	if err := p.sticks(ctx, "open", false); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, p.sticks(ctx, "open", true)) }()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.done = append(p.done, "open "+strconv.Itoa(port.Number))
	if err := p.fail["open"]; err != nil {
		return err
	}
	p.ports[port.ID] = port
	return nil
}

// Close implements database.Ports.
func (p Ports) Close(_ context.Context, port database.Port) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.done = append(p.done, "close "+strconv.Itoa(port.Number))
	delete(p.ports, port.ID)
	return nil
}

// Remove implements database.Ports.
func (p Ports) Remove(_ context.Context, id string) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.ports, id)
	return nil
}
