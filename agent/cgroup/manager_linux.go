package cgroup

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path"
	"slices"
	"strconv"
	"sync"

	"github.com/containerd/cgroups/v3"
	"github.com/reflejo/terraform-provider-reflejo/agent/cpuset"
	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
	"github.com/reflejo/terraform-provider-reflejo/agent/vserver"
)

// Manager keeps the groups of one agent's servers. Calls for different servers may run
// at once; for one server, one changing call at a time.
type Manager struct {
	cfg  Config
	tree tree
	kind backend

	mu      sync.Mutex
	devices map[string]string // server → "major:minor" of its last Set
}

var _ vserver.Limits = (*Manager)(nil)

// backend is one of the two kernel interfaces.
type backend interface {
	// set makes the group exist with these limits; pin is canonical.
	set(ctx context.Context, id string, want vserver.LimitSet, pin cpuset.Set) error
	// freeze stops or continues the group and waits for it.
	freeze(ctx context.Context, id string, frozen bool) error
	// kill ends every task of the group and thaws it.
	kill(ctx context.Context, id string) error
	// usage reads the counters; device is "" where the server's is not known.
	usage(id, device string) (vserver.Usage, error)
	// info describes the group, as far as it exists.
	info(id string) vserver.GroupInfo
	// paths names the group's directories.
	paths(id string) paths
}

// paths are a group's directories, relative to the tree.
type paths struct {
	runtime string   // absolute within every hierarchy: the OCI cgroupsPath
	joined  []string // whose cgroup.procs puts a process into the group
	all     []string // everything that goes when the group goes
}

// Open detects the kernel's interface and makes the group of all servers.
// fault.Unavailable says which controller or hierarchy the host lacks.
func Open(cfg Config) (*Manager, error) {
	if err := cfg.Validate(); err != nil {
		return nil, fault.Wrap(fault.Invalid, err)
	}
	v2 := cfg.Root != "" && cfg.Root != defaultRoot || cgroups.Mode() == cgroups.Unified
	cfg = cfg.withDefaults()
	m := &Manager{cfg: cfg, tree: tree(cfg.Root), devices: map[string]string{}}
	var err error
	if v2 {
		m.kind, err = openV2(cfg, m.tree)
	} else {
		m.kind, err = openV1(cfg, m.tree)
	}
	if err != nil {
		return nil, fmt.Errorf("open cgroups: %w", err)
	}
	return m, nil
}

// Unified reports whether the host is on cgroup v2, where I/O rates bind buffered writes
// and memory is guaranteed by the kernel.
func (m *Manager) Unified() bool { _, ok := m.kind.(*v2); return ok }

// Path is what belongs into the OCI specification's linux.cgroupsPath (cgroupfs driver).
// The runtime joins the group that Set made; it may remove it with the container (on v1
// that includes the limits), so Set comes before every creation by the runtime.
func (m *Manager) Path(id string) string { return m.kind.paths(id).runtime }

// HostCPUs are the processors that servers may use.
func (m *Manager) HostCPUs() (cpuset.Set, error) {
	for _, file := range []string{"cpuset/cpuset.effective_cpus", "cpuset/cpuset.cpus", "cpuset.cpus.effective"} {
		if content, err := m.tree.read(file); err == nil {
			return cpuset.Parse(content)
		}
	}
	b, err := os.ReadFile("/sys/devices/system/cpu/online")
	if err != nil {
		return nil, fmt.Errorf("read the host's processors: %w", err)
	}
	return cpuset.Parse(string(b))
}

// Set implements vserver.Limits.
func (m *Manager) Set(ctx context.Context, id string, want vserver.LimitSet) error {
	if err := checkID(id); err != nil {
		return err
	}
	host, err := m.HostCPUs()
	if err != nil {
		return err
	}
	pin, err := check(want, host)
	if err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("set limits of server %s: %w", id, err)
	}
	err = m.kind.set(ctx, id, want, pin)
	if errors.Is(err, errMemoryBusy) {
		return m.busy(id, want.Memory)
	}
	if err != nil {
		return fmt.Errorf("set limits of server %s: %w", id, err)
	}
	m.mu.Lock()
	m.devices[id] = fmt.Sprintf("%d:%d", want.Major, want.Minor)
	m.mu.Unlock()
	return nil
}

// busy says how much memory is in the way of a lower limit.
func (m *Manager) busy(id string, want vserver.Memory) error {
	used, _ := m.kind.usage(id, "")
	return &fault.Error{Kind: fault.Precondition, Field: "memory.max", Err: fmt.Errorf(
		"lower memory of server %s to %d bytes (and %d of swap): %d bytes (and %d of swap) are in use and cannot be reclaimed; end programs in the server first or ask for more",
		id, want.Max, want.Swap, used.MemoryUsed, used.SwapUsed)}
}

