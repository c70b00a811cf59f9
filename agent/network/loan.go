package network

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
	"github.com/reflejo/terraform-provider-reflejo/agent/vserver"
)

// Loan is an address that a server had here and took along to another host of the network.
// While it is lent this host gives it to no other server: nobody else knows that the
// address, which may lie in this host's share, is in use. Package migrate asks the other host
// now and then whether the server still has it. A server that moves on leaves a loan on each
// host that it was on, so the way to it can be followed from the first.
type Loan struct {
	Network  string // id
	Address  netip.Addr
	Server   string // id
	Host     string // where the server went from here, or is known to have gone from there
	Endpoint string // of that host
	Since    time.Time
}

func (l Loan) key() string { return l.Network + "/" + l.Address.String() }

func (m *Manager) loadLoans() error {
	if m.cfg.Loans == nil {
		return nil
	}
	return m.cfg.Loans.ForEach(func(key string, value []byte) error {
		var l Loan
		if err := json.Unmarshal(value, &l); err != nil {
			return fmt.Errorf("read record of lent address %s: %w", key, err)
		}
		m.loans[key] = l
		return nil
	})
}

// Lend makes durable that a server takes its addresses along to a host, on networks that
// span to there. Lending again changes where it is.
func (m *Manager) Lend(server, host, endpoint string, links map[string]vserver.Assigned) error {
	for _, a := range links {
		r, err := m.find(a.NetworkID)
		if err != nil || slot(r.Definition, host) < 0 { // its address there is another
			continue
		}
		l := Loan{Network: a.NetworkID, Address: a.Address, Server: server, Host: host, Endpoint: endpoint, Since: time.Now().UTC()}
		if err := m.putLoan(l); err != nil {
			return err
		}
	}
	return nil
}

func (m *Manager) putLoan(l Loan) error {
	if m.cfg.Loans == nil {
		return nil
	}
	if err := m.cfg.Loans.Put(l.key(), l); err != nil {
		return fmt.Errorf("record lent address %s: %w", l.Address, err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.loans[l.key()] = l
	return nil
}

func (m *Manager) dropLoan(l Loan) error {
	if err := m.cfg.Loans.Delete(l.key()); err != nil {
		return fmt.Errorf("forget lent address %s: %w", l.Address, err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.loans, l.key())
	return nil
}

// Returned forgets what was lent to a server: it is here again.
func (m *Manager) Returned(server string) error {
	for _, l := range m.Loans() {
		if l.Server == server {
			if err := m.dropLoan(l); err != nil {
				return err
			}
		}
	}
	return nil
}

// Loans is all that is lent, the oldest first.
func (m *Manager) Loans() []Loan {
	m.mu.Lock()
	defer m.mu.Unlock()
	all := make([]Loan, 0, len(m.loans))
	for _, l := range m.loans {
		all = append(all, l)
	}
	slices.SortFunc(all, func(a, b Loan) int {
		if c := a.Since.Compare(b.Since); c != 0 {
			return c
		}
		return strings.Compare(a.key(), b.key())
	})
	return all
}

// Settle records what was heard about a loan: the server is at another host now, or, with
// none, has the address no more. A loan that changed meanwhile stays as it is.
func (m *Manager) Settle(was Loan, host, endpoint string) error {
	m.mu.Lock()
	now, ok := m.loans[was.key()]
	m.mu.Unlock()
	switch {
	case !ok || now != was:
		return nil
	case host == "":
		return m.dropLoan(was)
	}
	now.Host, now.Endpoint = host, endpoint
	return m.putLoan(now)
}

// lentTo are the addresses of a network that are lent, by the server that has them.
func (m *Manager) lentTo(network string) map[netip.Addr]Loan {
	m.mu.Lock()
	defer m.mu.Unlock()
	lent := map[netip.Addr]Loan{}
	for _, l := range m.loans {
		if l.Network == network {
			lent[l.Address] = l
		}
	}
	return lent
}

// allocate is Allocate for a server, minding what is lent.
func (m *Manager) allocate(d Definition, server string, want netip.Addr, used map[netip.Addr]bool) (netip.Addr, error) {
	taken, lent := map[netip.Addr]bool{}, 0
	for a := range used {
		taken[a] = true
	}
	for a, l := range m.lentTo(d.ID) {
		if l.Server == server {
			continue
		}
		if a == want {
			return netip.Addr{}, fault.New(fault.Exists, "address %s: server %s took it along from here to host %s, on network %s", want, l.Server, l.Host, d.Name)
		}
		taken[a] = true
		lent++
	}
	a, err := Allocate(d, slot(d, m.cfg.Host), want, taken)
	if fault.Is(err, fault.Exhausted) && lent > 0 {
		if m.cfg.Exhausted != nil {
			m.cfg.Exhausted()
		}
		err = fault.New(fault.Exhausted, "%w; %d are with servers that moved to other hosts, which are asked now whether they still need them", err, lent)
	}
	return a, err
}

// usedOrLent are the addresses of a network that this host can't give to a new server.
func (m *Manager) usedOrLent(network string) map[netip.Addr]bool {
	used := map[netip.Addr]bool{}
	for a := range m.servers.AddressesOf(network) {
		used[a] = true
	}
	for a := range m.lentTo(network) {
		used[a] = true
	}
	return used
}
