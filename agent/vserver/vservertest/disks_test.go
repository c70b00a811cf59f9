package vservertest_test

import (
	"testing"

	"github.com/reflejo/terraform-provider-reflejo/agent/image"
	"github.com/reflejo/terraform-provider-reflejo/agent/vserver"
	"github.com/reflejo/terraform-provider-reflejo/agent/vserver/vservertest"
)

func TestFakeDisks(t *testing.T) {
	vservertest.DisksContract(t, func(t *testing.T) (vserver.Disks, image.Bases) {
		p := vservertest.NewPool(t.TempDir(), 256<<20)
		return p.Disks(), p.Bases()
	})
}

func TestFakeBases(t *testing.T) {
	vservertest.BasesContract(t, func(t *testing.T) image.Bases {
		return vservertest.NewPool(t.TempDir(), 256<<20).Bases()
	})
}
