package bench

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"strings"
	"time"

	"github.com/klauspost/compress/zstd"
)

// lxdImage writes a root file system's tar as an image of LXD: the same files below
// rootfs/, and a description.
func lxdImage(to io.Writer, from io.Reader) error {
	out := tar.NewWriter(to)
	arch := map[string]string{"amd64": "x86_64", "arm64": "aarch64"}[runtime.GOARCH]
	text := fmt.Sprintf("architecture: %s\ncreation_date: %d\nproperties:\n  os: bench\n", arch, time.Now().Unix())
	head := tar.Header{Name: "metadata.yaml", Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(len(text)), ModTime: time.Now()}
	if err := out.WriteHeader(&head); err != nil {
		return err
	}
	if _, err := io.WriteString(out, text); err != nil {
		return err
	}
	in := tar.NewReader(from)
	for {
		h, err := in.Next()
		if errors.Is(err, io.EOF) {
			return out.Close()
		}
		if err != nil {
			return fmt.Errorf("read image: %w", err)
		}
		if h.Typeflag == tar.TypeBlock || h.Typeflag == tar.TypeChar { // nobody may make them in a user namespace
			continue
		}
		h.Name = "rootfs/" + strings.TrimPrefix(h.Name, "./")
		if h.Typeflag == tar.TypeLink {
			h.Linkname = "rootfs/" + strings.TrimPrefix(h.Linkname, "./")
		}
		if err := out.WriteHeader(h); err != nil {
			return err
		}
		if _, err := io.Copy(out, in); err != nil {
			return err
		}
	}
}

// lxdImageFile is lxdImage of a tar.zst.
func lxdImageFile(to io.Writer, file string) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	z, err := zstd.NewReader(f)
	if err != nil {
		return err
	}
	defer z.Close()
	return lxdImage(to, z)
}
