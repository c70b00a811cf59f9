package migrate

import (
	"context"
	"errors"
	"net"
	"testing"
	"time"

	"github.com/reflejo/terraform-provider-reflejo/agent/endpoint"
	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
	"github.com/reflejo/terraform-provider-reflejo/agent/pki"
	"github.com/reflejo/terraform-provider-reflejo/agent/vserver"
)

// loopback puts real endpoints under the hosts of a world.
func loopback(t *testing.T, w *world) {
	t.Helper()
	ca, err := pki.NewCA("test", 0)
	if err != nil {
		t.Fatal(err)
	}
	addresses := map[string]string{}
	for name, h := range w.hosts {
		pair, err := ca.Issue(pki.Identity{Role: pki.RoleAgent, Name: name}, pki.Options{})
		if err != nil {
			t.Fatal(err)
		}
		c, err := pki.NewCredentials(ca.Pair().Cert, pair)
		if err != nil {
			t.Fatal(err)
		}
		credentials := func() pki.Credentials { return c }
		s := endpoint.NewServer(endpoint.ServerConfig{Credentials: credentials})
		s.Handle(Purpose, h.m.Handle)
		s.Handle(LoanPurpose, h.m.HandleLoans)
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		served := make(chan error, 1)
		go func() { served <- s.Serve(l) }()
		t.Cleanup(func() {
			if err := errors.Join(s.Shutdown(context.Background()), <-served); err != nil {
				t.Error(err)
			}
		})
		addresses[name] = l.Addr().String()
		h.m.cfg.Dial = func(ctx context.Context, host, _, purpose string, right []byte) (Link, error) {
			return endpoint.Dial(ctx, endpoint.Config{Host: host, Address: addresses[host], Credentials: credentials, Purpose: purpose, Right: right})
		}
	}
}

// await polls until the server is where it should be, and nothing else is under way.
func (w *world) await(on string) {
	w.t.Helper()
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		v, err := w.hosts[on].servers.Get(w.id)
		_, gone := w.other(on).servers.Get(w.id)
		if err == nil && v.State == vserver.StateRunning && v.Operation.Settled() && fault.Is(gone, fault.NotFound) {
			return
		}
		if time.Now().After(deadline) {
			other, _ := w.other(on).servers.Get(w.id)
			w.t.Fatalf("on %s it is %s, %+v: %v; elsewhere %s, %+v", on, v.State, v.Operation, err, other.State, other.Operation)
		}
	}
}

// The same as in memory, over TLS between two listeners; and what others may not do.
func TestMoveOverLoopback(t *testing.T) {
	w := newWorld(t, 1, "alpha", "beta")
	defer w.close()
	loopback(t, w)
	w.create(vserver.PowerRunning)
	w.snapshots(2)
	alpha, beta := w.hosts["alpha"], w.hosts["beta"]
	settings := vserver.Migration{Snapshots: true, Bandwidth: 100_000_000}
	v, _ := alpha.servers.Get(w.id)
	ticket, err := beta.m.Prepare(t.Context(), Offer{Server: v, Source: "alpha"})
	if err != nil {
		t.Fatal(err)
	}
	move, _, _ := decodeTicket(ticket.Secret)
	bad := encodeTicket(move, newSecret())
	if _, err := alpha.m.Start(t.Context(), Move{Server: w.id, Target: "beta", Endpoint: "x:1", Ticket: bad, Settings: &settings}); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		if v, err = alpha.servers.Get(w.id); err == nil && v.Operation.Err != "" {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("a wrong ticket: %+v, %v", v, err)
		}
	}
	if v.Operation.ErrKind != fault.Denied.String() || v.State != vserver.StateRunning {
		t.Errorf("a wrong ticket: %s, %+v", v.State, v.Operation)
	}
	for _, way := range [][2]*host{{alpha, beta}, {beta, alpha}} {
		v, err := way[0].servers.Get(w.id)
		if err != nil {
			t.Fatal(err)
		}
		if ticket, err = way[1].m.Prepare(t.Context(), Offer{Server: v, Source: way[0].name}); err != nil {
			t.Fatal(err)
		}
		if _, err := way[0].m.Start(t.Context(), Move{Server: w.id, Target: way[1].name, Endpoint: "x:1", Ticket: ticket.Secret, Settings: &settings}); err != nil {
			t.Fatal(err)
		}
		w.await(way[1].name)
	}
}
