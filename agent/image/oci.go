package image

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
	"github.com/reflejo/terraform-provider-reflejo/agent/units"
)

// getBlob returns a small blob (manifest, index, config). Its caller verifies it.
type getBlob func(d v1.Descriptor) ([]byte, error)

// picked is the image that was chosen for this host.
type picked struct {
	manifest *v1.Manifest
	config   *v1.ConfigFile
	digests  []string // manifest (the id), then the indexes that led to it, then the config
}

// pick finds the image for architecture arch in what raw is: a manifest, or an index, maybe of
// indexes. Where several images fit equally, a registry's index means its first; with only set (an
// OCI layout, where they are different images) that is an error.
func pick(get getBlob, raw []byte, arch string, only bool) (picked, error) {
	found, err := flatten(get, raw, nil, 0)
	if err != nil {
		return picked{}, err
	}
	best, err := choose(found, arch, only)
	if err != nil {
		return picked{}, err
	}
	if best.raw == nil {
		if best.raw, err = verified(get, best.desc); err != nil {
			return picked{}, err
		}
	}
	m, err := v1.ParseManifest(bytes.NewReader(best.raw))
	if err != nil {
		return picked{}, fault.New(fault.Invalid, "read manifest: %w", err)
	}
	if m.SchemaVersion != 2 || m.Config.Digest.Hex == "" {
		return picked{}, fault.New(fault.Invalid, "read manifest: it is no OCI or Docker (schema 2) image manifest")
	}
	rawConfig, err := verified(get, m.Config)
	if err != nil {
		return picked{}, err
	}
	c, err := v1.ParseConfigFile(bytes.NewReader(rawConfig))
	if err != nil {
		return picked{}, fault.New(fault.Invalid, "read image config: %w", err)
	}
	p := picked{manifest: m, config: c, digests: append([]string{digestBytes(best.raw)}, best.via...)}
	p.digests = append(p.digests, m.Config.Digest.String())
	return p, checkImage(c, arch)
}

// checkImage refuses what cannot run here.
func checkImage(c *v1.ConfigFile, arch string) error {
	if c.OS != "" && c.OS != "linux" {
		return fault.New(fault.Invalid, "the image is for %s, want linux", c.OS)
	}
	if !runsOn(arch, c.Architecture) {
		return fault.New(fault.Invalid, "the image is for %s, this host is %s", c.Architecture, arch)
	}
	return checkConfig(c.Config)
}

// verified gets a small blob and compares size and digest.
func verified(get getBlob, d v1.Descriptor) ([]byte, error) {
	if d.Digest.Algorithm != "sha256" {
		return nil, fault.New(fault.Invalid, "blob %s: want a sha256 digest", d.Digest)
	}
	if d.Size > maxManifest {
		return nil, fault.New(fault.Invalid, "blob %s: it has %s, at most %s", d.Digest, units.FormatBytes(d.Size), units.FormatBytes(maxManifest))
	}
	b, err := get(d)
	if err != nil {
		return nil, fmt.Errorf("get blob %s: %w", d.Digest, err)
	}
	if got := digestBytes(b); got != d.Digest.String() {
		return nil, fault.New(fault.Invalid, "verify blob %s: it has digest %s", d.Digest, got)
	}
	return b, nil
}

// candidate is an image in an index, or raw itself.
type candidate struct {
	desc v1.Descriptor
	raw  []byte   // the manifest, nil if not read yet
	via  []string // digests of the indexes above it
}

// flatten lists the images of an index and of the indexes in it.
func flatten(get getBlob, raw []byte, via []string, depth int) ([]candidate, error) {
	const maxDepth, maxImages = 3, 1000
	var probe struct {
		SchemaVersion int               `json:"schemaVersion"`
		Manifests     []json.RawMessage `json:"manifests"`
		Config        json.RawMessage   `json:"config"`
	}
	if err := json.Unmarshal(raw, &probe); err != nil {
		return nil, fault.New(fault.Invalid, "read manifest: %w", err)
	}
	if probe.Manifests == nil {
		return []candidate{{raw: raw, via: via}}, nil
	}
	index, err := v1.ParseIndexManifest(bytes.NewReader(raw))
	if err != nil {
		return nil, fault.New(fault.Invalid, "read image index: %w", err)
	}
	if depth >= maxDepth || len(index.Manifests) > maxImages {
		return nil, fault.New(fault.Invalid, "read image index: it is nested too deep or has more than %d images", maxImages)
	}
	via = append([]string{digestBytes(raw)}, via...)
	var all []candidate
	for _, d := range index.Manifests {
		switch {
		case d.MediaType.IsIndex():
			inner, err := verified(get, d)
			if err != nil {
				return nil, err
			}
			more, err := flatten(get, inner, via, depth+1)
			if err != nil {
				return nil, err
			}
			if all = append(all, more...); len(all) > maxImages {
				return nil, fault.New(fault.Invalid, "read image index: more than %d images", maxImages)
			}
		case d.MediaType.IsSchema1() || d.Annotations["vnd.docker.reference.type"] != "":
			// Nothing to run: attestations, and a format of before 2016.
		default:
			all = append(all, candidate{desc: d, via: via})
		}
	}
	return all, nil
}

