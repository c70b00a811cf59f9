package console

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func readAll(t *testing.T, dir, id string) string {
	t.Helper()
	r, err := OpenLog(dir, id)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = r.Close() }()
	b, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestRingLogKeepsTheNewest(t *testing.T) {
	dir := t.TempDir()
	var all bytes.Buffer
	l, err := openRingLog(logPath(dir, "a"), 100)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 200 {
		line := fmt.Sprintf("line %d\n", i)
		all.WriteString(line)
		if _, err := l.Write([]byte(line)); err != nil {
			t.Fatal(err)
		}
		if i%50 == 0 { // as after a restart of the keeper
			if err := l.Close(); err != nil {
				t.Fatal(err)
			}
			if l, err = openRingLog(logPath(dir, "a"), 100); err != nil {
				t.Fatal(err)
			}
		}
		got := readAll(t, dir, "a")
		if !strings.HasSuffix(all.String(), got) || len(got) > 200 || (all.Len() > 100 && len(got) < 90) {
			t.Fatalf("after %d bytes the log is %q", all.Len(), got)
		}
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if err := RemoveLog(dir, "a"); err != nil {
		t.Fatal(err)
	}
	if left, _ := filepath.Glob(filepath.Join(dir, "*")); len(left) != 0 || readAll(t, dir, "a") != "" {
		t.Error("left:", left)
	}
}

func TestOpenLogEndsThere(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(logPath(dir, "a"), []byte("old"), 0o600); err != nil {
		t.Fatal(err)
	}
	r, err := OpenLog(dir, "a")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = r.Close() }()
	f, err := os.OpenFile(logPath(dir, "a"), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	_, _ = f.WriteString("new")
	_ = f.Close()
	if b, err := io.ReadAll(r); err != nil || string(b) != "old" {
		t.Errorf("%q, %v", b, err)
	}
}

func TestReadLine(t *testing.T) {
	r := strings.NewReader("cde\nrest")
	line, err := readLine(r, []byte("ab"))
	if rest, _ := io.ReadAll(r); err != nil || string(line) != "abcde\n" || string(rest) != "rest" {
		t.Errorf("%q, %q, %v", line, rest, err)
	}
	if _, err := readLine(strings.NewReader(strings.Repeat("x", maxLine+1)), nil); err == nil {
		t.Error("an endless line was read")
	}
}

func TestValidID(t *testing.T) {
	for id, want := range map[string]bool{"0b1e-aa": true, "": false, "..": false, "a/b": false, "A": false, "a.b": false, strings.Repeat("a", 65): false} {
		if ValidID(id) != want {
			t.Errorf("%q is %v", id, !want)
		}
	}
}
