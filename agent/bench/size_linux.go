package bench

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"connectrpc.com/connect"

	reflejov1 "github.com/reflejo/terraform-provider-reflejo/agent/api/reflejo/v1"
)

// population is the servers that V10 and V11 look at: running ones, and stopped ones that
// are records and disks only.
type population struct {
	running, stopped []*reflejov1.ServerSpec
}

// populate makes servers. What was made is returned with an error too.
func (r *run) populate(ctx context.Context, prefix string, running, stopped int) (p population, err error) {
	for i := range running + stopped {
		s := r.host.tinySpec(fmt.Sprintf("%s-%d", prefix, i))
		s.Cpu.MilliCores = 100 // a thousand of them have to be admitted
		if i < running {
			p.running = append(p.running, s)
		} else {
			s.Power = "stopped"
			s.Cpu.MilliCores = 10 // stopped ones are promised what they would need, too
			p.stopped = append(p.stopped, s)
		}
	}
	all := p.all()
	err = together(len(all), 8, func(i int) error { return r.host.create(ctx, all[i]) })
	return p, err
}

func (p population) all() []*reflejov1.ServerSpec {
	return append(append([]*reflejov1.ServerSpec(nil), p.running...), p.stopped...)
}

// size is V10: what the agent and its helpers cost.
func (r *run) size(ctx context.Context) (rows []Row, err error) {
	running, records := r.pick(200, 20), r.pick(1000, 100)
	empty, err := r.host.memoryOfAgent(ctx)
	if err != nil {
		return nil, err
	}
	keepersEmpty, err := r.host.keepers()
	if err != nil {
		return nil, err
	}
	p, err := r.populate(ctx, "v10", running, 0)
	defer func() { err = errors.Join(err, r.host.removeAll(ctx, p.all()...)) }()
	if err != nil {
		return nil, err
	}
	full, err := r.host.memoryOfAgent(ctx)
	if err != nil {
		return nil, err
	}
	keepers, err := r.host.keepers()
	if err != nil {
		return nil, err
	}
	load := Row{What: fmt.Sprintf("CPU of the agent, %d servers running, nothing asked", running), Unit: "% of a core", Target: AtMost(5)}
	for range r.pick(3, 1) {
		used, err := r.host.cpuOfAgent(ctx, r.load())
		if err != nil {
			return nil, err
		}
		load.Values = append(load.Values, 100*used)
	}
	rows = []Row{
		{What: "memory (RSS) of the agent, no servers", Unit: "MiB", Values: []float64{empty}, Target: AtMost(50)},
		{What: fmt.Sprintf("memory (RSS) of the agent, %d servers running", running), Unit: "MiB", Values: []float64{full}, Target: AtMost(100)},
		load,
		{What: fmt.Sprintf("console keeper and lxcfs, per server (of %d)", running), Unit: "MiB", Values: []float64{keepers / float64(running)}, Target: AtMost(2), Note: fmt.Sprintf("one of each per host: %s MiB without servers, %s MiB with them", number(keepersEmpty), number(keepers))},
	}
	more, err := r.populate(ctx, "v10-stopped", 0, records-running)
	p.stopped = more.stopped
	if err != nil {
		return rows, err
	}
	list := Row{What: fmt.Sprintf("list %d servers, %d of them running", records, running), Unit: "ms", Target: AtMost(100)}
	for i := range r.pick(15, 5) + 1 {
		began := time.Now()
		answer, err := r.host.api.Servers.ListServers(ctx, connect.NewRequest(&reflejov1.ListServersRequest{}))
		if err != nil {
			return rows, err
		}
		if n := len(answer.Msg.GetServers()); n != records {
			return rows, fmt.Errorf("list has %d servers, not %d", n, records)
		}
		if i > 0 {
			list.Values = append(list.Values, ms(time.Since(began)))
		}
	}
	rows = append(rows, list)
	afterwards, err := r.host.memoryOfAgent(ctx)
	rows = append(rows, Row{What: fmt.Sprintf("memory (RSS) of the agent, %d servers known", records), Unit: "MiB", Values: []float64{afterwards}})
	return rows, err
}

// memoryOfAgent is the agent's resident memory, MiB, after it had time to give back.
func (h *host) memoryOfAgent(ctx context.Context) (float64, error) {
	pause(ctx, 2*time.Second)
	return residentMemory(h.tb.AgentPID())
}

// residentMemory is a process's RSS in MiB.
func residentMemory(pid int) (float64, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, fmt.Errorf("read memory of process %d: %w", pid, err)
	}
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			kib, err := strconv.ParseFloat(strings.TrimSuffix(strings.TrimSpace(rest), " kB"), 64)
			return kib / 1024, err
		}
	}
	return 0, fmt.Errorf("read memory of process %d: it has ended", pid)
}

// clockTicks is USER_HZ, which Linux shows times in on every architecture that Go knows.
const clockTicks = 100

// cpuOfAgent is the agent's use of processors over d, in cores.
func (h *host) cpuOfAgent(ctx context.Context, d time.Duration) (float64, error) {
	pid := h.tb.AgentPID()
	first, err := ticks(pid)
	if err != nil {
		return 0, err
	}
	began := time.Now()
	pause(ctx, d)
	last, err := ticks(pid)
	return (last - first) / clockTicks / time.Since(began).Seconds(), err
}

// ticks is the time that a process has run, user and system.
func ticks(pid int) (float64, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, fmt.Errorf("read times of process %d: %w", pid, err)
	}
	f := strings.Fields(string(text[strings.LastIndexByte(string(text), ')')+1:])) // from field 3
	if len(f) < 13 {
		return 0, fmt.Errorf("read times of process %d: %q", pid, text)
	}
	user, err1 := strconv.ParseFloat(f[11], 64)
	system, err2 := strconv.ParseFloat(f[12], 64)
	return user + system, errors.Join(err1, err2)
}

// keepers is the memory of all processes of the host that are neither the agent nor in a
// server, MiB.
func (h *host) keepers() (sum float64, err error) {
	home, err := os.Stat(h.tb.Mountns())
	if err != nil {
		return 0, err
	}
	namespaces, err := filepath.Glob("/proc/[0-9]*/ns/mnt")
	if err != nil {
		return 0, err
	}
	for _, path := range namespaces {
		ns, err := os.Stat(path)
		if err != nil || !os.SameFile(home, ns) {
			continue
		}
		pid, err := strconv.Atoi(strings.Split(path, "/")[2])
		if err != nil || pid == h.tb.AgentPID() {
			continue
		}
		if rss, err := residentMemory(pid); err == nil { // else it has ended
			sum += rss
		}
	}
	return sum, nil
}
