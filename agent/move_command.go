package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/reflejo/terraform-provider-reflejo/agent/api"
	reflejov1 "github.com/reflejo/terraform-provider-reflejo/agent/api/reflejo/v1"
	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
	"github.com/reflejo/terraform-provider-reflejo/agent/units"
)

const (
	// moveLimit is how long to wait for a move by default.
	moveLimit = 2 * time.Hour
	// leaveLimit is how long a host may take to let go of a server after the move's own end.
	leaveLimit = 30 * time.Second
)

// travel is how servers are to be moved, where that is not as they say themselves.
type travel struct {
	cold, snapshots bool
	bandwidth       string
	downtime        time.Duration
	changed         func(flag string) bool
}

func (t *travel) addTo(c *cobra.Command) {
	c.Flags().BoolVar(&t.cold, "cold", false, "stop first, then copy (default: as the server says)")
	c.Flags().BoolVar(&t.snapshots, "snapshots", false, "let snapshots move along (default: as the server says)")
	c.Flags().StringVar(&t.bandwidth, "bandwidth", "", "most bits per second between the hosts, such as 1gbit (default: as the server says)")
	c.Flags().DurationVar(&t.downtime, "max-downtime", 0, "copy on until what is left takes no longer (default: as the server says)")
	t.changed = func(flag string) bool { return c.Flags().Changed(flag) }
}

// settings are those of a server with what the flags say otherwise.
func (t *travel) settings(own *reflejov1.MigrationSettings) (*reflejov1.MigrationSettings, error) {
	s := &reflejov1.MigrationSettings{Mode: own.GetMode(), MaxDowntime: own.GetMaxDowntime(), Bandwidth: own.GetBandwidth(), Snapshots: own.GetSnapshots()}
	if t.changed("cold") {
		if s.Mode = "warm"; t.cold {
			s.Mode = "cold"
		}
	}
	if t.changed("snapshots") {
		s.Snapshots = t.snapshots
	}
	if t.downtime > 0 {
		s.MaxDowntime = durationpb.New(t.downtime)
	}
	if t.bandwidth != "" {
		n, err := units.ParseBitrate(t.bandwidth)
		if err != nil {
			return nil, &usageError{fmt.Errorf("--bandwidth: %w", err)}
		}
		s.Bandwidth = n
	}
	return s, nil
}

func (a *app) migrateCommand() *cobra.Command {
	var t travel
	var to string
	w := waiting{limit: moveLimit}
	c := a.oneServer("migrate", "Move a server to another host", func(ctx context.Context, name string) error {
		from, s, err := a.findServer(ctx, name, false)
		if err != nil {
			return err
		}
		target, err := a.dialHost(to)
		if err != nil {
			return err
		}
		if from.Name() == target.Name() {
			_, err := fmt.Fprintf(a.out, "server %s is on %s\n", printable(s.GetSpec().GetName()), to)
			return err
		}
		p := a.progress()
		defer p.stop()
		err = a.move(ctx, from, target, s, &t, w, p.task(s.GetSpec().GetName(), true))
		p.stop()
		if err != nil || w.not {
			return err
		}
		_, err = fmt.Fprintf(a.out, "server %s is on %s\n", printable(s.GetSpec().GetName()), to)
		return err
	})
	c.Use = "migrate SERVER --to HOST"
	c.Long = `Move a server to another host, with its disk, id, addresses and MACs. It is copied while it
runs and stopped only for what is left; --cold stops it first. Whatever happens on the way,
exactly one host has it. Repeated after an interruption it goes on.

A server that Terraform keeps moves by its attribute host; moved from here, and named there,
the next plan moves it back.`
	c.Flags().StringVar(&to, "to", "", "the host to move it to")
	c.MarkFlagRequired("to")
	c.RegisterFlagCompletionFunc("to", func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
		if a.readFlags() != nil {
			return nil, cobra.ShellCompDirectiveError
		}
		return a.env.HostNames(), cobra.ShellCompDirectiveNoFileComp
	})
	t.addTo(c)
	w.addTo(c)
	return c
}

// move moves a server from one host to another and follows it there.
func (a *app) move(ctx context.Context, from, to *api.Client, s *reflejov1.Server, t *travel, w waiting, task *task) error {
	settings, err := t.settings(s.GetSpec().GetMigration())
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, w.limit)
	defer cancel()
	m := mover{from: from, to: to, id: s.GetSpec().GetId(), name: s.GetSpec().GetName(), task: task}
	if o := s.GetOperation(); o.GetKind() != "migrate" || o.GetDone() { // else it is on its way already
		if err := m.begin(ctx, s, settings); err != nil {
			return err
		}
	}
	if w.not {
		return nil
	}
	if err := m.left(ctx); err != nil {
		return m.waited(ctx, err)
	}
	return m.waited(ctx, m.arrived(ctx))
}

