package demo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"connectrpc.com/connect"

	reflejov1 "github.com/reflejo/terraform-provider-reflejo/agent/api/reflejo/v1"
	"github.com/reflejo/terraform-provider-reflejo/agent/testbed"
	"github.com/reflejo/terraform-provider-reflejo/agent/testbed/inventory"
)

// The server of the example about snapshots, where it is put first, and where else it can be.
const (
	copiedServer = "orders"
	firstHost    = "alpha"
	otherHost    = "beta"
)

// lostHosts is how the provider is told that hosts are lost for good.
const lostHosts = "REFLEJO_LOST_HOSTS"

// orders are what somebody has in the server.
const orders = "/srv/orders"

// copies is the second half of the demo: one server that is captured, broken, put back,
// cloned, moved and lost with its host.
func (w *world) copies(ctx context.Context, r *report, example string, before map[string]inventory.Inventory) error {
	c := &world{bed: w.bed, dir: filepath.Join(w.bed.Dir(), "copies"), vars: map[string]string{"debian": w.vars["debian"]}}
	if err := os.CopyFS(c.dir, os.DirFS(example)); err != nil {
		return fmt.Errorf("copy example: %w", err)
	}
	if _, err := c.terraform(ctx, "init"); err != nil {
		return err
	}
	for _, chapter := range []func(context.Context, *report) error{c.capture, c.restore, c.clone, c.move, c.lose} {
		if err := chapter(ctx, r); err != nil {
			return err
		}
	}
	kept, err := c.claim(ctx)
	if err != nil {
		return err
	}
	before = maps.Clone(before)
	before[otherHost] = slices.Concat(before[otherHost], kept)
	return c.destroy(ctx, r, before)
}

// claim is what the recovery of the server leaves beside its backups for good: by it an old
// copy that comes back, even after the server is destroyed, finds that it must stay closed.
func (w *world) claim(ctx context.Context) (inventory.Inventory, error) {
	s, err := w.server(ctx, otherHost, copiedServer)
	if err != nil {
		return nil, err
	}
	h, err := w.bed.Host(otherHost)
	if err != nil {
		return nil, err
	}
	dir := filepath.Join(h.Dir(), "backups", "claims")
	return inventory.Inventory{"file " + dir, "file " + filepath.Join(dir, s.GetSpec().GetId()+".json")}, nil
}

func (w *world) capture(ctx context.Context, r *report) error {
	r.title("A server with data, a snapshot and a backup of it (examples/snapshots-and-migration)")
	line, took, err := w.apply(ctx, map[string]string{"backup": "false"})
	if err != nil {
		return err
	}
	r.say("%s  (%.1f s)", line, took.Seconds())
	if _, _, err := w.booted(ctx, copiedServer); err != nil {
		return err
	}
	if _, err := w.inside(ctx, copiedServer, `mkdir -p /srv; seq 1 100000 > `+orders+service); err != nil {
		return err
	}
	if _, took, err = w.apply(ctx, map[string]string{"release": "2-0", "backup": "true"}); err != nil {
		return err
	}
	s, err := w.snapshot(ctx, firstHost)
	if err != nil {
		return err
	}
	r.say("snapshot %s and its backup on %s: %.1f s; the server was held up for %.1f ms; %s", s.GetName(), otherHost, took.Seconds(),
		float64(s.GetPause().AsDuration().Microseconds())/1000, s.GetChecksum()[:19]+"…")
	out, err := w.command(ctx, "reflejo", "backup", "list", "--target", "host:"+otherHost, "--host", firstHost)
	for line := range strings.Lines(out) {
		r.say("%s", strings.TrimRight(line, "\n"))
	}
	return err
}

// snapshot is the newest one of the server that somebody asked for.
func (w *world) snapshot(ctx context.Context, host string) (*reflejov1.Snapshot, error) {
	client, err := w.bed.Client(host)
	if err != nil {
		return nil, err
	}
	defer client.Close()
	got, err := client.Snapshots.ListSnapshots(ctx, connect.NewRequest(&reflejov1.ListSnapshotsRequest{}))
	if err != nil {
		return nil, fmt.Errorf("list snapshots of %s: %w", host, err)
	}
	var newest *reflejov1.Snapshot
	for _, s := range got.Msg.GetSnapshots() {
		if s.GetOrigin() == "manual" {
			newest = s
		}
	}
	if newest == nil {
		return nil, fmt.Errorf("host %s has no snapshot", host)
	}
	return newest, nil
}

// holds reports whether a server has all orders.
func (w *world) holds(ctx context.Context, server string) (bool, error) {
	out, err := w.inside(ctx, server, `wc -l < `+orders+` 2>/dev/null || true`)
	return out == "100000", err
}

func (w *world) restore(ctx context.Context, r *report) error {
	r.title("The data is lost; the snapshot is put back in place")
	address, err := w.inside(ctx, copiedServer, "hostname -I")
	if err != nil {
		return err
	}
	if _, err := w.inside(ctx, copiedServer, "rm -rf /srv /var/lib/dpkg; sync"); err != nil {
		return err
	}
	lost, err := w.holds(ctx, copiedServer)
	if err != nil {
		return err
	}
	r.check(!lost, "rm -rf, inside")
	s, err := w.snapshot(ctx, firstHost)
	if err != nil {
		return err
	}
	_, took, err := w.apply(ctx, map[string]string{"restore_from": s.GetId()})
	if err != nil {
		return err
	}
	back, err := w.holds(ctx, copiedServer)
	if err != nil {
		return err
	}
	r.check(back, "restore_from = the snapshot: everything is there again after %.1f s, boot included", took.Seconds())
	now, err := w.inside(ctx, copiedServer, "hostname -I")
	r.check(now == address, "it is the same server, at %s", address)
	return err
}

