package provider

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"maps"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
	"github.com/reflejo/terraform-provider-reflejo/agent/image"
	"github.com/reflejo/terraform-provider-reflejo/agent/network"
	"github.com/reflejo/terraform-provider-reflejo/agent/pki"
	"github.com/reflejo/terraform-provider-reflejo/agent/service"
	"github.com/reflejo/terraform-provider-reflejo/agent/service/servicetest"
	"github.com/reflejo/terraform-provider-reflejo/agent/vserver"
	"github.com/reflejo/terraform-provider-reflejo/agent/vserver/vservertest"
)

// world is several hosts with the real service, server manager and network manager over an
// in-memory kernel, on loopback with real certificates.
type world struct {
	t     *testing.T
	hosts map[string]*testHost
	files map[string]string // ca, cert, key → file
	dir   string
	ca    *pki.CA
	lost  string // REFLEJO_LOST_HOSTS
	shelf *servicetest.Shelf
	moves moves
	// genuine worlds have the real managers of snapshots and moves, joined by real endpoints.
	genuine bool
}

// testHost is one host of a world.
type testHost struct {
	world   *world
	name    string
	index   int
	address string
	kernel  *vservertest.Host
	bridge  *bridge
	images  *imageStore
	servers *vserver.Manager
	nets    *network.Manager
	copies  *servicetest.Copies
	genuine *genuine // nil: copies and mover do its part

	mu      sync.Mutex
	service *service.Service
}

// Capacity of every test host.
var testCapacity = vserver.Capacity{MilliCores: 64_000, Cores: cores(64), Memory: 64 << 30, Disk: 1 << 40}

func cores(n int) []int {
	list := make([]int, n)
	for i := range list {
		list[i] = i
	}
	return list
}

// newWorld makes hosts and makes them the ones of the environment that providers see.
func newWorld(t *testing.T, names ...string) *world {
	t.Helper()
	return makeWorld(t, false, names...)
}

func makeWorld(t *testing.T, genuine bool, names ...string) *world {
	t.Helper()
	w := &world{t: t, hosts: map[string]*testHost{}, files: map[string]string{}, dir: t.TempDir(), shelf: servicetest.NewShelf(), moves: newMoves(), genuine: genuine}
	var err error
	w.ca, err = pki.NewCA("test", time.Hour)
	must(t, err)
	pair := w.issue(pki.RoleOperator, "ci", nil)
	for name, text := range map[string][]byte{"ca": w.ca.Pair().Cert, "cert": pair.Cert, "key": pair.Key} {
		w.files[name] = filepath.Join(w.dir, name+".pem")
		must(t, os.WriteFile(w.files[name], text, 0o600))
	}
	for i, name := range names {
		w.hosts[name] = w.newHost(name, i)
	}
	return w
}

func (w *world) issue(role pki.Role, name string, addresses []string) pki.Pair {
	w.t.Helper()
	pair, err := w.ca.Issue(pki.Identity{Role: role, Name: name}, pki.Options{Addresses: addresses, Life: time.Hour})
	must(w.t, err)
	return pair
}

// env is the environment of a provider of this world.
func (w *world) env(name string) string {
	switch name {
	case "REFLEJO_HOSTS":
		var parts []string
		for _, host := range slices.Sorted(maps.Keys(w.hosts)) {
			parts = append(parts, host+"="+w.hosts[host].address)
		}
		return strings.Join(parts, ",")
	case "REFLEJO_LOST_HOSTS":
		return w.lost
	case "REFLEJO_CA_FILE":
		return w.files["ca"]
	case "REFLEJO_CERT_FILE":
		return w.files["cert"]
	case "REFLEJO_KEY_FILE":
		return w.files["key"]
	}
	return ""
}

