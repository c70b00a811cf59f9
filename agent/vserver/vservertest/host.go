package vservertest

import (
	"context"
	"encoding/json"
	"errors"
	"maps"
	"net/netip"
	"slices"
	"sync"

	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
	"github.com/reflejo/terraform-provider-reflejo/agent/vserver"
)

// Host is a whole host in memory: every edge, joined as the kernel joins them (killing a
// group ends the server that runs in it), with records that survive an agent and an image.
type Host struct {
	Pool     *Pool
	Limits   *Limits
	Networks *Networks
	Runtime  *Runtime
	Records  *Records

	mu      sync.Mutex
	failing map[vserver.Step]error
	holding map[vserver.Step]chan struct{}
	done    []string
}

// Image is the one image that a Host has.
const Image = "sha256:1111111111111111111111111111111111111111111111111111111111111111"

// NewHost makes an empty host whose disks' files are kept in dir.
func NewHost(dir string) *Host {
	h := &Host{Pool: NewPool(dir, 0), Limits: NewLimits(), Networks: NewNetworks(), Runtime: NewRuntime(),
		Records: NewRecords(), failing: map[vserver.Step]error{}, holding: map[vserver.Step]chan struct{}{}}
	if err := h.Pool.Bases().Build(context.Background(), Image, 1<<30, func(string) error { return nil }); err != nil {
		panic(err)
	}
	return h
}

// Fail makes a step return err until it is called again with nil.
func (h *Host) Fail(s vserver.Step, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.failing, s)
	if err != nil {
		h.failing[s] = err
	}
}

// Hold makes a step wait until the returned function is called, or its context ends.
func (h *Host) Hold(s vserver.Step) (release func()) {
	h.mu.Lock()
	defer h.mu.Unlock()
	ch := make(chan struct{})
	h.holding[s] = ch
	return sync.OnceFunc(func() {
		h.mu.Lock()
		delete(h.holding, s)
		h.mu.Unlock()
		close(ch)
	})
}

// Done lists the steps taken since the last call, as "step id".
func (h *Host) Done() []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	d := h.done
	h.done = nil
	return d
}

