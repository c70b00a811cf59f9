package cgroup

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/containerd/cgroups/v3/cgroup1"
	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/reflejo/terraform-provider-reflejo/agent/cpuset"
	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
	"github.com/reflejo/terraform-provider-reflejo/agent/undo"
	"github.com/reflejo/terraform-provider-reflejo/agent/vserver"
	"golang.org/x/sys/unix"
)

// v1 is the legacy hierarchies, and the unified one beside them on hybrid hosts.
type v1 struct {
	cfg         Config
	tree        tree
	hierarchies []string // that we make groups in
	foreign     []string // that only the runtime makes groups in
}

func openV1(cfg Config, t tree) (*v1, error) {
	b := &v1{cfg: cfg, tree: t}
	for _, h := range requiredV1 {
		if _, err := os.Lstat(t.path(path.Join(h, "cgroup.procs"))); err != nil {
			return nil, fault.New(fault.Unavailable, "the cgroup hierarchy %s is not mounted: %w", h, err)
		}
	}
	mounted := func(h string) bool {
		_, err := os.Lstat(t.path(path.Join(h, "cgroup.procs")))
		return err == nil
	}
	b.hierarchies = slices.Clone(requiredV1)
	for _, h := range optionalV1 {
		if mounted(h) {
			b.hierarchies = append(b.hierarchies, h)
		}
	}
	for _, h := range runtimeV1 {
		if mounted(h) {
			b.foreign = append(b.foreign, h)
		}
	}
	return b, b.openParent()
}

// openParent makes the group of all servers. The cap goes down only after every
// server's quota fits below it, else the kernel refuses it.
func (b *v1) openParent() error {
	for _, h := range b.hierarchies {
		if _, err := b.tree.mkdir(path.Join(h, b.cfg.Parent)); err != nil {
			return err
		}
	}
	for _, file := range []string{"cpuset.cpus", "cpuset.mems"} {
		all, err := b.tree.read(path.Join("cpuset", file))
		if err != nil {
			return err
		}
		if err := b.tree.apply(&undo.Stack{}, []setting{{file: path.Join("cpuset", b.cfg.Parent, file), value: strings.TrimSpace(all)}}); err != nil {
			return err
		}
	}
	if us, ok := quota(b.cfg.MaxMilliCores); ok {
		ids, err := b.tree.subgroups(path.Join("cpu", b.cfg.Parent))
		if err != nil {
			return err
		}
		for _, id := range ids {
			file := path.Join("cpu", b.dir(id), "cpu.cfs_quota_us")
			if now := single(b.tree.readOr(file)); validID(id) && (now < 0 || now > us) {
				if err := b.tree.write(file, number(us)); err != nil {
					return err
				}
			}
		}
	}
	return b.tree.apply(&undo.Stack{}, parentV1(b.cfg))
}

func (b *v1) dir(id string) string { return path.Join(b.cfg.Parent, id) }

func (b *v1) paths(id string) paths {
	p := paths{runtime: "/" + b.dir(id)}
	for _, h := range b.hierarchies {
		p.joined = append(p.joined, path.Join(h, b.dir(id)))
	}
	p.all = slices.Clone(p.joined)
	for _, h := range b.foreign {
		p.all = append(p.all, path.Join(h, b.dir(id)))
	}
	return p
}

func (b *v1) set(ctx context.Context, id string, want vserver.LimitSet, pin cpuset.Set) error {
	dir := b.dir(id)
	var u undo.Stack
	defer u.Run()
	for _, group := range b.paths(id).joined {
		made, err := b.tree.mkdir(group)
		if err != nil {
			return err
		}
		if made {
			u.Add(func() { _ = b.tree.remove(context.WithoutCancel(ctx), group) })
		}
	}
	// A new cpuset is empty and takes no task: the library fills it from the parent.
	if err := cgroup1.NewCpuset(string(b.tree)).Create("/"+dir, &specs.LinuxResources{}); err != nil {
		return fmt.Errorf("make cpuset: %w", err)
	}
	cpus := pin.String()
	if cpus == "" {
		all, err := b.tree.read(path.Join("cpuset", b.cfg.Parent, "cpuset.cpus"))
		if err != nil {
			return err
		}
		cpus = strings.TrimSpace(all)
	}
	now, err := b.state(dir)
	if err != nil {
		return err
	}
	if err := b.tree.apply(&u, limitsV1(dir, want, cpus, b.cfg.MaxMilliCores, now, pageSize)); err != nil {
		return err
	}
	if err := b.delegate(dir, want.IDs); err != nil {
		return err
	}
	u.Keep()
	return nil
}