// choose picks the candidate that fits the architecture best.
func choose(all []candidate, arch string, only bool) (candidate, error) {
	var fits []candidate
	best := 0
	var there []string
	for _, c := range all {
		p := c.desc.Platform
		if p != nil {
			there = append(there, p.String())
		}
		rank := platformRank(p, arch)
		if rank == 0 || rank < best {
			continue
		}
		if rank > best {
			best, fits = rank, nil
		}
		if !slices.ContainsFunc(fits, func(f candidate) bool { return f.raw == nil && f.desc.Digest == c.desc.Digest }) {
			fits = append(fits, c)
		}
	}
	switch {
	case len(fits) == 0:
		return candidate{}, fault.New(fault.Invalid, "no image for linux/%s: there is %s", arch, orNothing(there))
	case len(fits) > 1 && only:
		var names []string
		for _, f := range fits {
			names = append(names, f.desc.Digest.String()+" "+f.desc.Annotations["org.opencontainers.image.ref.name"])
		}
		return candidate{}, fault.New(fault.Invalid, "%d images for linux/%s, want one: %s", len(fits), arch, strings.Join(names, ", "))
	}
	return fits[0], nil
}

func orNothing(s []string) string {
	if len(s) == 0 {
		return "none"
	}
	return strings.Join(s, ", ")
}

// platformRank says how well a platform fits the architecture: 0 not at all, more is better. One that
// is not named is tried; its config will tell.
func platformRank(p *v1.Platform, arch string) int {
	if p == nil || p.OS == "" && p.Architecture == "" {
		return 1
	}
	if p.OS != "linux" || p.Architecture != arch {
		return 0
	}
	// A variant is a set of instructions that not every processor of the architecture has.
	rank := map[string]map[string]int{
		"amd64": {"": 9, "v1": 9},
		"arm64": {"": 9, "v8": 9},
		"arm":   {"v7": 9, "v6": 8, "v5": 7, "": 7},
	}[arch]
	if rank == nil {
		return 9
	}
	return rank[p.Variant]
}

// ociLayers checks the layers that a manifest names; open is still to be set.
func ociLayers(p picked, limits Limits) ([]layer, error) {
	ls, ids := p.manifest.Layers, p.config.RootFS.DiffIDs
	if len(ls) == 0 || len(ls) != len(ids) {
		return nil, fault.New(fault.Invalid, "read manifest: %d layers, the config has %d: it is no image of a root file system", len(ls), len(ids))
	}
	if len(ls) > maxLayers {
		return nil, fault.New(fault.Invalid, "read manifest: %d layers, at most %d", len(ls), maxLayers)
	}
	var all []layer
	var total int64
	for i, l := range ls {
		switch {
		case !l.MediaType.IsLayer():
			return nil, fault.New(fault.Invalid, "layer %s has type %s: want a tar, plain, gzip or zstd", l.Digest, l.MediaType)
		case !l.MediaType.IsDistributable():
			return nil, fault.New(fault.Invalid, "layer %s has type %s: it is kept elsewhere and is not fetched from there", l.Digest, l.MediaType)
		case l.Digest.Algorithm != "sha256" || ids[i].Algorithm != "sha256":
			return nil, fault.New(fault.Invalid, "layer %s: want sha256 digests", l.Digest)
		case l.Size <= 0 || l.Size > limits.Download-total:
			return nil, fault.New(fault.Invalid, "layer %s: %d bytes; all layers together may have %s", l.Digest, l.Size, units.FormatBytes(limits.Download))
		}
		total += l.Size
		all = append(all, layer{digest: l.Digest.String(), diffID: ids[i].String(), size: l.Size})
	}
	return all, nil
}

// newOCIContent is the image as a content; its layers' open is still to be set.
func newOCIContent(p picked, limits Limits) (*ociContent, error) {
	layers, err := ociLayers(p, limits)
	if err != nil {
		return nil, err
	}
	return &ociContent{
		what:   about{id: p.digests[0], digests: p.digests, architecture: p.config.Architecture, config: p.config.Config},
		layers: layers, max: limits.Download,
	}, nil
}
