package migrate

import (
	"testing"

	"github.com/reflejo/terraform-provider-reflejo/agent/vserver"
)

func TestMoveThereAndBack(t *testing.T) {
	for name, c := range map[string]struct {
		power    vserver.Power
		settings vserver.Migration
	}{
		"warm":      {vserver.PowerRunning, vserver.Migration{}},
		"cold":      {vserver.PowerRunning, vserver.Migration{Mode: vserver.MigrateCold}},
		"stopped":   {vserver.PowerStopped, vserver.Migration{}},
		"snapshots": {vserver.PowerRunning, vserver.Migration{Snapshots: true}},
	} {
		t.Run(name, func(t *testing.T) {
			inWorld(t, 1, func(w *world) {
				w.create(c.power)
				running := c.power == vserver.PowerRunning
				for range 2 {
					if err := w.move("alpha", "beta", c.settings); err != nil {
						t.Fatal(err)
					}
					w.finished("beta", running)
					if err := w.move("beta", "alpha", c.settings); err != nil {
						t.Fatal(err)
					}
					w.finished("alpha", running)
				}
			})
		})
	}
}
