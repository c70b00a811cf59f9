package cgroup

import (
	"context"
	"errors"
	"io/fs"
	"path"
	"strings"
	"sync"
	"time"

	"github.com/containerd/cgroups/v3/cgroup2"
	"github.com/reflejo/terraform-provider-reflejo/agent/cpuset"
	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
	"github.com/reflejo/terraform-provider-reflejo/agent/undo"
	"github.com/reflejo/terraform-provider-reflejo/agent/vserver"
)

// v2 is the unified hierarchy.
type v2 struct {
	cfg  Config
	tree tree
	mu   sync.Mutex // guards the parent's guarantee, a sum over all servers
}

func openV2(cfg Config, t tree) (*v2, error) {
	have, err := t.read("cgroup.controllers")
	if err != nil {
		return nil, fault.Wrap(fault.Unavailable, err)
	}
	if lack := missing(have, controllersV2); len(lack) > 0 {
		return nil, fault.New(fault.Unavailable, "the kernel has no cgroup controller %s", strings.Join(lack, ", "))
	}
	if _, err := t.mkdir(cfg.Parent); err != nil {
		return nil, err
	}
	b := &v2{cfg: cfg, tree: t}
	if err := b.enable(cfg.Parent); err != nil {
		return nil, err
	}
	if err := recursiveProtection(t); err != nil {
		return nil, err
	}
	return b, b.protect()
}

// enable makes the controllers available in a group, from the root down.
func (b *v2) enable(dir string) error {
	have, err := b.tree.read(path.Join(dir, "cgroup.controllers"))
	if err == nil && len(missing(have, controllersV2)) == 0 {
		return nil
	}
	group, err := cgroup2.Load("/"+dir, cgroup2.WithMountpoint(string(b.tree)))
	if err != nil {
		return err
	}
	return group.ToggleControllers(controllersV2, cgroup2.Enable)
}

func (b *v2) dir(id string) string { return path.Join(b.cfg.Parent, id) }

func (b *v2) paths(id string) paths {
	guest := path.Join(b.dir(id), guestDir)
	return paths{runtime: "/" + guest, joined: []string{guest}, all: []string{b.dir(id)}}
}

func (b *v2) set(ctx context.Context, id string, want vserver.LimitSet, pin cpuset.Set) error {
	dir := b.dir(id)
	var u undo.Stack
	defer u.Run()
	made, err := b.tree.mkdir(dir)
	if err != nil {
		return err
	}
	if made {
		u.Add(func() { _ = b.tree.remove(context.WithoutCancel(ctx), dir) })
		if err := recursiveProtection(b.tree); err != nil {
			return err
		}
	}
	if err := b.enable(dir); err != nil {
		return err
	}
	hard, _ := memoryLimits(want.Memory, pageSize)
	if err := b.reclaim(&u, dir, hard); err != nil {
		return err
	}
	ioMax, err := b.tree.read(path.Join(dir, "io.max"))
	if err != nil {
		return err
	}
	cpus, err := b.cpus(dir, pin)
	if err != nil {
		return err
	}
	settings := append([]setting{{file: path.Join(dir, "memory.max"), value: number(hard)}},
		limitsV2(dir, want, cpus, ioMax, pageSize)...)
	if err := b.tree.apply(&u, settings); err != nil {
		return err
	}
	if err := b.delegate(dir, want.IDs); err != nil {
		return err
	}
	if err := b.protect(); err != nil {
		return err
	}
	u.Keep()
	return nil
}

// cpus is the cpuset to write. None means all of the host's, except that the kernel does
// not let a group with tasks go back to none (ENOSPC): then all are named.
func (b *v2) cpus(dir string, pin cpuset.Set) (string, error) {
	if len(pin) > 0 {
		return pin.String(), nil
	}
	now, err := b.tree.read(path.Join(dir, "cpuset.cpus"))
	if err != nil || strings.TrimSpace(now) == "" {
		return "", err
	}
	all, err := b.tree.read("cpuset.cpus.effective")
	return strings.TrimSpace(all), err
}

// reclaim makes room for a lower hard limit. Writing memory.max itself below what is in
// use would kill processes, so the throttle limit goes first: it reclaims what it can and
// kills nothing. Its old value is on u.
func (b *v2) reclaim(u *undo.Stack, dir string, hard int64) error {
	current, err := b.tree.read(path.Join(dir, "memory.current"))
	if err != nil {
		return err
	}
	if single(current) <= hard {
		return nil
	}
	if err := b.tree.apply(u, []setting{{file: path.Join(dir, "memory.high"), value: number(hard)}}); err != nil {
		return err
	}
	if current, err = b.tree.read(path.Join(dir, "memory.current")); err != nil {
		return err
	}
	if single(current) > hard {
		return errMemoryBusy
	}
	return nil
}

