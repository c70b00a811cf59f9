package snapshot

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/hashicorp/go-hclog"

	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
	"github.com/reflejo/terraform-provider-reflejo/agent/schedule"
	"github.com/reflejo/terraform-provider-reflejo/agent/vserver"
)

// PolicyConfig is what the runner of policies is made of.
type PolicyConfig struct {
	Snapshots *Manager
	Servers   Servers
	Records   vserver.Records // a bucket of their own
	Log       hclog.Logger
	Say       func(server, text string) // tells people who look at the server; may be nil
	Now       func() time.Time          // nil means time.Now
}

// Policies takes snapshots as the servers' policies say, and removes those that are not to
// be kept; it touches no others. What is due is looked at once a minute, and after a change
// of power.
type Policies struct {
	cfg  PolicyConfig
	wake chan struct{}

	mu     sync.Mutex
	events []event
	states map[string]policyState // by server; as they are stored
}

// Why a policy takes a snapshot; the label LabelPolicy has it as its value.
const (
	reasonSchedule = "schedule"
	reasonStart    = "start"
	reasonStop     = "stop"
	reasonSuspend  = "suspend"
)

// LabelPolicy is the label of snapshots that a policy took.
const LabelPolicy = "policy"

// event is a change of a server's power.
type event struct {
	server string
	state  vserver.State
	reason string // "" for one that no policy can ask for
}

// policyState is what is durable of one server's policy.
//
// A snapshot that is due is pending under an id made before it is asked for, and stays so
// until it is complete: whatever happens meanwhile, asking again makes no second one.
type policyState struct {
	Server    string
	Schedule  string    // that Last belongs to
	Last      time.Time // when the schedule's last run began, or when the schedule was set
	Seen      vserver.State
	Pending   map[string]string // reason → snapshot id
	Prune     bool              // a snapshot was added since the keep rules were carried out
	Succeeded time.Time         // of the newest complete snapshot of the policy
	Tried     time.Time         // when one was last asked for
	Err       string            // why the last attempt failed
}

// Run is how a server's policy does.
type Run struct {
	Server    string    // id
	Tried     time.Time // zero if never
	Succeeded time.Time // zero if never
	Err       string    // "" while the last attempt has not failed
}

