package vserver

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"time"

	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
)

// work carries out what the record wants and makes the server idle again.
func (s *server) work(ctx context.Context) {
	began := time.Now()
	s.mu.Lock()
	kind := s.rec.Operation.Kind
	was := s.stateLocked()
	s.mu.Unlock()
	err := s.carryOut(ctx)
	if ctx.Err() == nil {
		s.m.cfg.Observe(kind, time.Since(began), err)
		if err != nil {
			s.m.cfg.Log.Error("operation failed", "operation", kind, "server", s.id, "error", err)
		} else {
			s.m.cfg.Log.Info("operation done", "operation", kind, "server", s.id, "took", time.Since(began).Round(time.Microsecond).String())
		}
	}
	s.mu.Lock()
	if ctx.Err() != nil {
		s.known = false // a step may have been broken off in its middle
	}
	s.busy, s.interrupt = false, nil
	close(s.idle)
	s.mu.Unlock()
	s.notify()
	switch {
	case s.gone():
		s.m.rebalance(s) // its cores may be others' now
	case ctx.Err() == nil:
		if v := s.view(); v.State != was {
			s.m.cfg.Changed(v, was)
		}
		s.watchEnd()
	}
}

// carryOut runs plans until nothing is left to do, taking a failed operation back as its
// phase wants. The error is the operation's own; what happened to it is in the record.
func (s *server) carryOut(ctx context.Context) error {
	s.mu.Lock()
	recovering, away, job := s.rec.Operation.Kind == opRecover, s.away, s.job
	s.job = nil
	s.mu.Unlock()
	if job != nil {
		return s.runJob(ctx, job)
	}
	if away {
		if err := s.askSuperseded(ctx); err != nil {
			return err
		}
	}
	err := s.runPlan(ctx)
	if recovering {
		for _, pause := range s.m.cfg.RetryDelays {
			if err == nil || ctx.Err() != nil {
				break
			}
			s.m.cfg.Log.Warn("recovery failed, trying again", "server", s.id, "error", err, "after", pause.String())
			if !wait(ctx, pause) {
				return ctx.Err()
			}
			err = s.runPlan(ctx)
		}
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err != nil {
		return s.fallBack(ctx, err)
	}
	return s.settle(nil)
}

// runPlan plans and runs steps once.
func (s *server) runPlan(ctx context.Context) error {
	s.mu.Lock()
	known := s.known
	s.mu.Unlock()
	if !known {
		if err := s.observe(ctx); err != nil {
			return err
		}
	}
	s.mu.Lock()
	rec, have := s.rec.clone(), s.have
	s.mu.Unlock()
	steps := Plan(rec, have)
	for i, step := range steps {
		if err := context.Cause(ctx); err != nil {
			return err
		}
		s.progress(step, i, len(steps))
		crashPoint(rec.Operation.Kind, step, "before")
		if err := s.doInSlot(ctx, step); err != nil {
			s.mu.Lock()
			s.known = false
			s.mu.Unlock()
			return fmt.Errorf("%s: %w", step, err)
		}
		crashPoint(rec.Operation.Kind, step, "after")
	}
	return nil
}

func (s *server) progress(step Step, i, n int) {
	s.mu.Lock()
	s.rec.Operation.Step, s.rec.Operation.Index, s.rec.Operation.Steps = string(step), i+1, n
	s.mu.Unlock()
	s.notify()
}

// fallBack takes back an operation that failed with err.
func (s *server) fallBack(ctx context.Context, err error) error {
	s.mu.Lock()
	rec := s.rec.clone()
	s.mu.Unlock()
	switch rec.Phase {
	case PhaseCreate, PhaseUndo:
		undo := func(r *Record) {
			r.Phase, r.Force = PhaseUndo, true
			r.Operation.fail(err)
			r.Operation.Done = false // only when all is taken back
		}
		if saveErr := s.save(undo); saveErr != nil {
			return errors.Join(err, saveErr)
		}
		if undoErr := s.runPlan(ctx); undoErr != nil {
			if ctx.Err() == nil {
				s.m.cfg.Log.Error("take back a failed creation", "server", s.id, "error", undoErr)
			}
			return errors.Join(err, undoErr, s.save(func(r *Record) { r.Operation.Done = true }))
		}
		return errors.Join(err, s.save((*Record).undone))
	case PhaseDelete, PhaseMoved:
		return errors.Join(err, s.save(func(r *Record) { r.Operation.fail(err) }))
	}
	// A live server: back to the spec that worked; and if it does not run although it should, it is stopped.
	saveErr := s.save(func(r *Record) {
		power := r.Spec.Power
		r.Spec, r.Links = r.Applied.clone(), maps.Clone(r.AppliedLinks)
		r.Spec.Power = power
		r.Rebooting, r.Restore = false, Restore{}
	})
	if saveErr != nil {
		return errors.Join(err, saveErr)
	}
	if again := s.runPlan(ctx); again != nil && ctx.Err() == nil {
		_ = s.observe(ctx)
		s.mu.Lock()
		runs := s.have.running()
		s.mu.Unlock()
		if !runs {
			if saveErr := s.save(func(r *Record) { r.Want, r.Force = PowerStopped, true }); saveErr != nil {
				return errors.Join(err, saveErr)
			}
			again = s.runPlan(ctx)
		}
		if again != nil {
			s.m.cfg.Log.Error("take back a failed change", "server", s.id, "error", again)
		}
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return s.settle(err)
}

// settle records that the operation is over, with err if it failed.
func (s *server) settle(failed error) error {
	s.mu.Lock()
	if s.rec.Phase == PhaseDelete || s.rec.Phase == PhaseMoved || s.rec.Phase == PhaseFailed {
		done := s.deleted
		s.mu.Unlock()
		if done {
			return nil
		}
		return failed
	}
	running := s.have.running()
	s.have.Verified = true
	s.mu.Unlock()
	crashPoint("", "settle", "before")
	err := s.save(func(r *Record) {
		switch {
		case r.Phase == PhaseUndo:
			r.undone()
			return
		case r.Phase == PhaseIncoming: // only Accept makes it this host's
			r.Operation = Operation{}
			return
		case failed != nil:
			r.Operation.fail(failed)
		default:
			r.Operation = Operation{}
		}
		r.Phase, r.Applied, r.AppliedLinks = PhaseLive, r.Spec.clone(), maps.Clone(r.Links)
		r.Rebooting, r.Force, r.Timeout = false, false, 0
		if running { // it has got its first-boot data
			r.Spec.FirstBoot.UserData, r.Applied.FirstBoot.UserData, r.Booted = "", "", true
		}
	})
	return errors.Join(failed, err)
}

func (o *Operation) fail(err error) {
	o.Done, o.Err, o.ErrKind, o.Field = true, err.Error(), fault.KindOf(err).String(), fault.FieldOf(err)
}

// doInSlot bounds how many steps the host works on at once; waiting for a guest is no work.
func (s *server) doInSlot(ctx context.Context, step Step) error {
	if step != StepShutdown {
		select {
		case s.m.slots <- struct{}{}:
			defer func() { <-s.m.slots }()
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return s.do(ctx, step)
}

// do runs one step and notes what it changed.
func (s *server) do(ctx context.Context, step Step) error {
	s.mu.Lock()
	rec, have := s.rec.clone(), s.have
	s.mu.Unlock()
	var err error
	switch step {
	case StepDiskCreate, StepDiskRestore, StepDiskGrow, StepDiskAttach, StepDiskDetach, StepDiskRemove, StepPrepare:
		have.Disk, err = s.doDisk(ctx, step, rec, have)
	case StepLimits, StepLimitsRemove, StepFreeze, StepThaw:
		have.Group, err = s.doGroup(ctx, step, rec, have)
	case StepNetwork:
		err = s.setNetwork(ctx, rec, have)
		have.Links = true
	case StepNetworkRemove:
		err = s.m.cfg.Edges.Networks.Remove(ctx, s.id)
		have.Links = false
	case StepRunCreate, StepRunStart, StepShutdown, StepKill, StepRunDelete:
		have, err = s.doRun(ctx, step, rec, have)
	case StepRestart:
		err = s.save(func(r *Record) { r.Rebooting = false })
	case StepSnapshotKeep:
		err = s.m.cfg.Captures.Keep(ctx, rec.Restore.Safety, rec)
	case StepRestored:
		err = s.save((*Record).restored)
	case StepSnapshotsGone:
		if s.m.cfg.Captures != nil {
			err = s.m.cfg.Captures.Gone(ctx, s.id, !rec.Spec.KeepSnapshots)
		}
	case StepForget:
		return s.forget()
	default:
		err = fault.New(fault.Internal, "no such step")
	}
	if err != nil {
		return err
	}
	s.mu.Lock()
	s.have = have
	s.mu.Unlock()
	if step == StepRunStart {
		s.m.cfg.Started(s.id)
	}
	return nil
}

// doDisk runs a step that concerns the disk or what is on it, and says what the disk is then.
func (s *server) doDisk(ctx context.Context, step Step, rec Record, have Have) (*DiskInfo, error) {
	disks := s.m.cfg.Edges.Disks
	now := DiskInfo{ID: s.id, Size: rec.Spec.Disk.Size}
	if have.Disk != nil {
		now = *have.Disk
	}
	var err error
	switch step {
	case StepDiskCreate:
		err = s.createDisk(ctx, rec)
	case StepDiskRestore:
		err = s.m.cfg.Captures.Copy(ctx, rec.Restore.Snapshot, s.id, rec.Spec.Disk.Size)
		now.Size = max(now.Size, rec.Spec.Disk.Size)
	case StepDiskGrow:
		err = disks.Grow(ctx, s.id, rec.Spec.Disk.Size)
		now.Size = rec.Spec.Disk.Size
	case StepDiskAttach:
		now.Attachment, err = disks.Attach(ctx, s.id, rec.IDs)
		now.Attached = true
	case StepPrepare:
		err = s.prepare(ctx, rec, have)
	case StepDiskDetach:
		err = disks.Detach(ctx, s.id)
		now.Attached, now.Attachment = false, Attachment{}
	case StepDiskRemove:
		return nil, disks.Remove(ctx, s.id)
	}
	return &now, err
}

// doGroup runs a step that concerns the control group, and says what the group is then.
func (s *server) doGroup(ctx context.Context, step Step, rec Record, have Have) (*GroupInfo, error) {
	limits := s.m.cfg.Edges.Limits
	now := GroupInfo{ID: s.id}
	if have.Group != nil {
		now = *have.Group
	}
	var err error
	switch step {
	case StepLimits:
		err = s.setLimits(ctx, rec, have)
	case StepFreeze, StepThaw:
		now.Frozen = step == StepFreeze
		err = limits.Freeze(ctx, s.id, now.Frozen)
	case StepLimitsRemove:
		return nil, limits.Remove(ctx, s.id)
	}
	return &now, err
}

// doRun runs a step that begins or ends the running system.
func (s *server) doRun(ctx context.Context, step Step, rec Record, have Have) (Have, error) {
	e := s.m.cfg.Edges
	var err error
	switch step {
	case StepRunCreate:
		have.Run, err = s.createRun(ctx, rec, have)
	case StepRunStart:
		run := *have.Run
		run.Status, run.Started = RunRunning, time.Now()
		have.Run = &run
		if err = e.Runtime.Start(ctx, s.id); err == nil {
			err = s.save(func(r *Record) { r.Started = run.Started.UTC() })
		}
	case StepShutdown:
		err = s.shutdown(ctx, rec)
		have.Run = ended(have.Run)
	case StepKill:
		err = e.Limits.Kill(ctx, s.id)
		have.Run, have.Group = ended(have.Run), &GroupInfo{ID: s.id}
	case StepRunDelete:
		err = e.Runtime.Delete(ctx, s.id)
		have.Run = nil
	}
	return have, err
}

func ended(run *Running) *Running {
	if run == nil {
		return nil
	}
	r := *run
	r.Status = RunStopped
	return &r
}

func (s *server) setLimits(ctx context.Context, rec Record, have Have) error {
	want := LimitSet{CPU: rec.Spec.CPU, Memory: rec.Spec.Memory, Processes: rec.Spec.Processes, Disk: rec.Spec.Disk, IDs: rec.IDs}
	want.CPU.Pin = s.m.cpusets()[s.id]
	if have.Disk != nil && have.Disk.Attached {
		want.Major, want.Minor = have.Disk.Attachment.Major, have.Disk.Attachment.Minor
	}
	if err := s.m.cfg.Edges.Limits.Set(ctx, s.id, want); err != nil {
		return err
	}
	s.mu.Lock()
	s.cpuset = want.CPU.Pin
	s.mu.Unlock()
	return nil
}

func (s *server) prepare(ctx context.Context, rec Record, have Have) error {
	links, err := s.links(rec)
	if err != nil {
		return err
	}
	p := Preparation{ID: s.id, Hostname: rec.Spec.Hostname, Timezone: rec.Spec.Timezone, DNS: rec.Spec.DNS, First: !rec.Booted, Links: links}
	if p.Hostname == "" {
		p.Hostname = rec.Spec.Name
	}
	if p.First {
		p.FirstBoot = rec.Spec.FirstBoot
	}
	if have.running() {
		p.Pid = have.Run.Pid
	}
	return s.m.cfg.Edges.Preparer.Prepare(ctx, have.Disk.Attachment.Root, p)
}

func (s *server) createRun(ctx context.Context, rec Record, have Have) (*Running, error) {
	hostname := rec.Spec.Hostname
	if hostname == "" {
		hostname = rec.Spec.Name
	}
	pid, err := s.m.cfg.Edges.Runtime.Create(ctx, Container{
		ID: s.id, Name: rec.Spec.Name, Hostname: hostname, Rootfs: have.Disk.Attachment.Rootfs, IDs: rec.IDs,
		Init: rec.Image.Init, Env: rec.Image.Env, Dir: rec.Image.Dir,
	})
	return &Running{ID: s.id, Pid: pid, Status: RunCreated}, err
}

func (s *server) setNetwork(ctx context.Context, rec Record, have Have) error {
	links, err := s.links(rec)
	if err != nil {
		return err
	}
	want := ServerNetwork{ID: s.id, NICs: links}
	if have.Run != nil && have.Run.Status != RunStopped {
		want.Pid = have.Run.Pid
	}
	return s.m.cfg.Edges.Networks.Set(ctx, want)
}

// shutdown asks the guest to end and kills it when its time is over.
func (s *server) shutdown(ctx context.Context, rec Record) error {
	e := s.m.cfg.Edges
	timeout := rec.Timeout
	if timeout == 0 {
		timeout = rec.Spec.ShutdownTimeout
	}
	s.m.cfg.Stopping(ctx, s.id, timeout)
	if err := e.Runtime.Stop(ctx, s.id); err != nil {
		s.m.cfg.Log.Warn("ask a server to shut down", "server", s.id, "error", err)
	} else {
		limited, cancel := context.WithTimeout(ctx, timeout)
		err := e.Runtime.Wait(limited, s.id)
		cancel()
		if err == nil || errors.Is(err, ErrRebooted) {
			return e.Limits.Kill(ctx, s.id) // what init left behind
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		s.m.cfg.Log.Warn("a server did not shut down in time and is killed", "server", s.id, "timeout", timeout.String())
	}
	return e.Limits.Kill(ctx, s.id)
}

// forget removes the record: the server is gone.
func (s *server) forget() error {
	s.m.mu.Lock()
	defer s.m.mu.Unlock()
	if err := s.m.cfg.Records.Delete(s.id); err != nil {
		return fmt.Errorf("forget record: %w", err)
	}
	delete(s.m.servers, s.id)
	s.mu.Lock()
	s.deleted = true
	s.rec.Operation.Done = true
	s.mu.Unlock()
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
