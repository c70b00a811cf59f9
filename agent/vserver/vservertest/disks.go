package vservertest

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
	"github.com/reflejo/terraform-provider-reflejo/agent/image"
	"github.com/reflejo/terraform-provider-reflejo/agent/vserver"
)

var (
	_ vserver.Disks = (*Disks)(nil)
	_ image.Bases   = (*Bases)(nil)
)

const (
	// defaultBaseSize is what a base disk that asks for no size gets.
	defaultBaseSize = 10 << 30
	// leastUnit is what the smallest disk of an image is rounded up to.
	leastUnit = 64 << 20
)

// Pool is an in-memory pool: the state that a Disks and its Bases share. Root directories
// are real folders, so that what is written to a disk can be read back; sizes are numbers.
// The zero value is not ready, use NewPool.
type Pool struct {
	mu       sync.Mutex
	dir      string
	capacity int64 // 0 means without limit
	disks    map[string]*fakeDisk
	bases    map[string]int64 // smallest disk of each
	partial  map[string]bool
	fail     map[string]error
	minor    uint32
}

type fakeDisk struct {
	image    string
	size     int64
	attached bool
	ids      vserver.IDRange
	minor    uint32
}

// Disks is the pool as vserver.Disks.
type Disks struct{ *Pool }

// Bases is the pool as image.Bases.
type Bases struct{ *Pool }

// NewPool makes an empty pool whose disks' files are kept in dir. A capacity in bytes
// above 0 bounds the sum of the disks' sizes: more is fault.Exhausted.
func NewPool(dir string, capacity int64) *Pool {
	return &Pool{dir: dir, capacity: capacity, disks: map[string]*fakeDisk{}, bases: map[string]int64{}, partial: map[string]bool{}, fail: map[string]error{}}
}

// Disks returns the pool's disks.
func (p *Pool) Disks() *Disks { return &Disks{p} }

// Bases returns the pool's base disks.
func (p *Pool) Bases() *Bases { return &Bases{p} }

// Fail makes the named operation ("create", "attach", "grow", "detach", "remove", "list",
// "build") return err until it is called again with nil.
func (p *Pool) Fail(operation string, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err == nil {
		delete(p.fail, operation)
		return
	}
	p.fail[operation] = err
}

// LeavePartial makes a base disk appear that a killed build left.
func (p *Pool) LeavePartial(image string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.partial[image] = true
}

// View hands a disk's folder and size to look at. Nothing changes in the pool meanwhile.
func (p *Pool) View(id string, look func(root string, size int64, attached bool) error) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	d, err := p.find(id)
	if err != nil {
		return err
	}
	return look(p.path("disks", id), d.size, d.attached)
}

// Replace makes a disk with what fill puts into its folder, in place of the one that is
// there. An attached one is fault.Precondition.
func (p *Pool) Replace(id string, size int64, fill func(root string) error) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	d, more := fakeDisk{size: size}, size
	if have := p.disks[id]; have != nil {
		if have.attached {
			return fault.New(fault.Precondition, "disk %s is attached", id)
		}
		d.image, more = have.image, size-have.size
	}
	if err := p.room(more); err != nil {
		return err
	}
	root := p.path("disks", id)
	if err := os.RemoveAll(root); err != nil {
		return fmt.Errorf("replace disk %s: %w", id, err)
	}
	if err := os.MkdirAll(root, 0o755); err != nil {
		return fmt.Errorf("replace disk %s: %w", id, err)
	}
	if err := fill(root); err != nil {
		return fmt.Errorf("replace disk %s: %w", id, err)
	}
	p.disks[id] = &d
	return nil
}

