// Package servicetest is a host without a kernel behind it, and the real service over it:
// for tests of the API, of its clients and of the command line.
//
//	site := servicetest.Start(t, servicetest.NewHost("alpha"))
//	client := site.Client(t, pki.RoleOperator)
package servicetest

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
	"github.com/reflejo/terraform-provider-reflejo/agent/image"
	"github.com/reflejo/terraform-provider-reflejo/agent/network"
	"github.com/reflejo/terraform-provider-reflejo/agent/service"
	"github.com/reflejo/terraform-provider-reflejo/agent/vserver"
)

// Began is when everything of a Host was made, so that outputs can be compared.
var Began = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

// Host keeps servers, images and networks in memory. Operations on servers end at once,
// unless Hold is called. It is safe for several goroutines.
type Host struct {
	Copies *Copies // its snapshots and backups

	name    string
	network *Network

	mu       sync.Mutex
	tickets  map[string]string // → server
	refusing string
	servers  map[string]vserver.View
	images   map[string]image.Info
	networks map[string]network.View
	watchers map[chan vserver.View]string
	held     bool
	failing  string
	panics   bool
	log      bytes.Buffer
	sizes    [][2]uint16
}

// NewHost is an empty host.
func NewHost(name string) *Host {
	h := &Host{
		name: name, servers: map[string]vserver.View{}, images: map[string]image.Info{},
		networks: map[string]network.View{}, watchers: map[chan vserver.View]string{}, tickets: map[string]string{},
	}
	h.Copies = NewCopies(name, nil, h.Get, func() time.Time { return Began })
	Join(h)
	return h
}

// Hold keeps operations that begin from now on under way until Release.
func (h *Host) Hold() { h.mu.Lock(); h.held = true; h.mu.Unlock() }

// FailNext makes the operations that begin from now on fail with a text; "" ends that.
func (h *Host) FailNext(text string) { h.mu.Lock(); h.failing = text; h.mu.Unlock() }

// PanicNext makes every look at a server panic.
func (h *Host) PanicNext() { h.mu.Lock(); h.panics = true; h.mu.Unlock() }

// Release ends all held operations.
func (h *Host) Release() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.held = false
	for id, v := range h.servers {
		if !v.Operation.Settled() {
			h.finish(id, v)
		}
	}
}

// Print adds to what every console printed.
func (h *Host) Print(text string) { h.mu.Lock(); h.log.WriteString(text); h.mu.Unlock() }

// Sizes are the window sizes that consoles were told.
func (h *Host) Sizes() [][2]uint16 { h.mu.Lock(); defer h.mu.Unlock(); return slices.Clone(h.sizes) }

// Watchers counts the watches that are open.
func (h *Host) Watchers() int { h.mu.Lock(); defer h.mu.Unlock(); return len(h.watchers) }

// begin starts an operation whose result is the view with this state. h.mu is held.
func (h *Host) begin(v vserver.View, kind string, state vserver.State) vserver.View {
	v.Operation = vserver.Operation{Kind: kind, Step: "disk.create", Index: 1, Steps: 2, Started: Began}
	h.set(v)
	v.State = state
	if h.held {
		h.servers[v.Spec.ID] = v // as it will be; shown only when it is over
		return v
	}
	return h.finish(v.Spec.ID, v)
}

func (h *Host) finish(id string, v vserver.View) vserver.View {
	kind := v.Operation.Kind
	v.Operation = vserver.Operation{}
	switch {
	case h.failing != "":
		v.State = vserver.StateFailed
		v.Operation = vserver.Operation{Kind: kind, Err: h.failing, ErrKind: fault.Internal.String(), Done: true, Started: Began}
	case kind == "migrate":
		v.Gone = true
		h.network.hosts[v.MovedTo].arrive(v, h) // before it is seen to have gone
	case kind == "delete":
		v.Gone = true
	}
	h.set(v)
	if v.Gone {
		delete(h.servers, id)
	}
	return v
}

// set stores a view and tells the watchers.
func (h *Host) set(v vserver.View) {
	h.servers[v.Spec.ID] = v
	for ch, id := range h.watchers {
		if id == v.Spec.ID {
			select {
			case <-ch:
			default:
			}
			ch <- v
		}
	}
}

