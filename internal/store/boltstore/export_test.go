package boltstore

import bolt "go.etcd.io/bbolt"

// Commits is the number of the last transaction that was committed.
func Commits(b *Store) (number int) {
	_ = b.db.View(func(tx *bolt.Tx) error {
		number = tx.ID()
		return nil
	})
	return number
}

// OpenError says what to do about a file that cannot be opened.
func OpenError(path string, err error) error { return openError(path, err) }
