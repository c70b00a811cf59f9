package console

import (
	"errors"
	"fmt"
	"io"
	"testing"
)

// drain reads what there is now.
func drain(t *testing.T, r io.Reader) string {
	t.Helper()
	var all []byte
	buffer := make([]byte, 7)
	for {
		n, err := r.Read(buffer)
		all = append(all, buffer[:n]...)
		if errors.Is(err, io.EOF) {
			return string(all)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// A tail sees every byte once and in order while files are set aside under it.
func TestTailFollowsThroughRotation(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	tail, err := OpenTail(dir, "web")
	if err != nil {
		t.Fatal(err)
	}
	defer tail.Close()
	if got := drain(t, tail); got != "" {
		t.Fatalf("an empty log has %q", got)
	}
	log, err := openRingLog(logPath(dir, "web"), 64)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	want, got := "", ""
	for i := range 200 {
		line := fmt.Sprintf("line %d\n", i)
		want += line
		if _, err := log.Write([]byte(line)); err != nil {
			t.Fatal(err)
		}
		if i%7 == 0 { // never more than the log's size behind
			got += drain(t, tail)
		}
	}
	if got += drain(t, tail); got != want {
		t.Errorf("got %d bytes, want %d:\n%s", len(got), len(want), got)
	}
}
