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