// Freeze implements vserver.Limits. A group that does not freeze within 20 s (a task in
// an uninterruptible wait) continues, and the error is fault.Unavailable.
func (m *Manager) Freeze(ctx context.Context, id string, frozen bool) error {
	if err := m.exists(id); err != nil {
		return err
	}
	verb := "thaw"
	if frozen {
		verb = "freeze"
	}
	if err := m.kind.freeze(ctx, id, frozen); err != nil {
		return fmt.Errorf("%s server %s: %w", verb, id, err)
	}
	return nil
}

// Kill implements vserver.Limits. Tasks that the kernel does not let die within 20 s are
// fault.Unavailable. The group is left thawed. A group that does not exist is empty.
func (m *Manager) Kill(ctx context.Context, id string) error {
	if err := checkID(id); err != nil {
		return err
	}
	if err := m.kind.kill(ctx, id); err != nil {
		return fmt.Errorf("kill server %s: %w", id, err)
	}
	return nil
}

// Usage implements vserver.Limits.
func (m *Manager) Usage(_ context.Context, id string) (vserver.Usage, error) {
	if err := m.exists(id); err != nil {
		return vserver.Usage{}, err
	}
	m.mu.Lock()
	device := m.devices[id]
	m.mu.Unlock()
	u, err := m.kind.usage(id, device)
	if errors.Is(err, fs.ErrNotExist) {
		return vserver.Usage{}, fault.Wrap(fault.NotFound, fmt.Errorf("read usage of server %s: %w", id, err))
	}
	if err != nil {
		return vserver.Usage{}, fmt.Errorf("read usage of server %s: %w", id, err)
	}
	return u, nil
}

// Remove implements vserver.Limits. Groups that the server made inside its own go too.
func (m *Manager) Remove(ctx context.Context, id string) error {
	if err := m.Kill(ctx, id); err != nil {
		return err
	}
	for _, dir := range m.kind.paths(id).all {
		if err := m.tree.remove(ctx, dir); err != nil {
			return fmt.Errorf("remove server %s: %w", id, err)
		}
	}
	m.mu.Lock()
	delete(m.devices, id)
	m.mu.Unlock()
	if b, ok := m.kind.(*v2); ok {
		return b.protect()
	}
	return nil
}

// List implements vserver.Limits. A server whose group exists in part is listed too.
func (m *Manager) List(context.Context) ([]vserver.GroupInfo, error) {
	ids, err := m.ids()
	if err != nil {
		return nil, fmt.Errorf("list groups: %w", err)
	}
	out := make([]vserver.GroupInfo, 0, len(ids))
	for _, id := range ids {
		out = append(out, m.kind.info(id))
	}
	return out, nil
}

func (m *Manager) ids() ([]string, error) {
	ids := map[string]struct{}{}
	for _, parent := range m.parents() {
		names, err := m.tree.subgroups(parent)
		if err != nil {
			return nil, err
		}
		for _, name := range names {
			if validID(name) {
				ids[name] = struct{}{}
			}
		}
	}
	return slices.Sorted(maps.Keys(ids)), nil
}

// parents are the directories of the group of all servers.
func (m *Manager) parents() []string {
	const any = "00000000-0000-0000-0000-000000000000"
	var out []string
	for _, dir := range m.kind.paths(any).all {
		out = append(out, path.Dir(dir))
	}
	return out
}

// Join puts a process of the host into the server's group: what is not started by the
// runtime but belongs to the server. A group that does not exist is fault.NotFound.
func (m *Manager) Join(id string, pid int) error {
	if err := m.exists(id); err != nil {
		return err
	}
	for _, dir := range m.kind.paths(id).joined {
		if err := m.tree.write(path.Join(dir, "cgroup.procs"), strconv.Itoa(pid)); err != nil {
			return fmt.Errorf("move process %d into server %s: %w", pid, id, err)
		}
	}
	return nil
}

// Destroy removes all servers' groups and the group that holds them: the host is as if
// we had never been there. The manager is of no use afterwards.
func (m *Manager) Destroy(ctx context.Context) error {
	ids, err := m.ids()
	if err != nil {
		return fmt.Errorf("remove all groups: %w", err)
	}
	for _, id := range ids {
		if err := m.Remove(ctx, id); err != nil {
			return err
		}
	}
	for _, parent := range m.parents() {
		if err := os.Remove(m.tree.path(parent)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("remove group of all servers: %w", err)
		}
	}
	for _, dir := range m.beside() {
		if err := os.Remove(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("remove group beside servers: %w", err)
		}
	}
	return nil
}

func (m *Manager) exists(id string) error {
	if err := checkID(id); err != nil {
		return err
	}
	for _, dir := range m.kind.paths(id).joined {
		if _, err := os.Lstat(m.tree.path(dir)); err != nil {
			return fault.New(fault.NotFound, "find group of server %s: %w", id, err)
		}
	}
	return nil
}
