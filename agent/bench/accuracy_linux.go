package bench

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	reflejov1 "github.com/reflejo/terraform-provider-reflejo/agent/api/reflejo/v1"
)

// accuracy is V7: every limit, from below and from above, under load for ten seconds.
func (r *run) accuracy(ctx context.Context) (rows []Row, err error) {
	meter, other := r.host.meterSpec("v7-meter"), r.host.debianSpec("v7-other")
	defer func() { err = errors.Join(err, r.host.removeAll(ctx, meter, other)) }()
	for _, s := range []*reflejov1.ServerSpec{meter, other} {
		if err := r.host.create(ctx, s); err != nil {
			return nil, err
		}
		if _, err := r.host.sh(ctx, s.GetId(), booted); err != nil {
			return nil, err
		}
	}
	for _, measure := range []func() ([]Row, error){
		func() ([]Row, error) { return r.quotas(ctx, meter) },
		func() ([]Row, error) { return r.weights(ctx, meter, other) },
		func() ([]Row, error) { return r.memory(ctx, meter, other) },
		func() ([]Row, error) { return r.bandwidth(ctx, meter) },
		func() ([]Row, error) { return r.diskRates(ctx, meter) },
	} {
		more, err := measure()
		rows = append(rows, more...)
		if err != nil {
			return rows, err
		}
	}
	return rows, nil
}

// quotas loads two processors of a server that may use less.
func (r *run) quotas(ctx context.Context, s *reflejov1.ServerSpec) (rows []Row, err error) {
	for _, milli := range []int64{250, 1000} {
		s.Cpu.MilliCores = milli
		if err := r.host.update(ctx, s); err != nil {
			return nil, err
		}
		row := Row{What: fmt.Sprintf("CPU: used ÷ quota of %s cores", number(float64(milli)/1000)), Unit: "×", Target: Between(0.99, 1.01)}
		for range r.pick(3, 1) {
			done := r.host.burn(ctx, s.GetId(), r.load()+3*time.Second)
			used, err := r.host.cores(ctx, r.load(), s.GetId())
			if err := errors.Join(err, (<-done).err); err != nil {
				return nil, err
			}
			row.Values = append(row.Values, used[0]*1000/float64(milli))
		}
		rows = append(rows, row)
	}
	s.Cpu.MilliCores = 2000
	return rows, r.host.update(ctx, s)
}

// weights loads two servers with all processors each.
func (r *run) weights(ctx context.Context, a, b *reflejov1.ServerSpec) ([]Row, error) {
	a.Cpu.Weight, b.Cpu.Weight = 300, 100
	if err := errors.Join(r.host.update(ctx, a), r.host.update(ctx, b)); err != nil {
		return nil, err
	}
	row := Row{What: "CPU: share under contention ÷ weights 300 : 100", Unit: "×", Target: Between(0.95, 1.05), Note: "of what both got; other work on the machine takes from both"}
	for range r.pick(3, 1) {
		first, second := r.host.burn(ctx, a.GetId(), r.load()+3*time.Second), r.host.burn(ctx, b.GetId(), r.load()+3*time.Second)
		used, err := r.host.cores(ctx, r.load(), a.GetId(), b.GetId())
		if err := errors.Join(err, (<-first).err, (<-second).err); err != nil {
			return nil, err
		}
		row.Values = append(row.Values, used[0]/(used[0]+used[1])/0.75)
	}
	a.Cpu.Weight, b.Cpu.Weight = 0, 0
	return []Row{row}, errors.Join(r.host.update(ctx, a), r.host.update(ctx, b))
}

