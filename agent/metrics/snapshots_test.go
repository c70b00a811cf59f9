package metrics

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/reflejo/terraform-provider-reflejo/agent/backup"
	"github.com/reflejo/terraform-provider-reflejo/agent/snapshot"
	"github.com/reflejo/terraform-provider-reflejo/agent/vserver"
)

type someSnapshots []snapshot.Stats

func (s someSnapshots) Stats(context.Context) []snapshot.Stats { return s }

type somePolicies []snapshot.Run

func (p somePolicies) Runs() []snapshot.Run { return p }

type someBackups map[string]backup.Run

func (b someBackups) Runs() map[string]backup.Run { return b }

// Servers that are gone count under the name they had, also if another one has it now.
func TestSnapshots(t *testing.T) {
	t.Parallel()
	m := New(Config{Servers: someServers{view("web", vserver.StateStopped), view("db", vserver.StateStopped)},
		Host: func(context.Context) (Host, error) { return Host{}, nil },
		Snapshots: someSnapshots{{Server: "web", Name: "old", Snapshots: 3, Exclusive: 4096, Reserved: 8192},
			{Server: "gone", Name: "web", Snapshots: 1, Exclusive: 4096, Reserved: 4096}},
		Policies: somePolicies{{Server: "web", Tried: time.Unix(2000, 0), Succeeded: time.Unix(1000, 0), Err: "no room"}, {Server: "db"},
			{Server: "gone", Tried: time.Unix(1, 0)}},
		Backups: someBackups{"web": {Server: "web", Tried: time.Unix(4000, 0), Succeeded: time.Unix(3000, 0), Err: "it is full"},
			"db": {Server: "db", Last: time.Unix(1, 0)}, "gone": {Server: "gone", Tried: time.Unix(1, 0)}}})
	want := `
# HELP reflejo_server_backup_policy_failing 1 if the last run of the server's backup policy has failed.
# TYPE reflejo_server_backup_policy_failing gauge
reflejo_server_backup_policy_failing{server="web"} 1
# HELP reflejo_server_backup_policy_last_run_timestamp_seconds When the last run of the server's backup policy began.
# TYPE reflejo_server_backup_policy_last_run_timestamp_seconds gauge
reflejo_server_backup_policy_last_run_timestamp_seconds{server="web"} 4000
# HELP reflejo_server_backup_policy_last_success_timestamp_seconds When the last run of the server's backup policy began that made a backup: what is newer is in none.
# TYPE reflejo_server_backup_policy_last_success_timestamp_seconds gauge
reflejo_server_backup_policy_last_success_timestamp_seconds{server="web"} 3000
# HELP reflejo_server_snapshot_exclusive_bytes Space in the pool that only one of the server's snapshots holds.
# TYPE reflejo_server_snapshot_exclusive_bytes gauge
reflejo_server_snapshot_exclusive_bytes{server="web"} 8192
# HELP reflejo_server_snapshot_policy_failing 1 while the last run of the server's policy has failed and is tried again.
# TYPE reflejo_server_snapshot_policy_failing gauge
reflejo_server_snapshot_policy_failing{server="web"} 1
# HELP reflejo_server_snapshot_policy_last_run_timestamp_seconds When the server's policy last asked for a snapshot.
# TYPE reflejo_server_snapshot_policy_last_run_timestamp_seconds gauge
reflejo_server_snapshot_policy_last_run_timestamp_seconds{server="web"} 2000
# HELP reflejo_server_snapshot_policy_last_success_timestamp_seconds The moment of the last snapshot that the server's policy completed.
# TYPE reflejo_server_snapshot_policy_last_success_timestamp_seconds gauge
reflejo_server_snapshot_policy_last_success_timestamp_seconds{server="web"} 1000
# HELP reflejo_server_snapshot_reserved_bytes Disk space of the host that is promised to the server's snapshots.
# TYPE reflejo_server_snapshot_reserved_bytes gauge
reflejo_server_snapshot_reserved_bytes{server="web"} 12288
# HELP reflejo_server_snapshots Complete snapshots of the server's disk, also of a server that is gone.
# TYPE reflejo_server_snapshots gauge
reflejo_server_snapshots{server="web"} 4
`
	if err := testutil.GatherAndCompare(m.registry, strings.NewReader(want), "reflejo_server_snapshots", "reflejo_server_snapshot_exclusive_bytes",
		"reflejo_server_snapshot_reserved_bytes", "reflejo_server_snapshot_policy_failing", "reflejo_server_backup_policy_failing",
		"reflejo_server_backup_policy_last_run_timestamp_seconds", "reflejo_server_backup_policy_last_success_timestamp_seconds",
		"reflejo_server_snapshot_policy_last_run_timestamp_seconds", "reflejo_server_snapshot_policy_last_success_timestamp_seconds"); err != nil {
		t.Error(err)
	}
	if problems, err := testutil.GatherAndLint(m.registry); err != nil {
		t.Error(err)
	} else {
		for _, p := range problems {
			if strings.HasPrefix(p.Metric, "reflejo_") {
				t.Errorf("%s: %s", p.Metric, p.Text)
			}
		}
	}
}