func (w *world) newHost(name string, index int) *testHost {
	t := w.t
	h := &testHost{world: w, name: name, index: index, kernel: vservertest.NewHost(t.TempDir()), images: &imageStore{images: map[string]image.Info{}}}
	h.bridge = &bridge{Networks: h.kernel.Networks, refused: map[string]error{}}
	var err error
	h.nets, err = network.NewManager(network.Config{
		Host: name, DefaultCIDR: netip.MustParsePrefix("10.200.0.0/24"), Underlay: netip.MustParseAddr(h.underlay()),
		Records: vservertest.NewRecords(), Edge: h.bridge,
	})
	must(t, err)
	config := h.kernel.Config()
	config.Host, config.Segments, config.Images, config.Edges.Networks = name, h.nets, h.images, h.bridge
	config.Capacity = func() vserver.Capacity { return testCapacity }
	config.IDs.Size = 1 << 28
	h.copies = servicetest.NewCopies(name, w.shelf, func(idOrName string) (vserver.View, error) { return h.servers.Get(idOrName) }, time.Now)
	h.copies.Disk = h.kernel.Pool.Disks().Create
	config.Captures = h.copies.Captures()
	if w.genuine {
		h.genuine = h.keepSnapshots(&config)
	}
	h.servers, err = vserver.NewManager(config)
	must(t, err)
	h.nets.SetServers(h.servers)
	if w.genuine {
		h.genuine.join(h)
	}
	must(t, h.nets.Recover(t.Context()))
	must(t, h.servers.Recover(t.Context()))
	t.Cleanup(h.servers.Close)
	h.images.servers = h.servers
	h.images.add("debian", "oci://registry.example/debian:12")
	must(t, h.kernel.Pool.Bases().Build(t.Context(), h.images.images["debian"].ID, 1<<30, func(string) error { return nil }))
	h.images.bases = h.kernel.Pool.Bases()
	h.start()
	t.Cleanup(h.stop)
	return h
}

// start serves the API, on the address that the host had before if it had one.
func (h *testHost) start() {
	t := h.world.t
	t.Helper()
	address := h.address
	if address == "" {
		address = "127.0.0.1:0"
	}
	listener, err := net.Listen("tcp", address)
	must(t, err)
	h.address = listener.Addr().String()
	pair := h.world.issue(pki.RoleAgent, h.name, []string{"127.0.0.1"})
	credentials, err := pki.NewCredentials(h.world.ca.Pair().Cert, pair)
	must(t, err)
	s := service.New(h.serves(service.Config{
		Host: h, Servers: h.servers, Views: h.servers, Networks: h.nets, Images: h.images,
		Snapshots: h.copies, Restores: h.servers, Backups: h.copies.Backups(), Targets: h.copies.Backups(), Migrations: mover{h}, Recoveries: mover{h},
		Credentials: func() pki.Credentials { return credentials },
	}))
	h.mu.Lock()
	h.service = s
	h.mu.Unlock()
	go func() { _ = s.Serve(listener) }()
}

// stop makes the host refuse connections; what is on it stays.
func (h *testHost) stop() {
	h.mu.Lock()
	s := h.service
	h.service = nil
	h.mu.Unlock()
	if s == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	_ = s.Shutdown(ctx)
}

// Facts, Pool and Conditions make a testHost a service.Host.
func (h *testHost) Facts() service.Facts {
	return service.Facts{Name: h.name, Version: "test", Kernel: "6.1", CgroupMode: "unified", Architecture: "amd64", Started: time.Now(), UnderlayAddress: h.underlay(), Endpoint: h.endpoint()}
}

func (h *testHost) underlay() string { return fmt.Sprintf("198.18.0.%d", 11+h.index) }

func (h *testHost) Pool(context.Context) (service.Pool, error) {
	return service.Pool{Path: "/var/lib/reflejo", FileSystem: "xfs", Size: 1 << 40}, nil
}

func (h *testHost) Conditions(context.Context) []service.Condition {
	return []service.Condition{{Type: "Test", Severity: service.SeverityInfo, Message: "this is a test", Since: time.Now()}}
}

// server is one server as the host sees it.
func (h *testHost) server(idOrName string) vserver.View {
	h.world.t.Helper()
	v, err := h.servers.Get(idOrName)
	must(h.world.t, err)
	return v
}

