package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"connectrpc.com/connect"

	"github.com/reflejo/terraform-provider-reflejo/agent/api"
	reflejov1 "github.com/reflejo/terraform-provider-reflejo/agent/api/reflejo/v1"
	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
)

// askLimit bounds calls that answer at once.
const askLimit = 15 * time.Second

// hostNames are the hosts that a command is about: all, or the one of --host.
func (a *app) hostNames() ([]string, error) {
	if len(a.env.Hosts) == 0 {
		return nil, fmt.Errorf("no hosts given: set %s or --hosts, such as \"alpha=198.18.0.11:7443\"", api.EnvHosts)
	}
	if a.flags.host == "" {
		return a.env.HostNames(), nil
	}
	if _, ok := a.env.Hosts[a.flags.host]; !ok {
		return nil, fmt.Errorf("host %q is not one of %s", a.flags.host, strings.Join(a.env.HostNames(), ", "))
	}
	return []string{a.flags.host}, nil
}

// dial gives a client of each host that the command is about.
func (a *app) dial() ([]*api.Client, error) {
	names, err := a.hostNames()
	if err != nil {
		return nil, err
	}
	credentials, err := a.env.Credentials()
	if err != nil {
		return nil, err
	}
	if a.clients == nil {
		a.clients = map[string]*api.Client{}
	}
	list := make([]*api.Client, len(names))
	for i, name := range names {
		if a.clients[name] == nil {
			c, err := api.Dial(api.Config{Host: name, Address: a.env.Hosts[name], Credentials: credentials})
			if err != nil {
				return nil, err
			}
			a.clients[name] = c
		}
		list[i] = a.clients[name]
	}
	return list, nil
}

// answer is what one host said.
type answer[T any] struct {
	client *api.Client
	value  T
	err    error
}

// ask asks all hosts at once; answers are in the order of clients.
func ask[T any](ctx context.Context, clients []*api.Client, f func(context.Context, *api.Client) (T, error)) []answer[T] {
	answers := make([]answer[T], len(clients))
	var wg sync.WaitGroup
	for i, c := range clients {
		wg.Go(func() {
			value, err := f(ctx, c)
			answers[i] = answer[T]{c, value, api.ErrorOf(err)}
		})
	}
	wg.Wait()
	return answers
}

// failures joins what went wrong, a line per host; nil if nothing did.
func failures[T any](answers []answer[T]) error {
	var all []error
	for _, r := range answers {
		if r.err != nil {
			all = append(all, fmt.Errorf("host %s: %w", r.client.Name(), r.err))
		}
	}
	return errors.Join(all...)
}

// stateIncoming is the state of a server that another host still has.
const stateIncoming = "incoming"

// stateClosed is the state of what a host has of a server that another one took over.
const stateClosed = "closed"

// findServer finds a server by id or name on any host. Found on several, or on none while
// a host does not answer, is an error that says so.
func (a *app) findServer(ctx context.Context, idOrName string, usage bool) (*api.Client, *reflejov1.Server, error) {
	clients, err := a.dial()
	if err != nil {
		return nil, nil, err
	}
	return findOne(ctx, clients, "server", idOrName, func(ctx context.Context, c *api.Client) (*reflejov1.Server, error) {
		res, err := c.Servers.GetServer(ctx, connect.NewRequest(&reflejov1.GetServerRequest{Id: idOrName, Usage: usage}))
		if err != nil {
			return nil, err
		}
		if res.Msg.GetServer().GetState() == stateIncoming {
			return nil, fault.New(fault.NotFound, "server %q is only on its way to host %s", idOrName, c.Name())
		}
		return res.Msg.GetServer(), nil
	}, func(s *reflejov1.Server) string { return s.GetSpec().GetId() })
}

func findOne[T any](ctx context.Context, clients []*api.Client, what, idOrName string, get func(context.Context, *api.Client) (T, error), id func(T) string) (*api.Client, T, error) {
	ctx, cancel := context.WithTimeout(ctx, askLimit)
	defer cancel()
	var found, failed []answer[T]
	var asked []string
	for _, r := range ask(ctx, clients, get) {
		asked = append(asked, r.client.Name())
		switch {
		case r.err == nil:
			found = append(found, r)
		case !fault.Is(r.err, fault.NotFound):
			failed = append(failed, r)
		}
	}
	var none T
	switch {
	case len(found) == 1:
		return found[0].client, found[0].value, nil
	case len(found) > 1:
		var list []string
		for _, r := range found {
			list = append(list, fmt.Sprintf("%s (%s)", r.client.Name(), id(r.value)))
		}
		return nil, none, fmt.Errorf("%s %q is on %s: pick one with --host or by its id", what, idOrName, strings.Join(list, " and "))
	case len(failed) > 0:
		return nil, none, fmt.Errorf("%s %q was not found on the hosts that answered:\n%w", what, idOrName, failures(failed))
	}
	return nil, none, fault.New(fault.NotFound, "no %s %q on %s", what, idOrName, strings.Join(asked, ", "))
}
