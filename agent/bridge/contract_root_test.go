//go:build linux && root

package bridge

import (
	"testing"

	"github.com/reflejo/terraform-provider-reflejo/agent/vserver"
	"github.com/reflejo/terraform-provider-reflejo/agent/vserver/vservertest"
)

func TestContract(t *testing.T) {
	vservertest.NetworksContract(t, func(t *testing.T) vservertest.NetworksHost {
		cfg := Config{GuardedPorts: []uint16{7443}}
		h := newHost(t, cfg)
		guests := map[int]*testGuest{}
		return vservertest.NetworksHost{
			Networks: h, Guarded: 7443,
			Start:   func(t *testing.T) int { g := newGuest(t); guests[g.pid] = g; return g.pid },
			End:     func(_ *testing.T, pid int) { guests[pid].end() },
			Restart: func(t *testing.T) vserver.Networks { h.reopen(cfg); return h },
		}
	})
}