// String lists base disks and disks as an operator would see them.
func (p *Pool) String() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	var b strings.Builder
	for _, id := range slices.Sorted(maps.Keys(p.bases)) {
		fmt.Fprintf(&b, "base %s for disks from %d\n", id, p.bases[id])
	}
	for _, id := range slices.Sorted(maps.Keys(p.partial)) {
		fmt.Fprintf(&b, "base %s incomplete\n", id)
	}
	for _, id := range slices.Sorted(maps.Keys(p.disks)) {
		d := p.disks[id]
		fmt.Fprintf(&b, "disk %s of %s size %d", id, d.image, d.size)
		if d.attached {
			fmt.Fprintf(&b, " on /dev/loop%d ids %d+%d", d.minor, d.ids.First, d.ids.Size)
		}
		b.WriteByte('\n')
	}
	return b.String()
}

func (p *Pool) begin(ctx context.Context, operation string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	return p.fail[operation]
}

func (p *Pool) room(more int64) error {
	if p.capacity == 0 {
		return nil
	}
	free := p.capacity
	for _, d := range p.disks {
		free -= d.size
	}
	if more > free {
		return fault.New(fault.Exhausted, "pool is full: asked %d bytes, free %d bytes", more, free)
	}
	return nil
}

func (p *Pool) path(kind, id string) string {
	return filepath.Join(p.dir, kind, strings.ReplaceAll(id, ":", "-"))
}

// Create implements vserver.Disks.
func (d *Disks) Create(ctx context.Context, id, image string, size int64) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := errors.Join(d.begin(ctx, "create"), checkID(id)); err != nil {
		return err
	}
	if have := d.disks[id]; have != nil {
		if size <= have.size {
			return nil
		}
		return d.grow(have, size)
	}
	least, ok := d.bases[image]
	if !ok {
		return fault.New(fault.NotFound, "create disk %s: image %s has no base disk", id, image)
	}
	if size < least {
		return fault.Field("disk.size", "create disk %s: asked %d bytes, the image needs at least %d", id, size, least)
	}
	if err := d.room(size); err != nil {
		return err
	}
	if err := os.CopyFS(d.path("disks", id), os.DirFS(d.path("bases", image))); err != nil {
		return fmt.Errorf("create disk %s: %w", id, err)
	}
	d.disks[id] = &fakeDisk{image: image, size: size}
	return nil
}

// Attach implements vserver.Disks.
func (d *Disks) Attach(ctx context.Context, id string, ids vserver.IDRange) (vserver.Attachment, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := errors.Join(d.begin(ctx, "attach"), checkID(id)); err != nil {
		return vserver.Attachment{}, err
	}
	if ids.First == 0 || ids.Size == 0 || uint64(ids.First)+uint64(ids.Size) > 1<<32-1 {
		return vserver.Attachment{}, fault.New(fault.Invalid, "id range of %d from %d is not a range of unprivileged ids", ids.Size, ids.First)
	}
	have, err := d.find(id)
	if err != nil {
		return vserver.Attachment{}, err
	}
	if !have.attached {
		have.attached, have.minor = true, d.minor
		d.minor++
	}
	have.ids = ids
	return d.attachment(id, have), nil
}

func (p *Pool) attachment(id string, d *fakeDisk) vserver.Attachment {
	return vserver.Attachment{Root: p.path("disks", id), Rootfs: p.path("disks", id), Major: 7, Minor: d.minor}
}

func (p *Pool) find(id string) (*fakeDisk, error) {
	d := p.disks[id]
	if d == nil {
		return nil, fault.New(fault.NotFound, "open disk %s: there is none", id)
	}
	return d, nil
}

// Grow implements vserver.Disks.
func (d *Disks) Grow(ctx context.Context, id string, size int64) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := errors.Join(d.begin(ctx, "grow"), checkID(id)); err != nil {
		return err
	}
	have, err := d.find(id)
	if err != nil {
		return err
	}
	return d.grow(have, size)
}

func (p *Pool) grow(d *fakeDisk, size int64) error {
	if size < d.size {
		return fault.Field("disk.size", "disk has %d bytes and cannot shrink to %d", d.size, size)
	}
	if err := p.room(size - d.size); err != nil {
		return err
	}
	d.size = size
	return nil
}

