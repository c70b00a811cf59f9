package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/reflejo/terraform-provider-reflejo/agent/quiesce"
	"github.com/reflejo/terraform-provider-reflejo/agent/snapshot"
)

// quietLimit is how long a server may be held up for a snapshot. It takes milliseconds; a
// pool that does not answer must not stop a server for longer than its clients bear.
const quietLimit = 5 * time.Second

// openSnapshots wires what keeps snapshots; the servers, who ask it too, come later.
func (ag *agent) openSnapshots() error {
	sums := filepath.Join(ag.config.StateDir, "sums")
	if err := os.MkdirAll(sums, 0o700); err != nil {
		return fmt.Errorf("make directory of checksums: %w", err)
	}
	var err error
	ag.snapshots, err = snapshot.NewManager(snapshot.Config{
		Host:    ag.config.Name,
		Records: ag.db.Bucket("snapshots"),
		Disks:   ag.pool.Snapshots(),
		Quiet:   ag.quiet,
		Bring:   ag.bring,
		Foreign: func(id string) bool { return ag.moves.OwnsSnapshot(id) },
		SumsDir: sums,
		Log:     ag.log.Named("snapshot"),
		Observe: func(operation string, took time.Duration, err error) {
			ag.metrics.Operation("snapshot "+operation, took, err)
		},
	})
	return err
}

// quiet is snapshot.Config.Quiet.
func (ag *agent) quiet(server, root string, tasks bool, held func(time.Duration)) snapshot.Quiet {
	return func(ctx context.Context) (func() error, error) {
		target := quiesce.Target{Root: root, Held: held}
		if tasks {
			f, err := ag.limits.Freezer(server)
			if err != nil {
				return nil, err
			}
			target.Tasks = []quiesce.Freezer{quiesce.Freezer(f)}
		}
		return quiesce.Quiet(ctx, target, quietLimit)
	}
}

// thaw undoes what a killed agent and a killed watchdog left frozen.
func (ag *agent) thaw(ctx context.Context) error {
	disks, err := ag.pool.List(ctx)
	if err != nil {
		return err
	}
	var roots []string
	for _, d := range disks {
		if d.Attached {
			roots = append(roots, d.Attachment.Root)
		}
	}
	return quiesce.Recover(roots)
}

// dropArrivals removes what came half and nobody goes on with: what a killed agent left of
// moves and imports that were given up meanwhile.
func (ag *agent) dropArrivals(ctx context.Context) error {
	all, err := ag.pool.Snapshots().Arriving(ctx)
	if err != nil {
		return err
	}
	for _, id := range all {
		if ag.moves.OwnsArrival(id) || ag.snapshots.Importing(id) {
			continue
		}
		if err := ag.pool.Snapshots().Drop(ctx, id); err != nil {
			return err
		}
		ag.log.Warn("removed what had come of a disk that nobody waits for", "arrival", id)
	}
	return nil
}

// openPolicies wires what takes snapshots without being asked.
func (ag *agent) openPolicies() error {
	var err error
	ag.policies, err = snapshot.NewPolicies(snapshot.PolicyConfig{
		Snapshots: ag.snapshots,
		Servers:   ag.servers,
		Records:   ag.db.Bucket("snapshot-policies"),
		Say:       ag.servers.Say,
		Log:       ag.log.Named("policy"),
	})
	return err
}

// background runs f until the agent stops.
func (ag *agent) background(ctx context.Context, f func(context.Context)) {
	running, stop := context.WithCancel(context.WithoutCancel(ctx))
	done := make(chan struct{})
	go func() {
		defer close(done)
		f(running)
	}()
	ag.onClose(func() { stop(); <-done })
}
