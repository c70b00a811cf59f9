// Package backuptest has what every backup target must do, as a test to run against it.
package backuptest

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/reflejo/terraform-provider-reflejo/agent/backup"
	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
	"github.com/reflejo/terraform-provider-reflejo/agent/snapshot"
	"github.com/reflejo/terraform-provider-reflejo/agent/vserver"
)

// Manifest is that of a full backup of a disk that holds chunks 0 … n-1 of [Chunk].
func Manifest(server string, n int64) backup.Manifest {
	var sums snapshot.Sums
	for i := range n {
		sums = append(sums, sha256.Sum256(Chunk(i)))
	}
	return backup.Manifest{ID: uuid.NewString(), Origin: backup.OriginManual, Chunk: snapshot.ChunkSize, Snapshot: snapshot.Record{
		ID: uuid.NewString(), Server: server, ServerName: "web", Host: "alpha", Name: "nightly",
		Consistency: snapshot.ConsistencyCrash, Origin: snapshot.OriginBackup, Phase: snapshot.PhaseReady, ServerState: vserver.StateStopped,
		Size: n * snapshot.ChunkSize, Checksum: sums.Checksum(), Created: time.Date(2026, 3, 20, 0, 0, 0, 0, time.UTC)}}
}

// Chunk is the content of a chunk; it can't be packed.
func Chunk(i int64) []byte {
	p := make([]byte, snapshot.ChunkSize)
	rand.NewChaCha8([32]byte{byte(i + 1)}).Read(p)
	return p
}

// write writes a backup's chunks from where the upload is, until chunk stop; it commits if
// that is all of them, else it closes.
func write(t *testing.T, target backup.Target, m backup.Manifest, stop int64) backup.State {
	t.Helper()
	n := m.Snapshot.Size / snapshot.ChunkSize
	up, err := target.Append(t.Context(), ref(m), backup.MostBytes(m.Snapshot.Size))
	if err != nil {
		t.Fatalf("append: %v", err)
	}
	w, err := backup.NewWriter(up, m, up.State())
	if err != nil {
		t.Fatalf("go on: %v", err)
	}
	began := w.State()
	for i := w.State().Next / snapshot.ChunkSize; i < min(n, stop); i++ {
		if err := w.Data(i*snapshot.ChunkSize, Chunk(i)); err != nil {
			t.Fatalf("write chunk %d: %v", i, err)
		}
	}
	if stop < n {
		if err := up.Close(); err != nil {
			t.Fatalf("close: %v", err)
		}
		return began
	}
	if _, err := w.Close(); err != nil {
		t.Fatalf("end: %v", err)
	}
	if err := up.Commit(); err != nil {
		t.Fatalf("commit: %v", err)
	}
	return began
}

func ref(m backup.Manifest) backup.Ref {
	return backup.Ref{Server: m.Snapshot.Server, Backup: m.ID}
}

func read(t *testing.T, target backup.Target, r backup.Ref, offset int64) []byte {
	t.Helper()
	body, err := target.Open(t.Context(), r, offset)
	if err != nil {
		t.Fatalf("open at %d: %v", offset, err)
	}
	defer body.Close()
	all, err := io.ReadAll(body)
	if err != nil {
		t.Fatalf("read from %d: %v", offset, err)
	}
	return all
}

func wantKind(t *testing.T, what string, err error, kind fault.Kind) {
	t.Helper()
	if !fault.Is(err, kind) {
		t.Errorf("%s: %v, want %s", what, err, kind)
	}
}

func files(t *testing.T, target backup.Target, server string) string {
	t.Helper()
	all, err := target.List(t.Context(), server)
	if err != nil {
		t.Fatalf("list: %v", err)
	}
	n, complete := len(all), 0
	for _, f := range all {
		if f.Complete {
			complete++
		}
	}
	return fmt.Sprintf("%d files, %d complete", n, complete)
}

// Target is what every target must do. open opens the same target, which has nothing of
// anybody else's servers, as often as it is called.
func Target(t *testing.T, open func() backup.Target) {
	t.Run("whole", func(t *testing.T) { whole(t, open()) })
	t.Run("interrupted", func(t *testing.T) { interrupted(t, open) })
	t.Run("notes", func(t *testing.T) { notes(t, open()) })
	t.Run("race", func(t *testing.T) { race(t, open) })
	t.Run("refuses", func(t *testing.T) { refuses(t, open()) })
}