// Detach implements vserver.Disks.
func (d *Disks) Detach(ctx context.Context, id string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := errors.Join(d.begin(ctx, "detach"), checkID(id)); err != nil {
		return err
	}
	if have := d.disks[id]; have != nil {
		have.attached = false
	}
	return nil
}

// Remove implements vserver.Disks.
func (d *Disks) Remove(ctx context.Context, id string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := errors.Join(d.begin(ctx, "remove"), checkID(id)); err != nil {
		return err
	}
	delete(d.disks, id)
	return os.RemoveAll(d.path("disks", id))
}

// List implements vserver.Disks.
func (d *Disks) List(ctx context.Context) ([]vserver.DiskInfo, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.begin(ctx, "list"); err != nil {
		return nil, err
	}
	var all []vserver.DiskInfo
	for _, id := range slices.Sorted(maps.Keys(d.disks)) {
		have := d.disks[id]
		info := vserver.DiskInfo{ID: id, Size: have.size, Attached: have.attached}
		if have.attached {
			info.Attachment = d.attachment(id, have)
		}
		all = append(all, info)
	}
	return all, nil
}

// Build implements image.Bases.
func (b *Bases) Build(ctx context.Context, id string, size int64, fill func(root string) error) error {
	b.mu.Lock()
	err := errors.Join(b.begin(ctx, "build"), checkImage(id))
	_, have := b.bases[id]
	b.mu.Unlock()
	if err != nil || have {
		return err
	}
	if size == 0 {
		size = defaultBaseSize
	}
	root := b.path("bases", id)
	if err := os.MkdirAll(root, 0o755); err != nil {
		return fmt.Errorf("build base disk of %s: %w", id, err)
	}
	if err := fill(root); err != nil {
		return errors.Join(fmt.Errorf("build base disk of %s: %w", id, err), os.RemoveAll(root))
	}
	content, err := bytesBelow(root)
	if err != nil {
		return fmt.Errorf("build base disk of %s: %w", id, err)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.bases[id] = min((content+content/8)/leastUnit*leastUnit+leastUnit, size)
	delete(b.partial, id)
	return nil
}

// bytesBelow sums the sizes of all files below dir.
func bytesBelow(dir string) (sum int64, err error) {
	err = filepath.WalkDir(dir, func(_ string, e os.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return err
		}
		info, err := e.Info()
		if err == nil {
			sum += info.Size()
		}
		return err
	})
	return sum, err
}

// Remove implements image.Bases.
func (b *Bases) Remove(ctx context.Context, id string) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if err := errors.Join(b.begin(ctx, "remove"), checkImage(id)); err != nil {
		return err
	}
	delete(b.bases, id)
	delete(b.partial, id)
	return os.RemoveAll(b.path("bases", id))
}

// List implements image.Bases.
func (b *Bases) List(ctx context.Context) ([]image.Base, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if err := b.begin(ctx, "list"); err != nil {
		return nil, err
	}
	var all []image.Base
	for _, id := range slices.Sorted(maps.Keys(b.bases)) {
		all = append(all, image.Base{ID: id, Size: b.bases[id], Complete: true})
	}
	for _, id := range slices.Sorted(maps.Keys(b.partial)) {
		all = append(all, image.Base{ID: id})
	}
	return all, nil
}

func checkID(id string) error {
	if len(id) != 36 || strings.Trim(id, "0123456789abcdef-") != "" {
		return fault.Field("id", "server id %q is not a UUID in lower case", id)
	}
	return nil
}

func checkImage(id string) error {
	if hex, ok := strings.CutPrefix(id, "sha256:"); !ok || len(hex) != 64 || strings.Trim(hex, "0123456789abcdef") != "" {
		return fault.Field("image", "image id %q is not sha256: and 64 hexadecimal digits", id)
	}
	return nil
}