// Create implements service.Servers.
func (h *Host) Create(_ context.Context, spec vserver.Spec) (vserver.View, error) {
	spec = spec.WithDefaults()
	if err := spec.Validate(); err != nil {
		return vserver.View{}, err
	}
	i, err := h.imageOf(spec.Image)
	if err != nil {
		return vserver.View{}, &fault.Error{Kind: fault.NotFound, Field: "image", Err: err}
	}
	spec.Image = i.ID
	spec.FirstBoot.UserData = ""
	h.mu.Lock()
	defer h.mu.Unlock()
	if v, ok := h.servers[spec.ID]; ok {
		return v, nil
	}
	v := vserver.View{Spec: spec, State: vserver.StateCreating, Created: Began, Started: Began, Generation: 1, DiskUsed: 3 << 20}
	v.NICs = map[string]vserver.NICView{"eth0": {Address: fmt.Sprintf("10.90.0.%d/16", len(h.servers)+2), MAC: "02:00:00:00:00:01", NetworkID: "default"}}
	return h.begin(v, "create", vserver.StateRunning), nil
}

// Update implements service.Servers.
func (h *Host) Update(_ context.Context, spec vserver.Spec) (vserver.View, error) {
	v, err := h.Get(spec.ID)
	if err != nil {
		return v, err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	v.Spec, v.Generation = spec.WithDefaults(), v.Generation+1
	return h.begin(v, "update", v.State), nil
}

// SetPower implements service.Servers.
func (h *Host) SetPower(_ context.Context, idOrName string, a vserver.PowerAction, _ time.Duration) (vserver.View, error) {
	v, err := h.Get(idOrName)
	if err != nil {
		return v, err
	}
	states := map[vserver.PowerAction]vserver.State{
		vserver.ActionStop: vserver.StateStopped, vserver.ActionKill: vserver.StateStopped, vserver.ActionSuspend: vserver.StateSuspended,
	}
	state, ok := states[a]
	if !ok {
		state = vserver.StateRunning
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.begin(v, string(a), state), nil
}

// Delete implements service.Servers.
func (h *Host) Delete(_ context.Context, idOrName string) error {
	v, err := h.Get(idOrName)
	if err != nil {
		return err
	}
	if v.Spec.DeletionProtection {
		return fault.New(fault.Precondition, "delete server %s: deletion_protection is set", v.Spec.Name)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.begin(v, "delete", vserver.StateDeleting)
	return nil
}

// Get implements service.Views.
func (h *Host) Get(idOrName string) (vserver.View, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.panics {
		panic("a bug")
	}
	for id, v := range h.servers {
		if id == idOrName || v.Spec.Name == idOrName {
			return v, nil
		}
	}
	return vserver.View{}, fault.New(fault.NotFound, "server %q: host %s has none of this id or name", idOrName, h.name)
}

// List implements service.Views.
func (h *Host) List() []vserver.View {
	h.mu.Lock()
	defer h.mu.Unlock()
	var all []vserver.View
	for _, v := range h.servers {
		all = append(all, v)
	}
	slices.SortFunc(all, func(a, b vserver.View) int { return strings.Compare(a.Spec.Name, b.Spec.Name) })
	return all
}

// Watch implements service.Views.
func (h *Host) Watch(ctx context.Context, id string) (<-chan vserver.View, error) {
	v, err := h.Get(id)
	if err != nil {
		return nil, err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	ch := make(chan vserver.View, 1)
	ch <- v
	h.watchers[ch] = v.Spec.ID
	context.AfterFunc(ctx, func() { h.mu.Lock(); delete(h.watchers, ch); h.mu.Unlock() })
	return ch, nil
}

// Usage implements service.Views.
func (h *Host) Usage(_ context.Context, id string) (vserver.Usage, error) {
	v, err := h.Get(id)
	if err != nil || v.State != vserver.StateRunning {
		return vserver.Usage{}, fault.New(fault.Precondition, "server %s does not run", id)
	}
	return vserver.Usage{CPU: 90 * time.Second, MemoryUsed: 100 << 20, MemoryCache: 5 << 20, Tasks: 7, ReadBytes: 4096, WriteBytes: 8192}, nil
}

// LinkUsage implements metrics.Servers.
func (h *Host) LinkUsage(context.Context, string) (map[string]vserver.LinkUsage, error) {
	return nil, nil
}

// Resources implements service.Views.
func (h *Host) Resources() (capacity, promised, free vserver.Resources) {
	capacity = vserver.Resources{MilliCores: 3500, Memory: 8 << 30, Disk: 100 << 30}
	for _, v := range h.List() {
		promised.MilliCores += v.Spec.CPU.MilliCores
		promised.Memory += v.Spec.Memory.Max
		promised.Disk += v.Spec.Disk.Size
	}
	return capacity, promised, vserver.Resources{MilliCores: capacity.MilliCores - promised.MilliCores, Memory: capacity.Memory - promised.Memory, Disk: capacity.Disk - promised.Disk}
}

// Facts implements service.Host.
func (h *Host) Facts() service.Facts {
	return service.Facts{Name: h.name, Version: "1.2.3", Kernel: "6.1.0", CgroupMode: "unified", Architecture: "amd64", Started: Began, UnderlayAddress: "198.18.0.11", Endpoint: ":7444"}
}

// Pool implements service.Host.
func (h *Host) Pool(context.Context) (service.Pool, error) {
	return service.Pool{Path: "/pool", FileSystem: "xfs", Embedded: true, Size: 100 << 30, Used: 7 << 30}, nil
}

// Conditions implements service.Host.
func (h *Host) Conditions(context.Context) []service.Condition {
	return []service.Condition{{Type: "PoolIsAFile", Severity: service.SeverityInfo, Message: "The pool is a file.", Since: Began}}
}

// Networks is the host's networks; they have methods of the same names as servers.
func (h *Host) Networks() service.Networks { return networks{h} }

type networks struct{ h *Host }

func (n networks) Put(_ context.Context, d network.Definition) (network.View, error) {
	if err := d.Validate(); err != nil {
		return network.View{}, err
	}
	n.h.mu.Lock()
	defer n.h.mu.Unlock()
	v := network.View{Definition: d, Gateway: d.CIDR.Addr().Next(), VNI: 77, MTU: 1450, FreeAddresses: 250, Created: Began}
	n.h.networks[d.ID] = v
	return v, nil
}

func (n networks) Get(idOrName string) (network.View, error) {
	for _, v := range n.List() {
		if v.ID == idOrName || v.Name == idOrName {
			return v, nil
		}
	}
	return network.View{}, fault.New(fault.NotFound, "network %q: there is none", idOrName)
}

func (n networks) List() []network.View {
	n.h.mu.Lock()
	defer n.h.mu.Unlock()
	all := []network.View{{
		Definition: network.Definition{ID: "default", Name: network.DefaultName, CIDR: netip.MustParsePrefix("10.90.0.0/16"), NAT: true},
		Gateway:    netip.MustParseAddr("10.90.0.1"), MTU: 1500, FreeAddresses: 65000, Created: Began, Default: true,
	}}
	for _, v := range n.h.networks {
		all = append(all, v)
	}
	slices.SortFunc(all, func(a, b network.View) int { return strings.Compare(a.Name, b.Name) })
	return all
}

func (n networks) Delete(_ context.Context, idOrName string) error {
	v, err := n.Get(idOrName)
	if err != nil {
		return err
	}
	n.h.mu.Lock()
	defer n.h.mu.Unlock()
	delete(n.h.networks, v.ID)
	return nil
}

// ConsoleLog implements vserver.Commands.
func (h *Host) ConsoleLog(context.Context, string) (io.ReadCloser, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return io.NopCloser(strings.NewReader(h.log.String())), nil
}

// TailConsoleLog implements service.Consoles.
func (h *Host) TailConsoleLog(context.Context, string) (io.ReadCloser, error) {
	return io.NopCloser(&tail{h: h}), nil
}

type tail struct {
	h    *Host
	read int
}

func (t *tail) Read(p []byte) (int, error) {
	t.h.mu.Lock()
	defer t.h.mu.Unlock()
	n := copy(p, t.h.log.Bytes()[t.read:])
	t.read += n
	if n == 0 {
		return 0, io.EOF
	}
	return n, nil
}

// ResizeConsole implements service.Consoles.
func (h *Host) ResizeConsole(_ context.Context, _ string, rows, columns uint16) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.sizes = append(h.sizes, [2]uint16{rows, columns})
	return nil
}
