//go:build linux

// Command record runs inside a virtual server and writes what tests count on: numbered
// records with checksums, each on stable storage before it is named.
//
//	record write FILE    appends records for ever; prints the number of each once it is on
//	                     stable storage, and of the first one that was there already
//	record check FILE    prints the number of the last record, and fails if one before it is
//	                     missing or damaged
package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// A record is its number, filler made from it, and a checksum.
const size = 4096

func main() {
	if len(os.Args) != 3 {
		fail(errors.New("usage: record write|check FILE"))
	}
	f, err := os.OpenFile(os.Args[2], os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		fail(err)
	}
	last, err := check(f)
	if err != nil {
		fail(err)
	}
	fmt.Println(last)
	if os.Args[1] == "write" {
		fail(write(f, last+1))
	}
}

func make1(n uint64) []byte {
	b := make([]byte, size)
	for i := 0; i < size-8; i += 8 {
		binary.LittleEndian.PutUint64(b[i:], n*uint64(i+1))
	}
	binary.LittleEndian.PutUint32(b[size-4:], crc32.ChecksumIEEE(b[:size-4]))
	return b
}

// check returns the number of the last whole record. A torn one at the end was never named.
func check(f *os.File) (uint64, error) {
	b := make([]byte, size)
	for n := uint64(1); ; n++ {
		_, err := io.ReadFull(f, b)
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			_, err := f.Seek(int64(n-1)*size, io.SeekStart)
			return n - 1, err
		}
		if err != nil {
			return 0, err
		}
		if binary.LittleEndian.Uint64(b) != n || binary.LittleEndian.Uint32(b[size-4:]) != crc32.ChecksumIEEE(b[:size-4]) {
			return 0, fmt.Errorf("record %d is damaged", n)
		}
	}
}

func write(f *os.File, n uint64) error {
	for ; ; n++ {
		if _, err := f.Write(make1(n)); err != nil {
			return err
		}
		if err := unix.Fdatasync(int(f.Fd())); err != nil {
			return err
		}
		fmt.Println(n)
		time.Sleep(time.Millisecond) // the disk is small
	}
}

func fail(err error) {
	fmt.Fprintln(os.Stderr, "record:", err)
	os.Exit(1)
}
