package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"runtime"
	"slices"
	"time"

	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
	"github.com/reflejo/terraform-provider-reflejo/agent/units"
)

// Import makes an image from a source that this host can reach, under a name. progress may be nil; it is
// called on the caller's goroutine with the steps "reading", "downloading", "decompressing", "unpacking",
// "syncing" and bytes done and in total (0: unknown).
//
// Outcomes: the image is there already under this name, from this source: at once. fault.Exists: the name
// belongs to another source, or to content that checksum does not match. fault.Invalid: source, name or
// checksum are wrong, or what the source has cannot be an image for this host. fault.NotFound: the source has
// no such thing. fault.Precondition: the registry wants other credentials. fault.Unavailable: it cannot be
// reached. fault.Exhausted: a disk is full. fault.Aborted: another import under this name is under way, or
// the source changed while it was read. Whatever the error, nothing is left.
func (m *Manager) Import(ctx context.Context, name, source, checksum string, progress func(step string, done, total int64)) (Info, error) {
	src, err := parseSource(source, m.config.Insecure)
	if err != nil {
		return Info{}, err
	}
	if err := checkRequest(name, checksum); err != nil {
		return Info{}, err
	}
	key := name + "\x00" + source + "\x00" + checksum
	info, release, err := m.claim(name, source, checksum, key)
	if err != nil || release == nil {
		return info, err
	}
	defer release()
	info, err = m.imports.do(ctx, key, progress, func() work[Info] {
		return func(ctx context.Context, report Progress) (Info, error) {
			c, err := m.open(ctx, src, checksum, m.options(report))
			if err != nil {
				return Info{}, classify(err)
			}
			s := share(c)
			defer s.release()
			return m.adopt(ctx, s, name, source, checksum, report)
		}
	})
	if err != nil {
		return Info{}, fmt.Errorf("import image %q: %w", name, err)
	}
	return info, nil
}

// open finds out what a source is.
func (m *Manager) open(ctx context.Context, src source, checksum string, o options) (content, error) {
	if src.ref == nil {
		return openHost(ctx, m.config.Dirs, src.path, checksum != "", o)
	}
	r, err := newRegistry(src, m.config.Transport, m.config.Keychain, m.config.Limits)
	if err != nil {
		return nil, err
	}
	return r.resolve(ctx, o.arch)
}

// Upload makes an image from the tar that r sends: an OCI layout, `docker save`, or a root file system, plain
// or compressed. source is what the client calls it, size what it says r has (0: unknown). Where the image is
// there already r is not read. Outcomes otherwise as for Import; r ends with ctx.
func (m *Manager) Upload(ctx context.Context, name, source, checksum string, size int64, r io.Reader, progress func(step string, done, total int64)) (Info, error) {
	if progress == nil {
		progress = func(string, int64, int64) {}
	}
	if source == "" || len(source) > maxSource {
		return Info{}, fault.Field("source", "image source: want 1 … %d bytes", maxSource)
	}
	if err := checkRequest(name, checksum); err != nil {
		return Info{}, err
	}
	if limit := m.config.Limits.Download; size < 0 || size > limit {
		return Info{}, fault.New(fault.Invalid, "upload image %q: %d bytes, at most %s", name, size, units.FormatBytes(limit))
	}
	info, release, err := m.claim(name, source, checksum, "")
	if err != nil || release == nil {
		return info, err
	}
	defer release()
	info, err = m.upload(ctx, name, source, checksum, size, r, progress)
	if err != nil {
		return Info{}, fmt.Errorf("upload image %q: %w", name, classify(err))
	}
	return info, nil
}

func (m *Manager) upload(ctx context.Context, name, source, checksum string, size int64, r io.Reader, progress Progress) (Info, error) {
	var told int64
	f, got, err := spool(ctx, m.config.TempDir, r, "upload", m.config.Limits.Download, func(n int64) {
		if n-told >= 1<<20 {
			told = n
			progress("uploading", n, size)
		}
	})
	if err != nil {
		return Info{}, err
	}
	if size > 0 && got.n != size {
		f.Close()
		return Info{}, fault.New(fault.Invalid, "it ended after %d bytes of %d", got.n, size)
	}
	digest := func() (string, error) { return got.digest(), nil }
	c, err := openTar(ctx, tarFile{f, got.n, digest, true}, m.options(progress))
	if err != nil {
		return Info{}, err
	}
	s := share(c)
	defer s.release()
	return m.adopt(ctx, s, name, source, checksum, progress)
}

