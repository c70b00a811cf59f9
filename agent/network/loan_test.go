package network

import (
	"context"
	"net/netip"
	"testing"

	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
	"github.com/reflejo/terraform-provider-reflejo/agent/vserver"
	"github.com/reflejo/terraform-provider-reflejo/agent/vserver/vservertest"
)

type noEdge struct{}

func (noEdge) SetNetwork(context.Context, vserver.Network) error { return nil }
func (noEdge) RemoveNetwork(context.Context, string) error       { return nil }

type noServers struct{}

func (noServers) UsersOfNetwork(string) int              { return 0 }
func (noServers) AddressesOf(string) map[netip.Addr]bool { return nil }

// What a server took along is given to that server only, also after a restart, until it is
// back or is known not to have it any more.
func TestLoans(t *testing.T) {
	t.Parallel()
	nets, loans := vservertest.NewRecords(), vservertest.NewRecords()
	asked := 0
	start := func() *Manager {
		t.Helper()
		m, err := NewManager(Config{Host: "alpha", DefaultCIDR: netip.MustParsePrefix("10.1.0.0/24"), Records: nets, Loans: loans, Edge: noEdge{}, Exhausted: func() { asked++ }})
		if err != nil {
			t.Fatal(err)
		}
		m.SetServers(noServers{})
		return m
	}
	m := start()
	d := Definition{ID: testID, Name: "app", CIDR: netip.MustParsePrefix("10.0.0.0/28"), Members: []Member{
		{"alpha", netip.MustParseAddr("192.0.2.1"), 0}, {"beta", netip.MustParseAddr("192.0.2.2"), 1}}}
	if _, err := m.Put(t.Context(), d); err != nil {
		t.Fatal(err)
	}
	a, err := m.Allocate(testID, "moved", netip.Addr{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	free := m.List()[0].FreeAddresses
	links := map[string]vserver.Assigned{"eth0": {NetworkID: testID, Address: a}, "eth1": {NetworkID: "elsewhere", Address: a}}
	for range 2 {
		if err := m.Lend("moved", "beta", "beta:7444", links); err != nil {
			t.Fatal(err)
		}
	}
	if err := m.Lend("moved", "delta", "delta:7444", links); err != nil || len(m.Loans()) != 1 {
		t.Errorf("lent to a host that the network does not span: %v, %v", m.Loans(), err)
	}
	m = start()
	if got := m.List()[0].FreeAddresses; got != free-1 {
		t.Errorf("%d addresses are free, want %d", got, free-1)
	}
	if _, err := m.Allocate(testID, "other", a, nil); !fault.Is(err, fault.Exists) {
		t.Errorf("it was given away: %v", err)
	}
	if got, err := m.Allocate(testID, "moved", a, nil); err != nil || got != a {
		t.Errorf("its own server does not get it back: %v", err)
	}
	used := map[netip.Addr]bool{}
	for {
		got, err := m.Allocate(testID, "other", netip.Addr{}, used)
		if err != nil {
			if !fault.Is(err, fault.Exhausted) || asked != 1 || len(used) != free-1 {
				t.Errorf("after %d: %v, asked %d times", len(used), err, asked)
			}
			break
		}
		if got == a {
			t.Fatal("it was given away")
		}
		used[got] = true
	}
	was := m.Loans()[0]
	if err := m.Settle(was, "gamma", "gamma:7444"); err != nil || m.Loans()[0].Host != "gamma" {
		t.Errorf("it went on: %v, %v", m.Loans(), err)
	}
	if err := m.Settle(was, "", ""); err != nil || len(m.Loans()) != 1 {
		t.Errorf("old news freed it: %v, %v", m.Loans(), err)
	}
	if err := m.Settle(m.Loans()[0], "", ""); err != nil || len(m.Loans()) != 0 {
		t.Errorf("it is still lent: %v, %v", m.Loans(), err)
	}
	if err := m.Lend("moved", "beta", "beta:7444", links); err != nil {
		t.Fatal(err)
	}
	if err := m.Returned("moved"); err != nil || len(start().Loans()) != 0 {
		t.Errorf("it returned: %v", err)
	}
}
