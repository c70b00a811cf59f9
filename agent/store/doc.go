// Package store keeps an agent's state: one file, JSON values under string keys
// in named buckets, every change on stable storage before the call returns.
//
//	db, err := store.Open("/var/lib/reflejo/state.db")
//	defer db.Close()
//	images := db.Bucket("images")
//	err = images.Put(id, record)
//	found, err := images.Get(id, &record)
//	err = db.Update(func(tx *store.Tx) error { … several changes, all or none … })
//
// The file is bbolt's (a copy-on-write B+ tree), so a killed agent or a power cut
// leaves the state before or after a change, never between. One process has it
// open at a time.
package store
