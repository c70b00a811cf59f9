package bench

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"connectrpc.com/connect"

	reflejov1 "github.com/reflejo/terraform-provider-reflejo/agent/api/reflejo/v1"
)

// adopt is V11: the agent is killed and started again over running servers.
func (r *run) adopt(ctx context.Context) (rows []Row, err error) {
	running := r.pick(200, 20)
	p, err := r.populate(ctx, "v11", running, 0)
	defer func() { err = errors.Join(err, r.host.removeAll(ctx, p.all()...)) }()
	if err != nil {
		return nil, err
	}
	var answers, settled, restarted, limits []float64
	for range r.pick(5, 2) {
		before, err := r.host.processes(ctx)
		if err != nil {
			return nil, err
		}
		memory, err := r.host.memoryLimits(p.running)
		if err != nil {
			return nil, err
		}
		if err := r.host.tb.KillAgent(ctx); err != nil {
			return nil, err
		}
		began := time.Now()
		if err := r.host.tb.Start(ctx); err != nil {
			return nil, err
		}
		answers = append(answers, ms(time.Since(began)))
		if err := r.host.reconnect(); err != nil {
			return nil, err
		}
		err = together(running, 8, func(i int) error { return r.host.await(ctx, p.running[i], "running") })
		if err != nil {
			return nil, err
		}
		settled = append(settled, ms(time.Since(began)))
		after, err := r.host.processes(ctx)
		if err != nil {
			return nil, err
		}
		kept, err := r.host.memoryLimits(p.running)
		if err != nil {
			return nil, err
		}
		restarted, limits = append(restarted, differences(before, after)), append(limits, differences(memory, kept))
	}
	return []Row{
		{What: fmt.Sprintf("kill -9, start → %d servers re-adopted, nothing left to do", running), Unit: "ms", Values: settled, Target: AtMost(2000)},
		{What: "  of it until the API answers", Unit: "ms", Values: answers},
		{What: "servers restarted or lost", Values: restarted, Target: Between(0, 0)},
		{What: "limits changed", Values: limits, Target: Between(0, 0)},
	}, nil
}

// processes names the processes of each server, of which a restart leaves none.
func (h *host) processes(ctx context.Context) (map[string]string, error) {
	answer, err := h.api.Servers.ListServers(ctx, connect.NewRequest(&reflejov1.ListServersRequest{}))
	if err != nil {
		return nil, err
	}
	all := map[string]string{}
	for _, s := range answer.Msg.GetServers() {
		id := s.GetSpec().GetId()
		text, err := os.ReadFile(h.groupFile(id, []string{"memory/%/cgroup.procs", "%/cgroup.procs"}))
		if err != nil {
			return nil, fmt.Errorf("read processes of %s: %w", s.GetSpec().GetName(), err)
		}
		all[id] = string(text)
	}
	return all, nil
}

// memoryLimits reads the limits where the kernel keeps them.
func (h *host) memoryLimits(servers []*reflejov1.ServerSpec) (map[string]string, error) {
	limits := map[string]string{}
	for _, s := range servers {
		text, err := os.ReadFile(h.groupFile(s.GetId(), []string{"memory/%/memory.limit_in_bytes", "%/memory.max"}))
		if err != nil {
			return nil, fmt.Errorf("read memory limit of %s: %w", s.GetName(), err)
		}
		limits[s.GetId()] = string(text)
	}
	return limits, nil
}

// differences counts the keys whose values differ.
func differences(a, b map[string]string) (n float64) {
	for id, v := range a {
		if b[id] != v {
			n++
		}
	}
	return n
}