func (h *Host) take(ctx context.Context, s vserver.Step, id string) error {
	h.mu.Lock()
	err, hold := h.failing[s], h.holding[s]
	h.done = append(h.done, string(s)+" "+id)
	h.mu.Unlock()
	if hold != nil {
		select {
		case <-hold:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return errors.Join(err, ctx.Err())
}

// Config is a manager's configuration on this host, with room for four cores, 8 GiB of
// memory and 100 GiB of disk, and one network, 10.0.0.0/24.
func (h *Host) Config() vserver.Config {
	return vserver.Config{
		Host: "alpha", Records: h.Records, Segments: OneSegment{}, Images: OneImage{},
		Edges: vserver.Edges{Disks: hostDisks{h, h.Pool.Disks()}, Limits: hostLimits{h, h.Limits},
			Networks: hostNetworks{h, h.Networks}, Runtime: hostRuntime{h, h.Runtime}, Preparer: hostPreparer{h}},
		Capacity: func() vserver.Capacity {
			return vserver.Capacity{MilliCores: 4000, Cores: []int{0, 1, 2, 3}, Memory: 8 << 30, Disk: 100 << 30}
		},
		IDs: vserver.IDRange{First: 1 << 20, Size: 16 * vserver.IDsPerServer},
	}
}

// PowerOff ends everything that runs: what a boot leaves are the disks and the records.
func (h *Host) PowerOff(ctx context.Context) {
	for id := range h.Records.all() {
		h.Runtime.End(id)
		_ = h.Runtime.Delete(ctx, id)
		_ = h.Networks.Remove(ctx, id)
		_ = h.Limits.Remove(ctx, id)
		_ = h.Pool.Disks().Detach(ctx, id)
	}
}

type hostDisks struct {
	h *Host
	*Disks
}

func (d hostDisks) Create(ctx context.Context, id, image string, size int64) error {
	if err := d.h.take(ctx, vserver.StepDiskCreate, id); err != nil {
		return err
	}
	return d.Disks.Create(ctx, id, image, size)
}

func (d hostDisks) Attach(ctx context.Context, id string, ids vserver.IDRange) (vserver.Attachment, error) {
	if err := d.h.take(ctx, vserver.StepDiskAttach, id); err != nil {
		return vserver.Attachment{}, err
	}
	return d.Disks.Attach(ctx, id, ids)
}

func (d hostDisks) Grow(ctx context.Context, id string, size int64) error {
	if err := d.h.take(ctx, vserver.StepDiskGrow, id); err != nil {
		return err
	}
	return d.Disks.Grow(ctx, id, size)
}

func (d hostDisks) Detach(ctx context.Context, id string) error {
	if err := d.h.take(ctx, vserver.StepDiskDetach, id); err != nil {
		return err
	}
	return d.Disks.Detach(ctx, id)
}

func (d hostDisks) Remove(ctx context.Context, id string) error {
	if err := d.h.take(ctx, vserver.StepDiskRemove, id); err != nil {
		return err
	}
	return d.Disks.Remove(ctx, id)
}

type hostLimits struct {
	h *Host
	*Limits
}

func (l hostLimits) Set(ctx context.Context, id string, want vserver.LimitSet) error {
	if err := l.h.take(ctx, vserver.StepLimits, id); err != nil {
		return err
	}
	return l.Limits.Set(ctx, id, want)
}

func (l hostLimits) Freeze(ctx context.Context, id string, frozen bool) error {
	step := vserver.StepThaw
	if frozen {
		step = vserver.StepFreeze
	}
	if err := l.h.take(ctx, step, id); err != nil {
		return err
	}
	return l.Limits.Freeze(ctx, id, frozen)
}

func (l hostLimits) Kill(ctx context.Context, id string) error {
	if err := l.h.take(ctx, vserver.StepKill, id); err != nil {
		return err
	}
	l.h.Runtime.End(id)
	return l.Limits.Kill(ctx, id)
}

func (l hostLimits) Remove(ctx context.Context, id string) error {
	if err := l.h.take(ctx, vserver.StepLimitsRemove, id); err != nil {
		return err
	}
	return l.Limits.Remove(ctx, id)
}

type hostNetworks struct {
	h *Host
	*Networks
}

func (n hostNetworks) Set(ctx context.Context, want vserver.ServerNetwork) error {
	if err := n.h.take(ctx, vserver.StepNetwork, want.ID); err != nil {
		return err
	}
	for _, l := range want.NICs { // the test's one network is there when it is needed
		network := vserver.Network{ID: l.NetworkID, Name: "default", CIDR: oneCIDR, Gateway: oneCIDR.Addr().Next(), NAT: true}
		if err := n.SetNetwork(ctx, network); err != nil {
			return err
		}
	}
	return n.Networks.Set(ctx, want)
}

func (n hostNetworks) Remove(ctx context.Context, id string) error {
	if err := n.h.take(ctx, vserver.StepNetworkRemove, id); err != nil {
		return err
	}
	return n.Networks.Remove(ctx, id)
}

type hostRuntime struct {
	h *Host
	*Runtime
}

func (r hostRuntime) Create(ctx context.Context, c vserver.Container) (int, error) {
	if err := r.h.take(ctx, vserver.StepRunCreate, c.ID); err != nil {
		return 0, err
	}
	return r.Runtime.Create(ctx, c)
}

func (r hostRuntime) Start(ctx context.Context, id string) error {
	if err := r.h.take(ctx, vserver.StepRunStart, id); err != nil {
		return err
	}
	return r.Runtime.Start(ctx, id)
}

func (r hostRuntime) Stop(ctx context.Context, id string) error {
	if err := r.h.take(ctx, vserver.StepShutdown, id); err != nil {
		return err
	}
	return r.Runtime.Stop(ctx, id)
}

func (r hostRuntime) Delete(ctx context.Context, id string) error {
	if err := r.h.take(ctx, vserver.StepRunDelete, id); err != nil {
		return err
	}
	return r.Runtime.Delete(ctx, id)
}

type hostPreparer struct{ h *Host }

func (p hostPreparer) Prepare(ctx context.Context, root string, want vserver.Preparation) error {
	if err := p.h.take(ctx, vserver.StepPrepare, want.ID); err != nil {
		return err
	}
	return p.h.Runtime.Prepare(ctx, root, want)
}

// Records is a store's bucket in memory. It keeps JSON, as the real one does.
type Records struct {
	mu   sync.Mutex
	rows map[string][]byte
	fail error
}

// NewRecords is an empty bucket.
func NewRecords() *Records { return &Records{rows: map[string][]byte{}} }

// Fail makes every write return err until it is called again with nil.
func (r *Records) Fail(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.fail = err
}

// Put implements vserver.Records.
func (r *Records) Put(key string, v any) error {
	text, err := json.Marshal(v)
	r.mu.Lock()
	defer r.mu.Unlock()
	if err = errors.Join(err, r.fail); err == nil {
		r.rows[key] = text
	}
	return err
}

// Delete implements vserver.Records.
func (r *Records) Delete(key string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.fail == nil {
		delete(r.rows, key)
	}
	return r.fail
}

// ForEach implements vserver.Records.
func (r *Records) ForEach(f func(key string, value []byte) error) error {
	rows := r.all()
	for _, key := range slices.Sorted(maps.Keys(rows)) {
		if err := f(key, rows[key]); err != nil {
			return err
		}
	}
	return nil
}

func (r *Records) all() map[string][]byte {
	r.mu.Lock()
	defer r.mu.Unlock()
	return maps.Clone(r.rows)
}

// OneImage knows Image, also as "tiny".
type OneImage struct{}

// Find implements vserver.Images.
func (OneImage) Find(idOrName string) (vserver.Image, error) {
	if idOrName != Image && idOrName != "tiny" {
		return vserver.Image{}, fault.New(fault.NotFound, "image %q: there is none", idOrName)
	}
	return vserver.Image{ID: Image, Size: 1 << 30}, nil
}

var (
	oneCIDR    = netip.MustParsePrefix("10.0.0.0/24")
	oneSegment = vserver.Segment{ID: "99999999-0000-0000-0000-000000000001", CIDR: oneCIDR, Gateway: oneCIDR.Addr().Next()}
)

// OneSegment knows the host's default network only.
type OneSegment struct{}

// Lookup implements vserver.Segments.
func (OneSegment) Lookup(idOrName string) (vserver.Segment, error) {
	if idOrName != "" && idOrName != oneSegment.ID && idOrName != "default" {
		return vserver.Segment{}, fault.New(fault.NotFound, "network %q: there is none", idOrName)
	}
	return oneSegment, nil
}

// Allocate implements vserver.Segments.
func (OneSegment) Allocate(_, _ string, want netip.Addr, used map[netip.Addr]bool) (netip.Addr, error) {
	if want.IsValid() {
		if used[want] || !oneCIDR.Contains(want) {
			return netip.Addr{}, fault.New(fault.Exists, "address %s is taken", want)
		}
		return want, nil
	}
	for a := oneSegment.Gateway.Next(); oneCIDR.Contains(a); a = a.Next() {
		if !used[a] {
			return a, nil
		}
	}
	return netip.Addr{}, fault.New(fault.Exhausted, "no address left")
}
