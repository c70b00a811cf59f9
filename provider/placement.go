package provider

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

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

// snapshotFor is for how long the hosts' own figures are believed while servers are being placed.
const snapshotFor = 20 * time.Second

// placement chooses hosts, one server at a time. While creations are under way it does not
// ask the hosts again, since nobody could say which of them their answers already count:
// it counts itself, from one look at them. So servers that are created at once spread evenly.
type placement struct {
	mu       sync.Mutex
	underway int
	taken    time.Time
	room     map[string]described // by host
	placed   map[string]room      // since the look
}

type described struct {
	free, capacity room
	servers        int64
	err            error
}

// choose picks a host for the spec that is not in refused, and counts the server there.
// settled must be called once with whether the host took it. The error is fault.Exhausted
// and says of each host why it can't be.
func (h *hosts) choose(ctx context.Context, spec *reflejov1.ServerSpec, refused map[string]string) (chosen *host, settled func(taken bool), err error) {
	p := &h.placement
	p.mu.Lock()
	defer p.mu.Unlock()
	need := asked(spec)
	var ranked, candidates []candidate
	for fresh := p.underway == 0 || time.Since(p.taken) > snapshotFor; ; fresh = true {
		if fresh {
			h.look(ctx)
		}
		candidates = h.candidates(ctx, spec, need, refused)
		if ranked = rank(need, candidates); len(ranked) > 0 || fresh {
			break
		}
	}
	if len(ranked) == 0 {
		return nil, nil, noRoom(spec.GetName(), candidates)
	}
	name, look := ranked[0].name, p.taken
	p.placed[name] = p.placed[name].plus(need)
	p.underway++
	return h.byName[name], func(taken bool) {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.underway--
		if !taken && p.taken.Equal(look) {
			p.placed[name] = p.placed[name].minus(need)
		}
	}, nil
}

// look asks all hosts for their room. h.placement.mu is held.
func (h *hosts) look(ctx context.Context) {
	p := &h.placement
	p.taken, p.room, p.placed = time.Now(), map[string]described{}, map[string]room{}
	for _, a := range each(ctx, h, h.names(), func(ctx context.Context, one *host) (*reflejov1.Host, error) { return one.describe(ctx) }) {
		p.room[a.name] = described{free: roomOf(a.value.GetFree()), capacity: roomOf(a.value.GetCapacity()), servers: int64(a.value.GetServers()), err: a.err}
	}
}

// candidates judges every host by the last look at it and by whether it has the image and
// the networks. h.placement.mu is held.
func (h *hosts) candidates(ctx context.Context, spec *reflejov1.ServerSpec, need room, refused map[string]string) []candidate {
	p := &h.placement
	candidates := make([]candidate, 0, len(p.room))
	for _, name := range sortedKeys(p.room) {
		seen, placed := p.room[name], p.placed[name]
		c := candidate{name: name, free: seen.free.minus(placed), capacity: seen.capacity, servers: seen.servers + placed.servers}
		short := shortages(need, c.free, c.capacity)
		switch why, ok := refused[name]; {
		case ok:
			c.reason = why
		case seen.err != nil:
			c.reason = seen.err.Error()
		case len(short) > 0:
			words := make([]string, len(short))
			for i, s := range short {
				words[i] = s.String()
			}
			c.reason = strings.Join(words, "; ")
		default:
			c.reason = missing(ctx, h.byName[name], spec)
		}
		candidates = append(candidates, c)
	}
	return candidates
}

// missing says what the host lacks for a server of the spec, "" if nothing.
func missing(ctx context.Context, h *host, spec *reflejov1.ServerSpec) string {
	var err error
	if spec.GetImage() != "" { // what brings its disk along needs none
		_, err = ask(ctx, h, h.Images.GetImage, &reflejov1.GetImageRequest{Id: spec.GetImage()})
	}
	if fault.Is(err, fault.NotFound) {
		return "it has no image " + spec.GetImage()
	}
	for _, nic := range spec.GetNetwork() {
		if err != nil {
			break
		}
		if nic.GetNetwork() == "" {
			continue
		}
		_, err = ask(ctx, h, h.Networks.GetNetwork, &reflejov1.GetNetworkRequest{Id: nic.GetNetwork()})
		if fault.Is(err, fault.NotFound) {
			return "it has no network " + nic.GetNetwork()
		}
	}
	if err != nil {
		return err.Error()
	}
	return ""
}

func noRoom(server string, candidates []candidate) error {
	var b strings.Builder
	for _, c := range candidates {
		fmt.Fprintf(&b, "\n  - %s: %s", c.name, c.reason)
	}
	return &fault.Error{Kind: fault.Exhausted, Field: "host", Err: fmt.Errorf("place server %s: no host can take it:%s", server, b.String())}
}
