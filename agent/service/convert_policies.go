package service

import (
	"google.golang.org/protobuf/types/known/durationpb"

	reflejov1 "github.com/reflejo/terraform-provider-reflejo/agent/api/reflejo/v1"
	"github.com/reflejo/terraform-provider-reflejo/agent/schedule"
	"github.com/reflejo/terraform-provider-reflejo/agent/vserver"
)

// A policy that does nothing is left out of answers, as a user leaves it out.

func keepFromProto(p *reflejov1.Keep) schedule.Keep {
	return schedule.Keep{Last: int(p.GetLast()), Hourly: int(p.GetHourly()), Daily: int(p.GetDaily()), Weekly: int(p.GetWeekly()), Monthly: int(p.GetMonthly())}
}

func keepToProto(k schedule.Keep) *reflejov1.Keep {
	if k.All() {
		return nil
	}
	return &reflejov1.Keep{Last: uint32(k.Last), Hourly: uint32(k.Hourly), Daily: uint32(k.Daily), Weekly: uint32(k.Weekly), Monthly: uint32(k.Monthly)}
}

func snapshotPolicyToProto(p vserver.SnapshotPolicy) *reflejov1.SnapshotPolicy {
	if p.Schedule == "" && len(p.On) == 0 {
		return nil
	}
	return &reflejov1.SnapshotPolicy{Schedule: p.Schedule, On: p.On, Keep: keepToProto(p.Keep)}
}

func backupPolicyToProto(p vserver.BackupPolicy) *reflejov1.BackupPolicy {
	if p == (vserver.BackupPolicy{}) {
		return nil
	}
	return &reflejov1.BackupPolicy{Schedule: p.Schedule, Target: p.Target, Keep: keepToProto(p.Keep), Incremental: p.Incremental}
}

func migrationFromProto(p *reflejov1.MigrationSettings) vserver.Migration {
	return vserver.Migration{Mode: p.GetMode(), MaxDowntime: p.GetMaxDowntime().AsDuration(), Bandwidth: p.GetBandwidth(), Snapshots: p.GetSnapshots()}
}

func migrationToProto(m vserver.Migration) *reflejov1.MigrationSettings {
	if m == (vserver.Migration{}) {
		return nil
	}
	return &reflejov1.MigrationSettings{Mode: m.Mode, MaxDowntime: durationpb.New(m.MaxDowntime), Bandwidth: m.Bandwidth, Snapshots: m.Snapshots}
}