// await waits until a server is as wanted.
func (h *testHost) await(id string, as func(vserver.View) bool) {
	t := h.world.t
	t.Helper()
	views, err := h.servers.Watch(t.Context(), id)
	if fault.Is(err, fault.NotFound) {
		return
	}
	must(t, err)
	for v := range views {
		if as(v) {
			return
		}
	}
	t.Fatalf("server %s never got as wanted", id)
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// bridge is the host's network edge; it can refuse a network.
type bridge struct {
	*vservertest.Networks
	mu      sync.Mutex
	refused map[string]error // by name
}

func (b *bridge) SetNetwork(ctx context.Context, want vserver.Network) error {
	b.mu.Lock()
	err := b.refused[want.Name]
	b.mu.Unlock()
	if err != nil {
		return err
	}
	return b.Networks.SetNetwork(ctx, want)
}

// imageStore is service.Images and vserver.Images in memory, with the rules of package image.
type imageStore struct {
	mu      sync.Mutex
	images  map[string]image.Info // by name
	servers *vserver.Manager
	bases   image.Bases
	content map[string]string // source → content, where it is not the source itself
	fail    error
}

func digest(content string) string {
	sum := sha256.Sum256([]byte(content))
	return "sha256:" + hex.EncodeToString(sum[:])
}

func (s *imageStore) add(name, source string) image.Info {
	info := image.Info{ID: digest(source), Name: name, Source: source, Architecture: "amd64", Size: 256 << 20, Used: 200 << 20, OS: "Test 1", Created: time.Now()}
	s.images[name] = info
	return info
}

func (s *imageStore) get(idOrName string) (image.Info, error) {
	if info, ok := s.images[idOrName]; ok {
		return info, nil
	}
	for _, name := range slices.Sorted(maps.Keys(s.images)) {
		if s.images[name].ID == idOrName {
			return s.images[name], nil
		}
	}
	return image.Info{}, fault.New(fault.NotFound, "no image %s", idOrName)
}

func (s *imageStore) Find(idOrName string) (vserver.Image, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	info, err := s.get(idOrName)
	return vserver.Image{ID: info.ID, Size: info.Size}, err
}

func (s *imageStore) Import(ctx context.Context, name, source, checksum string, progress image.Progress) (image.Info, error) {
	progress("downloading", 1, 2)
	s.mu.Lock()
	content := source
	if c, ok := s.content[source]; ok {
		content = c
	}
	s.mu.Unlock()
	return s.put(ctx, name, source, checksum, content)
}

func (s *imageStore) Upload(ctx context.Context, name, source, checksum string, _ int64, content io.Reader, _ image.Progress) (image.Info, error) {
	text, err := io.ReadAll(content)
	if err != nil {
		return image.Info{}, err
	}
	return s.put(ctx, name, source, checksum, string(text))
}

func (s *imageStore) put(ctx context.Context, name, source, checksum, content string) (image.Info, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fail != nil {
		return image.Info{}, s.fail
	}
	if old, ok := s.images[name]; ok {
		if old.Source != source {
			return image.Info{}, &fault.Error{Kind: fault.Exists, Field: "name", Err: fmt.Errorf("image %s is there, from %s", name, old.Source)}
		}
		return old, nil
	}
	if checksum != "" && checksum != digest(content) {
		return image.Info{}, fault.Field("checksum", "source has %s", digest(content))
	}
	info := s.add(name, source)
	info.ID, info.Checksum = digest(content), checksum
	s.images[name] = info
	return info, s.bases.Build(ctx, info.ID, 1<<30, func(string) error { return nil })
}

func (s *imageStore) Get(idOrName string) (image.Info, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.get(idOrName)
}

func (s *imageStore) List() []image.Info {
	s.mu.Lock()
	defer s.mu.Unlock()
	var list []image.Info
	for _, name := range slices.Sorted(maps.Keys(s.images)) {
		list = append(list, s.images[name])
	}
	return list
}

func (s *imageStore) Rename(idOrName, name string) (image.Info, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	info, err := s.get(idOrName)
	if err != nil {
		return info, err
	}
	if other, ok := s.images[name]; ok && other.ID != info.ID {
		return info, &fault.Error{Kind: fault.Exists, Field: "name", Err: fmt.Errorf("image name %s is taken", name)}
	}
	delete(s.images, info.Name)
	info.Name = name
	s.images[name] = info
	return info, nil
}

func (s *imageStore) Delete(_ context.Context, idOrName string) error {
	for _, v := range s.servers.List() {
		if info, err := s.Get(idOrName); err == nil && v.Spec.Image == info.ID {
			return fault.New(fault.Precondition, "delete image %s: server %s was made from it", idOrName, v.Spec.Name)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	info, err := s.get(idOrName)
	delete(s.images, info.Name)
	return err
}
