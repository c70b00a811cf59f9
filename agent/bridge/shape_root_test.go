//go:build linux && root

package bridge

import (
	"fmt"
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/reflejo/terraform-provider-reflejo/agent/vserver"
)

// flow is a TCP connection that one side fills as fast as it goes and the other empties.
type flow struct{ in, out net.Conn }

func newFlow(t *testing.T, from, to netns.NsHandle, addr string) *flow {
	t.Helper()
	var l net.Listener
	must(t, in(to, func() (err error) { l, err = net.Listen("tcp4", addr+":0"); return err }))
	defer l.Close()
	accepted := make(chan net.Conn, 1)
	go func() { c, _ := l.Accept(); accepted <- c }()
	f := &flow{}
	must(t, in(from, func() (err error) { f.in, err = net.DialTimeout("tcp4", l.Addr().String(), 5*time.Second); return err }))
	f.out = <-accepted
	t.Cleanup(f.close)
	return f
}

func (f *flow) close() {
	f.in.Close()
	f.out.Close()
}

// reversed is the same connection used the other way.
func (f *flow) reversed() *flow { return &flow{f.out, f.in} }

// fill starts to send and never stops while the connection lives.
func (f *flow) fill() *flow {
	go func() {
		buf := make([]byte, 1<<17)
		for {
			if _, err := f.in.Write(buf); err != nil {
				return
			}
		}
	}()
	return f
}

// goodput is the bits per second that arrive, after a time to settle.
func (f *flow) goodput(t *testing.T, settle, measure time.Duration) float64 {
	t.Helper()
	buf := make([]byte, 1<<18)
	read := func(d time.Duration) (int64, time.Duration) {
		start := time.Now()
		var n int64
		for time.Since(start) < d {
			must(t, f.out.SetReadDeadline(time.Now().Add(10*time.Second)))
			k, err := f.out.Read(buf)
			if err != nil && err != io.EOF {
				t.Errorf("read: %v", err)
				return n, time.Since(start)
			}
			n += int64(k)
		}
		return n, time.Since(start)
	}
	read(settle)
	n, took := read(measure)
	return float64(n) * 8 / took.Seconds()
}

// within96 measures a rate. V7: shaped to 94–96 % of the rate as goodput. The bounds here are
// wider and a busy machine has three attempts to reach the lower one; above the rate there is
// no excuse, but that what TCP had held back may come in the measured time.
func within96(t *testing.T, what string, rate int64, measure func() float64) {
	t.Helper()
	for range 3 {
		share := measure() / float64(rate)
		t.Logf("%s: %.1f %% of %d Mbit/s", what, share*100, rate/1e6)
		if share > 1.05 {
			t.Fatalf("%s: goodput is above the rate", what)
		}
		if share > 0.75 {
			return
		}
	}
	t.Errorf("%s: goodput is too far below the rate", what)
}

func TestShaping(t *testing.T) {
	h := newHost(t, Config{})
	must(t, h.SetNetwork(t.Context(), network(netA, "10.77.0.0/24", "10.77.0.1")))
	g := newGuest(t)
	link := nic(netA, "10.77.0.2/24", "10.77.0.1", 1)
	for _, rate := range []int64{10e6, 200e6, 1e9} {
		t.Run(fmt.Sprintf("%d Mbit", int64(rate/1e6)), func(t *testing.T) {
			link.Ingress, link.Egress = rate, rate
			h.place(g, 1, link)
			settle, measure := 500*time.Millisecond, 2*time.Second
			if rate == 10e6 { // a round trip is long in a full queue, and so is the way out of the first losses
				settle, measure = 2*time.Second, 4*time.Second
			}
			down := newFlow(t, h.ns, g.ns, "10.77.0.2").fill()
			within96(t, "towards the server", rate, func() float64 { return down.goodput(t, settle, measure) })
			up := newFlow(t, h.ns, g.ns, "10.77.0.2").reversed().fill()
			down.close()
			within96(t, "from the server", rate, func() float64 { return up.goodput(t, settle, measure) })
			up.close()
		})
	}
}

