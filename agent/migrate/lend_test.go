package migrate

import (
	"fmt"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/uuid"

	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
	"github.com/reflejo/terraform-provider-reflejo/agent/vserver"
)

// fill makes servers on a host's part of the network until it has no address left; it
// returns how many there were.
func (w *world) fill(h *host) (n int, err error) {
	for ; n < 200; n++ {
		_, err := h.servers.Create(w.t.Context(), vserver.Spec{ID: uuid.NewString(), Name: fmt.Sprintf("s%d", n), Image: "tiny", Power: vserver.PowerStopped,
			CPU: vserver.CPU{MilliCores: 10}, Memory: vserver.Memory{Max: 16 << 20}, Disk: vserver.Disk{Size: 1 << 30}, Network: map[string]vserver.NIC{"eth0": {Network: "app"}}})
		if err != nil {
			return n, err
		}
	}
	return n, nil
}

// An address goes along from alpha to beta to gamma and back to beta; alpha gives it to
// nobody until the server is deleted, whoever of the others is asked on the way.
func TestAddressGoesAlong(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 1, "alpha", "beta", "gamma")
		defer w.close()
		w.create(vserver.PowerRunning)
		v, _ := w.hosts["alpha"].servers.Get(w.id)
		p := netip.MustParsePrefix(v.NICs["eth0"].Address)
		settings := vserver.Migration{}
		alpha := w.hosts["alpha"]
		for _, way := range [][2]string{{"alpha", "beta"}, {"beta", "gamma"}, {"gamma", "beta"}} {
			if err := w.move(way[0], way[1], settings); err != nil {
				t.Fatal(err)
			}
			time.Sleep(2*askLoansEvery + time.Second)
			synctest.Wait()
			v, err := w.hosts[way[1]].servers.Get(w.id)
			if err != nil || v.NICs["eth0"].Address != p.String() {
				t.Fatalf("on %s it has %s: %v", way[1], v.NICs["eth0"].Address, err)
			}
			if loans := alpha.network.Loans(); len(loans) != 1 || loans[0].Address != p.Addr() || loans[0].Host != way[1] {
				t.Errorf("when it is on %s alpha has lent %+v", way[1], loans)
			}
		}
		_, err := alpha.servers.Create(t.Context(), vserver.Spec{ID: uuid.NewString(), Name: "thief", Image: "tiny", CPU: vserver.CPU{MilliCores: 10},
			Memory: vserver.Memory{Max: 16 << 20}, Disk: vserver.Disk{Size: 1 << 30}, Network: map[string]vserver.NIC{"eth0": {Network: "app", Address: p.Addr().String()}}})
		if !fault.Is(err, fault.Exists) || fault.FieldOf(err) != "network.eth0.address" {
			t.Errorf("the address was given away: %v", err)
		}
		n, err := w.fill(alpha)
		if !fault.Is(err, fault.Exhausted) {
			t.Errorf("after %d servers: %v", n, err)
		}
		synctest.Wait()
		for _, s := range alpha.servers.List() {
			if s.NICs["eth0"].Address == p.String() {
				t.Errorf("server %s got the address", s.Spec.Name)
			}
		}
		if err := w.hosts["beta"].servers.Delete(t.Context(), w.id); err != nil {
			t.Fatal(err)
		}
		if err := w.quiesce(); err != nil {
			t.Fatal(err)
		}
		if _, err := alpha.servers.Create(t.Context(), vserver.Spec{ID: uuid.NewString(), Name: "last", Image: "tiny", CPU: vserver.CPU{MilliCores: 10}, Power: vserver.PowerStopped,
			Memory: vserver.Memory{Max: 16 << 20}, Disk: vserver.Disk{Size: 1 << 30}, Network: map[string]vserver.NIC{"eth0": {Network: "app"}}}); !fault.Is(err, fault.Exhausted) {
			t.Errorf("before anybody was asked: %v", err)
		}
		synctest.Wait() // that question was asked because nothing was left
		if _, err := alpha.servers.Create(t.Context(), vserver.Spec{ID: uuid.NewString(), Name: "last", Image: "tiny", CPU: vserver.CPU{MilliCores: 10}, Power: vserver.PowerStopped,
			Memory: vserver.Memory{Max: 16 << 20}, Disk: vserver.Disk{Size: 1 << 30}, Network: map[string]vserver.NIC{"eth0": {Network: "app"}}}); err != nil {
			t.Errorf("after the server was deleted: %v", err)
		}
	})
}
