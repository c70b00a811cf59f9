package database

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
	"github.com/reflejo/terraform-provider-reflejo/agent/vserver"
)

// work carries out what the record wants, until there is nothing new, and makes the
// database idle again.
func (d *item) work(ctx context.Context) {
	for {
		d.mu.Lock()
		d.again = false
		kind := d.rec.Operation.Kind
		d.mu.Unlock()
		began := time.Now()
		err := d.carryOut(ctx)
		if ctx.Err() == nil {
			d.m.cfg.Observe(kind, time.Since(began), err)
			if err != nil {
				d.m.cfg.Log.Error("operation failed", "operation", kind, "database", d.id, "error", err)
			} else {
				d.m.cfg.Log.Info("operation done", "operation", kind, "database", d.id, "took", time.Since(began).Round(time.Microsecond).String())
			}
		}
		d.mu.Lock()
		if d.again && ctx.Err() == nil && !d.deleted {
			d.mu.Unlock()
			continue
		}
		d.busy, d.cancel = false, nil
		close(d.idle)
		watch := ctx.Err() == nil && !d.deleted && d.have.Cluster.Running
		d.mu.Unlock()
		d.notify()
		if watch {
			d.watchEnd()
		}
		return
	}
}

// watchEnd waits for the guard's end, which is the database's, and begins anew then.
func (d *item) watchEnd() {
	ctx, cancel := context.WithCancel(d.m.ctx)
	d.mu.Lock()
	if d.busy || d.unwatch != nil {
		d.mu.Unlock()
		cancel()
		return
	}
	d.unwatch = cancel
	d.mu.Unlock()
	d.m.wg.Go(func() {
		defer cancel()
		if d.m.cfg.Inspector.Wait(ctx, d.id) != nil || ctx.Err() != nil {
			return
		}
		d.mu.Lock()
		d.have.Cluster.Running, d.have.Verified = false, false
		if !d.held {
			d.rec.say(time.Now(), "its guard has ended, and all of it; it is started again")
		}
		d.mu.Unlock()
		d.begin(opRecover)
	})
}

// carryOut runs plans until nothing is left to do, taking a failed operation back as its
// phase wants. The error is the operation's own; what happened to it is in the record.
func (d *item) carryOut(ctx context.Context) error {
	err := d.runPlan(ctx)
	rec := d.record()
	if rec.Operation.Kind == opRecover || rec.Operation.Kind == opServer {
		for i := 0; err != nil && ctx.Err() == nil && d.waits(); i++ {
			pause := d.m.cfg.Retry[min(i, len(d.m.cfg.Retry)-1)]
			d.problem(err)
			d.m.cfg.Log.Warn("database does not run, trying again", "database", d.id, "error", err, "after", pause.String())
			if !wait(ctx, pause) {
				break
			}
			err = d.runPlan(ctx)
		}
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if err != nil {
		return d.fallBack(ctx, err)
	}
	return d.settle(nil)
}

// waits reports whether another try may help: the server is there, nothing newer is asked.
func (d *item) waits() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.have.Server && !d.held && !d.again && d.rec.Phase == PhaseLive
}

func (d *item) problem(err error) {
	d.mu.Lock()
	d.rec.say(time.Now(), err.Error())
	d.mu.Unlock()
	d.notify()
}

// runPlan looks at what is there and runs steps once.
func (d *item) runPlan(ctx context.Context) error {
	if err := d.observe(ctx); err != nil {
		return err
	}
	d.mu.Lock()
	rec, have, held := d.rec.clone(), d.have, d.held
	d.mu.Unlock()
	if held && rec.Phase == PhaseLive {
		return nil
	}
	steps := Plan(rec, have)
	for i, step := range steps {
		if err := context.Cause(ctx); err != nil {
			return err
		}
		d.mu.Lock()
		d.rec.Operation.Step, d.rec.Operation.Index, d.rec.Operation.Steps = string(step), i+1, len(steps)
		d.mu.Unlock()
		d.notify()
		crashPoint(rec.Operation.Kind, step, "before")
		if err := d.do(ctx, step); err != nil {
			return fmt.Errorf("%s: %w", step, err)
		}
		crashPoint(rec.Operation.Kind, step, "after")
	}
	return nil
}

// observe asks the edges what is there.
func (d *item) observe(ctx context.Context) error {
	rec := d.record()
	var have Have
	v, err := d.m.cfg.Servers.Get(rec.Spec.Server)
	switch {
	case fault.Is(err, fault.NotFound):
	case err != nil:
		return err
	default:
		have.Server = v.State == vserver.StateRunning || v.State == vserver.StateSuspended
		have.Frozen = v.State == vserver.StateSuspended
	}
	d.mu.Lock()
	have.Open, have.Cluster = d.have.Open, d.have.Cluster
	if !d.looked && !have.Server { // an earlier agent's guard may still wait for the server
		have.Cluster.Running = true
	}
	d.mu.Unlock()
	if have.Server && !have.Frozen && rec.Phase != PhaseDelete && rec.Phase != PhaseUndo {
		if have.Cluster, err = d.m.cfg.Clusters.Inspect(ctx, rec.cluster()); err != nil {
			return err
		}
	}
	d.mu.Lock()
	have.Verified = d.verified == rec.Generation && have.Cluster.Problem == ""
	if have.Cluster.Problem != "" {
		d.rec.say(time.Now(), have.Cluster.Problem)
	}
	d.have, d.looked = have, true
	d.mu.Unlock()
	return nil
}