func TestLiveChanges(t *testing.T) {
	h := newHost(t, Config{})
	must(t, h.SetNetwork(t.Context(), network(netA, "10.77.0.0/24", "10.77.0.1")))
	g := newGuest(t)
	link := nic(netA, "10.77.0.2/24", "10.77.0.1", 1)
	h.place(g, 1, link)
	f := newFlow(t, h.ns, g.ns, "10.77.0.2").fill()
	change := func(rate int64) {
		link.Ingress, link.Egress = rate, rate
		start := time.Now()
		h.place(g, 1, link)
		t.Logf("changed to %d Mbit/s in %s", rate/1e6, time.Since(start))
	}
	change(20e6)
	within96(t, "slow", 20e6, func() float64 { return f.goodput(t, 2*time.Second, 2*time.Second) })
	change(100e6)
	within96(t, "faster", 100e6, func() float64 { return f.goodput(t, 2*time.Second, 2*time.Second) })
	change(0)
	if got := f.goodput(t, time.Second, time.Second); got < 150e6 {
		t.Errorf("without a limit goodput is %.0f Mbit/s", got/1e6)
	}
	change(40e9)
	if got := f.goodput(t, time.Second, time.Second); got < 150e6 {
		t.Errorf("with 40 Gbit/s goodput is %.0f Mbit/s: the rate wrapped", got/1e6)
	}
	change(10e6)
	flood(t, h.ns, "10.77.0.2")
	flood(t, g.ns, "10.77.0.1")
	usage, err := h.Usage(t.Context(), serverID(1))
	must(t, err)
	if u := usage["eth0"]; u.RxBytes < 10e6 || u.TxBytes < 1e6 || u.RxBytes < u.TxBytes || u.RxDropped == 0 || u.TxDropped == 0 {
		t.Errorf("usage %+v: want much received, less sent, and drops of both queues", u)
	}
}

// flood sends datagrams faster than they can go; the sender's own buffer does not hold it back.
func flood(t *testing.T, from netns.NsHandle, addr string) {
	t.Helper()
	var c net.Conn
	must(t, in(from, func() (err error) { c, err = net.Dial("udp4", addr+":9"); return err }))
	defer c.Close()
	raw, err := c.(*net.UDPConn).SyscallConn()
	must(t, err)
	must(t, raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, 32<<20) }))
	must(t, err)
	for range 3000 {
		_, _ = c.Write(make([]byte, 1400)) // an answer that nobody listens there is fine
	}
}

// The sum of all is bounded, and each gets a share of it.
func TestHostBound(t *testing.T) {
	const bound = 100e6
	h := newHost(t, Config{HostIngress: bound, HostEgress: bound})
	must(t, h.SetNetwork(t.Context(), network(netA, "10.77.0.0/24", "10.77.0.1")))
	var flows []*flow
	for n := 2; n < 5; n++ {
		g := newGuest(t)
		link := nic(netA, fmt.Sprintf("10.77.0.%d/24", n), "10.77.0.1", n)
		if n == 4 {
			link.Ingress, link.Egress = 10e6, 10e6
		}
		h.place(g, n, link)
		flows = append(flows, newFlow(t, h.ns, g.ns, fmt.Sprintf("10.77.0.%d", n)))
	}
	for name, way := range map[string]func(*flow) *flow{"down": func(f *flow) *flow { return f }, "up": (*flow).reversed} {
		got := make([]float64, len(flows))
		var filled []*flow
		for _, f := range flows {
			filled = append(filled, way(f).fill())
		}
		within96(t, name+", all", bound, func() (sum float64) {
			var wg sync.WaitGroup
			for i, f := range filled {
				wg.Go(func() { got[i] = f.goodput(t, 2*time.Second, 2*time.Second) })
			}
			wg.Wait()
			return got[0] + got[1] + got[2]
		})
		t.Logf("%s: %.1f %.1f %.1f Mbit/s", name, got[0]/1e6, got[1]/1e6, got[2]/1e6)
		if got[0] < bound/5 || got[1] < bound/5 || got[2] > 10.5e6 {
			t.Errorf("%s: shares %.0f", name, got)
		}
	}
}

