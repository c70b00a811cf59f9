package bench

import (
	"context"
	"errors"
	"fmt"
	"time"

	reflejov1 "github.com/reflejo/terraform-provider-reflejo/agent/api/reflejo/v1"
)

// create is V1: from the request to the first output of a command in the new server, the
// image being there.
func (r *run) create(ctx context.Context) (rows []Row, err error) {
	f, err := r.host.newFloor(ctx, r.host.tinySpec("floor"))
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, f.close()) }()
	var ours, made, calls, tools, lxd []float64
	for i := range r.pick(15, 4) + 1 {
		total, created, err := r.firstCommand(ctx, fmt.Sprintf("v1-%d", i))
		if err != nil {
			return nil, err
		}
		bare, err := f.systemCalls()
		if err != nil {
			return nil, err
		}
		script, err := f.tools(ctx)
		if err != nil {
			return nil, err
		}
		var peer time.Duration
		if r.lxd != nil {
			if peer, err = r.lxd.firstCommand(ctx, fmt.Sprintf("v1-%d", i)); err != nil {
				return nil, err
			}
		}
		if i == 0 {
			continue // caches are cold for all of them
		}
		ours, made = append(ours, ms(total)), append(made, ms(created))
		calls, tools = append(calls, ms(bare)), append(tools, ms(script))
		if r.lxd != nil {
			lxd = append(lxd, ms(peer))
		}
	}
	rows = []Row{
		{What: "create → first output, at the API", Unit: "ms", Values: ours, Target: AtMost(100)},
		{What: "  of it until running", Unit: "ms", Values: made},
		{What: "floor: bare system calls", Unit: "ms", Values: calls, Note: "FICLONE, LOOP_CONFIGURE, mount, clone with all namespaces, exec; nothing durable, no network, no limits"},
		{What: "÷ floor", Unit: "×", Values: ratios(ours, calls), Target: AtMost(3)},
		{What: "floor: cp, mount, runc run", Unit: "ms", Values: tools},
		{What: "÷ floor by tools", Unit: "×", Values: ratios(ours, tools)},
	}
	if r.lxd != nil {
		rows = append(rows, Row{What: "LXD, btrfs", Unit: "ms", Values: lxd}, Row{What: "÷ LXD", Unit: "×", Values: ratios(ours, lxd), Target: AtMost(0.25)})
	}
	return rows, nil
}

// firstCommand makes a server, runs a command in it and removes it.
func (r *run) firstCommand(ctx context.Context, name string) (total, created time.Duration, err error) {
	spec := r.host.tinySpec(name)
	defer func() { err = errors.Join(err, r.host.removeAll(ctx, spec)) }()
	began := time.Now()
	if err := r.host.create(ctx, spec); err != nil {
		return 0, 0, err
	}
	created = time.Since(began)
	_, first, err := r.host.exec(ctx, spec.GetId(), "/bin/busybox", "echo", "up")
	return first.Sub(began), created, err
}

// many is how many servers V3 asks for at once.
const many = 32

// burst is V3: many servers asked for at once.
func (r *run) burst(ctx context.Context) (rows []Row, err error) {
	var rate, slowest, single, failures []float64
	var peer peerBurst
	for i := range r.pick(5, 2) {
		_, one, err := r.firstCommand(ctx, fmt.Sprintf("v3-single-%d", i))
		if err != nil {
			return nil, err
		}
		all, worst, failed, err := r.createMany(ctx, i, many)
		if err != nil {
			return nil, err
		}
		single, slowest = append(single, ms(one)), append(slowest, ms(worst))
		rate, failures = append(rate, many/all.Seconds()), append(failures, float64(failed))
		if r.lxd != nil && i < r.pick(2, 1) && peer.err == nil {
			peer.measure(ctx, r.lxd, i)
		}
	}
	rows = []Row{
		{What: "32 creates at once", Unit: "servers/s", Values: rate, Target: AtLeast(10)},
		{What: "failures", Values: failures, Target: Between(0, 0)},
		{What: "slowest of 32", Unit: "ms", Values: slowest},
		{What: "one alone", Unit: "ms", Values: single},
		{What: "slowest ÷ one alone", Unit: "×", Values: ratios(slowest, single), Target: AtMost(3)},
	}
	if r.lxd == nil {
		return rows, nil
	}
	rows = append(rows,
		Row{What: "LXD, 32 at once", Unit: "servers/s", Values: peer.rate},
		Row{What: "LXD, failures", Values: peer.failures},
		Row{What: "rate ÷ LXD", Unit: "×", Values: ratios(rate, peer.rate)})
	if peer.err != nil {
		rows[len(rows)-2].Note = "and then it did not recover within two minutes; it was started anew"
		err = r.restartLXD(ctx)
	}
	return rows, err
}

// peerBurst is V3 of LXD. A daemon that many requests at once have brought down is a result
// too, and is not asked again.
type peerBurst struct {
	rate, failures []float64
	err            error
}

func (p *peerBurst) measure(ctx context.Context, l *lxd, round int) {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Minute)
	defer cancel()
	all, failed, err := l.createMany(ctx, round, many)
	p.rate, p.failures, p.err = append(p.rate, float64(many-failed)/all.Seconds()), append(p.failures, float64(failed)), err
}

// createMany makes servers at once and removes them. A failed one is counted.
func (r *run) createMany(ctx context.Context, round, n int) (all, slowest time.Duration, failed int, err error) {
	specs := make([]*reflejov1.ServerSpec, n)
	for i := range specs {
		specs[i] = r.host.tinySpec(fmt.Sprintf("v3-%d-%d", round, i))
	}
	defer func() { err = errors.Join(err, r.host.removeAll(ctx, specs...)) }()
	all, slowest, failed = timeMany(n, func(i int) error { return r.host.create(ctx, specs[i]) })
	return all, slowest, failed, ctx.Err()
}

// timeMany calls f for 0 … n-1 at once.
func timeMany(n int, f func(i int) error) (all, slowest time.Duration, failed int) {
	type result struct {
		took time.Duration
		err  error
	}
	results := make(chan result)
	began := time.Now()
	for i := range n {
		go func() {
			err := f(i)
			results <- result{time.Since(began), err}
		}()
	}
	for range n {
		r := <-results
		slowest = max(slowest, r.took)
		if r.err != nil {
			failed++
		}
	}
	return time.Since(began), slowest, failed
}
