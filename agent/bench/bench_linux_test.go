package bench

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestUnknownBenchmarkIsRefusedBeforeAnythingIsMade(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "bed")
	_, err := Run(t.Context(), Config{Dir: dir, Only: []string{"V1", "V99"}})
	if err == nil || !strings.Contains(err.Error(), `"V99"`) || !strings.Contains(err.Error(), "V13") {
		t.Errorf("error is %v, want one that names V99 and what there is", err)
	}
	if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a directory was made: %v", err)
	}
}

func TestBaseDiskIsTheOneOfThatSize(t *testing.T) {
	pool := t.TempDir()
	for name, size := range map[string]int64{"bases/sha256-ab.ext4": 100, "variants/sha256-ab.50.ext4": 50, "variants/sha256-cd.50.ext4": 50} {
		path := filepath.Join(pool, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, make([]byte, size), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := baseDisk(pool, "sha256:ab", 50); err != nil || got != filepath.Join(pool, "variants/sha256-ab.50.ext4") {
		t.Errorf("base disk is %s, %v", got, err)
	}
	if got, err := baseDisk(pool, "sha256:ab", 70); err == nil {
		t.Errorf("base disk of a size that is not there is %s", got)
	}
}

func TestTimeManyCountsFailures(t *testing.T) {
	all, slowest, failed := timeMany(4, func(i int) error {
		if i%2 == 0 {
			return os.ErrInvalid
		}
		return nil
	})
	if failed != 2 || slowest > all {
		t.Errorf("%d failed, slowest %v of %v", failed, slowest, all)
	}
}

func TestWatchFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "limit")
	write := func(text string) {
		if err := os.WriteFile(path+".new", []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(path+".new", path); err != nil {
			t.Fatal(err)
		}
	}
	write("1")
	w := watchFile(path)
	if err := w.stop(); err == nil {
		t.Error("a file that says the same is taken for changed")
	}
	w = watchFile(path)
	before := time.Now()
	write("2")
	select {
	case err := <-w.done:
		if err != nil || w.at.Before(before) {
			t.Errorf("change seen at %v, begun at %v, %v", w.at, before, err)
		}
	case <-t.Context().Done():
		t.Fatal("change not seen")
	}
}

func TestOwnProcessIsMeasured(t *testing.T) {
	if mib, err := residentMemory(os.Getpid()); err != nil || mib <= 0 {
		t.Errorf("this process has %v MiB, %v", mib, err)
	}
	if _, err := ticks(os.Getpid()); err != nil {
		t.Error(err)
	}
}

func TestLongestGapIsOfAMoment(t *testing.T) {
	since := time.Now()
	at := func(ms int) time.Time { return since.Add(time.Duration(ms) * time.Millisecond) }
	for name, c := range map[string]struct {
		answered []time.Time
		want     time.Duration
	}{
		"none":                    {nil, 0},
		"one":                     {[]time.Time{at(5)}, 0},
		"out of order":            {[]time.Time{at(50), at(10), at(20)}, 30 * time.Millisecond},
		"a gap from before":       {[]time.Time{at(-900), at(-10), at(10), at(20)}, 20 * time.Millisecond},
		"a gap that began before": {[]time.Time{at(-30), at(20)}, 50 * time.Millisecond},
	} {
		if got := longestGap(c.answered, since); got != c.want {
			t.Errorf("%s: %v, want %v", name, got, c.want)
		}
	}
}
