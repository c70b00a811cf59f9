package store

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"
)

func TestLockHolder(t *testing.T) {
	const locks = `1: POSIX  ADVISORY  WRITE 7 fe:00:42 0 EOF
2: FLOCK  ADVISORY  WRITE 1234 fe:00:42 0 EOF
2: -> FLOCK  ADVISORY  WRITE 99 fe:00:43 0 EOF
3: FLOCK  ADVISORY  READ  55 08:11:42 0 EOF
short
`
	for _, c := range []struct {
		major, minor uint32
		inode        uint64
		want         int
	}{{0xfe, 0, 42, 1234}, {8, 0x11, 42, 55}, {0xfe, 0, 43, 0}, {0xfe, 0, 44, 0}} {
		if got := lockHolder(strings.NewReader(locks), c.major, c.minor, c.inode); got != c.want {
			t.Errorf("%+v: %d", c, got)
		}
	}
}

func TestHolderIsNamed(t *testing.T) {
	db := openTest(t)
	_, err := open(db.Path(), 100*time.Millisecond)
	if want := fmt.Sprintf("this process (%d)", os.Getpid()); !strings.Contains(err.Error(), want) {
		t.Fatalf("%v: want it to name %s", err, want)
	}
}