// mover is one move.
type mover struct {
	from, to *api.Client
	id, name string
	task     *task
}

// waited turns the end of our patience into what it means.
func (m mover) waited(ctx context.Context, err error) error {
	if err != nil && ctx.Err() != nil {
		return fmt.Errorf("server %s is still on its way from %s to %s; the hosts go on with it: %w", m.name, m.from.Name(), m.to.Name(), ctx.Err())
	}
	return err
}

// begin asks the target whether it takes the server, then the source to send it.
func (m mover) begin(ctx context.Context, s *reflejov1.Server, settings *reflejov1.MigrationSettings) error {
	prepare := &reflejov1.PrepareMigrationRequest{Server: s, Source: m.from.Name()}
	if settings.GetSnapshots() {
		list, err := m.from.Snapshots.ListSnapshots(ctx, connect.NewRequest(&reflejov1.ListSnapshotsRequest{Server: m.id}))
		if err != nil {
			return api.ErrorOf(err)
		}
		for _, snapshot := range list.Msg.GetSnapshots() {
			prepare.SnapshotBytes += snapshot.GetReservedSize()
		}
	}
	ticket, err := m.to.Servers.PrepareMigration(ctx, connect.NewRequest(prepare))
	if err != nil {
		return &refusedError{host: m.to.Name(), err: api.ErrorOf(err)}
	}
	_, err = m.from.Servers.MigrateServer(ctx, connect.NewRequest(&reflejov1.MigrateServerRequest{
		Id: m.id, Target: m.to.Name(), Endpoint: api.Endpoint(m.to.Address(), ticket.Msg.GetEndpoint()), Ticket: ticket.Msg.GetTicket(), Settings: settings,
	}))
	return api.ErrorOf(err)
}

// refusedError is the answer of a host that does not take a server.
type refusedError struct {
	host string
	err  error
}

func (e *refusedError) Error() string { return "host " + e.host + ": " + e.err.Error() }
func (e *refusedError) Unwrap() error { return e.err }

// left follows the server until it has left its host, or will not.
func (m mover) left(ctx context.Context) error {
	var ended time.Time // when the move was first seen to have ended without a word
	for {
		var last *reflejov1.Operation
		gone, err := watchOnce(ctx, m.from, m.id, func(s *reflejov1.Server) {
			last = s.GetOperation()
			m.task.at(last.GetStep(), last.GetBytesDone(), last.GetBytesTotal())
		})
		switch {
		case gone || fault.Is(err, fault.NotFound):
			return nil
		case fault.Is(err, fault.Unavailable):
			m.task.at("waiting for the agent of "+m.from.Name(), 0, 0)
		case err != nil:
			return err
		case last.GetError() != "":
			return fmt.Errorf("move server %s to %s: %s; it stays on %s", m.name, m.to.Name(), last.GetError(), m.from.Name())
		case ended.IsZero():
			ended = time.Now()
		case time.Since(ended) > leaveLimit:
			return fmt.Errorf("move server %s to %s: host %s ended it, and the server is still there", m.name, m.to.Name(), m.from.Name())
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(time.Second / 4):
		}
	}
}

// arrived follows the server on its new host until nothing is under way.
func (m mover) arrived(ctx context.Context) error {
	for {
		var last *reflejov1.Operation
		gone, err := watchOnce(ctx, m.to, m.id, func(s *reflejov1.Server) {
			last = s.GetOperation()
			m.task.at(last.GetStep(), last.GetBytesDone(), last.GetBytesTotal())
		})
		switch {
		case fault.Is(err, fault.Unavailable):
			m.task.at("waiting for the agent of "+m.to.Name(), 0, 0)
		case err != nil:
			return err
		case gone:
			return fmt.Errorf("server %s was deleted from %s by somebody else", m.name, m.to.Name())
		case last.GetError() != "":
			return fmt.Errorf("server %s is on %s, but %s failed there: %s", m.name, m.to.Name(), last.GetKind(), last.GetError())
		default:
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(time.Second):
		}
	}
}

// dialHost gives a client of one host, whatever --host says.
func (a *app) dialHost(name string) (*api.Client, error) {
	only := a.flags.host
	defer func() { a.flags.host = only }()
	if a.flags.host = name; name == "" {
		return nil, errors.New("no host is named")
	}
	clients, err := a.dial()
	if err != nil {
		return nil, err
	}
	return clients[0], nil
}
