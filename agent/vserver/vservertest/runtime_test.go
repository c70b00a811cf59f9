package vservertest_test

import (
	"testing"

	"github.com/google/uuid"

	"github.com/reflejo/terraform-provider-reflejo/agent/vserver"
	"github.com/reflejo/terraform-provider-reflejo/agent/vserver/vservertest"
)

func TestRuntimeFake(t *testing.T) {
	vservertest.RuntimeContract(t, func(*testing.T) vservertest.RuntimeEdge {
		return vservertest.RuntimeEdge{Runtime: vservertest.NewRuntime(), NewServer: func(*testing.T) vserver.Container {
			return vserver.Container{ID: uuid.NewString(), Hostname: "web", Rootfs: "/disks/web"}
		}}
	})
}