func checkRequest(name, checksum string) error {
	if !ValidName(name) {
		return invalidName(name)
	}
	if checksum != "" && !ValidID(checksum) {
		return fault.Field("checksum", "checksum %q: want sha256: and 64 lower-case hex digits", checksum)
	}
	return nil
}

// claim keeps the name for an import with this key ("": shared with no other). If the image is there
// already it is returned, and release is nil.
func (m *Manager) claim(name, source, checksum, key string) (info Info, release func(), err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if r, a, err := m.find(name); err == nil {
		if err := m.same(r, a, source, checksum); err != nil {
			return Info{}, nil, err
		}
		return r.info(a), nil, nil
	}
	c := m.claims[name]
	if c == nil {
		c = &claim{key: key}
		m.claims[name] = c
	} else if key == "" || c.key != key {
		return Info{}, nil, fault.New(fault.Aborted, "import image %q: another import under this name is under way", name)
	}
	c.users++
	return Info{}, func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		if c.users--; c.users == 0 {
			delete(m.claims, name)
		}
	}, nil
}

// same refuses a name that means something else already.
func (m *Manager) same(r record, a alias, source, checksum string) error {
	switch {
	case a.Source != source:
		return fault.New(fault.Exists, "import image %q from %s: the name belongs to the image from %s: choose another name, or delete that one", a.Name, source, a.Source)
	case checksum != "" && !slices.Contains(r.Digests, checksum):
		return fault.New(fault.Exists, "import image %q: checksum %s is asked, but it was imported before with %s: choose another name for the new content", a.Name, checksum, r.ID)
	}
	return nil
}

// adopt makes the content an image of this host, if it is none yet, and gives it the name.
func (m *Manager) adopt(ctx context.Context, c *shared, name, source, checksum string, report Progress) (Info, error) {
	what := c.about()
	if checksum != "" && !slices.Contains(what.digests, checksum) {
		return Info{}, fault.Field("checksum", "checksum %s is asked, but the source has %s", checksum, what.digests[0])
	}
	if err := m.enter(ctx, what.id); err != nil {
		return Info{}, err
	}
	built, err := m.builds.do(ctx, what.id, report, func() work[record] {
		c.retain()
		return func(ctx context.Context, report Progress) (record, error) {
			defer c.release()
			r, err := m.build(ctx, c, report)
			return r, classify(err)
		}
	})
	var info Info
	if err == nil {
		info, err = m.record(built, what.digests, alias{Name: name, Source: source, Checksum: checksum, Created: m.now()})
	}
	return info, errors.Join(err, m.leave(ctx, what.id))
}

// enter keeps deletions of the image away until leave, and finishes one that failed.
func (m *Manager) enter(ctx context.Context, id string) error {
	m.mu.Lock()
	r, ok := m.records[id]
	switch {
	case m.leaving[id]:
		m.mu.Unlock()
		return fault.New(fault.Aborted, "image %s is being deleted: try again", id)
	case ok && r.Deleting:
		m.leaving[id] = true
		m.mu.Unlock()
		if err := m.finishDelete(ctx, id); err != nil {
			return err
		}
		m.mu.Lock()
	}
	m.busy[id]++
	m.mu.Unlock()
	return nil
}

