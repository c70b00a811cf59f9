package bench

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"time"

	"connectrpc.com/connect"
	"github.com/google/uuid"

	reflejov1 "github.com/reflejo/terraform-provider-reflejo/agent/api/reflejo/v1"
	"github.com/reflejo/terraform-provider-reflejo/agent/testbed"
)

const (
	moveNetwork   = "10.112.0.0/24"
	moveBandwidth = 1e9  // bits per second
	moveTarget    = 3000 // ms
	bytesTarget   = 1.2

	// serve lets a tiny server serve on port 80 from its next start on.
	serve = `echo "::respawn:/bin/httpd -f -p 80" >>/etc/inittab`
	// change changes 1 MiB four times a second, 100 MiB at most, and counts; fill is what
	// it changes.
	change = `(i=0; while [ $i -lt 100 ]; do
	dd if=/dev/urandom of=/root/data bs=1M count=1 seek=$i conv=notrunc 2>/dev/null
	i=$((i+1)); echo $i >/root/count; sleep 0.25; done) </dev/null >/dev/null 2>&1 &`
)

// move is V12: a server moves between two hosts and back while it runs and its disk
// changes. A client on a third host asks it for a connection every 10 ms; what a reboot
// costs it is measured by turns.
func (r *run) move(ctx context.Context) (rows []Row, err error) {
	other, outside, err := r.host.others(ctx)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, other.leave(ctx), outside.leave(ctx)) }()
	hosts := []*host{r.host, other}
	network, err := span(ctx, r.host, other, outside)
	if err != nil {
		return nil, err
	}
	defer func() {
		_, gone := r.host.api.Networks.DeleteNetwork(context.WithoutCancel(ctx), connect.NewRequest(&reflejov1.DeleteNetworkRequest{Id: network}))
		err = errors.Join(err, gone)
	}()
	s, c := r.host.tinySpec("v12"), outside.tinySpec("client")
	for _, spec := range []*reflejov1.ServerSpec{s, c} {
		spec.Network = map[string]*reflejov1.Nic{"eth0": {Network: network}}
	}
	s.Disk.Size, s.Memory.Max = largeDisk, 64*mebibyte
	defer func() {
		for _, h := range hosts {
			err = errors.Join(err, h.removeAll(ctx, s))
		}
		err = errors.Join(err, outside.removeAll(ctx, c))
	}()
	if err := errors.Join(r.host.create(ctx, s), outside.create(ctx, c)); err != nil {
		return nil, err
	}
	fill := serve + fmt.Sprintf("; dd if=/dev/urandom of=/root/data bs=1M count=%d 2>/dev/null && sync", largeData)
	if _, err := r.host.sh(ctx, s.GetId(), fill); err != nil {
		return nil, err
	}
	if err := r.host.reboot(ctx, s); err != nil {
		return nil, err
	}
	p, err := outside.probe(ctx, c.GetId(), r.host, s.GetId())
	if err != nil {
		return nil, err
	}
	defer p.stop()
	return r.moves(ctx, hosts, s, p)
}

// moves moves a server to and fro.
func (r *run) moves(ctx context.Context, hosts []*host, s *reflejov1.ServerSpec, p *probe) ([]Row, error) {
	var down, rebooted, less, took, moved, ratio, again []float64
	for i := range r.pick(20, 3) {
		from, to := hosts[i%2], hosts[1-i%2]
		began := time.Now()
		if err := from.reboot(ctx, s); err != nil {
			return nil, err
		}
		reboot, err := p.longestGap(ctx, began)
		if err != nil {
			return nil, err
		}
		if _, err := from.sh(ctx, s.GetId(), change); err != nil {
			return nil, err
		}
		server, err := from.settled(ctx, s.GetId())
		if err != nil {
			return nil, err
		}
		sent, err := from.sent()
		if err != nil {
			return nil, err
		}
		began = time.Now()
		if err := from.moveTo(ctx, to, server); err != nil {
			return nil, err
		}
		took = append(took, time.Since(began).Seconds())
		gap, err := p.longestGap(ctx, began)
		if err != nil {
			return nil, err
		}
		now, err := from.sent()
		if err != nil {
			return nil, err
		}
		written, err := to.number(ctx, s.GetId(), "/root/count")
		if err != nil {
			return nil, err
		}
		wire := float64(now-sent) / mebibyte
		down, rebooted, less = append(down, ms(gap)), append(rebooted, ms(reboot)), append(less, ms(gap-reboot))
		moved, ratio, again = append(moved, wire), append(ratio, wire/(largeData+written)), append(again, (wire-largeData)/written)
	}
	return []Row{
		{What: "warm move, 10 GiB disk with 1 GiB of data, at 1 Gbit: the client's downtime", Unit: "ms", Values: down, Note: "no connection, asked for every 10 ms on a third host"},
		{What: "a reboot: the client's downtime", Unit: "ms", Values: rebooted},
		{What: "downtime less a reboot's", Unit: "ms", Values: less, Target: AtMost(moveTarget)},
		{What: "the whole move", Unit: "s", Values: took},
		{What: "moved between the hosts", Unit: "MiB", Values: moved, Note: "all that the source's interface sent"},
		{What: "moved ÷ (1 GiB + written meanwhile)", Unit: "×", Values: ratio, Target: AtMost(bytesTarget), Note: "the target has nothing of it at the start"},
		{What: "moved beyond the 1 GiB ÷ written meanwhile", Unit: "×", Values: again, Target: AtMost(bytesTarget), Note: "with all headers, the system's files and the client's connections"},
	}, nil
}