// state reads what the settings depend on.
func (b *v1) state(dir string) (stateV1, error) {
	s := stateV1{throttle: map[string]string{}}
	memsw, err := b.tree.read(path.Join("memory", dir, "memory.memsw.limit_in_bytes"))
	switch {
	case err == nil:
		s.hasMemsw, s.memsw = true, single(memsw)
	case !absent(err):
		return s, err
	}
	for _, r := range rates(vserver.Disk{}) {
		if s.throttle[r.v1], err = b.tree.read(path.Join("blkio", dir, r.v1)); err != nil {
			return s, err
		}
	}
	return s, nil
}

// delegate hands the name=systemd directory to the server's root, so that its own
// systemd can keep its units there. No limit is in that hierarchy.
func (b *v1) delegate(dir string, ids vserver.IDRange) error {
	if ids.Size == 0 || !slices.Contains(b.hierarchies, "systemd") {
		return nil
	}
	for _, name := range []string{"", "cgroup.procs", "tasks"} {
		if err := b.tree.own(path.Join("systemd", dir, name), ids.First); err != nil {
			return err
		}
	}
	return nil
}

func (b *v1) freezerState(id string) string { return path.Join("freezer", b.dir(id), "freezer.state") }

func (b *v1) freeze(ctx context.Context, id string, frozen bool) error {
	file, want := b.freezerState(id), "THAWED"
	if frozen {
		want = "FROZEN"
	}
	err := poll(ctx, patience, func() (bool, error) {
		// Written again while FREEZING: that is how the kernel takes in tasks that were
		// forked in the meantime.
		if err := b.tree.write(file, want); err != nil {
			return false, err
		}
		now, err := b.tree.read(file)
		return strings.TrimSpace(now) == want, err
	})
	if err != nil && frozen {
		_ = b.tree.write(file, "THAWED")
	}
	return err
}

// kill works on whatever hierarchies a process joined before its runtime died.
func (b *v1) kill(ctx context.Context, id string) error {
	err := b.tree.write(path.Join("unified", b.dir(id), "cgroup.kill"), "1")
	if err != nil && !absent(err) {
		return err
	}
	procs := func() ([]int, error) {
		seen := map[int]struct{}{}
		var out []int
		for _, dir := range b.paths(id).all {
			pids, err := b.tree.procs(ctx, dir)
			if err != nil {
				return nil, err
			}
			for _, pid := range pids {
				if _, ok := seen[pid]; !ok {
					seen[pid] = struct{}{}
					out = append(out, pid)
				}
			}
		}
		return out, nil
	}
	state := func(value string) func() error {
		return func() error {
			if err := b.tree.write(b.freezerState(id), value); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
			return nil
		}
	}
	return killAll(ctx, procs, "/"+b.dir(id), state("FROZEN"), state("THAWED"))
}

func (b *v1) usage(id, device string) (vserver.Usage, error) {
	dir := b.dir(id)
	cpu, err := b.tree.read(path.Join("cpuacct", dir, "cpuacct.usage"))
	if err != nil {
		return vserver.Usage{}, err
	}
	get := func(hierarchy, file string) string { return b.tree.readOr(path.Join(hierarchy, dir, file)) }
	memory := flat(get("memory", "memory.stat"))
	cache := memory["total_inactive_file"] + memory["total_active_file"]
	io := pick(ioStatV1(get("blkio", "blkio.throttle.io_service_bytes_recursive"), get("blkio", "blkio.throttle.io_serviced_recursive")), device)
	return vserver.Usage{
		CPU:          time.Duration(max(0, single(cpu))),
		Throttled:    time.Duration(flat(get("cpu", "cpu.stat"))["throttled_time"]),
		MemoryUsed:   max(0, single(get("memory", "memory.usage_in_bytes"))-cache),
		MemoryCache:  cache,
		SwapUsed:     memory["total_swap"],
		OOMKills:     flat(get("memory", "memory.oom_control"))["oom_kill"],
		Tasks:        max(0, single(get("pids", "pids.current"))),
		ReadBytes:    io.readBytes,
		WriteBytes:   io.writeBytes,
		ReadOps:      io.readOps,
		WriteOps:     io.writeOps,
		PressureCPU:  some10(get("unified", "cpu.pressure")),
		PressureMem:  some10(get("unified", "memory.pressure")),
		PressureDisk: some10(get("unified", "io.pressure")),
	}, nil
}

func (b *v1) info(id string) vserver.GroupInfo {
	return vserver.GroupInfo{
		ID:     id,
		Frozen: strings.TrimSpace(b.tree.readOr(b.freezerState(id))) == "FROZEN",
		Tasks:  int(max(0, single(b.tree.readOr(path.Join("pids", b.dir(id), "pids.current"))))),
	}
}

var pageSize = unix.Getpagesize()