// leave ends what enter began. A base disk that nobody gave a name in the meantime is removed.
func (m *Manager) leave(ctx context.Context, id string) error {
	m.mu.Lock()
	m.busy[id]--
	_, named := m.records[id]
	orphan := m.busy[id] == 0 && !named && !m.leaving[id]
	if m.busy[id] == 0 {
		delete(m.busy, id)
	}
	if orphan {
		m.leaving[id] = true // nobody may enter while it goes
	}
	m.mu.Unlock()
	if !orphan {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
	defer cancel()
	err := m.config.Bases.Remove(ctx, id)
	m.mu.Lock()
	delete(m.leaving, id)
	m.mu.Unlock()
	if err != nil {
		return fmt.Errorf("take back base disk %s: %w", id, err)
	}
	return nil
}

// record makes the name durable: from now on the image exists under it.
func (m *Manager) record(built record, digests []string, a alias) (Info, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if r, other, err := m.find(a.Name); err == nil {
		if err := m.same(r, other, a.Source, a.Checksum); err != nil {
			return Info{}, err
		}
		return r.info(other), nil
	}
	r, ok := m.records[built.ID]
	if !ok {
		r = built
	}
	r = r.with(a)
	r.Digests = slices.Clone(r.Digests)
	for _, d := range digests {
		if !slices.Contains(r.Digests, d) {
			r.Digests = append(r.Digests, d)
		}
	}
	if err := m.put(r); err != nil {
		return Info{}, err
	}
	return r.info(a), nil
}

// build makes the base disk of the content, verified and complete; its record has no name yet.
func (m *Manager) build(ctx context.Context, c content, report Progress) (record, error) {
	what := c.about()
	m.mu.Lock()
	have, ok := m.records[what.id]
	m.mu.Unlock()
	if ok {
		return have, nil
	}
	if err := m.config.Bases.Remove(ctx, what.id); err != nil { // one without record tells nothing about itself
		return record{}, fmt.Errorf("remove base disk of an unfinished import: %w", err)
	}
	if err := c.fetch(ctx, m.config.TempDir, report); err != nil {
		return record{}, err
	}
	f, err := m.fill(ctx, c, report)
	if err != nil {
		return record{}, err
	}
	arch := what.architecture
	if arch == "" {
		arch = f.architecture
	}
	r := record{
		ID: what.id, Digests: what.digests, Architecture: arch, OS: f.os,
		Init: bootCommand(f.init, what.config.Entrypoint, what.config.Cmd),
	}
	if r.Init != nil {
		r.Env, r.Dir = what.config.Env, what.config.WorkingDir
	}
	return m.measure(ctx, r)
}

// measure adds what the base disk says about itself.
func (m *Manager) measure(ctx context.Context, r record) (record, error) {
	bases, err := m.config.Bases.List(ctx)
	if err != nil {
		return record{}, fmt.Errorf("list base disks: %w", err)
	}
	for _, b := range bases {
		if b.ID == r.ID && b.Complete {
			r.Size, r.Used = b.Size, b.Used
			return r, nil
		}
	}
	return record{}, fmt.Errorf("list base disks: the new one of %s is not complete", r.ID)
}

// tooSmall says that a base disk cannot hold the image.
type tooSmall struct{ want int64 }

func (e tooSmall) Error() string {
	return "the base disk is too small; it needs " + units.FormatBytes(e.want)
}

// fill builds the base disk: at first as large as the default server disk, so that making a server
// need not grow it; larger if the image does not fit.
func (m *Manager) fill(ctx context.Context, c content, report Progress) (facts, error) {
	var f facts
	for size := int64(0); ; {
		err := m.config.Bases.Build(ctx, c.about().id, size, func(root string) (err error) {
			f, err = m.unpack(ctx, c, root, report)
			return err
		})
		small := tooSmall{}
		if err == nil || !errors.As(err, &small) {
			return f, err
		}
		const unit = 1 << 20
		size = (max(small.want, 2*size) + unit - 1) / unit * unit
		if most := max(4*m.config.Limits.Size, 1<<30); size > most {
			return f, fault.New(fault.Exhausted, "the image does not fit a disk of %s", units.FormatBytes(most))
		}
	}
}

// unpack writes the content into the file system mounted at root and looks at what it is.
func (m *Manager) unpack(ctx context.Context, c content, root string, report Progress) (facts, error) {
	t, err := openTree(root)
	if err != nil {
		return facts{}, err
	}
	defer t.Close()
	if need := c.about().size; need > 0 {
		_, free, err := t.Space()
		if err != nil {
			return facts{}, err
		}
		if need > free { // with room for what the file system keeps for itself, and for small files
			return facts{}, tooSmall{need + need/4 + 64<<20}
		}
	}
	u := newUnpacker(t, m.config.Limits)
	if err = c.unpack(ctx, u, report); err == nil {
		err = u.finish(ctx)
	}
	if isFull(err) {
		// Is it this disk that is full, or the pool?
		if total, free, serr := t.Space(); serr == nil && free < total/100 {
			return facts{}, tooSmall{4 * total}
		}
	}
	if err != nil {
		return facts{}, err
	}
	if u.entries == 0 {
		return facts{}, fault.New(fault.Invalid, "the source is empty: no files")
	}
	report("syncing", 0, 0)
	f := inspect(t)
	if !runsOn(runtime.GOARCH, f.architecture) {
		return facts{}, fault.New(fault.Invalid, "the image's programs are for %s, this host is %s", f.architecture, runtime.GOARCH)
	}
	return f, nil
}
