//go:build linux && root && crashpoints

package acceptance

import (
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"

	reflejov1 "github.com/reflejo/terraform-provider-reflejo/agent/api/reflejo/v1"
)

// Moves that are broken off at random moments, by the death of either agent or by a cut of
// the network between them: afterwards one host has the server, running, with every record,
// and asking once more finishes the move. REFLEJO_MOVES says how many, REFLEJO_SEED repeats.
func TestMovesSurviveFaults(t *testing.T) {
	hosts := newHosts(t, "alpha", "beta")
	s := spec("subject", hosts[0].tinyImage())
	s.Cpu.MilliCores = 500
	s.Network = map[string]*reflejov1.Nic{"eth0": {Network: span(hosts, "10.91.0.0/24")}}
	hosts[0].create(s)
	hosts[0].put(s.GetId(), "/bin/record", buildRecord(t))
	count, seed := 9, rand.Uint64()
	if n, err := strconv.Atoi(os.Getenv("REFLEJO_MOVES")); err == nil {
		count = n
	}
	if n, err := strconv.ParseUint(os.Getenv("REFLEJO_SEED"), 10, 64); err == nil {
		seed = n
	}
	random := rand.New(rand.NewPCG(seed, 0))
	at := 0 // which host has it
	for i := range count {
		fault := []string{"source", "target", "cut"}[i%3]
		delay := time.Duration(random.Int64N(int64(300 * time.Millisecond)))
		ok := t.Run(fmt.Sprintf("%d %s after %s", i+1, fault, delay.Round(time.Millisecond)), func(t *testing.T) {
			hosts[0].t, hosts[1].t = t, t
			at = faultyMove(t, hosts, at, s.GetId(), fault, delay)
		})
		if !ok {
			t.Fatalf("REFLEJO_SEED=%d", seed)
		}
	}
	hosts[0].t, hosts[1].t = t, t
	hosts[at].remove(s.GetId())
	for _, h := range hosts {
		h.nothingLeft()
	}
}

// faultyMove moves a server with a fault on the way, and then without. It returns the host
// that has the server.
func faultyMove(t *testing.T, hosts []*host, at int, id, fault string, delay time.Duration) int {
	from, to := hosts[at], hosts[1-at]
	w := from.write(id)
	if err := from.beginMove(to, id, nil); err != nil {
		t.Fatal(err)
	}
	<-time.After(delay) // anywhere is right
	switch fault {
	case "source":
		from.restart()
	case "target":
		to.restart()
	case "cut":
		cut(t, from, to)
	}
	w.end()
	for _, h := range hosts {
		h.dial()
	}
	for range 20 {
		if from.settled(id) == nil {
			break
		}
		if err := from.beginMove(to, id, nil); err != nil && connect.CodeOf(err) != connect.CodeNotFound {
			t.Logf("again: %v", err)
			<-time.After(200 * time.Millisecond)
		}
	}
	if got := from.settled(id); got != nil {
		t.Fatalf("host %s still has it: %s (%s)", from.name, got.GetState(), got.GetOperation().GetError())
	}
	if got := to.settled(id); got.GetState() != "running" {
		t.Fatalf("host %s has it %s (%s)", to.name, got.GetState(), got.GetOperation().GetError())
	}
	if n := to.checked(id); n < w.named.Load() {
		t.Errorf("it has %d records, %d were on stable storage", n, w.named.Load())
	}
	return 1 - at
}

// cut separates two hosts for longer than it takes to notice.
func cut(t *testing.T, a, b *host) {
	t.Helper()
	between := bed(t, a.config)
	if err := between.Cut(a.name, b.name); err != nil {
		t.Fatal(err)
	}
	<-time.After(2 * time.Second)
	if err := between.Heal(a.name, b.name); err != nil {
		t.Fatal(err)
	}
}

// nothingLeft checks that the pool holds no disk, snapshot or arrival.
func (h *host) nothingLeft() {
	h.t.Helper()
	if out, err := h.onHost("ls", h.inPool("disks"), h.inPool("snapshots"), h.inPool("arrivals")); err != nil || strings.Contains(out, ".ext4") {
		h.t.Errorf("%s: left in the pool: %v\n%s", h.name, err, out)
	}
}
