package migrate

import (
	"context"
	"errors"
	"io"
	"net/netip"
	"time"

	"github.com/reflejo/terraform-provider-reflejo/agent/endpoint"
	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
	"github.com/reflejo/terraform-provider-reflejo/agent/network"
)

// LoanPurpose is what the endpoint knows the questions about lent addresses by. A question
// is a frame of type 16, its answer one of type 17, both JSON.
const LoanPurpose = "lend/1"

const (
	frameWhere = 16
	frameThere = 17
)

// askLoansEvery is how often hosts are asked about addresses that servers took to them.
const askLoansEvery = 10 * time.Minute

// where asks for the server that took an address along.
type where struct {
	Network, Server string
	Address         netip.Addr
}

// there is the answer: the server is here and has the address, or it went on to a host, or
// neither: the address is free.
type there struct {
	Held           bool
	Host, Endpoint string
}

// HandleLoans is the endpoint's handler of [LoanPurpose].
func (m *Manager) HandleLoans(ctx context.Context, c *endpoint.Conn) error {
	return m.ServeLoans(ctx, c)
}

// ServeLoans answers questions until the link ends.
func (m *Manager) ServeLoans(_ context.Context, l Link) error {
	for {
		f, err := l.Receive()
		if errors.Is(err, io.EOF) {
			return nil
		}
		var q where
		if err == nil && f.Type != frameWhere {
			err = fault.New(fault.Invalid, "a frame of type %d is not known here", f.Type)
		}
		if err == nil {
			err = decodeJSON(f, &q)
		}
		if err == nil {
			err = sendJSON(l, frameThere, m.locate(q))
		}
		if err != nil {
			return err
		}
	}
}

// locate says where the server is that took an address along. A server leaves its loan
// before it leaves, and takes it back after it has come: so whoever is neither here, nor
// lent, nor here after all, is gone.
func (m *Manager) locate(q where) there {
	if m.holds(q) {
		return there{Held: true}
	}
	for _, l := range m.cfg.Loans.Loans() {
		if l.Network == q.Network && l.Address == q.Address && l.Server == q.Server {
			return there{Host: l.Host, Endpoint: l.Endpoint}
		}
	}
	return there{Held: m.holds(q)}
}

// holds reports whether the server is here, or on its way here, with the address.
func (m *Manager) holds(q where) bool {
	v, err := m.cfg.Servers.Get(q.Server)
	if err != nil {
		return false
	}
	for _, nic := range v.NICs {
		p, err := netip.ParsePrefix(nic.Address)
		if err != nil || nic.NetworkID == q.Network && p.Addr() == q.Address {
			return true
		}
	}
	return false
}

// AskLoans lets the hosts be asked now about the addresses that servers took to them.
func (m *Manager) AskLoans() {
	select {
	case m.asking <- struct{}{}:
	default: // it is about to be
	}
}

// watchLoans asks now and then, and when it is told to.
func (m *Manager) watchLoans() {
	tick := time.NewTicker(askLoansEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-m.asking:
		case <-m.ctx.Done():
			return
		}
		byHost := map[string][]network.Loan{}
		for _, l := range m.cfg.Loans.Loans() {
			byHost[l.Host] = append(byHost[l.Host], l)
		}
		for host, loans := range byHost {
			if err := m.askHost(m.ctx, host, loans); err != nil { // what is not known stays lent
				m.cfg.Log.Warn("ask a host about lent addresses", "host", host, "error", err)
			}
		}
	}
}

// askHost asks one host about the addresses that are there.
func (m *Manager) askHost(ctx context.Context, host string, loans []network.Loan) error {
	l, err := m.cfg.Dial(ctx, host, loans[0].Endpoint, LoanPurpose, nil)
	if err != nil {
		return err
	}
	defer l.Close()
	defer l.CloseWith(ctx)()
	for _, loan := range loans {
		if err := sendJSON(l, frameWhere, where{loan.Network, loan.Server, loan.Address}); err != nil {
			return err
		}
		f, err := l.Receive()
		if err != nil {
			return err
		}
		var t there
		if f.Type != frameThere {
			return fault.New(fault.Invalid, "host %s answers with a frame of type %d", host, f.Type)
		}
		if err := decodeJSON(f, &t); err != nil {
			return err
		}
		if t.Held || t.Host == m.cfg.Host { // on its way back: Returned will forget it
			continue
		}
		if err := m.cfg.Loans.Settle(loan, t.Host, t.Endpoint); err != nil {
			return err
		}
	}
	return nil
}