// do runs one step and notes what it changed.
func (d *item) do(ctx context.Context, step Step) error {
	rec := d.record()
	clusters, ports := d.m.cfg.Clusters, d.m.cfg.Ports
	var err error
	note := func(*Have) {}
	switch step {
	case StepPortClose, StepPortOpen, StepPortRemove:
		note = func(h *Have) { h.Open = step == StepPortOpen }
		if ports != nil {
			err = doPort(ctx, ports, step, rec)
		}
	case StepCreate:
		var identity string
		if identity, err = clusters.Create(ctx, rec.cluster()); err == nil {
			err = d.save(func(r *Record) { r.Identity = identity })
		}
		note = func(h *Have) { h.Cluster.Made = true }
	case StepRun:
		var started time.Time
		started, err = clusters.Run(ctx, rec.cluster())
		note = func(h *Have) { h.Cluster.Running, h.Cluster.Started, h.Cluster.Problem = true, started, "" }
	case StepGrant:
		err = clusters.Grant(ctx, rec.cluster())
	case StepStop:
		err = clusters.Stop(ctx, d.id, d.m.cfg.StopLimit)
		note = func(h *Have) { h.Cluster.Running = false }
	case StepRemove:
		err = clusters.Remove(ctx, rec.cluster())
		note = func(h *Have) { h.Cluster = Condition{} }
	case StepForget:
		return d.forget()
	default:
		err = fault.New(fault.Internal, "no such step")
	}
	if err != nil {
		return err
	}
	d.mu.Lock()
	note(&d.have)
	d.mu.Unlock()
	return nil
}

func doPort(ctx context.Context, ports Ports, step Step, rec Record) error {
	switch step {
	case StepPortClose:
		return ports.Close(ctx, rec.port())
	case StepPortOpen:
		return ports.Open(ctx, rec.port())
	}
	return ports.Remove(ctx, rec.Spec.ID)
}

// fallBack takes back an operation that failed with err.
func (d *item) fallBack(ctx context.Context, err error) error {
	rec := d.record()
	switch rec.Phase {
	case PhaseCreate, PhaseUndo:
		undo := func(r *Record) {
			r.Phase = PhaseUndo
			fail(&r.Operation, err)
			r.Operation.Done = false // only when all is taken back
		}
		if saveErr := d.save(undo); saveErr != nil {
			return errors.Join(err, saveErr)
		}
		if undoErr := d.runPlan(ctx); undoErr != nil {
			return errors.Join(err, undoErr, d.save(func(r *Record) { r.Operation.Done = true }))
		}
		return errors.Join(err, d.save(undone))
	case PhaseDelete, PhaseFailed:
		return errors.Join(err, d.save(func(r *Record) { fail(&r.Operation, err) }))
	}
	changed := rec.Operation.Kind == "update"
	saveErr := d.save(func(r *Record) {
		if changed {
			r.Spec = r.Applied.clone()
			r.Generation++
		}
		fail(&r.Operation, err)
		r.say(time.Now(), err.Error())
	})
	if saveErr != nil || !changed {
		return errors.Join(err, saveErr)
	}
	if again := d.runPlan(ctx); again != nil {
		d.m.cfg.Log.Error("take back a failed change", "database", d.id, "error", again)
		return err
	}
	d.mu.Lock()
	d.verified = d.rec.Generation
	d.mu.Unlock()
	return err
}

func undone(r *Record) {
	r.Phase, r.Identity, r.Operation.Done = PhaseFailed, "", true
}

// settle records that the operation is over.
func (d *item) settle(failed error) error {
	d.mu.Lock()
	deleted, phase, have := d.deleted, d.rec.Phase, d.have
	d.mu.Unlock()
	switch {
	case deleted || phase == PhaseFailed:
		return failed
	case phase == PhaseUndo:
		return errors.Join(failed, d.save(undone))
	}
	crashPoint("", "settle", "before")
	err := d.save(func(r *Record) {
		r.Operation = vserver.Operation{}
		if have.Cluster.Running {
			r.Phase, r.Applied = PhaseLive, r.Spec.clone()
		}
	})
	d.mu.Lock()
	if err == nil && have.Cluster.Running && !d.held {
		d.verified = d.rec.Generation
	}
	d.mu.Unlock()
	return errors.Join(failed, err)
}

// save changes the record, durably.
func (d *item) save(change func(*Record)) error {
	rec := d.record()
	change(&rec)
	if err := d.m.cfg.Records.Put(d.id, rec); err != nil {
		return fmt.Errorf("record database %s: %w", rec.Spec.Name, err)
	}
	d.set(rec)
	d.notify()
	return nil
}

// forget removes the record: the database is gone.
func (d *item) forget() error {
	d.m.mu.Lock()
	defer d.m.mu.Unlock()
	if err := d.m.cfg.Records.Delete(d.id); err != nil {
		return fmt.Errorf("forget record: %w", err)
	}
	delete(d.m.items, d.id)
	d.mu.Lock()
	d.deleted = true
	d.rec.Operation.Done = true
	d.mu.Unlock()
	return nil
}

// wait pauses for d; false if ctx ended first.
func wait(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
