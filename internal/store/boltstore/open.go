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
	// boltFormat is the version of the file's format. A broker refuses a file with a
	// higher version.
	boltFormat = 1
	// boltPatience is the time to wait for a file that another process has open: the
	// predecessor may be about to end.
	boltPatience = time.Second

	boltFormatKey = "format"
)

// openBoltFile opens the file and checks its format and integrity.
func openBoltFile(path string) (*bolt.DB, error) {
	if path == "" {
		return nil, errors.New("a Bolt store needs the path of its file")
	}
	db, err := openBoltDB(path)
	if err != nil {
		return nil, boltOpenError(path, err)
	}
	if err := guardBolt(func() error { return prepareBolt(db) }); err != nil {
		_ = db.Close()
		return nil, fmt.Errorf("%s %w", path, err)
	}
	store.SyncDirectory(filepath.Dir(path))
	return db, nil
}

func openBoltDB(path string) (db *bolt.DB, err error) {
	options := &bolt.Options{Timeout: boltPatience, FreelistType: bolt.FreelistMapType}
	err = guardBolt(func() (err error) {
		db, err = bolt.Open(path, 0o600, options)
		return err
	})
	return db, err
}

// boltOpenError adds advice to the error of a file that cannot be opened.
func boltOpenError(path string, err error) error {
	switch {
	case errors.Is(err, berrors.ErrTimeout):
		return fmt.Errorf("%s is in use: another broker runs with it. Stop that one, or give this one a file of its own", path)
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
	case errors.Is(err, errBoltDamaged):
		return fmt.Errorf("%s %w", path, err)
	default:
		return fmt.Errorf("%s cannot be opened: %w", path, err)
	}
}

// prepareBolt initializes a new file and checks an existing one. Its errors continue a
// sentence that begins with the file name.
func prepareBolt(db *bolt.DB) error {
	fresh := true
	var version []byte
	err := db.View(func(tx *bolt.Tx) error {
		if meta := tx.Bucket([]byte(boltMeta)); meta != nil {
			version = append(version, meta.Get([]byte(boltFormatKey))...)
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
		if err := db.Update(fillBolt); err != nil {
			return fmt.Errorf("cannot be written: %w", err)
		}
		return nil
	case len(version) != 8:
		return errors.New("is a database of another program: name another file")
	case binary.BigEndian.Uint64(version) > boltFormat:
		return fmt.Errorf("is of a newer broker (format %d; this one knows %d): run that one, or name another file", binary.BigEndian.Uint64(version), boltFormat)
	}
	return db.View(checkBolt)
}

func fillBolt(tx *bolt.Tx) error {
	meta, err := tx.CreateBucket([]byte(boltMeta))
	if err != nil {
		return err
	}
	for _, table := range []string{boltValues, boltCounters, boltLeases} {
		for _, name := range []string{table, table + boltByExpiry} {
			if _, err := tx.CreateBucket([]byte(name)); err != nil {
				return err
			}
		}
	}
	return meta.Put([]byte(boltFormatKey), binary.BigEndian.AppendUint64(nil, boltFormat))
}

// checkBolt reads everything, so that damage is found at the start. bbolt has a check of
// its own, but it reads in a goroutine, where a fault cannot be caught and ends the
// process.
func checkBolt(tx *bolt.Tx) error {
	if !boltPagesAddUp(tx) {
		return errBoltDamaged
	}
	for _, name := range []string{boltValues, boltCounters, boltLeases} {
		if table := newBoltTable(tx, name); !table.whole() {
			return errBoltDamaged
		}
	}
	return nil
}

// boltPagesAddUp reports whether each page is either free or used exactly once.
func boltPagesAddUp(tx *bolt.Tx) bool {
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
