package image_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
	"github.com/reflejo/terraform-provider-reflejo/agent/image"
)

func digest(b []byte) string {
	h := sha256.Sum256(b)
	return "sha256:" + hex.EncodeToString(h[:])
}

func must[T any](v T, err error) func(t testing.TB) T {
	return func(t testing.TB) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

// build makes an OCI image of layers (tars).
func build(t testing.TB, arch string, config v1.Config, layers ...[]byte) v1.Image {
	t.Helper()
	img := mutate.MediaType(empty.Image, types.OCIManifestSchema1)
	for _, l := range layers {
		layer := must(tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(l)), nil }, tarball.WithMediaType(types.OCILayer)))(t)
		img = must(mutate.AppendLayers(img, layer))(t)
	}
	c := must(img.ConfigFile())(t).DeepCopy()
	c.OS, c.Architecture, c.Config = "linux", arch, config
	return must(mutate.ConfigFile(img, c))(t)
}

func application(t testing.TB) v1.Image {
	return build(t, runtime.GOARCH, v1.Config{Entrypoint: []string{"/app"}, Cmd: []string{"serve"}, Env: []string{"PATH=/bin", "A=1"}, WorkingDir: "/srv", User: "1000"},
		files(t, "etc/", "etc/os-release=PRETTY_NAME=Base\n", "app=old", "data/", "data/one=1", "sbin/init=x"),
		files(t, "app=new", "data/.wh.one=", "data/two=2"))
}

// registryServer is an in-memory registry on loopback; wrap may stand before it.
func registryServer(t testing.TB, wrap func(http.Handler) http.Handler) string {
	t.Helper()
	handler := registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	if wrap != nil {
		handler = wrap(handler)
	}
	s := httptest.NewServer(handler)
	t.Cleanup(s.Close)
	return strings.TrimPrefix(s.URL, "http://")
}

