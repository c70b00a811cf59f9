package image

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/hashicorp/go-hclog"

	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
)

// Config is what a Manager needs.
type Config struct {
	Bases   Bases    // where base disks are made
	Store   Records  // what is remembered over restarts; the manager's own
	Dirs    []string // host directories, absolute, that "host:" sources may name
	TempDir string   // for downloads and uploads, the manager's own; made if missing, mode 0700
	Limits  Limits   // zero fields take their default

	// Insecure are registries ("host" or "host:port", as in sources) that may be spoken to without
	// TLS. Those on loopback addresses may anyway, no others.
	Insecure []string
	// Transport reaches registries; nil means one with the system's certificates and proxies.
	Transport http.RoundTripper
	// Keychain has the credentials for registries; nil means the Docker config file of the agent's user.
	Keychain authn.Keychain
	// InUse counts the servers that were made from an image and exist.
	InUse func(imageID string) int
	// Log receives what an operator should know; nil means nothing is logged.
	Log hclog.Logger
}

func (c Config) validate() error {
	switch {
	case c.Bases == nil || c.Store == nil || c.InUse == nil:
		return fault.New(fault.Invalid, "make image manager: Bases, Store and InUse are needed")
	case !filepath.IsAbs(c.TempDir):
		return fault.New(fault.Invalid, "make image manager: temporary directory %q is not absolute", c.TempDir)
	}
	for _, d := range c.Dirs {
		if !filepath.IsAbs(d) {
			return fault.Field("image_dirs", "image directory %q is not absolute", d)
		}
	}
	return nil
}

// Manager keeps the images of this host. It is safe for use by several goroutines.
type Manager struct {
	config Config
	log    hclog.Logger

	imports flights[Info]   // by name, source and checksum
	builds  flights[record] // by id

	mu      sync.Mutex
	records map[string]record // by id, as in the store
	claims  map[string]*claim // by name: imports under way
	busy    map[string]int    // by id: imports between building and recording
	leaving map[string]bool   // by id: a deletion is under way
}

// claim keeps a name for one import, asked for by any number of callers.
type claim struct {
	key   string
	users int
}

