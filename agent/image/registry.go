package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	"golang.org/x/sync/errgroup"

	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
)

const (
	parallel = 3                // layers that are downloaded at once
	attempts = 4                // per layer; registries cut long downloads
	stall    = 60 * time.Second // without a byte, or an answer: try again
)

// registry fetches one image of a registry.
type registry struct {
	source source
	puller *remote.Puller
	limits Limits
	pause  time.Duration // before the second attempt; doubles
}

func newRegistry(s source, base http.RoundTripper, keychain authn.Keychain, limits Limits) (*registry, error) {
	puller, err := remote.NewPuller(
		remote.WithTransport(guardedTransport{base, s}),
		remote.WithAuthFromKeychain(keychain),
		remote.WithUserAgent("reflejo"),
		remote.WithPlatform(v1.Platform{OS: "linux", Architecture: runtime.GOARCH}),
	)
	if err != nil {
		return nil, fmt.Errorf("prepare registry %s: %w", s.ref.Context().RegistryStr(), err)
	}
	return &registry{source: s, puller: puller, limits: limits, pause: time.Second}, nil
}

// defaultTransport is the library's, without its unlimited patience.
func defaultTransport() http.RoundTripper {
	t, ok := remote.DefaultTransport.(*http.Transport)
	if !ok {
		return remote.DefaultTransport
	}
	t = t.Clone()
	t.ResponseHeaderTimeout = stall
	return t
}

// guardedTransport speaks without TLS only to the registry that was asked for, and only if it may: the
// library would do so with every private address, and a redirect could lead anywhere.
type guardedTransport struct {
	base   http.RoundTripper
	source source
}

func (g guardedTransport) RoundTrip(r *http.Request) (*http.Response, error) {
	if host := g.source.ref.Context().RegistryStr(); r.URL.Scheme != "https" && (!g.source.plain || r.URL.Host != host) {
		return nil, errPlain
	}
	return g.base.RoundTrip(r)
}

var errPlain = errors.New("it does not speak TLS, or leads to a place that does not; a registry without TLS must be on this host or in the agent's list of insecure registries")

// resolve finds the image for this host; its layers are not downloaded yet.
func (r *registry) resolve(ctx context.Context, arch string) (content, error) {
	ref := r.source.ref
	d, err := r.puller.Get(ctx, ref)
	if err != nil {
		return nil, r.explain("get manifest of "+ref.Name(), err)
	}
	if len(d.Manifest) > maxManifest {
		return nil, fault.New(fault.Invalid, "get manifest of %s: larger than 4 MiB", ref.Name())
	}
	if digest, ok := ref.(name.Digest); ok && digestBytes(d.Manifest) != digest.DigestStr() {
		return nil, fault.New(fault.Invalid, "verify manifest of %s: it has digest %s", ref.Name(), digestBytes(d.Manifest))
	}
	p, err := pick(func(d v1.Descriptor) ([]byte, error) { return r.small(ctx, d) }, d.Manifest, arch, false)
	if err != nil {
		return nil, fmt.Errorf("image %s: %w", ref.Name(), err)
	}
	c, err := newOCIContent(p, r.limits)
	if err != nil {
		return nil, fmt.Errorf("image %s: %w", ref.Name(), err)
	}
	c.download = r.download
	return c, nil
}

// small gets a manifest or a config.
func (r *registry) small(ctx context.Context, d v1.Descriptor) ([]byte, error) {
	ref := r.source.ref.Context().Digest(d.Digest.String())
	if d.MediaType.IsIndex() || d.MediaType.IsImage() {
		m, err := r.puller.Get(ctx, ref)
		if err != nil {
			return nil, r.explain("get manifest", err)
		}
		return m.Manifest, nil
	}
	body, err := r.blob(ctx, d.Digest.String())
	if err != nil {
		return nil, err
	}
	defer body.Close()
	return readAll(body, "blob", maxManifest)
}

// blob opens a blob of the image's repository.
func (r *registry) blob(ctx context.Context, digest string) (io.ReadCloser, error) {
	l, err := r.puller.Layer(ctx, r.source.ref.Context().Digest(digest))
	if err != nil {
		return nil, r.explain("get blob "+digest, err)
	}
	body, err := l.Compressed()
	if err != nil {
		return nil, r.explain("get blob "+digest, err)
	}
	return body, nil
}

