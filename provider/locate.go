package provider

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"connectrpc.com/connect"
	"github.com/hashicorp/terraform-plugin-framework/diag"

	reflejov1 "github.com/reflejo/terraform-provider-reflejo/agent/api/reflejo/v1"
	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
)

// locate finds what a host had when it was last seen, there or, as servers move and their
// snapshots may follow, on another host. The error is fault.NotFound only if every host
// answered that it has it not; if some did not answer it is theirs, and if only lost hosts
// are left it is errLost.
func locate[T any](ctx context.Context, h *hosts, last string, get func(context.Context, *host) (T, error)) (*host, T, error) {
	var none T
	at, err := h.get(last)
	if err == nil {
		found, asked := get(ctx, at)
		if asked == nil {
			return at, found, nil
		}
		err = asked
	}
	if h.unknown != "" || !(fault.Is(err, fault.NotFound) || unreachable(err)) {
		return nil, none, err
	}
	others := slices.DeleteFunc(h.names(), func(name string) bool { return name == last })
	for _, a := range each(ctx, h, others, get) {
		switch {
		case a.err == nil:
			return a.host, a.value, nil
		case !fault.Is(a.err, fault.NotFound) && fault.Is(err, fault.NotFound):
			err = a.err
		}
	}
	if lost := h.lostHost(last); fault.Is(err, fault.NotFound) && lost != "" {
		_, err = h.get(lost)
	}
	return nil, none, err
}

// lostHost is where something is that no other host has: last, if that is lost, else a lost
// host; "" if there is none.
func (h *hosts) lostHost(last string) string {
	switch {
	case h.lost[last]:
		return last
	case len(h.lost) == 0:
		return ""
	}
	return slices.Sorted(maps.Keys(h.lost))[0]
}

// locateServer finds a server by its id.
func (h *hosts) locateServer(ctx context.Context, id, last string) (*host, *reflejov1.Server, error) {
	return locate(ctx, h, last, func(ctx context.Context, one *host) (*reflejov1.Server, error) { return one.server(ctx, id) })
}

// server asks for a server by id or name. One that is only on its way to the host is not
// there: the host that it comes from still has it.
func (h *host) server(ctx context.Context, idOrName string) (*reflejov1.Server, error) {
	resp, err := ask(ctx, h, h.Servers.GetServer, &reflejov1.GetServerRequest{Id: idOrName})
	if err == nil && resp.GetServer().GetState() == stateIncoming {
		return nil, fault.New(fault.NotFound, "server %s is on its way to host %s and not there yet", idOrName, h.name)
	}
	return resp.GetServer(), err
}

// stateIncoming is the state of a server that another host still has.
const stateIncoming = "incoming"

// returnedLimit is how long a lost host has to show that it is back.
const returnedLimit = 3 * time.Second

// returned is what was found out about lost hosts, once for a plan or apply.
type returned struct {
	once  sync.Once
	names []string
}

// returnedHosts warns of lost hosts that answer again.
func (h *hosts) returnedHosts(ctx context.Context) (diags diag.Diagnostics) {
	h.returned.once.Do(func() {
		var group sync.WaitGroup
		var mu sync.Mutex
		for name := range h.lost {
			back, configured := h.byName[name]
			if !configured {
				continue
			}
			group.Go(func() {
				ctx, cancel := context.WithTimeout(ctx, returnedLimit)
				defer cancel()
				if _, err := back.Hosts.GetHost(ctx, connect.NewRequest(&reflejov1.GetHostRequest{})); err == nil {
					mu.Lock()
					defer mu.Unlock()
					h.returned.names = append(h.returned.names, name)
				}
			})
		}
		group.Wait()
		slices.Sort(h.returned.names)
	})
	for _, name := range h.returned.names {
		diags.AddWarning("Lost host "+name+" answers again", fmt.Sprintf(
			"Host %s is in the provider's lost_hosts, and is back. Servers that were recovered elsewhere stay closed on it; delete them there with `reflejo server delete NAME --host %s`, "+
				"then take %s out of lost_hosts.", name, name, name))
	}
	return diags
}
