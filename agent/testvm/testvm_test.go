package testvm

import (
	"errors"
	"slices"
	"strings"
	"testing"
)

func TestParseControl(t *testing.T) {
	for _, tt := range []struct {
		name, content string
		commands      int
		codes         []int
		booted        bool
		noResult      bool
	}{
		{"all", "ready\nexit 0\nexit 3\n", 2, []int{0, 3}, true, false},
		{"one missing", "ready\nexit 0\n", 2, []int{0}, true, true},
		{"never booted", "", 1, nil, false, true},
		{"no commands", "ready\n", 0, nil, true, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			codes, booted, err := parseControl(tt.content, tt.commands)
			if !slices.Equal(codes, tt.codes) || booted != tt.booted || errors.Is(err, ErrNoResult) != tt.noResult {
				t.Errorf("got %v, %v, %v", codes, booted, err)
			}
		})
	}
	if _, _, err := parseControl("exit 700\n", 1); err == nil || errors.Is(err, ErrNoResult) {
		t.Errorf("an impossible exit code: %v", err)
	}
}

func TestArgs(t *testing.T) {
	m := Machine{Image: imageIn("/c,d"), Memory: 512, CPUs: 1}
	line := strings.Join(m.args("/w"), " ")
	for _, want := range []string{
		"-accel tcg", "-m 512", "-smp 1", "-kernel /c,d/vmlinuz", "snapshot=on,file=/c,,d/root.img",
		"readonly=on,file=/w/data.img", "-no-reboot", "name=testvm.control", "systemd.unified_cgroup_hierarchy=1",
	} {
		if !strings.Contains(line, want) {
			t.Errorf("no %q in %s", want, line)
		}
	}
}

func TestArgsOfAKeptDisk(t *testing.T) {
	m := Machine{Image: imageIn("/cache"), Disk: "/mine.img"}
	line := strings.Join(m.args("/w"), " ")
	if !strings.Contains(line, ",file=/mine.img") || strings.Contains(line, "snapshot") || strings.Contains(line, "root.img") {
		t.Error(line)
	}
}

func TestBootstrapArgs(t *testing.T) {
	args := bootstrapArgs(ImageConfig{Mirror: "http://mirror"}, "/it's", "/root.new")
	if got := args[len(args)-3:]; !slices.Equal(got, []string{Suite, "/root.new", "http://mirror"}) {
		t.Errorf("ends with %q", got)
	}
	if want := `cp -a '/it'\''s'/. "$1"/`; !strings.Contains(strings.Join(args, "\n"), want) {
		t.Errorf("no %s in %q", want, args)
	}
}

func TestKeyIsStable(t *testing.T) {
	if k := Key(); len(k) != 16 || k != Key() {
		t.Errorf("key %q", k)
	}
}
