//go:build linux && root

package cgroup

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/uuid"
)

// The group beside the servers is no server's, takes processes, and goes with the rest.
func TestBeside(t *testing.T) {
	m, err := Open(Config{Parent: "reflejo-beside-" + uuid.NewString()[:8]})
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		dirs, err := m.Beside()
		if err != nil || len(dirs) == 0 {
			t.Fatal(dirs, err)
		}
		for _, d := range dirs {
			if _, err := os.Stat(filepath.Join(d, "cgroup.procs")); err != nil {
				t.Error(err)
			}
			if b, err := os.ReadFile(filepath.Join(d, "cpu.shares")); err == nil && strings.TrimSpace(string(b)) != "262144" {
				t.Errorf("%s: %s", d, b)
			}
		}
	}
	if all, err := m.List(t.Context()); err != nil || len(all) != 0 {
		t.Errorf("listed as a server: %v %v", all, err)
	}
	if err := m.Destroy(context.Background()); err != nil {
		t.Fatal(err)
	}
	for _, d := range m.beside() {
		if _, err := os.Stat(d); !os.IsNotExist(err) {
			t.Errorf("%s is left: %v", d, err)
		}
	}
}
