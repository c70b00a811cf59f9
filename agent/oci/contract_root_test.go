//go:build linux && root

package oci

import (
	"testing"

	"github.com/reflejo/terraform-provider-reflejo/agent/vserver"
	"github.com/reflejo/terraform-provider-reflejo/agent/vserver/vservertest"
)

func TestContract(t *testing.T) {
	vservertest.RuntimeContract(t, func(t *testing.T) vservertest.RuntimeEdge {
		h := newHost(t, "")
		return vservertest.RuntimeEdge{Runtime: h, NewServer: func(t *testing.T) vserver.Container { return h.newContainer(t, busyboxRoot(t, h.dir)) }}
	})
}
