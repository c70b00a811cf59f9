//go:build linux && root

package bridge

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/reflejo/terraform-provider-reflejo/agent/vserver"
)

// A world of network namespaces: hosts with a Manager each, guests, and something outside.
// Namespaces have no names; they are gone with the descriptors and processes that hold them.

// newNS makes a namespace with its loopback up.
func newNS(t *testing.T) netns.NsHandle {
	t.Helper()
	runtime.LockOSThread()
	back, err := netns.Get()
	must(t, err)
	ns, err := netns.New()
	must(t, err)
	must(t, netns.Set(back))
	runtime.UnlockOSThread()
	back.Close()
	t.Cleanup(func() { ns.Close() })
	within := handle(t, ns)
	lo, err := within.LinkByName("lo")
	must(t, err)
	must(t, within.LinkSetUp(lo))
	return ns
}

func handle(t *testing.T, ns netns.NsHandle) *netlink.Handle {
	t.Helper()
	h, err := netlink.NewHandleAt(ns, unix.NETLINK_ROUTE)
	must(t, err)
	t.Cleanup(h.Close)
	return h
}

// wire joins two namespaces with a veth pair; each end has an address.
func wire(t *testing.T, a netns.NsHandle, nameA, addrA string, b netns.NsHandle, nameB, addrB string) {
	t.Helper()
	ha, hb := handle(t, a), handle(t, b)
	attrs := netlink.NewLinkAttrs()
	attrs.Name = nameA
	must(t, ha.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: nameB, PeerNamespace: netlink.NsFd(b)}))
	for _, e := range []struct {
		h          *netlink.Handle
		name, addr string
	}{{ha, nameA, addrA}, {hb, nameB, addrB}} {
		l, err := e.h.LinkByName(e.name)
		must(t, err)
		must(t, e.h.AddrAdd(l, &netlink.Addr{IPNet: ipNet(netip.MustParsePrefix(e.addr))}))
		must(t, e.h.LinkSetUp(l))
	}
}

// host is a namespace with a Manager.
type host struct {
	t  *testing.T
	ns netns.NsHandle
	*Manager
}

func newHost(t *testing.T, cfg Config) *host {
	t.Helper()
	h := &host{t: t, ns: newNS(t)}
	h.reopen(cfg)
	return h
}

// reopen is a restart of the agent.
func (h *host) reopen(cfg Config) {
	h.t.Helper()
	if testing.Verbose() && cfg.Log == nil {
		cfg.Log = hclog.New(&hclog.LoggerOptions{Level: hclog.Debug})
	}
	must(h.t, in(h.ns, func() (err error) { h.Manager, err = Open(cfg); return err }))
	h.t.Cleanup(h.Close)
}

// guest is a process in a namespace of its own.
type testGuest struct {
	t   *testing.T
	pid int
	ns  netns.NsHandle
	cmd *exec.Cmd
}

func newGuest(t *testing.T) *testGuest {
	t.Helper()
	cmd := exec.Command("sleep", "3600")
	// As a server: its namespace belongs to a user namespace that is not the host's.
	ids := []syscall.SysProcIDMap{{ContainerID: 0, HostID: 1 << 20, Size: 65536}}
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET | unix.CLONE_NEWUSER, Pdeathsig: unix.SIGKILL, UidMappings: ids, GidMappings: ids}
	// The parent of the death signal is a thread: it must live as long as the test.
	started := make(chan error)
	stop := make(chan struct{})
	go func() {
		runtime.LockOSThread()
		started <- cmd.Start()
		<-stop
	}()
	must(t, <-started)
	g := &testGuest{t: t, pid: cmd.Process.Pid, cmd: cmd}
	t.Cleanup(func() { g.end(); close(stop) })
	var err error
	g.ns, err = netns.GetFromPid(g.pid)
	must(t, err)
	return g
}

// end kills the guest and lets go of its namespace.
func (g *testGuest) end() {
	if g.cmd == nil {
		return
	}
	_ = g.cmd.Process.Kill()
	_ = g.cmd.Wait()
	g.ns.Close()
	g.cmd = nil
}

const (
	netA = "0a000000-0000-4000-8000-00000000000a"
	netB = "0b000000-0000-4000-8000-00000000000b"
	netC = "0c000000-0000-4000-8000-00000000000c"
)

func network(id, cidr, gateway string) vserver.Network {
	return vserver.Network{ID: id, Name: id[:2], CIDR: netip.MustParsePrefix(cidr), Gateway: netip.MustParseAddr(gateway), NAT: true}
}

func serverID(n int) string { return fmt.Sprintf("5e000000-0000-4000-8000-%012d", n) }
func macN(n int) string     { return fmt.Sprintf("02:00:00:00:%02x:%02x", n>>8, n&255) }

func nic(network, addr, gateway string, n int) vserver.Link {
	l := vserver.Link{Name: "eth0", NetworkID: network, MAC: macN(n), Address: netip.MustParsePrefix(addr)}
	if gateway != "" {
		l.Gateway = netip.MustParseAddr(gateway)
	}
	return l
}