// NewManager reads the images from the store. Call Recover before anything else.
func NewManager(c Config) (*Manager, error) {
	if err := c.validate(); err != nil {
		return nil, err
	}
	c.Limits = c.Limits.WithDefaults()
	if c.Transport == nil {
		c.Transport = defaultTransport()
	}
	if c.Keychain == nil {
		c.Keychain = authn.DefaultKeychain
	}
	if c.Log == nil {
		c.Log = hclog.NewNullLogger()
	}
	if err := os.MkdirAll(c.TempDir, 0o700); err != nil {
		return nil, fmt.Errorf("make image manager: %w", err)
	}
	m := &Manager{config: c, log: c.Log, records: map[string]record{}, claims: map[string]*claim{}, busy: map[string]int{}, leaving: map[string]bool{}}
	err := c.Store.ForEach(func(key string, value []byte) error {
		var r record
		if err := json.Unmarshal(value, &r); err != nil {
			return fmt.Errorf("decode image %s: %w", key, err)
		}
		m.records[key] = r
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read images: %w", err)
	}
	return m, nil
}

// Get describes an image by a name, or by its id under its oldest name. fault.NotFound if there is none.
func (m *Manager) Get(idOrName string) (Info, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	r, a, err := m.find(idOrName)
	if err != nil {
		return Info{}, err
	}
	return r.info(a), nil
}

// List describes all images, one entry per name, in order of names.
func (m *Manager) List() []Info {
	m.mu.Lock()
	defer m.mu.Unlock()
	var all []Info
	for _, r := range m.records {
		if r.Deleting {
			continue
		}
		for _, a := range r.Names {
			all = append(all, r.info(a))
		}
	}
	slices.SortFunc(all, func(a, b Info) int { return strings.Compare(a.Name, b.Name) })
	return all
}

// find is the record and the name that idOrName means. m.mu is held.
func (m *Manager) find(idOrName string) (record, alias, error) {
	if r, ok := m.records[idOrName]; ok && !r.Deleting && len(r.Names) > 0 {
		return r, r.Names[0], nil
	}
	for _, r := range m.records {
		if a, ok := r.alias(idOrName); ok && !r.Deleting {
			return r, a, nil
		}
	}
	return record{}, alias{}, fault.New(fault.NotFound, "find image %q: there is none of this id or name on this host", idOrName)
}

// put stores a record and remembers it. m.mu is held.
func (m *Manager) put(r record) error {
	if err := m.config.Store.Put(r.ID, r); err != nil {
		return fmt.Errorf("record image %s: %w", r.ID, classify(err))
	}
	m.records[r.ID] = r
	return nil
}

// Rename gives an image another name. Outcomes besides success: fault.NotFound; fault.Exists if the name
// is taken; fault.Precondition if id is an id and the image has several names; fault.Aborted if an import
// is under way under that name. Renaming to the name it has succeeds.
func (m *Manager) Rename(idOrName, name string) (Info, error) {
	if !ValidName(name) {
		return Info{}, invalidName(name)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	r, a, err := m.find(idOrName)
	if err != nil {
		return Info{}, err
	}
	if a.Name == name {
		return r.info(a), nil
	}
	if err := ambiguous(r, idOrName, "rename"); err != nil {
		return Info{}, err
	}
	if other, _, err := m.find(name); err == nil {
		return Info{}, fault.New(fault.Exists, "rename image %s to %q: the name is taken by %s", idOrName, name, other.ID)
	}
	if m.claims[name] != nil {
		return Info{}, fault.New(fault.Aborted, "rename image %s to %q: an import under this name is under way", idOrName, name)
	}
	i := slices.Index(r.Names, a)
	r.Names = slices.Clone(r.Names)
	r.Names[i].Name = name
	if err := m.put(r); err != nil {
		return Info{}, err
	}
	return r.info(r.Names[i]), nil
}

func ambiguous(r record, asked, verb string) error {
	if asked != r.ID || len(r.Names) == 1 {
		return nil
	}
	var names []string
	for _, a := range r.Names {
		names = append(names, a.Name)
	}
	return fault.New(fault.Precondition, "%s image %s: it has %d names (%s): say which", verb, asked, len(names), strings.Join(names, ", "))
}

func invalidName(name string) error {
	return fault.Field("name", "image name %q: want lower-case letters, digits, and '.', '_', '-' inside, at most 63", name)
}

// Delete takes a name away from an image, and deletes the image with its last name. Outcomes besides
// success: fault.NotFound; fault.Precondition while servers made from it exist, or if idOrName is the id
// of an image with several names; fault.Aborted while an import or a deletion of it is under way. Other
// errors leave it half deleted: it is not found by name any more, and Delete of its id, an import of the same
// content, or Recover finish the deletion.
func (m *Manager) Delete(ctx context.Context, idOrName string) error {
	id, last, err := m.beginDelete(idOrName)
	if err != nil || !last {
		return err
	}
	// Asked without the lock: who counts servers may be asking us for an image. A server that is created
	// just now and not counted fails for want of a base disk, or has its clone already.
	if n := m.config.InUse(id); n > 0 {
		m.mu.Lock()
		defer m.mu.Unlock()
		delete(m.leaving, id)
		return fault.New(fault.Precondition, "delete image %q: %d servers were made from it: delete them first", idOrName, n)
	}
	return m.finishDelete(ctx, id)
}

// beginDelete finds what to delete. It takes the name away if there are others, else last is set, and
// leaving[id] keeps imports and other deletions off.
func (m *Manager) beginDelete(idOrName string) (id string, last bool, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	r, ok := m.records[idOrName]
	if !ok || !r.Deleting {
		var a alias
		if r, a, err = m.find(idOrName); err != nil {
			return "", false, err
		}
		if err := ambiguous(r, idOrName, "delete"); err != nil {
			return "", false, err
		}
		if len(r.Names) > 1 {
			return r.ID, false, m.put(r.without(a.Name))
		}
	}
	if m.busy[r.ID] > 0 || m.leaving[r.ID] {
		return "", false, fault.New(fault.Aborted, "delete image %q: an import or a deletion of it is under way", idOrName)
	}
	m.leaving[r.ID] = true
	return r.ID, true, nil
}

// finishDelete makes the deletion durable, then removes the base disk, then the record. leaving[id] is set
// and taken back.
func (m *Manager) finishDelete(ctx context.Context, id string) error {
	m.mu.Lock()
	r := m.records[id]
	r.Deleting = true
	err := m.put(r)
	m.mu.Unlock()
	if err == nil {
		err = m.config.Bases.Remove(ctx, id)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.leaving, id)
	if err != nil {
		return fmt.Errorf("delete image %s: %w", id, err)
	}
	if err := m.config.Store.Delete(id); err != nil {
		return fmt.Errorf("delete image %s: %w", id, classify(err))
	}
	delete(m.records, id)
	return nil
}

// Recover removes what a killed agent left: temporary files, base disks of unfinished imports, and images
// whose deletion had begun. An image whose base disk is gone is forgotten, so that it can be imported
// again. Call it at the agent's start, when the pool is there and nothing else uses the manager.
func (m *Manager) Recover(ctx context.Context) error {
	if err := m.removeTemp(); err != nil {
		return err
	}
	bases, err := m.config.Bases.List(ctx)
	if err != nil {
		return fmt.Errorf("recover images: %w", err)
	}
	there := map[string]Base{}
	for _, b := range bases {
		if b.Complete {
			there[b.ID] = b
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for id, r := range m.records {
		b, ok := there[id]
		switch {
		case r.Deleting || !ok:
			if !r.Deleting {
				m.log.Warn("image has lost its base disk; it has to be imported again", "image", id)
			}
			if err := m.config.Bases.Remove(ctx, id); err != nil {
				return fmt.Errorf("recover image %s: %w", id, err)
			}
			if err := m.config.Store.Delete(id); err != nil {
				return fmt.Errorf("recover image %s: %w", id, err)
			}
			delete(m.records, id)
		case b.Size != r.Size || b.Used != r.Used:
			r.Size, r.Used = b.Size, b.Used
			if err := m.put(r); err != nil {
				return err
			}
		}
	}
	for _, b := range bases {
		if _, ok := m.records[b.ID]; ok {
			continue
		}
		m.log.Info("remove base disk of an unfinished import", "image", b.ID, "complete", b.Complete)
		if err := m.config.Bases.Remove(ctx, b.ID); err != nil {
			return fmt.Errorf("recover image %s: %w", b.ID, err)
		}
	}
	return nil
}

// removeTemp removes temporary files that had not lost their name yet when the agent was killed.
func (m *Manager) removeTemp() error {
	entries, err := os.ReadDir(m.config.TempDir)
	if err != nil {
		return fmt.Errorf("recover images: %w", err)
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), tempPrefix) {
			if err := os.Remove(filepath.Join(m.config.TempDir, e.Name())); err != nil {
				return fmt.Errorf("recover images: %w", err)
			}
		}
	}
	return nil
}

func (m *Manager) options(report Progress) options {
	return options{arch: runtime.GOARCH, limits: m.config.Limits, temp: m.config.TempDir, report: report}
}

func (m *Manager) now() time.Time { return time.Now().UTC().Truncate(time.Second) }
