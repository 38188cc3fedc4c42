package boltstore

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"syscall"
	"time"

	bolt "go.etcd.io/bbolt"
	berrors "go.etcd.io/bbolt/errors"

	"github.com/cezzis/tokenbroker/internal/store"
)

const (
	// formatVersion is the version of the file's format. A broker refuses a file with a
	// higher version.
	formatVersion = 1
	// lockTimeout is the time to wait for a file that another process has open: the
	// predecessor may be about to end.
	lockTimeout = time.Second

	formatKey = "format"
)

// openFile opens the file and checks its format and integrity.
func openFile(path string) (*bolt.DB, error) {
	if path == "" {
		return nil, errors.New("a Bolt store needs the path of its file")
	}
	db, err := openDB(path)
	if err != nil {
		return nil, openError(path, err)
	}
	if err := recoverDamage(func() error { return prepare(db) }); err != nil {
		_ = db.Close()
		return nil, fmt.Errorf("%s %w", path, err)
	}
	store.SyncDirectory(filepath.Dir(path))
	return db, nil
}

func openDB(path string) (db *bolt.DB, err error) {
	options := &bolt.Options{Timeout: lockTimeout, FreelistType: bolt.FreelistMapType}
	err = recoverDamage(func() (err error) {
		db, err = bolt.Open(path, 0o600, options)
		return err
	})
	return db, err
}

// ErrInUse is the error of Open for a file that another process has open.
var ErrInUse = errors.New("in use: another broker runs with it. Stop that one, or give this one a file of its own")

// openError adds advice to the error of a file that cannot be opened.
func openError(path string, err error) error {
	switch {
	case errors.Is(err, berrors.ErrTimeout):
		return fmt.Errorf("%s is %w", path, ErrInUse)
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("%s cannot be created: its directory does not exist. Create it, for the user that the broker runs as", path)
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("%s may not be read and written: give it and its directory to the user that the broker runs as", path)
	case errors.Is(err, syscall.EROFS):
		return fmt.Errorf("%s is on a disk that is read-only: name a file on one that can be written", path)
	case errors.Is(err, syscall.EISDIR):
		return fmt.Errorf("%s is a directory: name a file in it", path)
	case errors.Is(err, berrors.ErrInvalid), errors.Is(err, berrors.ErrVersionMismatch), errors.Is(err, berrors.ErrChecksum):
		return fmt.Errorf("%s is not a file of a broker, or is damaged at its very beginning: name another file, or move this one away and the broker begins a new one", path)
	case errors.Is(err, errDamaged):
		return fmt.Errorf("%s %w", path, err)
	default:
		return fmt.Errorf("%s cannot be opened: %w", path, err)
	}
}

// prepare initializes a new file and checks an existing one. Its errors continue a
// sentence that begins with the file name.
func prepare(db *bolt.DB) error {
	fresh := true
	var version []byte
	err := db.View(func(tx *bolt.Tx) error {
		if meta := tx.Bucket([]byte(bucketMeta)); meta != nil {
			version = append(version, meta.Get([]byte(formatKey))...)
		}
		return tx.ForEach(func([]byte, *bolt.Bucket) error {
			fresh = false
			return nil
		})
	})
	switch {
	case err != nil:
		return fmt.Errorf("cannot be read: %w", err)
	case fresh:
		if err := db.Update(createBuckets); err != nil {
			return fmt.Errorf("cannot be written: %w", err)
		}
		return nil
	case len(version) != 8:
		return errors.New("is a database of another program: name another file")
	case binary.BigEndian.Uint64(version) > formatVersion:
		return fmt.Errorf("was written by a newer broker (format %d; this one supports %d): run that one, or name another file", binary.BigEndian.Uint64(version), formatVersion)
	}
	return db.View(check)
}

func createBuckets(tx *bolt.Tx) error {
	meta, err := tx.CreateBucket([]byte(bucketMeta))
	if err != nil {
		return err
	}
	for _, table := range []string{bucketValues, bucketCounters, bucketLeases} {
		for _, name := range []string{table, table + byExpiry} {
			if _, err := tx.CreateBucket([]byte(name)); err != nil {
				return err
			}
		}
	}
	return meta.Put([]byte(formatKey), binary.BigEndian.AppendUint64(nil, formatVersion))
}

// check reads everything, so that damage is found at the start. bbolt has a check of
// its own, but it reads in a goroutine, where a fault cannot be caught and ends the
// process.
func check(tx *bolt.Tx) error {
	if !pagesAddUp(tx) {
		return errDamaged
	}
	for _, name := range []string{bucketValues, bucketCounters, bucketLeases} {
		if table := newTable(tx, name); !table.whole() {
			return errDamaged
		}
	}
	return nil
}

// pagesAddUp reports whether each page is either free or used exactly once.
func pagesAddUp(tx *bolt.Tx) bool {
	pages := int(tx.Size() / int64(tx.DB().Info().PageSize))
	outside := 0 // pages outside the buckets
	for id := 0; id < pages; {
		page, err := tx.Page(id)
		if err != nil || page == nil {
			return false
		}
		length := 1 + page.OverflowCount
		switch page.Type {
		case "free":
			length = 1
			outside++
		case "meta", "freelist":
			outside += length
		}
		id += length
	}
	used := tx.Cursor().Bucket().Stats() // pages of the root and everything in it
	return pages == outside+used.BranchPageN+used.BranchOverflowN+used.LeafPageN+used.LeafOverflowN
}