// place sets a server with one interface on a host.
func (h *host) place(g *testGuest, n int, l vserver.Link) {
	h.t.Helper()
	pid := 0
	if g != nil {
		pid = g.pid
	}
	must(h.t, h.Set(h.t.Context(), vserver.ServerNetwork{ID: serverID(n), Pid: pid, NICs: []vserver.Link{l}}))
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// serve answers TCP connections in a namespace: it sends the caller's address and a newline,
// then reads and drops what comes.
func serve(t *testing.T, ns netns.NsHandle, addr string) {
	t.Helper()
	var l net.Listener
	must(t, in(ns, func() (err error) { l, err = net.Listen("tcp4", addr); return err }))
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				fmt.Fprintf(c, "%s\n", c.RemoteAddr().(*net.TCPAddr).IP)
				_, _ = io.Copy(io.Discard, c)
			}()
		}
	}()
}

// dial connects from a namespace and returns who the other side says is calling.
func dial(ns netns.NsHandle, addr string) (string, error) {
	c, who, err := connectTo(ns, addr)
	if err == nil {
		c.Close()
	}
	return who, err
}

// refusal is how long a test waits to believe that nothing answers. Packets that should pass
// are retried by TCP after 1 s, so this is two attempts.
const refusal = 1500 * time.Millisecond

func connectTo(ns netns.NsHandle, addr string) (net.Conn, string, error) {
	var c net.Conn
	err := in(ns, func() (err error) { c, err = net.DialTimeout("tcp4", addr, refusal); return err })
	if err != nil {
		return nil, "", err
	}
	if err := c.SetReadDeadline(time.Now().Add(5 * time.Second)); err != nil {
		return nil, "", err
	}
	var who string
	if _, err := fmt.Fscanln(c, &who); err != nil {
		c.Close()
		return nil, "", err
	}
	return c, who, c.SetReadDeadline(time.Time{})
}

func reaches(t *testing.T, ns netns.NsHandle, addr, as string) {
	t.Helper()
	who, err := dial(ns, addr)
	if err != nil {
		t.Fatalf("connect to %s: %v", addr, err)
	}
	if as != "" && who != as {
		t.Fatalf("%s was called by %s, want %s", addr, who, as)
	}
}

func unreachable(t *testing.T, ns netns.NsHandle, addr string) {
	t.Helper()
	if who, err := dial(ns, addr); err == nil {
		t.Fatalf("%s is reachable, as %s", addr, who)
	} else if !timedOut(err) {
		t.Fatalf("connect to %s: %v, want no answer at all", addr, err)
	}
}

func timedOut(err error) bool {
	var ne net.Error
	return errors.As(err, &ne) && ne.Timeout()
}

// allow reads "from protocol ports".
func allow(lines ...string) []vserver.Allow {
	var out []vserver.Allow
	for _, l := range lines {
		f := strings.Fields(l)
		out = append(out, vserver.Allow{From: f[0], Protocol: f[1], Ports: f[2]})
	}
	return out
}

// publish reads "protocol host-port port".
func publish(lines ...string) []vserver.Publish {
	var out []vserver.Publish
	for _, l := range lines {
		var p vserver.Publish
		fmt.Sscan(l, &p.Protocol, &p.HostPort, &p.Port)
		out = append(out, p)
	}
	return out
}

// echoes sends a datagram and has it sent back.
func echoes(t *testing.T, from, to netns.NsHandle, addr string, size int) {
	t.Helper()
	var l net.PacketConn
	must(t, in(to, func() (err error) { l, err = net.ListenPacket("udp4", addr+":0"); return err }))
	defer l.Close()
	go func() {
		buf := make([]byte, 65536)
		for {
			n, who, err := l.ReadFrom(buf)
			if err != nil {
				return
			}
			_, _ = l.WriteTo(buf[:n], who)
		}
	}()
	var c net.Conn
	must(t, in(from, func() (err error) { c, err = net.Dial("udp4", l.LocalAddr().String()); return err }))
	defer c.Close()
	for range 5 {
		_, err := c.Write(make([]byte, size))
		must(t, err)
		must(t, c.SetReadDeadline(time.Now().Add(time.Second)))
		if n, err := c.Read(make([]byte, 65536)); err == nil && n == size {
			return
		}
	}
	t.Fatalf("no datagram of %d bytes came back from %s", size, addr)
}

// stillFlows sends on an open connection and waits until the other side has acknowledged.
func stillFlows(t *testing.T, c net.Conn) {
	t.Helper()
	_, err := c.Write(make([]byte, 1000))
	must(t, err)
	raw, err := c.(*net.TCPConn).SyscallConn()
	must(t, err)
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		waiting := 0
		must(t, raw.Control(func(fd uintptr) { waiting, err = unix.IoctlGetInt(int(fd), unix.SIOCOUTQ) }))
		must(t, err)
		if waiting == 0 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal("the connection does not carry anything any more")
		}
	}
}

// route adds a route by way of a gateway.
func route(t *testing.T, ns netns.NsHandle, to, via string) {
	t.Helper()
	must(t, handle(t, ns).RouteAdd(&netlink.Route{Dst: ipNet(netip.MustParsePrefix(to)), Gw: netip.MustParseAddr(via).AsSlice()}))
}
