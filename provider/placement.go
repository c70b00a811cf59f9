package provider

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"

	reflejov1 "github.com/reflejo/terraform-provider-reflejo/agent/api/reflejo/v1"
	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
	"github.com/reflejo/terraform-provider-reflejo/agent/units"
)

// room is an amount of what servers take from a host.
type room struct {
	milliCores, memory, disk, ingress, egress int64
	servers                                   int64
}

func roomOf(r *reflejov1.Resources) room {
	return room{milliCores: r.GetMilliCores(), memory: r.GetMemoryBytes(), disk: r.GetDiskBytes(), ingress: r.GetIngressBps(), egress: r.GetEgressBps()}
}

func (r room) plus(o room) room {
	return room{r.milliCores + o.milliCores, r.memory + o.memory, r.disk + o.disk, r.ingress + o.ingress, r.egress + o.egress, r.servers + o.servers}
}

func (r room) minus(o room) room {
	return room{r.milliCores - o.milliCores, r.memory - o.memory, r.disk - o.disk, r.ingress - o.ingress, r.egress - o.egress, r.servers - o.servers}
}

// asked is what a server of the spec takes from its host. Pinned cores are exclusive, all of them.
func asked(s *reflejov1.ServerSpec) room {
	r := room{milliCores: s.GetCpu().GetMilliCores(), memory: s.GetMemory().GetMax(), disk: s.GetDisk().GetSize(), servers: 1}
	if cores, err := parsePin(s.GetCpu().GetPin()); err == nil {
		r.milliCores = int64(len(cores)) * 1000
	}
	for _, nic := range s.GetNetwork() {
		r.ingress += nic.GetIngress()
		r.egress += nic.GetEgress()
	}
	return r
}

// shortage is one resource of which there is too little.
type shortage struct {
	field, what string
	ask, have   string
}

func (s shortage) String() string {
	return fmt.Sprintf("%s: asked for %s, %s free", s.what, s.ask, s.have)
}

// shortages compares what is asked with what is there. A host that does not account
// bandwidth has a capacity of zero for it and gives any.
func shortages(ask, have, capacity room) []shortage {
	cores := func(n int64) string { return units.FormatCores(max(n, 0)) + " cores" }
	size := func(n int64) string { return units.FormatBytes(max(n, 0)) }
	rate := func(n int64) string { return units.FormatBitrate(max(n, 0)) }
	var short []shortage
	for _, r := range []struct {
		field, what    string
		ask, have, all int64
		format         func(int64) string
		mayBeUncounted bool
	}{
		{"cpu.cores", "CPU", ask.milliCores, have.milliCores, capacity.milliCores, cores, false},
		{"memory.max", "memory", ask.memory, have.memory, capacity.memory, size, false},
		{"disk.size", "disk", ask.disk, have.disk, capacity.disk, size, false},
		{"network", "bandwidth towards servers", ask.ingress, have.ingress, capacity.ingress, rate, true},
		{"network", "bandwidth from servers", ask.egress, have.egress, capacity.egress, rate, true},
	} {
		if r.mayBeUncounted && r.all == 0 {
			continue
		}
		if r.ask > r.have {
			short = append(short, shortage{r.field, r.what, r.format(r.ask), r.format(r.have)})
		}
	}
	return short
}

// candidate is a host that a server could be placed on.
type candidate struct {
	name           string
	free, capacity room
	servers        int64
	reason         string // why not; "" if it could
}

// rank orders candidates, the one with most room first: what would be left of the
// scarcest resource, as a part of the host; then fewer servers; then the name.
func rank(ask room, candidates []candidate) []candidate {
	left := func(c candidate) float64 {
		part := func(free, ask, all int64) float64 {
			if all <= 0 {
				return 0
			}
			return float64(free-ask) / float64(all)
		}
		return min(
			part(c.free.milliCores, ask.milliCores, c.capacity.milliCores),
			part(c.free.memory, ask.memory, c.capacity.memory),
			part(c.free.disk, ask.disk, c.capacity.disk),
		)
	}
	usable := slices.DeleteFunc(slices.Clone(candidates), func(c candidate) bool { return c.reason != "" })
	slices.SortStableFunc(usable, func(a, b candidate) int {
		return cmp.Or(cmp.Compare(left(b), left(a)), cmp.Compare(a.servers, b.servers), cmp.Compare(a.name, b.name))
	})
	return usable
}