// explain gives a registry's answer a kind.
func (r *registry) explain(verb string, err error) error {
	var t *transport.Error
	var n net.Error
	switch {
	case errors.Is(err, errPlain):
		return fault.Field("source", "%s: %w", verb, err)
	case errors.As(err, &t) && t.StatusCode == http.StatusNotFound:
		return fault.New(fault.NotFound, "%s: the registry has no such image: %w", verb, err)
	case errors.As(err, &t) && (t.StatusCode == http.StatusUnauthorized || t.StatusCode == http.StatusForbidden):
		return fault.New(fault.Precondition, "%s: the registry refuses it: there is no such image, or the agent has no credentials for it (in its Docker config file): %w", verb, err)
	case errors.As(err, &t) && t.StatusCode < 500 && t.StatusCode != http.StatusTooManyRequests:
		return fault.New(fault.Invalid, "%s: %w", verb, err)
	case errors.As(err, &t), errors.As(err, &n):
		return fault.New(fault.Unavailable, "%s: %w", verb, err)
	}
	return fmt.Errorf("%s: %w", verb, err)
}

// download brings all layers into temporary files in dir and makes the content open those.
func (r *registry) download(ctx context.Context, c *ociContent, dir string, report Progress) error {
	var total, got atomic.Int64
	first := map[string]layer{} // a layer may be there twice
	for _, l := range c.layers {
		if _, ok := first[l.digest]; !ok {
			first[l.digest] = l
			total.Add(l.size)
		}
	}
	var mu sync.Mutex
	files := map[string]*os.File{}
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(parallel)
	for _, l := range first {
		g.Go(func() error {
			f, err := r.layer(gctx, l, dir, func(n int64) { report("downloading", got.Add(n), total.Load()) })
			if err != nil {
				return fmt.Errorf("download layer %s: %w", l.digest, err)
			}
			mu.Lock()
			defer mu.Unlock()
			files[l.digest] = f
			c.closers = append(c.closers, func() { f.Close() })
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	for i, l := range c.layers {
		c.layers[i].open = func(context.Context) (io.ReadCloser, error) {
			return io.NopCloser(io.NewSectionReader(files[l.digest], 0, l.size)), nil
		}
	}
	return nil
}

// layer downloads one layer, again after a failure that may pass. add is told bytes as they come, and
// takes them back (negative) when they come again.
func (r *registry) layer(ctx context.Context, l layer, dir string, add func(int64)) (*os.File, error) {
	pause := r.pause
	for try := 1; ; try++ {
		var n int64
		f, err := r.attempt(ctx, l, dir, func(now int64) { add(now - n); n = now })
		if err == nil {
			return f, nil
		}
		add(-n)
		if k := fault.KindOf(err); try == attempts || ctx.Err() != nil || isFull(err) || k != fault.Internal && k != fault.Unavailable {
			return nil, err
		}
		select {
		case <-time.After(pause):
			pause *= 2
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

func (r *registry) attempt(ctx context.Context, l layer, dir string, tick func(int64)) (*os.File, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	watchdog := time.AfterFunc(stall, func() {
		cancel(fault.New(fault.Unavailable, "the registry sent nothing for %s", stall))
	})
	defer watchdog.Stop()
	body, err := r.blob(ctx, l.digest)
	if err != nil {
		return nil, err
	}
	defer body.Close()
	f, m, err := spool(ctx, dir, body, "layer", l.size, func(n int64) { watchdog.Reset(stall); tick(n) })
	switch {
	case err != nil && ctx.Err() != nil:
		return nil, context.Cause(ctx)
	case m != nil && m.n == l.size && m.digest() != l.digest: // the library has noticed too, by an error that nobody can ask for
		if f != nil {
			f.Close()
		}
		return nil, fault.New(fault.Invalid, "verify layer: it has digest %s", m.digest())
	case err != nil:
		return nil, err
	case m.n != l.size:
		f.Close()
		return nil, fault.New(fault.Unavailable, "the registry sent %d bytes of %d", m.n, l.size)
	}
	return f, nil
}
