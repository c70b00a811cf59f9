package demo

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"io"
	"log"
	"net/http"
	"os"
	"runtime"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"

	"github.com/reflejo/terraform-provider-reflejo/agent/testbed"
)

// busybox is a program without libraries that is a shell and a web server (Debian's
// busybox-static).
const busybox = "/bin/busybox"

// page is what the hello image answers.
const page = "Hello from an OCI image.\n"

// serveHello runs a registry in the operator's place with an image of one program in it,
// and returns the image's name. It ends with ctx.
func serveHello(ctx context.Context, bed *testbed.Bed) (string, error) {
	address := fmt.Sprintf("%s:%d", testbed.Address(testbed.Operator), testbed.RegistryPort)
	l, err := bed.Listen(ctx, "tcp", address)
	if err != nil {
		return "", fmt.Errorf("start registry: %w", err)
	}
	server := &http.Server{Handler: registry.New(registry.Logger(log.New(io.Discard, "", 0))), ReadHeaderTimeout: 10 * time.Second}
	context.AfterFunc(ctx, func() { server.Close() })
	go server.Serve(l)

	image, err := helloImage()
	if err != nil {
		return "", fmt.Errorf("make hello image: %w", err)
	}
	tag, err := name.NewTag(address+"/hello:1", name.Insecure)
	if err != nil {
		return "", err
	}
	transport := &http.Transport{DialContext: bed.Dial}
	defer transport.CloseIdleConnections()
	if err := remote.Write(tag, image, remote.WithContext(ctx), remote.WithTransport(transport)); err != nil {
		return "", fmt.Errorf("push hello image: %w", err)
	}
	return "oci://" + tag.Name(), nil
}

// helloImage is busybox as a web server with one page.
func helloImage() (v1.Image, error) {
	program, err := os.ReadFile(busybox)
	if err != nil {
		return nil, err
	}
	var layer bytes.Buffer
	t := tar.NewWriter(&layer)
	for _, f := range []struct {
		header tar.Header
		text   []byte
	}{
		{tar.Header{Name: "bin/", Typeflag: tar.TypeDir, Mode: 0o755}, nil},
		{tar.Header{Name: "bin/busybox", Typeflag: tar.TypeReg, Mode: 0o755}, program},
		{tar.Header{Name: "bin/sh", Typeflag: tar.TypeSymlink, Linkname: "busybox"}, nil},
		{tar.Header{Name: "www/", Typeflag: tar.TypeDir, Mode: 0o755}, nil},
		{tar.Header{Name: "www/index.html", Typeflag: tar.TypeReg, Mode: 0o644}, []byte(page)},
	} {
		f.header.Size = int64(len(f.text))
		if err := t.WriteHeader(&f.header); err != nil {
			return nil, err
		}
		if _, err := t.Write(f.text); err != nil {
			return nil, err
		}
	}
	if err := t.Close(); err != nil {
		return nil, err
	}
	l, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(layer.Bytes())), nil })
	if err != nil {
		return nil, err
	}
	image, err := mutate.AppendLayers(empty.Image, l)
	if err != nil {
		return nil, err
	}
	return mutate.ConfigFile(image, &v1.ConfigFile{
		OS: "linux", Architecture: runtime.GOARCH,
		Config: v1.Config{Entrypoint: []string{"/bin/busybox", "httpd", "-f", "-p", "80", "-h", "/www"}},
		RootFS: rootFS(image),
	})
}

// rootFS is the image's own: a new configuration would lose it.
func rootFS(image v1.Image) v1.RootFS {
	if c, err := image.ConfigFile(); err == nil {
		return c.RootFS
	}
	return v1.RootFS{}
}
