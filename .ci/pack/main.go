// Command pack makes a zip archive that depends on nothing but the files' contents, names
// and modes: `pack ARCHIVE FILE…`. Their time is SOURCE_DATE_EPOCH.
package main

import (
	"archive/zip"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"time"
)

func main() {
	if len(os.Args) < 3 {
		fmt.Fprintln(os.Stderr, "usage: pack ARCHIVE FILE…")
		os.Exit(2)
	}
	if err := pack(os.Args[1], os.Args[2:], os.Getenv("SOURCE_DATE_EPOCH")); err != nil {
		fmt.Fprintln(os.Stderr, "pack:", err)
		os.Exit(1)
	}
}

// pack writes the archive with the files side by side.
func pack(archive string, files []string, epoch string) (err error) {
	seconds, err := strconv.ParseInt(epoch, 10, 64)
	if err != nil {
		return fmt.Errorf("read SOURCE_DATE_EPOCH: %w", err)
	}
	out, err := os.Create(archive)
	if err != nil {
		return err
	}
	z := zip.NewWriter(out)
	for _, name := range files {
		if err = add(z, name, time.Unix(seconds, 0).UTC()); err != nil {
			break
		}
	}
	return errors.Join(err, z.Close(), out.Close())
}

func add(z *zip.Writer, name string, modified time.Time) error {
	in, err := os.Open(name)
	if err != nil {
		return err
	}
	defer in.Close()
	info, err := in.Stat()
	if err != nil {
		return err
	}
	h := &zip.FileHeader{Name: filepath.Base(name), Method: zip.Deflate, Modified: modified}
	// Only whether it is a program: the rest of the mode is the builder's umask.
	mode := os.FileMode(0o644)
	if info.Mode()&0o100 != 0 {
		mode = 0o755
	}
	h.SetMode(mode)
	to, err := z.CreateHeader(h)
	if err != nil {
		return err
	}
	_, err = io.Copy(to, in)
	return err
}
