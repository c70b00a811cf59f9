package sysctl

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestRaiseOnlyRaises(t *testing.T) {
	root := t.TempDir()
	write := func(name, value string) {
		p := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, []byte(value), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write("fs/inotify/max_user_instances", "128\n")
	write("vm/max_map_count", "1000000\n")
	if err := Raise(root); err != nil { // all others are missing, as on another kernel
		t.Fatal(err)
	}
	for name, want := range map[string]string{"fs/inotify/max_user_instances": "2147483647", "vm/max_map_count": "1000000\n"} {
		if got, _ := os.ReadFile(filepath.Join(root, name)); string(got) != want {
			t.Errorf("%s = %q, want %q", name, got, want)
		}
	}
	write("kernel/pid_max", "many")
	if err := Raise(root); err == nil || !strings.Contains(err.Error(), "kernel/pid_max") {
		t.Errorf("an unreadable table: %v", err)
	}
}

func TestTablesAreSound(t *testing.T) {
	seen := map[string]bool{}
	for _, table := range Tables() {
		if seen[table.Name] || table.Why == "" || table.AtLeast <= 0 || strings.HasPrefix(table.Name, "/") {
			t.Errorf("bad table %+v", table)
		}
		seen[table.Name] = true
	}
}
