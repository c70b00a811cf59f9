package snapshottest_test

import (
	"testing"

	"github.com/reflejo/terraform-provider-reflejo/agent/snapshot/snapshottest"
	"github.com/reflejo/terraform-provider-reflejo/agent/vserver/vservertest"
)

func TestFake(t *testing.T) {
	snapshottest.Contract(t, func(t *testing.T) snapshottest.Edges {
		disks := vservertest.NewPool(t.TempDir(), 256<<20)
		p := snapshottest.NewPool(disks)
		return snapshottest.Edges{Snapshots: p.Disks(), Arrivals: p.Arrivals(), Disks: disks.Disks(), Bases: disks.Bases()}
	})
}