// span makes a network of hosts.
func span(ctx context.Context, hosts ...*host) (id string, err error) {
	n := &reflejov1.NetworkSpec{Id: uuid.NewString(), Name: "span", Cidr: moveNetwork, Nat: true}
	for i, h := range hosts {
		n.Members = append(n.Members, &reflejov1.NetworkMember{Host: h.tb.Name(), Address: testbed.Address(h.tb.Name()).String(), Slot: uint32(i)})
	}
	for _, h := range hosts {
		if _, err := h.api.Networks.PutNetwork(ctx, connect.NewRequest(&reflejov1.PutNetworkRequest{Spec: n})); err != nil {
			return "", fmt.Errorf("make network on %s: %w", h.tb.Name(), err)
		}
	}
	return n.GetId(), nil
}

// reboot stops and starts a server.
func (h *host) reboot(ctx context.Context, s *reflejov1.ServerSpec) error {
	_, err := h.api.Servers.SetPower(ctx, connect.NewRequest(&reflejov1.SetPowerRequest{Id: s.GetId(), Action: reflejov1.SetPowerRequest_ACTION_REBOOT}))
	if err != nil {
		return fmt.Errorf("reboot server %s: %w", s.GetName(), err)
	}
	return h.await(ctx, s, "running")
}

// moveTo moves a server as the provider does, and returns when it runs there.
func (h *host) moveTo(ctx context.Context, to *host, server *reflejov1.Server) error {
	s := server.GetSpec()
	right, err := to.api.Servers.PrepareMigration(ctx, connect.NewRequest(&reflejov1.PrepareMigrationRequest{Server: server, Source: h.tb.Name()}))
	if err == nil {
		_, err = h.api.Servers.MigrateServer(ctx, connect.NewRequest(&reflejov1.MigrateServerRequest{
			Id: s.GetId(), Target: to.tb.Name(), Endpoint: right.Msg.GetEndpoint(), Ticket: right.Msg.GetTicket(),
			Settings: &reflejov1.MigrationSettings{Bandwidth: moveBandwidth}}))
	}
	if err != nil {
		return fmt.Errorf("move server %s to %s: %w", s.GetName(), to.tb.Name(), err)
	}
	left, err := h.settled(ctx, s.GetId())
	if err == nil && left != nil {
		err = fmt.Errorf("it is still here: %s", left.GetOperation().GetError())
	}
	if err != nil {
		return fmt.Errorf("move server %s to %s: %w", s.GetName(), to.tb.Name(), err)
	}
	return to.await(ctx, s, "running")
}

// number reads a number from a file in a server.
func (h *host) number(ctx context.Context, id, file string) (float64, error) {
	text, _, err := h.exec(ctx, id, "cat", file)
	if err != nil {
		return 0, err
	}
	return strconv.ParseFloat(text, 64)
}

// sent is how many bytes the host's interface has sent.
func (h *host) sent() (n int64, err error) {
	var text []byte
	err = testbed.Inside(h.tb.Netns(), "", func() error {
		text, err = os.ReadFile("/proc/thread-self/net/dev")
		return err
	})
	for line := range strings.Lines(string(text)) {
		name, counters, _ := strings.Cut(strings.TrimSpace(line), ":")
		if f := strings.Fields(counters); name == "eth0" && len(f) == 16 {
			return strconv.ParseInt(f[8], 10, 64)
		}
	}
	return 0, errors.Join(err, fmt.Errorf("count bytes of %s: no eth0", h.tb.Name()))
}

// probe begins to ask a server for connections, in the place of another one.
func (h *host) probe(ctx context.Context, client string, of *host, id string) (*probe, error) {
	server, err := of.settled(ctx, id)
	if err != nil {
		return nil, err
	}
	address, err := netip.ParsePrefix(server.GetNics()["eth0"].GetAddress())
	if err != nil {
		return nil, err
	}
	text, err := os.ReadFile(h.groupFile(client, []string{"memory/%/cgroup.procs", "%/cgroup.procs"}))
	if err != nil {
		return nil, fmt.Errorf("find the client: %w", err)
	}
	pids := strings.Fields(string(text))
	if len(pids) == 0 {
		return nil, errors.New("find the client: nothing runs in it")
	}
	p := startProbe(ctx, "/proc/"+pids[0]+"/ns/net", netip.AddrPortFrom(address.Addr(), 80).String())
	if _, err := p.longestGap(ctx, time.Now()); err != nil { // it answers
		p.stop()
		return nil, err
	}
	return p, nil
}
