package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"time"

	"github.com/reflejo/terraform-provider-reflejo/agent/backup"
	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
	"github.com/reflejo/terraform-provider-reflejo/agent/peers"
	"github.com/reflejo/terraform-provider-reflejo/agent/recovery"
	"github.com/reflejo/terraform-provider-reflejo/agent/snapshot"
)

// openBackups wires what makes backups and what brings servers back from them.
func (ag *agent) openBackups() error {
	hosts := map[string]string{}
	for _, h := range ag.config.Hosts {
		hosts[h.Name] = h.Endpoint
	}
	ag.peers = peers.New(peers.Config{Credentials: ag.source.Get, Hosts: hosts})
	stores := backup.Targets{Dirs: ag.config.Backup.Dirs, Remote: remotes{ag.peers, ag.config.Name, ag.config.Backup.Store}}
	for _, c := range ag.config.S3 {
		s, err := c.store()
		if err != nil {
			return err
		}
		stores.S3 = append(stores.S3, s)
	}
	var err error
	ag.backups, err = backup.NewManager(backup.Config{
		Records:   ag.db.Bucket("backups"),
		Runs:      ag.db.Bucket("backup-policies"),
		Snapshots: backupSnapshots{ag.snapshots, ag.pool.Snapshots()},
		Servers:   ag.servers,
		Stores:    stores,
		Log:       ag.log.Named("backup"),
		Observe: func(operation string, took time.Duration, err error) {
			ag.metrics.Operation("backup "+operation, took, err)
		},
	})
	if err != nil {
		return err
	}
	ag.recovery = recovery.NewManager(recovery.Config{
		Host: ag.config.Name, Backups: ag.backups, Stores: stores, Snapshots: ag.snapshots, Servers: ag.servers, Peers: ag.peers,
	})
	return nil
}

// remotes are the stores of all hosts, this one's among them.
type remotes struct {
	*peers.Peers
	self, store string
}

// Open implements backup.Remote.
func (r remotes) Open(ctx context.Context, host string) (backup.Target, error) {
	if host == r.self && r.store != "" {
		return backup.NewDir(r.store, "."), nil
	}
	return r.Peers.Open(ctx, host)
}

// bring is snapshot.Config.Bring.
func (ag *agent) bring(ctx context.Context, rec snapshot.Record, progress func(done, total int64)) error {
	_, err := ag.backups.Import(ctx, rec.From.Target, rec.From.Backup, rec.ID, ag.pool.Snapshots(), progress)
	return err
}

// store reads the bucket's keys.
func (c S3Config) store() (backup.S3, error) {
	s := backup.S3{Bucket: c.Bucket, Endpoint: c.Endpoint, Region: c.Region, PathStyle: c.PathStyle}
	for file, key := range map[string]*string{c.AccessKeyFile: &s.AccessKey, c.SecretKeyFile: &s.SecretKey} {
		text, err := os.ReadFile(file)
		if err != nil {
			return s, fmt.Errorf("read key of bucket %s: %w", c.Bucket, err)
		}
		*key = string(bytes.TrimSpace(text))
	}
	return s, nil
}

// backupSnapshots is the host's snapshots as backups need them.
type backupSnapshots struct {
	*snapshot.Manager
	disks snapshot.Disks
}

// Open implements backup.Snapshots. While it is open the snapshot is not deleted.
func (s backupSnapshots) Open(ctx context.Context, id string) (snapshot.Content, snapshot.Record, error) {
	release, err := s.Pin(id)
	if err != nil {
		return nil, snapshot.Record{}, err
	}
	v, err := s.Get(ctx, id)
	if err == nil {
		var c snapshot.Content
		if c, err = s.disks.Open(ctx, id); err == nil {
			return pinned{c, release}, v.Record, nil
		}
	}
	release()
	return nil, snapshot.Record{}, err
}

// pinned is a snapshot's content that keeps the snapshot.
type pinned struct {
	snapshot.Content
	release func()
}

func (p pinned) Close() error {
	defer p.release()
	return p.Content.Close()
}

