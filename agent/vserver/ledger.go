package vserver

import (
	"fmt"
	"maps"
	"slices"
	"strconv"

	"github.com/reflejo/terraform-provider-reflejo/agent/cpuset"
	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
)

// Capacity is what a host can promise to servers: its hardware less its own reserve.
type Capacity struct {
	MilliCores int64      // quota that may be promised in all, overcommit factor applied
	Cores      cpuset.Set // that servers may run on
	Memory     int64
	Disk       int64
	Ingress    int64 // bits per second; 0: not accounted
	Egress     int64
}

// Promise is what one spec takes from the host, whether it runs or not: a stopped server
// must be able to start again.
func (s Spec) Promise() Resources {
	r := Resources{MilliCores: s.CPU.MilliCores, Memory: s.Memory.Max, Disk: s.Disk.Size}
	if cores, err := cpuset.Parse(s.CPU.Pin); err == nil && len(cores) > 0 {
		r.MilliCores = int64(len(cores)) * 1000 // exclusive: nobody else gets what it leaves
	}
	for _, n := range s.Network {
		r.Ingress += n.Ingress
		r.Egress += n.Egress
	}
	return r
}

// Promised is the sum of what the specs take.
func Promised(specs []Spec) Resources {
	var sum Resources
	for _, s := range specs {
		p := s.Promise()
		sum.MilliCores += p.MilliCores
		sum.Memory += p.Memory
		sum.Disk += p.Disk
		sum.Ingress += p.Ingress
		sum.Egress += p.Egress
	}
	return sum
}

// less is the capacity without that much of the pool.
func (c Capacity) less(disk int64) Capacity {
	c.Disk = max(0, c.Disk-disk)
	return c
}

// Resources is the capacity as amounts.
func (c Capacity) Resources() Resources {
	return Resources{MilliCores: c.MilliCores, Memory: c.Memory, Disk: c.Disk, Ingress: c.Ingress, Egress: c.Egress}
}

// Free is what the host can still promise beside others; never negative.
func (c Capacity) Free(others []Spec) Resources {
	p := Promised(others)
	return Resources{
		MilliCores: max(0, c.MilliCores-p.MilliCores), Memory: max(0, c.Memory-p.Memory), Disk: max(0, c.Disk-p.Disk),
		Ingress: max(0, c.Ingress-p.Ingress), Egress: max(0, c.Egress-p.Egress),
	}
}

// Admit decides whether the host can promise want beside what it promised to others
// (which must not contain want's own older self). was is that older self, nil for a new
// server: what does not grow is never refused, so a host whose capacity shrank can still
// be changed in the right direction. Refusals are fault.Exhausted with asked and free amounts.
func Admit(c Capacity, others []Spec, want Spec, was *Spec) error {
	free, ask := c.Free(others), want.Promise()
	var had Resources
	if was != nil {
		had = was.Promise()
	}
	for _, r := range []struct {
		field           string
		what            string
		ask, had, free  int64
		accounted       bool
		format          func(int64) string
		whatCanBeChosen string
	}{
		{"cpu.cores", "CPU", ask.MilliCores, had.MilliCores, free.MilliCores, true, func(v int64) string { return milli(v) + " cores" }, "fewer cores"},
		{"memory.max", "memory", ask.Memory, had.Memory, free.Memory, true, formatBytes, "less memory"},
		{"disk.size", "disk", ask.Disk, had.Disk, free.Disk, true, formatBytes, "a smaller disk"},
		{"network", "bandwidth towards the server", ask.Ingress, had.Ingress, free.Ingress, c.Ingress > 0, formatBits, "less ingress"},
		{"network", "bandwidth from the server", ask.Egress, had.Egress, free.Egress, c.Egress > 0, formatBits, "less egress"},
	} {
		if r.accounted && r.ask > r.free && r.ask > r.had {
			return &fault.Error{Kind: fault.Exhausted, Field: r.field, Err: fmt.Errorf(
				"admit server %s: %s: asked for %s, the host has %s free; choose %s, another host, or free some here",
				want.Name, r.what, r.format(r.ask), r.format(r.free), r.whatCanBeChosen)}
		}
	}
	return admitPins(c.Cores, append(slices.Clone(others), want))
}

// admitPins refuses pins that can't be exclusive or leave too little for servers without one.
func admitPins(cores cpuset.Set, specs []Spec) error {
	pins := make(map[string]string, len(specs))
	var largest int64 // of those without a pin
	for _, s := range specs {
		pins[s.Name] = s.CPU.Pin
		if s.CPU.Pin == "" {
			largest = max(largest, s.CPU.MilliCores)
		}
	}
	sets, err := cpuset.Share(cores, pins)
	if err != nil {
		return err
	}
	for _, s := range specs {
		rest, err := cpuset.Parse(sets[s.Name])
		if s.CPU.Pin == "" && err == nil && len(rest) > 0 && int64(len(rest))*1000 < largest {
			return &fault.Error{Kind: fault.Exhausted, Field: "cpu.pin", Err: fmt.Errorf(
				"pins leave cores %s for servers without a pin, one of which needs %s", rest, milli(largest))}
		}
	}
	return nil
}

// checkUnique refuses a name or a published host port that another server has.
func checkUnique(others []Spec, want Spec) error {
	type claim struct{ server, field string }
	ports := map[string]claim{}
	for _, o := range others {
		if o.Name == want.Name {
			return &fault.Error{Kind: fault.Exists, Field: "name", Err: fmt.Errorf("name %q: server %s on this host has it", want.Name, o.ID)}
		}
		for nic, n := range o.Network {
			for key, p := range n.Publish {
				ports[p.Protocol+"/"+strconv.Itoa(p.HostPort)] = claim{o.Name, "network." + nic + ".publish." + key}
			}
		}
	}
	for _, nic := range slices.Sorted(maps.Keys(want.Network)) {
		for key, p := range want.Network[nic].Publish {
			slot := p.Protocol + "/" + strconv.Itoa(p.HostPort)
			if c, ok := ports[slot]; ok {
				return &fault.Error{Kind: fault.Exists, Field: "network." + nic + ".publish." + key + ".host_port",
					Err: fmt.Errorf("host port %s: server %s publishes it (%s)", slot, c.server, c.field)}
			}
		}
	}
	return nil
}

func formatBytes(v int64) string {
	for _, u := range []struct {
		size int64
		name string
	}{{1 << 40, "TiB"}, {1 << 30, "GiB"}, {1 << 20, "MiB"}} {
		if v >= u.size {
			return strconv.FormatFloat(float64(v*100/u.size)/100, 'f', -1, 64) + u.name
		}
	}
	return strconv.FormatInt(v, 10) + " bytes"
}

func formatBits(v int64) string {
	return strconv.FormatFloat(float64(v)/1e6, 'f', -1, 64) + "mbit"
}