func push(t testing.TB, ref string, what any) {
	t.Helper()
	r := must(name.ParseReference(ref))(t)
	var err error
	switch w := what.(type) {
	case v1.Image:
		err = remote.Write(r, w)
	case v1.ImageIndex:
		err = remote.WriteIndex(r, w)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func wantApplication(t *testing.T, h *host, info image.Info, id string) {
	t.Helper()
	if info.ID != id || info.OS != "Base" || info.Architecture != runtime.GOARCH || info.Dir != "/srv" ||
		!slices.Equal(info.Init, []string{"/app", "serve"}) || !slices.Equal(info.Env, []string{"PATH=/bin", "A=1"}) {
		t.Errorf("%+v, want id %s", info, id)
	}
	for name, want := range map[string]string{"app": "new", "data/two": "2", "data/one": ""} {
		if b, _ := os.ReadFile(h.inBase(info.ID, name)); string(b) != want {
			t.Errorf("%s: %q, want %q", name, b, want)
		}
	}
	h.noTemp(t)
}

func TestImportFromRegistry(t *testing.T) {
	at := registryServer(t, nil)
	img := application(t)
	id := must(img.Digest())(t).String()
	push(t, at+"/team/app:1", img)
	foreign := "arm64"
	if runtime.GOARCH == foreign {
		foreign = "amd64"
	}
	index := mutate.AppendManifests(mutate.IndexMediaType(empty.Index, types.OCIImageIndex),
		mutate.IndexAddendum{Add: build(t, foreign, v1.Config{}, files(t, "foreign=x")), Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: foreign}}},
		mutate.IndexAddendum{Add: img, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: runtime.GOARCH}}},
		mutate.IndexAddendum{Add: build(t, "unknown", v1.Config{}, files(t, "attestation=x")), Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "unknown", Architecture: "unknown"}}})
	indexID := must(index.Digest())(t).String()
	push(t, at+"/team/app:multi", index)

	h := newHost(t, nil)
	var last, total int64
	info, err := h.Import(t.Context(), "one", "oci://"+at+"/team/app:1", id, func(step string, done, of int64) {
		if step == "downloading" {
			last, total = done, of
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	wantApplication(t, h, info, id)
	if last > total { // neither need have been seen: only the latest is told
		t.Errorf("progress: %d of %d", last, total)
	}
	for name, c := range map[string]struct{ source, checksum string }{
		"index":           {"/team/app:multi", ""},
		"index-checked":   {"/team/app:multi", indexID},
		"image-checked":   {"/team/app:multi", id},
		"by-digest":       {"/team/app@" + id, ""},
		"by-index-digest": {"/team/app@" + indexID, id},
	} {
		info, err := h.Import(t.Context(), name, "oci://"+at+c.source, c.checksum, nil)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		wantApplication(t, h, info, id)
	}
	push(t, at+"/team/foreign:1", build(t, foreign, v1.Config{}, files(t, "foreign=x")))
	for source, want := range map[string]fault.Kind{
		"/team/app:none":                         fault.NotFound,
		"/team/none:1":                           fault.NotFound,
		"/team/app@" + digest([]byte("nothing")): fault.NotFound,
		"/team/foreign:1":                        fault.Invalid,
	} {
		if _, err := h.Import(t.Context(), "x", "oci://"+at+source, "", nil); !fault.Is(err, want) {
			t.Errorf("%s: %v, want %v", source, err, want)
		}
	}
	if _, err := h.Import(t.Context(), "x", "oci://"+at+"/team/app:1", digest(nil), nil); fault.FieldOf(err) != "checksum" {
		t.Errorf("wrong checksum: %v", err)
	}
}

// TestBadRegistries: what comes back is not what the manifest promised.
func TestBadRegistries(t *testing.T) {
	img := application(t)
	layer := must(must(img.Layers())(t)[1].Digest())(t).String()
	for name, c := range map[string]struct {
		answer func(w http.ResponseWriter, r *http.Request, next http.Handler) // to a request for the layer
		want   fault.Kind
	}{
		"other bytes": {func(w http.ResponseWriter, r *http.Request, next http.Handler) {
			rec := httptest.NewRecorder()
			next.ServeHTTP(rec, r)
			b := rec.Body.Bytes()
			b[len(b)/2] ^= 1
			w.Write(b)
		}, fault.Invalid},
		"more bytes": {func(w http.ResponseWriter, r *http.Request, next http.Handler) {
			rec := httptest.NewRecorder()
			next.ServeHTTP(rec, r)
			w.Write(rec.Body.Bytes())
			io.CopyN(w, zeroReader{}, 1<<20)
		}, fault.Invalid},
		"not found": {func(w http.ResponseWriter, _ *http.Request, _ http.Handler) { http.Error(w, "no", http.StatusNotFound) }, fault.NotFound},
		"no rights": {func(w http.ResponseWriter, _ *http.Request, _ http.Handler) {
			http.Error(w, "no", http.StatusForbidden)
		}, fault.Precondition},
		"leads to TLS-less place": {func(w http.ResponseWriter, r *http.Request, _ http.Handler) {
			http.Redirect(w, r, "http://registry.example/secret", http.StatusFound)
		}, fault.Invalid},
	} {
		t.Run(name, func(t *testing.T) {
			at := registryServer(t, func(next http.Handler) http.Handler {
				return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					if r.Method == http.MethodGet && strings.HasSuffix(r.URL.Path, layer) {
						c.answer(w, r, next)
						return
					}
					next.ServeHTTP(w, r)
				})
			})
			push(t, at+"/app:1", img)
			h := newHost(t, nil)
			if _, err := h.Import(t.Context(), "x", "oci://"+at+"/app:1", "", nil); !fault.Is(err, c.want) {
				t.Errorf("%v, want %v", err, c.want)
			}
			h.nothingLeft(t)
		})
	}
}

// TestRegistryThatBreaksOff: a cut download is tried again.
func TestRegistryThatBreaksOff(t *testing.T) {
	img := application(t)
	layer := must(must(img.Layers())(t)[0].Digest())(t).String()
	var cuts atomic.Int32
	at := registryServer(t, func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Method == http.MethodGet && strings.HasSuffix(r.URL.Path, layer) && cuts.Add(1) == 1 {
				rec := httptest.NewRecorder()
				next.ServeHTTP(rec, r)
				w.Header().Set("Content-Length", fmt.Sprint(rec.Body.Len()))
				w.Write(rec.Body.Bytes()[:rec.Body.Len()/2])
				panic(http.ErrAbortHandler)
			}
			next.ServeHTTP(w, r)
		})
	})
	push(t, at+"/app:1", img)
	h := newHost(t, nil)
	if _, err := h.Import(t.Context(), "x", "oci://"+at+"/app:1", "", nil); err != nil {
		t.Error(err)
	}
	if cuts.Load() < 2 {
		t.Errorf("%d requests", cuts.Load())
	}
}