// Take implements backup.Snapshots.
func (s backupSnapshots) Take(ctx context.Context, req snapshot.Request) (snapshot.Record, error) {
	if _, err := s.Create(ctx, req); err != nil {
		return snapshot.Record{}, err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	views, err := s.Watch(ctx, req.ID)
	if err != nil {
		return snapshot.Record{}, err
	}
	for v := range views {
		switch {
		case v.Gone || v.State == snapshot.PhaseFailed:
			return v.Record, fault.New(fault.Aborted, "take snapshot of server %s: %s", v.ServerName, v.Err)
		case v.State == snapshot.PhaseReady && v.Operation.Settled():
			return v.Record, nil
		}
	}
	return snapshot.Record{}, fault.New(fault.Unavailable, "take snapshot: the agent is stopping")
}

// Drop implements backup.Snapshots.
func (s backupSnapshots) Drop(ctx context.Context, id string) error {
	if err := s.Delete(ctx, id); !fault.Is(err, fault.NotFound) {
		return err
	}
	return nil
}

<<<<<<< HEAD
type noPeers struct{}

func (noPeers) Hosts() []string                                      { return nil }
func (noPeers) Term(context.Context, string, string) (uint64, error) { return 0, nil }
=======
// serviceBackups shows backups to the service.
type serviceBackups struct {
	*backup.Manager
	recovery *recovery.Manager
}

func backupView(v backup.View) service.BackupView {
	return service.BackupView{ID: v.ID, Name: v.Name, Server: v.Server, ServerName: v.ServerName, Snapshot: v.Snapshot, Host: v.Host, Target: v.Target,
		Parent: v.Parent, State: string(v.State), Size: v.Size, DiskSize: v.DiskSize, Checksum: v.Checksum, Created: v.Created,
		Origin: string(v.Origin), Operation: v.Operation, Gone: v.Gone}
}

// Create implements service.Backups.
func (b serviceBackups) Create(ctx context.Context, r service.BackupRequest) (service.BackupView, error) {
	v, err := b.Manager.Create(ctx, backup.Request{ID: r.ID, Snapshot: r.Snapshot, Target: r.Target, Name: r.Name, Incremental: r.Incremental})
	return backupView(v), err
}

// Get implements service.Backups.
func (b serviceBackups) Get(id string) (service.BackupView, error) {
	v, err := b.Manager.Get(id)
	return backupView(v), err
}

// List implements service.Backups.
func (b serviceBackups) List(server string) []service.BackupView {
	var all []service.BackupView
	for _, v := range b.Manager.List(server) {
		all = append(all, backupView(v))
	}
	return all
}

// Watch implements service.Backups.
func (b serviceBackups) Watch(ctx context.Context, id string) (<-chan service.BackupView, error) {
	views, err := b.Manager.Watch(ctx, id)
	if err != nil {
		return nil, err
	}
	out := make(chan service.BackupView)
	go func() {
		defer close(out)
		for v := range views {
			select {
			case out <- backupView(v):
			case <-ctx.Done():
			}
		}
	}()
	return out, nil
}

// Verify implements service.Targets.
func (b serviceBackups) Verify(ctx context.Context, target, id string, progress func(done, total int64)) error {
	report, err := b.Manager.Verify(ctx, target, id, progress)
	if err == nil && !report.OK {
		err = fault.New(fault.Precondition, "%s", report.Problem)
	}
	return err
}

// Catalog implements service.Targets.
func (b serviceBackups) Catalog(ctx context.Context, target, server string) ([]service.BackupView, error) {
	found, err := b.Manager.Catalog(ctx, target, server)
	var all []service.BackupView
	for _, f := range found {
		all = append(all, backupView(f.View()))
	}
	return all, err
}

// Import implements service.Targets.
func (b serviceBackups) Import(ctx context.Context, r service.ImportRequest) (snapshot.View, error) {
	return b.recovery.Import(ctx, recovery.ImportRequest{Snapshot: r.Snapshot, Target: r.Target, Backup: r.Backup, Name: r.Name})
}

// Recover implements service.Recoveries.
func (b serviceBackups) Recover(ctx context.Context, r service.Recovery) (service.Recovered, error) {
	done, err := b.recovery.Recover(ctx, recovery.Request{Spec: r.Spec, LostHost: r.LostHost, Target: r.Target, Backup: r.Backup})
	return service.Recovered{Server: done.Server, Backup: done.Backup, At: done.At}, err
}
>>>>>>> issue3