// placement chooses hosts, one server at a time, and counts what it has chosen until the
// agent counts it. So servers that are created at once spread.
type placement struct {
	mu        sync.Mutex
	tentative map[string]room
}

// choose picks a host for the spec that is not in refused, and counts the server there
// until done is called. The error is fault.Exhausted and says of each host why it can't be.
func (h *hosts) choose(ctx context.Context, spec *reflejov1.ServerSpec, refused map[string]string) (chosen *host, done func(), err error) {
	h.placement.mu.Lock()
	defer h.placement.mu.Unlock()
	ask := asked(spec)
	candidates := h.candidates(ctx, spec, ask)
	for i, c := range candidates {
		if why, ok := refused[c.name]; ok {
			candidates[i].reason = why
		}
	}
	ranked := rank(ask, candidates)
	if len(ranked) == 0 {
		return nil, nil, noRoom(spec.GetName(), candidates)
	}
	name := ranked[0].name
	h.placement.tentative[name] = h.placement.tentative[name].plus(ask)
	var once sync.Once
	return h.byName[name], func() {
		once.Do(func() {
			h.placement.mu.Lock()
			defer h.placement.mu.Unlock()
			h.placement.tentative[name] = h.placement.tentative[name].minus(ask)
		})
	}, nil
}

// candidates asks every host for its room and whether it has the image and the networks.
func (h *hosts) candidates(ctx context.Context, spec *reflejov1.ServerSpec, ask room) []candidate {
	answers := each(ctx, h, h.names(), func(ctx context.Context, one *host) (candidate, error) {
		described, err := one.describe(ctx)
		if err != nil {
			return candidate{}, err
		}
		c := candidate{free: roomOf(described.GetFree()), capacity: roomOf(described.GetCapacity()), servers: int64(described.GetServers())}
		c.reason, err = missing(ctx, one, spec)
		return c, err
	})
	candidates := make([]candidate, 0, len(answers))
	for _, a := range answers {
		c := a.value
		c.name = a.name
		if a.err != nil {
			c.reason = a.err.Error()
		}
		tentative := h.placement.tentative[a.name]
		c.free, c.servers = c.free.minus(tentative), c.servers+tentative.servers
		if short := shortages(ask, c.free, c.capacity); c.reason == "" && len(short) > 0 {
			words := make([]string, len(short))
			for i, s := range short {
				words[i] = s.String()
			}
			c.reason = strings.Join(words, "; ")
		}
		candidates = append(candidates, c)
	}
	return candidates
}

// missing says what the host lacks for a server of the spec, "" if nothing.
func missing(ctx context.Context, h *host, spec *reflejov1.ServerSpec) (string, error) {
	_, err := ask(ctx, h, h.Images.GetImage, &reflejov1.GetImageRequest{Id: spec.GetImage()})
	if fault.Is(err, fault.NotFound) {
		return "it has no image " + spec.GetImage(), nil
	}
	if err != nil {
		return "", err
	}
	for _, nic := range spec.GetNetwork() {
		if nic.GetNetwork() == "" {
			continue
		}
		_, err := ask(ctx, h, h.Networks.GetNetwork, &reflejov1.GetNetworkRequest{Id: nic.GetNetwork()})
		if fault.Is(err, fault.NotFound) {
			return "it has no network " + nic.GetNetwork(), nil
		}
		if err != nil {
			return "", err
		}
	}
	return "", nil
}

func noRoom(server string, candidates []candidate) error {
	var b strings.Builder
	for _, c := range candidates {
		fmt.Fprintf(&b, "\n  - %s: %s", c.name, c.reason)
	}
	return &fault.Error{Kind: fault.Exhausted, Field: "host", Err: fmt.Errorf("place server %s: no host can take it:%s\n", server, b.String())}
}
