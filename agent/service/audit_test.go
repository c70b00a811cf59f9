package service

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"testing"
)

// The log never takes more than its bound, and what it keeps is the newest, whole.
func TestAuditLogIsBounded(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "audit.log")
	const max, entries = 1000, 300
	log, err := openAudit(path, max)
	if err != nil {
		t.Fatal(err)
	}
	for i := range entries {
		if i == entries/2 { // as after a restart
			if log.Close() != nil {
				t.Fatal("close failed")
			}
			if log, err = openAudit(path, max); err != nil {
				t.Fatal(err)
			}
		}
		if err := log.Write(Entry{Who: "reflejo://operator/ci", Name: fmt.Sprint(i)}); err != nil {
			t.Fatal(err)
		}
	}
	defer log.Close()
	next := entries - 1
	names := []string{path}
	for i := 1; i <= auditKeep+1; i++ {
		names = append(names, fmt.Sprintf("%s.%d", path, i))
	}
	for i, name := range names {
		lines := auditLines(t, name)
		if (len(lines) == 0) != (i > auditKeep) {
			t.Errorf("%s has %d lines", name, len(lines))
		}
		if info, err := os.Stat(name); err == nil && (info.Size() > max || info.Mode().Perm() != 0o600) {
			t.Errorf("%s has %d bytes, mode %s", name, info.Size(), info.Mode())
		}
		for j := len(lines) - 1; j >= 0; j-- {
			if lines[j].Name != fmt.Sprint(next) {
				t.Fatalf("%s: found entry %s, want %d", name, lines[j].Name, next)
			}
			next--
		}
	}
}

func auditLines(t *testing.T, path string) (all []Entry) {
	t.Helper()
	f, err := os.Open(path)
	if os.IsNotExist(err) {
		return nil
	}
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		var e Entry
		if err := json.Unmarshal(s.Bytes(), &e); err != nil {
			t.Fatalf("%s: %v in %q", path, err, s.Text())
		}
		all = append(all, e)
	}
	return all
}