func whole(t *testing.T, target backup.Target) {
	server, ctx := uuid.NewString(), t.Context()
	m := Manifest(server, 2)
	wantKind(t, "open what is not there", second(target.Open(ctx, ref(m), 0)), fault.NotFound)
	if got := files(t, target, server); got != "0 files, 0 complete" {
		t.Errorf("before: %s", got)
	}
	write(t, target, m, 2)
	all := read(t, target, ref(m), 0)
	r, err := backup.NewReader(bytes.NewReader(all))
	for err == nil {
		_, err = r.Next()
	}
	if !errors.Is(err, io.EOF) {
		t.Fatalf("what was written does not read back: %v", err)
	}
	for _, offset := range []int64{1, int64(len(all)) / 2, int64(len(all)) - 1, int64(len(all))} {
		if !bytes.Equal(read(t, target, ref(m), offset), all[offset:]) {
			t.Errorf("from byte %d it reads otherwise", offset)
		}
	}
	found, err := target.List(ctx, server)
	if err != nil || len(found) != 1 || found[0] != (backup.File{Ref: ref(m), Size: int64(len(all)), Complete: true}) {
		t.Errorf("list: %+v, %v", found, err)
	}
	other := Manifest(uuid.NewString(), 1)
	write(t, target, other, 1)
	if found, err := target.List(ctx, ""); err != nil || len(found) < 2 {
		t.Errorf("list of all servers: %+v, %v", found, err)
	}
	if got := files(t, target, server); got != "1 files, 1 complete" {
		t.Errorf("list of one server of two: %s", got)
	}
	wantKind(t, "append to what is complete", second(target.Append(ctx, ref(m), 1)), fault.Exists)
	endless(t, target, server)
	for range 2 {
		if err := target.Delete(ctx, ref(m)); err != nil {
			t.Errorf("delete: %v", err)
		}
	}
	wantKind(t, "open what was deleted", second(target.Open(ctx, ref(m), 0)), fault.NotFound)
	if got := files(t, target, server); got != "0 files, 0 complete" {
		t.Errorf("after: %s", got)
	}
}

// endless writes more than it said.
func endless(t *testing.T, target backup.Target, server string) {
	r := backup.Ref{Server: server, Backup: uuid.NewString()}
	up, err := target.Append(t.Context(), r, 1<<20)
	if err != nil {
		t.Fatalf("append: %v", err)
	}
	for n := 0; n < 64 && err == nil; n++ { // it may be told late, over a network
		_, err = up.Write(Chunk(0))
	}
	wantKind(t, "write more than was said", err, fault.Invalid)
	up.Close()
	if err := target.Delete(t.Context(), r); err != nil {
		t.Errorf("delete: %v", err)
	}
}

// interrupted writes a file in three goes, large enough for more than one part of a store
// that takes parts.
func interrupted(t *testing.T, open func() backup.Target) {
	server := uuid.NewString()
	m := Manifest(server, 20)
	write(t, open(), m, 10)
	wantKind(t, "open what is not complete", second(open().Open(t.Context(), ref(m), 0)), fault.NotFound)
	if got := files(t, open(), server); got != "1 files, 0 complete" {
		t.Errorf("interrupted: %s", got)
	}
	write(t, open(), m, 13)
	write(t, open(), m, 20)
	if got := files(t, open(), server); got != "1 files, 1 complete" {
		t.Errorf("completed: %s", got)
	}
	got := read(t, open(), ref(m), 0)
	once := m
	if err := open().Delete(t.Context(), ref(m)); err != nil {
		t.Fatal(err)
	}
	write(t, open(), once, 20)
	if !bytes.Equal(got, read(t, open(), ref(once), 0)) {
		t.Error("a file written in three goes is not that written in one")
	}
	// What is unfinished can be deleted too.
	rest := Manifest(server, 20)
	write(t, open(), rest, 10)
	for _, r := range []backup.Ref{ref(rest), ref(once)} {
		if err := open().Delete(t.Context(), r); err != nil {
			t.Error(err)
		}
	}
	if got := files(t, open(), server); got != "0 files, 0 complete" {
		t.Errorf("after deleting an unfinished one: %s", got)
	}
}

