package store

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	bolt "go.etcd.io/bbolt"

	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
)

type record struct {
	Name string
	Size int64
}

func openTest(t *testing.T) *DB {
	t.Helper()
	db, err := Open(filepath.Join(t.TempDir(), "state.db"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	return db
}

func TestBucketKeepsValues(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state.db")
	db, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	b := db.Bucket("images")
	var got record
	if found, err := b.Get("a", &got); found || err != nil {
		t.Fatalf("get from an empty store: %v, %v", found, err)
	}
	for _, k := range []string{"b", "a", "c"} {
		if err := b.Put(k, record{k, 1}); err != nil {
			t.Fatal(err)
		}
	}
	if err := b.Put("a", record{"a", 2}); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(b.Delete("c"), b.Delete("c"), db.Bucket("none").Delete("x")); err != nil {
		t.Fatal(err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}

	db, err = Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	b = db.Bucket("images")
	if found, err := b.Get("a", &got); !found || err != nil || got != (record{"a", 2}) {
		t.Fatalf("get a: %v, %v, %+v", found, err, got)
	}
	var list []string
	if err := b.ForEach(func(k string, v []byte) error { list = append(list, k+"="+string(v)); return nil }); err != nil {
		t.Fatal(err)
	}
	if got, want := strings.Join(list, " "), `a={"Name":"a","Size":2} b={"Name":"b","Size":1}`; got != want {
		t.Fatalf("list: %s, want %s", got, want)
	}
	if info, _ := os.Stat(path); info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v", info.Mode())
	}
}

func TestForEachMayWriteAndStopsAtError(t *testing.T) {
	db := openTest(t)
	b := db.Bucket("x")
	for i := range 5 {
		if err := b.Put(fmt.Sprint(i), i); err != nil {
			t.Fatal(err)
		}
	}
	stop := errors.New("stop")
	calls := 0
	err := b.ForEach(func(k string, _ []byte) error {
		if calls++; calls == 3 {
			return stop
		}
		return b.Delete(k)
	})
	if !errors.Is(err, stop) || calls != 3 {
		t.Fatalf("%v after %d calls", err, calls)
	}
}

func TestUpdateIsAllOrNothing(t *testing.T) {
	db := openTest(t)
	boom := fault.New(fault.Invalid, "boom")
	err := db.Update(func(tx *Tx) error {
		if err := tx.Put("a", "k", 1); err != nil {
			return err
		}
		var v int
		if found, err := tx.Get("a", "k", &v); !found || err != nil || v != 1 {
			t.Errorf("own change not seen: %v %v %d", found, err, v)
		}
		return boom
	})
	if !fault.Is(err, fault.Invalid) {
		t.Fatal(err)
	}
	var v int
	if found, _ := db.Bucket("a").Get("k", &v); found {
		t.Fatal("a failed update left a value")
	}
	err = db.Update(func(tx *Tx) error {
		return errors.Join(tx.Put("a", "k", 1), tx.Put("b", "k", 2), tx.Put("b", "gone", 3), tx.Delete("b", "gone"), tx.Delete("none", "k"))
	})
	if err != nil {
		t.Fatal(err)
	}
	if found, _ := db.Bucket("b").Get("k", &v); !found || v != 2 {
		t.Fatalf("b/k: %v %d", found, v)
	}
	if found, _ := db.Bucket("b").Get("gone", &v); found {
		t.Fatal("deleted key is there")
	}
}

func TestConcurrentUse(t *testing.T) {
	db := openTest(t)
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			b := db.Bucket(fmt.Sprint("b", i%2))
			for j := range 5 {
				var v int
				err := b.Put(fmt.Sprint(i), j)
				if _, gerr := b.Get(fmt.Sprint(i), &v); err != nil || gerr != nil || v != j {
					t.Error(err, gerr, v, j)
				}
			}
		})
	}
	wg.Wait()
}

func TestOpenNamesTheHolder(t *testing.T) {
	db := openTest(t)
	_, err := open(db.Path(), 100*time.Millisecond)
	if !fault.Is(err, fault.Unavailable) || !strings.Contains(err.Error(), db.Path()) {
		t.Fatal(err)
	}
	t.Log(err)
}

// TestOpenTogether: of many processes that start at once on an empty directory one makes the
// file, and none overwrites another's.
func TestOpenTogether(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state.db")
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			db, err := open(path, time.Minute)
			if err != nil {
				t.Error(err)
				return
			}
			if err := errors.Join(db.Bucket("x").Put(fmt.Sprint(i), i), db.Close()); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	db, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	n := 0
	if err := db.Bucket("x").ForEach(func(string, []byte) error { n++; return nil }); err != nil || n != 8 {
		t.Fatalf("%d values, %v", n, err)
	}
	entries, _ := os.ReadDir(filepath.Dir(path))
	if len(entries) != 1 {
		t.Fatalf("left over: %v", entries)
	}
}