func (w *world) clone(ctx context.Context, r *report) error {
	r.title("A clone, to try things on")
	_, took, err := w.apply(ctx, map[string]string{"trial": "true"})
	if err != nil {
		return err
	}
	has, err := w.holds(ctx, "orders-trial")
	if err != nil {
		return err
	}
	r.check(has, "a clone with the same data, after %.1f s", took.Seconds())
	mine, err := w.inside(ctx, copiedServer, "cat /etc/machine-id; hostname -I")
	if err != nil {
		return err
	}
	its, err := w.inside(ctx, "orders-trial", "cat /etc/machine-id; hostname -I")
	if err != nil {
		return err
	}
	r.check(mine != its, "machine id and address are its own")
	_, _, err = w.apply(ctx, map[string]string{"trial": "false"})
	return err
}

func (w *world) move(ctx context.Context, r *report) error {
	r.title("host = %q: the server moves while it runs, and back", otherHost)
	address, err := w.inside(ctx, copiedServer, "hostname -I")
	if err != nil {
		return err
	}
	neighbour, err := w.bed.Host(otherHost)
	if err != nil {
		return err
	}
	for _, host := range []string{otherHost, firstHost} {
		watched := watch(ctx, neighbour, strings.Fields(address)[0])
		_, took, err := w.apply(ctx, map[string]string{"host": host})
		outage := watched()
		if err != nil {
			return err
		}
		has, err := w.holds(ctx, copiedServer)
		if err != nil {
			return err
		}
		now, err := w.inside(ctx, copiedServer, "hostname -I")
		if err != nil {
			return err
		}
		r.check(has && now == address, "on %s after %.1f s, with its data and its address; its service did not answer for %.1f s, its own stop and boot included",
			host, took.Seconds(), outage.Seconds())
	}
	empty, err := w.planIsEmpty(ctx)
	r.check(empty, "terraform plan: nothing to do")
	return err
}

// service makes the server answer on a port, with what its orders come to.
const service = `
cat > /etc/systemd/system/orders.socket <<END
[Socket]
ListenStream=7000
Accept=yes
[Install]
WantedBy=sockets.target
END
cat > /etc/systemd/system/orders@.service <<END
[Service]
ExecStart=/usr/bin/wc -l ` + orders + `
StandardOutput=socket
END
systemctl enable --now orders.socket 2>/dev/null; sync`

// ask gets an answer from the service, from a host on the server's network.
func ask(host *testbed.Host, address string) error {
	return testbed.Inside(host.Netns(), "", func() error {
		c, err := net.DialTimeout("tcp", address+":7000", time.Second)
		if err != nil {
			return err
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(time.Second))
		answer, err := io.ReadAll(c)
		if err == nil && !strings.HasPrefix(string(answer), "100000 ") {
			err = fmt.Errorf("it answers %q", answer)
		}
		return err
	})
}

// watch asks the service over and over until the returned function is called, which waits
// for one more answer and says for how long there was none.
func watch(ctx context.Context, host *testbed.Host, address string) (outage func() time.Duration) {
	ctx, cancel := context.WithCancel(ctx)
	var longest time.Duration
	var done sync.WaitGroup
	done.Go(func() {
		last := time.Now()
		for answered := false; ctx.Err() == nil || !answered && time.Since(last) < time.Minute; {
			if answered = ask(host, address) == nil; answered {
				longest, last = max(longest, time.Since(last)), time.Now()
			}
			pause(context.WithoutCancel(ctx), 20*time.Millisecond)
		}
	})
	return func() time.Duration {
		cancel()
		done.Wait()
		return longest
	}
}

func (w *world) lose(ctx context.Context, r *report) error {
	r.title("%s is lost for good: its server comes back on %s from the backup there", firstHost, otherHost)
	alpha, err := w.bed.Host(firstHost)
	if err != nil {
		return err
	}
	if err := alpha.PowerOff(ctx); err != nil {
		return err
	}
	start := time.Now()
	w.vars["host"] = otherHost
	delete(w.vars, "restore_from")
	if err := os.Setenv(lostHosts, firstHost); err != nil {
		return err
	}
	out, err := w.terraform(ctx, "apply", "-auto-approve")
	if err := errors.Join(err, os.Unsetenv(lostHosts)); err != nil {
		return err
	}
	r.say("%s  (%.1f s)", lineWith(out, "Apply complete!"), time.Since(start).Seconds())
	has, err := w.holds(ctx, copiedServer)
	if err != nil {
		return err
	}
	r.check(has, "with what was backed up, under its own id")
	if err := alpha.Start(ctx); err != nil {
		return err
	}
	out, err = w.command(ctx, "reflejo", "server", "list", "--host", firstHost)
	if err != nil {
		return err
	}
	r.check(strings.Contains(lineWith(out, copiedServer), "closed"), "%s is back, and what it has of the server stays closed", firstHost)
	if _, err = w.command(ctx, "reflejo", "server", "delete", copiedServer, "--host", firstHost); err != nil {
		return err
	}
	r.say("%s keeps beside its backups who has the server, also when it is destroyed: no old copy ever starts", otherHost)
	return nil
}
