package store

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"syscall"

	bolt "go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"

	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
)

// DB is an open state file. It is safe for use by several goroutines.
type DB struct {
	bolt *bolt.DB
	path string
}

// Path is the file's path, as given to Open.
func (db *DB) Path() string { return db.path }

// Close waits for the calls under way, then releases the file.
func (db *DB) Close() error {
	if err := db.bolt.Close(); err != nil {
		return fmt.Errorf("close state file %s: %w", db.path, err)
	}
	return nil
}

// Bucket is the bucket of this name. It comes to be with its first Put.
// A name beginning with an underscore is the store's own and panics.
func (db *DB) Bucket(name string) *Bucket {
	if name == "" || name[0] == '_' {
		panic(fmt.Sprintf("store: bucket name %q", name))
	}
	return &Bucket{db: db, name: name}
}

// Update performs the changes that fn makes through tx as one: all of them are on stable
// storage when it returns nil; if fn or the commit fails none has happened. Writers wait
// for each other, so fn must be short and must use only tx, not the DB or a Bucket.
func (db *DB) Update(fn func(tx *Tx) error) error {
	return db.change(func(t *bolt.Tx) error { return fn(&Tx{bolt: t}) })
}

func (db *DB) change(fn func(*bolt.Tx) error) error {
	return db.classify(db.bolt.Update(fn))
}

// classify gives errors of the file a kind; errors of the caller keep theirs.
func (db *DB) classify(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT):
		return fault.New(fault.Exhausted, "write state file %s: no space left on its disk: %w", db.path, err)
	case errors.Is(err, bolterrors.ErrDatabaseNotOpen):
		return fault.New(fault.Unavailable, "use state file %s: it is closed: %w", db.path, err)
	}
	return err
}

// Bucket is a named set of keys with JSON values. It is safe for use by several goroutines.
type Bucket struct {
	db   *DB
	name string
}

// Name is the bucket's name.
func (b *Bucket) Name() string { return b.name }

// Put stores v (as JSON) under key, replacing what was there; it is on stable storage when
// Put returns. A full disk is fault.Exhausted, and the old value stays.
func (b *Bucket) Put(key string, v any) error {
	return b.db.Update(func(tx *Tx) error { return tx.Put(b.name, key, v) })
}

// Get reads the value under key into v, a pointer. It reports whether there is one; v stays
// as it was if not.
func (b *Bucket) Get(key string, v any) (bool, error) {
	var found bool
	err := b.db.classify(b.db.bolt.View(func(t *bolt.Tx) error {
		var err error
		found, err = (&Tx{bolt: t}).Get(b.name, key, v)
		return err
	}))
	return found, err
}

// Delete removes the key; removing what is not there succeeds.
func (b *Bucket) Delete(key string) error {
	return b.db.Update(func(tx *Tx) error { return tx.Delete(b.name, key) })
}

// ForEach calls fn with every key and its JSON, in ascending order of keys, until fn fails;
// it returns fn's error. fn sees the bucket as it was when ForEach began, may keep value,
// and may use the store.
func (b *Bucket) ForEach(fn func(key string, value []byte) error) error {
	type pair struct {
		key   string
		value []byte
	}
	// Read all first: a write inside an open read transaction can wait for it for ever.
	var all []pair
	err := b.db.classify(b.db.bolt.View(func(t *bolt.Tx) error {
		inner := t.Bucket([]byte(b.name))
		if inner == nil {
			return nil
		}
		return inner.ForEach(func(k, v []byte) error {
			all = append(all, pair{string(k), bytes.Clone(v)})
			return nil
		})
	}))
	if err != nil {
		return fmt.Errorf("list bucket %s: %w", b.name, err)
	}
	for _, p := range all {
		if err := fn(p.key, p.value); err != nil {
			return err
		}
	}
	return nil
}

// Tx is the set of changes of one Update. It is valid until the function it was given to returns.
type Tx struct{ bolt *bolt.Tx }

// Put stores v (as JSON) under key in a bucket.
func (tx *Tx) Put(bucket, key string, v any) error {
	value, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encode %s/%s: %w", bucket, key, err)
	}
	b, err := tx.bolt.CreateBucketIfNotExists([]byte(bucket))
	if err != nil {
		return fmt.Errorf("make bucket %s: %w", bucket, err)
	}
	if err := b.Put([]byte(key), value); err != nil {
		return fmt.Errorf("put %s/%s: %w", bucket, key, err)
	}
	return nil
}

// Get reads the value under key in a bucket, with the changes of this Tx, into v.
// It reports whether there is one.
func (tx *Tx) Get(bucket, key string, v any) (bool, error) {
	b := tx.bolt.Bucket([]byte(bucket))
	if b == nil {
		return false, nil
	}
	value := b.Get([]byte(key))
	if value == nil {
		return false, nil
	}
	if err := json.Unmarshal(value, v); err != nil {
		return false, fmt.Errorf("decode %s/%s: %w", bucket, key, err)
	}
	return true, nil
}

// Delete removes the key from a bucket; removing what is not there succeeds.
func (tx *Tx) Delete(bucket, key string) error {
	b := tx.bolt.Bucket([]byte(bucket))
	if b == nil {
		return nil
	}
	if err := b.Delete([]byte(key)); err != nil {
		return fmt.Errorf("delete %s/%s: %w", bucket, key, err)
	}
	return nil
}