// delegate makes the inner group and hands it to the server's root: the directory and
// the files that systemd's delegation names, never a limit.
func (b *v2) delegate(dir string, ids vserver.IDRange) error {
	guest := path.Join(dir, guestDir)
	if _, err := b.tree.mkdir(guest); err != nil {
		return err
	}
	if err := b.enable(guest); err != nil {
		return err
	}
	if ids.Size == 0 {
		return nil
	}
	for _, name := range []string{"", "cgroup.procs", "cgroup.threads", "cgroup.subtree_control"} {
		if err := b.tree.own(path.Join(guest, name), ids.First); err != nil {
			return err
		}
	}
	return nil
}

// protect keeps the parent's guarantee at the sum of the servers': the kernel protects a
// group's memory no further than its ancestors'.
func (b *v2) protect() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	names, err := b.tree.subgroups(b.cfg.Parent)
	if err != nil {
		return err
	}
	var sum int64
	for _, name := range names {
		if n := single(b.tree.readOr(path.Join(b.cfg.Parent, name, "memory.min"))); n > 0 {
			sum += n
		}
	}
	var u undo.Stack
	return b.tree.apply(&u, parentV2(b.cfg, sum))
}

func (b *v2) freeze(ctx context.Context, id string, frozen bool) error {
	dir := b.dir(id)
	value, want := "0", int64(0)
	if frozen {
		value, want = "1", 1
	}
	if err := b.tree.write(path.Join(dir, "cgroup.freeze"), value); err != nil {
		return err
	}
	err := poll(ctx, patience, func() (bool, error) {
		events, err := b.tree.read(path.Join(dir, "cgroup.events"))
		return flat(events)["frozen"] == want, err
	})
	if err != nil && frozen {
		_ = b.tree.write(path.Join(dir, "cgroup.freeze"), "0")
	}
	return err
}

func (b *v2) kill(ctx context.Context, id string) error {
	dir := b.dir(id)
	err := b.tree.write(path.Join(dir, "cgroup.kill"), "1")
	if errors.Is(err, fs.ErrNotExist) {
		if _, err := b.tree.read(path.Join(dir, "cgroup.events")); errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		err = b.killEach(ctx, dir) // before Linux 5.14
	}
	if err == nil {
		err = poll(ctx, patience, func() (bool, error) {
			events, err := b.tree.read(path.Join(dir, "cgroup.events"))
			return flat(events)["populated"] == 0, err
		})
	}
	if err != nil {
		return err
	}
	return b.tree.apply(&undo.Stack{}, []setting{{file: path.Join(dir, "cgroup.freeze"), value: "0"}})
}

func (b *v2) killEach(ctx context.Context, dir string) error {
	freezer := path.Join(dir, "cgroup.freeze")
	return killAll(ctx, func() ([]int, error) { return b.tree.procs(ctx, dir) }, "/"+dir,
		func() error { return b.tree.write(freezer, "1") },
		func() error { return b.tree.write(freezer, "0") })
}

func (b *v2) usage(id, device string) (vserver.Usage, error) {
	dir := b.dir(id)
	cpu, err := b.tree.read(path.Join(dir, "cpu.stat"))
	if err != nil {
		return vserver.Usage{}, err
	}
	get := func(file string) string { return b.tree.readOr(path.Join(dir, file)) }
	stat, memory := flat(cpu), flat(get("memory.stat"))
	cache := memory["inactive_file"] + memory["active_file"]
	io := pick(ioStatV2(get("io.stat")), device)
	return vserver.Usage{
		CPU:          time.Duration(stat["usage_usec"]) * time.Microsecond,
		Throttled:    time.Duration(stat["throttled_usec"]) * time.Microsecond,
		MemoryUsed:   max(0, single(get("memory.current"))-cache),
		MemoryCache:  cache,
		SwapUsed:     max(0, single(get("memory.swap.current"))),
		OOMKills:     flat(get("memory.events"))["oom_kill"],
		Tasks:        max(0, single(get("pids.current"))),
		ReadBytes:    io.readBytes,
		WriteBytes:   io.writeBytes,
		ReadOps:      io.readOps,
		WriteOps:     io.writeOps,
		PressureCPU:  some10(get("cpu.pressure")),
		PressureMem:  some10(get("memory.pressure")),
		PressureDisk: some10(get("io.pressure")),
	}, nil
}

func (b *v2) info(id string) vserver.GroupInfo {
	dir := b.dir(id)
	return vserver.GroupInfo{
		ID:     id,
		Frozen: flat(b.tree.readOr(path.Join(dir, "cgroup.events")))["frozen"] == 1,
		Tasks:  int(max(0, single(b.tree.readOr(path.Join(dir, "pids.current"))))),
	}
}
