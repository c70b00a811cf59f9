package testbed

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"connectrpc.com/connect"
	"golang.org/x/sys/unix"

	reflejov1 "github.com/reflejo/terraform-provider-reflejo/agent/api/reflejo/v1"
)

// EnvCache names the directory where images are kept between runs.
const EnvCache = "REFLEJO_CACHE"

// CacheDir is where images are kept between runs: $REFLEJO_CACHE, else "reflejo" in the
// user's cache directory.
func CacheDir() (string, error) {
	if dir := os.Getenv(EnvCache); dir != "" {
		return filepath.Abs(dir)
	}
	dir, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("find cache directory: %w: set %s", err, EnvCache)
	}
	return filepath.Join(dir, "reflejo"), nil
}

// imageDir is the part of the cache that agents may import from.
func imageDir() (string, error) {
	dir, err := CacheDir()
	if err != nil {
		return "", err
	}
	dir = filepath.Join(dir, "images")
	return dir, os.MkdirAll(dir, 0o755)
}

// File is the image's tar.zst in the cache. It is made there first if need be, which takes
// a minute and a Debian archive; two processes that want it make it once.
func (i Image) File(ctx context.Context) (string, error) {
	dir, err := imageDir()
	if err != nil {
		return "", err
	}
	file := filepath.Join(dir, i.fileName())
	lock, err := os.OpenFile(file+".lock", os.O_CREATE|os.O_RDWR|unix.O_CLOEXEC, 0o644)
	if err != nil {
		return "", err
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		return "", fmt.Errorf("lock %s: %w", lock.Name(), err)
	}
	if _, err := os.Stat(file); err == nil {
		return file, nil
	}
	half := filepath.Join(dir, ".half-"+i.fileName()) // the ending tells mmdebstrap the format
	defer os.Remove(half)
	var out bytes.Buffer
	cmd := exec.CommandContext(ctx, "mmdebstrap", append(i.recipe(), half)...)
	cmd.Stdout, cmd.Stderr = &out, &out
	cmd.Cancel = func() error { return cmd.Process.Signal(unix.SIGTERM) } // it unmounts what it mounted
	cmd.WaitDelay = 10 * time.Second
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("make image %s with mmdebstrap: %w\n%s", i.Name, err, out.Bytes())
	}
	return file, os.Rename(half, file)
}

// Import makes the image known to every host of the bed, under its name, and returns its id.
func (b *Bed) Import(ctx context.Context, i Image) (id string, err error) {
	file, err := i.File(ctx)
	if err != nil {
		return "", err
	}
	return b.ImportSource(ctx, i.Name, "host:"+file)
}

// ImportSource imports an image into every host of the bed at once.
func (b *Bed) ImportSource(ctx context.Context, name, source string) (id string, err error) {
	type result struct {
		id  string
		err error
	}
	results := make(chan result)
	for _, host := range b.n.hosts() {
		go func() {
			id, err := b.importOne(ctx, host, name, source)
			results <- result{id, err}
		}()
	}
	var errs []error
	for range b.n.hosts() {
		r := <-results
		errs = append(errs, r.err)
		if id == "" {
			id = r.id
		}
	}
	return id, errors.Join(errs...)
}

func (b *Bed) importOne(ctx context.Context, host, name, source string) (id string, err error) {
	client, err := b.Client(host)
	if err != nil {
		return "", err
	}
	defer client.Close()
	stream, err := client.Images.ImportImage(ctx, connect.NewRequest(&reflejov1.ImportImageRequest{Name: name, Source: source}))
	if err != nil {
		return "", fmt.Errorf("import %s on %s: %w", name, host, err)
	}
	defer stream.Close()
	for stream.Receive() {
		if image := stream.Msg().GetImage(); image != nil {
			id = image.GetId()
		}
	}
	if err := stream.Err(); err != nil {
		return "", fmt.Errorf("import %s on %s: %w", name, host, err)
	}
	if id == "" {
		return "", fmt.Errorf("import %s on %s: the agent ended the answer without an image", name, host)
	}
	return id, nil
}
