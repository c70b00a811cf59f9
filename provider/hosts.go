package provider

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"connectrpc.com/connect"
	"github.com/hashicorp/terraform-plugin-framework/diag"

	"github.com/reflejo/terraform-provider-reflejo/agent/api"
	reflejov1 "github.com/reflejo/terraform-provider-reflejo/agent/api/reflejo/v1"
	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
)

// How long one question to a host may take, and for how long a host that did not answer
// is taken for silent without asking again: a refresh of 200 servers must not wait 200 times.
const (
	callTimeout = 30 * time.Second
	silentFor   = 15 * time.Second
)

// hosts are all hosts of the provider block.
type hosts struct {
	byName  map[string]*host
	forget  bool            // forget_unreachable
	unknown string          // attributes of the block that are not known yet; "" means all are
	lost    map[string]bool // gone for good

	placement placement
	claims    claims
	returned  returned
}

func newHosts() *hosts {
	return &hosts{byName: map[string]*host{}, lost: map[string]bool{}, claims: claims{owner: map[string]string{}}}
}

func (h *hosts) add(name string, client *api.Client) {
	h.byName[name] = &host{name: name, Client: client}
}

// names lists the hosts in order, without those that are lost.
func (h *hosts) names() []string {
	return slices.DeleteFunc(slices.Sorted(maps.Keys(h.byName)), func(name string) bool { return h.lost[name] })
}

// get is the host with the name. The error is fault.Unavailable where the provider block
// is not known yet or says that the host is lost, fault.Invalid where it has no such host.
func (h *hosts) get(name string) (*host, error) {
	if h.unknown != "" {
		return nil, fault.New(fault.Unavailable, "the provider's configuration (%s) is known only after apply", h.unknown)
	}
	if h.lost[name] {
		return nil, fault.New(fault.Unavailable, "host %s is %w (lost_hosts in the provider's configuration)", name, errLost)
	}
	found, ok := h.byName[name]
	if !ok {
		return nil, fault.New(fault.Invalid, "host %q is %w; it has %s", name, errNotConfigured, strings.Join(h.names(), ", "))
	}
	return found, nil
}

// errNotConfigured is in the chain of errors about hosts that the provider block does not have.
var errNotConfigured = errors.New("not in the provider's configuration")

// errLost is in the chain of errors about hosts that are gone for good.
var errLost = errors.New("gone for good")

// unreachable reports whether err means that the host could not be asked, so nothing is
// known about what is there. A host that is not configured any more counts; one that
// answered with an error does not.
func unreachable(err error) bool {
	return fault.Is(err, fault.Unavailable) || errors.Is(err, errNotConfigured)
}

// host is one host: a client that connects when it is first used.
type host struct {
	*api.Client
	name string

	mu     sync.Mutex
	silent time.Time // until when the host is taken for silent
	err    error     // why
}

// ask makes one bounded call to a host and remembers a host that does not answer.
// Errors are fault errors.
func ask[Req, Resp any](ctx context.Context, h *host, call func(context.Context, *connect.Request[Req]) (*connect.Response[Resp], error), req *Req) (*Resp, error) {
	if err := h.known(); err != nil {
		return nil, err
	}
	return askAnyway(ctx, h, call, req)
}

// askAnyway is ask without believing in an earlier silence: for what someone waits for.
func askAnyway[Req, Resp any](ctx context.Context, h *host, call func(context.Context, *connect.Request[Req]) (*connect.Response[Resp], error), req *Req) (*Resp, error) {
	bounded, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	resp, err := call(bounded, connect.NewRequest(req))
	if err != nil {
		err = h.remember(ctx, api.ErrorOf(err))
		return nil, err
	}
	h.answered()
	return resp.Msg, nil
}

func (h *host) known() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if time.Now().Before(h.silent) {
		return h.err
	}
	return nil
}

func (h *host) answered() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.silent, h.err = time.Time{}, nil
}

func (h *host) remember(ctx context.Context, err error) error {
	if !fault.Is(err, fault.Unavailable) || ctx.Err() != nil { // our own deadline says nothing about the host
		return err
	}
	err = fmt.Errorf("host %s at %s does not answer: %w", h.name, h.Address(), err)
	h.mu.Lock()
	defer h.mu.Unlock()
	h.silent, h.err = time.Now().Add(silentFor), err
	return err
}

// describe asks what the host has.
func (h *host) describe(ctx context.Context) (*reflejov1.Host, error) {
	resp, err := ask(ctx, h, h.Hosts.GetHost, &reflejov1.GetHostRequest{})
	return resp.GetHost(), err
}

// answer is what one of several hosts said.
type answer[T any] struct {
	host  *host
	name  string
	value T
	err   error
}

// each asks several hosts at once; the answers come in the order of names.
func each[T any](ctx context.Context, h *hosts, names []string, question func(context.Context, *host) (T, error)) []answer[T] {
	answers := make([]answer[T], len(names))
	var group sync.WaitGroup
	for i, name := range names {
		answers[i].name = name
		found, err := h.get(name)
		if err != nil {
			answers[i].err = err
			continue
		}
		group.Go(func() {
			answers[i].host = found
			answers[i].value, answers[i].err = question(ctx, found)
		})
	}
	group.Wait()
	return answers
}

// claims are names that only one resource of a configuration may have on a host. They
// live as long as one plan or apply.
type claims struct {
	mu    sync.Mutex
	owner map[string]string
}

// take claims key for owner and returns who has it already, "" if nobody else has.
func (c *claims) take(key, owner string) string {
	c.mu.Lock()
	defer c.mu.Unlock()
	if other, ok := c.owner[key]; ok && other != owner {
		return other
	}
	c.owner[key] = owner
	return ""
}

// configured turns the data that the framework hands to a resource into the hosts; nil
// before the provider is configured (during validation).
func configured(data any, diags *diag.Diagnostics) *hosts {
	if data == nil {
		return nil
	}
	h, ok := data.(*hosts)
	if !ok {
		diags.AddError("Unexpected provider data", fmt.Sprintf("Got %T. Please report this to the provider's developers.", data))
	}
	return h
}
