package servicetest

import (
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
	"github.com/reflejo/terraform-provider-reflejo/agent/image"
	"github.com/reflejo/terraform-provider-reflejo/agent/service"
)

// AddImage puts an image there and returns its id.
func (h *Host) AddImage(name string) string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.addImage(name, "oci://registry.test/"+name, "", []byte(name)).ID
}

func (h *Host) addImage(name, source, checksum string, content []byte) image.Info {
	i := image.Info{
		ID: fmt.Sprintf("sha256:%x", sha256.Sum256(content)), Name: name, Source: source, Checksum: checksum,
		Architecture: "amd64", Size: 1 << 30, Used: 200 << 20, OS: "Debian GNU/Linux 12", Created: Began,
	}
	h.images[name] = i
	return i
}

func (h *Host) imageOf(idOrName string) (image.Info, error) { return h.Images().Get(idOrName) }

// Images is the host's images; they have methods of the same names as servers.
func (h *Host) Images() service.Images { return images{h} }

type images struct{ h *Host }

func (i images) Import(_ context.Context, name, source, checksum string, progress image.Progress) (image.Info, error) {
	if !strings.HasPrefix(source, "oci://") && !strings.HasPrefix(source, "host:/") {
		return image.Info{}, fault.Field("source", "source %q: want oci://… or host:/…", source)
	}
	progress("downloading", 1<<20, 2<<20)
	progress("unpacking", 2<<20, 0)
	i.h.mu.Lock()
	defer i.h.mu.Unlock()
	return i.h.addImage(name, source, checksum, []byte(source)), nil
}

func (i images) Upload(_ context.Context, name, source, checksum string, _ int64, r io.Reader, _ image.Progress) (image.Info, error) {
	if i.h.has(name) {
		return i.Get(name) // without reading, as the real one
	}
	content, err := io.ReadAll(r)
	if err != nil {
		return image.Info{}, err
	}
	i.h.mu.Lock()
	defer i.h.mu.Unlock()
	return i.h.addImage(name, source, checksum, content), nil
}

func (h *Host) has(name string) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	_, ok := h.images[name]
	return ok
}

func (i images) Get(idOrName string) (image.Info, error) {
	for _, info := range i.List() {
		if info.ID == idOrName || info.Name == idOrName {
			return info, nil
		}
	}
	return image.Info{}, fault.New(fault.NotFound, "image %q: host %s has none of this id or name", idOrName, i.h.name)
}

func (i images) List() []image.Info {
	i.h.mu.Lock()
	defer i.h.mu.Unlock()
	var all []image.Info
	for _, info := range i.h.images {
		all = append(all, info)
	}
	slices.SortFunc(all, func(a, b image.Info) int { return strings.Compare(a.Name, b.Name) })
	return all
}

func (i images) Rename(idOrName, name string) (image.Info, error) {
	info, err := i.Get(idOrName)
	if err != nil {
		return info, err
	}
	i.h.mu.Lock()
	defer i.h.mu.Unlock()
	delete(i.h.images, info.Name)
	info.Name = name
	i.h.images[name] = info
	return info, nil
}

func (i images) Delete(_ context.Context, idOrName string) error {
	info, err := i.Get(idOrName)
	if err != nil {
		return err
	}
	i.h.mu.Lock()
	defer i.h.mu.Unlock()
	delete(i.h.images, info.Name)
	return nil
}
