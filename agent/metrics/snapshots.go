package metrics

import (
	"context"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/reflejo/terraform-provider-reflejo/agent/backup"
	"github.com/reflejo/terraform-provider-reflejo/agent/snapshot"
	"github.com/reflejo/terraform-provider-reflejo/agent/vserver"
)

// Snapshots tells about snapshots (snapshot.Manager).
type Snapshots interface {
	Stats(ctx context.Context) []snapshot.Stats
}

// Policies tells how the servers' policies do (snapshot.Policies).
type Policies interface {
	Runs() []snapshot.Run
}

// Backups tells how the servers' backup policies do (backup.Manager).
type Backups interface {
	Runs() map[string]backup.Run // by server
}

var (
	snapshotsDesc = describe("server_snapshots", "Complete snapshots of the server's disk, also of a server that is gone.", "server")
	exclusiveDesc = describe("server_snapshot_exclusive_bytes", "Space in the pool that only one of the server's snapshots holds.", "server")
	reservedDesc  = describe("server_snapshot_reserved_bytes", "Disk space of the host that is promised to the server's snapshots.", "server")

	backupTriedDesc     = describe("server_backup_policy_last_run_timestamp_seconds", "When the last run of the server's backup policy began.", "server")
	backupSucceededDesc = describe("server_backup_policy_last_success_timestamp_seconds", "When the last run of the server's backup policy began that made a backup: what is newer is in none.", "server")
	backupFailingDesc   = describe("server_backup_policy_failing", "1 if the last run of the server's backup policy has failed.", "server")

	policyTriedDesc     = describe("server_snapshot_policy_last_run_timestamp_seconds", "When the server's policy last asked for a snapshot.", "server")
	policySucceededDesc = describe("server_snapshot_policy_last_success_timestamp_seconds", "The moment of the last snapshot that the server's policy completed.", "server")
	policyFailingDesc   = describe("server_snapshot_policy_failing", "1 while the last run of the server's policy has failed and is tried again.", "server")
)

var snapshotDescs = []*prometheus.Desc{snapshotsDesc, exclusiveDesc, reservedDesc, policyTriedDesc, policySucceededDesc, policyFailingDesc,
	backupTriedDesc, backupSucceededDesc, backupFailingDesc}

// snapshots collects what is known of snapshots and policies.
func (c *collector) snapshots(ctx context.Context, ch chan<- prometheus.Metric, servers []vserver.View) {
	names := map[string]string{}
	for _, v := range servers {
		names[v.Spec.ID] = v.Spec.Name
	}
	if c.cfg.Snapshots != nil {
		sums := map[string]snapshot.Stats{} // by name, which a server may have after one that is gone
		for _, s := range c.cfg.Snapshots.Stats(ctx) {
			name, ok := names[s.Server]
			if !ok {
				name = s.Name
			}
			sum := sums[name]
			sum.Snapshots += s.Snapshots
			sum.Exclusive += s.Exclusive
			sum.Reserved += s.Reserved
			sums[name] = sum
		}
		for name, s := range sums {
			ch <- prometheus.MustNewConstMetric(snapshotsDesc, prometheus.GaugeValue, float64(s.Snapshots), name)
			ch <- prometheus.MustNewConstMetric(exclusiveDesc, prometheus.GaugeValue, float64(s.Exclusive), name)
			ch <- prometheus.MustNewConstMetric(reservedDesc, prometheus.GaugeValue, float64(s.Reserved), name)
		}
	}
	if c.cfg.Policies != nil {
		for _, r := range c.cfg.Policies.Runs() {
			policy(ch, names[r.Server], r.Tried, r.Succeeded, r.Err, policyTriedDesc, policySucceededDesc, policyFailingDesc)
		}
	}
	if c.cfg.Backups != nil {
		for _, r := range c.cfg.Backups.Runs() {
			policy(ch, names[r.Server], r.Tried, r.Succeeded, r.Err, backupTriedDesc, backupSucceededDesc, backupFailingDesc)
		}
	}
}

// policy is how one server's policy does. A server that has gone at this moment has no name;
// where nothing was due yet nothing is told.
func policy(ch chan<- prometheus.Metric, name string, tried, succeeded time.Time, err string, triedDesc, succeededDesc, failingDesc *prometheus.Desc) {
	if name == "" || tried.IsZero() {
		return
	}
	failing := 0.0
	if err != "" {
		failing = 1
	}
	ch <- prometheus.MustNewConstMetric(failingDesc, prometheus.GaugeValue, failing, name)
	for desc, at := range map[*prometheus.Desc]time.Time{triedDesc: tried, succeededDesc: succeeded} {
		if !at.IsZero() {
			ch <- prometheus.MustNewConstMetric(desc, prometheus.GaugeValue, float64(at.Unix()), name)
		}
	}
}