// NewPolicies loads what is known of earlier runs.
func NewPolicies(cfg PolicyConfig) (*Policies, error) {
	if cfg.Log == nil {
		cfg.Log = hclog.NewNullLogger()
	}
	if cfg.Say == nil {
		cfg.Say = func(string, string) {}
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	p := &Policies{cfg: cfg, wake: make(chan struct{}, 1), states: map[string]policyState{}}
	err := cfg.Records.ForEach(func(key string, value []byte) error {
		var st policyState
		if err := json.Unmarshal(value, &st); err != nil {
			return fmt.Errorf("read policy of server %s: %w", key, err)
		}
		p.states[key] = st
		return nil
	})
	return p, err
}

// Run runs the policies until ctx ends. Servers and snapshots have to be recovered before.
func (p *Policies) Run(ctx context.Context) {
	p.missed()
	for ctx.Err() == nil {
		p.tick(ctx)
		now := p.cfg.Now()
		t := time.NewTimer(now.Truncate(time.Minute).Add(time.Minute).Sub(now))
		select {
		case <-t.C:
		case <-p.wake:
		case <-ctx.Done():
		}
		t.Stop()
	}
}

// Changed is told of every change of a server's state (vserver.Config.Changed). It does not wait.
func (p *Policies) Changed(v vserver.View, was vserver.State) {
	p.mu.Lock()
	p.events = append(p.events, event{v.Spec.ID, v.State, reasonOf(was, v.State)})
	p.mu.Unlock()
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

// reasonOf is the word of a policy for a change of state, "" if there is none. That a
// suspended server goes on is no start.
func reasonOf(was, is vserver.State) string {
	switch {
	case was == is:
	case is == vserver.StateStopped && (was == vserver.StateRunning || was == vserver.StateSuspended):
		return reasonStop
	case is == vserver.StateSuspended && was == vserver.StateRunning:
		return reasonSuspend
	case is == vserver.StateRunning && (was == vserver.StateStopped || was == vserver.StateCreating):
		return reasonStart
	}
	return ""
}

// missed finds the changes that happened when nobody took note.
func (p *Policies) missed() {
	for _, v := range p.cfg.Servers.List() {
		p.mu.Lock()
		seen := p.states[v.Spec.ID].Seen
		p.mu.Unlock()
		if reason := reasonOf(seen, v.State); reason != "" {
			p.Changed(v, seen)
		}
	}
}

// Runs is how all policies do, sorted by server.
func (p *Policies) Runs() []Run {
	p.mu.Lock()
	defer p.mu.Unlock()
	var runs []Run
	for _, id := range slices.Sorted(maps.Keys(p.states)) {
		st := p.states[id]
		runs = append(runs, Run{Server: id, Tried: st.Tried, Succeeded: st.Succeeded, Err: st.Err})
	}
	return runs
}

// tick does what is due now.
func (p *Policies) tick(ctx context.Context) {
	p.mu.Lock()
	events := p.events
	p.events = nil
	p.mu.Unlock()
	there := map[string]bool{}
	for _, v := range p.cfg.Servers.List() {
		there[v.Spec.ID] = true
		mine := slices.DeleteFunc(slices.Clone(events), func(e event) bool { return e.server != v.Spec.ID })
		if err := p.server(ctx, v, mine); err != nil {
			p.cfg.Log.Error("run snapshot policy", "server", v.Spec.Name, "error", err)
		}
	}
	p.mu.Lock()
	known := slices.Collect(maps.Keys(p.states))
	p.mu.Unlock()
	for _, id := range known {
		if !there[id] {
			if err := p.forget(ctx, id); err != nil {
				p.cfg.Log.Error("forget a policy", "server", id, "error", err)
			}
		}
	}
}

// server does what is due for one server.
func (p *Policies) server(ctx context.Context, v vserver.View, events []event) error {
	now := p.cfg.Now().UTC()
	was := p.state(v.Spec.ID)
	st := was.clone()
	st.decide(v, events, now, uuid.NewString)
	if err := p.save(was, st); err != nil { // before acting: what is due is not due again
		p.mu.Lock()
		p.events = append(p.events, events...)
		p.mu.Unlock()
		return err
	}
	p.drop(ctx, was, st)
	was, st = st, st.clone()
	for _, reason := range slices.Sorted(maps.Keys(st.Pending)) {
		p.take(ctx, v, &st, reason, now)
	}
	if err := p.save(was, st); err != nil {
		return err
	}
	if !st.Prune {
		return nil
	}
	return p.prune(ctx, v, st, now)
}

// drop deletes what is left of attempts that nobody asks for any more.
func (p *Policies) drop(ctx context.Context, was, st policyState) {
	for reason, id := range was.Pending {
		if v, err := p.cfg.Snapshots.view(id); st.Pending[reason] != id && err == nil && v.State != PhaseReady {
			_ = p.cfg.Snapshots.Delete(ctx, id) // if it stays, who looks at the list can delete it
		}
	}
}

// decide notes which snapshots are due. It is pure.
func (st *policyState) decide(v vserver.View, events []event, now time.Time, newID func() string) {
	policy := v.Spec.SnapshotPolicy
	due := map[string]bool{}
	for _, e := range events {
		if slices.Contains(policy.On, e.reason) {
			due[e.reason] = true
		}
	}
	if len(policy.On) > 0 {
		st.Seen = v.State
	} else {
		st.Seen = ""
	}
	if st.Schedule != policy.Schedule {
		st.Schedule, st.Last = policy.Schedule, now
	} else if s, err := schedule.Parse(policy.Schedule); err == nil && schedule.Due(s, st.Last, now) {
		due[reasonSchedule] = true
		st.Last = now
	}
	for reason := range st.Pending { // what the policy does not ask for any more
		if reason == reasonSchedule && policy.Schedule == "" || reason != reasonSchedule && !slices.Contains(policy.On, reason) {
			delete(st.Pending, reason)
		}
	}
	for reason := range due {
		if st.Pending[reason] == "" { // one that is still to be made will do for this moment too
			st.Pending[reason] = newID()
		}
	}
}

// take asks for a pending snapshot, until it is complete.
func (p *Policies) take(ctx context.Context, v vserver.View, st *policyState, reason string, now time.Time) {
	switch v.State {
	case vserver.StateRunning, vserver.StateStopped, vserver.StateSuspended:
	default:
		return // on its way to or from being a server
	}
	id := st.Pending[reason]
	have, err := p.cfg.Snapshots.view(id)
	switch {
	case err == nil && have.State == PhaseReady:
		delete(st.Pending, reason)
		st.Prune, st.Succeeded, st.Err = true, have.Created, ""
		return
	case err == nil && have.State == PhaseDeleting: // somebody did not want it
		delete(st.Pending, reason)
		return
	case err == nil && have.State == PhaseCreating && !have.Operation.Settled():
		return
	case err == nil && have.State == PhaseFailed:
		p.failed(v, st, fault.New(fault.Internal, "%s", have.Err))
	}
	st.Tried = now
	others := p.cfg.Snapshots.taking() // now: when it is refused they may be complete
	_, err = p.cfg.Snapshots.Create(ctx, Request{ID: id, Server: v.Spec.ID, Description: "taken by the server's policy",
		Labels: map[string]string{LabelPolicy: reason}, Origin: OriginPolicy})
	if fault.Is(err, fault.Exhausted) && others {
		return // what others may come to take is promised to them until they are complete
	}
	if err != nil {
		p.failed(v, st, err)
	}
}

// failed shows why a snapshot could not be taken, once for the same reason.
func (p *Policies) failed(v vserver.View, st *policyState, err error) {
	if st.Err == err.Error() {
		return
	}
	st.Err = err.Error()
	p.cfg.Log.Error("snapshot policy", "server", v.Spec.Name, "error", err)
	p.cfg.Say(v.Spec.ID, "snapshot policy: "+st.Err)
}

// prune removes what the keep rules do not keep. What is in use is tried again.
func (p *Policies) prune(ctx context.Context, v vserver.View, st policyState, now time.Time) error {
	var copies []schedule.Copy
	for _, s := range p.cfg.Snapshots.list(v.Spec.ID) {
		if s.Origin == OriginPolicy && s.State == PhaseReady {
			copies = append(copies, schedule.Copy{ID: s.ID, At: s.Created})
		}
	}
	for _, id := range v.Spec.SnapshotPolicy.Keep.Remove(copies, now) {
		if err := p.cfg.Snapshots.Delete(ctx, id); err != nil && !fault.Is(err, fault.NotFound) {
			return err
		}
	}
	done := st.clone()
	done.Prune = false
	return p.save(st, done)
}

func (p *Policies) state(server string) policyState {
	p.mu.Lock()
	defer p.mu.Unlock()
	st := p.states[server]
	st.Server = server
	return st.clone()
}

// save persists a changed state.
func (p *Policies) save(was, st policyState) error {
	if was.equal(st) {
		return nil
	}
	if err := p.cfg.Records.Put(st.Server, st); err != nil {
		return fmt.Errorf("record policy of server %s: %w", st.Server, err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.states[st.Server] = st
	return nil
}

// forget is for a server that is gone, or has moved.
func (p *Policies) forget(ctx context.Context, server string) error {
	p.drop(ctx, p.state(server), policyState{})
	if err := p.cfg.Records.Delete(server); err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.states, server)
	return nil
}

func (st policyState) clone() policyState {
	pending := make(map[string]string, len(st.Pending))
	maps.Copy(pending, st.Pending)
	st.Pending = pending
	return st
}

func (st policyState) equal(o policyState) bool {
	same := maps.Equal(st.Pending, o.Pending) && st.Last.Equal(o.Last) && st.Succeeded.Equal(o.Succeeded) && st.Tried.Equal(o.Tried)
	return same && st.Schedule == o.Schedule && st.Seen == o.Seen && st.Prune == o.Prune && st.Err == o.Err
}