// memory fills a server to its limit, then asks for more than there is.
func (r *run) memory(ctx context.Context, s, neighbour *reflejov1.ServerSpec) ([]Row, error) {
	id, limit := s.GetId(), s.GetMemory().GetMax()
	before, err := r.host.usage(ctx, id)
	if err != nil {
		return nil, err
	}
	others, err := r.host.usage(ctx, neighbour.GetId())
	if err != nil {
		return nil, err
	}
	const probe = 0.8 // shows what program and kernel take besides
	size := int64(probe * float64(limit-before.GetMemoryUsed()))
	most, _, err := r.host.fill(ctx, id, size, 2*time.Second)
	if err != nil {
		return nil, err
	}
	besides := most - size
	lived := false
	for share := 0.998; share > 0.98 && !lived; share -= 0.002 { // as much as lives
		if most, lived, err = r.host.fill(ctx, id, int64(share*float64(limit))-besides, r.load()); err != nil {
			return nil, err
		}
	}
	if !lived {
		most = 0
	}
	usable := Row{What: "memory: used and kept ÷ limit", Unit: "×", Values: []float64{float64(most) / float64(limit)}, Target: Between(0.99, 1)}
	out, err := r.host.sh(ctx, id, hog(limit*6/5, time.Second))
	if err != nil {
		return nil, err
	}
	after, err := r.host.usage(ctx, id)
	if err != nil {
		return nil, err
	}
	killed, err := r.host.usage(ctx, neighbour.GetId())
	if err != nil {
		return nil, err
	}
	inside := Row{What: "memory: programs over 120 % killed inside", Values: []float64{0}, Target: Between(1, 1)}
	if strings.HasSuffix(out, "137") && after.GetOomKills() > before.GetOomKills() {
		inside.Values[0] = 1
	}
	beside := Row{What: "memory: programs killed in a neighbour", Values: []float64{float64(killed.GetOomKills() - others.GetOomKills())}, Target: Between(0, 0)}
	return []Row{usable, inside, beside}, nil
}

// bandwidth sends both ways at every rate.
func (r *run) bandwidth(ctx context.Context, s *reflejov1.ServerSpec) (rows []Row, err error) {
	nic := s.Network["eth0"]
	for _, mbit := range []int64{10, 100, 1000} {
		nic.Ingress, nic.Egress = mbit*1e6, mbit*1e6
		if err := r.host.update(ctx, s); err != nil {
			return rows, err
		}
		for _, out := range []bool{false, true} {
			way := map[bool]string{false: "in", true: "out"}[out]
			row := Row{What: fmt.Sprintf("bandwidth %s: goodput ÷ %d Mbit/s", way, mbit), Unit: "×", Target: Between(0.94, 0.96)}
			for range r.pick(3, 1) {
				rate, err := r.host.goodput(ctx, s.GetId(), meterPort, r.load(), out)
				if err != nil {
					return rows, err
				}
				row.Values = append(row.Values, rate/float64(mbit*1e6))
			}
			rows = append(rows, row)
		}
	}
	nic.Ingress, nic.Egress = 0, 0
	return rows, r.host.update(ctx, s)
}

// diskRates reads and writes past the page cache.
func (r *run) diskRates(ctx context.Context, s *reflejov1.ServerSpec) (rows []Row, err error) {
	const rate, operations = 20 * mebibyte, 200
	seconds := int64(r.load().Seconds())
	file := "/var/tmp/bench"
	// Whole before it is limited: what is read back has to be there.
	if _, err := r.host.dd(ctx, s.GetId(), fmt.Sprintf("if=/dev/zero of=%s bs=1M oflag=direct count=%d", file, rate/mebibyte*seconds)); err != nil {
		return nil, err
	}
	s.Disk.ReadBps, s.Disk.WriteBps = rate, rate
	large := fmt.Sprintf("bs=1M count=%d", rate/mebibyte*seconds)
	write := fmt.Sprintf("if=/dev/zero of=%s oflag=direct conv=notrunc ", file)
	read := fmt.Sprintf("if=%s of=/dev/null iflag=direct ", file)
	measure := func(what, args string, want float64) error {
		row := Row{What: what, Unit: "×", Target: Between(0.97, 1.03)}
		for range r.pick(3, 1) {
			got, err := r.host.dd(ctx, s.GetId(), args)
			if err != nil {
				return err
			}
			row.Values = append(row.Values, got/want)
		}
		rows = append(rows, row)
		return nil
	}
	if err := r.host.update(ctx, s); err != nil {
		return rows, err
	}
	if err := errors.Join(
		measure("disk: bytes written ÷ 20 MiB/s, direct", write+large, rate),
		measure("disk: bytes read ÷ 20 MiB/s, direct", read+large, rate)); err != nil {
		return rows, err
	}
	s.Disk.ReadBps, s.Disk.WriteBps, s.Disk.ReadIops, s.Disk.WriteIops = 0, 0, operations, operations
	if err := r.host.update(ctx, s); err != nil {
		return rows, err
	}
	small := fmt.Sprintf("bs=4k count=%d", operations*seconds)
	err = errors.Join(
		measure("disk: writes ÷ 200/s, direct", write+small, operations*4096),
		measure("disk: reads ÷ 200/s, direct", read+small, operations*4096))
	s.Disk.ReadIops, s.Disk.WriteIops = 0, 0
	return rows, errors.Join(err, r.host.update(ctx, s))
}