func TestOpenRemovesLeftovers(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state.db")
	left := path + ".new-1-2"
	if err := os.WriteFile(left, []byte("half"), 0o600); err != nil {
		t.Fatal(err)
	}
	db, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	db.Close()
	if _, err := os.Stat(left); err == nil {
		t.Fatal("still there")
	}
}

func TestOpenRefusesNewerSchema(t *testing.T) {
	db := openTest(t)
	if err := db.Update(func(tx *Tx) error { return tx.Put(ownBucket, schemaKey, schema+1) }); err != nil {
		t.Fatal(err)
	}
	db.Close()
	_, err := Open(db.Path())
	if !fault.Is(err, fault.Precondition) || !strings.Contains(err.Error(), "newer") {
		t.Fatal(err)
	}
}

// filled is the bytes of a good file with a few hundred values.
func filled(t *testing.T) []byte {
	t.Helper()
	db := openTest(t)
	err := db.Update(func(tx *Tx) error {
		for i := range 300 {
			if err := tx.Put("servers", fmt.Sprintf("%04d", i), record{strings.Repeat("x", 200), int64(i)}); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	db.Close()
	data, err := os.ReadFile(db.Path())
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func TestOpenRefusesDamage(t *testing.T) {
	good := filled(t)
	page := os.Getpagesize()
	other := filepath.Join(t.TempDir(), "other.db")
	b, err := bolt.Open(other, 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	b.Close()
	foreign, err := os.ReadFile(other)
	if err != nil {
		t.Fatal(err)
	}
	for name, data := range map[string][]byte{
		"empty":           {},
		"text":            []byte(strings.Repeat("not a state file\n", 2000)),
		"short text":      []byte("hello"),
		"one page":        good[:page],
		"cut in half":     good[:len(good)/2/page*page],
		"cut to meta":     good[:2*page],
		"both metas gone": append(make([]byte, 2*page), good[2*page:]...),
		"pages zeroed":    append(append([]byte{}, good[:2*page]...), make([]byte, len(good)-2*page)...),
		"another bolt db": foreign,
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "state.db")
			if err := os.WriteFile(path, data, 0o600); err != nil {
				t.Fatal(err)
			}
			db, err := open(path, 200*time.Millisecond)
			if err == nil {
				db.Close()
				t.Fatal("opened")
			}
			if !fault.Is(err, fault.Precondition) || !strings.Contains(err.Error(), path) {
				t.Fatal(err)
			}
			// The lock is free again and the file untouched.
			if _, err := open(path, 200*time.Millisecond); !fault.Is(err, fault.Precondition) {
				t.Fatal(err)
			}
			if now, _ := os.ReadFile(path); string(now) != string(data) {
				t.Fatal("changed the damaged file")
			}
		})
	}
}

// TestOpenSurvivesAnyDamagedPage overwrites each page in turn: Open either refuses, or (a free
// page, or one of the two metas) all values are there.
func TestOpenSurvivesAnyDamagedPage(t *testing.T) {
	good := filled(t)
	page := os.Getpagesize()
	refused := 0
	for at := 0; at+page <= len(good); at += page {
		data := append([]byte{}, good...)
		for i := at; i < at+page; i++ {
			data[i] ^= 0xA5
		}
		path := filepath.Join(t.TempDir(), "state.db")
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		db, err := open(path, 200*time.Millisecond)
		if err != nil {
			if !fault.Is(err, fault.Precondition) {
				t.Errorf("page %d: %v", at/page, err)
			}
			refused++
			continue
		}
		n := 0
		if err := db.Bucket("servers").ForEach(func(_ string, v []byte) error {
			n++
			return json.Unmarshal(v, &record{})
		}); err != nil || (n != 300 && at >= 2*page) {
			t.Errorf("page %d: opened, but %d values, %v", at/page, n, err)
		}
		db.Close()
	}
	if refused == 0 {
		t.Fatal("no damage was noticed")
	}
}

func TestBadUse(t *testing.T) {
	db := openTest(t)
	b := db.Bucket("x")
	if err := b.Put("", 1); err == nil {
		t.Error("empty key accepted")
	}
	if err := b.Put("k", make(chan int)); err == nil {
		t.Error("channel stored")
	}
	if err := b.Put("k", "text"); err != nil {
		t.Fatal(err)
	}
	var n int
	if _, err := b.Get("k", &n); err == nil || !strings.Contains(err.Error(), "x/k") {
		t.Errorf("text read as a number: %v", err)
	}
	db.Close()
	if err := b.Put("k", 1); !fault.Is(err, fault.Unavailable) {
		t.Errorf("put after close: %v", err)
	}
	if _, err := Open(filepath.Join(t.TempDir(), "no", "state.db")); err == nil {
		t.Error("made a directory")
	}
	defer func() {
		if recover() == nil {
			t.Error("own bucket given out")
		}
	}()
	db.Bucket(ownBucket)
}
