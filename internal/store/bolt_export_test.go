package store

import bolt "go.etcd.io/bbolt"

// BoltCommits is the number of the last transaction that was committed.
func BoltCommits(b *Bolt) (number int) {
	_ = b.db.View(func(tx *bolt.Tx) error {
		number = tx.ID()
		return nil
	})
	return number
}

// BoltOpenError says what to do about a file that cannot be opened.
func BoltOpenError(path string, err error) error { return boltOpenError(path, err) }
