package guard

import (
	"testing"
	"time"

	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
)

func TestPausesGrowToABound(t *testing.T) {
	want := []time.Duration{0, 200 * time.Millisecond, 400 * time.Millisecond, 800 * time.Millisecond}
	for n, w := range want {
		if got := pause(n); got != w {
			t.Errorf("pause(%d) = %s, want %s", n, got, w)
		}
	}
	for _, n := range []int{9, 20, 1 << 30} {
		if got := pause(n); got != lastPause {
			t.Errorf("pause(%d) = %s, want %s", n, got, lastPause)
		}
	}
	if failuresAfter(7, steady) != 1 || failuresAfter(7, steady-1) != 8 {
		t.Error("what ran for long has not failed before")
	}
}

func TestConfigIsChecked(t *testing.T) {
	good := Config{ID: "a", Enter: []string{"x"}, Program: Program{Argv: []string{"postgres"}, UID: 110}, LogFile: "/log"}
	if err := good.Validate(); err != nil {
		t.Fatal(err)
	}
	for name, spoil := range map[string]func(*Config){
		"no id":         func(c *Config) { c.ID = "" },
		"id is a path":  func(c *Config) { c.ID = "../a" },
		"no way in":     func(c *Config) { c.Enter = nil },
		"no program":    func(c *Config) { c.Program.Argv = nil },
		"root":          func(c *Config) { c.Program.UID = 0 },
		"log elsewhere": func(c *Config) { c.LogFile = "log" },
	} {
		c := good
		spoil(&c)
		if err := c.Validate(); !fault.Is(err, fault.Invalid) {
			t.Errorf("%s: %v", name, err)
		}
		if err := c.save(t.TempDir()); !fault.Is(err, fault.Invalid) {
			t.Errorf("%s is saved: %v", name, err)
		}
	}
	dir := t.TempDir()
	if err := good.save(dir); err != nil {
		t.Fatal(err)
	}
	if got, err := load(dir); err != nil || got.Program.UID != 110 {
		t.Errorf("%v %v", got, err)
	}
}