func notes(t *testing.T, target backup.Target) {
	server, ctx := uuid.NewString(), t.Context()
	wantKind(t, "load what is not there", second(target.Load(ctx, server)), fault.NotFound)
	wantKind(t, "swap what is not there", target.Swap(ctx, server, []byte("one"), []byte("two")), fault.Aborted)
	if err := target.Swap(ctx, server, nil, []byte("one")); err != nil {
		t.Fatalf("swap: %v", err)
	}
	wantKind(t, "swap as if nothing were there", target.Swap(ctx, server, nil, []byte("two")), fault.Aborted)
	wantKind(t, "swap another", target.Swap(ctx, server, []byte("two"), []byte("three")), fault.Aborted)
	if err := target.Swap(ctx, server, []byte("one"), []byte("two")); err != nil {
		t.Fatalf("swap: %v", err)
	}
	if note, err := target.Load(ctx, server); err != nil || string(note) != "two" {
		t.Errorf("load: %q, %v", note, err)
	}
	if got := files(t, target, server); got != "0 files, 0 complete" {
		t.Errorf("a note is listed as backup: %s", got)
	}
	claims(t, target)
}

func claims(t *testing.T, target backup.Target) {
	ctx := t.Context()
	c := backup.Claim{Server: uuid.NewString(), Host: "alpha", Generation: 1, Time: time.Date(2026, 3, 20, 0, 0, 0, 0, time.UTC)}
	wantKind(t, "claim that nobody made", second(backup.GetClaim(ctx, target, c.Server)), fault.NotFound)
	for range 2 {
		if err := backup.PutClaim(ctx, target, c); err != nil {
			t.Fatalf("claim: %v", err)
		}
	}
	other := c
	other.Host = "beta"
	wantKind(t, "same generation of another host", backup.PutClaim(ctx, target, other), fault.Aborted)
	other.Generation = 2
	if err := backup.PutClaim(ctx, target, other); err != nil {
		t.Fatalf("claim of the next generation: %v", err)
	}
	wantKind(t, "older generation", backup.PutClaim(ctx, target, c), fault.Aborted)
	if got, err := backup.GetClaim(ctx, target, c.Server); err != nil || got != other {
		t.Errorf("claim: %+v, %v", got, err)
	}
}

// race has several hosts claim one server at once: one has it after, and knows.
func race(t *testing.T, open func() backup.Target) {
	server, hosts := uuid.NewString(), 6
	won := make(chan string, hosts)
	var wg sync.WaitGroup
	for i := range hosts {
		target, c := open(), backup.Claim{Server: server, Host: fmt.Sprintf("host-%d", i), Generation: 1}
		wg.Go(func() {
			switch err := backup.PutClaim(t.Context(), target, c); {
			case err == nil:
				won <- c.Host
			case !fault.Is(err, fault.Aborted):
				t.Errorf("claim: %v, want Aborted", err)
			}
		})
	}
	wg.Wait()
	close(won)
	got, err := backup.GetClaim(t.Context(), open(), server)
	if winner := <-won; err != nil || got.Host != winner || len(won) != 0 {
		t.Errorf("%s has it and %d more think so; the claim says %+v, %v", winner, len(won), got, err)
	}
}

func refuses(t *testing.T, target backup.Target) {
	ctx, id := t.Context(), uuid.NewString()
	for _, r := range []backup.Ref{{Server: "..", Backup: id}, {Server: id, Backup: "../x"}, {Server: id, Backup: ""}, {}} {
		wantKind(t, fmt.Sprintf("append %v", r), second(target.Append(ctx, r, 1)), fault.Invalid)
		wantKind(t, fmt.Sprintf("open %v", r), second(target.Open(ctx, r, 0)), fault.Invalid)
		wantKind(t, fmt.Sprintf("delete %v", r), target.Delete(ctx, r), fault.Invalid)
	}
	wantKind(t, "load a path", second(target.Load(ctx, "../x")), fault.Invalid)
	wantKind(t, "swap a path", target.Swap(ctx, "../x", nil, []byte("x")), fault.Invalid)
	if found, err := target.List(ctx, id); err != nil || len(found) != 0 {
		t.Errorf("list of a server that has none: %v, %v", found, err)
	}
}

func second[T any](_ T, err error) error { return err }