func TestCancelDownload(t *testing.T) {
	img := application(t)
	layer := must(must(img.Layers())(t)[0].Digest())(t).String()
	asked, release := make(chan struct{}), make(chan struct{})
	at := registryServer(t, func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Method == http.MethodGet && strings.HasSuffix(r.URL.Path, layer) {
				w.WriteHeader(http.StatusOK)
				w.Write([]byte("a"))
				w.(http.Flusher).Flush()
				close(asked)
				<-release
				return
			}
			next.ServeHTTP(w, r)
		})
	})
	defer close(release)
	push(t, at+"/app:1", img)
	h := newHost(t, nil)
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		<-asked
		cancel()
	}()
	if _, err := h.Import(ctx, "x", "oci://"+at+"/app:1", "", nil); err != context.Canceled && !strings.Contains(fmt.Sprint(err), "cancel") {
		t.Error(err)
	}
	h.nothingLeft(t)
}

// TestPlainRegistries: without TLS only where it is allowed. A transport of the test's own stands for the network.
func TestPlainRegistries(t *testing.T) {
	at := registryServer(t, nil)
	push(t, at+"/app:1", application(t))
	reroute := roundTripper(func(r *http.Request) (*http.Response, error) {
		if r.URL.Scheme != "http" {
			return nil, fmt.Errorf("no TLS here")
		}
		r = r.Clone(r.Context())
		r.URL.Host = at
		return http.DefaultTransport.RoundTrip(r)
	})
	h := newHost(t, func(c *image.Config) {
		c.Transport = reroute
		c.Insecure = []string{"lab.example:5000"}
	})
	for _, host := range []string{"10.0.0.1:5000", "registry.local", "lab.example", "registry.example"} {
		if _, err := h.Import(t.Context(), "x", "oci://"+host+"/app:1", "", nil); err == nil {
			t.Errorf("%s was spoken to without TLS", host)
		}
	}
	if _, err := h.Import(t.Context(), "x", "oci://lab.example:5000/app:1", "", nil); err != nil {
		t.Error(err)
	}
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// TestForeignLayers: layers that are kept elsewhere are not fetched from there, and no other than tars taken.
func TestForeignLayers(t *testing.T) {
	for _, mt := range []types.MediaType{types.DockerForeignLayer, types.OCIRestrictedLayer, "application/vnd.example.wasm"} {
		img := must(mutate.Append(application(t), mutate.Addendum{Layer: static.NewLayer(files(t, "x=y"), mt), MediaType: mt}))(t)
		at := registryServer(t, nil)
		r := must(name.ParseReference(at + "/app:1"))(t)
		if err := remote.Write(r, img, remote.WithNondistributable); err != nil {
			t.Fatal(err)
		}
		h := newHost(t, nil)
		if _, err := h.Import(t.Context(), "x", "oci://"+at+"/app:1", "", nil); !fault.Is(err, fault.Invalid) {
			t.Errorf("%s: %v", mt, err)
		}
		h.nothingLeft(t)
	}
}

// TestWrongDiffID: a config that describes other layers than the manifest has.
func TestWrongDiffID(t *testing.T) {
	img := application(t)
	c := must(img.ConfigFile())(t).DeepCopy()
	c.RootFS.DiffIDs[1] = c.RootFS.DiffIDs[0]
	img = must(mutate.ConfigFile(img, c))(t)
	at := registryServer(t, nil)
	push(t, at+"/app:1", img)
	h := newHost(t, nil)
	if _, err := h.Import(t.Context(), "x", "oci://"+at+"/app:1", "", nil); !fault.Is(err, fault.Invalid) {
		t.Error(err)
	}
	h.nothingLeft(t)
}
