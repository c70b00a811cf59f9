package vservertest_test

import (
	"sync/atomic"
	"testing"

	"github.com/reflejo/terraform-provider-reflejo/agent/vserver"
	"github.com/reflejo/terraform-provider-reflejo/agent/vserver/vservertest"
)

func TestNetworksContract(t *testing.T) {
	vservertest.NetworksContract(t, func(*testing.T) vservertest.NetworksHost {
		n, pids := vservertest.NewNetworks(7443), atomic.Int64{}
		return vservertest.NetworksHost{Networks: n, Guarded: 7443,
			Start: func(*testing.T) int { return int(pids.Add(1)) },
			End:   func(_ *testing.T, pid int) { n.End(pid) }}
	})
}

func TestNetworksPrintThemselves(t *testing.T) {
	n := vservertest.NewNetworks()
	w := vservertest.SomeNetwork(7)
	w.ID = "net"
	if err := n.SetNetwork(t.Context(), w); err != nil {
		t.Fatal(err)
	}
	l := vservertest.SomeLink(w, "eth0", 9)
	l.Filtered, l.Allow = true, []vserver.Allow{{From: "10.0.0.0/8", Protocol: "tcp", Ports: "22"}}
	l.Publish = []vserver.Publish{{Protocol: "tcp", HostPort: 8080, Port: 80}}
	if err := n.Set(t.Context(), vserver.ServerNetwork{ID: "web", Pid: 5, NICs: []vserver.Link{l}}); err != nil {
		t.Fatal(err)
	}
	const want = `network net 10.7.0.0/24 gateway 10.7.0.1 nat true
server web pid 5
    eth0 on net 02:00:00:07:00:09 10.7.0.9/24 via 10.7.0.1 ingress 0 egress 0
        publish tcp 8080 to 80
        filtered
        allow from "10.0.0.0/8" protocol "tcp" ports "22"
`
	if got := n.String(); got != want {
		t.Fatalf("got:\n%swant:\n%s", got, want)
	}
}