// V3, V11: many at once, and all found again.
func TestManyAtOnce(t *testing.T) {
	const n = 32
	cfg := Config{}
	h := newHost(t, cfg)
	must(t, h.SetNetwork(t.Context(), network(netA, "10.77.0.0/24", "10.77.0.1")))
	var wants []vserver.ServerNetwork
	for i := range n {
		g := newGuest(t)
		link := nic(netA, fmt.Sprintf("10.77.0.%d/24", i+10), "10.77.0.1", i+10)
		link.Ingress, link.Egress, link.Filtered = 100e6, 100e6, i%2 == 0
		link.Allow, link.Publish = allow("10.77.0.0/24 tcp 80"), publish(fmt.Sprintf("tcp %d 80", 8000+i))
		wants = append(wants, vserver.ServerNetwork{ID: serverID(i + 10), Pid: g.pid, NICs: []vserver.Link{link}})
		serve(t, g.ns, ":80")
	}
	all := func(what string, f func(vserver.ServerNetwork) error) {
		t.Helper()
		start := time.Now()
		var wg sync.WaitGroup
		for _, w := range wants {
			wg.Go(func() {
				if err := f(w); err != nil {
					t.Errorf("%s %s: %v", what, w.ID, err)
				}
			})
		}
		wg.Wait()
		t.Logf("%s: %d in %s", what, n, time.Since(start))
	}
	set := func(w vserver.ServerNetwork) error { return h.Set(t.Context(), w) }
	all("set", set)
	all("reach", func(w vserver.ServerNetwork) error {
		_, err := dial(h.ns, w.NICs[0].Address.Addr().String()+":80")
		return err
	})
	open, _, err := connectTo(h.ns, "10.77.0.10:80")
	must(t, err)
	defer open.Close()
	h.reopen(cfg)
	must(t, h.SetNetwork(t.Context(), network(netA, "10.77.0.0/24", "10.77.0.1")))
	all("adopt", set)
	stillFlows(t, open)
	all("remove", func(w vserver.ServerNetwork) error { return h.Remove(t.Context(), w.ID) })
	must(t, h.RemoveNetwork(t.Context(), netA))
	clean(t, h)
}

// V10, V11: rules of hundreds of servers. What one more costs must not grow with them.
func TestHundredsOfServers(t *testing.T) {
	h := newHost(t, Config{})
	must(t, h.SetNetwork(t.Context(), network(netA, "10.77.0.0/16", "10.77.0.1")))
	place := func(n int) time.Duration {
		link := nic(netA, fmt.Sprintf("10.77.%d.%d/16", 1+n/250, 1+n%250), "10.77.0.1", n)
		link.Filtered, link.Allow, link.Publish = true, allow("10.0.0.0/8 tcp 1-1000"), publish(fmt.Sprintf("tcp %d 80", 10000+n))
		start := time.Now()
		h.place(nil, n, link)
		return time.Since(start)
	}
	var first, last time.Duration
	for n := range 500 {
		took := place(n)
		if n < 50 {
			first += took
		}
		if n >= 450 {
			last += took
		}
	}
	t.Logf("set: the first fifty %s each, the last fifty %s", first/50, last/50)
	start := time.Now()
	h.reopen(Config{})
	t.Logf("open with 500: %s", time.Since(start))
	must(t, h.SetNetwork(t.Context(), network(netA, "10.77.0.0/16", "10.77.0.1")))
	start = time.Now()
	for n := range 200 {
		place(n)
	}
	t.Logf("adopt 200: %s", time.Since(start))
	inv, err := h.List(t.Context())
	must(t, err)
	if len(inv.Servers) != 500 {
		t.Errorf("%d servers are listed, want 500", len(inv.Servers))
	}
}

// clean tells whether nothing is left but the skeleton.
func clean(t *testing.T, h *host) {
	t.Helper()
	links, err := h.links()
	must(t, err)
	for _, l := range links {
		if name := l.Attrs().Name; name != "lo" && name != ifbDown && name != ifbUp {
			t.Errorf("left: link %s %s", name, l.Attrs().Alias)
		}
	}
	for _, d := range []direction{h.down(), h.upwards()} {
		l, err := h.link(d.ifb)
		must(t, err)
		if l == nil {
			continue
		}
		list, err := h.h.ClassList(l, 0)
		must(t, err)
		if len(list) > 1 {
			t.Errorf("left: %d classes of %s", len(list)-1, d.ifb)
		}
	}
	found, err := h.nft.find()
	must(t, err)
	if len(found.ports) > 0 || len(found.published) > 0 {
		t.Errorf("left: rules of %v", found)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.numbers) > 0 || len(h.servers) > 0 {
		t.Errorf("left: numbers %v, servers %v", h.numbers, h.servers)
	}
}
