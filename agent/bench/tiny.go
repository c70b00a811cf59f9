package bench

import (
	"archive/tar"
	"bytes"
	"fmt"
	"os"
	"time"
)

// tinyTar is the root file system of a server that only runs commands: a static BusyBox,
// which is its init too.
func tinyTar() ([]byte, error) {
	busybox, err := os.ReadFile("/bin/busybox")
	if err != nil {
		return nil, fmt.Errorf("make tiny image: %w (install busybox-static)", err)
	}
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	add := func(h tar.Header, body []byte) {
		h.Size, h.ModTime = int64(len(body)), time.Unix(0, 0)
		if err == nil {
			err = w.WriteHeader(&h)
		}
		if err == nil {
			_, err = w.Write(body)
		}
	}
	for _, d := range []string{"bin", "dev", "etc", "mnt", "proc", "root", "run", "sbin", "sys", "tmp", "usr", "var", "var/tmp"} {
		add(tar.Header{Name: d + "/", Typeflag: tar.TypeDir, Mode: 0o755}, nil)
	}
	add(tar.Header{Name: "bin/busybox", Typeflag: tar.TypeReg, Mode: 0o755}, busybox)
	add(tar.Header{Name: "sbin/init", Typeflag: tar.TypeSymlink, Linkname: "../bin/busybox", Mode: 0o777}, nil)
	for _, name := range []string{"sh", "echo", "cat", "cut", "dd", "true", "sleep", "mount", "umount", "poweroff", "httpd", "sync"} {
		add(tar.Header{Name: "bin/" + name, Typeflag: tar.TypeSymlink, Linkname: "busybox", Mode: 0o777}, nil)
	}
	// An init that has nothing to do: without a file it would look for terminals.
	add(tar.Header{Name: "etc/inittab", Typeflag: tar.TypeReg, Mode: 0o644}, []byte("::sysinit:/bin/true\n"))
	add(tar.Header{Name: "etc/passwd", Typeflag: tar.TypeReg, Mode: 0o644}, []byte("root:x:0:0:root:/root:/bin/sh\n"))
	add(tar.Header{Name: "etc/group", Typeflag: tar.TypeReg, Mode: 0o644}, []byte("root:x:0:\n"))
	if err == nil {
		err = w.Close()
	}
	if err != nil {
		return nil, fmt.Errorf("make tiny image: %w", err)
	}
	return b.Bytes(), nil
}
