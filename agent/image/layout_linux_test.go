package image_test

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/tarball"

	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
	"github.com/reflejo/terraform-provider-reflejo/agent/image"
)

// tarDir is the tar of a directory.
func tarDir(t testing.TB, dir string) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	if err := errors.Join(w.AddFS(os.DirFS(dir)), w.Close()); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestImportLayouts(t *testing.T) {
	img := application(t)
	id := must(img.Digest())(t).String()
	configID := must(img.ConfigName())(t).String()
	newLayout := func(dir string) layout.Path {
		p := must(layout.Write(dir, empty.Index))(t)
		if err := p.AppendImage(img); err != nil {
			t.Fatal(err)
		}
		return p
	}
	h := newHost(t, nil)
	newLayout(filepath.Join(h.dirs, "layout"))
	layoutTar := tarDir(t, filepath.Join(h.dirs, "layout"))
	var saved bytes.Buffer
	if err := tarball.Write(must(name.ParseReference("example.com/app:1"))(t), img, &saved); err != nil {
		t.Fatal(err)
	}
	for name, source := range map[string]string{
		"directory": "host:" + filepath.Join(h.dirs, "layout"),
		"tar":       h.write(t, "layout.tar", layoutTar),
		"tar-gz":    h.write(t, "layout.tar.gz", gz(t, layoutTar)),
		"tar-zst":   h.write(t, "layout.tar.zst", zst(t, layoutTar)),
		"saved":     h.write(t, "saved.tar", saved.Bytes()),
		"docker":    h.write(t, "docker.tar", dockerSave(t, img)),
	} {
		t.Run(name, func(t *testing.T) {
			h := newHost(t, func(c *image.Config) { c.Dirs = []string{h.dirs} })
			info, err := h.Import(t.Context(), name, source, "", nil)
			if err != nil {
				t.Fatal(err)
			}
			want := id
			if name == "saved" || name == "docker" {
				want = configID
			}
			wantApplication(t, h, info, want)
			if data, err := os.ReadFile(strings.TrimPrefix(source, "host:")); err == nil {
				for i, checksum := range []string{digest(data), want} { // of the file, or of the image
					info, err := h.Upload(t.Context(), fmt.Sprint(name, i), "./x", checksum, 0, bytes.NewReader(data), nil)
					if err != nil || info.ID != want {
						t.Errorf("upload: %+v, %v", info, err)
					}
					if _, err = h.Import(t.Context(), fmt.Sprint(name, "-", i), source, checksum, nil); err != nil {
						t.Errorf("import with checksum: %v", err)
					}
				}
				if _, err := h.Import(t.Context(), "wrong", source, digest(nil), nil); fault.FieldOf(err) != "checksum" {
					t.Errorf("wrong checksum: %v", err)
				}
			}
		})
	}
}

// dockerSave is what `docker save` of before 2024 writes: a directory per layer, a link for a layer that
// is there twice.
func dockerSave(t testing.TB, img v1.Image) []byte {
	t.Helper()
	config := must(img.RawConfigFile())(t)
	id := strings.TrimPrefix(digest(config), "sha256:")
	content := []string{id + ".json=" + string(config)}
	var names []string
	for i, l := range must(img.Layers())(t) {
		dir := strings.Repeat(fmt.Sprint(i), 64)
		plain := must(io.ReadAll(must(l.Uncompressed())(t)))(t)
		if i == 1 { // in another directory, linked to
			real := strings.Repeat("f", 64)
			content = append(content, real+"/", real+"/layer.tar="+string(plain), dir+"/", dir+"/layer.tar=-> ../"+real+"/layer.tar")
		} else {
			content = append(content, dir+"/", dir+"/VERSION=1.0", dir+"/json={}", dir+"/layer.tar="+string(plain))
		}
		names = append(names, dir+"/layer.tar")
	}
	manifest := must(json.Marshal([]map[string]any{{"Config": id + ".json", "RepoTags": []string{"app:1"}, "Layers": names}}))(t)
	content = append(content, "manifest.json="+string(manifest), "repositories={}")
	return files(t, content...)
}

func TestBadLayouts(t *testing.T) {
	img := application(t)
	for name, spoil := range map[string]func(p layout.Path) error{
		"two images": func(p layout.Path) error {
			return p.AppendImage(build(t, runtime.GOARCH, v1.Config{}, files(t, "other=x")))
		},
		"no image": func(p layout.Path) error {
			return os.WriteFile(filepath.Join(string(p), "index.json"), []byte(`{"schemaVersion":2,"manifests":[]}`), 0o644)
		},
		"no JSON": func(p layout.Path) error {
			return os.WriteFile(filepath.Join(string(p), "index.json"), []byte("x"), 0o644)
		},
		"huge index":    func(p layout.Path) error { return os.Truncate(filepath.Join(string(p), "index.json"), 5<<20) },
		"layer missing": func(p layout.Path) error { return spoilLayer(p, img, func(f string) error { return os.Remove(f) }) },
		"layer changed": func(p layout.Path) error {
			return spoilLayer(p, img, func(f string) error {
				b, err := os.ReadFile(f)
				b[len(b)/2] ^= 1
				os.Remove(f)
				return errors.Join(err, os.WriteFile(f, b, 0o644))
			})
		},
		"layer longer": func(p layout.Path) error {
			return spoilLayer(p, img, func(f string) error {
				b, err := os.ReadFile(f)
				os.Remove(f)
				return errors.Join(err, os.WriteFile(f, append(b, 0), 0o644))
			})
		},
		"layer is a link out": func(p layout.Path) error {
			return spoilLayer(p, img, func(f string) error {
				os.Remove(f)
				return os.Symlink("/etc/passwd", f)
			})
		},
		"index is a link out": func(p layout.Path) error {
			f := filepath.Join(string(p), "index.json")
			return errors.Join(os.Remove(f), os.Symlink("/etc/passwd", f))
		},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHost(t, nil)
			dir := filepath.Join(h.dirs, "layout")
			p := must(layout.Write(dir, empty.Index))(t)
			if err := p.AppendImage(img); err != nil {
				t.Fatal(err)
			}
			if err := spoil(p); err != nil {
				t.Fatal(err)
			}
			_, err := h.Import(t.Context(), "x", "host:"+dir, "", nil)
			if err == nil || !fault.Is(err, fault.Invalid) && !strings.Contains(name, "link out") {
				t.Errorf("%v, want it refused as fault.Invalid", err)
			}
			h.nothingLeft(t)
		})
	}
}

func spoilLayer(p layout.Path, img v1.Image, change func(file string) error) error {
	layers, err := img.Layers()
	if err != nil {
		return err
	}
	d, err := layers[1].Digest()
	if err != nil {
		return err
	}
	return change(filepath.Join(string(p), "blobs", "sha256", d.Hex))
}
