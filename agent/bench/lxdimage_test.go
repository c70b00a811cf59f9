package bench

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"slices"
	"testing"
)

func TestLXDImage(t *testing.T) {
	var in bytes.Buffer
	w := tar.NewWriter(&in)
	for _, h := range []tar.Header{
		{Name: "./", Typeflag: tar.TypeDir, Mode: 0o755},
		{Name: "./bin/a", Typeflag: tar.TypeReg, Mode: 0o755, Size: 5},
		{Name: "bin/b", Typeflag: tar.TypeLink, Linkname: "./bin/a"},
		{Name: "bin/c", Typeflag: tar.TypeSymlink, Linkname: "../bin/a"},
		{Name: "dev/null", Typeflag: tar.TypeChar},
	} {
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if h.Size > 0 {
			if _, err := io.WriteString(w, "hello"); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if err := lxdImage(&out, &in); err != nil {
		t.Fatal(err)
	}
	var got []string
	for r := tar.NewReader(&out); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		line := h.Name + " " + h.Linkname
		if h.Name != "metadata.yaml" {
			line += string(body)
		}
		got = append(got, line)
	}
	want := []string{"metadata.yaml ", "rootfs/ ", "rootfs/bin/a hello", "rootfs/bin/b rootfs/bin/a", "rootfs/bin/c ../bin/a"}
	if !slices.Equal(got, want) {
		t.Errorf("the image has\n%q, want\n%q", got, want)
	}
}
