package testbed

import (
	"errors"
	"os"
	"slices"
	"testing"
)

func TestParseStat(t *testing.T) {
	const rest = " 0 0 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 123456 1000 50"
	p, parent, err := parseStat("42 (a) b (c) S 7" + rest)
	if err != nil || p != (process{PID: 42, Start: 123456}) || parent != 7 {
		t.Errorf("parseStat = %v, %d, %v", p, parent, err)
	}
	if _, _, err := parseStat("42 (sh) Z 7" + rest); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a zombie gives %v, want that it does not exist", err)
	}
	if _, _, err := parseStat("42 (sh) S"); err == nil {
		t.Error("half a line is read")
	}
}

func TestProcessIsNotALaterOne(t *testing.T) {
	self, err := readProcess(os.Getpid())
	if err != nil || !self.alive() {
		t.Fatalf("readProcess = %v, %v", self, err)
	}
	earlier := process{PID: self.PID, Start: self.Start - 1}
	if earlier.alive() {
		t.Error("an earlier process with our id is taken for us")
	}
	if err := earlier.kill(); err != nil { // we would not see the next line
		t.Error(err)
	}
}

func TestParseMounts(t *testing.T) {
	const text = `22 27 0:21 / /proc rw,relatime - proc proc rw
30 27 0:4 net:[1] /run/netns/a\040b rw shared:5 - nsfs nsfs rw
31 27 7:0 / /mnt rw - ext4 /dev/loop0 rw
nonsense
`
	got := parseMounts(text)
	want := []mount{{"/proc", "proc", "proc"}, {"/run/netns/a b", "nsfs", "nsfs"}, {"/mnt", "ext4", "/dev/loop0"}}
	if !slices.Equal(got, want) {
		t.Errorf("parseMounts = %v, want %v", got, want)
	}
	for i, foreign := range []bool{false, true, true} {
		if got[i].foreign() != foreign {
			t.Errorf("%v foreign: %v", got[i], !foreign)
		}
	}
}
